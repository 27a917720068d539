"""Judged samples of a set of problems as columns: what all figures are computed from, a million at a time.

Filled from the loop's graded solutions, from a table of samples (`rest_em.samples`) or one by one. What the
figures are is in `summary`.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np
import numpy.typing as npt

from rest_em.errors import SamplesError
from rest_em.evaluation.votes import Ballot, SameAnswer, VoteClass, vote_classes
from rest_em.samples import ROWS_A_GROUP, Decoding, open_table
from rest_em.types import GradedSolution, Verdict

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

UNKNOWN = -1
"""In columns of yes and no: an imported log does not say, or it was not asked."""
CODES = {Verdict.CORRECT: 1, Verdict.INCORRECT: 0, Verdict.UNSCORABLE: UNKNOWN}
"""Verdicts as columns hold them."""


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """S judged samples of P problems.

    A problem may have none. Columns of S entries are numpy arrays, those of P entries sequences.
    """

    problem_ids: Sequence[str]
    groups: Sequence[str | None]
    """What each problem is averaged with before the macro average; None where there are no groups."""
    clusters: Sequence[str | None]
    """What each problem comes from; None where it is its own."""
    problem: npt.NDArray[np.int32]
    """Whose sample: its place among the problems."""
    verdict: npt.NDArray[np.int8]
    """1 correct, 0 incorrect, `UNKNOWN` unscorable."""
    reward: npt.NDArray[np.float64]
    answer: npt.NDArray[np.int32]
    """The answer's place in `answers`; -1 where the sample gives none."""
    answers: Sequence[str]
    is_truncated: npt.NDArray[np.int8]
    is_format_valid: npt.NDArray[np.int8]
    num_tokens: npt.NDArray[np.float64]
    """NaN where unknown."""
    text: npt.NDArray[np.uint64]
    """A hash: equal where the texts are, but for blanks around them."""

    @property
    def num_problems(self) -> int:
        """P."""
        return len(self.problem_ids)

    def of_problems(self, problem_ids: Sequence[str]) -> Columns:
        """Return the samples of some problems, in the order given.

        Args:
            problem_ids: each a problem of these columns, once.
        """
        places = {key: place for place, key in enumerate(self.problem_ids)}
        chosen = [places[key] for key in problem_ids]
        renumbered = np.full(self.num_problems, -1, dtype=np.int32)
        renumbered[chosen] = np.arange(len(chosen))
        problem = renumbered[self.problem]
        own = problem >= 0
        return Columns(
            problem_ids=list(problem_ids),
            groups=[self.groups[place] for place in chosen],
            clusters=[self.clusters[place] for place in chosen],
            problem=problem[own],
            verdict=self.verdict[own],
            reward=self.reward[own],
            answer=self.answer[own],
            answers=self.answers,
            is_truncated=self.is_truncated[own],
            is_format_valid=self.is_format_valid[own],
            num_tokens=self.num_tokens[own],
            text=self.text[own],
        )

    def ballots(self, same_answer: SameAnswer | None = None) -> list[Ballot]:
        """Return the votes of each problem's samples that could be judged; `same_answer` as in `votes`."""
        is_judged = self.verdict != UNKNOWN
        num_answers = len(self.answers) + 1
        keys = self.problem[is_judged].astype(np.int64) * num_answers + self.answer[is_judged] + 1
        unlike, first, of_each = np.unique(keys, return_index=True, return_inverse=True)
        num_votes = np.bincount(of_each, minlength=len(unlike))
        num_correct = np.bincount(of_each, self.verdict[is_judged] == 1, minlength=len(unlike)).astype(int)
        order = np.lexsort([first, unlike // num_answers])  # a problem's answers as they first came
        classes: list[list[VoteClass]] = [[] for _ in self.problem_ids]
        abstaining = [0] * self.num_problems
        answers: list[list[str]] = [[] for _ in self.problem_ids]
        for key, votes, correct in zip(
            unlike[order].tolist(), num_votes[order].tolist(), num_correct[order].tolist(), strict=True
        ):
            problem, answer = divmod(key, num_answers)
            if answer == 0:
                abstaining[problem] = votes
            else:
                classes[problem].append(VoteClass(votes, correct))
                answers[problem].append(self.answers[answer - 1])
        if same_answer is not None:
            for problem, written in enumerate(answers):
                if len(written) > 1:
                    pairs = list(zip(written, classes[problem], strict=True))
                    classes[problem] = vote_classes(
                        {answer: one.num_votes for answer, one in pairs},
                        {answer: one.num_correct for answer, one in pairs},
                        same_answer,
                    )
        return [Ballot(tuple(each), num) for each, num in zip(classes, abstaining, strict=True)]


class ColumnsBuilder:
    """Takes judged samples one by one and gives their columns."""

    def __init__(self) -> None:
        self._problems: dict[str, int] = {}
        self._groups: list[str | None] = []
        self._clusters: list[str | None] = []
        self._answers: dict[str, int] = {}
        self._problem, self._answer = array("i"), array("i")
        self._verdict, self._truncated, self._format = array("b"), array("b"), array("b")
        self._reward, self._tokens = array("d"), array("d")
        self._text = array("Q")

    def add_problem(self, problem_id: str, group: str | None = None, cluster: str | None = None) -> int:
        """Return a problem's place, its last one if it is new."""
        place = self._problems.setdefault(problem_id, len(self._problems))
        if place == len(self._groups):
            self._groups.append(group)
            self._clusters.append(cluster)
        return place

    def add(
        self,
        problem_id: str,
        verdict: Verdict,
        *,
        answer: str | None,
        reward: float | None = None,
        text: str = "",
        is_truncated: bool | None = None,
        is_format_valid: bool | None = None,
        num_tokens: int | None = None,
    ) -> None:
        """Add a sample; a reward that is not given is the verdict's."""
        self._problem.append(self.add_problem(problem_id))
        self._verdict.append(CODES[verdict])
        self._answer.append(-1 if answer is None else self._answers.setdefault(answer, len(self._answers)))
        self._reward.append(float(verdict is Verdict.CORRECT) if reward is None else reward)
        self._truncated.append(UNKNOWN if is_truncated is None else is_truncated)
        self._format.append(UNKNOWN if is_format_valid is None else is_format_valid)
        self._tokens.append(float("nan") if num_tokens is None else num_tokens)
        self._text.append(text_hash(text))

    def build(self) -> Columns:
        """Return the columns."""
        return Columns(
            problem_ids=list(self._problems),
            groups=self._groups,
            clusters=self._clusters,
            problem=np.frombuffer(self._problem or b"", dtype=np.int32),
            verdict=np.frombuffer(self._verdict or b"", dtype=np.int8),
            reward=np.frombuffer(self._reward or b"", dtype=np.float64),
            answer=np.frombuffer(self._answer or b"", dtype=np.int32),
            answers=list(self._answers),
            is_truncated=np.frombuffer(self._truncated or b"", dtype=np.int8),
            is_format_valid=np.frombuffer(self._format or b"", dtype=np.int8),
            num_tokens=np.frombuffer(self._tokens or b"", dtype=np.float64),
            text=np.frombuffer(self._text or b"", dtype=np.uint64),
        )


def text_hash(text: str) -> int:
    """Return 64 bits that are equal, in this process, for texts that are equal but for blanks around them."""
    return hash(text.strip()) & 0xFFFFFFFFFFFFFFFF


def columns_of(graded: Iterable[GradedSolution], problem_ids: Iterable[str] = ()) -> Columns:
    """Return graded solutions as columns.

    Args:
        graded: any number a problem.
        problem_ids: problems that count though they may have no solution.
    """
    builder = ColumnsBuilder()
    for problem_id in problem_ids:
        builder.add_problem(problem_id)
    for one in graded:
        builder.add(
            one.solution.problem_id,
            one.verdict,
            answer=one.answer,
            reward=one.reward,
            text=one.solution.text,
            is_truncated=one.solution.finish_reason == "length",
            num_tokens=len(one.solution.token_ids),
        )
    return builder.build()


def columns_of_table(path: Path) -> Mapping[Decoding, Columns]:
    """Return the greedy and the sampled rows of a table of samples; both have all problems of the table.

    Raises:
        SamplesError: it is no such table, or a solution stands there twice.
    """
    table = open_table(path, as_codes=True)
    names = ("problem_id", "decoding", "index", "verdict", "reward", "vote", "finish_reason", "num_tokens")
    rows = table.read([*names, "is_format_valid", "group", "cluster"]).unify_dictionaries().combine_chunks()
    problem, problem_ids = _coded(rows["problem_id"])
    decoding, decodings = _coded(rows["decoding"])
    index = rows["index"].to_numpy()
    _refuse_twice(path, problem, problem_ids, decoding, index)
    answer, answers = _coded(rows["vote"])
    verdict, verdicts = _coded(rows["verdict"])
    of_verdict = np.array([CODES[Verdict(each)] for each in verdicts], dtype=np.int8)
    finish, reasons = _coded(rows["finish_reason"])
    of_finish = np.array([*(each == "length" for each in reasons), UNKNOWN], dtype=np.int8)
    groups, clusters = (_of_problem(rows[name], problem, len(problem_ids)) for name in ("group", "cluster"))
    is_format_valid = rows["is_format_valid"].cast("int8").fill_null(UNKNOWN).to_numpy()
    num_tokens = rows["num_tokens"].cast("float64").fill_null(float("nan")).to_numpy()
    reward = rows["reward"].to_numpy()
    text = _text_hashes(table)
    found: dict[Decoding, Columns] = {}
    for each in get_args(Decoding):
        own = decoding == decodings.index(each) if each in decodings else np.zeros(len(decoding), dtype=bool)
        found[each] = Columns(
            problem_ids=problem_ids,
            groups=groups,
            clusters=clusters,
            problem=problem[own],
            verdict=of_verdict[verdict[own]],
            reward=reward[own],
            answer=answer[own],
            answers=answers,
            is_truncated=of_finish[finish[own]],
            is_format_valid=is_format_valid[own],
            num_tokens=num_tokens[own],
            text=text[own],
        )
    return found


def _coded(column: pa.ChunkedArray) -> tuple[npt.NDArray[np.int32], list[str]]:
    """Return a column of text as places in the list of its unlike texts; -1 for none."""
    if not column.num_chunks:
        return np.zeros(0, dtype=np.int32), []
    (chunk,) = column.chunks
    return chunk.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(
        np.int32
    ), chunk.dictionary.to_pylist()


def _of_problem(
    column: pa.ChunkedArray, problem: npt.NDArray[np.int32], num_problems: int
) -> list[str | None]:
    """Return what a column says of each problem, by its first row."""
    codes, texts = _coded(column)
    rows, first = np.unique(problem, return_index=True)
    assert len(rows) == num_problems, "every text of a table's column stands in a row"
    return [None if code < 0 else texts[code] for code in codes[first].tolist()]


def _text_hashes(table: pq.ParquetFile) -> npt.NDArray[np.uint64]:
    hashes = array("Q")
    for batch in table.iter_batches(batch_size=ROWS_A_GROUP // 10, columns=["text"]):
        hashes.extend(map(text_hash, batch["text"].to_pylist()))
    return np.frombuffer(hashes or b"", dtype=np.uint64)


def _refuse_twice(
    path: Path,
    problem: npt.NDArray[np.int32],
    problem_ids: Sequence[str],
    decoding: npt.NDArray[np.int32],
    index: npt.NDArray[np.int32],
) -> None:
    order = np.lexsort([index, decoding, problem])
    sorted_keys = np.stack([problem[order], decoding[order], index[order]])
    twice = np.flatnonzero((sorted_keys[:, 1:] == sorted_keys[:, :-1]).all(axis=0))
    if len(twice):
        place, _, number = sorted_keys[:, twice[0]].tolist()
        raise SamplesError(
            f"{path}: {len(twice)} solutions stand there twice, first number {number} of problem "
            f"{problem_ids[place]!r}; each once is wanted"
        )
