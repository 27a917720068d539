"""Programs beside one another, or alone on the machine as far as rest_em goes.

Two files of this package are locks: whoever runs a program holds `room` together with others; who must be
alone waits at `door`, which nobody passes meanwhile, until the room is empty. The kernel lets go of what a
killed process held.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

_ROOM = Path(__file__)
_DOOR = Path(__file__).with_name("server.py")


@contextlib.contextmanager
def beside_others() -> Iterator[None]:
    """Run a program beside those of other processes."""
    with _open(_ROOM) as room:
        with _open(_DOOR) as door:
            _lock(door, fcntl.LOCK_EX)
            _lock(room, fcntl.LOCK_SH)
        yield


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Run a program while no other one runs."""
    with _open(_ROOM) as room, _open(_DOOR) as door:
        _lock(door, fcntl.LOCK_EX)
        _lock(room, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _open(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _lock(descriptor: int, kind: int) -> None:
    with contextlib.suppress(OSError):  # some file systems have no locks; then others may run beside it
        fcntl.flock(descriptor, kind)
