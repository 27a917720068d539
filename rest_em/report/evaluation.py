"""Evaluations as tables and JSON: what `rest_em evaluate` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from rest_em.evaluation import Evaluation, Figure, Figures, Shares
from rest_em.report.cells import ABSENT, percent, printable, table_of, with_interval
from rest_em.report.settings import Settings


def print_evaluation(
    title: str,
    evaluation: Evaluation,
    console: Console,
    *,
    confidence: float,
    settings: Settings | None = None,
) -> None:
    """Print one policy's figures on one eval.

    Args:
        title: which policy on which eval.
        evaluation: the figures.
        console: where.
        confidence: of the intervals.
        settings: how the figures came to be; None where that is not known.
    """
    console.print(printable(title), style="bold", markup=False, highlight=False, soft_wrap=True)
    console.print(_figure_table(evaluation, confidence))
    if evaluation.groups:
        console.print(_group_table(evaluation))
    console.print(_share_table(evaluation))
    for why in dict.fromkeys(_whys(evaluation.main)):
        console.print(f"not defined: {why}", markup=False, highlight=False, soft_wrap=True)
    if settings is not None:
        line = printable(settings.line())
        console.print(line, style="dim", markup=False, highlight=False, soft_wrap=True)


def _figure_table(evaluation: Evaluation, confidence: float) -> Table:
    main = evaluation.main
    over = f"the mean of {len(evaluation.groups)} groups" if evaluation.macro else "the mean over problems"
    table = table_of(f"%, {over}, with {100 * confidence:g} % interval")
    for heading in ("", "value and interval", "standard error", "problems", "not defined"):
        table.add_column(heading, justify="right")
    rows: list[tuple[str, Figure]] = []
    for k, figure in main.pass_at.items():
        rows.append((f"pass@{k}{' (greedy)' if k == 1 and evaluation.greedy else ''}", figure))
    rows += [(f"maj@{k}", figure) for k, figure in main.majority_at.items()]
    rows += [(f"best@{k}", figure) for k, figure in main.best_at.items()]
    if main.coverage is not None:
        rows.append(("coverage", main.coverage))
    for name, figure in rows:
        scale = 1 if name.startswith("best") else 100
        found = figure.estimate
        table.add_row(
            name,
            with_interval(found, scale=scale),
            ABSENT if found is None else f"{scale * found.standard_error:.1f}",
            f"{figure.num_problems:,}",
            f"{figure.num_undefined:,}",
        )
    return table


def _group_table(evaluation: Evaluation) -> Table:
    table = table_of("by group")
    for heading in ("group", "problems"):
        table.add_column(heading, justify="left" if heading == "group" else "right")
    ks = list(evaluation.main.pass_at)
    for k in ks:
        table.add_column(f"pass@{k}", justify="right")
    for name, figures in evaluation.groups.items():
        cells = [with_interval(figures.pass_at[k].estimate) for k in ks]
        table.add_row(printable(name), f"{figures.num_problems:,}", *cells)
    return table


def _share_table(evaluation: Evaluation) -> Table:
    table = table_of("what became of the solutions, %; unlike ones a problem; tokens a solution")
    headings = (
        "", "solutions", "in the format", "no answer", "truncated", "unscorable", "unlike solutions",
        "unlike answers", "tokens",
    )  # fmt: skip
    for heading in headings:
        table.add_column(heading, justify="right")
    for name, shares in (("greedy", evaluation.greedy), ("sampled", evaluation.sampled)):
        if shares is not None:
            table.add_row(name, *_share_cells(shares))
    return table


def _share_cells(shares: Shares) -> Sequence[str]:
    percents = (shares.format_valid, shares.no_answer, shares.truncated, shares.unscorable)
    means = (shares.distinct_solutions, shares.distinct_answers, shares.mean_tokens)
    return (
        f"{shares.num_solutions:,}",
        *map(percent, percents),
        *(ABSENT if one is None else f"{one:.1f}" for one in means),
    )


def _whys(figures: Figures) -> Sequence[str]:
    every = (*figures.pass_at.values(), *figures.majority_at.values(), *figures.best_at.values())
    return [figure.why_undefined for figure in every if figure.why_undefined]


def evaluation_to_json(
    iteration: int, name: str, evaluation: Evaluation, samples: str, settings: Settings | None
) -> Mapping[str, Any]:
    """Return one policy's figures on one eval as a JSON value.

    Args:
        iteration: the policy's; 0 is a base model.
        name: the eval's.
        evaluation: the figures.
        samples: where the table of samples is.
        settings: as those of `print_evaluation`.
    """
    about = {"iteration": iteration, "eval": name, "samples": samples}
    return about | {"settings": settings and settings.to_json()} | evaluation.to_json()
