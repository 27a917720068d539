"""The supervisor's end of one grader process: its pipes, what it was sent, and its clock.

Nothing here blocks. Who gets which solution, and what is made of a death, is left to `graders`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pickle
import select
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Container, Mapping
from typing import IO, TYPE_CHECKING, Any

from rest_em.processes import kill_group
from rest_em.rewards.signatures import Task
from rest_em.rewards.worker import TimedReply

if TYPE_CHECKING:
    from rest_em.recipe import RewardSection

PIPE_BYTES = 2**20
"""Room for requests ahead, so that a grader has work while the supervisor does something else."""
MAX_WINDOW = 256
"""The most solutions that one grader is sent ahead."""

EXIT_SECONDS = 1.0
"""How long a process that has closed its pipe, or was dismissed, may take to die by itself."""


class GraderProcess:
    """One grader: a process in a session of its own, and the solutions it has not answered for yet."""

    def __init__(self, section: RewardSection, identity: Mapping[str, Any], log: IO[bytes] | None) -> None:
        """Start the process; what its reward prints goes to `log`."""
        lifeline, self._lifeline = os.pipe()  # the other end closes with this process, however it dies
        self._process = subprocess.Popen(
            [sys.executable, "-m", "rest_em.rewards.worker", str(os.getpid()), str(lifeline)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if log is None else log,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
            start_new_session=True,
            pass_fds=(lifeline,),
            bufsize=0,
        )
        os.close(lifeline)
        self._pipes = [pipe for pipe in (self._process.stdin, self._process.stdout) if pipe is not None]
        self._stdin, self._stdout = (pipe.fileno() for pipe in self._pipes)
        for descriptor in (self._stdin, self._stdout):
            os.set_blocking(descriptor, False)
        if sys.platform == "linux":
            with contextlib.suppress(PermissionError):  # a host may allow less
                fcntl.fcntl(self._stdin, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self.tasks: deque[Task] = deque()
        """Sent and unanswered, in order: the first one is being judged, perhaps with others."""
        self.is_ready = False
        """Whether the reward has been imported."""
        self.batch_size = 1
        """How many solutions it is given at once."""
        self._batches: deque[int] = deque()
        """How many of `tasks` were sent together, in order."""
        self._outbox = bytearray(pickle.dumps((section, identity)))
        self._inbox = b""
        self._last_sign = time.monotonic()
        self._window = 4
        self._may_starve = False
        self._is_silent = self._is_dismissed = False

    def fill(self, queue: deque[Task], share: int, alone: Container[int]) -> None:
        """Take solutions from `queue` to work ahead, about `share` of them.

        The window doubles when the grader was left without work although there was some.

        Args:
            queue: what nobody has been given yet.
            share: this grader's, so that others have work too.
            alone: the identities of solutions that are judged one by one.
        """
        if self._may_starve and not self.tasks:
            self._window = min(2 * self._window, MAX_WINDOW)
        while queue and len(self.tasks) < max(min(self._window, share), 1):
            batch = _next_batch(queue, min(self.batch_size, share), alone)
            if not self.tasks:
                self._last_sign = time.monotonic()
            self.tasks += batch
            self._batches.append(len(batch))
            self._outbox += pickle.dumps(batch)
        self._may_starve = bool(queue)
        self._flush()

    def answered(self) -> Task:
        """Take the solution that a reply is about off the tasks."""
        if self._batches[0] == 1:
            self._batches.popleft()
        else:
            self._batches[0] -= 1
        return self.tasks.popleft()

    @property
    def begun(self) -> int:
        """How many of the tasks are being judged together."""
        return self._batches[0] if self._batches else 0

    def receive(self) -> list[TimedReply]:
        """Return the replies since the last call."""
        chunks = [self._inbox]
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self._stdout, 2**20):
                chunks.append(chunk)
            self._is_silent = True
        lines = b"".join(chunks).split(b"\n")
        self._inbox = lines.pop()
        if len(chunks) > 1:
            self._last_sign = time.monotonic()
        return [json.loads(line) for line in lines]

    def _flush(self) -> None:
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            while self._outbox:
                del self._outbox[: os.write(self._stdin, self._outbox)]
                self._last_sign = time.monotonic()

    @property
    def is_gone(self) -> bool:
        """Whether it has died or closed its pipe; replies that it sent before can still be received."""
        return self._is_dead or (self._is_silent and self.silent_seconds > EXIT_SECONDS)

    @property
    def _is_dead(self) -> bool:
        options = os.WEXITED | os.WNOHANG | os.WNOWAIT  # not waited for: the group keeps its number
        return os.waitid(os.P_PID, self._process.pid, options) is not None

    @property
    def silent_seconds(self) -> float:
        """How long ago it last replied, took something from its pipe, or was given the first of its tasks."""
        return time.monotonic() - self._last_sign

    @property
    def events(self) -> dict[int, int]:
        """What to wait for, as `select.poll` has it: descriptor -> mask."""
        if self._is_silent:
            return {}
        writable = {self._stdin: select.POLLOUT} if self._outbox else {}
        return {self._stdout: select.POLLIN} | writable

    def dismiss(self) -> None:
        """Let it leave in good order if it has nothing to do, for `end` to follow."""
        if self.is_ready and not self.tasks:
            self._pipes[0].close()
            self._is_dismissed = True

    def end(self) -> str:
        """Kill it and all that it started; say how it had ended."""
        deadline = time.monotonic() + EXIT_SECONDS
        while self._is_dismissed and not self._is_dead and time.monotonic() < deadline:
            time.sleep(0.002)
        was_dead = self._is_dead
        kill_group(self._process)
        os.close(self._lifeline)
        for pipe in self._pipes:
            pipe.close()
        code = self._process.returncode
        if not was_dead:
            return "closed its pipe and was killed"
        if code >= 0:
            return f"left with exit status {code}"
        hint = "; out of memory?" if code == -signal.SIGKILL else ""
        return f"was killed by signal {-code}, {signal.strsignal(-code)}{hint}"


def _next_batch(queue: deque[Task], size: int, alone: Container[int]) -> list[Task]:
    """Take what is judged together off the queue: at least one, and one that is to be alone by itself."""
    batch = [queue.popleft()]
    while queue and len(batch) < size and id(batch[0][1]) not in alone and id(queue[0][1]) not in alone:
        batch.append(queue.popleft())
    return batch
