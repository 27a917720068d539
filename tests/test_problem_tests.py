"""Unit tests as they are stored, and the rows of data sets that become such."""

from __future__ import annotations

import json
import marshal
from typing import Any

import pytest

from rest_em.errors import UnscorableError
from rest_em.rewards.problem_tests import (
    AssertTests,
    FunctionTests,
    StdinTests,
    from_apps,
    from_humaneval,
    from_mbpp,
    parse_tests,
)


@pytest.mark.parametrize(
    ("tests", "said"),
    [
        (None, "NoneType"),
        ([], "list"),
        ("{", "not JSON"),
        ({}, "format None"),
        ({"format": "pytest"}, "format 'pytest'"),
        ({"format": "function", "entry_point": "f", "cases": []}, "no test"),
        ({"format": "function", "entry_point": "f"}, "no test"),
        ({"format": "function", "cases": [{"args": [], "expected": 1}]}, "entry_point None"),
        ({"format": "function", "entry_point": "f", "cases": [{"args": [1]}]}, "case 1"),
        ({"format": "function", "entry_point": "f", "cases": [{"args": 1, "expected": 1}]}, "args is a list"),
        ({"format": "function", "entry_point": "f", "cases": [3]}, "must be an object"),
        ({"format": "function", "entry_point": "f", "case": []}, "unknown key 'case'"),
        ({"format": "stdin", "cases": []}, "no test"),
        ({"format": "stdin", "cases": [{"stdin": "1"}]}, "must be texts"),
        ({"format": "stdin", "cases": [{"stdin": "", "stdout": ""}], "compare": "regex"}, "'regex'"),
        ({"format": "assert", "entry_point": "f", "test": " "}, "no test"),
        ({"format": "assert", "entry_point": "f", "test": "f(1)"}, "asserts or raises"),
        ({"format": "assert", "entry_point": "f", "test": "assert f(1) =="}, "no Python"),
        ({"format": "assert", "entry_point": "f", "test": "\x00"}, "no Python"),
        (
            {"format": "assert", "entry_point": "f", "setup": "assert False", "test": "f(1)"},
            "asserts or raises",
        ),
    ],
)
def test_a_problem_without_a_test_that_can_be_read_is_unscorable(tests: Any, said: str) -> None:
    with pytest.raises(UnscorableError, match=said):
        parse_tests(tests)


def test_tests_may_be_stored_as_a_text() -> None:
    stored = json.dumps({"format": "stdin", "cases": [{"stdin": "1", "stdout": "2"}]})
    assert parse_tests(stored) == StdinTests((("1", "2"),), "lines", "")


def test_assertions_about_literals_are_read_as_calls() -> None:
    test = (
        '"""Of f."""\nMETADATA = {"author": "x"}\n\ndef check(candidate):\n    assert True\n'
        "    assert candidate(1, [2.5], k='a') == (1,)\n    assert candidate(-1) == None, 'why'\n"
    )
    found = parse_tests({"format": "assert", "entry_point": "f", "test": test})
    assert isinstance(found, FunctionTests)
    assert [marshal.loads(case.call) for case in found.cases] == [((1, [2.5]), {"k": "a"}), ((-1,), {})]
    assert [case.expected for case in found.cases] == [(1,), None]


@pytest.mark.parametrize(
    ("assertion", "passing", "failing"),
    [
        ("f(1) == 2", [2, 2.0], ["2", None, 3]),
        ("f(1)", [1, "a", [0]], [0, "", None, []]),
        ("not f(1)", [0, "", None], [1, "a"]),
        ("f(1) is True", [True], [1, "True"]),
        ("f(1) is None", [None], [0, False]),
        ("f(1) != 2", [3, None], [2]),
        ("abs(f(1) - 2 / 3) < 1e-6", [2 / 3, 0.6666667], [0.667, None, "a", 10**400]),
        ("tuple(f(1)) == tuple([1, 2])", [[1, 2], (1, 2)], [[2, 1], 12, None]),
        ("set(f(1)) == {1, 2}", [[2, 1, 1]], [[1], [[1]]]),
        ("sorted(f(1)) == [1, 2]", [[2, 1]], [[2, "a"], 1]),
        ("round(f(1), 2) == 0.33", [0.333], [0.34, "0.33"]),
        ("f(1) == (3 + 5 + 7, 3 * 5 * 7, 2 ** 10, 'ab' * 2)", [(15, 105, 1024, "abab")], [(15, 105)]),
    ],
)
def test_an_assertion_that_is_read_says_what_python_would(
    assertion: str, passing: list[Any], failing: list[Any]
) -> None:
    found = parse_tests({"format": "assert", "entry_point": "f", "test": f"assert {assertion}"})
    assert isinstance(found, FunctionTests)
    (case,) = found.cases
    assert case.wanted is not None
    for values, verdict in ((passing, True), (failing, False)):
        for value in values:
            try:
                exec(f"assert {assertion}", {"f": lambda _, value=value: value})
                said = True
            except Exception:
                said = False
            assert case.wanted.holds(value) is said is verdict, value


@pytest.mark.parametrize(
    "test",
    [
        "def check(candidate):\n    assert sum(candidate(1)) < 1e-6",
        "assert f(1) == 10 ** 10 ** 10",
        "assert f(1) == 'a' * 10 ** 10",
        "assert f(1) == 2 << 3",
        "assert round(f(1), -(10 ** 9)) == 0",
        "assert f(1) % 2 == 0",
        "assert f(1) == f(2)",
        "tuple = 3\nassert tuple(f(1)) == (1,)",
        "for n in range(3):\n    assert f(n) == n",
        "x = f(1)\nassert x == 2",
        "assert f(f(1)) == 1",
        "assert f(*[1]) == 1",
        "f = 1\nassert f == 1",
        "def check(candidate):\n    assert candidate(1) == 1\ndef check(candidate):\n    pass",
        "def check(candidate, extra=f(2)):\n    assert candidate(1) == 1",
        "import math\nassert f(1) == 1",
    ],
)
def test_a_test_that_is_more_than_assertions_about_literals_is_run(test: str) -> None:
    assert isinstance(parse_tests({"format": "assert", "entry_point": "f", "test": test}), AssertTests)


def test_names_that_only_the_program_can_bring_are_told() -> None:
    test = "root = Node(1)\nroot.left = Node(2)\nassert depth(root) == 2"
    found = parse_tests({"format": "assert", "entry_point": "depth", "setup": "", "test": test})
    assert isinstance(found, AssertTests)
    assert found.needs_program == "Node"
    bound = "class Node:\n    def __init__(self, value):\n        self.value = value\n"
    found = parse_tests({"format": "assert", "entry_point": "depth", "setup": bound, "test": test})
    assert isinstance(found, AssertTests)
    assert not found.needs_program


def test_a_module_of_pythons_own_that_a_test_forgot_is_imported_for_it() -> None:
    found = parse_tests({"format": "assert", "entry_point": "f", "test": "assert f(1) == sys.getsizeof(1)"})
    assert isinstance(found, AssertTests)
    assert found.setup == "import sys\n"
    assert not found.needs_program


def test_humaneval_rows_keep_the_prompt_as_setup_for_the_functions_that_it_gives() -> None:
    row = {
        "task_id": "HumanEval/38",
        "prompt": 'def turn(s):\n    return s[::-1]\n\ndef back(s):\n    """Undo turn."""\n',
        "entry_point": "back",
        "canonical_solution": "    return s[::-1]\n",
        "test": "def check(candidate):\n    for s in ('ab', 'c'):\n        assert candidate(turn(s)) == s\n",
    }
    tests = parse_tests(from_humaneval(row))
    assert isinstance(tests, AssertTests)
    assert not tests.needs_program
    assert tests.prompt == row["prompt"]


def test_mbpp_rows_name_the_function_that_the_reference_program_defines() -> None:
    row = {
        "code": "def sum(a, b):\n    return a + b",
        "test_setup_code": "",
        "test_list": ["assert sum(1, 2) == 3"],
    }
    assert from_mbpp(row)["entry_point"] == "sum"
    assert from_mbpp({"test_list": ["assert set(f([1])) == {1}"]})["entry_point"] == "f"
    sanitized = {"test_list": ["assert math.isclose(f(1), 1)"], "test_imports": ["import math"]}
    assert from_mbpp(sanitized) == {
        "format": "assert", "entry_point": "f", "setup": "import math", "test": sanitized["test_list"][0],
    }  # fmt: skip


def test_apps_rows_are_read_in_both_modes() -> None:
    printed = {"inputs": ["1 2\n", ["3", "4"]], "outputs": ["3\n", ["7"]]}
    tests = parse_tests(from_apps({"input_output": json.dumps(printed)}))
    assert tests == StdinTests((("1 2\n", "3\n"), ("3\n4", "7")), "floats", "")
    called = {"fn_name": "f", "inputs": [[1, [2]]], "outputs": [[3]]}
    tests = parse_tests(from_apps({"input_output": json.dumps(called)}))
    assert isinstance(tests, FunctionTests)
    assert tests.equality == "lists"
    assert tests.cases[0].expected == 3


@pytest.mark.parametrize(
    "stored", ["", None, "{}", '{"inputs": [], "outputs": []}', '{"inputs": ["1"], "outputs": []}']
)
def test_apps_rows_without_a_test_are_unscorable(stored: Any) -> None:
    with pytest.raises(UnscorableError, match="inputs"):
        from_apps({"input_output": stored})


def test_apps_tests_may_hold_integers_of_any_length() -> None:
    row = {"input_output": '{"fn_name": "f", "inputs": [[' + "9" * 5000 + ']], "outputs": [[1]]}'}
    assert isinstance(parse_tests(from_apps(row)), FunctionTests)
