"""Final answers: where they stand in a text, and the built-in rewards that compare them with a gold answer.

Everything is exact and linear in the length of the text, so that no sample can stall a grader. Mathematical
equivalence (x = 5 against 5, surds, sets, units) is left out: `boxed` compares notation, not meaning.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from rest_em.errors import UnscorableError
from rest_em.types import Problem, Solution

MAX_DIGITS = 1000
"""A number with more digits is no answer. Python itself refuses to read more than 4300."""

MAX_OPTION = 2000
"""A final answer of more characters names no option."""

_MARKER = re.compile(r"the\s+(?:final\s+)?answer\s+is\s*:?|####", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?](?=\s)")
_BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_LATEX_FRACTION = re.compile(r"\\[dt]?frac\s*\{\s*([0-9]+)\s*\}\s*\{\s*([0-9]+)\s*\}")
_LATEX_MIXED = re.compile(r"(?<=[0-9])(?=\\[dt]?frac)")
_LATEX_LAYOUT = re.compile(
    r"\\(?:left|right|displaystyle)(?![A-Za-z])|\\[,;:!>\s]|\\?[$%]|(?<![0-9])\s+|\s+(?![0-9])"
)
_OPTION_MARKS = re.compile(
    r"\\(?:text|textbf|mathrm|mathbf|boxed)\s*\{|[${}*`]|^\s*(?:option|choice|answer)\b\s*:?", re.IGNORECASE
)
_BRACKETED = re.compile(r"\(\s*([A-Za-z])\s*\)")
_LED = re.compile(r"([A-Z])(?![A-Za-z0-9'\u2019])|([a-z])(?=[).:]|$)")
_ANOTHER = re.compile(
    r"\b(?:or|and|nor)\s+(?:option\s+)?[A-Z](?![A-Za-z0-9'])|^\s*[,/&]\s*[A-Z](?![A-Za-z0-9'])"
)
_MINUS_SIGNS = dict.fromkeys(map(ord, "\N{MINUS SIGN}\N{FULLWIDTH HYPHEN-MINUS}\N{SMALL HYPHEN-MINUS}"), "-")
_PAIRS = frozenset(
    {"$$", "**", "__", "``", '""', "''", "\N{LEFT DOUBLE QUOTATION MARK}\N{RIGHT DOUBLE QUOTATION MARK}"}
)
_UNITS = frozenset({"", "%", "\\%", "€", "£", "¥"})
_NUMBER = re.compile(
    r"""
    (?:(?<![\w.)])(?P<sign>[-+]))?                      # 5-7 holds no -7
    (?<!\w)(?<![0-9]\.)                                 # H2O, x2 and the 5 of 3.4.5 are no numbers
    (?:\\?[$€£¥]\s?(?P<inner>-)?)?
    (?:(?P<whole>[0-9]{1,9})[ ](?=[0-9]{1,9}/[0-9]{1,9}(?!\w|\.[0-9])))?
    (?P<main>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]++|(?<!\.)(?=\.[0-9]))
    (?P<decimals>\.[0-9]++)?
    (?P<exponent>[eE][-+]?[0-9]{1,3}(?!\w|\.[0-9]))?
    (?:[ ]?/[ ]?(?P<divisor>[0-9]++)(?!\w|\.[0-9]))?
    """,
    re.VERBOSE,
)


def final_answer(text: str) -> str | None:
    """Return the final answer as written, or None where there is none.

    What follows the last "the answer is" ("the final answer is") or `####`, to the end of the sentence or
    line, or the content of the last complete `\\boxed{...}`, whichever of them comes last; without any of
    them the last line. After a marker that nothing follows the solution was cut off: it gives no answer.

    >>> final_answer("2 + 2 = 4. The answer is: **4**.")
    '4'
    >>> final_answer(r"so we get $\\boxed{\\frac{1}{2}}$, done")
    '\\\\frac{1}{2}'
    >>> final_answer("First 1.\\nThen 2.")
    'Then 2'
    """
    marked = _marked_answer(text)
    answer = last_line(text) if marked is None else tidy(marked)
    return answer or None


def boxed(text: str) -> str | None:
    """Return the content of the last complete `\\boxed{...}` in one notation, or None where there is none.

    Layout (spaces, `\\left`, `\\,`, `$`, `%`, the variants of `\\frac`) is taken away, and a plain number is
    written as a fraction in lowest terms.
    """
    found = _last_boxed(text)
    return None if found is None else notation(found[1]) or None


def number(text: str) -> str | None:
    """Return the last number of the final answer (of the last line, where none is marked) in lowest terms.

    Thousands separators, decimals, fractions a/b, mixed numbers, signs (also U+2212), exponents of ten, and
    currency and percent marks around it are read; 50% is 50.

    >>> number("18 apples cost $1,234.50 in all.")
    '2469/2'
    """
    value = last_number(text)
    return None if value is None else str(value)


def last_line(text: str) -> str | None:
    """Return the last line that is not empty, tidied, or None."""
    lines = text.strip().splitlines()
    return (tidy(lines[-1]) or None) if lines else None


def whole_text(text: str) -> str | None:
    """Return the text with whitespace collapsed, or None where it is empty."""
    return " ".join(text.split()) or None


def option(text: str) -> str | None:
    """Return the letter of the option that a final answer names; None for none, or for two.

    >>> option("So the answer is (b)."), option("The answer is C because 2 < 3."), option("A or B")
    ('B', 'C', None)
    """
    answer = final_answer(text)
    if answer is None or len(answer) > MAX_OPTION:
        return None
    answer = _OPTION_MARKS.sub(" ", answer).strip()
    bracketed = {letter.upper() for letter in _BRACKETED.findall(answer)}
    if bracketed:
        return bracketed.pop() if len(bracketed) == 1 else None
    led = _LED.match(answer)
    if led is None or _ANOTHER.search(answer[led.end() :]):
        return None
    return (led[1] or led[2]).upper()


def no_vote(text: str) -> str:
    """Return nothing to vote with, for any text: a program is no answer that could win a vote."""
    return ""


EXTRACTORS: dict[str, Callable[[str], str | None]] = {
    "final_answer": final_answer,
    "number": number,
    "boxed": boxed,
    "last_line": last_line,
    "text": whole_text,
    "option": option,
    "none": no_vote,
}
"""What `reward.answer` of a recipe can name."""


def tidy(answer: str) -> str:
    """Collapse whitespace and take off a last period and paired quotes, `$` or emphasis around the whole."""
    answer = " ".join(answer.split())
    for _ in range(4):  # as in "**$4$**."
        answer = answer.rstrip(".").strip()
        if len(answer) > 1 and answer[0] + answer[-1] in _PAIRS:
            answer = answer[1:-1].strip()
    return answer


def notation(answer: str) -> str:
    """Write an answer in one notation: layout away, a plain number in lowest terms."""
    value = only_number(answer)
    if value is not None:
        return str(value)
    return _LATEX_LAYOUT.sub("", re.sub(r"\\[dt]frac(?![A-Za-z])", r"\\frac", answer)).rstrip(".")


def last_number(text: str) -> Fraction | None:
    """Return what `number` writes, as a fraction."""
    marked = _marked_answer(text)
    numbers = _NUMBER.finditer(_plain((last_line(text) or "") if marked is None else marked))
    last = deque(numbers, maxlen=1)
    return _value(last[0]) if last else None


def only_number(text: str) -> Fraction | None:
    """Return the number of a text that holds a number, its marks, and nothing else."""
    text = _plain(text).strip().strip("$").removesuffix(".").strip()
    match = _NUMBER.match(text)
    return _value(match) if match is not None and text[match.end() :].strip() in _UNITS else None


def is_marked(text: str) -> bool:
    """Say whether a text has a marker or a complete box."""
    return _marked_answer(text) is not None


def _marked_answer(text: str) -> str | None:
    """Return what the last marker or box points at, untidied; empty where nothing follows the marker."""
    box = _last_boxed(text)
    markers = list(_MARKER.finditer(text))
    if markers and (box is None or box[0] < markers[-1].start()):
        following = text[markers[-1].end() :].strip().splitlines()
        return _SENTENCE_END.split(following[0], maxsplit=1)[0] if following else ""
    return None if box is None else box[1]


def _last_boxed(text: str) -> tuple[int, str] | None:
    """Return where the last complete box begins, and its content."""
    last: tuple[int, str] | None = None
    unclosed: list[
        tuple[int, int] | None
    ] = []  # (begin, begin of the content) of a box, None of other braces
    for token in _BRACES.finditer(text):
        if token[0] == "}":
            opened = unclosed.pop() if unclosed else None
            if opened is not None and (last is None or opened[0] > last[0]):
                last = (opened[0], text[opened[1] : token.start()])
        elif token[0] == "{":
            unclosed.append(None)
        elif token[0].endswith("{") and token[0] != "\\{":
            unclosed.append((token.start(), token.end()))
    return last


def _plain(text: str) -> str:
    text = text.translate(_MINUS_SIGNS).replace("{,}", ",").replace("\\!", "")
    return _LATEX_FRACTION.sub(r"\1/\2", _LATEX_MIXED.sub(" ", text))


def _value(match: re.Match[str]) -> Fraction | None:
    """Return the value of a number; None for one that is too long or divides by zero."""
    if len(match[0]) > MAX_DIGITS:
        return None
    digits = match["main"].replace(",", "") or "0"
    value = Fraction(digits + (match["decimals"] or "") + (match["exponent"] or ""))
    if match["divisor"] is not None:
        if int(match["divisor"]) == 0:
            return None
        value /= int(match["divisor"])
    value += int(match["whole"] or 0)
    return -value if (match["sign"] == "-") != (match["inner"] == "-") else value


def option_match(problem: Problem, solution: Solution) -> bool:
    """Say whether the final answer names the reference's option."""
    return option(solution.text) == check_option(problem)


def exact_match(problem: Problem, solution: Solution) -> bool:
    """Say whether the final answer is the reference, letter by letter once both are tidied."""
    return final_answer(solution.text) == check_line(problem)


def number_match(problem: Problem, solution: Solution) -> bool:
    """Say whether the final number equals the reference's, exactly: 0.5 is 1/2, and 1/3 is not 0.333333."""
    return last_number(solution.text) == check_number(problem)


def boxed_match(problem: Problem, solution: Solution) -> bool:
    """Say whether the last box holds the reference, in notation or as an equal number."""
    return boxed(solution.text) == check_notation(problem)


def by_hand(problem: Problem, solution: Solution) -> bool:
    """Judge nothing: people grade the solutions, and no score is claimed before."""
    raise UnscorableError("graded by hand")


def _gold_text(problem: Problem) -> str:
    reference: Any = problem.reference
    if isinstance(reference, bool) or not isinstance(reference, str | int | float):
        raise UnscorableError(
            f"the reference is of type {type(reference).__name__}; wanted a text or a number"
        )
    if isinstance(reference, int) and abs(reference) >= 10**MAX_DIGITS:
        raise UnscorableError(f"the reference has more than {MAX_DIGITS} digits")
    return str(reference)


def check_line(problem: Problem) -> str:
    """Return the one line that the reference is; UnscorableError where it is none."""
    text = _gold_text(problem).strip()
    if _marked_answer(text) is None and len(text.splitlines()) > 1:
        raise _unusable(text, "one line, or an answer after `####`")
    answer = final_answer(text)
    if answer is None:
        raise _unusable(text, "an answer")
    return answer


def check_number(problem: Problem) -> Fraction:
    """Return the one number that the reference is; UnscorableError where it is none."""
    line = check_line(problem)
    numbers = list(_NUMBER.finditer(_plain(line)))
    value = _value(numbers[0]) if len(numbers) == 1 else None
    if value is None:
        raise _unusable(line, "exactly one number")
    return value


def check_notation(problem: Problem) -> str:
    """Return the reference in one notation; UnscorableError where nothing is there."""
    text = _gold_text(problem)
    answer = boxed(text) or notation(text)
    if not answer:
        raise _unusable(text, "an answer")
    return answer


def check_option(problem: Problem) -> str:
    """Return the letter that the reference names; UnscorableError where it names none."""
    text = _gold_text(problem)
    letter = option(text)
    if letter is None:
        raise _unusable(text, "an option's letter, as (A)")
    return letter


def _unusable(found: str, wanted: str) -> UnscorableError:
    return UnscorableError(f"the reference is {found[:80]!r}; wanted {wanted}")
