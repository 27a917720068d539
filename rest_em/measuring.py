"""A policy measured on a set of problems: what is drawn and judged, the figures, and the table of samples.

The recipe's own test problems and every eval go this way. Which sets are measured and when is left to
`rest_em.algorithm` and `rest_em.evaluating`; what the figures are is in `rest_em.evaluation`.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rest_em.drawing import Draw, plan_draw
from rest_em.evaluation import Columns, ColumnsBuilder, Evaluation, Metrics, SameAnswer, summarize
from rest_em.ledger import Stage
from rest_em.problems.benchmark import Benchmark
from rest_em.problems.prompts import TEXT_OF, resolve_variant
from rest_em.recipe import (
    Eval,
    EvalSampling,
    EvaluationSection,
    MetricsSection,
    ModelSection,
    ProblemSource,
    PromptVariant,
    RewardSection,
    SamplingSection,
)
from rest_em.report.settings import Settings
from rest_em.rewards.registry import answer_name, same_answer_of
from rest_em.run import Asked, PromptedPolicy, Workplace
from rest_em.samples import Decoding, Sample, write_samples
from rest_em.storage import dtype_of_solutions, write_json
from rest_em.types import GradedSolution, Problem, SamplingParams

BY_HAND = RewardSection(name="by_hand", max_unscorable=1.0)
"""Stands where an eval has no reward: every solution is unscorable, and people grade it."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """A set of problems and how policies are measured on it.

    Example:
        Measurement("gsm8k", "GSM8K", source, problems, variant, asked, {"greedy": params}, pass_at=(1,))
    """

    name: str
    """A folder below an iteration's `evals/`."""
    title: str
    """How people call it."""
    source: ProblemSource
    """Where the problems come from."""
    problems: Sequence[Problem]
    prompt: PromptVariant
    """What the problems are rendered with; its `num_examples` are those that are shown."""
    asked: Asked
    params: Mapping[Decoding, SamplingParams]
    """What is drawn."""
    pass_at: Sequence[int]
    limit: int | None = None
    """Only so many problems of the source were asked for."""
    majority_at: Sequence[int] = ()
    confidence: float = 0.95
    format: str | None = None
    """A regular expression that is found in a solution with the format that was asked for."""
    groups: Mapping[str, str] = field(default_factory=dict)
    """By problem id, what the macro average goes over; empty where there is none."""
    clusters: Mapping[str, str] = field(default_factory=dict)
    """By problem id, which problems come from one source; empty where each is its own."""
    metrics: MetricsSection = field(default_factory=MetricsSection)
    """What is said of the figures: the k of stored solutions, whose number is their own, follow from it."""

    _by_id: Mapping[str, Problem] = field(init=False)

    def __post_init__(self) -> None:
        """Look the problems' ids up once."""
        object.__setattr__(self, "_by_id", {problem.id: problem for problem in self.problems})

    def problem(self, problem_id: str) -> Problem:
        """Return a problem by its id."""
        return self._by_id[problem_id]

    def is_format_valid(self, text: str) -> bool | None:
        """Say whether a solution has the format that was asked for; None where none was."""
        return None if self.format is None else re.search(self.format, text) is not None

    @property
    def is_scored(self) -> bool:
        """Whether a reward judges the solutions."""
        return self.asked.reward != BY_HAND


@dataclass(frozen=True, slots=True)
class PlannedMeasurement:
    """What is drawn of one policy for a measurement, and the stage that its figures are."""

    measurement: Measurement
    draws: Mapping[Decoding, Draw]
    stage: Stage


def measurement_of(
    spec: Eval,
    benchmark: Benchmark,
    name: str,
    *,
    model: ModelSection,
    seed: int,
    limit: int | None = None,
) -> Measurement:
    """Return what an eval measures.

    Args:
        spec: the eval.
        benchmark: its problems.
        name: what the folder of its results is called.
        model: how policies are loaded.
        seed: of the draws.
        limit: to how many problems the benchmark is limited.
    """
    sampling, metrics = spec.sampling, spec.metrics
    variant = resolve_variant(spec.prompt, spec.prompt)
    params: dict[Decoding, SamplingParams] = {}
    if sampling.greedy:
        params["greedy"] = greedy_params(sampling)
    if sampling.num_samples:
        params["sampled"] = sampled_params(sampling, sampling)
    asked = Asked(
        model=model,
        seed=seed,
        unit_size=sampling.unit_size,
        max_rows=sampling.max_rows,
        # The prompts themselves are among the inputs as well; these words say what has changed.
        prompt_inputs=variant.model_dump(mode="json", include={"template", "system", "chat_template"}),
        reward=spec.reward or BY_HAND,
    )
    return Measurement(
        name=name,
        title=spec.title,
        source=spec.problems,
        problems=benchmark.problems,
        prompt=variant.model_copy(update={"num_examples": benchmark.num_examples}),
        asked=asked,
        params=params,
        pass_at=spec.pass_at,
        limit=limit,
        majority_at=spec.majority_at,
        confidence=metrics.confidence,
        format=metrics.format,
        groups=benchmark.groups,
        clusters=benchmark.clusters,
        metrics=metrics,
    )


def settings_of(measurement: Measurement, *, solutions: Path | None = None) -> Settings:
    """Return what stands beside a measurement's figures, but for what is known of its draws alone.

    Args:
        measurement: what is measured.
        solutions: the stored solutions that are judged in the place of draws.
    """
    source = measurement.source
    limits = [one for one in (measurement.limit, source.max_problems) if one is not None]
    return Settings(
        data=source.model_dump(
            mode="json",
            include=set(ProblemSource.model_fields) - {"max_problems"},
            exclude_defaults=True,
        ),
        limit=min(limits, default=None),
        confidence=measurement.confidence,
        reward=measurement.asked.reward.title if measurement.is_scored else None,
        solutions=None if solutions is None else str(solutions),
    )


def _settings_of_draws(place: Workplace, planned: PlannedMeasurement) -> Settings:
    measurement = planned.measurement
    asked, prompt, params = measurement.asked, measurement.prompt, measurement.params
    (first, *_), sampled = params.values(), params.get("sampled")
    draws = planned.draws.values()
    units = [unit for draw in draws for unit in (place.folder / draw.samples.name).glob("units/*.parquet")]
    dtypes = sorted({dtype_of_solutions(unit) or asked.model.dtype for unit in units})
    return dataclasses.replace(
        settings_of(measurement),
        model=next(iter(draws)).prompted.policy.path,
        revision=asked.model.revision,
        dtype=", ".join(dtypes),
        seed=asked.seed,
        num_shots=None if TEXT_OF in str(prompt.template) else prompt.num_examples,
        chat_template=prompt.chat_template,
        greedy="greedy" in params,
        num_samples=0 if sampled is None else sampled.num_samples,
        temperature=None if sampled is None else sampled.temperature,
        top_k=None if sampled is None else sampled.top_k,
        top_p=None if sampled is None else sampled.top_p,
        max_new_tokens=first.max_new_tokens,
        stop_strings=first.stop_strings,
    )


def greedy_params(ends: SamplingSection | EvalSampling) -> SamplingParams:
    """Return how a greedy solution is drawn; `ends` says where it ends."""
    return SamplingParams(
        num_samples=1,
        max_new_tokens=ends.max_new_tokens,
        temperature=0.0,
        stop_strings=ends.stop_strings,
    )


def sampled_params(
    asked: EvaluationSection | EvalSampling, ends: SamplingSection | EvalSampling
) -> SamplingParams:
    """Return how the samples of an evaluation are drawn; `ends` says where they end."""
    return SamplingParams(
        num_samples=asked.num_samples,
        max_new_tokens=ends.max_new_tokens,
        temperature=asked.temperature,
        top_k=asked.top_k,
        top_p=asked.top_p,
        stop_strings=ends.stop_strings,
    )


def plan_measurement(
    place: Workplace, policy: PromptedPolicy, measurement: Measurement
) -> PlannedMeasurement:
    """Return the draws that measure a policy, whatever prompt it has been given before."""
    iteration = policy.policy.iteration
    folder = f"iteration-{iteration:02d}/evals/{measurement.name}"
    prompted = PromptedPolicy(policy.policy, measurement.prompt, policy.made_by)
    draws = {
        decoding: plan_draw(
            place,
            f"{folder}/{decoding}",
            prompted,
            measurement.problems,
            params,
            asked=measurement.asked,
            title=f"{measurement.name} {iteration}",
            iteration=iteration,
        )
        for decoding, params in measurement.params.items()
    }
    metrics = {
        "pass_at": list(measurement.pass_at),
        "majority_at": list(measurement.majority_at),
        "confidence": measurement.confidence,
        "format": measurement.format,
        "groups": sorted(set(measurement.groups.values())),
        "clusters": len(set(measurement.clusters.values())),
    }
    after = tuple(draw.verdicts for draw in draws.values())
    return PlannedMeasurement(measurement, draws, Stage(f"{folder}/metrics", metrics, after=after))


def finish_measurement(
    place: Workplace, planned: PlannedMeasurement, judged: Mapping[Decoding, Sequence[GradedSolution]]
) -> tuple[Evaluation, Settings | None]:
    """Return the figures of judged draws and their settings, None where they were not kept with the figures.

    With the figures the table of samples is written, and the settings beside it.

    Args:
        place: where the draws were made.
        planned: what was planned.
        judged: each draw's solutions.
    """
    measurement, stage = planned.measurement, planned.stage
    result = place.ledger.result(stage)
    if result is None:
        started = time.monotonic()
        samples = with_votes(
            [sample_of(measurement, decoding, one) for decoding, graded in judged.items() for one in graded],
            same_answer_of(measurement.asked.reward),
        )
        settings = _settings_of_draws(place, planned)
        write_table(samples_path(place.folder, stage.name), samples, settings)
        figures = evaluation_of(measurement, samples).to_json()
        seconds = time.monotonic() - started
        result = place.ledger.append(stage, figures | {"settings": settings.to_json()}, seconds=seconds)
    kept = result.get("settings")
    return Evaluation.from_json(result), None if kept is None else Settings.from_json(kept)


def write_table(path: Path, samples: Sequence[Sample], settings: Settings) -> None:
    """Write the table of samples, and the settings beside it as `settings.json`."""
    write_samples(path, samples)
    write_json(path.parent / "settings.json", settings.to_json())


def evaluation_of(measurement: Measurement, samples: Sequence[Sample]) -> Evaluation:
    """Return the figures of the samples of a measurement's problems."""
    reward = measurement.asked.reward
    metrics = Metrics(
        pass_at=measurement.pass_at,
        majority_at=measurement.majority_at if answer_name(reward) != "none" else (),
        confidence=measurement.confidence,
    )
    greedy = _columns(measurement, samples, "greedy") if "greedy" in measurement.params else None
    sampled = _columns(measurement, samples, "sampled") if "sampled" in measurement.params else None
    return summarize(greedy, sampled, metrics)


def samples_path(folder: Path, stage: str) -> Path:
    """Return where the table of samples of a stage of figures is."""
    return folder / Path(stage).parent / "samples.parquet"


def sample_of(measurement: Measurement, decoding: Decoding, graded: GradedSolution) -> Sample:
    """Return a graded solution as a row of the table of samples."""
    solution = graded.solution
    problem = measurement.problem(solution.problem_id)
    return Sample(
        problem_id=problem.id,
        prompt=problem.prompt,
        reference=problem.reference,
        decoding=decoding,
        index=solution.index,
        text=solution.text,
        verdict=graded.verdict,
        reward=graded.reward,
        answer=graded.answer,
        reason=graded.reason,
        finish_reason=solution.finish_reason,
        num_tokens=len(solution.token_ids),
        is_format_valid=measurement.is_format_valid(solution.text),
        group=measurement.groups.get(problem.id),
        cluster=measurement.clusters.get(problem.id),
    )


def with_votes(samples: Sequence[Sample], same_answer: SameAnswer | None) -> Sequence[Sample]:
    """Return samples each with what its answer counts for in a vote: the first one that means the same.

    Args:
        samples: of any problems.
        same_answer: whether two answers mean the same; None: whether they are written alike.
    """
    if same_answer is None:
        return samples
    firsts: dict[tuple[str, str], str] = {}
    seen: dict[str, list[str]] = {}
    voting = []
    for one in samples:
        if one.answer is None:
            voting.append(one)
            continue
        key = (one.problem_id, one.answer)
        if key not in firsts:
            classes = seen.setdefault(one.problem_id, [])
            firsts[key] = next((first for first in classes if same_answer(first, one.answer)), one.answer)
            if firsts[key] == one.answer:
                classes.append(one.answer)
        voting.append(dataclasses.replace(one, vote=firsts[key]))
    return voting


def _columns(measurement: Measurement, samples: Sequence[Sample], decoding: Decoding) -> Columns:
    builder = ColumnsBuilder()
    for problem in measurement.problems:
        builder.add_problem(
            problem.id, measurement.groups.get(problem.id), measurement.clusters.get(problem.id)
        )
    for one in samples:
        if one.decoding == decoding:
            add_sample(builder, one)
    return builder.build()


def add_sample(builder: ColumnsBuilder, sample: Sample) -> None:
    """Add a sample to columns, its answer as what it counts for in a vote."""
    builder.add(
        sample.problem_id,
        sample.verdict,
        answer=sample.answer if sample.vote is None else sample.vote,
        reward=sample.reward,
        text=sample.text,
        is_truncated=None if sample.finish_reason is None else sample.finish_reason == "length",
        is_format_valid=sample.is_format_valid,
        num_tokens=sample.num_tokens,
    )
