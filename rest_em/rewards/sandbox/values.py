"""What crosses between a program and those who judge it: exact builtin values, as JSON that cannot execute.

None, bool, int, float, str and list are themselves; bytes, tuple, dict, set and what JSON lacks (NaN, an
integer of more digits than Python reads) are objects with one key. A value of any other type, a subclass of
these among them, does not cross: what it is equal to would be its own to say. Only the dictionaries of
`collections`, which are equal to plain ones, cross as such. Both sides bound what they take.
"""

from __future__ import annotations

import json
import math
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Hashable, Sequence
from typing import Any

MAX_DEPTH = 200
"""Containers in one another."""
MOST_OF_ONE_HASH = 64
"""How many items of a set or keys of a dictionary there may be for each hash that they have."""
_MAX_DECIMAL = 10**4000
"""Python reads and writes at most 4300 digits."""


class CannotCrossError(ValueError):
    """Raised for a value that is no plain data, or too deep or too large."""


def encode(value: object, *, max_bytes: int) -> bytes:
    """Return a value as JSON.

    >>> encode([1, (2.5, None)], max_bytes=100)
    b'[1,{"t":[2.5,null]}]'

    Raises:
        CannotCrossError: it is not plain data, or larger than `max_bytes`.
    """
    budget = [max_bytes]
    text = _TO_JSON(_plain(value, 0, budget)).encode()
    if len(text) > max_bytes:
        raise CannotCrossError(f"larger than {max_bytes:,} bytes")
    return text


def decode(text: bytes) -> Any:
    """Return what `encode` was given.

    Raises:
        CannotCrossError: it is no such text; whoever wrote it is not trusted.
    """
    try:
        return _FROM_JSON(text.decode())
    except (ValueError, RecursionError, TypeError, ArithmeticError) as error:
        raise CannotCrossError(f"not a value: {type(error).__name__}") from error


def _plain(value: object, depth: int, budget: list[int]) -> object:  # noqa: PLR0911
    kind = type(value)
    budget[0] -= 1
    if budget[0] < 0 or depth > MAX_DEPTH:
        raise CannotCrossError("too deeply nested" if depth > MAX_DEPTH else "too large")
    if value is None or kind is bool:
        return value
    if kind is str:
        budget[0] -= len(value)  # type: ignore[arg-type]
        return value
    if kind is int:
        assert isinstance(value, int)
        budget[0] -= value.bit_length() // 4
        return value if -_MAX_DECIMAL < value < _MAX_DECIMAL else {"i": hex(value)}
    if kind is float:
        assert isinstance(value, float)
        return value if math.isfinite(value) else {"f": repr(value)}
    if kind is bytes:
        assert isinstance(value, bytes)
        budget[0] -= 2 * len(value)
        if budget[0] < 0:
            raise CannotCrossError("too large")
        return {"b": value.hex()}
    if kind is complex:
        assert isinstance(value, complex)
        return {"c": [_plain(value.real, depth + 1, budget), _plain(value.imag, depth + 1, budget)]}
    if kind in (list, tuple, set, frozenset):
        items = [_plain(one, depth + 1, budget) for one in value]  # type: ignore[attr-defined]
        return items if kind is list else {_LETTERS[kind]: items}
    if kind in _DICTIONARIES:
        assert isinstance(value, dict)
        pairs = [
            [_plain(key, depth + 1, budget), _plain(one, depth + 1, budget)] for key, one in value.items()
        ]
        return {"d": pairs}
    raise CannotCrossError(f"of type {kind.__name__[:80]}, which is no plain data")


_TO_JSON = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
_DICTIONARIES = (dict, defaultdict, Counter, OrderedDict)
_LETTERS: dict[type, str] = {tuple: "t", set: "s", frozenset: "z"}


def _special(found: dict[str, Any]) -> Any:
    if len(found) != 1:
        raise ValueError("an object of one key is wanted")
    ((letter, content),) = found.items()
    return _DECODERS[letter](content) if letter in _DECODERS else _refuse(letter)


_DECODERS: dict[str, Any] = {
    "t": tuple,
    "s": lambda items: set(check_spread(items)),
    "z": lambda items: frozenset(check_spread(items)),
    "d": lambda pairs: dict(
        zip(check_spread([key for key, _ in pairs]), (one for _, one in pairs), strict=True)
    ),
    "b": bytes.fromhex,
    "c": lambda parts: complex(*parts),
    "f": lambda name: float(name) if name in ("nan", "inf", "-inf") else _refuse(name),
    "i": lambda digits: int(digits, 16),
}


def check_spread(items: Sequence[Hashable]) -> Sequence[Hashable]:
    """Return what is to become a set's items or a dictionary's keys.

    Raises:
        ValueError: nearly all of them have the same hash, with which a set takes a time that is quadratic.
    """
    if len(items) > MOST_OF_ONE_HASH * len({hash(one) for one in items}):
        raise ValueError("the hashes of its items are the same")
    return items


def _refuse(name: str) -> Any:
    raise ValueError(f"{name!r} is not known here")


_FROM_JSON = json.JSONDecoder(object_hook=_special, parse_constant=_refuse).decode
