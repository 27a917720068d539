"""A comparison of two policies as a table and words: what `rest_em compare` prints."""

from __future__ import annotations

from rich.console import Console

from rest_em.evaluation import Comparison
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
        say(one.verdict)
    if len(comparison.differences) > 1:
        say("each interval stands for itself: of many, some leave out the truth")
    if shows_problems:
        first = comparison.differences[0].figure
        say(f"won by B at {first}: {', '.join(comparison.won) or 'none'}")
        say(f"lost by B at {first}: {', '.join(comparison.lost) or 'none'}")
