"""The table of samples and scores: one row a solution, what was asked, what came and what the reward said.

It is what `rest_em evaluate` leaves behind as `samples.parquet`, what `rest_em compare` reads, and what other
harnesses' logs are turned into. docs/evaluation.md documents the columns for people.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rest_em.errors import SamplesError
from rest_em.storage import replacing
from rest_em.types import FinishReason, Messages, Verdict

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

Decoding = Literal["greedy", "sampled"]

CODED = ["problem_id", "decoding", "verdict", "answer", "finish_reason", "group", "cluster", "vote"]
"""Columns in which texts come again."""
ROWS_A_GROUP = 50_000
"""Rows of a Parquet row group: what is in memory while a table is written or its text is read."""

_SHORT = 60
"""Characters of a reference that are kept as they are."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One solution of one problem, judged; a row of the table.

    Example:
        Sample(problem_id="test-17", prompt="What is 2 + 2?\\n", reference="4", decoding="sampled", index=3,
               text="The answer is 4", verdict=Verdict.CORRECT, reward=1.0, answer="4")
    """

    problem_id: str
    prompt: str | Messages
    """As the model was asked; empty where an imported log does not say."""
    reference: Any
    """What the reward checks against, a JSON value."""
    decoding: Decoding
    """`greedy`: the problem's solution of pass@1, one a problem; `sampled`: one of those of pass@k."""
    index: int
    """Which of the problem's solutions of that decoding, from 0."""
    text: str
    verdict: Verdict
    reward: float
    """r(x, y) >= 0; 0.0 where unscorable."""
    answer: str | None
    """The final answer that votes; None where the solution gives none."""
    reason: str = ""
    """Why it is incorrect or unscorable."""
    finish_reason: FinishReason | None = None
    """None where an imported log does not say."""
    num_tokens: int | None = None
    """Token ids sampled; None where an imported log does not say."""
    is_format_valid: bool | None = None
    """Whether the solution has the format that was asked for; None where none was."""
    group: str | None = None
    """Over which macro averages go, such as a task of BIG-Bench Hard; None where there are none."""
    cluster: str | None = None
    """Problems of one source, whose standard errors are clustered; None where each is its own."""
    vote: str | None = None
    """What the answer counts for in majority votes: the first answer of the problem's that means the same;
    None: the answer itself."""


def schema() -> pa.Schema:
    """Return the columns of the table; `prompt` and `reference` are JSON."""
    import pyarrow as pa

    text = pa.string()
    return pa.schema(
        [
            pa.field("problem_id", text, nullable=False),
            pa.field("prompt", text, nullable=False),
            pa.field("reference", text, nullable=False),
            pa.field("decoding", text, nullable=False),
            pa.field("index", pa.int32(), nullable=False),
            pa.field("text", text, nullable=False),
            pa.field("verdict", text, nullable=False),
            pa.field("reward", pa.float64(), nullable=False),
            pa.field("answer", text),
            pa.field("reason", text, nullable=False),
            pa.field("finish_reason", text),
            pa.field("num_tokens", pa.int32()),
            pa.field("is_format_valid", pa.bool_()),
            pa.field("group", text),
            pa.field("cluster", text),
            pa.field("vote", text),
        ]
    )


def write_samples(path: Path, samples: Iterable[Sample]) -> None:
    """Write a table, whole or not at all; no more than `ROWS_A_GROUP` rows are in memory."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = schema()
    with replacing(path) as temporary, pq.ParquetWriter(temporary, columns) as writer:
        rows: list[dict[str, Any]] = []
        for sample in samples:
            rows.append(_row(sample))
            if len(rows) == ROWS_A_GROUP:
                writer.write_table(pa.Table.from_pylist(rows, schema=columns))
                rows = []
        writer.write_table(pa.Table.from_pylist(rows, schema=columns))


def _row(sample: Sample) -> dict[str, Any]:
    row = {field.name: getattr(sample, field.name) for field in dataclasses.fields(sample)}
    return row | {
        "prompt": json.dumps(sample.prompt, ensure_ascii=False),
        "reference": json.dumps(sample.reference, ensure_ascii=False),
        "verdict": sample.verdict.value,
        "vote": sample.answer if sample.vote is None else sample.vote,
    }


def read_samples(path: Path) -> Iterator[Sample]:
    """Yield the rows of a table, in its order.

    Raises:
        SamplesError: the file is no such table.
    """
    for batch in open_table(path).iter_batches(batch_size=ROWS_A_GROUP // 10):
        for row in batch.to_pylist():
            prompt = json.loads(row["prompt"])
            yield Sample(
                **row
                | {
                    "prompt": prompt if isinstance(prompt, str) else tuple(prompt),
                    "reference": json.loads(row["reference"]),
                    "verdict": Verdict(row["verdict"]),
                    "vote": None if row["vote"] == row["answer"] else row["vote"],
                }
            )


def references_of_table(path: Path) -> dict[str, str | None]:
    """Return the reference of each problem's first row, as `reference_text` has it; one batch is in memory.

    Raises:
        SamplesError: the file is no such table.
    """
    import numpy as np

    found: dict[str, str | None] = {}
    names = ["problem_id", "reference"]
    for batch in open_table(path, as_codes=True).iter_batches(batch_size=ROWS_A_GROUP, columns=names):
        ids = batch["problem_id"]
        codes, rows = np.unique(ids.indices.to_numpy(), return_index=True)
        own = zip(ids.dictionary.take(codes).to_pylist(), rows.tolist(), strict=True)
        new = {problem: row for problem, row in own if problem not in found}
        written = batch["reference"].take([*new.values()]).to_pylist() if new else []
        found |= {key: reference_text(json.loads(text)) for key, text in zip(new, written, strict=True)}
    return found


def reference_text(reference: Any) -> str | None:
    """Return a short text that is equal for equal references, whatever their type; None where there is none.

    >>> reference_text("4 "), reference_text(4), reference_text(4.0), reference_text(None)
    ('4', '4', '4', None)
    """
    if reference is None:
        return None
    if isinstance(reference, float) and reference.is_integer():
        reference = int(reference)
    written = reference if isinstance(reference, str) else json.dumps(reference, sort_keys=True)
    text = " ".join(written.split())
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return text if len(text) <= _SHORT else f"{text[:_SHORT]}... (sha256 {digest})"


def open_table(path: Path, *, as_codes: bool = False) -> pq.ParquetFile:
    """Open a table of samples.

    Args:
        as_codes: read columns in which texts come again, such as the answers, as codes of unlike texts.

    Raises:
        SamplesError: there is no such file, it is not Parquet, or it has other columns.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path, read_dictionary=CODED if as_codes else None)
    except (OSError, pa.ArrowException) as error:
        told = " ".join(str(error).split())
        raise SamplesError(f"{path}: this is no table of samples (Parquet): {told}") from error
    missing = [name for name in schema().names if name not in table.schema_arrow.names]
    if missing:
        raise SamplesError(
            f"{path}: this table has no column {missing[0]!r}; a samples.parquet of rest_em evaluate "
            f"is wanted, with the columns {', '.join(schema().names)}"
        )
    return table
