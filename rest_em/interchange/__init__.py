"""Sample logs of other harnesses: lm-evaluation-harness and inspect_ai, read and written.

Neither is imported: a log is JSON. `benchmarks/interchange.py` reads real logs of both, and compares ours
with what they read and write.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rest_em.errors import SamplesError
from rest_em.interchange import inspect_ai, lm_eval
from rest_em.samples import Sample

__all__ = ["ONLY", "OURS", "LogScores", "form_of", "inspect_ai", "lm_eval", "read_log"]

_HEAD = re.compile(rb'(?:\xef\xbb\xbf)?\s*\{\s*"(\w+)"')
_OF_INSPECT = (b"version", b"status", b"eval")


@dataclass(frozen=True, slots=True)
class LogScores:
    """Whose scores are the verdicts, where a log has several."""

    filter: str | None = None
    """Of lm-evaluation-harness; None where there is one."""
    metric: str | None = None
    """Of lm-evaluation-harness; None is the first of `lm_eval.METRICS` that is there, or the only one."""
    scorer: str | None = None
    """Of inspect_ai; None where there is one."""


OURS = "rest_em"
ONLY = LogScores()
"""The log has one filter or scorer."""


def read_log(path: Path, scores: LogScores | None = ONLY) -> Iterator[Sample]:
    """Yield the samples of a log: `.jsonl` of lm-evaluation-harness, `.json` or `.eval` of inspect_ai.

    A file of another name is known by how it begins.

    Args:
        path: the log.
        scores: whose scores are the verdicts; None where the solutions are to be judged again, so that
            verdicts and answers mean nothing.

    Raises:
        SamplesError: it is of another kind, or broken, or has no such scores, or several.
    """
    is_scored, named = scores is not None, scores or ONLY
    if _is_of_inspect(path):
        yield from inspect_ai.read_log(path, named.scorer, is_scored=is_scored)
    else:
        yield from lm_eval.read_log(path, named.filter, named.metric, is_scored=is_scored)


def form_of(path: Path) -> str:
    """Return who wrote a log, `OURS` or a harness: each has references in a spelling of its own.

    Raises:
        SamplesError: it is no log, or holds no sample.
    """
    if _is_of_inspect(path):
        return OURS if inspect_ai.is_ours(path) else "inspect_ai"
    return OURS if lm_eval.is_ours(path) else "lm_eval"


def _is_of_inspect(path: Path) -> bool:
    """Say whether a log is inspect_ai's, or else lm-evaluation-harness's."""
    try:
        with path.open("rb") as file:
            head = file.read(1024)
    except OSError as error:
        raise SamplesError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not head.strip():
        raise SamplesError(f"{path}:1: the file is empty; samples, verdicts or a log are wanted")
    if inspect_ai.is_zip(path):
        return True
    first = _HEAD.match(head)
    suffix = path.suffix.lower()
    if first is not None and first[1] == b"doc_id":
        return False
    if first is not None and first[1] in _OF_INSPECT:
        return True
    if suffix in (".jsonl", ".json"):
        return suffix == ".json"
    begins = head.decode(errors="replace").split("\n")[0][:40]
    raise SamplesError(
        f"{path}:1: this begins with {begins!r}; a samples.parquet, JSON lines with problem_id and "
        "completion, a log of lm-evaluation-harness (.jsonl) or of inspect_ai (.json, .eval) is wanted"
    )
