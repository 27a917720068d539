"""The trusted side of a sandbox: starts a server, hands it programs, and takes data back."""

from __future__ import annotations

import contextlib
import json
import marshal
import os
import select
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rest_em.rewards.sandbox.isolation import NOBODY, Limits
from rest_em.rewards.sandbox.server import ENDS, ERROR, KINDS, MAX_PACKET, REPLY, REQUEST, STOP, Ending

START_SECONDS = 60.0
"""How long a server may take to put up its layers."""
CLOSE_SECONDS = 5.0
"""How long a server may take to leave before it is killed."""
SLACK_SECONDS = 30.0
"""How long beyond a program's wall-clock limit its end may take to be told, on a machine that is busy."""
PIPE_BYTES = 2**18
LULL_MILLISECONDS = 10
"""How long a program is left alone with its pipe: most have ended by then, and each look costs a switch."""
_START = (
    f"import sys; sys.path.append({str(Path(__file__).parents[3])!r}); "
    "from rest_em.rewards.sandbox.server import main; sys.path.pop(); main()"
)
"""What a fresh interpreter, which sees no site-packages and no environment, runs."""


class SandboxError(RuntimeError):
    """Raised when the sandbox itself fails: no verdict on a program can come of that."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A program's end, and what it wrote to the results' pipe."""

    ending: Ending
    results: bytes
    is_whole: bool
    """Whether the results are within the bound that was given."""


class Sandbox:
    """One server: one program at a time. Use it as a context, or `close` it; it dies with its parent."""

    def __init__(self, packages: Mapping[str, str] | None = None) -> None:
        """Start the server and wait until its layers are up.

        Args:
            packages: folders of packages that programs may import, by name.

        Raises:
            SandboxError: it does not start, or cannot say what is missing.
        """
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        options = {"parent": os.getpid(), "packages": dict(packages or {})}
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-P",  # -I without leave to ignore the seed: programs are to do the same each time
                "-s",
                "-S",
                "-X",
                "utf8",
                "-c",
                _START,
                str(theirs.fileno()),
                json.dumps(options),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={"PYTHONHASHSEED": "0"},
            pass_fds=(theirs.fileno(),),
        )
        theirs.close()
        self._control.settimeout(START_SECONDS)
        try:
            first = self._control.recv(MAX_PACKET)
        except TimeoutError:
            first = b""
        told: dict[str, Any] = json.loads(first) if first else {"error": "its process ended at once"}
        if "error" in told:
            self.close()
            raise SandboxError(f"the sandbox cannot be set up: {told['error']}")
        self.missing: dict[str, str] = told["missing"]
        """The layers that the host refuses, and why."""
        self.has_namespaces: bool = told["has_namespaces"]
        self._deadline = 0.0

    def __enter__(self) -> Sandbox:
        """Return itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """End the server and all that it runs."""
        self._control.close()  # at which the server leaves, in good order
        try:
            self._process.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def start(self, kind: str, payload: Any, descriptors: Sequence[int], limits: Limits) -> None:
        """Start a program; `finish` must follow.

        The payload crosses as `marshal` has it, which is fast to read and safe from here to there: those who
        read it are not trusted, and nothing of theirs is read so.

        Raises:
            SandboxError: the server is gone.
        """
        memory = _in_memory(marshal.dumps(payload))
        try:
            packet = REQUEST.pack(KINDS.index(kind), *limits)
            socket.send_fds(self._control, [packet], [memory, *descriptors])
        except OSError as error:
            raise SandboxError(f"the sandbox's server is gone: {error}") from error
        finally:
            os.close(memory)
        self._control.settimeout(limits.wall_seconds + SLACK_SECONDS)

    def stop(self) -> None:
        """End the program that runs, if one does; `finish` tells of it."""
        with contextlib.suppress(OSError):
            self._control.send(STOP)

    def finish(self) -> Ending:
        """Wait for the end of the program that was started.

        Raises:
            SandboxError: the server does not tell.
        """
        try:
            packet = self._control.recv(MAX_PACKET)
        except OSError as error:
            raise SandboxError(f"the sandbox's server does not reply: {error}") from error
        if not packet:
            raise SandboxError("the sandbox's server has died")
        if packet.startswith(ERROR):
            raise SandboxError(packet.removeprefix(ERROR).decode())
        how, *rest = REPLY.unpack(packet)
        return Ending(ENDS[how], *rest)

    def run(
        self,
        kind: str,
        payload: Any,
        limits: Limits,
        *,
        max_results: int,
        standard_input: bytes | None = None,
        channel: int | None = None,
    ) -> Finished:
        """Run a program to its end and return what it wrote.

        Args:
            kind: `calls`, `together`, `script` with a standard input, or `test` with a channel.
            payload: what its process reads.
            limits: what it may use.
            max_results: bytes; a program that writes more is ended.
            standard_input: of a script.
            channel: a test's way to its program; closed on this side once the test has it.

        Raises:
            SandboxError: the sandbox failed.
        """
        reading, writing = os.pipe()
        if os.geteuid() == 0:
            os.fchown(writing, NOBODY, NOBODY)  # for programs, who are nobody then, to open /dev/stdout
        inputs = [] if standard_input is None else [_in_memory(standard_input)]
        try:
            inputs += [] if channel is None else [os.dup(channel)]
            self.start(kind, payload, [*inputs, writing], limits)
        finally:
            for one in (*inputs, writing):
                os.close(one)
        try:
            return self._collect(reading, max_results)
        finally:
            os.close(reading)

    def _collect(self, reading: int, max_results: int) -> Finished:
        os.set_blocking(reading, False)
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        parts: list[bytes] = []
        size, seconds = 0, self._control.gettimeout() or 0.0
        is_last = bool(poll.poll(LULL_MILLISECONDS))
        poll.register(reading, select.POLLIN)
        while True:
            chunk: bytes | None = None
            while size <= max_results and (chunk := _read_now(reading)):
                parts.append(chunk)
                size += len(chunk)
            if is_last:
                return Finished(self.finish(), b"".join(parts), size <= max_results)
            if size > max_results:
                self.stop()
            if size > max_results or chunk == b"":
                with contextlib.suppress(KeyError):
                    poll.unregister(reading)
            ready = [one for one, _ in poll.poll(1000 * seconds)]
            if not ready:
                raise SandboxError("the sandbox's server does not reply")
            is_last = self._control.fileno() in ready


def _in_memory(content: bytes) -> int:
    """Return the descriptor of a file in memory that has this content, to be read from its begin."""
    descriptor = os.memfd_create("payload")
    with open(descriptor, "wb", closefd=False) as file:
        file.write(content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _read_now(descriptor: int) -> bytes | None:
    """Return what a pipe holds, nothing at its end, None where it holds nothing now."""
    try:
        return os.read(descriptor, PIPE_BYTES)
    except BlockingIOError:
        return None
