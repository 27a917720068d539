"""`rest_em compare` and `export`: where policies' samples lie, their comparison eval by eval, other forms.

What a comparison is stands in `rest_em.evaluation.comparison`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rest_em.errors import SamplesError
from rest_em.evaluation import Columns, ColumnsBuilder, Comparison, Side, columns_of_table, compare
from rest_em.interchange import ONLY, LogScores, inspect_ai, lm_eval
from rest_em.ledger import Ledger, best_iteration
from rest_em.measuring import add_sample
from rest_em.samples import Decoding, Sample
from rest_em.storage import write_text
from rest_em.stored_samples import read_stored

TABLE = "samples.parquet"
FORMS = ("lm_eval", "inspect_ai", "jsonl")
FILE = "file"
"""The name of the comparison where a side is a single file."""


def compare_stored(
    a: str,
    b: str,
    *,
    names: Sequence[str] = (),
    ks: Sequence[int] = (),
    confidence: float = 0.95,
    seed: int = 0,
    scores: LogScores = ONLY,
) -> Mapping[str, Comparison]:
    """Compare two policies on each eval that both have samples of.

    Args:
        a: a file, a folder of evaluations, or a run's folder or name with `:ITERATION` (a number or `best`).
        b: the same.
        names: only these evals; none is all.
        ks: as those of `compare`.
        confidence: of the intervals.
        seed: of the bootstrap.
        scores: of the sides that are logs of other harnesses.

    Raises:
        SamplesError: a side has no samples, or both have none of the same problems.
    """
    sides = [find_tables(text) for text in (a, b)]
    if any(FILE in side for side in sides):
        sides = [_single(text, side, names) for text, side in zip((a, b), sides, strict=True)]
        names = []
    shared = [name for name in sides[0] if name in sides[1] and (not names or name in names)]
    if not shared:
        told = " and ".join(f"{text} has {', '.join(side)}" for text, side in zip((a, b), sides, strict=True))
        of_these = " of these names" if names else ""
        raise SamplesError(f"no eval{of_these} is there on both sides to compare: {told}")
    labels = _labels(a, b)
    found = {}
    for name in shared:
        one, other = (_side(label, side[name], scores) for label, side in zip(labels, sides, strict=True))
        try:
            found[name] = compare(one, other, ks=ks, confidence=confidence, seed=seed)
        except ValueError as error:
            raise SamplesError(f"{a}, {b}: {error}") from error
    return found


def export_samples(
    text: str,
    output: Path,
    form: str,
    *,
    name: str | None = None,
    decoding: str | None = None,
    scores: LogScores = ONLY,
) -> int:
    """Write samples in another form; return how many.

    Args:
        text: as a side of `compare_stored`.
        output: the file.
        form: `lm_eval`, `inspect_ai` or `jsonl`.
        name: which eval, where the side has several.
        decoding: only these; None is all.
        scores: where the samples are a log of another harness.

    Raises:
        SamplesError: there are no such samples, or there is no such form.
    """
    if form not in FORMS:
        raise SamplesError(f"--format {form}: there is {', '.join(FORMS)}")
    (path,) = _single(text, find_tables(text), [name] if name else []).values()
    samples = [one for one in read_stored(path, scores) if decoding in (None, one.decoding)]
    if not samples:
        raise SamplesError(f"{path}: there is no {decoding or ''} sample")
    if form == "lm_eval":
        lm_eval.write_log(output, samples, task=path.parent.name)
    elif form == "inspect_ai":
        inspect_ai.write_log(output, samples, task=path.parent.name, model=text)
    else:
        write_text(
            output, "".join(f"{json.dumps(_for_people(one), ensure_ascii=False)}\n" for one in samples)
        )
    return len(samples)


def _for_people(one: Sample) -> dict[str, Any]:
    return {
        "problem_id": one.problem_id,
        "decoding": one.decoding,
        "index": one.index,
        "prompt": one.prompt,
        "completion": one.text,
        "reference": one.reference,
        "answer": one.answer,
        "vote": one.vote,
        "verdict": one.verdict.value,
        "reason": one.reason,
        "group": one.group,
        "cluster": one.cluster,
    }


def _labels(a: str, b: str) -> tuple[str, str]:
    return (a, b) if a != b else (f"{a} (A)", f"{b} (B)")


def _single(text: str, side: Mapping[str, Path], names: Sequence[str]) -> Mapping[str, Path]:
    """Return the one table of a side that is compared with a file."""
    own = {name: path for name, path in side.items() if not names or name in names or name == FILE}
    if len(own) != 1:
        raise SamplesError(f"{text}: there are samples of {', '.join(side)}; name one of them with --eval")
    return {FILE: next(iter(own.values()))}


def find_tables(text: str) -> Mapping[str, Path]:
    """Return the tables of samples that a side names, by eval.

    Raises:
        SamplesError: there are none.
    """
    name, colon, which = text.rpartition(":")
    if not colon or Path(text).exists():
        name, which = text, ""
    path = Path(name)
    if not path.exists() and (Path("runs") / name).exists():
        path = Path("runs") / name
    if path.is_file():
        return {FILE: path}
    if (path / TABLE).is_file():
        return {path.name: path / TABLE}
    if not (path / "ledger.jsonl").is_file():
        raise SamplesError(
            f"{text}: there is no file or folder with samples; a {TABLE}, a folder of evaluations, or a run "
            "with an iteration as in runs/NAME:0 is wanted"
        )
    iteration = _iteration(path, which, text)
    tables = {one.parent.name: one for one in sorted(path.glob(f"iteration-{iteration:02d}/evals/*/{TABLE}"))}
    if not tables:
        raise SamplesError(f"{text}: no samples of iteration {iteration} are there; measure it first")
    return tables


def _iteration(folder: Path, which: str, text: str) -> int:
    if which in ("", "best"):
        return best_iteration(Ledger(folder).records)
    if not which.isdigit():
        raise SamplesError(f"{text}: {which!r} is no iteration; a number or best is wanted")
    return int(which)


def _side(name: str, path: Path, scores: LogScores) -> Side:
    """Return the samples of a file as a side; a decoding of which there are none is None."""
    columns = columns_of_table(path) if path.suffix.lower() == ".parquet" else _columns(path, scores)
    kinds: dict[Decoding, Columns | None] = {
        decoding: own if len(own.problem) else None for decoding, own in columns.items()
    }
    if kinds["greedy"] is None and kinds["sampled"] is None:
        raise SamplesError(f"{path}: there is no sample")
    return Side(name, kinds["greedy"], kinds["sampled"])


def _columns(path: Path, scores: LogScores) -> Mapping[Decoding, Columns]:
    builders: dict[Decoding, ColumnsBuilder] = {"greedy": ColumnsBuilder(), "sampled": ColumnsBuilder()}
    for one in read_stored(path, scores):
        for builder in builders.values():
            builder.add_problem(one.problem_id, one.group, one.cluster)
        add_sample(builders[one.decoding], one)
    return {decoding: builder.build() for decoding, builder in builders.items()}
