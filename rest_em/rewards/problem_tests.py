"""A problem's unit tests: the three formats as they are stored, and how the usual data sets' rows become one.

What a solution's program is compared with is read here, strictly: a problem without a single test, or with
one that cannot be read, is unscorable and never correct. Judging is in `unit_tests`.
"""

from __future__ import annotations

import ast
import builtins
import decimal
import json
import marshal
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rest_em.errors import UnscorableError
from rest_em.rewards.assertions import Wanted, read_assertions
from rest_em.rewards.sandbox.values import CannotCrossError, encode

COMPARISONS = ("exact", "lines", "tokens", "floats")
"""How `stdin` output is compared: byte for byte; by lines, trailing blanks and empty last lines aside; by
what stands between blanks; the same, and numbers with a fraction within 1e-6."""


MAX_BYTES = 2**24
"""Of one call's arguments, and of what is expected of it."""

MAX_DIGITS = 200_000
"""Of an integer in tests that are stored as a text."""

LEAST_SEEN_BYTES = 2**16
"""What is counted as expected where an assertion wants something else of a value than a constant."""

Equality = Literal["strict", "lists"]
"""When a value is what is expected: equal in types too; the same, but for tuples, which are lists in JSON."""


@dataclass(frozen=True, slots=True)
class Case:
    """One call and what it must return.

    Example:
        Case(call=marshal.dumps(((3,), {})), expected=[0, 1, 4], num_bytes=7)
    """

    call: bytes
    """Positional arguments and keywords, marshalled."""
    expected: Any
    num_bytes: int
    """Of what is expected, encoded as data that crosses."""
    wanted: Wanted | None = None
    """What an assertion wants of the value, in the place of equality."""


@dataclass(frozen=True, slots=True)
class FunctionTests:
    """Calls of one function."""

    entry_point: str
    cases: tuple[Case, ...]
    equality: Equality
    prompt: str
    """The begin of the program, which a completion goes on with."""


@dataclass(frozen=True, slots=True)
class StdinTests:
    """Runs of a whole program: what it reads, what it must print."""

    cases: tuple[tuple[str, str], ...]
    compare: str
    prompt: str


@dataclass(frozen=True, slots=True)
class AssertTests:
    """A source that calls the program's entry point and raises unless all is well."""

    entry_point: str
    setup: str
    test: str
    needs_program: str
    """What it uses of the program besides its entry point and plain values; empty for nothing."""
    prompt: str


Tests = FunctionTests | StdinTests | AssertTests


def parse_tests(reference: Any) -> Tests:
    """Return a problem's tests; a text is read as JSON.

    Raises:
        UnscorableError: they are of no known format, or there is none.
    """
    if isinstance(reference, str):
        try:
            reference = json.loads(reference, parse_int=_whole)
        except ValueError as error:
            raise UnscorableError(f"the problem's tests are a text that is not JSON: {error}") from error
    if not isinstance(reference, Mapping):
        raise UnscorableError(
            f"the problem's tests are of type {type(reference).__name__}; wanted an object with a format"
        )
    kind = reference.get("format")
    if kind not in _PARSERS:
        raise UnscorableError(
            f"the problem's tests have the format {kind!r}; wanted function, stdin or assert"
        )
    parse, known = _PARSERS[kind]
    unknown = [
        key for key in reference if key not in known | {"format", "prompt"} and reference[key] is not None
    ]
    if unknown:
        raise UnscorableError(
            f"the problem's tests have an unknown key {unknown[0]!r}; of format {kind} are "
            f"{', '.join(sorted(known | {'prompt'}))}"
        )
    return parse(reference)


def _function(reference: Mapping[str, Any]) -> FunctionTests:
    cases = []
    for number, case in enumerate(_cases(reference), start=1):
        if "expected" not in case:
            raise UnscorableError(f"case {number} of the problem's tests expects nothing: no key 'expected'")
        args, kwargs = case.get("args"), case.get("kwargs")
        args, kwargs = [] if args is None else args, {} if kwargs is None else kwargs
        if not isinstance(args, list | tuple) or not isinstance(kwargs, Mapping):
            raise UnscorableError(f"case {number} of the problem's tests: args is a list, kwargs an object")
        cases.append(_case(tuple(args), dict(kwargs), case["expected"]))
    equality: Equality = "lists" if reference.get("tuples_are_lists") else "strict"
    return FunctionTests(_entry_point(reference), tuple(cases), equality, _prompt(reference))


def _case(args: tuple[Any, ...], kwargs: dict[str, Any], expected: Any, wanted: Wanted | None = None) -> Case:
    try:
        encode((args, kwargs), max_bytes=MAX_BYTES)  # or it is no plain data
        size = len(encode(expected, max_bytes=MAX_BYTES))
        if wanted is not None and not wanted.is_plain:
            size = max(size, LEAST_SEEN_BYTES)
        return Case(marshal.dumps((args, kwargs)), expected, size, wanted)
    except CannotCrossError as error:
        raise UnscorableError(f"a case of the problem's tests is {error}") from error


def _stdin(reference: Mapping[str, Any]) -> StdinTests:
    cases = []
    for number, case in enumerate(_cases(reference), start=1):
        given, wanted = case.get("stdin"), case.get("stdout")
        if not isinstance(given, str) or not isinstance(wanted, str):
            raise UnscorableError(f"case {number} of the problem's tests: stdin and stdout must be texts")
        cases.append((given, wanted))
    compare = reference.get("compare") or "lines"
    if compare not in COMPARISONS:
        raise UnscorableError(f"the problem's tests compare by {compare!r}; wanted {', '.join(COMPARISONS)}")
    return StdinTests(tuple(cases), compare, _prompt(reference))


def _assert(reference: Mapping[str, Any]) -> AssertTests | FunctionTests:
    setup, test = reference.get("setup") or "", reference.get("test")
    if not isinstance(setup, str) or not isinstance(test, str) or not test.strip():
        raise UnscorableError("the problem has no test: `test` (and `setup`) must be texts")
    shares_process = bool(reference.get("shares_process"))
    return _read_assert(_entry_point(reference), setup, test, shares_process, _prompt(reference))


def _read_assert(
    entry_point: str, setup: str, test: str, shares_process: bool, prompt: str
) -> AssertTests | FunctionTests:
    try:
        trees = [ast.parse(setup), ast.parse(test)]
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UnscorableError(f"the problem's test is no Python: {error}") from error
    if not any(_can_fail(node) for node in ast.walk(trees[1])):
        raise UnscorableError("the problem has no test: nothing in `test` asserts or raises anything")
    if shares_process:
        return AssertTests(entry_point, setup, test, "(as shares_process says) something", prompt)
    bound = {name for node in ast.walk(trees[0]) for name in _names_bound(node)}
    calls = read_assertions(trees[1], entry_point, bound)
    try:
        cases = tuple(_case(one.args, one.kwargs, one.wanted.constant, one.wanted) for one in calls)
    except UnscorableError:  # of what is no data the test may still be run
        cases = ()
    if cases:
        return FunctionTests(entry_point, cases, "strict", prompt)
    missing = _unbound_names(trees, entry_point)
    modules = [name for name in missing if name in sys.stdlib_module_names]  # the program may import them
    setup = "".join(f"import {name}\n" for name in modules) + setup
    needs = ", ".join(name for name in missing if name not in modules)
    return AssertTests(entry_point, setup, test, needs, prompt)


_PARSERS: dict[str, tuple[Callable[[Mapping[str, Any]], Tests], frozenset[str]]] = {
    "function": (_function, frozenset({"entry_point", "cases", "tuples_are_lists"})),
    "stdin": (_stdin, frozenset({"cases", "compare"})),
    "assert": (_assert, frozenset({"entry_point", "setup", "test", "shares_process"})),
}


def _cases(reference: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    cases = reference.get("cases")
    if not isinstance(cases, list | tuple) or not cases:
        raise UnscorableError("the problem has no test: `cases` must be a list of at least one")
    if not all(isinstance(case, Mapping) for case in cases):
        raise UnscorableError("the problem's tests: each of `cases` must be an object")
    return list(cases)


def _entry_point(reference: Mapping[str, Any]) -> str:
    name = reference.get("entry_point")
    if not isinstance(name, str) or not name.isidentifier():
        raise UnscorableError(f"the problem's tests have the entry_point {name!r}; wanted a function's name")
    return name


def _prompt(reference: Mapping[str, Any]) -> str:
    prompt = reference.get("prompt") or ""
    if not isinstance(prompt, str):
        raise UnscorableError("the problem's tests: `prompt` must be the text that a program begins with")
    return prompt


def _can_fail(node: ast.AST) -> bool:
    """Say whether a part of a test can refuse a program: an assertion, or a call of one."""
    if isinstance(node, ast.Assert | ast.Raise):
        return True
    return isinstance(node, ast.Call) and "assert" in ast.unparse(node.func).lower()


def _unbound_names(trees: Sequence[ast.AST], entry_point: str) -> list[str]:
    """Return the names that a test uses and neither Python, nor the test, nor its entry point brings."""
    bound = {*vars(builtins), entry_point, "candidate", "__name__", "__file__"}
    used: dict[str, None] = {}
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                used[node.id] = None
            bound |= _names_bound(node)
    return [] if "*" in bound else [name for name in used if name not in bound]


def _names_bound(node: ast.AST) -> set[str]:
    match node:
        case ast.Name(id=name, ctx=ast.Store() | ast.Del()):
            return {name}
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return {name}
        case ast.arg(arg=name) | ast.ExceptHandler(name=str(name)):
            return {name}
        case ast.alias(name=name, asname=asname):
            return {asname or name.partition(".")[0]}
        case ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
            return {name}
    return set()


def from_humaneval(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tests of a row of HumanEval (and of HumanEval+): `prompt`, `test`, `entry_point`.

    The prompt is the test's setup too: two of the tests call a function that the prompt gives whole.
    """
    return {
        "format": "assert",
        "entry_point": row["entry_point"],
        "setup": row["prompt"],
        "test": row["test"],
        "prompt": row["prompt"],
    }


def from_mbpp(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tests of a row of MBPP: `test_list`, and `test_setup_code` (`test_imports` when sanitized).

    The entry point is the first function that the assertions call and the reference program, `code`, defines;
    else the first that Python does not have.
    """
    tests = list(row["test_list"])
    setup = row.get("test_setup_code") or "\n".join(row.get("test_imports") or ())
    called = [
        node.func.id
        for test in tests
        for node in ast.walk(ast.parse(test.strip()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    ]
    defined = set(re.findall(r"^def\s+(\w+)", row.get("code") or "", re.MULTILINE))
    names = [name for name in called if name in defined]
    names += [name for name in called if name not in vars(builtins)]
    if not names:
        raise UnscorableError(f"no assertion of the row calls a function: {tests!r:.200}")
    return {"format": "assert", "entry_point": names[0], "setup": setup, "test": "\n".join(tests)}


def from_apps(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tests of a row of APPS: `input_output`, JSON in a text, of either of its modes.

    With `fn_name` they are calls, whose expectations are lists of one; without, what is read and printed.
    """
    both = row["input_output"]
    try:
        found = json.loads(both, parse_int=_whole) if isinstance(both, str) and both.strip() else both or {}
    except ValueError as error:
        raise UnscorableError(f"the row's input_output is not JSON: {error}") from error
    inputs, outputs = found.get("inputs") or [], found.get("outputs") or []
    if not inputs or len(inputs) != len(outputs):
        raise UnscorableError(
            f"the row has {len(inputs)} inputs and {len(outputs)} outputs; wanted as many, of at least 1"
        )
    name = found.get("fn_name")
    if name is None:
        cases = [
            {"stdin": _as_text(one), "stdout": _as_text(two)}
            for one, two in zip(inputs, outputs, strict=True)
        ]
        return {"format": "stdin", "cases": cases, "compare": "floats"}
    calls = [
        {
            "args": args,
            "expected": expected[0] if isinstance(expected, list) and len(expected) == 1 else expected,
        }
        for args, expected in zip(inputs, outputs, strict=True)
    ]
    return {"format": "function", "entry_point": name, "cases": calls, "tuples_are_lists": True}


def _whole(digits: str) -> int:
    """Read an integer; of APPS, some have more than the 4300 digits that Python reads."""
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"an integer has more than {MAX_DIGITS:,} digits")
    return int(digits) if len(digits) < 4300 else int(decimal.Decimal(digits))


def _as_text(lines: Any) -> str:
    return lines if isinstance(lines, str) else "\n".join(map(str, lines))


CONVERTERS = {"humaneval": from_humaneval, "mbpp": from_mbpp, "apps": from_apps}
"""What `reward.options.data_set` can name: from a row's columns to its tests."""
REFERENCE_COLUMNS = {"humaneval": "test", "mbpp": "test_list", "apps": "input_output"}
"""The column that is `problems.reference` where the rows are those of such a data set."""
