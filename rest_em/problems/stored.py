"""Problems and solutions that lie in files: JSON lines, read one at a time, the bad ones told by number.

Where a recipe's problems stop at the first mistake (`rows`), here each line stands for itself: what is wrong
with one says nothing of the others. Left out: judging, and what becomes of a bad line (`rest_em.scoring`).
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from rest_em.errors import ProblemError, ScoringError
from rest_em.problems.loading import id_of, reference_of
from rest_em.problems.rows import Row, column_of, json_value, object_of_line, read_file, shown_path
from rest_em.types import FinishReason, Messages, Problem, Solution

LINE_SUFFIXES = (".jsonl", ".jsonl.gz")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class StoredProblem:
    """A problem and what its line takes.

    Example:
        StoredProblem(Problem("p1", "", reference="4"), place="problems.jsonl:1", num_bytes=29)
    """

    problem: Problem
    place: str
    num_bytes: int


@dataclass(frozen=True, slots=True)
class StoredProblems:
    """The problems of a file."""

    by_id: Mapping[str, StoredProblem]
    """In the file's order, at least one."""
    bad_lines: Sequence[str]
    """What is wrong, and where, a line each."""
    bad_ids: Mapping[str, str]
    """Ids that only bad lines have, and their places."""


@dataclass(frozen=True, slots=True)
class StoredSolution:
    """A solution and its line.

    Example:
        StoredSolution(Solution("p1", 0, 0, "The answer is 4", (), "eos"), line=1, num_bytes=52)
    """

    solution: Solution
    line: int
    """From 1."""
    num_bytes: int


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line of solutions that holds none.

    Example:
        BadLine(17, "solutions.jsonl:17: unknown problem_id 'p9'")
    """

    line: int
    text: str


def is_lines(path: Path) -> bool:
    """Say whether a file is JSON lines, by its suffix.

    >>> is_lines(Path("a.jsonl.gz")), is_lines(Path("a.parquet"))
    (True, False)
    """
    return path.name.lower().endswith(LINE_SUFFIXES)


def read_problems(path: Path, reference: str) -> StoredProblems:
    """Read problems: `id`, the column `reference`, perhaps `prompt`; all columns are metadata.

    Args:
        path: JSON lines, or any other file that a recipe's problems may be.
        reference: what the reward checks against.

    Raises:
        ProblemError: not one line can be used, or a file that is no JSON lines is broken.
    """
    by_id: dict[str, StoredProblem] = {}
    bad_lines: list[str] = []
    bad_ids: dict[str, str] = {}
    for found in _problem_rows(path):
        try:
            if isinstance(found, ProblemError):
                raise found
            row, num_bytes = found
            problem = _problem(row, reference)
            if problem.id in by_id:
                first = by_id[problem.id].place
                raise ProblemError(f"{row.place}: the id {problem.id!r} is given twice, first at {first}")
        except ProblemError as error:
            bad_lines.append(str(error))
            if not isinstance(found, ProblemError):
                bad_ids.setdefault(str(found[0].columns.get("id")), found[0].place)
        else:
            by_id[problem.id] = StoredProblem(problem, row.place, num_bytes)
    if not by_id:
        what = f"none of {len(bad_lines)} problems can be used" if bad_lines else "there is no problem"
        first = f"; the first: {bad_lines[0]}" if bad_lines else "; one a line is wanted"
        raise ProblemError(f"{shown_path(path)}: {what}{first}")
    return StoredProblems(
        by_id, bad_lines, {key: place for key, place in bad_ids.items() if key not in by_id}
    )


def _problem_rows(path: Path) -> Iterator[tuple[Row, int] | ProblemError]:
    """Yield each row and its size in bytes, or what is wrong with its line."""
    if not is_lines(path):
        for row in read_file(path):
            yield row, len(repr(row.columns))
        return
    for number, text, num_bytes in numbered_lines(path):
        try:
            yield row_of_line(text, f"{shown_path(path)}:{number}"), num_bytes
        except ProblemError as error:
            yield error


def _problem(row: Row, reference: str) -> Problem:
    return Problem(
        id=id_of(row, "id", "of problems"),
        reference=reference_of(row, reference, "--reference"),
        prompt=_prompt(row),
        metadata=row.columns,
    )


def _prompt(row: Row) -> str | Messages:
    value = row.columns.get("prompt")
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(one, dict) and _is_message(one) for one in value):
        return tuple(value)
    raise ProblemError(f"{row.place}: the prompt is neither a text nor a list of messages (role, content)")


def _is_message(value: dict[str, Any]) -> bool:
    return isinstance(value.get("role"), str) and isinstance(value.get("content"), str)


def read_solutions(path: Path, problems: StoredProblems) -> Iterator[StoredSolution | BadLine]:
    """Yield what each line holds, in the file's order; no more than one line is in memory.

    A solution is `problem_id` and `completion`. `index`, `iteration`, `token_ids` and `finish_reason` may be
    there; without an `index` it is the solution's rank among its problem's, from 0.

    Raises:
        ScoringError: the file is of another kind.
    """
    if not is_lines(path):
        kinds = " and ".join(LINE_SUFFIXES)
        raise ScoringError(f"{shown_path(path)}: solutions are read from {kinds} files, not {path.suffix!r}")
    indices: dict[str, Indices] = {}
    for number, line, num_bytes in numbered_lines(path):
        place = f"{shown_path(path)}:{number}"
        try:
            row = Row(place, _columns(line, place))
            identity = _known_id(row, problems)
            text = column_of(row, "completion", "of solutions")
            if not isinstance(text, str):
                kind = type(text).__name__
                raise ProblemError(f"{place}: the completion is of type {kind}; a text is wanted")
            index = indices.setdefault(identity, Indices()).take(row, identity)
        except ProblemError as error:
            yield BadLine(number, str(error))
        else:
            yield StoredSolution(_solution(row, identity, index, text), number, num_bytes)


def _known_id(row: Row, problems: StoredProblems) -> str:
    identity = id_of(row, "problem_id", "of solutions")
    stored = problems.by_id.get(identity)
    if stored is None:
        bad = problems.bad_ids.get(identity)
        why = "" if bad is None else f"; the line of this problem is bad: {bad}"
        raise ProblemError(f"{row.place}: unknown problem_id {identity!r}{why}")
    return stored.problem.id  # one text for all solutions


class Indices:
    """Which indices of one problem's solutions are taken; in their order they take no room."""

    __slots__ = ("_above", "_num_dense", "_num_solutions")

    def __init__(self) -> None:
        self._num_solutions = self._num_dense = 0
        self._above: set[int] = set()

    def take(self, row: Row, identity: str) -> int:
        """Return the index of the problem's next solution.

        Raises:
            ProblemError: it is no index, or taken.
        """
        written = row.columns.get("index")
        index = self._num_solutions if written is None else written
        if isinstance(index, bool) or not isinstance(index, int) or index < 0:
            raise ProblemError(f"{row.place}: the index is {index!r}; a whole number >= 0 is wanted")
        if index < self._num_dense or index in self._above:
            raise ProblemError(f"{row.place}: index {index} of problem {identity!r} is given twice")
        self._num_solutions += 1
        self._above.add(index)
        while self._num_dense in self._above:
            self._above.remove(self._num_dense)
            self._num_dense += 1
        return index


def _solution(row: Row, identity: str, index: int, text: str) -> Solution:
    """Return a solution; what is not of the right type of the keys that need not be there is left out."""
    iteration: Any = row.columns.get("iteration")
    ids, finish_reason = row.columns.get("token_ids"), row.columns.get("finish_reason")
    finish_reasons: tuple[FinishReason, ...] = get_args(FinishReason)
    return Solution(
        problem_id=identity,
        index=index,
        iteration=iteration if _is_whole(iteration) else 0,
        text=text,
        token_ids=tuple(ids) if isinstance(ids, list) and all(map(_is_whole, ids)) else (),
        finish_reason=next((one for one in finish_reasons if one == finish_reason), "eos"),
    )


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def numbered_lines(path: Path) -> Iterator[tuple[int, str | ProblemError, int]]:
    """Yield each line that is not blank: its number, its text or what is wrong with it, its size in bytes.

    A compressed file that is broken ends with what is wrong.
    """
    name, number = shown_path(path), 0
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                whole = line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line
                if not whole.strip():
                    continue
                try:
                    text: str | ProblemError = whole.decode()
                except UnicodeDecodeError:
                    text = ProblemError(f"{name}:{number}: a byte is not UTF-8; text in UTF-8 is wanted")
                yield number, text, len(whole)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        told = " ".join(str(error).split())
        yield number + 1, ProblemError(f"{name}:{number + 1}: the compressed file is broken here: {told}"), 0


def row_of_line(text: str | ProblemError, place: str) -> Row:
    """Return what a line that `numbered_lines` yields holds, its values as `json_value` has them.

    Raises:
        ProblemError: what is wrong with the line, or it is no object of JSON, or holds what is no value.
    """
    columns = _columns(text, place)
    try:
        return Row(place, {name: json_value(value, name, place) for name, value in columns.items()})
    except RecursionError as error:
        raise ProblemError(f"{place}: this line is nested too deeply") from error


def _columns(text: str | ProblemError, place: str) -> dict[str, Any]:
    if isinstance(text, ProblemError):
        raise text
    return object_of_line(text, place)
