"""math-verify in a process that can be killed: whatever an answer does to it, the caller goes on in time.

A first process imports math-verify once, which takes a second, and forks a judge; a judge that takes too long
or too much memory is killed and another one is forked, which takes milliseconds. No signal is used as a
clock, so any thread may ask. Answers are read as LaTeX by a grammar; none is evaluated as code. What is
asked, and what may be asked at all, is decided in `math_answer`.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any

from rest_em.processes import die_with_parent

JUDGE_SECONDS = 0.9
"""How long a judge may take over one pair."""
LOOK_SECONDS = 0.05
"""How often it is looked whether a judge still lives."""
MEMORY_BYTES = 400 * 2**20
"""How much memory a judge may take beyond what it starts with."""
START_SECONDS = 120.0
MAX_PACKET = 2**17


class JudgeKilledError(Exception):
    """Raised where a judge was killed: it took too long, too much memory, or died."""


class MathProcess:
    """The processes, started with the first question; one question at a time, from any thread."""

    def __init__(self) -> None:
        """Start nothing yet."""
        self._lock = threading.Lock()
        self._first: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._work: socket.socket | None = None
        self._judge = 0
        self._number = 0

    def start(self) -> None:
        """Start the processes and wait until math-verify is imported.

        Raises:
            RuntimeError: that fails.
        """
        with self._lock:
            self._started()

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """Return the judge's reply to `{"gold", "answer"}`, or to `{"gold"}`.

        A judge that died by itself is replaced once.

        Raises:
            JudgeKilledError: it could not be had within the bounds.
            RuntimeError: the processes cannot be started.
        """
        with self._lock:
            for _ in range(2):
                control, work = self._started()
                self._number += 1
                try:
                    if not self._judge:
                        control.send(b"fork")
                        self._judge = int(control.recv(64))
                    work.send(json.dumps(question | {"number": self._number}).encode())
                    return self._reply(work)
                except ProcessLookupError:
                    self._judge = 0
                except (OSError, ValueError):  # the first process is gone, and the judge with it
                    self.close()
        raise JudgeKilledError("the process that compares it dies")

    def _reply(self, work: socket.socket) -> dict[str, Any]:
        """Wait for the reply to the last question.

        Raises:
            JudgeKilledError: the judge was killed, for it took too long or too much memory.
            ProcessLookupError: it has died by itself.
        """
        deadline = time.monotonic() + JUDGE_SECONDS
        while True:
            work.settimeout(LOOK_SECONDS)
            try:
                reply: dict[str, Any] = json.loads(work.recv(MAX_PACKET))
            except TimeoutError:
                os.kill(self._judge, 0)
                if time.monotonic() < deadline:
                    continue
                self._kill_judge()
                raise JudgeKilledError(f"comparing it takes more than {JUDGE_SECONDS:g} s") from None
            if reply["number"] != self._number:
                continue  # of a judge that has been killed
            if reply.get("out_of_memory"):
                self._kill_judge()
                raise JudgeKilledError("comparing it takes too much memory")
            return reply

    def _kill_judge(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._judge, signal.SIGKILL)
        self._judge = 0

    def _started(self) -> tuple[socket.socket, socket.socket]:
        if self._first is not None and self._first.poll() is not None:
            self.close()
        if self._control is None or self._work is None:
            self._control, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._work, work = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            descriptors = [control.fileno(), work.fileno()]
            self._first = subprocess.Popen(
                [sys.executable, "-m", "rest_em.rewards.math_process", *map(str, descriptors)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
                pass_fds=descriptors,
            )
            control.close()
            work.close()
            self._control.settimeout(START_SECONDS)
            try:
                is_ready = self._control.recv(64) == b"ready"
            except OSError:
                is_ready = False
            if not is_ready:
                self.close()
                raise RuntimeError(
                    "the process that imports math-verify did not start; is math-verify installed?"
                )
        return self._control, self._work

    def close(self) -> None:
        """End the processes."""
        for one in (self._control, self._work):
            if one is not None:
                one.close()
        if self._first is not None:
            self._first.kill()  # the judge dies with it
            self._first.wait()
        self._first = self._control = self._work = None
        self._judge = 0


def _serve(control: socket.socket, work: socket.socket) -> None:
    """Fork a judge whenever one is wanted, until the owner goes."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the killed
    control.send(b"ready")
    parent = os.getpid()
    while control.recv(64):
        child = os.fork()
        if child == 0:
            die_with_parent(signal.SIGKILL, parent)
            control.close()
            _judge(work)
            os._exit(0)
        control.send(str(child).encode())


def _judge(work: socket.socket) -> None:
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()  # noqa: PTH123, SIM115
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES,) * 2)
    while packet := work.recv(MAX_PACKET):
        question = json.loads(packet)
        reply: dict[str, Any] = {"number": question["number"]}
        try:
            reply |= _answer(question)
        except MemoryError:
            reply["out_of_memory"] = True
        except Exception as error:  # sympy raises of every kind on what is no mathematics
            reply |= {"is_equal": False, "why": f"{type(error).__name__}: {error}"[:200]}
        work.send(json.dumps(reply).encode())


def _answer(question: dict[str, Any]) -> dict[str, Any]:
    from math_verify import verify

    gold = _parsed(question["gold"])
    if not gold:
        return {"is_equal": False, "is_gold_read": False}
    if "answer" not in question:
        return {"is_equal": bool(verify(gold, gold, timeout_seconds=None)), "is_gold_read": True}
    answer = _parsed(question["answer"])
    if not answer or not verify(gold, answer, timeout_seconds=None):
        return {
            "is_equal": bool(answer) and _is_rounded(gold, answer, question["gold"]),
            "is_gold_read": True,
        }
    is_equal = _is_exact(gold, answer) or _is_rounded(gold, answer, question["gold"])
    return {"is_equal": is_equal, "is_gold_read": True}


def _parsed(text: str) -> list[Any]:
    from math_verify import LatexExtractionConfig, parse

    found: list[Any] = parse(f"\\boxed{{{text}}}", [LatexExtractionConfig()], parsing_timeout=None)
    return found


def _number(found: list[Any]) -> Any:
    """Return the value of what was read, decimals taken as fractions; None for no number."""
    import sympy

    for one in found:
        if isinstance(one, sympy.Expr):
            exact = one.xreplace({each: sympy.Rational(str(each)) for each in one.atoms(sympy.Float)})
            return exact if exact.is_number else None
    return None


def _is_exact(gold: list[Any], answer: list[Any]) -> bool:
    """Say whether two numbers that are equal in their first digits are so in all: 1/3 is not 0.3333333333."""
    one, other = _number(gold), _number(answer)
    if one is None or other is None:
        return True
    difference = (one - other).evalf(50)
    return bool(difference.is_number) and bool(abs(difference) < 1e-25)


def _is_rounded(gold: list[Any], answer: list[Any], written: str) -> bool:
    """Say whether a gold of two decimals or more is the exact answer, rounded as far as it is written.

    Only an answer that no decimal number equals can be what such a gold stands for.
    """
    import sympy

    whole, point, decimals = written.strip().partition(".")
    value = _number(answer)
    if not point or len(decimals) < 2 or not (whole.lstrip("-") + decimals).isdigit() or value is None:
        return False
    if value.is_rational is not False:  # a rational number that ends is equal or is not
        fraction = sympy.Rational(value) if value.is_Rational else None
        if fraction is None or not set(sympy.factorint(fraction.q)) - {2, 5}:
            return False
    if not value.is_real:
        return False
    return bool(
        abs(sympy.Rational(written.strip()) - value.evalf(50)) <= sympy.Rational(1, 2 * 10 ** len(decimals))
    )


def main() -> None:
    """Import math-verify, then fork judges until the owner goes."""
    import logging

    import math_verify  # noqa: F401

    logging.disable(logging.CRITICAL)
    control, work = (socket.socket(fileno=int(one)) for one in sys.argv[1:3])
    try:
        _parsed("x^2+\\frac{1}{2}")  # what is imported late is then there
    except Exception as error:
        raise SystemExit(f"math-verify does not work: {error}") from error
    _serve(control, work)


if __name__ == "__main__":
    main()
