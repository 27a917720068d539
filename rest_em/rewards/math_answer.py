"""The reward `math_answer`: whether two answers mean the same, strictly.

Most pairs are settled by exact checks on their text: equal notation, equal or unequal numbers, units, orders,
hedges. What is left goes to math-verify, within bounds on size, in a process that can be killed
(`math_process`). No answer is ever evaluated as code. What is stricter than math-verify, and why, is in
docs/math_answers.md.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from rest_em.errors import UnscorableError
from rest_em.rewards.answers import final_answer, is_marked, last_line, last_number, only_number
from rest_em.rewards.math_process import JudgeKilledError, MathProcess
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

_UNICODE = {
    "−": "-", "–": "-", "﹣": "-", "－": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": r"\div ",
    "π": r"\pi ", "∞": r"\infty ", "°": r"^\circ ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "±": r"\pm ",
    "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ",
    "½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "⅔": r"\frac{2}{3}",
    "⅕": r"\frac{1}{5}", "⅖": r"\frac{2}{5}", "⅗": r"\frac{3}{5}", "⅘": r"\frac{4}{5}", "⅙": r"\frac{1}{6}",
    "⅚": r"\frac{5}{6}", "⅛": r"\frac{1}{8}", "⅜": r"\frac{3}{8}", "⅝": r"\frac{5}{8}", "⅞": r"\frac{7}{8}",
    "\u2044": "/", "\u2032": "'", "\u02da": r"^\circ ", "\u00ba": r"^\circ ", "\U0001d70b": r"\pi ",
    "\u200b": "", "\u201c": "", "\u201d": "", "ℝ": r"\mathbb{R}",
    "∅": r"\emptyset ", "，": ",", "（": "(", "）": ")", "．": ".",
    "％": "%", "＝": "=", "：": ":", "\u00a0": " ", "\u202f": " ", "\u2009": " ",
}  # fmt: skip
_RAISED, _LOWERED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789"), str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_TRANSLATED = str.maketrans(_UNICODE | {chr(0xFF10 + digit): str(digit) for digit in range(10)})
_WORDS = {
    "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7",
    "eight": "8", "nine": "9", "ten": "10", "eleven": "11", "twelve": "12",
    "thirteen": "13", "fourteen": "14", "fifteen": "15", "sixteen": "16", "seventeen": "17", "eighteen": "18",
    "nineteen": "19", "twenty": "20",
}  # fmt: skip
_UNITS = {
    unit: names[0]
    for names in (
        ("cm", "centimeter", "centimeters", "centimetre", "centimetres"), ("mm", "millimeter", "millimeters"),
        ("m", "meter", "meters", "metre", "metres"),
        ("km", "kilometer", "kilometers", "kilometre", "kilometres"),
        ("in", "inch", "inches"),
        ("ft", "foot", "feet"), ("yd", "yard", "yards"), ("mi", "mile", "miles"), ("g", "gram", "grams"),
        ("kg", "kilogram", "kilograms"), ("lb", "lbs", "pound", "pounds"), ("oz", "ounce", "ounces"),
        ("s", "sec", "second", "seconds"), ("min", "minute", "minutes"), ("h", "hr", "hrs", "hour", "hours"),
        ("day", "days"), ("week", "weeks"), ("month", "months"), ("year", "years"),
        ("l", "liter", "liters", "litre"), ("ml", "milliliter", "milliliters"), ("unit", "units"),
        ("degree", "degrees"), ("cent", "cents"),
        ("dollar", "dollars"), ("mph",), ("percent",),
    )
    for unit in names
}  # fmt: skip
"""How a unit may be written -> how it is compared. Others are compared as they are written."""
_CURRENCIES = {r"\$": "dollar", "€": "euro", "£": "pound sterling", "¥": "yen"}

_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}")
_NOTATION = tuple(
    (re.compile(pattern), written)
    for pattern, written in (
        (r"\{,\}", ","),
        (r"\\varnothing(?![A-Za-z])", r"\\emptyset "),
        (r"\\langle(?![A-Za-z])", "("),
        (r"\\rangle(?![A-Za-z])", ")"),
        (r"\\lbrack(?![A-Za-z])", "["),
        (r"\\rbrack(?![A-Za-z])", "]"),
        (r"\*\*", "^"),
        (r"\*", r"\\cdot "),
        (r"(?<![A-Za-z\\])pi(?![A-Za-z])", r"\\pi "),
        (r"(?<![A-Za-z\\])infinity(?![A-Za-z])", r"\\infty "),
        (r"(^|[(,\[])\s*\+\s*(?=\\infty)", r"\1"),
        (r"(?<=[.\d])\\(?:bar|dot)\s*\{?\s*(\d+)\s*\}?", r"\\overline{\1}"),
        (r"\{\s*(\w+)\s*\\choose\s*(\w+)\s*\}", r"\\binom{\1}{\2}"),
        (r"\\!\s?|\\\$", ""),
        (r"\\([%#])", r"\1"),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\frac\s*([A-Za-z])\s*([A-Za-z0-9])(?![A-Za-z])", r"\\frac{\1}{\2}"),
        (r"√\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"√\s*([0-9]+|[A-Za-z])", r"\\sqrt{\1}"),
        (
            r"\\(?:left|right|displaystyle|[Bb]ig[lr]?|limits|q?quad)(?![A-Za-z])|(?<!\\)\\[,;: ]|\$|(?!^)~",
            " ",
        ),
        (r"\\(?:leq|leqslant)(?![A-Za-z])|<=", r"\\le "),
        (r"\\(?:geq|geqslant)(?![A-Za-z])|>=", r"\\ge "),
        (r"\\neq(?![A-Za-z])|!=", r"\\ne "),
        (r"\\lt(?![A-Za-z])", "<"),
        (r"\\gt(?![A-Za-z])", ">"),
        (r"\\lbrace(?![A-Za-z])", r"\\{"),
        (r"\\rbrace(?![A-Za-z])", r"\\}"),
        (r"\^\s*\{?\s*\\circ\s*\}?|\\degree(?![A-Za-z])|(?<=\d)\^\{?o\}?(?![A-Za-z])", " degrees "),
    )
)
"""Notation that differs and means the same, in the order in which it is mended."""
_HEDGE = re.compile(
    r"\b(?:or|either|maybe|perhaps|probably|possibly|approximately|about|between|not|except)\b"
    r"|\bat\s+(?:least|most)\b|\b(?:less|more|greater|fewer)\s+than\b"
    r"|\?|\\approx|≈|~\s*[=\d]|\\lor\b|\\vee\b|\d\s*\.\.\.",
    re.IGNORECASE,
)
_UNIT_AFTER = re.compile(
    r"^(?P<value>.*?(?:[0-9})]|\\pi))\s*"
    r"(?P<unit>(?:(?:square|cubic|sq|cu)\.?\s+)?[A-Za-z][A-Za-z.]*(?:\s*(?:\^\{?[23]\}?|/[A-Za-z]+|per\s+[A-Za-z]+))*)\s*$"
)
_SPAN = re.compile(r"\$\$(.+?)\$\$|(?<!\\)\$([^$\n]+?)(?<!\\)\$|\\\[(.+?)\\\]|\\\(([^\n]+?)\\\)", re.DOTALL)
_PROSE_WORD = re.compile(r"(?<![\\A-Za-z{])[A-Za-z]{2,}(?![A-Za-z}])")
_BASE = re.compile(r"^\(?([0-9A-Fa-f]+)\)?_\{?([0-9]{1,2}|[a-z]+)\}?$")
_CURRENCY = re.compile(r"\\\$|€|£|¥")
_SCIENTIFIC = re.compile(r"([-+]?\d+(?:\.\d+)?)\\(?:times|cdot)10\^\{?([-+]?\d{1,3})\}?")
_RATIO = re.compile(r"\d{1,9}(?::\d{1,9})+")
_NAME = re.compile(r"\\?[A-Za-z]+'?(?:_\{?\w+\}?)?(?:\^\{?-1\}?)?(?:\([A-Za-z0-9,]+\))?")
"""What an equation can give a value to: a variable, or a function."""
_OPTION = re.compile(r"(?:option|choice|answer)?\s*\(?([A-Z])(?:[):.](?:\s*\S.*|\s*)|$)", re.IGNORECASE)
_FROM, _TO = {"<": "(", r"\le": "["}, {"<": ")", r"\le": "]"}
_MIRRORED = {">": "<", r"\ge": r"\le", "<": ">", r"\le": r"\ge"}
_VARIABLE = re.compile(r"[a-zA-Z](?:\([a-z]\))?")
_RELATION = re.compile(r"<|>|\\le(?![A-Za-z])|\\ge(?![A-Za-z])")
_TIME = re.compile(r"^(\d{1,2}):([0-5]\d)(?::([0-5]\d))?\s*([ap]\.?m\.?)?$", re.IGNORECASE)
_REPEATING = re.compile(r"(-?\d*)\.(\d*)\\overline\{(\d+)\}")
_WORD_LIST = re.compile(r"^[A-Za-z]+(?:\s*[,<>]\s*[A-Za-z]+)+$")


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer, read as far as no mathematics is needed.

    Example:
        read_answer(r"5\\text{ cm}") == Answer(r"5\\text{ cm}", "5", "cm", Fraction(5), ...)
    """

    text: str
    """In one notation, without layout."""
    value_text: str
    """Without a unit."""
    unit: str
    """As compared; empty for none."""
    number: Fraction | None
    """Its value, where it is a plain number."""


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
    if line is not None and _HEDGE.search(line):
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
        gold, answer = _in_one_form(gold, answer)
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


@functools.lru_cache(maxsize=50_000)
def read_answer(text: str) -> Answer:
    """Read an answer as far as no mathematics is needed."""
    currency = _CURRENCY.search(text)
    text = _plain(text)
    number = only_number(text)
    if number is not None and currency:
        return Answer(_without_spaces(text), text, _CURRENCIES[currency[0]], number)
    scientific = _SCIENTIFIC.fullmatch(_without_spaces(text))
    if scientific:
        value = Fraction(scientific[1]) * Fraction(10) ** int(scientific[2])
        return Answer(_without_spaces(text), text, "", value)
    if number is not None:
        return Answer(_without_spaces(text), text, "", number)
    value_text, unit = _split_unit(text)
    value_number = only_number(value_text) if unit else None
    return Answer(_without_spaces(text), value_text, unit, value_number)


def _plain(text: str) -> str:
    """Write an answer in one notation, as far as that changes no meaning."""
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹]+", lambda found: f"^{{{found[0].translate(_RAISED)}}}", text)
    text = re.sub("[₀-₉]+", lambda found: f"_{{{found[0].translate(_LOWERED)}}}", text)
    text = text.translate(_TRANSLATED).strip()
    for pattern, written in _NOTATION:
        text = pattern.sub(written, text)
    text = text if "=" in text else text.replace(";", ",")
    text = _REPEATING.sub(_repeating, text)
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))(?=(?:\d{3},?)*\d{3}(?!\d))", _thousands(text), text)
    if re.fullmatch(r"\d{1,3}(?: \d{3})+", text):
        text = text.replace(" ", "")
    whole = _TEXT.fullmatch(text.strip())
    text = whole[1] if whole else text
    text = " ".join(text.split())
    if not text.endswith("..."):
        text = text.rstrip(".,\\ ").strip()
    while len(text) > 1 and text[0] == "{" and text[-1] == "}" and _closes_at_end(text):
        text = text[1:-1].strip()
    return _WORDS.get(text.lower(), text)


def _thousands(text: str) -> str:
    """Return what a comma between digits becomes: nothing in one number, itself in a list or a tuple."""
    return "" if re.fullmatch(r"[-+$£€]?\s?\d{1,3}(?:,\d{3})+(?:\.\d+)?\D{0,40}", text.strip()) else ","


def _closes_at_end(text: str) -> bool:
    depth = 0
    for place, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return place == len(text) - 1
    return False


def _repeating(match: re.Match[str]) -> str:
    whole, fixed, period = match[1] or "0", match[2], match[3]
    if len(fixed) + len(period) > 30:
        return match[0]
    nines = (10 ** len(period) - 1) * 10 ** len(fixed)
    value = abs(int(whole or 0)) * nines + int(fixed or 0) * (10 ** len(period) - 1) + int(period)
    fraction = Fraction(value, nines)
    sign = "-" if whole.startswith("-") else ""
    return f"{sign}\\frac{{{fraction.numerator}}}{{{fraction.denominator}}}"


def _without_spaces(text: str) -> str:
    """Take spaces away where they mean nothing: not between letters, not between digits."""
    return re.sub(r"(?<![A-Za-z0-9])\s+|\s+(?![A-Za-z0-9])|(?<=\d)\s+(?=i\b)", "", text)


def _split_unit(text: str) -> tuple[str, str]:
    match = _UNIT_AFTER.match(
        _TEXT.sub(lambda one: f" {one[1]} ", text).replace("} ^", "}^").replace(" ^", "^")
    )
    if match is None:
        return text, ""
    prefix, power = re.match(r"(?:(square|sq)|(cubic|cu))?\.?\s*", match["unit"].lower()), ""
    assert prefix is not None
    told = match["unit"].lower()
    if prefix[1] or prefix[2]:
        told, power = told[prefix.end() :], "^2" if prefix[1] else "^3"
    words = re.sub(r"[\s{}.]", "", told) + power
    known = words.partition("^")[0].partition("/")[0]
    if known not in _UNITS and (len(known) < 4 or only_number(match["value"]) is None):
        return text, ""  # variables, as in 5xy
    return match["value"], words.replace(known, _UNITS.get(known, known), 1)


def is_text(text: str) -> bool:
    """Say whether an answer is words, which have no mathematics in them."""
    return re.fullmatch(r"[A-Za-z][A-Za-z'\-]*(?:[ ,]+[A-Za-z'\-]+)*", text) is not None and (
        len(text) > 2 or " " in text
    )


def settle(gold: Answer, answer: Answer) -> bool | None:  # noqa: PLR0911, PLR0912
    """Say whether two answers are the same; None where only mathematics can tell."""
    if gold.text == answer.text:
        return True
    if not answer.text:
        return False
    if _HEDGE.search(answer.text) and not _HEDGE.search(gold.text):
        return False
    if gold.unit and answer.unit and gold.unit != answer.unit:
        return False
    if {gold.unit, answer.unit} & set(_CURRENCIES.values()) and "%" in gold.text + answer.text:
        return False
    if gold.number is not None and answer.number is not None:
        return _are_equal(gold, answer)
    bases = [_base(one.text) for one in (gold, answer)]
    if any(bases):
        return bases[0] == bases[1]
    if any(_RATIO.fullmatch(one.text) and one.text.count(":") > 1 for one in (gold, answer)):
        return False  # they are not the same text
    times = [_TIME.match(one.text) for one in (gold, answer)]
    if times[0] and times[1]:
        return _time(times[0]) == _time(times[1])
    letters = [_letter(one.text) for one in (gold, answer)]
    if letters[0] and not letters[1]:
        option = _OPTION.fullmatch(_TEXT.sub(lambda match: match[1] + " ", answer.text))
        letters[1] = option[1].upper() if option and len(answer.text) > 1 else None
    if letters[0] and letters[1]:
        return letters[0] == letters[1]
    if len(gold.text) == len(answer.text) == 1:
        return False  # two letters, which no mathematics makes the same
    if _is_set(gold.text) != _is_set(answer.text) and all(
        one.text[:1] in ("(", "[", "\\") and len(_elements(one.text)) > 1 for one in (gold, answer)
    ):
        return False  # a set, and what has an order
    if _equates_more(gold.text, answer.text) or _equates_more(answer.text, gold.text):
        return False
    words = [_words(one.text) for one in (gold, answer)]
    if words[0] is not None or words[1] is not None:
        if words[0] is not None and words[1] is not None:
            return words[0] == words[1]
        if is_text(gold.text):
            return False
    return _settle_lists(gold.text, answer.text)


def _base(text: str) -> tuple[str, str] | None:
    """Return the digits and the base of a number that has one."""
    match = _BASE.match(_TEXT.sub(lambda found: found[1], text))
    if match is None or (match[2] not in _WORDS and not match[2].isdigit()):
        return None
    return match[1].upper(), _WORDS.get(match[2], match[2])


def _is_set(text: str) -> bool:
    return text.startswith(r"\{") and text.endswith(r"\}")


def _equates_more(one: str, other: str) -> bool:
    """Say whether one answer is an equation about more than a variable or function, and the other is none.

    Capital letters are names, as of points: `|AB|=1` gives a value to what is asked for.
    """
    sides = one.split("=")
    if "=" in other or len(sides) != 2 or re.search(r"\\[lg]e|[<>,]", one):
        return False
    has_letters = re.search("[a-z]", re.sub(r"\\[A-Za-z]+", "", sides[0])) is not None
    return has_letters and not any(_NAME.fullmatch(side) for side in sides)


def _as_interval(text: str) -> tuple[str, str] | None:  # noqa: PLR0911
    """Return the variable and the interval of an inequality or membership: `-1<x\\le2` is ("x", "(-1,2]")."""
    member = re.fullmatch(r"([a-zA-Z])\\in(?![A-Za-z])\s*([(\[].*[)\]])", text)
    if member:
        return member[1], member[2]
    parts, signs = [one.strip() for one in _RELATION.split(text)], _RELATION.findall(text)
    if len(parts) not in (2, 3) or not all(parts) or "," in text or "=" in text:
        return None
    if signs[0] in (">", r"\ge"):
        parts, signs = parts[::-1], [_MIRRORED[sign] for sign in signs[::-1]]
    if any(sign not in _FROM for sign in signs):
        return None
    if len(parts) == 3 and _VARIABLE.fullmatch(parts[1]):
        return parts[1], f"{_FROM[signs[0]]}{parts[0]},{parts[2]}{_TO[signs[1]]}"
    if len(parts) == 2 and _VARIABLE.fullmatch(parts[1]) and not re.search("[a-zA-Z]", parts[0]):
        return parts[1], f"{_FROM[signs[0]]}{parts[0]},\\infty)"
    if len(parts) == 2 and _VARIABLE.fullmatch(parts[0]) and not re.search("[a-zA-Z]", parts[1]):
        return parts[0], f"(-\\infty,{parts[1]}{_TO[signs[0]]}"
    return None


def _in_one_form(gold: Answer, answer: Answer) -> tuple[Answer, Answer]:
    """Write inequalities as intervals, where both answers are one or the other."""
    one, other = _as_interval(gold.text), _as_interval(answer.text)
    is_interval = re.compile(r"[(\[].*,.*[)\]]").fullmatch
    if one and other:
        return (gold, answer) if one[0] != other[0] else (_reread(one[1]), _reread(other[1]))
    if one and is_interval(answer.text):
        return _reread(one[1]), answer
    if other and is_interval(gold.text):
        return gold, _reread(other[1])
    return gold, answer


def _reread(text: str) -> Answer:
    return Answer(_without_spaces(text), text, "", None)


def _are_equal(gold: Answer, answer: Answer) -> bool:
    """Compare plain numbers exactly; 50% is 50, and 0.5 too."""
    assert gold.number is not None
    assert answer.number is not None
    if gold.number == answer.number:
        return True
    percents = ["%" in one.text for one in (gold, answer)]
    if percents == [True, False]:
        return gold.number == 100 * answer.number
    if percents == [False, True]:
        return answer.number == 100 * gold.number
    _, point, decimals = gold.value_text.partition(".")
    is_endless = bool(set(_prime_factors(answer.number.denominator)) - {2, 5})
    if not point or len(decimals) < 2 or not decimals.isdigit() or not is_endless:
        return False
    # No decimal number is the answer: such a gold can only stand for it rounded, as far as it is written.
    return abs(gold.number - answer.number) <= Fraction(1, 2 * 10 ** len(decimals))


def _prime_factors(number: int) -> set[int]:
    """Return 2 and 5 as far as they divide a number, and what is left of it."""
    found = set()
    for prime in (2, 5):
        while number % prime == 0:
            number //= prime
            found.add(prime)
    return found | ({number} if number > 1 else set())


def _time(match: re.Match[str]) -> tuple[int, int, int, str]:
    hours, minutes, seconds, half = match.groups()
    return int(hours), int(minutes), int(seconds or 0), (half or "").replace(".", "").lower()


def _letter(text: str) -> str | None:
    """Return the option letter that an answer is; None for anything else, a variable in lower case too."""
    match = re.fullmatch(r"\(?\s*([A-Z])\s*\)?\.?", text) or re.fullmatch(r"\(\s*([a-z])\s*\)", text)
    return match[1].upper() if match else None


def _words(text: str) -> str | None:
    """Return an answer of words, or an ordered list of names, in lower case; None for anything else."""
    plain = _TEXT.sub(lambda match: match[1], text)
    plain = re.sub(r"^(?:an?|the) (?=[A-Za-z]{3})", "", " ".join(plain.split()), flags=re.IGNORECASE)
    if _WORD_LIST.match(plain) or is_text(plain) or re.fullmatch(r"[A-Z]{2,}", plain):
        return re.sub(r"\s*([,<>])\s*", r"\1", plain).lower().rstrip(".")
    return None


def _settle_lists(gold: str, answer: str) -> bool | None:
    """Refuse lists of unlike length, where each element is written out."""
    parts = [_elements(one) for one in (gold, answer)]
    numbers = [[only_number(element) for element in part] for part in parts]
    if all(len(one) > 1 and None not in one for one in numbers) and not any(
        one[0] in "([" for one in (gold, answer)
    ):
        return sorted(map(str, numbers[0])) == sorted(map(str, numbers[1]))
    if len(parts[0]) != len(parts[1]) and (len(parts[0]) > 1 or len(parts[1]) > 1):
        both_plain = not re.search(
            r"\\pm|\\mp|\\text|\\in|\\cup|=|matrix|\\(?:or|and)\b|\band\b|\bor\b", gold + answer
        )
        return False if both_plain else None
    return None


def _is_one_bracket(text: str) -> bool:
    """Say whether the bracket that opens a text closes at its end, and not before."""
    depth = 0
    for place, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if depth == 0 and character in ")]}":
            return place == len(text) - 1
    return False


def _elements(text: str) -> Sequence[str]:
    """Return what stands between the commas of the outermost level, brackets around the whole aside."""
    inner = text
    for begin, end in (("(", ")"), ("[", "]"), (r"\{", r"\}")):
        if inner.startswith(begin) and inner.endswith(end) and _is_one_bracket(inner):
            inner = inner[len(begin) : -len(end)]
            break
    depth, parts, last = 0, [], 0
    for place, character in enumerate(inner):
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append(inner[last:place])
            last = place + 1
    return [*parts, inner[last:]]


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
