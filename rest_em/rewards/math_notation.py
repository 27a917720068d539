"""A mathematical answer, read as far as no mathematics is needed: one notation, its unit, its number.

Layout, Unicode signs, spelled numbers and the many ways to write a fraction or a unit become one. What two
answers so read mean to each other is in `math_rules`.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from fractions import Fraction

from rest_em.rewards.answers import only_number

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
NUMBER_WORDS = {
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
        ("dollar", "dollars"), ("mph", "milesperhour"), ("percent",),
    )
    for unit in names
}  # fmt: skip
"""How a unit may be written -> how it is compared. Others are compared as they are written."""
CURRENCIES = {r"\$": "dollar", "€": "euro", "£": "pound sterling", "¥": "yen"}

TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}")
_SIGNS = {
    "langle": "(", "rangle": ")", "lbrack": "[", "rbrack": "]", "lbrace": r"\{", "rbrace": r"\}",
    "lt": "<", "gt": ">", "leq": r"\le ", "leqslant": r"\le ", "geq": r"\ge ", "geqslant": r"\ge ",
    "neq": r"\ne ", "varnothing": r"\emptyset ",
}  # fmt: skip
"""Commands that have another name, or a sign of their own."""
_SIGN = re.compile(rf"\\({'|'.join(_SIGNS)})(?![A-Za-z])")
_NOTATION = tuple(
    (re.compile(pattern), written)
    for pattern, written in (
        (r"\{,\}", ","),
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
        ("<=", r"\\le "),
        (">=", r"\\ge "),
        ("!=", r"\\ne "),
        (r"\^\s*\{?\s*\\circ\s*\}?|\\degree(?![A-Za-z])|(?<=\d)\^\{?o\}?(?![A-Za-z])", " degrees "),
    )
)
"""Notation that differs and means the same, in the order in which it is mended."""
_UNIT_AFTER = re.compile(
    r"^(?P<value>.*?(?:[0-9})]|\\pi))\s*"
    r"(?P<unit>(?:(?:square|cubic|sq|cu)\.?\s+)?"
    r"[A-Za-z][A-Za-z.]*(?:\s*(?:\^\{?[23]\}?|/[A-Za-z]+|per\s+[A-Za-z]+))*)\s*$"
)
_POWERED = re.compile(r"(?:(square|sq)|cubic|cu)\.?\s+(.*)")
_CURRENCY = re.compile(r"\\\$|€|£|¥")
_SCIENTIFIC = re.compile(r"([-+]?\d+(?:\.\d+)?)\\(?:times|cdot)10\^\{?([-+]?\d{1,3})\}?")
_REPEATING = re.compile(r"(-?\d*)\.(\d*)\\overline\{(\d+)\}")


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


@functools.lru_cache(maxsize=50_000)
def read_answer(text: str) -> Answer:
    """Read an answer as far as no mathematics is needed."""
    currency = _CURRENCY.search(text)
    text = _plain(text)
    number = only_number(text)
    if number is not None and currency:
        return Answer(without_spaces(text), text, CURRENCIES[currency[0]], number)
    scientific = _SCIENTIFIC.fullmatch(without_spaces(text))
    if scientific:
        value = Fraction(scientific[1]) * Fraction(10) ** int(scientific[2])
        return Answer(without_spaces(text), text, "", value)
    if number is not None:
        return Answer(without_spaces(text), text, "", number)
    value_text, unit = _split_unit(text)
    value_number = only_number(value_text) if unit else None
    return Answer(without_spaces(text), value_text, unit, value_number)


def _plain(text: str) -> str:
    """Write an answer in one notation, as far as that changes no meaning."""
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹]+", lambda found: f"^{{{found[0].translate(_RAISED)}}}", text)
    text = re.sub("[₀-₉]+", lambda found: f"_{{{found[0].translate(_LOWERED)}}}", text)
    text = text.translate(_TRANSLATED).strip()
    text = _SIGN.sub(lambda found: _SIGNS[found[1]], text)
    for pattern, written in _NOTATION:
        text = pattern.sub(written, text)
    text = text if "=" in text else text.replace(";", ",")
    text = _REPEATING.sub(_repeating, text)
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))(?=(?:\d{3},?)*\d{3}(?!\d))", _thousands(text), text)
    if re.fullmatch(r"\d{1,3}(?: \d{3})+", text):
        text = text.replace(" ", "")
    whole = TEXT.fullmatch(text.strip())
    text = whole[1] if whole else text
    text = " ".join(text.split())
    if not text.endswith("..."):
        text = text.rstrip(".,\\ ").strip()
    while len(text) > 1 and text[0] == "{" and text[-1] == "}" and _closes_at_end(text):
        text = text[1:-1].strip()
    return NUMBER_WORDS.get(text.lower(), text)


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


def without_spaces(text: str) -> str:
    """Take spaces away where they mean nothing: not between letters, not between digits."""
    return re.sub(r"(?<![A-Za-z0-9])\s+|\s+(?![A-Za-z0-9])|(?<=\d)\s+(?=i\b)", "", text)


def _split_unit(text: str) -> tuple[str, str]:
    match = _UNIT_AFTER.match(
        TEXT.sub(lambda one: f" {one[1]} ", text).replace("} ^", "}^").replace(" ^", "^")
    )
    if match is None:
        return text, ""
    unit = match["unit"].lower()
    if powered := _POWERED.fullmatch(unit):
        unit = powered[2] + ("^2" if powered[1] else "^3")
    words = re.sub(r"[\s{}.]", "", unit)
    known = words.partition("^")[0].partition("/")[0]
    if known not in _UNITS and (len(known) < 4 or only_number(match["value"]) is None):
        return text, ""  # variables, as in 5xy
    return match["value"], words.replace(known, _UNITS.get(known, known), 1)


def is_text(text: str) -> bool:
    """Say whether an answer is words, which have no mathematics in them."""
    return re.fullmatch(r"[A-Za-z][A-Za-z'\-]*(?:[ ,]+[A-Za-z'\-]+)*", text) is not None and (
        len(text) > 2 or " " in text
    )
