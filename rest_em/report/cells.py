"""Cells and tables as the command line prints them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from rest_em.evaluation import Estimate

TABLE_WIDTH = 132
ABSENT = "-"
"""What is not known, or not defined."""


def table_of(title: str) -> Table:
    """Return an empty table in our style."""
    return Table(
        title=title, title_justify="left", title_style="", box=None, padding=(0, 1), header_style="bold"
    )


def percent(share: float | None) -> str:
    """Return a share in per cent."""
    return ABSENT if share is None else f"{100 * share:.1f}"


def with_interval(estimate: Estimate | None, *, signed: bool = False, scale: float = 100) -> str:
    """Return an estimate in per cent, or by another scale, with its interval: `41.0 [36.2, 46.0]`."""
    if estimate is None:
        return ABSENT
    sign = "+" if signed else ""
    value, low, high = (f"{scale * x:{sign}.1f}" for x in (estimate.value, estimate.low, estimate.high))
    return f"{value} [{low}, {high}]"


def printable(text: str) -> str:
    """Return a text as one line that any terminal takes; ids and reasons may hold anything.

    >>> printable("naïve\\n\\x1b[2J")
    'naïve\\\\n\\\\x1b[2J'
    """
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)


def console() -> Console:
    """Return stdout; a file or a pipe is as wide as the tables need."""
    found = Console()
    return found if found.is_terminal else Console(width=TABLE_WIDTH)
