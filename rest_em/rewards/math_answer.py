"""The reward `math_answer`: whether two answers mean the same, strictly.

An answer is found here and read by `math_notation`. Most pairs are settled by exact checks (`math_rules`).
What is left goes to math-verify, within bounds on size, in a process that can be killed (`math_process`). No
answer is ever evaluated as code. What is stricter than math-verify, and why, is in docs/math_answers.md.
"""

from __future__ import annotations

import re
from typing import Any

from rest_em.errors import UnscorableError
from rest_em.rewards.answers import final_answer, is_marked, last_line, last_number
from rest_em.rewards.math_notation import Answer, is_text, read_answer
from rest_em.rewards.math_process import JudgeKilledError, MathProcess
from rest_em.rewards.math_rules import HEDGE, in_one_form, settle
from rest_em.types import Outcome, Problem, Solution

MAX_CHARACTERS = 1000
MAX_TAIL = 4000
"""Characters of a solution's end in which an unmarked answer is looked for."""
MAX_DEPTH = 20
"""Brackets in one another."""
MAX_DIGITS = 60
"""Of a number that goes to math-verify; longer ones are compared as text and as fractions alone."""
MAX_EXPONENT, MAX_FACTORIAL = 1000, 1000
MAX_CACHED = 200_000

_SPAN = re.compile(r"\$\$(.+?)\$\$|(?<!\\)\$([^$\n]+?)(?<!\\)\$|\\\[(.+?)\\\]|\\\(([^\n]+?)\\\)", re.DOTALL)
_PROSE_WORD = re.compile(r"(?<![\\A-Za-z{])[A-Za-z]{2,}(?![A-Za-z}])")


def math_answer(problem: Problem, solution: Solution) -> Outcome:
    """Say whether the final answer means what the reference means.

    Raises:
        UnscorableError: the reference cannot be read, or does not equal itself.
    """
    gold = gold_text(problem)
    found = found_answer(solution.text)
    if found is None:
        return Outcome(0.0, "no answer")
    is_equal, why = JUDGE.compare(gold, found)
    return Outcome(1.0, "") if is_equal else Outcome(0.0, why or "wrong")


def normalized(text: str) -> str | None:
    """Return the final answer of a solution as majority votes show it; None where there is none."""
    found = found_answer(text)
    if found is None or len(found) > MAX_CHARACTERS:
        return found if found is None else found[:MAX_CHARACTERS]
    answer = read_answer(found)
    return str(answer.number) if answer.number is not None and not answer.unit else answer.text or None


def found_answer(text: str) -> str | None:
    """Return the final answer of a solution: as `final_answer`, but of an unmarked last line its mathematics.

    >>> found_answer("Then 2.\\nWe find that $x < 3$."), found_answer("She has 18 apples.")
    ('x < 3', '18')
    """
    if is_marked(text):
        return final_answer(text)
    tail = text.rstrip()[-MAX_TAIL:]
    line = last_line(tail)
    if line is not None and HEDGE.search(line):
        return line
    spans = [span for span in _SPAN.finditer(tail) if "\n" not in tail[span.end() :].strip(" .,;\n")]
    if spans and not re.search(r"\d", tail[spans[-1].end() :]):
        return next(group for group in spans[-1].groups() if group is not None).strip() or None
    if line is None:
        return None
    numbers = re.findall(r"\d[\d,]*(?:\.\d+)?(?:/\d+)?", line)
    if len(numbers) == 1 and len(_PROSE_WORD.findall(line)) > 1 and not read_answer(line).unit:
        value = last_number(line)
        return line if value is None else str(value)
    return line


def gold_text(problem: Problem) -> str:
    """Return the reference's answer: what a gold solution ends with, or the reference itself.

    Raises:
        UnscorableError: there is none.
    """
    reference: Any = problem.reference
    if isinstance(reference, bool) or not isinstance(reference, str | int | float):
        raise UnscorableError(
            f"the reference is of type {type(reference).__name__}; wanted a text or a number"
        )
    text = str(reference).strip()
    marked = "\\boxed" in text or "\\fbox" in text or "####" in text or len(text.splitlines()) > 1
    found = final_answer(text) if marked else text
    if not found:
        raise UnscorableError(f"the reference is {text[:80]!r}; wanted an answer")
    return found


def check_gold(problem: Problem) -> None:
    """Check that a problem's reference can be judged by.

    Raises:
        UnscorableError: it cannot be read, or does not equal itself.
    """
    gold = gold_text(problem)
    why = JUDGE.refuse_gold(gold)
    if why:
        raise UnscorableError(f"the reference is {gold[:80]!r}: {why}")


class Judge:
    """Compares answers; what it has compared it remembers."""

    def __init__(self) -> None:
        """Start nothing yet."""
        self._process = MathProcess()
        self._known: dict[tuple[str, str], tuple[bool, str]] = {}
        self._refused: dict[str, str] = {}

    def start(self) -> None:
        """Start what mathematics needs, so that the first answer does not wait for it."""
        self._process.start()

    def compare(self, gold: str, answer: str) -> tuple[bool, str]:
        """Say whether an answer means what the gold answer means, and why not.

        Raises:
            UnscorableError: the gold answer cannot be read.
        """
        if len(gold) > MAX_CHARACTERS:
            raise UnscorableError(f"the reference's answer has more than {MAX_CHARACTERS:,} characters")
        if len(answer) > MAX_CHARACTERS:
            return False, f"the answer has more than {MAX_CHARACTERS:,} characters"
        key = (gold, answer)
        if key not in self._known:
            if len(self._known) >= MAX_CACHED:
                self._known.clear()
            why = self.refuse_gold(gold)
            if why:
                raise UnscorableError(f"the reference is {gold[:80]!r}: {why}")
            one, other = read_answer(gold), read_answer(answer)
            normal = (one.text, other.text)
            if normal not in self._known:
                self._known[normal] = self._compare(one, other)
            self._known[key] = self._known[normal]
        return self._known[key]

    def is_same(self, one: str, other: str) -> bool:
        """Say whether two answers are one in a majority vote."""
        try:
            return self.compare(one, other)[0]
        except UnscorableError:
            return one == other

    def refuse_gold(self, gold: str) -> str:
        """Say why a gold answer cannot be judged by; empty where it can.

        It must be readable, within the bounds, and equal to itself.
        """
        if gold not in self._refused:
            if len(self._refused) >= MAX_CACHED:
                self._refused.clear()
            self._refused[gold] = self._refuse_gold(gold)
        return self._refused[gold]

    def _refuse_gold(self, gold: str) -> str:
        if len(gold) > MAX_CHARACTERS:
            return f"it has more than {MAX_CHARACTERS:,} characters"
        answer = read_answer(gold)
        if answer.number is not None or is_text(answer.text):
            return ""
        bound = out_of_bounds(answer.text)
        if bound:
            return bound
        try:
            reply = self._process.ask({"gold": answer.value_text})
        except JudgeKilledError as error:
            return str(error)
        if not reply.get("is_gold_read"):
            return "it is no mathematics that can be read"
        return "" if reply["is_equal"] else "it does not equal itself"

    def close(self) -> None:
        """End the processes."""
        self._process.close()

    def _compare(self, gold: Answer, answer: Answer) -> tuple[bool, str]:
        gold, answer = in_one_form(gold, answer)
        settled = settle(gold, answer)
        if settled is not None:
            return settled, ""
        why = out_of_bounds(answer.text)
        if why:
            return False, why
        try:
            reply = self._process.ask({"gold": gold.value_text, "answer": answer.value_text})
        except JudgeKilledError as error:
            return False, str(error)
        return bool(reply["is_equal"]), ""


JUDGE = Judge()
"""One for each process: its own process starts with the first question that needs it."""


def out_of_bounds(text: str) -> str:  # noqa: PLR0911
    """Say why an answer is not given to math-verify; empty where it can be."""
    if len(text) > MAX_CHARACTERS:
        return f"it has more than {MAX_CHARACTERS:,} characters"
    depth = deepest = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    if deepest > MAX_DEPTH:
        return f"it has more than {MAX_DEPTH} brackets in one another"
    digits = re.findall(r"\d+", text)
    if any(len(one) > MAX_DIGITS for one in digits):
        return f"it has a number of more than {MAX_DIGITS} digits"
    for exponent in re.findall(r"(?:\^|\*\*)\s*\{?\s*\(?-?(\d+)", text):
        if int(exponent) > MAX_EXPONENT:
            return f"it has an exponent above {MAX_EXPONENT:,}"
    if re.search(r"\^\s*\{?[^{}^]*(?:\{[^{}^]*\}[^{}^]*)*\^[^^]*\^", text):
        return "it has a tower of powers"
    if "!" in text or "binom" in text or "choose" in text:
        if re.search(r"[)}]\s*!|!\s*!", text):
            return "it has a factorial of an expression"
        if any(int(one) > MAX_FACTORIAL for one in digits):
            return f"it has a factorial or binomial of a number above {MAX_FACTORIAL:,}"
    return ""
