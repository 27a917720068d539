"""Sample logs of other harnesses: lm-evaluation-harness and inspect_ai, read and written.

Neither is imported: a log is JSON. `benchmarks/evaluation_peers.py` has inspect_ai read ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rest_em.errors import SamplesError
from rest_em.interchange import inspect_ai, lm_eval
from rest_em.samples import Sample


def read_log(path: Path) -> Iterator[Sample]:
    """Yield the samples of a log: `.jsonl` of lm-evaluation-harness, `.json` or `.eval` of inspect_ai.

    Raises:
        SamplesError: it is of another kind, or broken.
    """
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        yield from lm_eval.read_log(path)
    elif suffix in (".json", ".eval"):
        yield from inspect_ai.read_log(path)
    else:
        raise SamplesError(
            f"{path}: a samples.parquet, JSON lines with problem_id and completion, a log of "
            "lm-evaluation-harness (.jsonl) or of inspect_ai (.json, .eval) is wanted"
        )
