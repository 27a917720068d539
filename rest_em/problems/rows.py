"""Rows of a file or of a hub data set, each with its place for error messages.

Local files are read here, so that a mistake is told with its line; hub data sets by `datasets`.
"""

from __future__ import annotations

import csv
import datetime
import decimal
import gzip
import hashlib
import io
import json
import math
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from rest_em.errors import ProblemError
from rest_em.recipe import ProblemSource, Range, is_pattern, nearest

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
    """Return the rows of files or of a hub data set that are asked for, at least one.

    Raises:
        ProblemError: it, or a line of it, cannot be read, it is empty, or no row is as `where` says.
    """
    rows = all_rows(source)
    return [rows[number] for number in wanted_rows(rows, source)]


def all_rows(source: ProblemSource) -> Sequence[Row]:
    """Return the rows of files or of a hub data set, those too that are not asked for.

    Raises:
        ProblemError: it, or a line of it, cannot be read, or it is empty.
    """
    return _read_files(source) if source.is_file else _read_data_set(source)


def wanted_rows(rows: Sequence[Row], source: ProblemSource) -> Sequence[int]:
    """Return which of all rows are asked for, at least one.

    Raises:
        ProblemError: no row is as `where` says, or a column that it names is missing.
    """
    wanted = [
        number
        for number, row in enumerate(rows)
        if all(_is_wanted(row, name, one) for name, one in source.where.items())
    ]
    if not wanted:
        raise ProblemError(f"{source.path}: none of {len(rows)} rows is as `where` says: {source.where}")
    return wanted[: source.max_problems]


def _read_files(source: ProblemSource) -> Sequence[Row]:
    """Return the rows of a file; of several in the order of their paths, with their file's name: `snarks`."""
    path = Path(source.path)
    if not is_pattern(source.path):
        return read_file(path, source.field)
    above = next(one for one in path.parents if not is_pattern(str(one)))
    files = sorted(above.glob(str(path.relative_to(above))))
    if not files:
        raise ProblemError(f"{shown_path(path)}: there is no such file; a pattern must match one at least")
    rows: list[Row] = []
    for file in files:
        for row in read_file(file, source.field):
            if "file" in row.columns:
                raise ProblemError(f"{row.place}: there is a column 'file', which is to hold the file's name")
            name = file.relative_to(above).as_posix().removesuffix("".join(file.suffixes))
            rows.append(Row(row.place, {**row.columns, "file": name}))
    return rows


def _is_wanted(row: Row, column: str, wanted: Any) -> bool:
    value = column_of(row, column, "where")
    if isinstance(wanted, Range):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and wanted.min <= value <= wanted.max
    choices = wanted if isinstance(wanted, tuple) else (wanted,)
    return any(type(value) is type(one) and value == one for one in choices)


def read_file(path: Path, field: str | None = None) -> Sequence[Row]:
    """Return all rows of a file, at least one.

    Args:
        field: the key of a JSON file that holds the list of rows; None: the file is that list.

    Raises:
        ProblemError: it is of a kind that is not read, or not there, or broken, or empty.
    """
    suffix = ".jsonl.gz" if path.name.lower().endswith(".jsonl.gz") else path.suffix.lower()
    reader = _READERS.get(suffix)
    if reader is None or (field is not None and suffix != ".json"):
        raise ProblemError(
            f"{shown_path(path)}: {', '.join(_READERS)} files can be read, not {path.suffix!r}"
            if reader is None
            else f"{shown_path(path)}: `field` is for .json files; leave it out"
        )
    try:
        rows = [
            Row(place, {name: json_value(value, name, place) for name, value in columns.items()})
            for place, columns in (reader(path) if field is None else _json_rows(path, field))
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
    if path.suffix.lower() == ".gz":
        try:
            content = gzip.decompress(content)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ProblemError(f"{shown_path(path)}: the compressed file is broken: {error}") from error
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


def object_of_line(line: str, place: str, what: str = "line") -> dict[str, Any]:
    """Return what a line of JSON, or another piece of it, holds.

    Raises:
        ProblemError: it is not JSON, or no object.
    """
    try:
        value = json.loads(line, parse_constant=_refuse_constant)
    except ValueError as error:
        raise ProblemError(f"{place}: this {what} is not JSON: {error}") from error
    except RecursionError as error:
        raise ProblemError(f"{place}: this {what} is nested too deeply") from error
    return _object(value, place)


def _json_rows(path: Path, field: str | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the objects of a list, of the list that an object has at `field`, or the one object there is."""
    name, text = shown_path(path), _read_text(path)
    if text.lstrip().startswith("{"):
        whole = object_of_line(text, f"{name}:1", "file")
        if field is None:
            yield f"{name}:1", whole
            return
        if not isinstance(whole.get(field), list):
            keys = ", ".join(whole)
            raise ProblemError(f"{name}:1: there is no list {field!r} (`field`); the keys are {keys}")
        for number, value in enumerate(whole[field], start=1):
            yield f"{name}, {field} {number}", _object(value, f"{name}, {field} {number}")
        return
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

    parts = (source.name, source.split, source.data_files)
    place = f"{source.path} ({', '.join(part for part in parts if part)})"
    try:
        if source.data_files is not None:
            at = source.path if source.revision is None else f"{source.path}@{source.revision}"
            files = f"hf://datasets/{at}/{source.data_files}"
            rows = datasets.load_dataset("json", data_files=files, split="train")
        else:
            rows = datasets.load_dataset(
                source.path, source.name, split=source.split, revision=source.revision
            )
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
    ".jsonl.gz": _jsonl_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
}
