"""`rest_em compare` and `export`: where policies' samples lie, their comparison eval by eval, other forms.

What a comparison is stands in `rest_em.evaluation.comparison`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from rest_em.errors import SamplesError
from rest_em.evaluation import CODES, Columns, ColumnsBuilder, Comparison, Side, columns_of_table, compare
from rest_em.interchange import ONLY, OURS, LogScores, form_of, inspect_ai, lm_eval
from rest_em.ledger import Ledger, best_iteration, policy_iterations
from rest_em.measuring import add_sample
from rest_em.samples import Decoding, Sample, reference_text, references_of_table
from rest_em.storage import write_text
from rest_em.stored_samples import is_lines_of_solutions, read_stored, two_greedy
from rest_em.types import Verdict

TABLE = "samples.parquet"
FORMS = ("lm_eval", "inspect_ai", "jsonl")
FILE = "file"
"""The name of the comparison where a side is a single file."""


@dataclass(frozen=True, slots=True)
class _Stored:
    """A side, with what shows whether its problems are another side's."""

    side: Side
    references: Mapping[str, str | None]
    """By problem id, as `reference_text` has it."""
    form: str
    """Who wrote the references, as `form_of` has it."""


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
        a: a file, a folder of evaluations, or a run's folder or name with `:POLICY` (`best`, as without it,
            `last`, `base` or an iteration).
        b: the same.
        names: only these evals; none is all.
        ks: as those of `compare`.
        confidence: of the intervals.
        seed: of the bootstrap.
        scores: of the sides that are logs of other harnesses.

    Raises:
        SamplesError: a side has no samples or no judged ones, both have none of the same problems, or their
            problems of one id are mostly others.
    """
    sides = [find_tables(text) for text in (a, b)]
    if names and all(FILE in side for side in sides):
        raise SamplesError(
            f"--eval {' --eval '.join(names)}: {a} and {b} are files, each of one eval; leave it out"
        )
    if any(FILE in side for side in sides):
        sides = [_single(text, side, names) for text, side in zip((a, b), sides, strict=True)]
        names = []
    shared = [name for name in sides[0] if name in sides[1] and (not names or name in names)]
    if not shared:
        told = " and ".join(f"{text} has {', '.join(side)}" for text, side in zip((a, b), sides, strict=True))
        of_these = " of these names" if names else ""
        raise SamplesError(f"no eval{of_these} is there on both sides to compare: {told}")
    found = {}
    for name in shared:
        one, other = (_stored(label, side[name], scores) for label, side in zip((a, b), sides, strict=True))
        _refuse_other_problems(one, other)
        try:
            found[name] = compare(one.side, other.side, ks=ks, confidence=confidence, seed=seed)
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
        SamplesError: there are no such samples, no such form or decoding, or the file cannot be written or
            is the samples' own.
    """
    if form not in FORMS:
        raise SamplesError(f"--format {form}: there is {', '.join(FORMS)}")
    if decoding not in (None, *get_args(Decoding)):
        raise SamplesError(f"--decoding {decoding}: greedy or sampled is wanted")
    tables = find_tables(text)
    if name and FILE in tables:
        raise SamplesError(f"--eval {name}: {text} is a file, of one eval; leave it out")
    (path,) = _single(text, tables, [name] if name else []).values()
    with _told_if_not_written(output):
        _refuse_output(output, path)
    samples = [one for one in read_stored(path, scores) if decoding in (None, one.decoding)]
    if not samples:
        raise SamplesError(f"{path}: there is no {f'{decoding} ' if decoding else ''}sample")
    with _told_if_not_written(output):
        if form == "lm_eval":
            lm_eval.write_log(output, samples, task=path.parent.name)
        elif form == "inspect_ai":
            inspect_ai.write_log(output, samples, task=path.parent.name, model=text)
        else:
            lines = (json.dumps(_for_people(one), ensure_ascii=False) for one in samples)
            write_text(output, "".join(f"{line}\n" for line in lines))
    return len(samples)


@contextmanager
def _told_if_not_written(output: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SamplesError(f"{output}: this file cannot be written: {error.strerror or error}") from error


def _refuse_output(output: Path, path: Path) -> None:
    if output.is_dir():
        raise SamplesError(f"{output}: this is a folder; name a file to write")
    if output.exists() and output.samefile(path):
        raise SamplesError(f"{output}: these are the samples themselves; name another file to write")


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
        "reward": one.reward,
        "reason": one.reason,
        "finish_reason": one.finish_reason,
        "num_tokens": one.num_tokens,
        "group": one.group,
        "cluster": one.cluster,
    }


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
    if not (path / "ledger.jsonl").is_file() and not any(path.glob(f"iteration-*/evals/*/{TABLE}")):
        raise SamplesError(
            f"{text}: there is no file or folder with samples; a {TABLE}, a folder of evaluations, or a run "
            "with a policy (best, last, base or an iteration) as in runs/NAME:0 is wanted"
        )
    iteration = _iteration(path, which, text)
    tables = {one.parent.name: one for one in sorted(path.glob(f"iteration-{iteration:02d}/evals/*/{TABLE}"))}
    if not tables:
        raise SamplesError(f"{text}: no samples of iteration {iteration} are there; measure it first")
    return tables


def _iteration(folder: Path, which: str, text: str) -> int:
    records = Ledger(folder).records
    match which:
        case "" | "best":
            return best_iteration(records)
        case "last":
            return policy_iterations(records)[-1]
        case "base":
            return 0
        case _ if which.isdecimal():
            return int(which)
    raise SamplesError(f"{text}: there is no policy {which!r}; best, last, base or a number is wanted")


def _stored(name: str, path: Path, scores: LogScores) -> _Stored:
    """Return the samples of a file as a side; a decoding of which there are none is None."""
    is_table = path.suffix.lower() == ".parquet"
    references: dict[str, str | None] = references_of_table(path) if is_table else {}
    columns = columns_of_table(path) if is_table else _columns(path, scores, references)
    kinds: dict[Decoding, Columns | None] = {
        decoding: own if len(own.problem) else None for decoding, own in columns.items()
    }
    _refuse_unfit(path, columns)
    form = form_of(path) if not (is_table or is_lines_of_solutions(path)) else OURS
    return _Stored(Side(name, kinds["greedy"], kinds["sampled"]), references, form)


def _refuse_unfit(path: Path, columns: Mapping[Decoding, Columns]) -> None:
    """Refuse samples that say nothing, or a problem with two greedy solutions."""
    num_samples = sum(len(one.problem) for one in columns.values())
    if not num_samples:
        raise SamplesError(f"{path}: there is no sample")
    greedy = columns["greedy"]
    counts = np.bincount(greedy.problem, minlength=1)
    if counts.max() > 1:
        raise SamplesError(two_greedy(path, greedy.problem_ids[int(counts.argmax())]))
    if all((one.verdict == CODES[Verdict.UNSCORABLE]).all() for one in columns.values()):
        raise SamplesError(
            f"{path}: none of its {num_samples:,} solutions has a verdict, correct or incorrect; `rest_em "
            f"evaluate NAME EVAL --solutions {path}` judges them"
        )


def _refuse_other_problems(a: _Stored, b: _Stored) -> None:
    """Refuse sides whose problems share ids alone, as those numbered from 0; null is no reference."""
    if a.form != b.form:
        return  # what a harness writes as the target may be another spelling
    known = [key for key, one in a.references.items() if None not in (one, b.references.get(key))]
    unlike = [key for key in known if a.references[key] != b.references[key]]
    if 2 * len(unlike) <= len(known):
        return
    first = unlike[0]
    raise SamplesError(
        f"{a.side.name}, {b.side.name}: these are other problems: of {len(known):,} ids that both have "
        f"{len(unlike):,} have unlike references, first {first!r}: {a.references[first]} and "
        f"{b.references[first]}; samples of the same problems are wanted"
    )


def _columns(path: Path, scores: LogScores, references: dict[str, str | None]) -> Mapping[Decoding, Columns]:
    """Return the columns of what is no table; `references` gets that of each problem."""
    builders: dict[Decoding, ColumnsBuilder] = {"greedy": ColumnsBuilder(), "sampled": ColumnsBuilder()}
    for one in read_stored(path, scores):
        if one.problem_id not in references:
            references[one.problem_id] = reference_text(one.reference)
        for builder in builders.values():
            builder.add_problem(one.problem_id, one.group, one.cluster)
        add_sample(builders[one.decoding], one)
    return {decoding: builder.build() for decoding, builder in builders.items()}
