"""Programs beside one another, or alone on the machine as far as rest_em goes.

Two files of this package are locks: whoever runs a program holds `room` together with others; who must be
alone waits at `door`, which nobody passes meanwhile, until the room is empty. The kernel lets go of what a
killed process held.
"""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import IO

_ROOM = Path(__file__)
_DOOR = Path(__file__).with_name("server.py")


class Machine:
    """One caller's hold on the locks; it runs one program at a time."""

    def __init__(self) -> None:
        """Open the files, and hold nothing yet."""
        self._room, self._door = _ROOM.open("rb"), _DOOR.open("rb")

    def close(self) -> None:
        """Close the files."""
        self._room.close()
        self._door.close()

    @contextlib.contextmanager
    def beside_others(self) -> Iterator[None]:
        """Run a program beside those of other processes."""
        with _locked(self._door, fcntl.LOCK_EX):
            _lock(self._room, fcntl.LOCK_SH)
        try:
            yield
        finally:
            _lock(self._room, fcntl.LOCK_UN)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Run a program while no other one runs."""
        with _locked(self._door, fcntl.LOCK_EX), _locked(self._room, fcntl.LOCK_EX):
            yield


@contextlib.contextmanager
def _locked(file: IO[bytes], kind: int) -> Iterator[None]:
    _lock(file, kind)
    try:
        yield
    finally:
        _lock(file, fcntl.LOCK_UN)


def _lock(file: IO[bytes], kind: int) -> None:
    with contextlib.suppress(OSError):  # some file systems have no locks; then others may run beside it
        fcntl.flock(file, kind)
