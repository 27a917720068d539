"""Progress of the stages on stderr: a bar with rate and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar

PLAIN_SECONDS = 10.0
"""The shortest time between two plain lines of a stage."""


class Progress:
    """Shows one stage at a time."""

    def __init__(self, console: Console | None = None) -> None:
        """Show nothing yet.

        Args:
            console: where to; None is stderr.
        """
        self.console = console or Console(stderr=True, highlight=False)
        self._stage: _BarStage | _PlainStage | None = None

    @contextmanager
    def stage(self, title: str, total: int, unit: str) -> Iterator[None]:
        """Show a stage while the context is open.

        Args:
            title: what is done.
            total: how many units there are; 0 if there is nothing to count.
            unit: what is counted, in the plural.
        """
        make = _BarStage if self.console.is_terminal else _PlainStage
        self._stage = make(self.console, title, total, unit)
        try:
            yield
            self._stage.finish()
        finally:
            self._stage.close()
            self._stage = None

    def advance_to(self, done: int, note: str = "", *, total: int | None = None) -> None:
        """Show that `done` are finished, and a note beside the rate.

        Args:
            total: of so many, where that was not known when the stage began.
        """
        if self._stage is not None:
            self._stage.advance_to(done, note, total)

    def say(self, text: str) -> None:
        """Print a line of its own."""
        self.console.print(text, markup=False, emoji=False, soft_wrap=True)


class _Pace:
    """How fast a stage goes once it goes: starting processes and loading a model are not counted."""

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None

    def rate(self, done: int) -> float | None:
        """Return units a second since the first were done; None while that cannot be said."""
        now = time.monotonic()
        if self._first is None:
            self._first = (now, done) if done else None
            return None
        then, before = self._first
        return (done - before) / (now - then) if done > before and now > then else None


class _BarStage:
    def __init__(self, console: Console, title: str, total: int, unit: str) -> None:
        self._bar = Bar(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]} {task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=console,
        )
        self._pace = _Pace()
        self._bar.start()
        self._task = self._bar.add_task(title, total=total or None, unit=unit, rate="", note="")

    def advance_to(self, done: int, note: str, total: int | None) -> None:
        rate = self._pace.rate(done)
        shown = f"{rate:.1f}/s" if rate else ""
        self._bar.update(self._task, completed=done, total=total, rate=shown, note=note)

    def finish(self) -> None:
        task = self._bar.tasks[0]
        self.advance_to(int(task.total or task.completed), task.fields["note"], None)

    def close(self) -> None:
        self._bar.stop()


class _PlainStage:
    def __init__(self, console: Console, title: str, total: int, unit: str) -> None:
        self._console, self._title, self._total, self._unit = console, title, total, unit
        self._started = self._printed = time.monotonic()
        self._pace = _Pace()
        self._done = 0
        self._print(f"{title}: started" + (f", {total} {unit}" if total else ""))

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, emoji=False, soft_wrap=True)

    def advance_to(self, done: int, note: str, total: int | None) -> None:
        self._total = total or self._total
        now, rate = time.monotonic(), self._pace.rate(done)
        if done == self._done or now - self._printed < PLAIN_SECONDS:
            return
        self._done, self._printed = done, now
        of = f"/{self._total}" if self._total else ""
        shown = [f"{done}{of} {self._unit}"]
        if rate:
            shown.append(f"{rate:.1f}/s")
        if rate and self._total:
            shown.append(f"{(self._total - done) / rate:.0f} s left")
        self._print(f"{self._title}: " + ", ".join(shown + ([note] if note else [])))

    def finish(self) -> None:
        self._print(f"{self._title}: done in {time.monotonic() - self._started:.0f} s")

    def close(self) -> None:
        """Nothing is left on a plain stream."""
