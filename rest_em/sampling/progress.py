"""How far a rank is, in a file that the supervisor reads while the stage goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from rest_em.storage import write_json

Observer = Callable[[int, int], None]
"""Told by an engine of new tokens and of finished solutions since it last told."""

INTERVAL_SECONDS = 1.0


class Progress:
    """The solutions that this rank finished in this stage, written at most once a second and at the end."""

    def __init__(self, path: Path) -> None:
        """Write that there is none yet."""
        self._path = path
        self._done = 0
        self._written_at = 0.0
        self.write()

    def observe(self, _num_tokens: int, num_solutions: int) -> None:
        """Count; an `Observer`."""
        self._done += num_solutions
        if time.monotonic() - self._written_at >= INTERVAL_SECONDS:
            self.write()

    def write(self) -> None:
        """Write `{"done"}`."""
        write_json(self._path, {"done": self._done}, is_durable=False)
        self._written_at = time.monotonic()
