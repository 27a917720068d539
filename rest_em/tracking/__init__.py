"""Trackers, fed from `metrics.jsonl`: one tracker run for a whole run and all its resumes.

Each tracker has a thread of rank 0's process, so that a slow one holds nothing up, and a file that says how
much it has been fed. Start in `curves`, which says what is plotted; what is written is `points`'.
"""

from __future__ import annotations

import secrets
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rest_em.points import METRICS
from rest_em.storage import read_json, read_new_lines, write_json
from rest_em.tracking.curves import Curves, Point
from rest_em.tracking.trackers import TRACKERS, TrackedRun, Tracker, batched

__all__ = ["TRACKERS", "Curves", "Point", "TrackedRun", "Tracker", "Tracking"]

FOLDER = "tracking"
"""Below the run folder: NAME.json, how much each tracker has been fed, and what trackers keep in files."""
FEED_SECONDS = 2.0
"""Between two looks at `metrics.jsonl`."""
RETRY_SECONDS = 60.0
"""Between two tries at a tracker that has failed."""
CLOSING_SECONDS = 15.0
"""How long the end of a run waits for its trackers; a launcher gives a process that it stops 30 s."""
BATCH_LINES = 500
"""So many lines of `metrics.jsonl` are fed, and noted, at once."""


class Tracking:
    """Feeds trackers until the context is left; then they get what is left, and a moment to take it."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        """Start nothing yet.

        Args:
            folder: the run's.
            say: tells people.
        """
        self._folder, self._say = folder, say
        self._feeds: list[_Feed] = []

    def start(self, report_to: Sequence[str], *, project: str, recipe: Mapping[str, Any]) -> None:
        """Begin to feed.

        Args:
            report_to: keys of `TRACKERS`.
            project: as the trackers that have projects call it.
            recipe: as resolved, JSON values.
        """
        for name in report_to:
            self._feeds.append(_Feed(name, self._folder, project, recipe, self._say))

    def __enter__(self) -> Tracking:
        """Return itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Wait for the trackers, but not for ever."""
        deadline = time.monotonic() + CLOSING_SECONDS
        for feed in self._feeds:
            feed.is_over.set()
        for feed in self._feeds:
            feed.wait_until(deadline)


class _Feed:
    """One tracker and its thread, which dies with the process, whatever the tracker is waiting for."""

    def __init__(
        self, name: str, folder: Path, project: str, recipe: Mapping[str, Any], say: Callable[[str], None]
    ) -> None:
        self.is_over = threading.Event()
        self._tracker_name, self._say = name, say
        self._metrics, self._notes = folder / METRICS, folder / FOLDER / f"{name}.json"
        new = {"run": folder.name, "id": secrets.token_hex(4), "lines": 0}
        notes: dict[str, Any] = read_json(self._notes) if self._notes.exists() else new
        if notes["run"] != folder.name:  # the folder is a copy of another run's, whose tracker run is its own
            shutil.rmtree(folder / FOLDER / name, ignore_errors=True)
            notes = new
        self._num_fed: int = notes["lines"]
        self._run = TrackedRun(folder / FOLDER, project, folder.name, notes["id"], recipe)
        self._tracker: Tracker | None = None
        self._has_failed = False
        self._try_at = 0.0
        self._curves = Curves()
        self._num_lines = self._read_bytes = 0
        self._pending: list[tuple[int, list[Point]]] = []
        """Number of a line, counted from 1, and its points."""
        self._thread = threading.Thread(target=self._feed_until_over, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def wait_until(self, deadline: float) -> None:
        """Wait for the tracker to take what is left, and tell people if it may not have done so.

        Args:
            deadline: by `time.monotonic`.
        """
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._pending or self._thread.is_alive():
            self._say(
                f"tracking: {self._tracker_name} may not have taken all of {self._metrics} yet; "
                "the same command goes on with it"
            )

    def _feed_until_over(self) -> None:
        is_over = False
        while not is_over:
            is_over = self.is_over.wait(FEED_SECONDS)
            if is_over or time.monotonic() >= self._try_at:
                self._try(self._feed)
        if self._tracker is not None:
            self._try(self._tracker.close)

    def _try(self, step: Callable[[], None]) -> None:
        try:
            step()
        except Exception as error:  # whatever a tracker raises, it is no reason to stop a run
            self._tracker, self._try_at = None, time.monotonic() + RETRY_SECONDS
            if not self._has_failed:
                name, what = self._tracker_name, " ".join(f"{type(error).__name__}: {error}".split())
                self._say(
                    f"tracking: {name} failed: {what}. The run goes on, and all is kept "
                    f"in metrics.jsonl; {name} is tried again every {RETRY_SECONDS:.0f} s and at the end"
                )
            self._has_failed = True

    def _feed(self) -> None:
        lines, self._read_bytes = read_new_lines(self._metrics, self._read_bytes)
        for line in lines:
            self._num_lines += 1
            points = self._curves.points(line)  # of every line: the places of later ones follow from it
            if self._num_lines > self._num_fed:
                self._pending.append((self._num_lines, points))
        if self._pending and self._tracker is None:
            self._note()
            self._tracker = TRACKERS[self._tracker_name](self._run)
            self._say(f"tracking: {self._tracker.where}")
        for batch in batched(self._pending[:], BATCH_LINES):
            assert self._tracker is not None
            self._tracker.log([point for _, points in batch for point in points])
            self._num_fed = batch[-1][0]
            self._note()
            del self._pending[: len(batch)]

    def _note(self) -> None:
        write_json(self._notes, {"run": self._run.name, "id": self._run.id, "lines": self._num_fed})
