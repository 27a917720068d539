"""Every setting of an eval, typed and strict: one benchmark, on which any policy can be measured.

Its sections are those of a recipe as far as measuring needs them: `problems, prompt, reward, sampling`, and
`metrics`. Left out: which evals a run measures and when, which a recipe says in `evaluation.evals`.
"""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from rest_em.recipe.sections import (
    AtLeastOne,
    Contradiction,
    NonEmpty,
    ProblemSource,
    PromptSection,
    Range,
    RewardSection,
    Section,
    Wanted,
    refuse_contradictions,
    regex_mistakes,
)


class ExampleSource(Section):
    """Where worked examples come from: the benchmark's own, so that nothing is copied."""

    path: NonEmpty | None = None
    """As that of the problems; None is the problems' own."""
    name: str | None = None
    """The hub data set's configuration; None is the problems' own."""
    split: str | None = None
    """The hub data set's split; None is the problems' own."""
    local: tuple[NonEmpty, ...] = ()
    """As those of the problems."""
    where: dict[str, Wanted | tuple[Wanted, ...] | Range] = Field(default_factory=dict)
    """As that of the problems."""
    num_examples: AtLeastOne | None = None
    """How many to show, from the first; None shows all."""


class EvalProblems(ProblemSource):
    """The benchmark's problems, and the worked examples that may be shown."""

    path: NonEmpty
    """A hub data set's id, or files as in a recipe; left out where the user is to name it with `--data`."""
    local: tuple[NonEmpty, ...] = ()
    """Files, or patterns of files, below the folder that `--data` names: the first that is there."""
    folder: NonEmpty | None = None
    """Where the template's `text_of(path)` reads; `--data` says it."""
    reference: NonEmpty | None = "answer"
    """The column with the gold answer; None where the reward looks at the whole row, or there is none."""
    id: NonEmpty | None = None
    """The column with a unique id; None numbers all rows from 0, of several files each: `snarks-17`."""
    group: NonEmpty | None = None
    """The column over whose values the macro average goes, such as a task."""
    cluster: NonEmpty | None = None
    """The column that says which problems come from one source, so that their errors are clustered."""
    examples: ExampleSource | None = None
    """Where worked examples come from, if not from `prompt.examples`."""


class EvalSampling(Section):
    """How solutions are drawn; names are those of transformers' GenerationConfig."""

    max_new_tokens: AtLeastOne
    """The cap on a solution's tokens."""
    stop_strings: tuple[NonEmpty, ...] = ()
    """A solution ends before the first of these."""
    greedy: bool = True
    """Draw one greedy solution a problem: the paper's pass@1."""
    num_samples: Annotated[int, Field(ge=0)] = 0
    """Samples a problem for pass@k and maj@k."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Of those samples; the paper's."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Only the k likeliest tokens; 0 turns it off."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Only the smallest set of tokens whose probability reaches this; the paper's."""
    unit_size: AtLeastOne = 256
    """Solutions a work unit: decoded and committed to disk whole."""
    max_rows: AtLeastOne = 128
    """Sequences decoded at once."""


class MetricsSection(Section):
    """Which figures are computed."""

    pass_at: tuple[AtLeastOne, ...] | None = None
    """The k of pass@k; None is the powers of 2 up to all samples, and all."""
    majority_at: tuple[AtLeastOne, ...] | None = None
    """The k of maj@k; None is all samples, where solutions give answers that vote."""
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Of the intervals."""
    format: NonEmpty | None = None
    """A regular expression that is found in a solution with the format that the prompt asks for."""

    def ks_of_pass(self, num_samples: int) -> tuple[int, ...]:
        """Return the k of pass@k where a problem has so many samples."""
        if self.pass_at is not None:
            return self.pass_at
        powers = [2**i for i in range(num_samples.bit_length()) if 2**i <= num_samples]
        return tuple(sorted({1, *powers, *((num_samples,) if num_samples else ())}))

    def ks_of_majority(self, num_samples: int) -> tuple[int, ...]:
        """Return the k of maj@k where a problem has so many samples."""
        if self.majority_at is not None:
            return self.majority_at
        return (num_samples,) if num_samples > 1 else ()


class Eval(Section):
    """One benchmark."""

    title: NonEmpty
    """How tables call it."""
    problems: EvalProblems
    """What to solve."""
    prompt: PromptSection
    """How the model is asked; an eval has one prompt for all policies."""
    reward: RewardSection | None = None
    """How solutions are judged; None: by people, and no score is claimed."""
    sampling: EvalSampling
    """How solutions are drawn."""
    metrics: MetricsSection = MetricsSection()
    """Which figures are computed."""

    @property
    def pass_at(self) -> tuple[int, ...]:
        """The k of pass@k."""
        return self.metrics.ks_of_pass(self.sampling.num_samples)

    @property
    def majority_at(self) -> tuple[int, ...]:
        """The k of maj@k."""
        return self.metrics.ks_of_majority(self.sampling.num_samples)

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        wrong: list[Contradiction] = []
        if self.prompt.variants().keys() - {(), ("tuned",)} or self.prompt.tuned.model_fields_set:
            wrong.append((("prompt",), "has variants, and an eval asks all policies alike; leave them out"))
        if self.prompt.examples is not None and self.problems.examples is not None:
            text = "is given, and problems.examples is too; leave one out"
            wrong.append((("prompt", "examples"), text))
        if not self.sampling.greedy and not self.sampling.num_samples:
            text = "is 0 and greedy is false, so nothing would be drawn; give one of them"
            wrong.append((("sampling", "num_samples"), text))
        for key in ("pass_at", "majority_at"):
            largest = max(getattr(self.metrics, key) or (), default=0)
            if largest > max(self.sampling.num_samples, 1):
                text = f"has k = {largest} and sampling.num_samples is {self.sampling.num_samples}"
                wrong.append((("metrics", key), f"{text}; give num_samples: {largest}, or a smaller k"))
        if self.metrics.format is not None:
            wrong += [(("metrics", "format"), text) for text in regex_mistakes(self.metrics.format)]
        refuse_contradictions(wrong)
        return self
