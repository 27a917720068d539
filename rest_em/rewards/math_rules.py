"""Whether two mathematical answers are the same, as far as exact checks on their text can tell.

Stricter than mathematics alone: units, orders, hedges, letters and bases count. What no check knows is left
to math-verify, by `math_answer`. Answers are read by `math_notation`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

from rest_em.rewards.answers import only_number, option
from rest_em.rewards.math_notation import CURRENCIES, NUMBER_WORDS, TEXT, Answer, is_text, without_spaces

HEDGE = re.compile(
    r"\b(?:or|either|maybe|perhaps|probably|possibly|approximately|about|between|not|except)\b"
    r"|\bat\s+(?:least|most)\b|\b(?:less|more|greater|fewer)\s+than\b"
    r"|\?|\\approx|≈|~\s*[=\d]|\\lor\b|\\vee\b|\d\s*\.\.\.",
    re.IGNORECASE,
)
_BASE = re.compile(r"^\(?([0-9A-Fa-f]+)\)?_\{?([0-9]{1,2}|[a-z]+)\}?$")
_RATIO = re.compile(r"\d{1,9}(?::\d{1,9})+")
_NAME = re.compile(r"\\?[A-Za-z]+'?(?:_\{?\w+\}?)?(?:\^\{?-1\}?)?(?:\([A-Za-z0-9,]+\))?")
"""What an equation can give a value to: a variable, or a function."""
_OPTION = re.compile(r"(?:option|choice|answer)?\s*\(?([A-Z])(?:[):.](?:\s*\S.*|\s*)|$)", re.IGNORECASE)
_OPENS, _CLOSES = {"<": "(", r"\le": "["}, {"<": ")", r"\le": "]"}
_MIRRORED = {">": "<", r"\ge": r"\le"}
_MEMBER = re.compile(r"([a-zA-Z])\\in(?![A-Za-z])\s*([(\[].*[)\]])")
_INTERVAL = re.compile(r"[(\[].*,.*[)\]]")
_VARIABLE = re.compile(r"[a-zA-Z](?:\([a-z]\))?")
_RELATION = re.compile(r"<|>|\\le(?![A-Za-z])|\\ge(?![A-Za-z])")
_TIME = re.compile(r"^(\d{1,2}):([0-5]\d)(?::([0-5]\d))?\s*([ap]\.?m\.?)?$", re.IGNORECASE)
_WORD_LIST = re.compile(r"^[A-Za-z]+(?:\s*[,<>]\s*[A-Za-z]+)+$")


def settle(gold: Answer, answer: Answer) -> bool | None:
    """Say whether two answers are the same; None where only mathematics can tell.

    The checks are asked in their order, and the first that knows is believed.
    """
    verdicts = (check(gold, answer) for check in _CHECKS)
    return next((verdict for verdict in verdicts if verdict is not None), None)


def _texts(gold: Answer, answer: Answer) -> bool | None:
    if gold.text == answer.text:
        return True
    return None if answer.text else False


def _hedges(gold: Answer, answer: Answer) -> bool | None:
    return False if HEDGE.search(answer.text) and not HEDGE.search(gold.text) else None


def _units(gold: Answer, answer: Answer) -> bool | None:
    if gold.unit and answer.unit and gold.unit != answer.unit:
        return False
    has_currency = not {gold.unit, answer.unit}.isdisjoint(CURRENCIES.values())
    return False if has_currency and "%" in gold.text + answer.text else None


def _numbers(gold: Answer, answer: Answer) -> bool | None:
    if gold.number is None or answer.number is None:
        return None
    return _are_equal(gold, answer)


def _bases(gold: Answer, answer: Answer) -> bool | None:
    one, other = _base(gold.text), _base(answer.text)
    return one == other if one or other else None


def _ratios(gold: Answer, answer: Answer) -> bool | None:
    """Refuse a ratio of three or more that is not written as the other."""
    is_any = any(_RATIO.fullmatch(one.text) and one.text.count(":") > 1 for one in (gold, answer))
    return False if is_any else None


def _times(gold: Answer, answer: Answer) -> bool | None:
    one, other = _TIME.match(gold.text), _TIME.match(answer.text)
    return _time(one) == _time(other) if one and other else None


def _letters(gold: Answer, answer: Answer) -> bool | None:
    """Compare option letters; other single letters are variables, and differ."""
    one, other = _letter(gold.text), _letter(answer.text)
    if one and not other and len(answer.text) > 1:
        is_option = _OPTION.fullmatch(TEXT.sub(lambda match: match[1] + " ", answer.text))
        other = option(answer.text) if is_option else None
    if one and other:
        return one == other
    return False if len(gold.text) == len(answer.text) == 1 else None


def _sets(gold: Answer, answer: Answer) -> bool | None:
    """Refuse a set where the other has an order, as a point or an interval has."""
    if _is_set(gold.text) == _is_set(answer.text):
        return None
    have_brackets = all(
        one.text[:1] in ("(", "[", "\\") and len(_elements(one.text)) > 1 for one in (gold, answer)
    )
    return False if have_brackets else None


def _equations(gold: Answer, answer: Answer) -> bool | None:
    is_any = _equates_more(gold.text, answer.text) or _equates_more(answer.text, gold.text)
    return False if is_any else None


def _all_words(gold: Answer, answer: Answer) -> bool | None:
    one, other = _words(gold.text), _words(answer.text)
    if one is not None and other is not None:
        return one == other
    return False if one is not None and is_text(gold.text) else None


def _lists(gold: Answer, answer: Answer) -> bool | None:
    """Compare lists of plain numbers; refuse lists of unlike length, where each element is written out."""
    texts = (gold.text, answer.text)
    parts = [_elements(one) for one in texts]
    numbers = [[only_number(element) for element in part] for part in parts]
    if all(len(one) > 1 and None not in one for one in numbers) and not any(one[0] in "([" for one in texts):
        return sorted(map(str, numbers[0])) == sorted(map(str, numbers[1]))
    if len(parts[0]) != len(parts[1]) and (len(parts[0]) > 1 or len(parts[1]) > 1):
        both_plain = not re.search(
            r"\\pm|\\mp|\\text|\\in|\\cup|=|matrix|\\(?:or|and)\b|\band\b|\bor\b", gold.text + answer.text
        )
        return False if both_plain else None
    return None


_CHECKS = (
    _texts, _hedges, _units, _numbers, _bases, _ratios, _times, _letters, _sets, _equations, _all_words,
    _lists,
)  # fmt: skip


def _base(text: str) -> tuple[str, str] | None:
    """Return the digits and the base of a number that has one."""
    match = _BASE.match(TEXT.sub(lambda found: found[1], text))
    if match is None or (match[2] not in NUMBER_WORDS and not match[2].isdigit()):
        return None
    return match[1].upper(), NUMBER_WORDS.get(match[2], match[2])


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


def _as_interval(text: str) -> tuple[str, str] | None:
    """Return the variable and the interval of an inequality or membership: `-1<x\\le2` is ("x", "(-1,2]")."""
    if member := _MEMBER.fullmatch(text):
        return member[1], member[2]
    parts, signs = [one.strip() for one in _RELATION.split(text)], _RELATION.findall(text)
    if signs and signs[0] in _MIRRORED:
        parts, signs = parts[::-1], [_MIRRORED.get(sign, "") for sign in signs[::-1]]
    if not all(parts) or not set(signs) <= _OPENS.keys() or re.search("[,=]", text):
        return None
    match parts:
        case [low, variable, high]:
            pass
        case [low, variable] if _VARIABLE.fullmatch(variable) and not re.search("[a-zA-Z]", low):
            high, signs = r"\infty", [*signs, "<"]
        case [variable, high] if not re.search("[a-zA-Z]", high):
            low, signs = r"-\infty", ["<", *signs]
        case _:
            return None
    if not _VARIABLE.fullmatch(variable):
        return None
    return variable, f"{_OPENS[signs[0]]}{low},{high}{_CLOSES[signs[1]]}"


def in_one_form(gold: Answer, answer: Answer) -> tuple[Answer, Answer]:
    """Write inequalities as intervals, where both answers are one or the other."""
    one, other = _as_interval(gold.text), _as_interval(answer.text)
    if one and other:
        return (gold, answer) if one[0] != other[0] else (_reread(one[1]), _reread(other[1]))
    if one and _INTERVAL.fullmatch(answer.text):
        return _reread(one[1]), answer
    if other and _INTERVAL.fullmatch(gold.text):
        return gold, _reread(other[1])
    return gold, answer


def _reread(text: str) -> Answer:
    return Answer(without_spaces(text), text, "", None)


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
    plain = TEXT.sub(lambda match: match[1], text)
    plain = re.sub(r"^(?:an?|the) (?=[A-Za-z]{3})", "", " ".join(plain.split()), flags=re.IGNORECASE)
    if _WORD_LIST.match(plain) or is_text(plain) or re.fullmatch(r"[A-Z]{2,}", plain):
        return re.sub(r"\s*([,<>])\s*", r"\1", plain).lower().rstrip(".")
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
