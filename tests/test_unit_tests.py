"""The reward `unit_tests`: its verdicts, the comparison of values, and what it does when the sandbox fails."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from rest_em.errors import RewardError, UnscorableError
from rest_em.rewards.sandbox.isolation import Limits
from rest_em.rewards.unit_tests import WEAKER, UnitTests, is_same
from rest_em.types import Outcome, Problem, Solution

SQUARES = {
    "format": "function",
    "entry_point": "squares",
    "cases": [{"args": [n], "expected": [i * i for i in range(n)]} for n in (0, 1, 3)],
}
RIGHT = "def squares(n):\n    return [i * i for i in range(n)]\n"
SUM = {
    "format": "stdin",
    "cases": [{"stdin": "1 2\n", "stdout": "3\n"}, {"stdin": "-1 1\n", "stdout": "0\n"}],
}
LOOP = {
    "format": "assert",
    "entry_point": "squares",
    "test": "for n in range(4):\n    assert squares(n) == [i * i for i in range(n)]\n",
}
"""A test that is more than assertions about literals, so that it runs in a process of its own."""


@pytest.fixture(scope="module")
def reward() -> Iterator[UnitTests]:
    judge = UnitTests(cpu_seconds=2.0, program="text")
    yield judge
    judge.close()


def _judge(reward: UnitTests, tests: Any, program: str) -> Outcome:
    solution = Solution("p", index=0, iteration=0, text=program, token_ids=(), finish_reason="eos")
    return reward(Problem("p", prompt="", reference=tests), solution)


@pytest.mark.parametrize("tests", [SQUARES, LOOP])
def test_a_right_program_is_correct_and_says_nothing(reward: UnitTests, tests: Any) -> None:
    assert _judge(reward, tests, RIGHT) == Outcome(1.0, "")


@pytest.mark.parametrize(
    ("tests", "program", "said"),
    [
        (SQUARES, "def squares(n):\n    return list(range(n))", "wrong answer: case 3 of 3: returned [0, 1, 2]"),
        (SQUARES, "def squares(n):\n    return [bool(i) for i in range(n)]", "wrong answer: case 2 of 3"),
        (SQUARES, "def square(n): pass", "exception: case 1 of 3: the program does not define squares"),
        (SQUARES, "squares = 3", "does not define as a function squares"),
        (SQUARES, "def squares(n):\n    return 1 / 0", "exception: case 1 of 3: ZeroDivisionError: division by zero"),
        (SQUARES, "def squares(n)\n", "SyntaxError"),
        (SQUARES, "import nothing_such", "ModuleNotFoundError"),
        (SQUARES, "x = '\udc80'", "UnicodeEncodeError"),
        (SQUARES, "x = 1\x00", "null bytes"),
        (SQUARES, "raise SystemExit(3)", "exit: case 1 of 3: exit status 3 while it was loaded"),
        (SQUARES, "def squares(n):\n    exit()", "exit: case 1 of 3: exit status 0 in a call"),
        (SQUARES, "import os\ndef squares(n):\n    os._exit(0)", "exit: it left with exit status 0 in case 1 of 3"),
        (SQUARES, "def squares(n):\n    while True: pass", "CPU time: stopped in case 1 of 3"),
        (SQUARES, "import time\ndef squares(n):\n    time.sleep(99)", "wall time: stopped in case 1 of 3"),
        (SQUARES, "def squares(n):\n    return bytearray(2 << 30)", "memory: case 1 of 3: MemoryError"),
        (SQUARES, "def squares(n):\n    return [0] * 10_000_000", "wrong answer: case 1 of 3: it returned what is too large"),
        (LOOP, "def squares(n):\n    return list(range(n))", "wrong answer: AssertionError"),
        (LOOP, "def squares(n):\n    raise KeyError(n)", "exception: KeyError"),
        (LOOP, "def squares(n):\n    return None", "wrong answer: AssertionError"),
        (LOOP, "import os\ndef squares(n):\n    os._exit(0)", "exit: it left with exit status 0 before"),
        (LOOP, "def squares(n):\n    while True: pass", "CPU time: stopped in a call"),
        (LOOP, "def squares(n):\n    return squares", "wrong answer: it returned what is of type function"),
        (SUM, "print(3)", "wrong answer: in case 2 of 2: printed '3\\n', wanted '0\\n'"),
        (SUM, "a, b = map(int, input().split())\nprint(a + b)\nraise ValueError", "exception: it left with exit status 1"),
        (SUM, "a, b = map(int, input().split())\nprint(a + b)\nexit(3)", "exit: it left with exit status 3"),
        (SUM, "import time\ntime.sleep(1.6)\nprint(eval('+'.join(input().split())))", "wall time: stopped in case 2"),
        (SUM, "while True:\n    print('x' * 1000)", "output: stopped in case 1 of 2"),
    ],
)  # fmt: skip
def test_a_wrong_program_is_refused_with_its_reason(
    reward: UnitTests, tests: Any, program: str, said: str
) -> None:
    outcome = _judge(reward, tests, program)
    assert outcome.reward == 0.0
    assert said in outcome.reason


@pytest.mark.parametrize(
    "program",
    ["a, b = map(int, input().split())\nprint(a + b, '  \\n\\n')", "import sys\nprint(sum(map(int, sys.stdin.read().split())))\nsys.exit()",
     "import os\nos.write(1, str(sum(map(int, os.read(0, 99).split()))).encode())",
     "print(sum(map(int, open(0).read().split())))\nexit(0)",
     "print(sum(map(int, open('/dev/stdin').read().split())), file=open('/dev/stdout', 'w'))",
     "import sys\nsys.stderr.write('x' * (32 << 20))\nprint(sum(map(int, input().split())))",
     "def main():\n    print(sum(map(int, input().split())))\nif __name__ == '__main__':\n    main()"],
)  # fmt: skip
def test_scripts_may_read_and_print_in_any_way(reward: UnitTests, program: str) -> None:
    assert _judge(reward, SUM, program) == Outcome(1.0, "")


@pytest.mark.parametrize(
    ("compare", "printed", "wanted", "is_right"),
    [
        ("lines", "a b  \nc\n\n", "a b\nc", True),
        ("lines", "a  b", "a b", False),
        ("lines", "2.0", "2", False),
        ("exact", "a\n", "a", False),
        ("tokens", "a\nb", "a  b", True),
        ("floats", "0.3333333", "0.33333333", True),
        ("floats", "0.333", "0.33333333", False),
        ("floats", "2.0", "2", False),
        ("floats", "1000000.5", "1e6", True),
        ("floats", "nan", "1.5", False),
    ],
)
def test_output_is_compared_as_the_tests_say(
    reward: UnitTests, compare: str, printed: str, wanted: str, is_right: bool
) -> None:
    tests = {"format": "stdin", "compare": compare, "cases": [{"stdin": "", "stdout": wanted}]}
    assert _judge(reward, tests, f"print({printed!r}, end='')").reward == is_right


@pytest.mark.parametrize(
    ("value", "expected", "equality", "is_right"),
    [
        (1, 1.0, "strict", True),
        (True, 1, "strict", False),
        (1, True, "strict", False),
        ([1, (2,)], [1, [2]], "strict", False),
        ([1, (2,)], [1, [2]], "lists", True),
        ([True], [1], "lists", False),
        ({"a": 1}, {"a": True}, "strict", False),
        ({1: "a"}, {True: "a"}, "strict", False),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, "strict", True),
        ({1, 2}, {2, 1}, "strict", True),
        (math.nan, math.nan, "strict", False),
        ("1", 1, "strict", False),
        (None, 0, "strict", False),
        (b"a", "a", "strict", False),
    ],
)
def test_values_are_equal_in_their_types_too(
    value: Any, expected: Any, equality: Any, is_right: bool
) -> None:
    assert is_same(value, expected, equality) is is_right


def test_the_frames_around_a_program_do_not_tell_what_is_expected(reward: UnitTests) -> None:
    spy = """
import sys
def f(n):
    frame, seen = sys._getframe(1), []
    while frame:
        seen.append(sorted((k, repr(v)) for k, v in frame.f_locals.items() if k != "process" and not k.startswith("__") and "0x" not in repr(v)))
        frame = frame.f_back
    raise ValueError(hash(repr(seen)) if n else repr(seen))
"""
    told = {
        _judge(
            reward, {"format": "function", "entry_point": "f", "cases": [{"args": [0], "expected": one}]}, spy
        ).reason
        for one in (True, False, [1], "some other value", 10**12)
    }
    assert len(told) == 1
    assert "max_bytes" in told.pop()


def test_what_a_test_needs_of_the_program_is_judged_in_its_process_only_where_that_is_allowed(
    reward: UnitTests,
) -> None:
    tests = {"format": "assert", "entry_point": "value", "test": "assert value(Node(3)) == 3"}
    program = (
        "class Node:\n    def __init__(self, v):\n        self.v = v\ndef value(node):\n    return node.v\n"
    )
    with pytest.raises(UnscorableError, match=r"use Node of the program.*allow_same_process"):
        _judge(reward, tests, program)
    weaker = UnitTests(cpu_seconds=2.0, program="text", allow_same_process=True)
    try:
        assert _judge(weaker, tests, program) == Outcome(1.0, WEAKER)
        refused = _judge(weaker, tests, program.replace("node.v", "4"))
        assert refused.reward == 0.0
        assert refused.reason.startswith("wrong answer: ")
        assert _judge(weaker, tests, "import os\nos._exit(0)").reward == 0.0
        assert _judge(weaker, LOOP, RIGHT) == Outcome(1.0, ""), "what can be judged apart still is"
        lies = "class E:\n    def __eq__(self, other): return True\ndef squares(n):\n    return E()\n"
        assert _judge(weaker, LOOP, lies).reward == 0.0, "a program cannot choose the weaker mode"
    finally:
        weaker.close()


def test_a_test_that_passes_what_is_no_data_needs_the_program(reward: UnitTests) -> None:
    tests = {"format": "assert", "entry_point": "f", "test": "assert f([1, 'a'], int) == 1"}
    with pytest.raises(UnscorableError, match="pass an argument of type type"):
        _judge(reward, tests, "def f(values, kind):\n    return sum(type(one) is kind for one in values)")


@pytest.mark.parametrize(
    ("test", "said"),
    [
        ("for n in range(0):\n    assert squares(n) == []", "without a call of squares"),
        ("assert squares(1) == wanted.value\nimport wanted", "name 'wanted' is not defined"),
        (
            "for n in (1,):\n    assert squares(n) == undefined_squares(n)\n    undefined_squares = 1",
            "undefined_squares",
        ),
    ],
)
def test_a_test_that_is_broken_says_nothing_of_a_program(reward: UnitTests, test: str, said: str) -> None:
    with pytest.raises(UnscorableError, match=said):
        _judge(reward, {"format": "assert", "entry_point": "squares", "test": test}, RIGHT)


@pytest.mark.parametrize("returned", ["x y", "nope", "__import__('nope')", "1 +"])
def test_what_a_test_evaluates_of_the_program_is_the_programs_own_fault(
    reward: UnitTests, returned: str
) -> None:
    tests = {"format": "assert", "entry_point": "f", "test": "for n in [1]:\n    assert eval(f(n)) == 2"}
    assert _judge(reward, tests, f"def f(n):\n    return {returned!r}").reward == 0.0


def test_what_depends_on_the_order_of_a_set_is_the_same_each_time() -> None:
    tests = {"format": "function", "entry_point": "f", "cases": [{"args": [], "expected": 0}]}
    found = set()
    for _ in range(3):
        judge = UnitTests(cpu_seconds=5.0, program="text")
        found.add(_judge(judge, tests, "def f():\n    return list({'a', 'b', 'c', 'd', 'e', 'f'})").reason)
        judge.close()
    assert len(found) == 1


def test_errors_that_a_program_should_raise_reach_its_test(reward: UnitTests) -> None:
    test = "try:\n    f(-1)\nexcept ValueError:\n    pass\nelse:\n    assert False\nassert f(1) == 1"
    tests = {"format": "assert", "entry_point": "f", "test": test}
    right = "class Bad(ValueError): pass\ndef f(n):\n    if n < 0: raise Bad('negative')\n    return n"
    assert _judge(reward, tests, right).reward == 1.0
    assert _judge(reward, tests, "def f(n):\n    return n").reward == 0.0
    assert _judge(reward, tests, "def f(n):\n    raise AssertionError").reward == 0.0
    assert _judge(reward, tests, "def f(n):\n    raise SystemExit").reward == 0.0


def test_a_method_of_solution_is_an_entry_point(reward: UnitTests) -> None:
    program = "class Solution:\n    def squares(self, n):\n        return [i * i for i in range(n)]\n"
    assert _judge(reward, SQUARES, program).reward == 1.0


def test_a_sandbox_that_dies_is_replaced(reward: UnitTests) -> None:
    assert _judge(reward, LOOP, RIGHT).reward == 1.0
    for sandbox in reward._sandboxes.values():
        os.kill(sandbox._process.pid, signal.SIGKILL)
    assert _judge(reward, LOOP, RIGHT) == Outcome(1.0, "")


@pytest.fixture
def busy_core() -> Iterator[None]:
    """Put this process, and what it starts, on one core, which two others keep busy."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    hogs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        yield
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()
        os.sched_setaffinity(0, cores)


@pytest.mark.usefixtures("busy_core")
def test_a_program_that_the_machine_keeps_from_ending_in_time_is_run_again_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    judge = UnitTests(cpu_seconds=2.0, program="text")
    monkeypatch.setattr(judge, "_limits", Limits(cpu_seconds=2.0, wall_seconds=0.5, memory_bytes=2**30))
    try:
        works = "import time\nwhile time.process_time() < 0.4: pass\n" + RIGHT
        assert _judge(judge, SQUARES, works) == Outcome(1.0, "")
        waits = "import time\ntime.sleep(0.7)\n" + RIGHT
        assert _judge(judge, SQUARES, waits).reason.startswith("wall time: stopped in case 1 of 3")
    finally:
        judge.close()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"program": "fence"},
            "reward.options.program: unknown name 'fence'; wanted block, text, completion",
        ),
        ({"data_set": "apss"}, "reward.options.data_set: unknown name 'apss'"),
        ({"packages": ["no_such_package"]}, "reward.options.packages: there is no package 'no_such_package'"),
    ],
)
def test_options_that_are_none_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(RewardError, match=said):
        UnitTests(cpu_seconds=2.0, **options)


def test_rows_of_a_data_set_are_judged_as_they_are() -> None:
    judge = UnitTests(cpu_seconds=2.0, data_set="humaneval", program="completion")
    prompt = (
        'from typing import List\n\n\ndef squares(n: int) -> List[int]:\n    """The first n squares."""\n'
    )
    problem = Problem(
        "HumanEval/x",
        prompt="Complete this: ...",
        reference="def check(candidate):\n    assert candidate(3) == [0, 1, 4]\n",
        metadata={"prompt": prompt, "entry_point": "squares"},
    )
    try:
        for text, is_right in (("    return [i * i for i in range(n)]\n", 1.0), ("    return None\n", 0.0)):
            assert judge(problem, Solution("x", 0, 0, text, (), "eos")).reward == is_right
        with pytest.raises(UnscorableError, match="no row of humaneval"):
            judge(Problem("y", prompt="", reference="assert True"), Solution("y", 0, 0, "", (), "eos"))
    finally:
        judge.close()


def test_packages_that_are_named_can_be_imported_and_no_others() -> None:
    judge = UnitTests(cpu_seconds=5.0, program="text", packages=["yaml"])
    tests = {"format": "stdin", "cases": [{"stdin": "", "stdout": "{'a': 1}"}]}
    try:
        assert _judge(judge, tests, "import yaml\nprint(yaml.safe_load('a: 1'))").reward == 1.0
        assert "ModuleNotFoundError" not in _judge(judge, tests, "print({'a': 1})").reason
        assert _judge(judge, tests, "import numpy\nprint({'a': 1})").reward == 0.0
    finally:
        judge.close()
