"""JSON as logs hold it: parsed with the place in every error, asked by key and kind, and read by parts.

Here is also what a log of ours keeps of a sample beside the keys that another harness has for it.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO, TypeVar, get_args

from rest_em.errors import SamplesError
from rest_em.samples import Decoding, Sample
from rest_em.types import FinishReason, Messages

KEY = "rest_em"
"""Under which a log of ours keeps what the other harness has no key for."""

_T = TypeVar("_T")
_DECODER = json.JSONDecoder()
_CHUNK = 1 << 16
_LONGEST_PIECE = 32
"""Characters of the longest piece of JSON that the end of a chunk may cut, strings aside: an escaped pair."""
_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")
_LARGEST = 2**31 - 1
"""Of the whole numbers that the table of samples has room for."""
_KINDS = {
    str: "a text",
    int: f"a whole number from 0 to {_LARGEST}",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}


def parsed(text: str, place: str) -> Any:
    """Return a JSON value.

    >>> parsed("[1", "a.jsonl:3")
    Traceback (most recent call last):
    rest_em.errors.SamplesError: a.jsonl:3: this is not JSON: Expecting ',' delimiter, at character 2

    Raises:
        SamplesError: it is not JSON, or has half a surrogate pair, which is no character.
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise SamplesError(f"{place}: this is not JSON: {error.msg}, at character {error.pos}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, a thousand brackets
        raise SamplesError(f"{place}: this JSON cannot be read: {error}") from error
    _check_characters(text, value, place)
    return value


def _check_characters(text: str, value: Any, place: str) -> None:
    if _HALF_PAIR.search(text) is None:
        return
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise SamplesError(f"{place}: {half!r} is half a surrogate pair and no character") from error


def found(value: Any) -> str:
    """Return what a JSON value is, for errors.

    >>> found([1]), found(None), found("4"), found(0.5)
    ('a list', 'null', "'4'", '0.5')
    """
    if value is None:
        return "null"
    if isinstance(value, list | dict):
        return _KINDS[type(value)]
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def field(values: Mapping[str, Any], name: str, kind: type[_T], place: str) -> _T:
    """Return the value of a key that must be there.

    >>> field({"id": 1}, "id", str, "a.jsonl:3")
    Traceback (most recent call last):
    rest_em.errors.SamplesError: a.jsonl:3: id is 1; a text is wanted

    Raises:
        SamplesError: it is missing, or of another kind.
    """
    if name not in values:
        raise SamplesError(f"{place}: there is no {name}; {_KINDS[kind]} is wanted")
    value = optional_field(values, name, kind, place)
    if value is None:
        raise SamplesError(f"{place}: {name} is null; {_KINDS[kind]} is wanted")
    return value


def optional_field(values: Mapping[str, Any], name: str, kind: type[_T], place: str) -> _T | None:
    """Return the value of a key, None where it is missing or null.

    Raises:
        SamplesError: it is of another kind.
    """
    value = values.get(name)
    is_right = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    if value is None or (is_right and not (isinstance(value, int) and not 0 <= value <= _LARGEST)):
        return value
    raise SamplesError(f"{place}: {name} is {found(value)}; {_KINDS[kind]} is wanted")


def as_object(value: Any, name: str, place: str) -> dict[str, Any]:
    """Return a value that must be an object.

    Raises:
        SamplesError: it is not.
    """
    return field({name: value}, name, dict, place)


def id_of(values: Mapping[str, Any], name: str, place: str) -> str:
    """Return an id as a text; harnesses have numbers, too.

    Raises:
        SamplesError: it is missing, or neither a text nor a whole number.
    """
    value = values.get(name)
    if isinstance(value, str | int) and not isinstance(value, bool):
        return str(value)
    raise SamplesError(f"{place}: {name} is {found(value)}; a text or a whole number is wanted")


def text_of(content: Any, name: str, place: str) -> str:
    """Return the text of a message: the content, or those of its parts that are text, a line each.

    Raises:
        SamplesError: it is neither.
    """
    if isinstance(content, str):
        return content
    parts = [as_object(part, name, place) for part in field({name: content}, name, list, place)]
    return "\n".join(field(part, "text", str, place) for part in parts if part.get("type") == "text")


def messages_of(value: Any, name: str, place: str) -> Messages:
    """Return a chat, `role` and `content` of each message.

    Raises:
        SamplesError: it is none.
    """
    messages = [
        as_object(one, f"a message of {name}", place) for one in field({name: value}, name, list, place)
    ]
    return tuple(
        {"role": field(one, "role", str, place), "content": text_of(one.get("content"), "content", place)}
        for one in messages
    )


def kept_of(sample: Sample) -> dict[str, Any]:
    """Return what no harness has a key for."""
    names = ("reward", "finish_reason", "num_tokens", "is_format_valid", "vote")
    return {name: getattr(sample, name) for name in names}


def with_kept(sample: Sample, kept: Mapping[str, Any], place: str) -> Sample:
    """Return a sample with what `kept_of` gave.

    Raises:
        SamplesError: something of it is missing or wrong.
    """
    reward, reason = kept.get("reward"), kept.get("finish_reason")
    if (
        not isinstance(reward, int | float)
        or isinstance(reward, bool)
        or not 0 <= reward <= sys.float_info.max
    ):
        raise SamplesError(f"{place}: reward is {found(reward)}; a number >= 0 is wanted")
    if reason is not None and reason not in get_args(FinishReason):
        wanted = ", ".join(get_args(FinishReason))
        raise SamplesError(f"{place}: finish_reason is {found(reason)}; {wanted} or null is wanted")
    return dataclasses.replace(
        sample,
        reward=float(reward),
        finish_reason=reason,
        num_tokens=optional_field(kept, "num_tokens", int, place),
        is_format_valid=optional_field(kept, "is_format_valid", bool, place),
        vote=optional_field(kept, "vote", str, place),
    )


def decoding_of(kept: Mapping[str, Any], place: str) -> Decoding:
    """Return how a sample of ours was drawn.

    Raises:
        SamplesError: it does not say.
    """
    match kept.get("decoding"):
        case "greedy":
            return "greedy"
        case "sampled":
            return "sampled"
        case other:
            raise SamplesError(f"{place}: decoding is {found(other)}; greedy or sampled is wanted")


def members(path: Path, listed: str) -> Iterator[tuple[str, Any, str]]:
    """Yield each key of a file's object with its value and place, up to the end of the list `listed`.

    Of that list each item comes alone, so that no more than one is in memory.

    Raises:
        SamplesError: it is not JSON, no object, or cannot be read.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield from _Parts(file, path).members(listed)
    except UnicodeDecodeError as error:
        raise SamplesError(f"{path}: a byte is not UTF-8; a log is text in UTF-8") from error
    except OSError as error:
        raise SamplesError(f"{path}: cannot be read: {error.strerror or error}") from error


class _Parts:
    """The values of a JSON text, one at a time."""

    def __init__(self, file: TextIO, path: Path) -> None:
        self._file = file
        self._path = path
        self._text = ""
        self._at = 0
        self._line = 1

    def members(self, listed: str) -> Iterator[tuple[str, Any, str]]:
        self._take("{", "a JSON object is wanted")
        while True:
            key = self._value()
            self._take(":", "a key and a value are wanted")
            if key == listed and self._next() == "[":
                yield from ((listed, *item) for item in self._items())
                return
            place = self._place()
            yield str(key), self._value(), place
            if self._next() == "}":
                return
            self._take(",", "another key is wanted")

    def _items(self) -> Iterator[tuple[Any, str]]:
        self._take("[", "a list is wanted")
        if self._next() == "]":
            return
        while True:
            self._next()
            place = self._place()
            yield self._value(), place
            if self._next() == "]":
                return
            self._take(",", "another item is wanted")

    def _value(self) -> Any:
        self._next()
        size = _CHUNK
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                is_cut = error.pos > len(self._text) - _LONGEST_PIECE or error.msg.startswith("Unterminated")
                # Twice as much each time: what is decoded in vain is less than what is read.
                size *= 2
                if is_cut and self._read(size):
                    continue
                line = self._line + self._text.count("\n", self._at, error.pos)
                raise SamplesError(f"{self._path}:{line}: this is not JSON: {error.msg}") from error
            except (ValueError, RecursionError) as error:
                raise SamplesError(f"{self._place()}: this JSON cannot be read: {error}") from error
            if end == len(self._text) and self._read(size):
                continue  # a number may go on
            text = self._text[self._at : end]
            _check_characters(text, value, self._place())
            self._advance(end)
            return value

    def _next(self) -> str:
        """Return the next character that is no space, empty at the end."""
        while True:
            end = self._at
            while end < len(self._text) and self._text[end] in " \t\r\n":
                end += 1
            self._advance(end)
            if end < len(self._text):
                return self._text[end]
            if not self._read(_CHUNK):
                return ""

    def _take(self, wanted: str, told: str) -> None:
        character = self._next()
        if character != wanted:
            what = f"{character!r} is found" if character else "the file ends"
            raise SamplesError(f"{self._place()}: {what} where {wanted!r} is wanted: {told}")
        self._advance(self._at + 1)

    def _read(self, size: int) -> bool:
        more = self._file.read(size)
        self._text = self._text[self._at :] + more
        self._at = 0
        return bool(more)

    def _advance(self, end: int) -> None:
        self._line += self._text.count("\n", self._at, end)
        self._at = end

    def _place(self) -> str:
        return f"{self._path}:{self._line}"
