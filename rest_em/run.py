"""One run: its recipe, its folder, and the parts that all stages share. What is done is `algorithm`'s.

A `Workplace` is what drawing and judging need of it, and all that `rest_em evaluate` has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from rest_em.errors import RunInterruptedError
from rest_em.ledger import Ledger, Stage
from rest_em.problem_sets import ProblemSets
from rest_em.problems import (
    base_variants,
    every_variant,
    resolve_variant,
    teacher_variant,
    training_variant,
    tuned_variant,
)
from rest_em.recipe import (
    ModelSection,
    PromptSection,
    PromptVariant,
    Recipe,
    RewardSection,
)
from rest_em.report.progress import Progress
from rest_em.rewards.graders import Graders
from rest_em.stages import Supervisor
from rest_em.storage import file_hash
from rest_em.types import Policy


@dataclass(frozen=True, slots=True)
class PromptedPolicy:
    """A policy and the prompt that serves it, with the stages that made them."""

    policy: Policy
    prompt: PromptVariant
    made_by: tuple[Stage, ...] = ()
    validated_by: tuple[Stage, ...] = ()
    """The stages that say how it does on D_val."""
    validation: Mapping[str, bool | None] = field(default_factory=dict)
    """Its greedy verdicts on D_val by problem; None where one could not be judged."""


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

    @property
    def stop(self) -> Path:
        """The file that asks to leave."""
        return self.folder / "stop"

    def leave_if_asked(self) -> None:
        """End the work if a file `stop` lies in the folder.

        Raises:
            RunInterruptedError: there is one; it is removed, so that the same command goes on.
        """
        if self.stop.exists():
            self.leave()

    def leave(self) -> NoReturn:
        """End the work, which was asked for.

        Raises:
            RunInterruptedError: always; the file that asked is removed, so that the same command goes on.
        """
        self.stop.unlink(missing_ok=True)
        raise RunInterruptedError(f"{self.stop}: asked to stop; the same command goes on from here")


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
    teacher_prompt: PromptVariant | None = field(init=False)
    """That of the model that samples in the policy's place; None is the policy's."""
    _prompt_inputs: Mapping[PromptVariant, Mapping[str, Any]] = field(init=False)

    def __post_init__(self) -> None:
        """Look at the few-shot examples, and at the reward."""
        self.place.judges.of(self.recipe.reward)
        prompt = self.recipe.prompt
        fields = {
            "base_prompts": base_variants(prompt),
            "tuned_prompt": tuned_variant(prompt),
            "training_prompt": training_variant(prompt),
            "teacher_prompt": teacher_variant(prompt),
            "_prompt_inputs": {one: _inputs_of(prompt, one) for one in every_variant(prompt)},
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
