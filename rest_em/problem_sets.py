"""The problems of a recipe: its three sets with any of its prompts, its evals', and which of them overlap."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rest_em.errors import ProblemError, RecipeError
from rest_em.problems import (
    check_disjoint,
    check_not_shown,
    example_prompts,
    human_solutions_of,
    load_problems,
    read_rows,
    split_validation,
    template_columns,
    training_variant,
    tuned_variant,
)
from rest_em.problems.benchmark import Benchmark, load_benchmark
from rest_em.problems.overlap import Overlap, Questions, find_overlaps
from rest_em.problems.rows import Row
from rest_em.recipe import Eval, EvalChoice, ProblemSource, PromptVariant, Recipe, find_eval, load_eval
from rest_em.types import Problem

ProblemSet = Literal["train", "validation", "test"]


@dataclass(frozen=True, slots=True)
class ChosenEval:
    """A benchmark that a recipe names, with its problems."""

    name: str
    """Its file's, and how many problems it is limited to."""
    choice: EvalChoice
    spec: Eval
    benchmark: Benchmark


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

    @functools.cached_property
    def human_solutions(self) -> Mapping[str, str]:
        """The solutions that people wrote to the training problems, by id; none where the recipe wants none.

        Raises:
            ProblemError: as `rendered`, or a training problem has none.
        """
        recipe = self._recipe
        if recipe.selection.human_solutions == "none":
            return {}
        ids = {problem.id for problem in self.rendered("train", training_variant(recipe.prompt))}
        rows = self._rows(recipe.problems.train)
        return human_solutions_of(rows, recipe.problems, recipe.prompt, ids)

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
