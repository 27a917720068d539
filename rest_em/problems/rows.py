"""Rows of a file or of a hub data set, each with its place for error messages.

Local files are read here, so that a mistake is told with its line; hub data sets by `datasets`.
"""

from __future__ import annotations

import csv
import datetime
import decimal
import hashlib
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from rest_em.errors import ProblemError
from rest_em.recipe import ProblemSource, nearest

_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a file or data set.

    Example:
        Row("train.jsonl:17", {"question": "2 + 2 = ?", "answer": "4"})
    """

    place: str
    """For error messages: `file:line`, or the file and the row's number."""
    columns: Mapping[str, Any]


def read_rows(source: ProblemSource) -> Sequence[Row]:
    """Return the rows of a file or hub data set, at least one and at most `max_problems`.

    Raises:
        ProblemError: it, or a line of it, cannot be read, or it is empty.
    """
    rows = read_file(Path(source.path)) if source.is_file else _read_data_set(source)
    return rows[: source.max_problems]


def read_file(path: Path) -> Sequence[Row]:
    """Return all rows of a file, at least one.

    Raises:
        ProblemError: it is of a kind that is not read, or not there, or broken, or empty.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise ProblemError(
            f"{shown_path(path)}: {', '.join(_READERS)} files can be read, not {path.suffix!r}"
        )
    try:
        rows = [
            Row(place, {name: json_value(value, name, place) for name, value in columns.items()})
            for place, columns in reader(path)
        ]
    except OSError as error:
        told = " ".join(str(error.strerror or error).split())
        raise ProblemError(f"{shown_path(path)}: this file cannot be read: {told}") from error
    if not rows:
        raise ProblemError(f"{shown_path(path)}: there is no row; one a problem is wanted")
    return rows


def column_of(row: Row, name: str, key: str) -> Any:
    """Return what a row has in the column that the recipe's `key` names.

    Raises:
        ProblemError: there is no such column.
    """
    if name in row.columns:
        return row.columns[name]
    raise ProblemError(f"{row.place}: there is no column {name!r} ({key}){those_there(name, row.columns)}")


def those_there(name: str, columns: Iterable[str]) -> str:
    """Return the end of a message about an unknown column: the nearest right one, and all.

    >>> those_there("answers", ["question", "answer"])
    "; did you mean 'answer'? the columns are question, answer"
    """
    near = nearest(name, columns)
    meant = "" if near is None else f"did you mean {near!r}? "
    return f"; {meant}the columns are {', '.join(columns)}"


def row_hash(columns: Mapping[str, Any]) -> str:
    """Return 16 hex digits that depend on a row's content, not on the order of its columns."""
    text = json.dumps(columns, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def shown_path(path: Path) -> Path:
    """Return the path relative to the working directory where it is below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _read_text(path: Path) -> str:
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ProblemError(
            f"{shown_path(path)}:{line}: a byte is not UTF-8; text in UTF-8 is wanted"
        ) from error


def _jsonl_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    name = shown_path(path)
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if line.strip():
            place = f"{name}:{number}"
            yield place, object_of_line(line, place)


def object_of_line(line: str, place: str) -> dict[str, Any]:
    """Return what a line of JSON holds.

    Raises:
        ProblemError: it is not JSON, or no object.
    """
    try:
        value = json.loads(line, parse_constant=_refuse_constant)
    except ValueError as error:
        raise ProblemError(f"{place}: this line is not JSON: {error}") from error
    except RecursionError as error:
        raise ProblemError(f"{place}: this line is nested too deeply") from error
    return _object(value, place)


def _json_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    name, text = shown_path(path), _read_text(path)
    line, counted = 1, 0
    for start, value in _json_items(name, text):
        line, counted = line + text.count("\n", counted, start), start
        yield f"{name}:{line}", _object(value, f"{name}:{line}")


def _json_items(name: Path, text: str) -> Iterator[tuple[int, Any]]:
    """Yield each item of a list in JSON, and the position where it starts."""

    def refuse(position: int, message: str) -> NoReturn:
        line = text.count("\n", 0, position) + 1
        raise ProblemError(f"{name}:{line}: this is not JSON: {message}")

    decoder = json.JSONDecoder(parse_constant=_refuse_constant)
    position = _skip_space(text, 0)
    if not text.startswith("[", position):
        refuse(position, "a list of objects is wanted")
    position = _skip_space(text, position + 1)
    while not text.startswith("]", position):
        start = position
        try:
            value, position = decoder.raw_decode(text, start)
        except json.JSONDecodeError as error:
            refuse(error.pos, error.msg)
        except ValueError as error:
            refuse(start, str(error))
        yield start, value
        position = _skip_space(text, position)
        if text.startswith(",", position):
            position = _skip_space(text, position + 1)
        elif not text.startswith("]", position):
            refuse(position, "',' or ']' is wanted")
    if text[position + 1 :].strip():
        refuse(position, "nothing is wanted after the list")


def _skip_space(text: str, position: int) -> int:
    while text[position : position + 1].isspace():
        position += 1
    return position


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value")


def _object(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ProblemError(f"{place}: this is a {type(value).__name__}; an object with the columns is wanted")
    return value


def _csv_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    name = shown_path(path)
    reader = csv.reader(io.StringIO(_read_text(path), newline=""), strict=True)
    names: list[str] = []
    line = 1
    try:
        for cells in reader:
            place, line = f"{name}:{line}", reader.line_num + 1
            if not cells:
                continue
            if not names:
                names = _csv_names(cells, place)
            elif len(cells) != len(names):
                found = f"{len(cells)} cells, and the first line names {len(names)} columns"
                raise ProblemError(f"{place}: there are {found}")
            else:
                yield place, dict(zip(names, cells, strict=True))
    except csv.Error as error:
        raise ProblemError(f"{name}:{line}: this is not CSV: {error}") from error


def _csv_names(cells: list[str], place: str) -> list[str]:
    for name in cells:
        if not name or cells.count(name) > 1:
            raise ProblemError(
                f"{place}: the column names are {', '.join(map(repr, cells))}; each once is wanted"
            )
    return cells


def _parquet_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    name = shown_path(path)
    try:
        rows = pq.ParquetFile(path).read().to_pylist()
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise ProblemError(f"{name}: this is not Parquet: {' '.join(str(error).split())}") from error
    for number, row in enumerate(rows, start=1):
        yield f"{name}, row {number}", row


def _read_data_set(source: ProblemSource) -> Sequence[Row]:
    import datasets

    place = f"{source.path} ({', '.join(part for part in (source.name, source.split) if part)})"
    try:
        rows = datasets.load_dataset(source.path, source.name, split=source.split, revision=source.revision)
    except (datasets.exceptions.DatasetsError, ValueError, OSError, RuntimeError) as error:
        cause = "" if error.__cause__ is None else f" ({error.__cause__})"
        told = " ".join(f"{error}{cause}".split())
        # datasets 4 runs no loading scripts any more, and says so with a RuntimeError.
        advice = "; take a copy of it in Parquet or JSONL" if isinstance(error, RuntimeError) else ""
        raise ProblemError(f"{place}: this data set cannot be read: {told}{advice}") from error
    return [
        Row(where, {name: json_value(value, name, where) for name, value in row.items()})
        for where, row in ((f"{place}, row {number}", row) for number, row in enumerate(rows, start=1))
    ]


def json_value(value: Any, column: str, place: str) -> Any:
    """Return the value as JSON has it: dates as ISO 8601 text, decimals as text, NaN (no value) as null."""
    if isinstance(value, str) and _SURROGATE.search(value):
        raise ProblemError(f"{place}: column {column!r} holds half a surrogate pair, which is no text")
    if isinstance(value, float) and not math.isfinite(value):
        if math.isnan(value):
            return None
        raise ProblemError(
            f"{place}: column {column!r} holds {value}, or a number too large; finite is wanted"
        )
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return str(value)
    if isinstance(value, list | tuple):
        return [json_value(one, column, place) for one in value]
    if isinstance(value, dict):
        return {str(key): json_value(one, column, place) for key, one in value.items()}
    kind = type(value).__name__
    raise ProblemError(f"{place}: column {column!r} holds {kind}; text, numbers, lists or objects are wanted")


_READERS: Mapping[str, Callable[[Path], Iterator[tuple[str, dict[str, Any]]]]] = {
    ".jsonl": _jsonl_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
}
