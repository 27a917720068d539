"""The sandbox's server: the first process inside, warm, that forks a process a program and cleans up.

It reads nothing that a program wrote, and nothing of a program: a request is a few numbers and descriptors,
and the program's process alone reads what they lead to. So a program finds nothing of the one before it.

    client -> server   one packet: `REQUEST` and descriptors: the payload, then the kind's own
    server -> client   one packet: `REPLY`, how it ended and what it used; or the server's error, a text

The first packet of all tells the layers, in JSON. A second packet while a program runs, or the end of the
client, ends the program.

What is done for each program is kept plain: each page that this process writes to while a program's process
shares it is copied, and there are more such pages than the work would let one think.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import NamedTuple, NoReturn

from rest_em.rewards.sandbox import candidate, kernel, tester
from rest_em.rewards.sandbox.isolation import Cell, Limits, enter, read_file

FIRST_LOOK_SECONDS = 0.02
LOOK_SECONDS = 0.025
"""How often a program's processes are counted: what they use between two looks goes beyond a limit."""
MOST_STARTED = 64
"""A program with more processes and threads than this has no others to blame if it waits for a processor."""
MAX_PACKET = 2**16
REQUEST = struct.Struct("=Bddq")
"""The kind's place in `KINDS`, and the limits."""
REPLY = struct.Struct("=BBddd")
"""The end's place in `ENDS`, and the rest of an `Ending`."""
STOP = b"stop"
ERROR = b"!"
"""Before a text in the place of a reply, whose first byte is less."""
_DESCRIPTORS = struct.Struct("=4i")
_ROOM = socket.CMSG_SPACE(_DESCRIPTORS.size)
_LOCKED = b"locked"
_M_ARENA_MAX = -8
"""Source: malloc.h."""
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = resource.getpagesize()
_PROGRAMS: dict[str, Callable[..., NoReturn]] = {
    "calls": candidate.answer_calls,
    "serve": candidate.serve_calls,
    "script": candidate.run_script,
    "test": tester.run_test,
    "together": tester.run_together,
}
KINDS = tuple(_PROGRAMS)
ENDS = ("exit", "signal", "stopped", "cpu", "wall", "memory")


class Ending(NamedTuple):
    """How a program ended."""

    how: str
    """`exit`, `signal`, `stopped` (by the client), or the limit that it met: `cpu`, `wall`, `memory`."""
    code: int
    """Exit status or signal."""
    cpu_seconds: float
    """Of all its processes."""
    wall_seconds: float
    waited_seconds: float
    """If it met the limit `wall`: how long its first thread was ready to run and did not."""


class Server:
    """Serves one client, one program at a time."""

    def __init__(self, control: socket.socket, cell: Cell) -> None:
        """Take over the connection to the client."""
        self._control = control
        self._cell = cell

    def serve(self) -> None:
        """Run programs until the client goes."""
        while True:
            packet, ancillary, _, _ = self._control.recvmsg(MAX_PACKET, _ROOM)
            if not packet:
                return
            if packet == STOP:
                continue  # it was to end a program that has ended by itself
            kind, *limits = REQUEST.unpack(packet)
            sent = ancillary[0][2]
            descriptors = struct.unpack(f"={len(sent) // 4}i", sent)
            try:
                how, code, *used = self._run(kind, Limits(*limits), descriptors)
                self._cell.clean()
            except OSError as error:
                self._tell(ERROR + str(error).encode())
                return
            self._tell(REPLY.pack(ENDS.index(how), code, *used))

    def _tell(self, packet: bytes) -> None:
        try:
            self._control.send(packet)
        except OSError:
            return  # the client may be gone, which the next packet shows

    def _run(self, kind: int, limits: Limits, descriptors: tuple[int, ...]) -> Ending:
        started = time.monotonic()
        self._cell.prepare(limits)
        locked, locked_end = os.pipe()
        child = os.fork()
        if child == 0:
            self._become_program(kind, descriptors, locked_end)
        for descriptor in (locked_end, *descriptors):  # so that they end when the program does
            os.close(descriptor)
        how = self._watch(child, limits, started)
        waited = _waited_seconds(child) if how == "wall" and not self._has_started_many(child) else 0.0
        wall = time.monotonic() - started
        status, cpu = self._end_all(child)
        code = os.waitstatus_to_exitcode(status)
        told = os.read(locked, MAX_PACKET)
        os.close(locked)
        if told != _LOCKED:
            raise OSError(f"a program's process could not be locked in: {told.decode() or how}")
        if how == "ended":
            how = "exit" if code >= 0 else "cpu" if code == -signal.SIGXCPU else "signal"
        if how in ("exit", "signal") and cpu > limits.cpu_seconds:
            how = "cpu"
        return Ending(how, abs(code), cpu, wall, waited)

    def _become_program(self, kind: int, descriptors: tuple[int, ...], locked: int) -> NoReturn:
        """Never returns: lock this process in, say so, and be the program."""
        try:
            os.setsid()  # a signal to its group reaches nobody else: groups reach across PID namespaces
            os.chdir(self._cell.folder)
            self._cell.lock()
        except BaseException as error:
            os.write(locked, f"{type(error).__name__}: {error}".encode())
            os._exit(1)
        try:
            os.write(locked, _LOCKED)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            _PROGRAMS[KINDS[kind]](*_keep_only(descriptors))
        finally:
            os._exit(1)

    def _watch(self, child: int, limits: Limits, started: float) -> str:
        """Wait for the end of a program's first process; return `ended`, or what ends it."""
        descriptor = os.pidfd_open(child)
        try:
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            poll.register(self._control, select.POLLIN)
            seconds = FIRST_LOOK_SECONDS
            while True:
                left = limits.wall_seconds - (time.monotonic() - started)
                if left <= 0:
                    return "wall"
                ready = [one for one, _ in poll.poll(1000 * min(seconds, left))]
                if descriptor in ready:
                    return "ended"
                if ready:  # a packet, or the client's end
                    return "stopped"
                seconds = LOOK_SECONDS
                cpu, memory = self._use(child)
                if cpu > limits.cpu_seconds:
                    return "cpu"
                if memory > limits.memory_bytes and self._memory(child) > limits.memory_bytes:
                    return "memory"
        finally:
            os.close(descriptor)

    def _processes(self, child: int) -> list[str]:
        if self._cell.has_namespaces:
            return [name for name in os.listdir("/proc") if name.isdigit() and name != "1"]
        return [str(child)]

    def _has_started_many(self, child: int) -> bool:
        """Say whether a program may have kept itself from the processors, by what it has started."""
        last = int(read_file("/proc/loadavg").split()[-1])  # the last number that the namespace has given
        return self._cell.has_namespaces and not 0 <= last - child <= MOST_STARTED

    def _memory(self, child: int) -> int:
        """Return the resident bytes of a program's processes, those that they share counted once."""
        memory = 0
        for process in self._processes(child):
            with contextlib.suppress(OSError, IndexError):
                told = read_file(f"/proc/{process}/smaps_rollup")
                memory += 1024 * int(told.split(b"\nPss:")[1].split()[0])
        return memory

    def _use(self, child: int) -> tuple[float, int]:
        """Return processor seconds and resident bytes of a program's processes, shared ones for each.

        Those that have ended count if they were waited for.
        """
        cpu = memory = 0
        for process in self._processes(child):
            with contextlib.suppress(OSError):
                fields = read_file(f"/proc/{process}/stat").rpartition(b")")[2].split()
                cpu += sum(int(one) for one in fields[11:15])
                memory += int(fields[21])
        return cpu / _TICKS, memory * _PAGE

    def _end_all(self, child: int) -> tuple[int, float]:
        """Kill what is left of a program and wait for it; return its status and processor seconds."""
        try:
            if self._cell.has_namespaces:  # all processes of the namespace but this one
                os.kill(-1, signal.SIGKILL)
            else:
                os.killpg(child, signal.SIGKILL)
        except ProcessLookupError:
            pass
        status, cpu = 0, 0.0
        while True:
            try:
                process, ended, use = os.wait4(-1, 0)
            except ChildProcessError:
                return status, cpu
            cpu += use.ru_utime + use.ru_stime
            if process == child:
                status = ended


def _waited_seconds(child: int) -> float:
    """Return how long a process's first thread has waited for a processor; 0.0 where that is not told."""
    try:
        return int(read_file(f"/proc/{child}/schedstat").split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0


def _keep_only(descriptors: tuple[int, ...]) -> list[int]:
    """Close all but these, which become 3, 4 and on; standard input, output and error are the null device."""
    high = [os.dup2(one, 100 + place) for place, one in enumerate(descriptors)]
    os.closerange(3, 100)
    for place, one in enumerate(high):
        os.dup2(one, 3 + place, inheritable=False)
    os.closerange(3 + len(high), 256)
    return list(range(3, 3 + len(high)))


def main() -> None:
    """Put up the layers, tell the client of them, and serve."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a namespace's first process dies only of what it handles
    sys.executable = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    os.environ.pop("PYTHONHASHSEED", None)
    control = socket.socket(fileno=int(sys.argv[1]))
    options = json.loads(sys.argv[2])
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != options["parent"]:
        return
    cell = Cell()
    try:
        if not enter(cell, options["packages"]):
            return
        cell.make_ready()
        cell.clean()
    except OSError as error:
        control.send(json.dumps({"error": str(error)}).encode())
        return
    control.send(json.dumps({"missing": cell.missing, "has_namespaces": cell.has_namespaces}).encode())
    warm_up(options["packages"])
    Server(control, cell).serve()


def warm_up(packages: dict[str, str]) -> None:
    """Import what most programs import, so that no program pays for it.

    Each module costs every program a little. `random` and `threading` cost much, for they do something in
    each new process (docs/sandbox.md): a program that wants them imports them itself.
    """
    import bisect, collections, functools, heapq, itertools, operator, re, string  # noqa: E401, F401, I001
    import gc
    import site

    site.setquit()  # exit() and quit(), which an interpreter without site-packages lacks
    site.sethelper()
    if packages:
        sys.path.append("/packages")
    kernel.LIBC.mallopt(_M_ARENA_MAX, 2)  # else each of many threads takes address space for its own
    gc.collect()
    gc.freeze()


if __name__ == "__main__":
    main()
