"""One run: its recipe, its folder, and the parts that all stages share. What is done is `algorithm`'s.

A `Workplace` is what drawing and judging need of it, and all that `rest_em evaluate` has.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rest_em.errors import ProblemError, RecipeError, RunInterruptedError
from rest_em.ledger import Ledger, Stage
from rest_em.problems import (
    base_variants,
    check_disjoint,
    check_not_shown,
    example_prompts,
    load_problems,
    read_rows,
    resolve_variant,
    split_validation,
    template_columns,
    training_variant,
    tuned_variant,
)
from rest_em.problems.benchmark import Benchmark, load_benchmark
from rest_em.problems.overlap import Overlap, Questions, find_overlaps
from rest_em.problems.rows import Row
from rest_em.recipe import (
    Eval,
    EvalChoice,
    ModelSection,
    ProblemSource,
    PromptSection,
    PromptVariant,
    Recipe,
    RewardSection,
    find_eval,
    load_eval,
)
from rest_em.report.progress import Progress
from rest_em.rewards.graders import Graders
from rest_em.stages import Supervisor
from rest_em.storage import file_hash
from rest_em.types import Policy, Problem

ProblemSet = Literal["train", "validation", "test"]


@dataclass(frozen=True, slots=True)
class ChosenEval:
    """A benchmark that a recipe names, with its problems."""

    name: str
    """Its file's, and how many problems it is limited to."""
    choice: EvalChoice
    spec: Eval
    benchmark: Benchmark


@dataclass(frozen=True, slots=True)
class PromptedPolicy:
    """A policy and the prompt that serves it, with the stages that made them."""

    policy: Policy
    prompt: PromptVariant
    made_by: tuple[Stage, ...] = ()
    validation: Mapping[str, bool | None] = field(default_factory=dict)
    """Its greedy verdicts on D_val by problem; None where one could not be judged."""


class ProblemSets:
    """The recipe's train, validation and test problems, rendered with any of its prompts, and its evals'."""

    def __init__(self, recipe: Recipe) -> None:
        """Read nothing yet; files are read when a set is first asked for."""
        self._recipe = recipe
        self._read: dict[str, Sequence[Row]] = {}
        self._rendered = functools.cache(self._render)

    def rendered(self, which: ProblemSet, variant: PromptVariant) -> tuple[Problem, ...]:
        """Return a set's problems with `variant`'s prompt.

        Raises:
            ProblemError: a file cannot be used, a prompt does not render.
        """
        return self._rendered(which, variant)

    @functools.cached_property
    def evals(self) -> tuple[ChosenEval, ...]:
        """The recipe's evals.

        Raises:
            RecipeError: a mistake in one of them, or two have one name.
            ProblemError: the problems of one cannot be used.
        """
        chosen: dict[str, ChosenEval] = {}
        for number, choice in enumerate(self._recipe.evaluation.evals):
            place = self._recipe.place(f"evaluation.evals[{number}].path")
            try:
                path = find_eval(choice.path)
            except RecipeError as error:
                raise RecipeError(f"{place}: evaluation.evals[{number}].path: {error}") from error
            name = path.stem if choice.limit is None else f"{path.stem}-first-{choice.limit}"
            if name in chosen or name in ("train", "test"):
                raise RecipeError(
                    f"{place}: evaluation.evals[{number}].path: the name {name!r} is taken; give the file "
                    "another one"
                )
            spec = load_eval(path, data=choice.data)
            chosen[name] = ChosenEval(name, choice, spec, load_benchmark(spec, choice.limit))
        return tuple(chosen.values())

    @functools.cached_property
    def overlaps(self) -> tuple[Overlap, ...]:
        """Training problems that overlap with the test problems or an eval's; none where that is ignored."""
        section = self._recipe.evaluation
        if section.contamination == "ignore":
            return ()
        bare = tuned_variant(self._recipe.prompt).model_copy(update={"num_examples": 0})
        columns = template_columns(str(bare.template))
        others = {"test": Questions(self._render("test", bare), columns)}
        for one in self.evals:
            others[one.name] = Questions(one.benchmark.bare, template_columns(one.spec.prompt.template))
        train = Questions(self._train(bare), columns)
        return tuple(find_overlaps(train, others, section.contamination_words))

    def check(self, variant: PromptVariant) -> None:
        """Read all three sets, so that mistakes show before anything is drawn.

        Raises:
            ProblemError: as `rendered`, a problem is in two of the sets, none is for validation, or one of
                validation or test is a worked example of the prompt.
        """
        train, validation, test = (
            self.rendered("train", variant),
            self.rendered("validation", variant),
            self.rendered("test", variant),
        )
        if not validation:
            raise ProblemError(
                f"problems.validation: there is no problem to validate on; name a file there, or give "
                f"problems.train at least 2 problems (found {len(train)}), of which "
                f"problems.validation_fraction sets some aside"
            )
        check_disjoint(train, validation, test)
        bare = variant.model_copy(update={"num_examples": 0})
        check_not_shown(
            example_prompts(self._recipe.prompt, variant),
            self.rendered("validation", bare),
            self.rendered("test", bare),
        )

    def _rows(self, source: ProblemSource) -> Sequence[Row]:
        key = source.model_dump_json()
        if key not in self._read:
            self._read[key] = read_rows(source)
        return self._read[key]

    def _render(self, which: ProblemSet, variant: PromptVariant) -> tuple[Problem, ...]:
        section, prompt = self._recipe.problems, self._recipe.prompt
        source = section.sources().get(which)
        if which == "train":
            left_out = set()
            if self._recipe.evaluation.contamination == "exclude":
                left_out = {one.problem_id for one in self.overlaps}
            kept = tuple(problem for problem in self._train(variant) if problem.id not in left_out)
            if not kept:
                raise ProblemError(
                    "problems.train: every problem overlaps with a test problem or a benchmark, and "
                    "evaluation.contamination is exclude, so nothing is left to train on"
                )
            return kept
        if source is not None:
            return load_problems(self._rows(source), section, prompt, variant)
        return self._split(variant)[1]

    def _train(self, variant: PromptVariant) -> tuple[Problem, ...]:
        """Return the training problems, those that overlap with others among them."""
        section = self._recipe.problems
        if section.validation is None:
            return self._split(variant)[0]
        return load_problems(self._rows(section.train), section, self._recipe.prompt, variant)

    def _split(self, variant: PromptVariant) -> tuple[tuple[Problem, ...], tuple[Problem, ...]]:
        section = self._recipe.problems
        problems = load_problems(self._rows(section.train), section, self._recipe.prompt, variant)
        return split_validation(problems, section.validation_fraction)


class Judges:
    """The graders of each reward that is asked for; a context that leaves no process behind."""

    def __init__(self, log: Path | None = None, tell: Callable[[str], None] | None = None) -> None:
        """Start nothing yet; `log` and `tell` are those of `Graders`."""
        self._log, self._tell = log, tell
        self._graders: dict[str, Graders] = {}

    def __enter__(self) -> Judges:
        """Return itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """End all graders."""
        with ExitStack() as stack:
            for graders in self._graders.values():
                stack.push(graders)

    def of(self, section: RewardSection) -> Graders:
        """Return the graders of a reward, always the same ones.

        Raises:
            RewardError: there is no such reward.
        """
        key = section.model_dump_json()
        if key not in self._graders:
            self._graders[key] = Graders(section, self._log, self._tell)
        return self._graders[key]


@dataclass(frozen=True, slots=True)
class Workplace:
    """Where solutions are drawn and judged, and what is done of it."""

    folder: Path
    ledger: Ledger
    supervisor: Supervisor
    judges: Judges
    progress: Progress

    def leave_if_asked(self) -> None:
        """End the work if a file `stop` lies in the folder.

        Raises:
            RunInterruptedError: there is one; it is removed, so that the same command goes on.
        """
        stop = self.folder / "stop"
        if stop.exists():
            stop.unlink()
            raise RunInterruptedError(f"{stop}: asked to stop; the same command goes on from here")


@dataclass(frozen=True, slots=True)
class Asked:
    """How a policy is asked and judged: what of a recipe, or of an eval, every draw depends on."""

    model: ModelSection
    """How the policy is loaded."""
    seed: int
    unit_size: int
    max_rows: int
    prompt_inputs: Mapping[str, Any]
    """What the rendered prompt depends on, besides the problems."""
    reward: RewardSection


@dataclass(frozen=True, slots=True)
class Run:
    """What every stage of a run needs.

    The user's files that stages depend on are looked at once: a run goes on with what it has started with.
    """

    recipe: Recipe
    place: Workplace
    problems: ProblemSets
    base_prompts: tuple[PromptVariant, ...] = field(init=False)
    """The candidates for the base model."""
    tuned_prompt: PromptVariant = field(init=False)
    """That of the tuned policies."""
    training_prompt: PromptVariant = field(init=False)
    """That of the M-step."""
    _prompt_inputs: Mapping[PromptVariant, Mapping[str, Any]] = field(init=False)

    def __post_init__(self) -> None:
        """Look at the few-shot examples, and at the reward."""
        self.place.judges.of(self.recipe.reward)
        prompt = self.recipe.prompt
        base, tuned, training = base_variants(prompt), tuned_variant(prompt), training_variant(prompt)
        fields = {
            "base_prompts": base,
            "tuned_prompt": tuned,
            "training_prompt": training,
            "_prompt_inputs": {one: _inputs_of(prompt, one) for one in (*base, tuned, training)},
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.place.folder

    @property
    def ledger(self) -> Ledger:
        """What has been done."""
        return self.place.ledger

    def asked(self, variant: PromptVariant) -> Asked:
        """Return how a policy with this prompt is asked and judged."""
        recipe = self.recipe
        return Asked(
            model=recipe.model,
            seed=recipe.seed,
            unit_size=recipe.sampling.unit_size,
            max_rows=recipe.sampling.max_rows,
            prompt_inputs=self.prompt_inputs(variant),
            reward=recipe.reward,
        )

    def prompt_inputs(self, variant: PromptVariant) -> Mapping[str, Any]:
        """Return what a rendered prompt depends on, besides the problems, as a stage's inputs.

        Examples are known by their content, not by where they lie.
        """
        return self._prompt_inputs[variant]


def _inputs_of(prompt: PromptSection, variant: PromptVariant) -> dict[str, Any]:
    resolved = resolve_variant(prompt, variant)
    inputs = resolved.model_dump(mode="json", exclude={"name"})
    return inputs | {"examples": resolved.examples and file_hash(Path(resolved.examples))}
