"""Answers that mean the same, and what tries to stall, to blow up or to run something on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from math_pairs import PAIRS
from process_watch import is_gone_within
from typer.testing import CliRunner

import rest_em
from rest_em.cli import app
from rest_em.errors import UnscorableError
from rest_em.evaluation import VoteClass, vote_classes
from rest_em.recipe import RewardSection
from rest_em.rewards.answers import exact_match, option, option_match
from rest_em.rewards.math_answer import JUDGE, Judge, check_gold, found_answer, math_answer, normalized
from rest_em.rewards.registry import same_answer_of
from rest_em.types import Outcome, Problem, Solution


@pytest.fixture(scope="module", autouse=True)
def _started() -> None:
    JUDGE.start()


def judge(gold: Any, text: str) -> Outcome:
    return math_answer(Problem("p", "", gold), Solution("p", 0, 0, text, (), "eos"))


@pytest.mark.parametrize(("gold", "answer", "is_same", "kind"), PAIRS, ids=lambda value: str(value)[:20])
def test_answers_are_the_same_only_if_they_mean_the_same(
    gold: str, answer: str, is_same: bool, kind: str
) -> None:
    assert JUDGE.compare(gold, answer)[0] is is_same, kind


def test_an_answer_is_the_same_as_itself() -> None:
    golds = {gold for gold, *_ in PAIRS}
    assert [gold for gold in golds if not JUDGE.compare(gold, gold)[0]] == []


@pytest.mark.parametrize(
    ("gold", "text", "reward"),
    [
        (r"\frac{1}{2}", r"So $\boxed{3}$. No: $\boxed{\frac{1}{2}}$.", 1.0),
        (r"\frac{1}{2}", r"So $\boxed{\frac{1}{2}}$. No: $\boxed{3}$.", 0.0),
        (r"\frac{1}{2}", r"\boxed{0.5} and \boxed{3", 1.0),
        (r"thus $\boxed{x^2-1}$", "The answer is $(x-1)(x+1)$.", 1.0),
        ("She has 2 + 2\n#### 1,024", "... #### 1024", 1.0),
        ("4", "", 0.0),
        ("4", "the answer is", 0.0),
        (4, "4.0", 1.0),
    ],
)
def test_the_final_answer_is_what_counts(gold: Any, text: str, reward: float) -> None:
    assert judge(gold, text).reward == reward


NASTY = [
    "9^{9^{9^{9}}}", "9^9^9^9", "100000000!", "((999!)!)!", r"\binom{100000000}{50000000}", "10^{10^{10}}",
    "(" * 10_000 + "1" + ")" * 10_000, r"\frac{1}{" * 5_000 + "1" + "}" * 5_000, "(x+y+z+w)^{999}",
    "1+" * 1_000_000 + "1", "x" * 3_000_000, "9" * 3_000_000, r"\boxed{" * 3_000, "$" * 100_000, "####" * 100_000,
    r"\prod_{i=1}^{1000} i^i", r"\tan(10^{1000})", "1e999999999", "0." + "1" * 5_000, "½" * 100_000,
    r"\text{" * 50_000, "1, " * 50_000, "-" * 100_000 + "1", "1/" * 50_000 + "1", "0.\\overline{" + "3" * 5_000 + "}",
]  # fmt: skip


@pytest.mark.parametrize("nasty", NASTY, ids=lambda text: text[:12])
def test_no_answer_and_no_reference_takes_long(nasty: str) -> None:
    for gold, text in (("x+1", f"The answer is {nasty}"), (nasty, "The answer is x+1")):
        started = time.monotonic()
        try:
            assert judge(gold, text).reward == 0.0
        except UnscorableError:
            assert gold is nasty
        assert time.monotonic() - started < 2.0
    assert judge("x+1", "1+x").reward == 1.0


def test_an_answer_that_takes_much_memory_is_refused_and_the_next_one_judged() -> None:
    own = Judge()
    try:
        assert (
            own.compare("x+1", r"\det\begin{pmatrix}" + "&".join(["(x+1)^{900}"] * 30) + r"\end{pmatrix}")[0]
            is False
        )
        assert own.compare("x+1", "1+x")[0]
    finally:
        own.close()


@pytest.mark.parametrize(
    "text",
    ["__import__('os').system('touch {path}')", r"\text{__import__('os').system('touch {path}')}",
     "open('{path}', 'w')", "exec(open('{path}', 'w'))", "lambda: open('{path}', 'w')", "(1).__class__", "{path!r}"],
)  # fmt: skip
def test_no_answer_is_run_as_code(tmp_path: Path, text: str) -> None:
    path = tmp_path / "made"
    hostile = text.replace("{path}", str(path))
    assert JUDGE.compare("5", hostile)[0] is False
    assert JUDGE.compare("x^2", hostile)[0] is False
    assert not path.exists()


def test_any_thread_may_ask() -> None:
    found: list[bool] = []

    def ask(number: int) -> None:
        found.extend(JUDGE.compare(f"x^2+{number}", f"{number}+x^2")[0] for _ in range(5))
        found.append(not JUDGE.compare(f"x^2+{number}", "10^{10^{10}}")[0])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 48


OWNER = """
from rest_em.rewards.math_process import MathProcess
process = MathProcess()
process.ask({"gold": "x", "answer": "y"})
print(process._first.pid, process._judge, flush=True)
process.ask({"gold": "x", "answer": "10^{10^{10}}"})
"""


def test_a_killed_owner_leaves_no_process() -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(rest_em.__file__).parents[1])}
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, env=environment)
    assert owner.stdout is not None
    processes = [int(one) for one in owner.stdout.readline().split()]
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    owner.stdout.close()
    assert len(processes) == 2
    assert all(is_gone_within(one, 2.0) for one in processes)


def test_a_judge_that_is_killed_is_replaced() -> None:
    own = Judge()
    try:
        assert own.compare("x+1", "1+x")[0]
        os.kill(own._process._judge, signal.SIGKILL)
        assert own.compare("x+2", "2+x")[0]
        assert own._process._first is not None
        own._process._first.kill()
        assert own.compare("x+3", "3+x")[0]
    finally:
        own.close()


@pytest.mark.parametrize(
    ("gold", "said"),
    [(None, "NoneType"), ("", "wanted an answer"), ("9^{9^{9^{9}}}", "tower of powers"), ("x" * 2_000, "1,000 characters"),
     ("(" * 30 + "x" + ")" * 30, "brackets"), ("100000000!", "factorial"), (True, "bool")],
)  # fmt: skip
def test_a_reference_that_cannot_be_judged_by_is_unscorable(gold: Any, said: str) -> None:
    with pytest.raises(UnscorableError, match=said):
        check_gold(Problem("p", "", gold))
    with pytest.raises(UnscorableError, match=said):
        judge(gold, "5")


def test_check_tells_of_references_that_cannot_be_judged_by(tmp_path: Path) -> None:
    import tiny_run

    recipe = tiny_run.write_recipe(tmp_path, tmp_path)
    (tmp_path / "config.json").write_text("{}")
    rows = [
        {"id": f"t{k}", "question": f"t{k}", "answer": gold}
        for k, gold in enumerate(["7", "9^9^9^9", "(" * 30])
    ]
    import json

    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = CliRunner().invoke(app, ["check", str(recipe), "--set", "reward=math_answer"])
    assert done.exit_code == 0, done.output
    assert "unscorable: 2 of 3 test problems" in done.output
    assert "t1: the reference is '9^9^9^9': it has a tower of powers" in done.output


def test_votes_for_answers_that_mean_the_same_are_one_class() -> None:
    same = same_answer_of(RewardSection(name="math_answer"))
    votes = {"1/2": 2, "x+1": 3, r"\frac{2}{4}": 2, "1+x": 1, "0.5": 1}
    assert vote_classes(votes, {"1/2": 2, r"\frac{2}{4}": 2, "0.5": 1}, same) == [
        VoteClass(5, 5),
        VoteClass(4, 0),
    ]
    assert same_answer_of(RewardSection(name="number")) is None


def test_the_answer_that_votes_is_in_one_notation() -> None:
    assert normalized("0.50.") == "1/2"
    assert normalized(r"\boxed{\dfrac{1}{2}}") == "1/2"
    assert normalized(r"\boxed{ x + 1 }") == "x+1"
    assert normalized("") is None


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("So the answer is (A).", "A"), ("The answer is B.", "B"), ("the answer is (c) because (c) is larger", "C"),
        (r"\boxed{\text{(D)}}", "D"), ("#### E", "E"), ("Answer: B) a cat", "B"), ("**C**", "C"), ("b", "B"), ("b)", "B"),
        ("A or B", None), ("(A) or (B)", None), ("The answer is A and C", None), ("The answer is A, B", None),
        ("42", None), ("", None), ("An apple", None), ("the answer is", None), ("I think so", "I"),
    ],
)  # fmt: skip
def test_an_option_is_one_letter(text: str, letter: str | None) -> None:
    assert option(text) == letter


def test_multiple_choice_compares_letters() -> None:
    for gold in ("(B)", "B", "b", r"\text{(B)}"):
        problem = Problem("p", "", gold)
        assert option_match(problem, Solution("p", 0, 0, "The answer is (B).", (), "eos"))
        assert not option_match(problem, Solution("p", 0, 0, "The answer is (A).", (), "eos"))
    with pytest.raises(UnscorableError, match="option's letter"):
        option_match(Problem("p", "", "Paris"), Solution("p", 0, 0, "(A)", (), "eos"))


@pytest.mark.parametrize(
    "target", ["] ) >", "> ) ]", "True", "valid", "yes", "(C)", "costume counterpart day", "-57"]
)
def test_answers_of_reasoning_tasks_are_compared_as_text(target: str) -> None:
    for end in (".", ""):
        solution = Solution("p", 0, 0, f"Let us see.\nSo the answer is {target}{end}", (), "eos")
        assert exact_match(Problem("p", "", target), solution)
        assert not exact_match(Problem("p", "", f"{target} x"), solution)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("x > 3", "x > 3"),
        (r"\pi \cdot 4", r"\pi \cdot 4"),
        ("She has 18 apples.", "18"),
        ("So\n$$\nx + 9\n$$\n", "x + 9"),
        ("$$", None),
    ],
)
def test_a_formula_is_not_taken_for_prose_with_one_number(line: str, found: str | None) -> None:
    assert found_answer(line) == found
