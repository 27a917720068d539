"""Solutions in a file, whatever wrote it: our tables, JSON lines of a user's own, other harnesses' logs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from rest_em.errors import ProblemError, SamplesError
from rest_em.interchange import LogScores, read_log
from rest_em.problems.rows import object_of_line, shown_path
from rest_em.problems.stored import is_lines, numbered_lines
from rest_em.samples import Decoding, Sample, read_samples
from rest_em.types import FinishReason, Verdict


def read_stored(path: Path, scores: LogScores | None) -> Iterator[Sample]:
    """Yield the solutions of a file; those of JSON lines are not judged.

    Args:
        path: a table of samples (`.parquet`), JSON lines with `problem_id` and `completion`, or the verdicts
            of `rest_em score`, or a log that `interchange.read_log` reads.
        scores: as those of `interchange.read_log`, where it is a log.

    Raises:
        SamplesError: it is none of them, or broken.
    """
    if not path.is_file():
        raise SamplesError(f"{path}: there is no such file")
    if path.suffix.lower() == ".parquet":
        yield from read_samples(path)
    elif is_lines(path) and "problem_id" in _first(path):
        for number, line, _ in numbered_lines(path):
            place = f"{shown_path(path)}:{number}"
            try:
                if isinstance(line, ProblemError):
                    raise line
                yield _sample(object_of_line(line, place), place)
            except ProblemError as error:
                raise SamplesError(str(error)) from error
    else:
        yield from read_log(path, scores)


def _first(path: Path) -> Mapping[str, Any]:
    """Return the first object of a file of JSON lines; empty where that is none."""
    for _, line, _ in numbered_lines(path):
        try:
            return {} if isinstance(line, ProblemError) else object_of_line(line, str(path))
        except ProblemError:
            return {}
    return {}


def _sample(row: Mapping[str, Any], place: str) -> Sample:
    identity, text = row.get("problem_id"), row.get("completion", "")
    decoding, reason = row.get("decoding", "sampled"), row.get("finish_reason")
    index, tokens, answer = row.get("index", 0), row.get("num_tokens"), row.get("answer")
    verdict = row.get("verdict", "unscorable")
    wanted = (
        ("problem_id", identity, isinstance(identity, str | int) and not isinstance(identity, bool), "an id"),
        ("completion", text, isinstance(text, str), "a text"),
        ("decoding", decoding, decoding in get_args(Decoding), "greedy or sampled"),
        ("finish_reason", reason, reason in (None, *get_args(FinishReason)), "eos, stop_string or length"),
        ("index", index, type(index) is int and index >= 0, "a whole number >= 0"),
        (
            "num_tokens",
            tokens,
            tokens is None or (type(tokens) is int and tokens >= 0),
            "a whole number >= 0",
        ),
        ("answer", answer, answer is None or isinstance(answer, str), "a text or null"),
        ("verdict", verdict, verdict in [one.value for one in Verdict], "correct, incorrect or unscorable"),
    )
    for name, value, is_right, kind in wanted:
        if not is_right:
            raise ProblemError(f"{place}: {name} is {value!r}; {kind} is wanted")
    return Sample(
        problem_id=str(identity),
        prompt="",
        reference=None,
        decoding=decoding,
        index=index,
        text=text,
        verdict=Verdict(verdict),
        reward=float(verdict == "correct"),
        answer=answer,
        reason=str(row.get("reason", "")),
        finish_reason=reason,
        num_tokens=tokens,
    )
