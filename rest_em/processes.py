"""Processes that never outlive their parent, and are ended whole.

Linux only in the guarantee: elsewhere `die_with_parent` does nothing. What runs in the processes, and on
how many ranks, is left to `rest_em.stages` and `rest_em.rewards`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys

PR_SET_PDEATHSIG = 1
"""Source: linux/prctl.h."""
LAUNCHER_VARIABLES = ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID")
"""Each launcher, accelerate's for one process and torch's for several, sets one of these."""
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
"""Source: malloc.h of glibc; mallopt(3)."""


def die_with_parent(signal_number: int, parent: int | None = None) -> None:
    """Ask the kernel to send this process a signal when its parent dies.

    Args:
        signal_number: e.g. `signal.SIGKILL`.
        parent: the process id of the expected parent; if it has died already, the signal is sent at once.
    """
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid() if parent is None else parent
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal_number, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        os.kill(os.getpid(), signal_number)


def die_with_launcher() -> None:
    """Be asked to leave (SIGTERM) when the launcher dies; without one, as under nohup, the parent may go."""
    if any(name in os.environ for name in LAUNCHER_VARIABLES):
        die_with_parent(signal.SIGTERM)


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that leads its own session, all that it started there, and wait for it."""
    with contextlib.suppress(ProcessLookupError):  # nothing of it is left
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def keep_freed_memory() -> None:
    """Have this process's allocator keep what is freed for the next allocation, until the process ends.

    glibc gives large blocks back at once, so on a CPU every pass of a model pays for fresh pages of the same
    size: a quarter of an M-step of 135M parameters (docs/training.md). Does nothing where libc is another.
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    try:
        mallopt = libc.mallopt
    except AttributeError:
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, -1)
    mallopt(M_TOP_PAD, 256 * 1024 * 1024)


def usable_cores() -> int:
    """Return how many processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
