"""`rest_em evaluate`: a model, or the policies of a run, measured on benchmarks; and stored solutions judged.

A run's policies are measured in the run's own folder, as its recipe would; a model in a folder of its own,
and so are stored solutions. The same command goes on after an interruption. How a recipe's own evals are
measured is left to `rest_em.algorithm`, what a measurement is to `rest_em.measuring`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rest_em.drawing import draw_and_judge
from rest_em.errors import RecipeChangedError, RecipeError, RunFolderError, SamplesError
from rest_em.evaluation import Evaluation
from rest_em.ledger import Ledger, Stage, best_iteration, policy_iterations
from rest_em.measuring import (
    Measurement,
    evaluation_of,
    finish_measurement,
    measurement_of,
    plan_measurement,
    samples_path,
    settings_of,
    with_votes,
    write_table,
)
from rest_em.problems.benchmark import load_benchmark
from rest_em.recipe import ModelSection, PromptVariant, Recipe, load_eval, load_model_section, load_recipe
from rest_em.report.progress import Progress
from rest_em.report.settings import Settings
from rest_em.rewards.graders import check_unscorable
from rest_em.rewards.registry import same_answer_of
from rest_em.run import PromptedPolicy, Workplace
from rest_em.samples import Sample
from rest_em.scoring import ScoreFiles, judge_stored
from rest_em.storage import FolderLock, read_lines, write_text
from rest_em.stored_samples import read_stored
from rest_em.types import Policy, Problem, SamplingParams, Verdict

ADVICE = "--overwrite measures it again, --output FOLDER elsewhere."
"""What to do where something was measured with other settings."""
VERDICTS = "verdicts.jsonl"
"""What stored solutions leave beside their table, and drawn ones do not."""
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
"""Organisation and model."""
EVALUATIONS = Path("evaluations")
"""Where models, and stored solutions, are measured, below the working directory."""


@dataclass(frozen=True, slots=True)
class Target:
    """What is measured, and where.

    Example:
        Target(Path("evaluations/SmolLM2-135M"), model, seed=0, policies=(PromptedPolicy(...),))
    """

    folder: Path
    model: ModelSection
    """How the policies are loaded."""
    seed: int
    policies: tuple[PromptedPolicy, ...]
    is_run: bool


@dataclass(frozen=True, slots=True)
class Measured:
    """What one policy measures on one eval."""

    iteration: int
    measurement: Measurement
    stage: str
    """Its name in the ledger of the folder."""
    evaluation: Evaluation
    settings: Settings | None
    """How the figures came to be; None where an earlier version has not kept it."""


def target_of_model(name: str, overrides: Sequence[str], output: Path | None, seed: int | None) -> Target:
    """Return a model as what is measured; its folder is named after it.

    Args:
        name: a folder with a checkpoint, or a hub id.
        overrides: `KEY=VALUE` of the section `model`, such as `model.dtype=float32`.
        output: the folder; None is one below `evaluations/`.
        seed: of the draws; None is 0.

    Raises:
        RecipeError: it is neither, or an override is wrong.
    """
    path = _path_of(name)
    if path.exists() and not (path / "config.json").is_file():
        raise RecipeError(
            f"{name}: there is neither a ledger.jsonl of a run in it nor a config.json of a model; a run's "
            "folder, a model's folder or a hub id is wanted"
        )
    label = _label(name)
    model = load_model_section(str(path.resolve()) if path.exists() else name, overrides)
    base = PromptedPolicy(Policy(model.name_or_path, 0), PromptVariant())
    return Target(output or EVALUATIONS / label, model, seed or 0, (base,), is_run=False)


def target_of_solutions(name: str, output: Path | None) -> Target:
    """Return where stored solutions are judged; there is no policy.

    Args:
        name: what they are called; a model's, perhaps.
        output: the folder; None is one below `evaluations/`.

    Raises:
        RecipeError: it is a path that is not there.
    """
    label = _label(name)
    model = ModelSection(name_or_path="stored solutions")
    return Target(output or EVALUATIONS / label, model, 0, (), is_run=False)


def _path_of(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError:  # ~NAME of nobody
        return Path(name)


def _label(name: str) -> str:
    """Return what the folder of results is called after a model's folder, its hub id or another name."""
    path = _path_of(name)
    if path.exists():
        return path.resolve().name
    if name.startswith((".", "/", "~")) or (os.sep in name and not HUB_ID.fullmatch(name)):
        raise RecipeError(
            f"{name}: there is no such folder; the folder of a model or a run, or a hub id as in "
            "organisation/model, is wanted"
        )
    return name.replace("/", "--")


def target_of_run(folder: Path, which: str) -> Target:
    """Return policies of a run as what is measured.

    Args:
        folder: the run's.
        which: `best` by validation, `last`, `base`, `all`, or an iteration's number.

    Raises:
        RunFolderError: there is no such policy.
    """
    ledger = Ledger(folder)
    recipe = load_recipe(folder / "recipe.yaml")
    iterations = policy_iterations(ledger.records)
    match which:
        case "all":
            chosen = iterations
        case "best":
            chosen = [best_iteration(ledger.records)]
        case "last":
            chosen = iterations[-1:]
        case "base":
            chosen = [0]
        case _ if which.isdigit() and int(which) in iterations:
            chosen = [int(which)]
        case _:
            numbers = ", ".join(map(str, iterations))
            raise RunFolderError(
                f"{folder}: there is no policy {which!r}; best, last, base, all or one of {numbers} is wanted"
            )
    policies = tuple(_policy(folder, ledger, recipe, number) for number in chosen)
    return Target(folder, recipe.model, recipe.seed, policies, is_run=True)


def _policy(folder: Path, ledger: Ledger, recipe: Recipe, iteration: int) -> PromptedPolicy:
    base = recipe.model.name_or_path
    if iteration == 0:
        return PromptedPolicy(Policy(base, 0), PromptVariant())
    trained = iteration
    while trained and not (ledger.result(_choice(ledger, trained)) or {})["chosen"]:
        trained = trained - 1 if recipe.training.train_from == "previous" else 0
    path = folder / f"iteration-{trained:02d}" / "policy"
    if trained and not path.exists():
        raise RunFolderError(
            f"{path}: the policy of iteration {iteration} is gone; name another one with --policy"
        )
    made_by = (_choice(ledger, iteration),)
    return PromptedPolicy(Policy(str(path) if trained else base, iteration), PromptVariant(), made_by=made_by)


def _choice(ledger: Ledger, iteration: int) -> Stage:
    return ledger.stage(f"iteration-{iteration:02d}/policy")


def load_measurements(
    paths: Sequence[Path],
    target: Target,
    *,
    overrides: Sequence[str] = (),
    data: Mapping[str | None, str] | None = None,
    limit: int | None = None,
) -> list[Measurement]:
    """Return what the evals measure; mistakes show before anything is drawn.

    Args:
        paths: the evals' files.
        target: what is measured.
        overrides: `KEY=VALUE` of each eval.
        data: an eval's name -> what `--data` says of it; None -> what it says of all others.
        limit: only so many problems of each.

    Raises:
        RecipeError: a mistake in an eval, or two evals have one name.
        ProblemError: its problems cannot be used.
    """
    said = dict(data or {})
    for name, place in said.items():
        if name is not None and name not in [path.stem for path in paths]:
            raise RecipeError(f"--data {name}={place}: no eval of that name is measured")
    measurements: dict[str, Measurement] = {}
    for path in paths:
        spec = load_eval(path, overrides, said.get(path.stem, said.get(None)))
        name = path.stem if limit is None else f"{path.stem}-first-{limit}"
        if name in measurements or name == "test":
            raise RecipeError(f"{path}: the name {name!r} is taken; give the file another one")
        benchmark = load_benchmark(spec, limit)
        measurements[name] = measurement_of(
            spec, benchmark, name, model=target.model, seed=target.seed, limit=limit
        )
    return list(measurements.values())


def measure_all(
    place: Workplace, target: Target, measurements: Sequence[Measurement], *, is_overwriting: bool = False
) -> Iterator[Measured]:
    """Measure each policy on each eval; all draws of a policy share one sampling process a rank.

    Args:
        place: where.
        target: whose policies.
        measurements: on what.
        is_overwriting: measure again what was measured with other settings.

    Raises:
        RecipeChangedError: it was, and that is not asked for.
        RunFolderError: stored solutions were judged there, and their table would be replaced.
    """
    for one in measurements:
        judged = (target.folder / _stage(one)).with_name(VERDICTS)
        if judged.exists():
            raise RunFolderError(
                f"{judged}: stored solutions were judged here, and their table would be replaced; give "
                "--output FOLDER, or move these verdicts and the table away"
            )
    for policy in target.policies:
        while True:
            try:
                yield from _measure(place, policy, measurements)
                break
            except RecipeChangedError as error:
                # Figures alone are computed again unasked: nothing is lost with them.
                if not (is_overwriting or all(name.endswith("/metrics") for name in error.stages)):
                    raise
                place.ledger.reset(*error.stages)


def _measure(place: Workplace, policy: PromptedPolicy, measurements: Sequence[Measurement]) -> list[Measured]:
    plans = [plan_measurement(place, policy, one) for one in measurements]
    draws = [draw for planned in plans for draw in planned.draws.values()]
    judged = iter(draw_and_judge(place, draws))
    measured = []
    for planned in plans:
        own = {decoding: next(judged) for decoding in planned.draws}
        evaluation, settings = finish_measurement(place, planned, own)
        measured.append(
            Measured(policy.policy.iteration, planned.measurement, planned.stage.name, evaluation, settings)
        )
    return measured


def judge_solutions(
    solutions: Path,
    measurement: Measurement,
    folder: Path,
    progress: Progress,
    *,
    is_overwriting: bool = False,
) -> Measured:
    """Judge stored solutions to an eval's problems; draw none.

    Args:
        solutions: what `stored_samples` reads.
        measurement: on what, with its reward.
        folder: gets the verdicts, so that an interrupted command goes on, and the table of samples.
        progress: where people see how far it is.
        is_overwriting: begin anew, whatever is there.

    Raises:
        ScoringError: the solutions are to other problems, or something else was judged in the folder.
        SamplesError: they cannot be read.
        RunFolderError: a policy was measured there, and its table would be replaced; or somebody is at work.
        RewardError: too many of them cannot be judged.
    """
    if not measurement.is_scored:
        raise RecipeError(f"{measurement.name}: it has no reward: people grade its solutions")
    stage = _stage(measurement)
    samples = list(stored_samples(solutions, measurement))
    with ExitStack() as stack:
        stack.callback(FolderLock(folder).release)
        _refuse_drawn(folder, measurement)
        samples = _judge(
            samples, measurement, (folder / stage).parent, progress, is_overwriting=is_overwriting
        )
        settings = settings_of(measurement, solutions=solutions)
        write_table(samples_path(folder, stage), samples, settings)
    judged = _as_stored(measurement, samples)
    return Measured(0, judged, stage, evaluation_of(judged, samples), settings)


def _stage(measurement: Measurement) -> str:
    return f"iteration-00/evals/{measurement.name}/metrics"


def _refuse_drawn(folder: Path, measurement: Measurement) -> None:
    """Refuse a folder in which a policy's solutions to the same problems were, or are to be, drawn."""
    own = Path(_stage(measurement)).parent
    is_drawn = any(Path(record["stage"]).is_relative_to(own) for record in Ledger(folder).records)
    if is_drawn or any((folder / own).glob("*/stage.json")):
        raise RunFolderError(
            f"{folder}: a policy was measured on {measurement.name} there, and its table would be replaced; "
            "give the solutions another NAME, or --output FOLDER"
        )


def _judge(
    samples: Sequence[Sample],
    measurement: Measurement,
    work: Path,
    progress: Progress,
    *,
    is_overwriting: bool,
) -> list[Sample]:
    """Return samples with their verdicts and votes; what is judged is kept in `work`."""
    files = ScoreFiles(
        work / "problems.jsonl", work / "solutions.jsonl", work / VERDICTS, reference="reference"
    )
    _write_lines(files.problems, map(_problem_row, measurement.problems))
    _write_lines(files.solutions, (_solution_row(number, one) for number, one in enumerate(samples)))
    section = measurement.asked.reward
    judge_stored(files, section, progress, is_overwriting=is_overwriting)
    verdicts = read_lines(files.output)
    judged = [_judged(measurement, one, row) for one, row in zip(samples, verdicts, strict=True)]
    unscorable = [one.reason for one in judged if one.verdict is Verdict.UNSCORABLE]
    check_unscorable(unscorable, len(judged), section, measurement.name)
    return list(with_votes(judged, same_answer_of(section)))


def _as_stored(measurement: Measurement, samples: Sequence[Sample]) -> Measurement:
    """Return a measurement whose kinds of solutions, and k that nobody has said, are those of the samples."""
    of_problem = Counter(one.problem_id for one in samples if one.decoding == "sampled")
    number = statistics.median_low(of_problem.values()) if of_problem else 0
    return dataclasses.replace(
        measurement,
        params={one.decoding: SamplingParams(max(number, 1), 1, 1.0) for one in samples},
        pass_at=measurement.metrics.ks_of_pass(number),
        majority_at=measurement.metrics.ks_of_majority(number),
    )


def stored_samples(path: Path, measurement: Measurement) -> Iterator[Sample]:
    """Yield stored solutions to a measurement's problems, not judged.

    Args:
        path: a table of samples (`.parquet`), a log of another harness, or JSON lines with `problem_id` and
            `completion`, perhaps with `decoding` (`greedy` or `sampled`, by default), `finish_reason` and
            `num_tokens`.
        measurement: its problems.

    Raises:
        SamplesError: the file cannot be read, holds no solution, or one to another problem.
    """
    known = {problem.id for problem in measurement.problems}
    indices: Counter[tuple[str, str]] = Counter()
    num_others = 0
    first_other = ""
    for sample in read_stored(path, None):
        if sample.problem_id not in known:
            num_others += 1
            first_other = first_other or sample.problem_id
            continue
        key = (sample.problem_id, sample.decoding)
        yield dataclasses.replace(sample, index=indices[key])
        indices[key] += 1
    if num_others:
        some = ", ".join(map(repr, sorted(known)[:3]))
        raise SamplesError(
            f"{path}: {num_others} solutions are to problems that {measurement.name} does not have, first "
            f"{first_other!r}; its ids are {some}, ..."
        )
    if not indices:
        raise SamplesError(f"{path}: there is no solution; one a line is wanted")


def _write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    write_text(path, "".join(f"{json.dumps(row)}\n" for row in rows))


def _problem_row(problem: Problem) -> dict[str, Any]:
    return {**problem.metadata, "id": problem.id, "reference": problem.reference}


def _solution_row(number: int, sample: Sample) -> dict[str, Any]:
    return {"problem_id": sample.problem_id, "completion": sample.text, "index": number}


def _judged(measurement: Measurement, sample: Sample, row: Mapping[str, Any]) -> Sample:
    problem = measurement.problem(sample.problem_id)
    verdict = Verdict(row["verdict"])
    return dataclasses.replace(
        sample,
        prompt=problem.prompt,
        reference=problem.reference,
        verdict=verdict,
        reward=float(verdict is Verdict.CORRECT),
        answer=row["answer"],
        vote=None,  # that of the file was among the answers of another reward
        reason=row["reason"],
        is_format_valid=measurement.is_format_valid(sample.text),
        group=measurement.groups.get(problem.id),
        cluster=measurement.clusters.get(problem.id),
    )
