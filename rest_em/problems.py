"""Rows of a local file or of a hub data set -> `Problem`s with rendered prompts.

Local files are read here, so that a mistake is told with its line; hub data sets by `datasets`. Prompts are
plain text or chat messages; the tokenizer's chat template is left to the sampler and the trainer.
"""

from __future__ import annotations

import csv
import datetime
import decimal
import difflib
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.meta
import jinja2.sandbox

from rest_em.errors import ProblemError
from rest_em.recipe import ProblemSource, ProblemsSection, PromptSection, PromptVariant
from rest_em.types import Messages, Problem

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


def load_problems(
    source: ProblemSource, section: ProblemsSection, prompt: PromptSection, variant: PromptVariant
) -> tuple[Problem, ...]:
    """Return a source's problems in its order, their prompts rendered with one variant of the prompt.

    Raises:
        ProblemError: a file or a line cannot be read, a column is missing, an id comes twice, there is no
            problem, or the prompt does not render.
    """
    rows = read_rows(source)[: source.max_problems]
    render = _Prompt(prompt, resolve_variant(prompt, variant))
    places: dict[str, str] = {}
    problems = []
    for row in rows:
        identity = _id(row, section)
        if identity in places:
            _refuse_twice(row, places[identity], section)
        places[identity] = row.place
        problems.append(
            Problem(
                id=identity,
                prompt=render(row),
                reference=_reference(row, section),
                metadata=_other_columns(row, section),
            )
        )
    return tuple(problems)


def _id(row: Row, section: ProblemsSection) -> str:
    if section.id is None:
        return row_hash(row.columns)
    value = _column(row, section.id, "problems.id")
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise ProblemError(
            f"{row.place}: the id in column {section.id!r} is {value!r}; a text or whole number is wanted"
        )
    return str(value)


def row_hash(columns: Mapping[str, Any]) -> str:
    """Return 16 hex digits that depend on a row's content, not on the order of its columns."""
    text = json.dumps(columns, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _refuse_twice(row: Row, first: str, section: ProblemsSection) -> NoReturn:
    if section.id is None:
        raise ProblemError(f"{row.place}: the same row as {first}; leave one out")
    shown = row.columns[section.id]
    raise ProblemError(f"{row.place}: the id {shown!r} is given twice, first at {first}; ids must be unique")


def _reference(row: Row, section: ProblemsSection) -> Any:
    value = _column(row, section.reference, "problems.reference")
    if value is None or value == "":
        raise ProblemError(f"{row.place}: the reference in column {section.reference!r} is empty")
    return value


def _other_columns(row: Row, section: ProblemsSection) -> dict[str, Any]:
    return {key: value for key, value in row.columns.items() if key not in (section.id, section.reference)}


def _column(row: Row, name: str, key: str) -> Any:
    if name in row.columns:
        return row.columns[name]
    raise ProblemError(f"{row.place}: there is no column {name!r} ({key}){_those_there(name, row.columns)}")


def _those_there(name: str, columns: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(columns), n=1)
    meant = f"did you mean {near[0]!r}? " if near else ""
    return f"; {meant}the columns are {', '.join(columns)}"


# Prompts


class _Prompt:
    """Renders one variant of the prompt for any row."""

    def __init__(self, section: PromptSection, variant: PromptVariant) -> None:
        assert variant.template is not None, "the variant is resolved"
        self._environment = jinja2.sandbox.SandboxedEnvironment(
            undefined=jinja2.StrictUndefined, keep_trailing_newline=True, finalize=_refuse_null
        )
        self._source = variant.template
        self._template = self._environment.from_string(variant.template)
        self._chat = bool(variant.chat_template)
        self._system = variant.system
        self._separator = section.example_separator
        examples = _examples(variant)
        self._examples = [(self._text(row), _worked_solution(row, section.solution)) for row in examples]

    def __call__(self, row: Row) -> str | Messages:
        """Return the prompt of a row."""
        text = self._text(row)
        if not self._chat:
            shots = (f"{problem}{solution}{self._separator}" for problem, solution in self._examples)
            return "".join(shots) + text
        messages = [_message("system", self._system)] if self._system else []
        for problem, solution in self._examples:
            messages += [_message("user", problem), _message("assistant", solution)]
        return (*messages, _message("user", text))

    def _text(self, row: Row) -> str:
        try:
            text = self._template.render(row.columns)
        except jinja2.UndefinedError as error:
            wanted = jinja2.meta.find_undeclared_variables(self._environment.parse(self._source))
            missing = sorted(wanted - row.columns.keys())
            if missing:
                name = missing[0]
                told = f"the template uses {name!r}, and there is no such column"
                raise ProblemError(f"{row.place}: {told}{_those_there(name, row.columns)}") from error
            raise ProblemError(f"{row.place}: the prompt does not render: {error.message}") from error
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
            raise ProblemError(f"{row.place}: the prompt does not render: {error}") from error
        if not text.strip():
            raise ProblemError(f"{row.place}: the prompt renders to nothing")
        return text


def _refuse_null(value: Any) -> Any:
    """Jinja's `finalize`: an empty column is no text `None`."""
    if value is None:
        raise jinja2.UndefinedError("it shows a column that is null here; `{{ column or '' }}` shows nothing")
    return value


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _examples(variant: PromptVariant) -> Sequence[Row]:
    if variant.examples is None or variant.num_examples == 0:
        return ()
    rows = _read_file(Path(variant.examples))
    if variant.num_examples is not None and len(rows) < variant.num_examples:
        found = f"there are {len(rows)} examples, and prompt.num_examples is {variant.num_examples}"
        raise ProblemError(f"{_shown(Path(variant.examples))}: {found}")
    return rows[: variant.num_examples]


def _worked_solution(row: Row, column: str) -> str:
    solution = _column(row, column, "prompt.solution")
    if not isinstance(solution, str) or not solution:
        raise ProblemError(
            f"{row.place}: the solution in column {column!r} is {solution!r}; a text is wanted"
        )
    return solution


def resolve_variant(prompt: PromptSection, variant: PromptVariant) -> PromptVariant:
    """Return a variant with everything said: what it inherits, how many examples it shows, and its name.

    Raises:
        ProblemError: the examples cannot be read.
    """
    whole = prompt.resolved(variant)
    num_examples = len(_examples(whole))
    name = f"{num_examples}-shot chat" if whole.chat_template else f"{num_examples}-shot"
    return whole.model_copy(update={"num_examples": num_examples, "name": whole.name or name})


def base_variants(prompt: PromptSection) -> tuple[PromptVariant, ...]:
    """Return the candidates for the base model, at least one, under names of their own."""
    resolved: list[PromptVariant] = []
    for written in prompt.base or (PromptVariant(),):
        variant = resolve_variant(prompt, written)
        taken = {one.name for one in resolved}
        names = (variant.name if number == 1 else f"{variant.name} ({number})" for number in range(1, 99))
        resolved.append(
            variant.model_copy(update={"name": next(name for name in names if name not in taken)})
        )
    return tuple(resolved)


def tuned_variant(prompt: PromptSection) -> PromptVariant:
    """Return the prompt of the tuned policies."""
    return resolve_variant(prompt, prompt.tuned)


def training_variant(prompt: PromptSection) -> PromptVariant:
    """Return the prompt of the M-step."""
    return resolve_variant(prompt, prompt.tuned if prompt.training is None else prompt.training)


# Sets of problems


def split_validation(
    problems: Sequence[Problem], fraction: float
) -> tuple[tuple[Problem, ...], tuple[Problem, ...]]:
    """Return (train, validation), in order; a problem's side depends on its id alone.

    So other problems may come and go. Only where a side would be empty does the nearest problem change over;
    a single problem is train's.
    """
    if len(problems) < 2:
        return tuple(problems), ()
    positions = {problem.id: _position(problem.id) for problem in problems}
    lowest, highest = min(positions.values()), max(positions.values())
    chosen = {key for key, at in positions.items() if (at < fraction or at == lowest) and at != highest}
    train = tuple(problem for problem in problems if problem.id not in chosen)
    return train, tuple(problem for problem in problems if problem.id in chosen)


def _position(identity: str) -> float:
    """Return a number in [0, 1) that is spread evenly over ids."""
    digest = hashlib.sha256(f"validation:{identity}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def check_disjoint(train: Sequence[Problem], validation: Sequence[Problem], test: Sequence[Problem]) -> None:
    """Check that no problem is in two of the sets, by id and by prompt.

    Raises:
        ProblemError: some are; it names the first and how many there are.
    """
    sets = {"train": train, "validation": validation, "test": test}
    for one, other in (("train", "test"), ("validation", "test"), ("train", "validation")):
        ids = {problem.id for problem in sets[one]}
        prompts = {_text_of(problem): problem.id for problem in sets[one]}
        shared = [problem for problem in sets[other] if problem.id in ids or _text_of(problem) in prompts]
        if shared:
            first = shared[0]
            same = prompts.get(_text_of(first))
            what = f"has the prompt of {one} {same!r}" if same is not None else f"has the id of one of {one}"
            raise ProblemError(
                f"problems.{other}: {len(shared)} of {len(sets[other])} problems are also in {one}, "
                f"first {first.id!r}, which {what}; the sets must be disjoint"
            )


def _text_of(problem: Problem) -> str:
    return problem.prompt if isinstance(problem.prompt, str) else json.dumps(problem.prompt, sort_keys=True)


# Rows


def read_rows(source: ProblemSource) -> Sequence[Row]:
    """Return all rows of a file or hub data set, at least one.

    Raises:
        ProblemError: it cannot be read, or is empty.
    """
    return _read_file(Path(source.path)) if source.is_file else _read_data_set(source)


def _read_file(path: Path) -> Sequence[Row]:
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise ProblemError(f"{_shown(path)}: {', '.join(_READERS)} files can be read, not {path.suffix!r}")
    try:
        rows = [
            Row(place, {name: _json_value(value, name, place) for name, value in columns.items()})
            for place, columns in reader(path)
        ]
    except OSError as error:
        raise ProblemError(f"{_shown(path)}: this file cannot be read: {error.strerror or error}") from error
    if not rows:
        raise ProblemError(f"{_shown(path)}: there is no row; one a problem is wanted")
    return rows


def _shown(path: Path) -> Path:
    """Return the path relative to the working directory where it is below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _read_text(path: Path) -> str:
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ProblemError(f"{_shown(path)}:{line}: a byte is not UTF-8; text in UTF-8 is wanted") from error


def _jsonl_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    name = _shown(path)
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if line.strip():
            place = f"{name}:{number}"
            try:
                value = json.loads(line, parse_constant=_refuse_constant)
            except ValueError as error:
                raise ProblemError(f"{place}: this line is not JSON: {error}") from error
            yield place, _object(value, place)


def _json_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    name, text = _shown(path), _read_text(path)
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
    name = _shown(path)
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

    name = _shown(path)
    try:
        table = pq.ParquetFile(path).read()
    except pa.ArrowException as error:
        raise ProblemError(f"{name}: this is not Parquet: {error}") from error
    for number, row in enumerate(table.to_pylist(), start=1):
        yield f"{name}, row {number}", row


def _read_data_set(source: ProblemSource) -> Sequence[Row]:
    import datasets

    place = f"{source.path} ({', '.join(part for part in (source.name, source.split) if part)})"
    try:
        rows = datasets.load_dataset(source.path, source.name, split=source.split, revision=source.revision)
    except (datasets.exceptions.DatasetsError, ValueError, OSError) as error:
        cause = "" if error.__cause__ is None else f" ({error.__cause__})"
        told = " ".join(f"{error}{cause}".split())
        raise ProblemError(f"{place}: this data set cannot be read: {told}") from error
    return [
        Row(f"{place}, row {number}", {name: _json_value(value, name, place) for name, value in row.items()})
        for number, row in enumerate(rows, start=1)
    ]


def _json_value(value: Any, column: str, place: str) -> Any:
    """Return the value as JSON has it: dates as ISO 8601 text, decimals as text."""
    if isinstance(value, str) and _SURROGATE.search(value):
        raise ProblemError(f"{place}: column {column!r} holds half a surrogate pair, which is no text")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return str(value)
    if isinstance(value, list | tuple):
        return [_json_value(one, column, place) for one in value]
    if isinstance(value, dict):
        return {str(key): _json_value(one, column, place) for key, one in value.items()}
    kind = type(value).__name__
    raise ProblemError(f"{place}: column {column!r} holds {kind}; text, numbers, lists or objects are wanted")


_READERS: Mapping[str, Callable[[Path], Iterator[tuple[str, dict[str, Any]]]]] = {
    ".jsonl": _jsonl_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
}
