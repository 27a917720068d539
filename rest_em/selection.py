"""D_i: which of an iteration's judged solutions the base model is tuned on.

Correct and finished ones, each text once, at most K a problem, unlike ones first; and what becomes of the
solutions that people wrote. How a solution is judged is in `rewards`; what weights mean is in `training`.
"""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from rest_em.errors import SelectionError
from rest_em.types import GradedSolution, Problem, Solution, TrainingExample, Verdict

if TYPE_CHECKING:
    from rest_em.recipe import SelectionSection


@dataclass(frozen=True, slots=True)
class Selection:
    """D_i and how it came about.

    Example:
        Selection(examples, num_solutions=3200, num_correct=400, num_finished=390, num_distinct=300,
                  num_kept=250, num_human=0, num_problems_covered=120, num_problems=400)
    """

    examples: tuple[TrainingExample, ...]
    """Ordered by problem, then by index, the solution that people wrote last."""
    num_solutions: int
    """Judged solutions that were offered."""
    num_correct: int
    """Of those, correct."""
    num_finished: int
    """Of the correct, ended by the end token or a stop string, with a reward above 0."""
    num_distinct: int
    """Of the finished, unlike in normalised form."""
    num_kept: int
    """Examples of D_i."""
    num_human: int
    """Of those, solutions that people wrote."""
    num_problems_covered: int
    """Problems with an example in D_i."""
    num_problems: int
    """Training problems."""

    def counts(self) -> dict[str, int]:
        """Return the counts by name."""
        return {
            "num_solutions": self.num_solutions,
            "num_correct": self.num_correct,
            "num_finished": self.num_finished,
            "num_distinct": self.num_distinct,
            "num_kept": self.num_kept,
            "num_human": self.num_human,
            "num_problems_covered": self.num_problems_covered,
            "num_problems": self.num_problems,
        }


def select(
    graded: Sequence[GradedSolution],
    prompts: Mapping[str, Problem],
    section: SelectionSection,
    human: Mapping[str, str] | None = None,
) -> Selection:
    """Return D_i.

    Args:
        graded: an E-step's solutions, in any order.
        prompts: every training problem by id, rendered with the prompt of the M-step.
        section: the recipe's `selection`.
        human: the solution that people wrote to each problem, by id, where `section` wants them.

    Raises:
        SelectionError: no solution is left.
    """
    correct = [one for one in graded if one.verdict is Verdict.CORRECT]
    finished = [one for one in correct if one.solution.finish_reason != "length" and one.reward > 0]
    by_problem: dict[str, list[GradedSolution]] = {key: [] for key in prompts}
    for one in sorted(finished, key=lambda one: one.solution.index):
        by_problem[one.solution.problem_id].append(one)
    examples: list[TrainingExample] = []
    num_distinct = num_covered = 0
    for key, candidates in by_problem.items():
        distinct = _distinct(candidates)
        num_distinct += len(distinct)
        offered = distinct if section.deduplicate else candidates
        places = most_diverse([one.solution.token_ids for one in offered], section.max_solutions_per_problem)
        kept = [_example(offered[place], prompts[key]) for place in sorted(places)]
        if human:
            kept = _with_human(kept, prompts[key], human[key], section)
        examples += kept
        num_covered += bool(kept)
    selection = Selection(
        examples=tuple(examples),
        num_solutions=len(graded),
        num_correct=len(correct),
        num_finished=len(finished),
        num_distinct=num_distinct,
        num_kept=len(examples),
        num_human=sum(one.index is None for one in examples),
        num_problems_covered=num_covered,
        num_problems=len(prompts),
    )
    if not examples:
        raise SelectionError(_nothing_left(selection, graded))
    return selection


def normal_form(text: str) -> str:
    """Return what makes two solutions the same: Unicode NFKC, whitespace collapsed, ends stripped.

    >>> normal_form(" 2 + 2\\n\\n= 4") == normal_form("2\\u00a0+ 2 = 4")
    True
    """
    return " ".join(unicodedata.normalize("NFKC", text).split())


def most_diverse(token_ids: Sequence[Sequence[int]], max_picks: int) -> list[int]:
    """Return the places of at most `max_picks` sequences that are unlike each other, in order of picking.

    The first pick is the first sequence; each other one is the farthest from its nearest pick (the first of
    equals). The distance is 1 - Jaccard similarity of the sets of token pairs.
    """
    if len(token_ids) <= max_picks:
        return list(range(len(token_ids)))
    pairs, starts, num_distinct = _pair_sets(token_ids)
    sizes = np.diff(starts)
    picks = [0]
    farness = np.full(len(token_ids), np.inf)
    while len(picks) < max_picks:
        last = picks[-1]
        is_in_last = np.zeros(num_distinct, dtype=np.int64)
        is_in_last[pairs[starts[last] : starts[last + 1]]] = 1
        shared = np.add.reduceat(is_in_last[pairs], starts[:-1])
        distance = 1 - shared / (sizes + sizes[last] - shared)
        farness = np.minimum(farness, distance)
        farness[picks] = -1
        picks.append(int(farness.argmax()))
    return picks


def _pair_sets(
    token_ids: Sequence[Sequence[int]],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], int]:
    """Return each sequence's set of token pairs, joined; where each set begins; how many pairs there are.

    Pairs are numbered. A sequence's begin and end pair with its first and last token: no set is empty.
    """
    lengths = np.array([len(row) for row in token_ids])
    tokens = np.fromiter(itertools.chain.from_iterable((-1, *row, -1) for row in token_ids), dtype=np.int64)
    rows = np.repeat(np.arange(len(token_ids)), lengths + 2)
    within = rows[1:] == rows[:-1]
    _, numbers = np.unique((tokens[:-1][within] + 1) * 2**32 + tokens[1:][within] + 1, return_inverse=True)
    num_distinct = int(numbers.max()) + 1
    keys = np.sort(rows[1:][within] * num_distinct + numbers)
    keys = keys[np.diff(keys, prepend=-1) > 0]  # np.unique without an inverse hashes, and badly so here
    starts = np.searchsorted(keys, np.arange(len(token_ids) + 1) * num_distinct)
    return keys % num_distinct, starts, num_distinct


def _distinct(candidates: Sequence[GradedSolution]) -> list[GradedSolution]:
    """Return the first of each normalised form."""
    first: dict[str, GradedSolution] = {}
    for one in candidates:
        first.setdefault(normal_form(one.solution.text), one)
    return list(first.values())


def _example(graded: GradedSolution, problem: Problem) -> TrainingExample:
    solution: Solution = graded.solution
    return TrainingExample(
        problem_id=solution.problem_id,
        index=solution.index,
        prompt=problem.prompt,
        token_ids=solution.token_ids,
        finish_reason=solution.finish_reason,
        weight=graded.reward,
        text=solution.text,
    )


def _with_human(
    kept: list[TrainingExample], problem: Problem, text: str, section: SelectionSection
) -> list[TrainingExample]:
    """Return a problem's examples with the solution that people wrote.

    Mixed in, it is one beyond K, so that the samples are those that are kept without it; where it reads as
    one of them, the sample stays.
    """
    human = TrainingExample(problem.id, None, problem.prompt, (), "eos", weight=1.0, text=text)
    match section.human_solutions:
        case "only":
            return [human]
        case "solved":
            return [human] if kept else []
        case _:
            is_twin = normal_form(text) in {normal_form(one.text) for one in kept}
            return kept if is_twin and section.deduplicate else [*kept, human]


def _nothing_left(selection: Selection, graded: Sequence[GradedSolution]) -> str:
    num_truncated = sum(one.solution.finish_reason == "length" for one in graded)
    num_silent = sum(one.answer is None for one in graded)
    found = (
        f"nothing to train on: of {selection.num_solutions:,} solutions to {selection.num_problems:,} "
        f"problems {selection.num_correct:,} are correct and {selection.num_finished:,} of these finished "
        f"({num_truncated:,} were cut off, {num_silent:,} give no answer)"
    )
    if selection.num_correct > selection.num_finished:
        advice = "raise sampling.max_new_tokens or name sampling.stop_strings; a reward of 0 trains nothing"
    else:
        advice = (
            "show worked examples in prompt.base, raise sampling.num_samples or sampling.temperature, take "
            "easier problems or a stronger model, or lower reward.threshold where the reward is a number"
        )
    return f"{found}. Try this: {advice}"
