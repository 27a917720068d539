"""What crosses the boundary: exact builtin values, and nothing that can act."""

from __future__ import annotations

import math
from collections import Counter, OrderedDict, defaultdict, namedtuple

import pytest

from rest_em.rewards.sandbox.values import CannotCrossError, decode, encode

ROOM = 2**20


@pytest.mark.parametrize(
    "value",
    [
        None, True, False, 0, -7, 1.5, -0.0, math.inf, "", "é\udc80\x00", b"", b"\x00\xff",
        [], [1, [2, [3]]], (), (1, "a"), {1, 2}, frozenset({3}), {}, {"t": 1}, {"d": [[1, 2]]},
        {(1, 2): {"a": [b"x", (None,)]}}, 2 + 3j, [True, 1, 1.0],
    ],
)  # fmt: skip
def test_plain_values_come_back_equal_and_of_the_same_types(value: object) -> None:
    found = decode(encode(value, max_bytes=ROOM))
    assert found == value
    assert type(found) is type(value)
    assert repr(found) == repr(value)


def test_an_integer_of_more_digits_than_python_writes_crosses() -> None:
    for value in (10**5000, -(10**5000)):
        assert decode(encode(value, max_bytes=ROOM)) == value


def test_nan_comes_back_as_nan() -> None:
    assert math.isnan(decode(encode(math.nan, max_bytes=ROOM)))


def test_dictionaries_of_collections_cross_as_plain_ones() -> None:
    for value in (Counter("aab"), defaultdict(int, a=1), OrderedDict(b=2)):
        found = decode(encode(value, max_bytes=ROOM))
        assert type(found) is dict
        assert found == value


class _Lies(list):  # type: ignore[type-arg]
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


class _Number(int):
    pass


@pytest.mark.parametrize(
    "value",
    [_Lies(), [_Lies()], {"a": _Number(1)}, _Number(1), object(), len, int, iter([]), range(3), {}.keys(),
     bytearray(b"x"), memoryview(b"x"), namedtuple("Pair", "a b")(1, 2)],
)  # fmt: skip
def test_what_is_no_exact_builtin_value_does_not_cross(value: object) -> None:
    with pytest.raises(CannotCrossError, match="no plain data"):
        encode(value, max_bytes=ROOM)


def test_what_is_too_deep_or_too_large_does_not_cross() -> None:
    endless: list[object] = []
    endless.append(endless)
    with pytest.raises(CannotCrossError, match="deeply"):
        encode(endless, max_bytes=ROOM)
    for large in ("x" * ROOM, b"x" * ROOM, [0] * ROOM, [1 << (8 * ROOM)]):
        with pytest.raises(CannotCrossError, match="large"):
            encode(large, max_bytes=ROOM)


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[" * 100_000, b"NaN", b'{"t":1}', b'{"x":1}', b'{"t":[1],"s":[2]}', b"{}",
     b'{"i":"import"}',
     b'{"b":"zz"}', b'{"d":[1]}', b'{"s":[[1]]}', b"\xff", b'{"c":[1,2,3]}', b"9" * 5000],
)  # fmt: skip
def test_a_text_that_encode_did_not_write_is_refused(text: bytes) -> None:
    with pytest.raises(CannotCrossError):
        decode(text)
