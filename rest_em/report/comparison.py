"""A comparison of two policies as a table and words: what `rest_em compare` prints."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Console

from rest_em.evaluation import Comparison, Estimate
from rest_em.report.cells import printable, table_of, with_interval


def print_comparison(
    name: str, comparison: Comparison, console: Console, *, shows_problems: bool = False
) -> None:
    """Print a comparison on one eval.

    Args:
        name: the eval's.
        comparison: the figures.
        console: where.
        shows_problems: name the problems that are won and lost.
    """

    def say(text: str, style: str = "") -> None:
        console.print(printable(text), style=style, markup=False, highlight=False, soft_wrap=True)

    say(f"{name}: {comparison.a} (A) and {comparison.b} (B), {comparison.num_problems:,} problems", "bold")
    if comparison.num_only_a or comparison.num_only_b:
        only = f"{comparison.num_only_a:,} of A's, {comparison.num_only_b:,} of B's"
        say(f"left out, for only one has them: {only}")
    percent = f"{100 * comparison.confidence:g} %"
    over = (
        f"the mean of {comparison.num_groups} groups" if comparison.num_groups else "the mean over problems"
    )
    unit = f"cluster, of {comparison.num_clusters:,}" if comparison.num_clusters else "problem"
    table = table_of(f"%, {over}, with {percent} intervals; paired by {unit}")
    for heading in ("", "A", "B", "B - A", "won by B", "lost", "tied", "sign test p"):
        table.add_column(heading, justify="right")
    for one in comparison.differences:
        table.add_row(
            one.figure,
            with_interval(one.a.estimate),
            with_interval(one.b.estimate),
            with_interval(one.gain, signed=True),
            f"{one.sign.num_won:,}",
            f"{one.sign.num_lost:,}",
            f"{one.sign.num_tied:,}",
            f"{one.sign.p_value:.2g}",
        )
    console.print(table)
    for one in comparison.differences:
        for letter, figure in (("A", one.a), ("B", one.b)):
            if figure.why_undefined:
                say(f"{one.figure} of {letter}: {figure.why_undefined}")
    for line in band_lines(comparison):
        say(line)
    for one in comparison.differences:
        say(one.verdict)
    if len(comparison.differences) > 1:
        say("each interval stands for itself: of many, some leave out the truth")
    if shows_problems:
        first = comparison.differences[0].figure
        say(f"won by B at {first}: {', '.join(comparison.won) or 'none'}")
        say(f"lost by B at {first}: {', '.join(comparison.lost) or 'none'}")


def band_lines(comparison: Comparison, width: int = 80) -> Sequence[str]:
    """Return each policy's curve over the k with its band, a line a figure; none of one figure."""
    rows = [
        (f"{one.figure} {name}", figure.estimate)
        for one in comparison.differences
        for name, figure in (("A", one.a), ("B", one.b))
    ]
    defined = [found for _, found in rows if found is not None]
    if len(defined) <= 2:
        return []
    least = math.floor(20 * min(one.low for one in defined)) / 20
    most = math.ceil(20 * max(one.high for one in defined)) / 20
    margin = max(len(name) for name, _ in rows)
    ends = f"{100 * least:.0f} %".ljust(width - 5) + f"{100 * most:.0f} %".rjust(5)
    lines = [f"{name:>{margin}}  {band(found, least, most, width)}" for name, found in rows if found]
    return [f"{'':>{margin}}  {ends}", *(line.rstrip() for line in lines)]


def band(found: Estimate, least: float, most: float, width: int) -> str:
    """Return an interval and its mean between the two ends of a line.

    >>> band(Estimate(0.5, 0.25, 0.75, 0.1, 10, 0), 0.0, 1.0, 9)
    '  ├─●─┤  '
    """
    low, value, high = (
        round((width - 1) * (one - least) / (most - least)) for one in (found.low, found.value, found.high)
    )
    cells = [" "] * width
    cells[low : high + 1] = "├" + "─" * (high - low - 1) + "┤" if high > low else "│"
    cells[value] = "●"
    return "".join(cells)
