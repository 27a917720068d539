"""The run as a table: every figure comes from the ledger, nothing is measured here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from rest_em.errors import RunFolderError
from rest_em.evaluation import Estimate, Evaluation, Figure, by_difficulty, gain, unpaired_gain
from rest_em.ledger import Ledger, as_killed, best_iteration, read_status
from rest_em.planner.measured import beside, read_plan
from rest_em.report.cells import ABSENT, percent, table_of, with_interval
from rest_em.report.run_plan import usage_tables
from rest_em.storage import is_locked
from rest_em.usage import measured_stages

SHARES = ("no answer", "truncated", "unscorable")
WIDE = 128
"""Columns that the table of the test problems takes with a k of pass@k and one of maj@k."""


@dataclass(frozen=True, slots=True)
class IterationSummary:
    """What one iteration did and how its policy measures. Counts are 0 for iteration 0, which only measures.

    Example:
        IterationSummary(1, evaluation, gain, num_sampled=3200, num_correct=400, num_distinct=300,
                         num_kept=250, num_left_out=0, num_problems=400, num_solved=150, num_unscorable=0,
                         num_without_answer=90, num_truncated=12, num_tokens=70000,
                         validation=[0.2, 0.5], chosen=1, seconds={"sample": 60.0})
    """

    iteration: int
    evaluation: Evaluation | None
    """Of the iteration's policy on the test problems; None while it has not been measured."""
    gain: Estimate | None
    """Pass@1 against iteration 0, paired; None for iteration 0."""
    num_sampled: int
    num_correct: int
    num_distinct: int
    num_kept: int
    """Examples of D_i."""
    num_human: int
    """Of those, solutions that people wrote."""
    num_human_rejected: int
    """Solutions that people wrote, kept or not, that the reward does not find correct."""
    num_left_out: int
    """Of these, how many were too long to be trained on."""
    num_problems: int
    """Training problems."""
    num_solved: int
    """Training problems with a correct sample."""
    num_unscorable: int
    """Samples that could not be judged; neither correct nor wrong, nor without an answer."""
    num_without_answer: int
    num_truncated: int
    num_tokens: int
    """Of the E-step's solutions."""
    validation: Sequence[float]
    """Pass@1 on D_val of the untrained model and of each epoch's checkpoint."""
    chosen: int | None
    """Which of those is the policy."""
    seconds: Mapping[str, float]
    """By kind of stage: sample, judge (beyond the sampling), train, validate, measure."""
    evals: Mapping[str, Evaluation] = field(default_factory=dict)
    """The policy on the recipe's evals, and on training problems as `train`."""
    gains: Mapping[str, Estimate | None] = field(default_factory=dict)
    """Its greedy pass@1 on each of those over the base's, paired; without the base's own."""
    difficulty: Mapping[str, Figure] = field(default_factory=dict)
    """Greedy pass@1 on the test problems of each bucket of the base's success."""
    stop: Mapping[str, Any] | None = None
    """What was found of a fall on D_val; None where nobody looks."""
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """How the figures of a set of problems came to be; without sets of which the ledger does not say it."""

    @property
    def train_gap(self) -> Estimate | None:
        """Greedy pass@1 on training problems, less that on test problems."""
        train, test = (one and _first(one) for one in (self.evals.get("train"), self.evaluation))
        return unpaired_gain(train, test) if train and test else None

    def to_json(self) -> dict[str, Any]:
        """Return a JSON value; rates are in [0, 1], None is what has not been measured."""
        measured = self.evaluation
        num_judged = self.num_sampled - self.num_unscorable
        return {
            "iteration": self.iteration,
            "pass_at": _intervals(measured.main.pass_at) if measured else {},
            "majority_at": _intervals(measured.main.majority_at) if measured else {},
            "gain": _interval(self.gain),
            "num_test_problems": measured.num_problems if measured else None,
            "test": self._with_settings("test", measured) if measured else None,
            "num_sampled": self.num_sampled,
            "num_unscorable": self.num_unscorable,
            "num_correct": self.num_correct,
            "num_distinct": self.num_distinct,
            "num_kept": self.num_kept,
            "num_human": self.num_human,
            "num_human_rejected": self.num_human_rejected,
            "num_left_out": self.num_left_out,
            "num_problems": self.num_problems,
            "success_rate": _share(self.num_correct, num_judged),
            "coverage": _share(self.num_solved, self.num_problems),
            "no_answer": _share(self.num_without_answer, num_judged),
            "truncated": _share(self.num_truncated, self.num_sampled),
            "unscorable": _share(self.num_unscorable, self.num_sampled),
            "num_tokens": self.num_tokens,
            "evals": {name: self._with_settings(name, one) for name, one in self.evals.items()},
            "gains": {name: _interval(one) for name, one in self.gains.items()},
            "difficulty": {name: one.to_json() for name, one in self.difficulty.items()},
            "train_gap": _interval(self.train_gap),
            "stop": None if self.stop is None else dict(self.stop),
            "validation": list(self.validation),
            "chosen_epoch": self.chosen,
            "seconds": dict(self.seconds),
        }

    def _with_settings(self, name: str, evaluation: Evaluation) -> dict[str, Any]:
        return {"settings": self.settings.get(name)} | evaluation.to_json()


@dataclass(frozen=True, slots=True)
class RunSummary:
    """A run so far."""

    name: str
    status: Mapping[str, str]
    iterations: Sequence[IterationSummary]
    base_prompt: Mapping[str, Any] | None
    """Which prompt serves the base, and each candidate's pass@1 on D_val; None while it is not chosen."""
    best: int = 0
    """The iteration whose policy is best on D_val; 0 is the base."""
    plan: Mapping[str, Any] | None = None
    """`plan.json`, with all that the ledger has measured; None where there is none."""

    def to_json(self) -> dict[str, Any]:
        """Return a JSON value."""
        return {
            "name": self.name,
            "status": dict(self.status),
            "base_prompt": self.base_prompt,
            "best_iteration": self.best,
            "plan": self.plan,
            "iterations": [one.to_json() for one in self.iterations],
        }


def _interval(estimate: Estimate | None) -> dict[str, float] | None:
    if estimate is None:
        return None
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}


def _intervals(figures: Mapping[int, Figure]) -> dict[str, dict[str, float] | None]:
    return {str(k): _interval(one.estimate) for k, one in figures.items()}


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def summarize_run(folder: Path) -> RunSummary:
    """Read what a run has done.

    Raises:
        RunFolderError: `folder` is no run folder.
    """
    _refuse_judged(folder)
    status = _status(folder)
    records = {record["stage"]: record for record in Ledger(folder).records}
    numbers = sorted({int(found[1]) for name in records if (found := re.match(r"iteration-(\d+)/", name))})
    base = _evaluation(records, 0)
    return RunSummary(
        name=folder.name,
        status=status,
        iterations=[_summarize(records, number, base) for number in numbers],
        base_prompt=records["iteration-00/prompt"]["result"] if "iteration-00/prompt" in records else None,
        best=best_iteration(records.values()),
        plan=_plan(folder, records),
    )


def _plan(folder: Path, records: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return `plan.json`; of a run that is under way, or was killed, the ledger has measured more than it."""
    plan = read_plan(folder)
    return plan and plan | {"measured": beside(plan, measured_stages(records.values()))}


def _refuse_judged(folder: Path) -> None:
    """Refuse a folder in which stored solutions were judged: samples without a run or a policy."""
    tables = sorted(folder.glob("iteration-00/evals/*/samples.parquet"))
    if tables and not (folder / "status.json").exists():
        raise RunFolderError(
            f"{folder}: no run here (no status.json), but samples, {tables[0]}; `rest_em compare {folder} "
            "OTHER` compares them with others"
        )


def _status(folder: Path) -> dict[str, str]:
    """Return the state of a run; one that says it is running and holds no lock has been killed."""
    status = read_status(folder)
    if status["state"] != "running" or is_locked(folder):
        return status
    status = read_status(folder)  # it may have ended between the two looks
    if status["state"] != "running":
        return status
    return status | as_killed(status)


def _result(records: Mapping[str, Any], stage: str) -> Mapping[str, Any]:
    result: Mapping[str, Any] = records.get(stage, {}).get("result", {})
    return result


def _evaluation(records: Mapping[str, Any], number: int, name: str = "test") -> Evaluation | None:
    result = _result(records, f"iteration-{number:02d}/evals/{name}/metrics")
    return Evaluation.from_json(result) if result else None


def _evals(records: Mapping[str, Any], number: int) -> dict[str, Evaluation]:
    """Return what a policy was measured on beside the test problems."""
    pattern = rf"iteration-{number:02d}/evals/([^/]+)/metrics"
    names = [found[1] for name in records if (found := re.fullmatch(pattern, name)) and found[1] != "test"]
    measured = {name: _evaluation(records, number, name) for name in names}
    return {name: one for name, one in measured.items() if one is not None}


def _gains(
    records: Mapping[str, Any], number: int, evals: Mapping[str, Evaluation], base: Mapping[str, Evaluation]
) -> dict[str, Estimate | None]:
    same = [
        name
        for name in evals
        if name in base and evals[name].is_correct.keys() == base[name].is_correct.keys()
    ]
    return {
        name: gain(evals[name], base[name], confidence=_confidence(records, number, name)) for name in same
    }


def _confidence(records: Mapping[str, Any], number: int, name: str) -> float:
    """Return that of the intervals of a measurement."""
    confidence: float = records[f"iteration-{number:02d}/evals/{name}/metrics"]["inputs"]["confidence"]
    return confidence


def _first(evaluation: Evaluation) -> Estimate | None:
    """Return pass@1: the greedy one where there is one."""
    figure = evaluation.main.pass_at.get(1)
    return None if figure is None else figure.estimate


def _summarize(records: Mapping[str, Any], number: int, base: Evaluation | None) -> IterationSummary:
    name = f"iteration-{number:02d}"
    samples, verdicts = _result(records, f"{name}/samples"), _result(records, f"{name}/verdicts")
    dataset, policy = _result(records, f"{name}/dataset"), _result(records, f"{name}/policy")
    evaluation = _evaluation(records, number)
    return IterationSummary(
        iteration=number,
        evaluation=evaluation,
        gain=(
            gain(evaluation, base, confidence=_confidence(records, number, "test"))
            if number and evaluation and base
            else None
        ),
        num_sampled=verdicts.get("num_solutions", 0),
        num_correct=verdicts.get("num_correct", 0),
        num_distinct=dataset.get("num_distinct", 0),
        num_kept=dataset.get("num_kept", 0),
        num_human=dataset.get("num_human", 0),
        num_human_rejected=dataset.get("num_human_rejected", 0),
        num_left_out=_result(records, f"{name}/training").get("num_left_out", 0),
        num_problems=verdicts.get("num_problems", 0),
        num_solved=verdicts.get("num_solved", 0),
        num_unscorable=verdicts.get("num_unscorable", 0),
        num_without_answer=verdicts.get("num_without_answer", 0),
        num_truncated=samples.get("num_truncated", 0),
        num_tokens=samples.get("num_tokens", 0),
        validation=policy.get("validation", []),
        chosen=policy.get("chosen"),
        seconds=_seconds(records, name),
        evals=_evals(records, number),
        gains=_gains(records, number, _evals(records, number), _evals(records, 0)) if number else {},
        difficulty=_difficulty(evaluation, base),
        stop=_result(records, f"{name}/stop") or None,
        settings=_settings(records, name),
    )


def _settings(records: Mapping[str, Any], name: str) -> dict[str, Mapping[str, Any]]:
    found = {
        stage.split("/")[2]: _result(records, stage).get("settings")
        for stage in records
        if re.fullmatch(rf"{name}/evals/[^/]+/metrics", stage)
    }
    return {one: settings for one, settings in found.items() if settings is not None}


def _difficulty(evaluation: Evaluation | None, base: Evaluation | None) -> dict[str, Figure]:
    if evaluation is None or base is None or all(rate is None for rate in base.success_rate.values()):
        return {}
    return by_difficulty(evaluation, base)


def _seconds(records: Mapping[str, Any], name: str) -> dict[str, float]:
    """Return how long an iteration's stages took, by kind."""
    kinds = {
        "samples": "sample",
        "verdicts": "judge",
        "training": "train",
        "validation": "validate",
        "evals": "measure",
    }
    seconds: dict[str, float] = {}
    for stage, record in records.items():
        iteration, kind = stage.split("/")[:2]
        if iteration == name and kind in kinds:
            seconds[kinds[kind]] = seconds.get(kinds[kind], 0.0) + record["seconds"]
    return seconds


def print_summary(summary: RunSummary, console: Console) -> None:
    """Print a run's tables."""
    state = summary.status["state"]
    console.print(f"{summary.name}: {state}", style="bold", markup=False, highlight=False)
    if state in ("failed", "interrupted"):
        console.print(summary.status["message"], markup=False, highlight=False)
    if summary.base_prompt:
        scores = ", ".join(f"{name} {percent(s)}" for name, s in summary.base_prompt["validation"].items())
        console.print(
            f"the base model's prompt: {summary.base_prompt['chosen']} (pass@1 on validation: {scores})",
            markup=False,
            highlight=False,
        )
    if not summary.iterations:
        console.print("nothing has been measured yet")
        return
    is_wide = console.width >= WIDE
    tables = [
        _test_table(summary, is_wide=is_wide),
        *(() if is_wide else (_shares_table(summary),)),
        *_eval_tables(summary),
        *_difficulty_tables(summary),
        _training_table(summary),
        *_time_tables(summary),
        *usage_tables(summary.plan),
    ]
    for table in tables:
        if table.row_count:
            console.print(table)
    for text in _best_lines(summary):
        console.print(text, markup=False, highlight=False, soft_wrap=True)


def _test_table(summary: RunSummary, *, is_wide: bool) -> Table:
    """Return the figures on the test problems; with two lines a figure, and without shares, if not wide."""
    measured = [one.evaluation for one in summary.iterations if one.evaluation]
    num = measured[0].num_problems if measured else 0
    table = table_of(f"{num} test problems, % with interval; pass@1 is greedy")
    pass_at = sorted({k for one in measured for k in one.main.pass_at} - {1})
    majority_at = sorted({k for one in measured for k in one.main.majority_at})
    for heading in ("iteration", "pass@1", "gain over base"):
        table.add_column(heading, justify="right")
    for heading in [f"pass@{k}" for k in pass_at] + [f"maj@{k}" for k in majority_at]:
        table.add_column(heading, justify="right")
    for heading in SHARES if is_wide else ():
        table.add_column(heading, justify="right", no_wrap=True)
    for one in summary.iterations:
        result = one.evaluation
        if result is None:
            continue
        figures = [
            _figure(result.main.pass_at.get(1)),
            with_interval(one.gain, signed=True),
            *(_figure(result.main.pass_at.get(k)) for k in pass_at),
            *(_figure(result.main.majority_at.get(k)) for k in majority_at),
        ]
        if is_wide:
            table.add_row(_name(one), *figures, *_shares(result))
        else:
            table.add_row(_name(one), *(figure.replace(" ", "\n", 1) for figure in figures))
    return table


def _eval_tables(summary: RunSummary) -> list[Table]:
    """Return greedy pass@1 on training problems and on the evals, as far as there are any."""
    names = list(dict.fromkeys(name for one in summary.iterations for name in one.evals))
    if not names:
        return []
    table = table_of("pass@1 elsewhere, %; gap: training less test")
    table.add_column("iteration", justify="right")
    for name in names:
        for heading in (name, *(("gap",) if name == "train" else ("gain",))):
            table.add_column(heading, justify="right")
    for one in summary.iterations:
        cells: list[str] = []
        for name in names:
            measured = one.evals.get(name)
            cells.append(ABSENT if measured is None else with_interval(_first(measured)))
            if name == "train":
                cells.append(with_interval(one.train_gap, signed=True))
            else:
                cells.append(with_interval(one.gains.get(name), signed=True))
        if one.evals:
            table.add_row(_name(one), *cells)
    return [table]


def _difficulty_tables(summary: RunSummary) -> list[Table]:
    """Return greedy pass@1 by the base's success, where the base has samples."""
    measured = [one for one in summary.iterations if one.difficulty]
    if not measured:
        return []
    table = table_of("test problems by the base's success, pass@1, %")
    table.add_column("iteration", justify="right")
    for name, figure in measured[0].difficulty.items():
        table.add_column(f"{name} ({figure.num_problems + figure.num_undefined})", justify="right")
    for one in measured:
        table.add_row(_name(one), *(with_interval(figure.estimate) for figure in one.difficulty.values()))
    return [table]


def _best_lines(summary: RunSummary) -> list[str]:
    """Return which policy is best on D_val, and why the iterations ended, where they did by themselves."""
    if not any(one.validation for one in summary.iterations):
        return []
    best = "the base model" if summary.best == 0 else f"iteration {summary.best}"
    lines = [f"best on validation: {best}"]
    for one in summary.iterations:
        if one.stop and one.stop["is_worse"]:
            fall = with_interval(Estimate(**one.stop["gain"]), signed=True)
            lines.append(
                f"stopped after iteration {one.iteration}: pass@1 on validation is {fall} points from "
                f"iteration {one.stop['than']}'s"
            )
    return lines


def _shares_table(summary: RunSummary) -> Table:
    table = table_of("of the greedy solutions, %")
    for heading in ("iteration", *SHARES):
        table.add_column(heading, justify="right")
    for one in summary.iterations:
        if one.evaluation is not None:
            table.add_row(_name(one), *_shares(one.evaluation))
    return table


def _shares(evaluation: Evaluation) -> list[str]:
    greedy = evaluation.greedy
    shares = (greedy.no_answer, greedy.truncated, greedy.unscorable) if greedy else (None,) * len(SHARES)
    return [percent(share) for share in shares]


def _training_table(summary: RunSummary) -> Table:
    table = table_of("training problems: the E-step and what it leaves to train on")
    has_unscorable = any(one.num_unscorable for one in summary.iterations)
    has_left_out = any(one.num_left_out for one in summary.iterations)
    has_human = any(one.num_human for one in summary.iterations)
    headings = (
        "iteration", "sampled", "correct", "success", "coverage", "distinct", "kept",
        *(("human",) if has_human else ()), *(("too long",) if has_left_out else ()), "no answer",
        "truncated", *(("unscorable",) if has_unscorable else ()), "tokens",
    )  # fmt: skip
    for heading in headings:
        table.add_column(heading, justify="right")
    for one in summary.iterations:
        if not one.num_sampled and not one.num_human:
            continue
        values = one.to_json()
        table.add_row(
            str(one.iteration),
            f"{one.num_sampled:,}",
            f"{one.num_correct:,}",
            percent(values["success_rate"]),
            percent(values["coverage"]),
            f"{one.num_distinct:,}",
            f"{one.num_kept:,}",
            *((f"{one.num_human:,}",) if has_human else ()),
            *((f"{one.num_left_out:,}",) if has_left_out else ()),
            percent(values["no_answer"]),
            percent(values["truncated"]),
            *((percent(values["unscorable"]),) if has_unscorable else ()),
            f"{one.num_tokens:,}",
        )
    return table


def _time_tables(summary: RunSummary) -> list[Table]:
    """Return how long the kinds of stages took, where anything but measuring was done."""
    if not any(one.seconds.keys() - {"measure"} for one in summary.iterations):
        return []
    table = table_of("seconds, and which epoch D_val chose (0 is the untrained model)")
    kinds = ("sample", "judge", "train", "validate", "measure")
    for heading in ("iteration", *kinds, "all", "epoch chosen", "pass@1 on D_val by epoch"):
        table.add_column(heading, justify="right")
    for one in summary.iterations:
        table.add_row(
            _name(one),
            *(f"{one.seconds[kind]:.0f}" if kind in one.seconds else ABSENT for kind in kinds),
            f"{sum(one.seconds.values()):.0f}",
            ABSENT if one.chosen is None else str(one.chosen),
            " ".join(percent(score) for score in one.validation) or ABSENT,
        )
    total = sum(sum(one.seconds.values()) for one in summary.iterations)
    table.add_row("all", *(ABSENT for _ in kinds), f"{total:.0f}", "", "")
    return [table]


def _name(one: IterationSummary) -> str:
    return "0 (base)" if one.iteration == 0 else str(one.iteration)


def _figure(figure: Figure | None) -> str:
    return with_interval(None if figure is None else figure.estimate)
