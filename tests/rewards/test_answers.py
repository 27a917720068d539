"""Where answers are found, and what the built-in rewards make of them."""

from __future__ import annotations

import math
from typing import Any

import pytest

from rest_em.errors import UnscorableError
from rest_em.rewards.answers import (
    EXTRACTORS,
    boxed,
    boxed_match,
    exact_match,
    final_answer,
    last_line,
    number,
    number_match,
    whole_text,
)
from rest_em.types import Problem, Solution


def problem(reference: Any) -> Problem:
    return Problem("p1", prompt="?", reference=reference)


def solution(text: str) -> Solution:
    return Solution("p1", 0, 1, text, (), "eos")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("2 + 2 = 4\nThe answer is 4.", "4"),
        ("THE  ANSWER IS: Paris", "Paris"),
        ("the answer is:\n\n  7 apples.", "7 apples"),
        ("The answer is 3. No, the answer is 4", "4"),
        ("The answer is 4. I used 2 steps.", "4"),
        ("The answer is 3.5", "3.5"),
        ("so he has 5 + 5\n#### 10", "10"),
        (r"thus $\boxed{12}$ as said", "12"),
        (r"\boxed{\frac{1}{2}} and then \boxed{a \{ b", r"\frac{1}{2}"),
        (r"\boxed{1} then \boxed{\text{a {nested} one}}", r"\text{a {nested} one}"),
        (r"\boxed{x = \boxed{5}}", "5"),
        (r"The answer is \boxed{7}.", "7"),
        (r"\boxed{7}. But the answer is 8", "8"),
        ("a\nb\n\n  last  line. \n", "last line"),
        ("The answer is **$4$**.", "4"),
        ("The answer is", None),
        ("12 is it, so the answer is:\n", None),
        ("", None),
        (" \n ", None),
    ],
)
def test_the_final_answer_is_found_after_the_last_marker_or_else_in_the_last_line(
    text: str, answer: str | None
) -> None:
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12", "12"),
        ("so 3 - 4 = -1", "-1"),
        ("so 3 - 4 = \N{MINUS SIGN}1.", "-1"),
        ("10-3", "3"),
        ("about 1,234,567.50 in all", "2469135/2"),
        ("1,2345", "2345"),
        ("$1{,}234$", "1234"),
        ("-$5.00", "-5"),
        (r"\$18", "18"),
        ("50%", "50"),
        ("+7", "7"),
        (".5", "1/2"),
        ("4.", "4"),
        ("0.50", "1/2"),
        ("6/8", "3/4"),
        ("-1/3", "-1/3"),
        (r"-\frac{1}{2}", "-1/2"),
        ("1 1/2", "3/2"),
        (r"1\frac{1}{2}", "3/2"),
        ("1.5e3.", "1500"),
        ("20 / 4", "5"),
        ("The answer is 3. Then 9 more lines\n10", "3"),
        ("The answer is unknown\n10", None),
        ("3/0", None),
        ("x2 and H2O", None),
        ("no number", None),
        ("", None),
    ],
)
def test_a_number_is_read_exactly_with_its_marks_and_separators(text: str, value: str | None) -> None:
    assert number(text) == value


def test_a_box_that_is_not_closed_is_no_answer() -> None:
    assert boxed(r"so \boxed{4") is None
    assert boxed(r"first \boxed{3}, so \boxed{4") == "3"
    assert not boxed_match(problem("4"), solution(r"so \boxed{4"))


@pytest.mark.parametrize(
    ("reference", "text", "is_right"),
    [
        (r"\frac{1}{2}", r"\boxed{\dfrac{1}{2}}", True),
        (r"\frac{1}{2}", r"\boxed{0.5}", True),
        ("50", r"\boxed{50\%}", True),
        ("10,000", r"\boxed{10000}", True),
        (r"\left(1, 2\right)", r"\boxed{(1,2)}", True),
        (r"We get \boxed{3}.", r"\boxed{3}", True),
        ("12", r"\boxed{1 2}", False),
        ("1/3", r"\boxed{0.3333333}", False),
        ("(1,2)", r"\boxed{[1,2]}", False),
        ("5", r"\boxed{7 or 5}", False),
        ("5", "5", False),
    ],
)
def test_a_box_is_compared_in_notation(reference: str, text: str, *, is_right: bool) -> None:
    assert boxed_match(problem(reference), solution(text)) is is_right


def test_exact_match_is_letter_by_letter_but_for_spaces_and_marks() -> None:
    assert exact_match(problem("New York"), solution("The answer is *New  York*."))
    assert exact_match(problem("the answer is (B)"), solution("(B)"))
    assert not exact_match(problem("new york"), solution("The answer is New York"))
    assert not exact_match(problem("4"), solution("The answer is 4 apples"))
    assert exact_match(problem(4), solution("4"))


GSM8K_GOLD = "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\n48 + 24 = <<48+24=72>>72 altogether.\n#### 72"


def test_the_gold_solutions_of_gsm8k_serve_as_references() -> None:
    assert number_match(problem(GSM8K_GOLD), solution("She sold 72 clips."))
    assert not number_match(problem(GSM8K_GOLD), solution("She sold 24 clips."))
    assert number_match(problem("She paid 5,600\n#### 5,600"), solution("The answer is $5600."))


def test_equal_numbers_match_and_rounded_ones_do_not() -> None:
    assert number_match(problem("0.5"), solution("1/2"))
    assert number_match(problem(0.1), solution("0.10"))
    assert number_match(problem(4), solution("4.0"))
    assert not number_match(problem("1/3"), solution("0.333333333333"))
    assert not number_match(problem("3.14159"), solution("3.14"))


@pytest.mark.parametrize("reward", [exact_match, number_match, boxed_match])
@pytest.mark.parametrize("text", ["", " \n", "The answer is", "####"])
def test_no_answer_is_incorrect(reward: Any, text: str) -> None:
    assert not reward(problem("4"), solution(text))


@pytest.mark.parametrize(
    "reference", [None, "", True, [1], {"a": 1}, 10**1001, math.nan, "x = y", "3 or 4", "1/0"]
)
def test_a_reference_without_one_number_is_unscorable_whatever_the_solution_says(reference: Any) -> None:
    for text in ("", "4", "None", "nan", "x = y"):
        with pytest.raises(UnscorableError, match="the reference"):
            number_match(problem(reference), solution(text))


def test_a_reference_of_several_lines_is_no_final_answer() -> None:
    with pytest.raises(UnscorableError, match="one line"):
        exact_match(problem("a\nb"), solution("b"))


def test_last_line_and_text_are_tidied() -> None:
    assert last_line("a\n `b` .\n") == "b"
    assert whole_text(" a\n\tb ") == "a b"
    assert whole_text("\n") is None


HUGE = [
    "9" * 10**6,
    "1/" + "2" * 10**6 + "x",
    "1,111" * 10**5,
    "1 1/1 " * 10**5,
    r"\boxed{" * 10**5,
    "{" * 10**6 + "}" * 10**6,
    "*" * 10**6,
    "the answer is " * 10**5,
    "1e999999999",
]


@pytest.mark.parametrize("text", HUGE, ids=range(len(HUGE)))
@pytest.mark.parametrize("name", EXTRACTORS)
@pytest.mark.timeout(30)
def test_huge_texts_do_not_hang(name: str, text: str) -> None:
    EXTRACTORS[name](text)


def test_a_number_of_too_many_digits_is_no_answer() -> None:
    assert number("9" * 5000) is None
    assert number("1/" + "9" * 5000) is None
    assert not number_match(problem("7"), solution("7" * 5000))
