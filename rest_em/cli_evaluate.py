"""The verbs of evaluation: `evaluate`, `compare` and `export`. `cli` puts them beside the others."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from rest_em.errors import RecipeError, RunInterruptedError
from rest_em.stages import Ranks, Supervisor, follow, interruptible

if TYPE_CHECKING:
    from rest_em.evaluating import Measured, Target
    from rest_em.measuring import Measurement


Filter = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Of a log of lm-evaluation-harness: whose scores, where there are several."
    ),
]
Metric = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Of a log of lm-evaluation-harness: which metric is right or wrong."),
]
Scorer = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Of a log of inspect_ai: whose scores, where there are several."),
]

LOWEST_CONFIDENCE, HIGHEST_CONFIDENCE = 0.5, 0.9999
"""Between which an interval says something, and its quantiles are numbers."""


def evaluate(
    target: Annotated[
        str,
        typer.Argument(metavar="MODEL_OR_RUN", help="A model's folder or hub id, or a run's folder or name."),
    ],
    evals: Annotated[
        list[str],
        typer.Argument(metavar="EVAL...", help="YAML files, or names that `rest_em evals list` prints."),
    ],
    *,
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH",
            help="The benchmark's data: a folder, a file or a hub id; NAME=PATH is for one of several evals.",
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Only N problems; of each group, or folder, as many as can be."
        ),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            metavar="WHICH",
            help="Of a run: best (on validation; the default), last, base, all, or an iteration's number.",
        ),
    ] = None,
    solutions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Judge stored solutions and draw none: JSON lines (problem_id, completion), a table of "
            "samples, or a log of lm-evaluation-harness or inspect_ai. MODEL_OR_RUN is then a name for them.",
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Override a key of the evals, or of model: --set model.dtype=float32.",
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="Of a model's draws; 0 by default.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where a model's results go; evaluations/NAME by default."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Measure again what was measured with other settings.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, rates in [0, 1].")] = False,
) -> None:
    """Measure a model, or policies of a run, on benchmarks; or go on where that was interrupted.

    A run's policies are measured in the run's folder, where `rest_em show` finds them. On several processes:
    `accelerate launch --config_file launch/ddp_cpu.yaml -m rest_em evaluate ...`.
    """
    ranks = Ranks.from_environment(os.environ)
    with interruptible():
        if not ranks.is_leader:
            if solutions is None:
                with suppress(RunInterruptedError):  # rank 0 tells it
                    follow(ranks)
            return
        from rest_em.evaluating import load_measurements
        from rest_em.recipe import find_eval

        paths = [find_eval(name) for name in evals]
        said = dict(_named(text, [path.stem for path in paths]) for text in data or [])
        keys = overrides or []
        of_model = [key for key in keys if key.startswith("model.")]
        found = _target(target, of_model, output, policy, seed, is_stored=solutions is not None)
        measurements = load_measurements(
            paths, found, overrides=[key for key in keys if key not in of_model], data=said, limit=limit
        )
        measured = (
            _measure(ranks, found, measurements, is_overwriting=overwrite)
            if solutions is None
            else _judge(solutions, found, measurements, is_overwriting=overwrite)
        )
    _print(found, measured, as_json=as_json)


def compare(
    a: Annotated[
        str,
        typer.Argument(
            metavar="A",
            help="A table of samples, verdicts of rest_em score, a log of another harness; or a folder of "
            "evaluations, or a run with a policy (best, last, base, N): runs/NAME:0.",
        ),
    ],
    b: Annotated[str, typer.Argument(metavar="B", help="As A; what is hoped to be better.")],
    *,
    evals: Annotated[
        list[str] | None,
        typer.Option(
            "--eval", metavar="NAME", help="Of folders: only this eval; by default all that both have."
        ),
    ] = None,
    k: Annotated[
        list[str] | None, typer.Option("--k", metavar="K...", help="The k of pass@k and maj@k: --k 1 8 64.")
    ] = None,
    confidence: Annotated[float, typer.Option(metavar="C", help="Of the intervals.")] = 0.95,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Of the bootstrap.")] = 0,
    show_problems: Annotated[
        bool, typer.Option("--problems", help="Name the problems that B wins and loses.")
    ] = False,
    filter: Filter = None,
    metric: Metric = None,
    scorer: Scorer = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, rates in [0, 1].")] = False,
) -> None:
    """Compare two policies on the same problems: paired, with intervals, and a verdict in words."""
    from rest_em.comparing import compare_stored
    from rest_em.interchange import LogScores
    from rest_em.report.cells import console
    from rest_em.report.comparison import print_comparison

    if not LOWEST_CONFIDENCE <= confidence <= HIGHEST_CONFIDENCE:
        raise typer.BadParameter(
            f"--confidence {confidence}: a number from {LOWEST_CONFIDENCE} to {HIGHEST_CONFIDENCE} is wanted"
        )
    ks = whole_numbers(k)
    with interruptible():
        scores = LogScores(filter, metric, scorer)
        found = compare_stored(
            a, b, names=evals or [], ks=ks, confidence=confidence, seed=seed, scores=scores
        )
    if as_json:
        values = {name: one.to_json() for name, one in found.items()}
        print(json.dumps(values, indent=2, allow_nan=False))
        return
    for name, one in found.items():
        print_comparison(name, one, console(), shows_problems=show_problems)


def export(
    samples: Annotated[
        str,
        typer.Argument(metavar="SAMPLES", help="As A of compare: a file, a folder of evaluations or a run."),
    ],
    output: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write.")],
    *,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="lm_eval or inspect_ai: a log of that harness; jsonl: a line a solution, for people.",
        ),
    ],
    name: Annotated[
        str | None, typer.Option("--eval", metavar="NAME", help="Which eval, where there are several.")
    ] = None,
    decoding: Annotated[
        str | None, typer.Option(metavar="KIND", help="Only greedy, or only sampled, solutions.")
    ] = None,
    filter: Filter = None,
    metric: Metric = None,
    scorer: Scorer = None,
) -> None:
    """Write samples and scores for another harness, or for people to grade."""
    from rest_em.comparing import export_samples
    from rest_em.interchange import LogScores

    scores = LogScores(filter, metric, scorer)
    with interruptible():
        number = export_samples(samples, output, form, name=name, decoding=decoding, scores=scores)
    print(f"{output}: {number:,} samples")


class WithNumbers(typer.core.TyperCommand):
    """A command whose option `--k` takes all the numbers that follow it: `--k 1 8 64`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Give each number an option of its own, as click reads them."""
        spelt: list[str] = []
        is_listing = False
        for argument in args:
            is_number = re.fullmatch(r"[0-9][0-9,]*", argument) is not None
            if is_listing and is_number and spelt[-1] != "--k":
                spelt.append("--k")
            is_listing = argument.partition("=")[0] == "--k" or (is_listing and is_number)
            spelt.append(argument)
        return super().parse_args(ctx, spelt)


def whole_numbers(texts: list[str] | None) -> list[int]:
    """Return the numbers of `--k 1 --k 8,64`."""
    parts = [part.strip() for text in texts or [] for part in text.split(",")]
    for part in parts:
        if not re.fullmatch(r"0*[1-9][0-9]{0,8}", part):
            raise typer.BadParameter(f"{part!r} is no whole number > 0; --k 1 8 64 is wanted")
    return [int(part) for part in parts]


def _named(text: str, names: Sequence[str]) -> tuple[str | None, str]:
    """Return which eval `--data` is for, None for all others, and what it says."""
    name, equals, path = text.partition("=")
    return (name, path) if equals and name in names else (None, text)


def _target(
    name: str,
    of_model: list[str],
    output: Path | None,
    policy: str | None,
    seed: int | None,
    *,
    is_stored: bool,
) -> Target:
    from rest_em.evaluating import target_of_model, target_of_run, target_of_solutions

    own = {"--seed": seed, "--set model": of_model or None}
    if is_stored:
        _refuse_given({"--policy": policy, **own}, "with --solutions nothing is drawn")
        return target_of_solutions(name, output)
    for folder in (Path(name), Path("runs") / name):
        if (folder / "status.json").is_file() and (folder / "recipe.yaml").is_file():
            _refuse_given({"--output": output, **own}, f"{folder} is a run, which has its own")
            return target_of_run(folder, policy or "best")
    _refuse_given({"--policy": policy}, f"{name} is no run; a model is one policy")
    return target_of_model(name, of_model, output, seed)


def _refuse_given(options: Mapping[str, object], why: str) -> None:
    """Refuse options that would mean nothing; None is one that is not given."""
    for option, value in options.items():
        if value is not None:
            raise RecipeError(f"{option}: {why}; leave it out")


def _measure(
    ranks: Ranks, target: Target, measurements: list[Measurement], *, is_overwriting: bool
) -> list[Measured]:
    from rest_em.evaluating import ADVICE, measure_all
    from rest_em.ledger import Ledger
    from rest_em.report.progress import Progress
    from rest_em.run import Judges, Workplace
    from rest_em.status import status_of
    from rest_em.storage import FolderLock, remove_leftovers

    folder, progress = target.folder, Progress()
    with ExitStack() as stack:
        stack.callback(FolderLock(folder).release)
        (folder / "stop").unlink(missing_ok=True)  # it was meant for a command that has ended
        remove_leftovers(folder)
        if not target.is_run:
            stack.enter_context(status_of(folder)).has_begun = True
        ledger = Ledger(folder, advice=ADVICE)
        ledger.finish_reset()
        judges = stack.enter_context(Judges(folder / "logs" / "graders.log", progress.say))
        supervisor = stack.enter_context(Supervisor(ranks, folder))
        place = Workplace(folder, ledger, supervisor, judges, progress)
        return list(measure_all(place, target, measurements, is_overwriting=is_overwriting))


def _judge(
    solutions: Path, target: Target, measurements: list[Measurement], *, is_overwriting: bool
) -> list[Measured]:
    from rest_em.evaluating import judge_solutions
    from rest_em.report.progress import Progress

    if len(measurements) != 1:
        raise RecipeError(f"--solutions {solutions}: it is of one eval; {len(measurements)} are named")
    return [
        judge_solutions(solutions, measurements[0], target.folder, Progress(), is_overwriting=is_overwriting)
    ]


def _print(target: Target, measured: Sequence[Measured], *, as_json: bool) -> None:
    from rest_em.measuring import samples_path
    from rest_em.report.cells import console
    from rest_em.report.evaluation import evaluation_to_json, print_evaluation

    values = []
    for one in measured:
        measurement = one.measurement
        samples = str(samples_path(target.folder, one.stage))
        title = f"{measurement.title} ({measurement.name}), {_name_of(target, one.iteration)}"
        if as_json:
            values.append(
                evaluation_to_json(
                    one.iteration, measurement.name, one.evaluation, samples, settings=one.settings
                )
            )
        elif measurement.is_scored:
            print_evaluation(
                title,
                one.evaluation,
                console(),
                confidence=measurement.confidence,
                settings=one.settings,
            )
            print(f"samples and scores: {samples}\n")
        else:
            print(f"{title}: drawn and not scored; for people to grade: {samples}")
    if as_json:
        print(json.dumps(values, indent=2, allow_nan=False))


def _name_of(target: Target, iteration: int) -> str:
    if not target.is_run:
        return target.folder.name
    return f"{target.folder.name}, {'base' if iteration == 0 else f'iteration {iteration}'}"
