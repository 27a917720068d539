"""Solutions in a file, whatever wrote it: our tables, JSON lines of a user's own, other harnesses' logs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from rest_em.errors import ProblemError, SamplesError
from rest_em.interchange import LogScores, read_log
from rest_em.problems.rows import Row, column_of, object_of_line, shown_path
from rest_em.problems.stored import Indices, is_lines, numbered_lines, row_of_line
from rest_em.samples import Decoding, Sample, read_samples
from rest_em.types import FinishReason, Verdict


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_name(value: Any) -> bool:
    return isinstance(value, str) or type(value) is int


_ABSENT = {"completion": "", "decoding": "sampled", "verdict": "unscorable"}
"""What a line means that has no such key; null for others."""
_WANTED: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "problem_id": (_is_name, "a text or a whole number"),
    "completion": (lambda one: isinstance(one, str), "a text"),
    "decoding": (lambda one: one in get_args(Decoding), "greedy or sampled"),
    "index": (lambda one: one is None or _is_count(one), "a whole number >= 0"),
    "verdict": (lambda one: one in [each.value for each in Verdict], "correct, incorrect or unscorable"),
    "finish_reason": (lambda one: one in (None, *get_args(FinishReason)), "eos, stop_string or length"),
    "num_tokens": (lambda one: one is None or _is_count(one), "a whole number >= 0"),
    **dict.fromkeys(("answer", "vote"), (lambda one: one is None or isinstance(one, str), "a text or null")),
    **dict.fromkeys(
        ("group", "cluster"), (lambda one: one is None or _is_name(one), "a text, a whole number or null")
    ),
}
"""What a line may say, with what is right for it, in tests and in words."""


def read_stored(path: Path, scores: LogScores | None) -> Iterator[Sample]:
    """Yield the solutions of a file; JSON lines without a verdict are not judged.

    Args:
        path: a table of samples (`.parquet`), JSON lines with `problem_id` and `completion`, or the verdicts
            of `rest_em score`, or a log that `interchange.read_log` reads.
        scores: as those of `interchange.read_log`, where it is a log; None where the solutions are to be
            judged again, so that each line has a `completion`.

    Raises:
        SamplesError: it is none of them, or broken, a problem has two greedy solutions, a solution of JSON
            lines comes twice, or there is none to judge.
    """
    if not path.is_file():
        raise SamplesError(f"{path}: there is no such file")
    seen: set[str] = set()
    for place, sample in _placed(path, scores):
        if sample.decoding == "greedy":
            if sample.problem_id in seen:
                raise SamplesError(two_greedy(place, sample.problem_id))
            seen.add(sample.problem_id)
        yield sample


def two_greedy(place: object, problem_id: str) -> str:
    """Return what is told of a problem with two greedy solutions."""
    return (
        f"{place}: problem {problem_id!r} has a second greedy solution; one is wanted, or the decoding "
        "sampled for all of them"
    )


def _placed(path: Path, scores: LogScores | None) -> Iterator[tuple[object, Sample]]:
    """Yield each solution with where it stands."""
    if path.suffix.lower() == ".parquet":
        yield from ((path, one) for one in read_samples(path))
    elif is_lines_of_solutions(path):
        yield from _of_lines(path, is_scored=scores is not None)
    else:
        yield from ((path, one) for one in read_log(path, scores))


def _of_lines(path: Path, *, is_scored: bool) -> Iterator[tuple[str, Sample]]:
    taken: dict[tuple[str, Decoding], Indices] = {}
    for number, line, _ in numbered_lines(path):
        place = f"{shown_path(path)}:{number}"
        try:
            row = row_of_line(line, place)
            if not is_scored:
                column_of(row, "completion", "of solutions")
            sample = _sample(row)
            key = (sample.problem_id, sample.decoding)
            index = taken.setdefault(key, Indices()).take(row, sample.problem_id)
        except ProblemError as error:
            raise SamplesError(str(error)) from error
        yield place, dataclasses.replace(sample, index=index)


def is_lines_of_solutions(path: Path) -> bool:
    """Say whether a file is JSON lines of a user's own, and not another harness's log."""
    return is_lines(path) and "problem_id" in _first(path)


def _first(path: Path) -> Mapping[str, Any]:
    """Return the first object of a file of JSON lines; empty where that is none."""
    for _, line, _ in numbered_lines(path):
        try:
            return {} if isinstance(line, ProblemError) else object_of_line(line, str(path))
        except ProblemError:
            return {}
    return {}


def _sample(row: Row) -> Sample:
    """Return what a line says; its index is left to the lines before it."""
    said = {name: row.columns.get(name, _ABSENT.get(name)) for name in _WANTED}
    for name, (is_right, kind) in _WANTED.items():
        if not is_right(said[name]):
            raise ProblemError(f"{row.place}: {name} is {said[name]!r}; {kind} is wanted")
    verdict = Verdict(said["verdict"])
    return Sample(
        problem_id=str(said["problem_id"]),
        prompt="",
        reference=row.columns.get("reference"),
        decoding=said["decoding"],
        index=0,
        text=said["completion"],
        verdict=verdict,
        reward=float(verdict is Verdict.CORRECT),
        answer=said["answer"],
        reason=str(row.columns.get("reason", "")),
        finish_reason=said["finish_reason"],
        num_tokens=said["num_tokens"],
        group=None if said["group"] is None else str(said["group"]),
        cluster=None if said["cluster"] is None else str(said["cluster"]),
        vote=said["vote"],
    )
