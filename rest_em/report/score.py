"""Verdicts on stored solutions, counted problem by problem, as a summary: a table or JSON.

Solutions themselves are not kept: what is in memory grows with the problems and their unlike answers.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rest_em.evaluation import (
    CODES,
    Columns,
    ColumnsBuilder,
    Estimate,
    Figure,
    Metrics,
    SameAnswer,
    summarize,
)
from rest_em.report.cells import ABSENT, printable, table_of
from rest_em.types import Verdict

MAX_REASONS = 1000
"""Unlike reasons of one verdict that are counted apart; a reward may give each solution its own."""
SHOWN_REASONS = 5
OTHER_REASONS = "other reasons"
MAX_ANSWER = 200
"""Characters; of a longer answer the beginning and a hash are kept."""


class Tally:
    """The verdicts so far."""

    def __init__(self, problem_ids: Iterable[str]) -> None:
        """Count nothing yet; a problem without a solution counts as well."""
        self._columns = ColumnsBuilder()
        for problem_id in problem_ids:
            self._columns.add_problem(problem_id)
        self.num_bad_lines = 0
        self.reasons: dict[Verdict, Counter[str]] = {verdict: Counter() for verdict in Verdict}

    def add(self, problem_id: str, verdict: Verdict, answer: str | None, reason: str) -> None:
        """Count one verdict."""
        self._columns.add(problem_id, verdict, answer=None if answer is None else _short(answer))
        if verdict is not Verdict.CORRECT:
            kept, kind = self.reasons[verdict], _kind(reason, problem_id)
            kept[kind if kind in kept or len(kept) < MAX_REASONS else OTHER_REASONS] += 1

    def columns(self) -> Columns:
        """Return what has been counted; every solution is a sample."""
        return self._columns.build()

    @property
    def num_unscorable(self) -> int:
        """How many solutions could not be judged."""
        return self.reasons[Verdict.UNSCORABLE].total()


def _short(answer: str) -> str:
    if len(answer) <= MAX_ANSWER:
        return answer
    digest = hashlib.sha256(answer.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{answer[:MAX_ANSWER]} {digest}"


def _kind(reason: str, problem_id: str) -> str:
    """Return a reason without what is one solution's own: its problem's id, its reward."""
    return re.sub(r"^reward \S+ is below", "reward is below", reason.removeprefix(f"{problem_id}: "))


@dataclass(frozen=True, slots=True)
class ScoreSummary:
    """What a reward says of a file of solutions."""

    reward: str
    counts: Mapping[Verdict, int]
    num_problems: int
    num_problems_without_solutions: int
    num_bad_lines: int
    reasons: Mapping[Verdict, Mapping[str, int]]
    """The most frequent ones of the incorrect and the unscorable solutions."""
    pass_at: Mapping[int, Figure]
    majority_at: Mapping[int, Figure]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON value; k becomes a string."""
        return {
            "reward": self.reward,
            "counts": {verdict.value: count for verdict, count in self.counts.items()},
            "num_problems": self.num_problems,
            "num_solutions": sum(self.counts.values()),
            "num_problems_without_solutions": self.num_problems_without_solutions,
            "num_bad_lines": self.num_bad_lines,
            "reasons": {verdict.value: dict(reasons) for verdict, reasons in self.reasons.items()},
            "pass_at": {str(k): one.to_json() for k, one in self.pass_at.items()},
            "majority_at": {str(k): one.to_json() for k, one in self.majority_at.items()},
        }


def summarize_score(
    tally: Tally,
    reward: str,
    ks: Sequence[int] = (),
    *,
    same_answer: SameAnswer | None = None,
    has_votes: bool = True,
) -> ScoreSummary:
    """Return what the verdicts say.

    Every solution counts as a sample: pass@1 is the mean share of correct ones.

    Args:
        reward: its name.
        ks: of pass@k and maj@k; none is 1 and, where all problems with solutions have the same number of
            them, that number.
        same_answer: as that of `vote_classes`.
        has_votes: whether solutions give answers that could win a vote; programs do not.
    """
    columns = tally.columns()
    sizes = np.bincount(columns.problem, minlength=columns.num_problems)
    unlike_sizes = set(sizes[sizes > 0].tolist())
    ks = sorted({*ks} or {1, *(unlike_sizes if len(unlike_sizes) == 1 else ())})
    metrics = Metrics(ks, ks if has_votes else (), same_answer=same_answer)
    figures = summarize(None, columns, metrics).overall
    counts = Counter(columns.verdict.tolist())
    return ScoreSummary(
        reward=reward,
        counts={verdict: counts[code] for verdict, code in CODES.items()},
        num_problems=columns.num_problems,
        num_problems_without_solutions=int((sizes == 0).sum()),
        num_bad_lines=tally.num_bad_lines,
        reasons={
            verdict: _most_frequent(tally.reasons[verdict])
            for verdict in (Verdict.INCORRECT, Verdict.UNSCORABLE)
        },
        pass_at=figures.pass_at,
        majority_at=figures.majority_at,
    )


def _most_frequent(reasons: Counter[str]) -> dict[str, int]:
    own = Counter({reason: count for reason, count in reasons.items() if reason != OTHER_REASONS})
    shown = dict(own.most_common(SHOWN_REASONS))
    num_others = reasons.total() - sum(shown.values())
    return shown | ({OTHER_REASONS: num_others} if num_others else {})


def print_score(summary: ScoreSummary, console: Console) -> None:
    """Print a summary's tables."""
    num_solutions = sum(summary.counts.values())
    lines = [f"{num_solutions:,} solutions to {summary.num_problems:,} problems, judged by {summary.reward}"]
    if summary.num_problems_without_solutions:
        lines.append(f"problems without a solution: {summary.num_problems_without_solutions:,}")
    if summary.num_bad_lines:
        lines.append(f"bad lines, not judged: {summary.num_bad_lines:,}")
    for line in lines:
        console.print(_plain(line), soft_wrap=True, highlight=False)
    console.print(_verdict_table(summary))
    console.print(_figure_table(summary))
    reasons = [figure.why_undefined for figure in summary.pass_at.values() if figure.why_undefined]
    for why in dict.fromkeys(reasons):
        console.print(_plain(f"not defined: {why}"), soft_wrap=True, highlight=False)


def _verdict_table(summary: ScoreSummary) -> Table:
    table = table_of("verdicts")
    for heading, justify in (("verdict", "left"), ("solutions", "right"), ("%", "right"), ("why", "left")):
        table.add_column(heading, justify="right" if justify == "right" else "left")
    num_solutions = sum(summary.counts.values())
    for verdict, count in summary.counts.items():
        share = f"{100 * count / num_solutions:.1f}" if num_solutions else ABSENT
        table.add_row(verdict.value, f"{count:,}", share, "")
        for reason, times in summary.reasons.get(verdict, {}).items():
            table.add_row("", f"{times:,}", "", _plain(reason))
    return table


def _figure_table(summary: ScoreSummary) -> Table:
    table = table_of("% of problems, with standard error and interval")
    for heading in ("", "value", "standard error", "95 % interval", "problems", "not defined"):
        table.add_column(heading, justify="right")
    for name, figures in (("pass", summary.pass_at), ("maj", summary.majority_at)):
        for k, figure in figures.items():
            one = figure.estimate
            shown = (
                [f"{100 * one.value:.1f}", f"{100 * one.standard_error:.1f}", _interval(one)]
                if one
                else [ABSENT] * 3
            )
            table.add_row(f"{name}@{k}", *shown, f"{figure.num_problems:,}", f"{figure.num_undefined:,}")
    return table


def _interval(one: Estimate) -> str:
    return f"[{100 * one.low:.1f}, {100 * one.high:.1f}]"


def _plain(text: str) -> Text:
    return Text(printable(text))
