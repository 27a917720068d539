"""The reward `unit_tests`: a program that passes all tests of its problem, judged from data alone.

The program runs in `sandbox` and never meets what is expected of it: its values and its output come back as
data and are compared here, or by a test in a sandbox of its own. The formats of tests are in `problem_tests`,
how a program is found in a solution in `programs`.
"""

from __future__ import annotations

import importlib.util
import json
import re
import secrets
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from rest_em.errors import RewardError, UnscorableError
from rest_em.rewards.problem_tests import (
    CONVERTERS,
    REFERENCE_COLUMNS,
    AssertTests,
    Case,
    Equality,
    FunctionTests,
    StdinTests,
    Tests,
    parse_tests,
)
from rest_em.rewards.programs import WAYS, extract_program
from rest_em.rewards.sandbox.client import Sandbox, SandboxError
from rest_em.rewards.sandbox.isolation import Limits
from rest_em.rewards.sandbox.machine import Machine
from rest_em.rewards.sandbox.probe import layers, probe
from rest_em.rewards.sandbox.server import Ending
from rest_em.rewards.sandbox.tester import decode_reply
from rest_em.rewards.sandbox.values import CannotCrossError
from rest_em.types import Outcome, Problem, Solution

WALL_SLACK_SECONDS = 1.0
"""By how much the limit on wall-clock time is wider than that on processor time."""
ALONE_FACTOR = 4
"""By how much it is wider when a program is run again alone."""
STARVED = 0.1
"""A program that was ready to run, and did not, for this share of its time has met the machine's limit."""
MAX_OUTPUT_BYTES = 2**24
"""Of a program's standard output."""
MAX_VERDICT_BYTES = 2**16
MAX_REPLY_FRAME = 4096
"""What a reply has beside a value's bytes, or an error in the place of one."""
MAX_KNOWN = 256
"""Problems whose tests are remembered."""
TOLERANCE = 1e-6
WEAKER = "judged in the program's own process (reward.options.allow_same_process)"
_LIMITS_MET = {"cpu": "CPU time", "wall": "wall time", "memory": "memory", "stopped": "output"}
_KINDS = {"failed": "wrong answer", "value": "wrong answer"}


class _RefusedError(Exception):
    """The program is incorrect; the message says why."""


class _StarvedError(Exception):
    """The program met the limit on wall-clock time while others kept it from the processors."""


class _NeedsProgramError(Exception):
    """The test cannot be judged apart from the program."""


class UnitTests:
    """The reward: a callable that owns the sandboxes in which it runs programs.

    Example:
        reward = UnitTests(cpu_seconds=10.0)
        outcome = reward(problem, solution)
    """

    def __init__(
        self,
        *,
        cpu_seconds: float,
        allow_weaker_isolation: bool = False,
        program: str = "block",
        data_set: str | None = None,
        max_memory_bytes: int = 2**30,
        allow_same_process: bool = False,
        packages: Sequence[str] = (),
    ) -> None:
        """Start a sandbox, to see what isolation there is.

        Args:
            cpu_seconds: what a program may use for all of its tests together; the limit on wall-clock time is
                a second more.
            allow_weaker_isolation: run programs although the host refuses a layer of the isolation.
            program: how the program is found in a solution: `block` (the last complete fenced block, the
                whole text where there is none), `text`, or `completion` (of the tests' `prompt`, or the
                problem's).
            data_set: the problems' columns are those of `humaneval`, `mbpp` or `apps`; None: the reference is
                the tests themselves.
            max_memory_bytes: of all of a program's processes together.
            allow_same_process: judge tests that need more of the program than values in the program's
                process, where a program can forge the verdict; such verdicts are labelled.
            packages: installed packages that programs may import beside Python's own.

        Raises:
            RewardError: a layer is missing and that is not allowed, or an option is none.
        """
        _check_one_of("program", program, WAYS)
        if data_set is not None:
            _check_one_of("data_set", data_set, CONVERTERS)
        self._limits = Limits(cpu_seconds, cpu_seconds + WALL_SLACK_SECONDS, max_memory_bytes)
        self._allows_weaker_isolation = allow_weaker_isolation
        self._way = program
        self._data_set = data_set
        self._allows_same_process = allow_same_process
        self._packages = _find_packages(packages)
        self._sandboxes: dict[str, Sandbox] = {}
        self._known: dict[str, tuple[Problem, Tests]] = {}
        try:
            sandbox = self._sandbox("program")
            broken = probe(sandbox) if not sandbox.missing else []
        except SandboxError as error:
            raise RewardError(f"reward.name unit_tests: {error}") from error
        self.isolation = layers(sandbox)
        """The layers between a program and the machine, for people."""
        if broken:
            self._close_sandboxes()
            raise RewardError(
                f"reward.name unit_tests: the sandbox does not hold on this host: {', and '.join(broken)}; "
                "nothing that a model wrote was run"
            )
        self._machine = Machine()

    def close(self) -> None:
        """End the sandboxes."""
        self._close_sandboxes()
        self._machine.close()

    def _close_sandboxes(self) -> None:
        while self._sandboxes:
            self._sandboxes.popitem()[1].close()

    def __call__(self, problem: Problem, solution: Solution) -> Outcome:
        """Run the solution's program against the problem's tests.

        Raises:
            UnscorableError: the tests cannot be used, or the sandbox fails twice.
        """
        tests = self._read(problem)
        prompt = tests.prompt or (problem.prompt if isinstance(problem.prompt, str) else "")
        program = extract_program(solution.text, self._way, prompt=prompt)
        try:
            if isinstance(tests, AssertTests) and tests.needs_program:
                raise _NeedsProgramError(f"its tests use {tests.needs_program} of the program itself")
            return self._judge(program, tests)
        except _NeedsProgramError as error:
            if not self._allows_same_process:
                raise UnscorableError(
                    f"{error}, which cannot cross to them as data; reward.options.allow_same_process: true "
                    "has them judged in the program's process, where a program can forge the verdict"
                ) from error
            return self._judge(program, tests, shares_process=True)

    def _read(self, problem: Problem) -> Tests:
        """Return a problem's tests; those of the last problems are remembered, which have many solutions."""
        known = self._known.get(problem.id)
        if known is None or known[0] != problem:
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            known = self._known[problem.id] = problem, tests_of(problem, self._data_set)
        return known[1]

    def _judge(self, program: str, tests: Tests, *, shares_process: bool = False) -> Outcome:
        """Judge a program; a sandbox that fails is replaced once."""
        failure: SandboxError | None = None
        for _ in range(2):
            try:
                return self._judge_once(program, tests, shares_process=shares_process)
            except SandboxError as error:
                self._close_sandboxes()
                failure = error
        raise UnscorableError(f"the sandbox failed twice: {failure}") from failure

    def _judge_once(self, program: str, tests: Tests, *, shares_process: bool) -> Outcome:
        """Judge a program beside others; alone where the machine kept it from ending in time."""
        wider = self._limits._replace(wall_seconds=ALONE_FACTOR * self._limits.wall_seconds)
        label = WEAKER if shares_process else ""
        try:
            try:
                with self._machine.beside_others():
                    self._run(program, tests, self._limits, shares_process=shares_process)
            except _StarvedError:
                with self._machine.alone():
                    self._run(program, tests, wider, shares_process=shares_process)
        except (_RefusedError, _StarvedError) as refusal:
            return Outcome(0.0, f"{refusal}; {label}" if label else str(refusal))
        return Outcome(1.0, label)

    def _run(self, program: str, tests: Tests, limits: Limits, *, shares_process: bool) -> None:
        """Return if the program passes.

        Raises:
            _RefusedError: it does not.
            _StarvedError: it may not have had its time.
        """
        if isinstance(tests, FunctionTests):
            self._run_calls(program, tests, limits)
        elif isinstance(tests, StdinTests):
            self._run_scripts(program, tests, limits)
        elif shares_process:
            self._run_together(program, tests, limits)
        else:
            self._run_apart(program, tests, limits)

    def _run_calls(self, program: str, tests: FunctionTests, limits: Limits) -> None:
        # What is much longer than what is expected is not equal to it, and is not read. The bound is coarse,
        # and one for all cases: a program can read it, and must not learn from it what is expected.
        bound = 1 << (8 * max(case.num_bytes for case in tests.cases) + 4096).bit_length()
        payload = {
            "source": program,
            "entry_point": tests.entry_point,
            "calls": [case.call for case in tests.cases],
            "max_bytes": bound,
        }
        room = (bound + MAX_REPLY_FRAME) * (len(tests.cases) + 1)
        finished = self._sandbox("program").run("calls", payload, limits, max_results=room)
        num_cases = len(tests.cases)
        *lines, _ = finished.results.split(b"\n")
        for number, (case, line) in enumerate(zip(tests.cases, lines, strict=False), start=1):
            where = f"case {number} of {num_cases}"
            if len(line) > bound + MAX_REPLY_FRAME:  # not of ours: it would not fit
                raise _RefusedError(f"wrong answer: {where}: it returned far more than is expected")
            value = _value(line, where)
            if case.wanted is None or case.wanted.is_plain:
                wanted = _shown(case.expected)
            else:
                wanted = case.wanted.source[:120]
            if not _is_accepted(value, case, tests.equality):
                raise _RefusedError(f"wrong answer: {where}: returned {_shown(value)}, wanted {wanted}")
        if not finished.is_whole:
            raise _RefusedError("wrong answer: it returned far more than is expected")
        where = f"in case {min(len(lines) + 1, num_cases)} of {num_cases}"
        _refuse_limits(finished.ending, where)
        if len(lines) < num_cases:
            raise _RefusedError(f"exit: {_how_left(finished.ending)} {where}")

    def _run_scripts(self, program: str, tests: StdinTests, limits: Limits) -> None:
        left = limits
        for number, (given, wanted) in enumerate(tests.cases, start=1):
            where = f"in case {number} of {len(tests.cases)}"
            finished = self._sandbox("program").run(
                "script",
                {"source": program},
                left,
                max_results=MAX_OUTPUT_BYTES + 2 * len(wanted),
                standard_input=given.encode("utf-8", "surrogateescape"),
            )
            ending = finished.ending
            _refuse_limits(ending, where)
            if ending.how == "signal" or ending.code:
                raise _RefusedError(
                    f"{'exception' if ending.code == 1 else 'exit'}: {_how_left(ending)} {where}"
                )
            printed = finished.results.decode("utf-8", "surrogateescape")
            if not _prints_the_same(printed, wanted, tests.compare):
                raise _RefusedError(
                    f"wrong answer: {where}: printed {printed!r:.120}, wanted {wanted!r:.120}"
                )
            left = left._replace(
                cpu_seconds=left.cpu_seconds - ending.cpu_seconds,
                wall_seconds=left.wall_seconds - ending.wall_seconds,
            )
            if min(left.cpu_seconds, left.wall_seconds) <= 0 and number < len(tests.cases):
                raise _RefusedError(
                    f"CPU time: nothing of it is left after case {number} of {len(tests.cases)}"
                )

    def _run_apart(self, program: str, tests: AssertTests, limits: Limits) -> None:
        """Run the program in one sandbox and its test in another, a socket of data between them."""
        runs, judges = self._sandbox("program"), self._sandbox("test")
        ours, theirs = socket.socketpair()
        with theirs:
            with ours:
                runs.start(
                    "serve", {"source": program, "entry_point": tests.entry_point}, [ours.fileno()], limits
                )
            payload = {"setup": tests.setup, "test": tests.test, "entry_point": tests.entry_point}
            tested = judges.run(
                "test", payload, _of_a_test(limits), max_results=MAX_VERDICT_BYTES, channel=theirs.fileno()
            )
        runs.stop()
        ending = runs.finish()
        kind, told = _verdict(tested.results)
        if kind == "passed":
            return
        if kind == "needs":
            raise _NeedsProgramError(told)
        if kind in ("broken", "untested"):
            raise UnscorableError(told)
        if kind == "gone" or not kind:
            _refuse_limits(ending, "in a call")
        if kind == "gone":
            raise _RefusedError(f"exit: {_how_left(ending)} before it had answered")
        if not kind:
            _refuse_limits(tested.ending, "in the test, on what the program returned")
            raise UnscorableError(f"the test gave no verdict: it {_how_left(tested.ending)}")
        raise _RefusedError(f"{_KINDS.get(kind, kind)}: {told}")

    def _run_together(self, program: str, tests: AssertTests, limits: Limits) -> None:
        """Run the program and then its test in one process, which proves its end by a word it was given."""
        word = secrets.token_hex(16)
        payload = {
            "source": program, "setup": tests.setup, "test": tests.test, "entry_point": tests.entry_point,
            "word": word,
        }  # fmt: skip
        finished = self._sandbox("program").run("together", payload, limits, max_results=MAX_VERDICT_BYTES)
        kind, told = _verdict(finished.results)
        _refuse_limits(finished.ending, "in the program or its test")
        if kind == word:
            return
        raise _RefusedError(
            f"{_KINDS.get(kind, kind)}: {told}" if kind else f"exit: {_how_left(finished.ending)}"
        )

    def _sandbox(self, name: str) -> Sandbox:
        """Return a sandbox, started when it is first wanted.

        Raises:
            RewardError: a layer is missing and that is not allowed.
            SandboxError: it does not start.
        """
        if name not in self._sandboxes:
            sandbox = Sandbox(self._packages)
            if sandbox.missing and not self._allows_weaker_isolation:
                sandbox.close()
                raise RewardError(
                    "reward.allow_weaker_isolation is false, and this host lacks "
                    + "; ".join(f"the {layer} ({why})" for layer, why in sandbox.missing.items())
                    + "; nothing that a model wrote was run. Give the host what is missing, or set "
                    "reward.allow_weaker_isolation: true to run programs with what is left"
                )
            self._sandboxes[name] = sandbox
        return self._sandboxes[name]


def tests_of(problem: Problem, data_set: str | None) -> Tests:
    """Return a problem's tests: its reference, or what a data set's row is converted to.

    Raises:
        UnscorableError: they cannot be used, or there are none.
    """
    if data_set is None:
        return parse_tests(problem.reference)
    try:
        return parse_tests(CONVERTERS[data_set](_columns_of(problem, data_set)))
    except (KeyError, TypeError, AttributeError, SyntaxError) as error:
        raise UnscorableError(
            f"this is no row of {data_set} (reward.options.data_set): {type(error).__name__} {error}"
        ) from error


def _of_a_test(limits: Limits) -> Limits:
    """Return the limits of a test: it also waits for the program."""
    return limits._replace(wall_seconds=limits.wall_seconds + WALL_SLACK_SECONDS)


def _refuse_limits(ending: Ending, where: str) -> None:
    """Refuse a program that met a limit.

    Raises:
        _RefusedError: it did.
        _StarvedError: it met that on wall-clock time, and was kept from the processors meanwhile.
    """
    if ending.how not in _LIMITS_MET:
        return
    used = f"{ending.cpu_seconds:.1f} s of CPU in {ending.wall_seconds:.1f} s"
    message = f"{_LIMITS_MET[ending.how]}: stopped {where}, after {used}"
    if ending.how == "wall" and ending.waited_seconds > STARVED * ending.wall_seconds:
        raise _StarvedError(message)
    raise _RefusedError(message)


def _how_left(ending: Ending) -> str:
    if ending.how == "signal":
        return f"it was killed by signal {ending.code}"
    return f"it left with exit status {ending.code}"


def _verdict(results: bytes) -> tuple[str, str]:
    """Return what a test's process said: a kind and a message, both empty where it said nothing."""
    try:
        kind, told = json.loads(results)
    except (ValueError, TypeError, RecursionError):
        return "", ""
    return str(kind)[:40], str(told)[:500]


def _value(line: bytes, where: str) -> Any:
    """Return the value of a reply to a call.

    Raises:
        _RefusedError: the program did not return one.
    """
    try:
        reply = decode_reply(line)
    except CannotCrossError as error:
        raise _RefusedError(f"wrong answer: {where}: {error}") from error
    if "value" in reply:
        return reply["value"]
    kind = reply.get("error", "value")
    raise _RefusedError(f"{_KINDS.get(kind, kind)}: {where}: {reply.get('message', 'no reply')}")


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python writes
        return f"a value of type {type(value).__name__} that is too long to show"
    return text if len(text) <= 120 else f"{text[:120]}..."


def _is_accepted(value: Any, case: Case, equality: Equality) -> bool:
    if case.wanted is not None:
        return case.wanted.holds(value)
    return is_same(value, case.expected, equality)


def is_same(value: Any, expected: Any, equality: Equality = "strict") -> bool:
    """Say whether two plain values are equal: `strict` in their types too, but for whole floats.

    >>> is_same([1, 2.0], [1, 2]), is_same([True], [1]), is_same((1,), [1])
    (True, False, False)
    >>> is_same((1,), [1], "lists")
    True
    """
    if equality == "lists":
        value = list(value) if isinstance(value, tuple) else value
        expected = list(expected) if isinstance(expected, tuple) else expected
    kind, wanted = type(value), type(expected)
    if kind is not wanted:
        return kind in (int, float) and wanted in (int, float) and bool(value == expected)
    if kind in (list, tuple):
        return len(value) == len(expected) and all(
            is_same(one, other, equality) for one, other in zip(value, expected, strict=True)
        )
    if kind is dict:
        return {(type(key), key) for key in value} == {(type(key), key) for key in expected} and all(
            is_same(one, expected[key], equality) for key, one in value.items()
        )
    return bool(value == expected)


def _prints_the_same(printed: str, wanted: str, compare: str) -> bool:
    if compare == "exact":
        return printed == wanted
    if compare == "lines":
        printed, wanted = printed.rstrip(), wanted.rstrip()
        return printed.count("\n") == wanted.count("\n") and _lines(printed) == _lines(wanted)
    pairs = zip_longest(_tokens(printed), _tokens(wanted))  # one by one: a program may have printed millions
    if compare == "tokens":
        return all(left == right for left, right in pairs)
    return all(left == right or _is_near(left, right) for left, right in pairs)


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.replace("\r\n", "\n").rstrip().split("\n")]


def _tokens(text: str) -> Iterator[str]:
    return (match[0] for match in re.finditer(r"\S+", text))


def _is_near(printed: str | None, wanted: str | None) -> bool:
    """Say whether a number that is printed is the wanted one, which has a fraction, within 1e-6."""
    if printed is None or wanted is None or not ({".", "e", "E"} & set(wanted)):
        return False
    try:
        one, other = float(printed), float(wanted)
    except ValueError:
        return False
    return abs(one - other) <= TOLERANCE * max(1.0, abs(other))


def _check_one_of(name: str, found: str, known: Iterable[str]) -> None:
    if found not in known:
        raise RewardError(f"reward.options.{name}: unknown name {found!r}; wanted {', '.join(known)}")


def _columns_of(problem: Problem, data_set: str) -> Mapping[str, Any]:
    """Return a row's columns as the converter knows them, the reference's among them."""
    columns = dict(problem.metadata)
    return columns | {REFERENCE_COLUMNS[data_set]: problem.reference}


def _find_packages(names: Sequence[str]) -> dict[str, str]:
    """Return where packages are, by the name of their file or folder.

    Raises:
        RewardError: one is not installed.
    """
    found: dict[str, str] = {}
    for name in names:
        spec = importlib.util.find_spec(name)
        if spec is None or not (spec.submodule_search_locations or spec.origin):
            raise RewardError(
                f"reward.options.packages: there is no package {name!r}; install it, or take it out"
            )
        path = Path(
            spec.submodule_search_locations[0] if spec.submodule_search_locations else str(spec.origin)
        )
        for each in (path, path.with_name(f"{name}.libs")):  # where wheels put the libraries they bring
            if each.exists():
                found[each.name] = str(each)
    return found
