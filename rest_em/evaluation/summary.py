"""What a policy's judged samples say of it: every figure of docs/evaluation.md, of all problems and by group.

Pure arithmetic over `Columns`. Sampling and judging are elsewhere; two policies are compared in `comparison`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from rest_em.evaluation.columns import UNKNOWN, Columns
from rest_em.evaluation.estimators import best_at_k, pass_at_k_of_each
from rest_em.evaluation.intervals import Estimate, Figure, estimate, kept
from rest_em.evaluation.pairs import paired_gain
from rest_em.evaluation.spread import Floats
from rest_em.evaluation.votes import SameAnswer, majority_at_k_of_each

BUCKETS = {"75-100 %": 0.75, "50-75 %": 0.5, "25-50 %": 0.25, "< 25 %": 0.0}
"""Difficulty by the base model's success, as the paper's section 5.2 cuts it: name -> the least success."""


@dataclass(frozen=True, slots=True)
class Labels:
    """What each problem belongs to and comes from; None where there are no groups, or no clusters."""

    groups: Sequence[object] | None
    """What the macro average goes over."""
    clusters: Sequence[object] | None
    """A problem that says nothing is its own cluster."""

    @classmethod
    def of(cls, columns: Columns) -> Labels:
        """Return those of samples."""
        sources = zip(columns.clusters, columns.problem_ids, strict=True)
        return cls(
            None if all(one is None for one in columns.groups) else list(columns.groups),
            None
            if all(one is None for one in columns.clusters)
            else [f"problem {key}" if one is None else f"cluster {one}" for one, key in sources],
        )

    def or_else(self, other: Labels) -> Labels:
        """Return another's in the place of those that are not there."""
        return Labels(self.groups or other.groups, self.clusters or other.clusters)


@dataclass(frozen=True, slots=True)
class Shares:
    """What became of a set of solutions: shares in [0, 1], means; None where it is not known or not asked.

    Example:
        Shares(num_solutions=3200, no_answer=0.1, truncated=0.05, unscorable=0.0, mean_tokens=41.5,
               format_valid=0.9, distinct_solutions=7.1, distinct_answers=2.5)
    """

    num_solutions: int
    no_answer: float | None
    """Of the solutions that could be judged."""
    truncated: float | None
    """Cut off at the cap on new tokens, of those of which it is known."""
    unscorable: float
    mean_tokens: float | None
    """Token ids a solution, of those of which it is known."""
    format_valid: float | None = None
    """In the format that was asked for, of those of which it is known."""
    distinct_solutions: float | None = None
    """Unlike texts a problem, blanks around them aside, over the problems with a solution."""
    distinct_answers: float | None = None
    """Unlike answers a problem, over the problems with a judged solution; None without votes."""


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of merit over a set of problems."""

    num_problems: int
    pass_at: Mapping[int, Figure]
    """By k; 1 is the greedy solution's where there are greedy solutions."""
    majority_at: Mapping[int, Figure]
    """By k."""
    best_at: Mapping[int, Figure] = field(default_factory=dict)
    """By k: the highest reward of k samples; empty where every reward is 0 or 1, for it is pass@k then."""
    coverage: Figure | None = None
    """Problems with a correct sample, whatever their number of samples; None without samples."""

    def to_json(self) -> dict[str, Any]:
        """Return a JSON value; k becomes a string."""
        return {
            "num_problems": self.num_problems,
            **{
                name: {str(k): one.to_json() for k, one in getattr(self, name).items()}
                for name in ("pass_at", "majority_at", "best_at")
            },
            "coverage": self.coverage and self.coverage.to_json(),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Figures:
        """Return what `to_json` wrote."""
        by_k = {
            name: {int(k): Figure.from_json(one) for k, one in value[name].items()}
            for name in ("pass_at", "majority_at", "best_at")
        }
        coverage = value["coverage"] and Figure.from_json(value["coverage"])
        return cls(num_problems=value["num_problems"], **by_k, coverage=coverage)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One policy, measured on one set of problems."""

    overall: Figures
    """Over all problems."""
    macro: Figures | None
    """The mean over the groups of their own means; None where there are no groups."""
    groups: Mapping[str, Figures]
    """By group, such as a task."""
    labels: Labels
    """Of the problems, in the order of `is_correct`."""
    is_correct: Mapping[str, bool | None]
    """The greedy verdict by problem id, for paired comparisons; None where it could not be judged."""
    success_rate: Mapping[str, float | None]
    """The share of a problem's samples that are correct; None where none could be judged."""
    greedy: Shares | None
    """Of the greedy solutions; None where there are none."""
    sampled: Shares | None
    """Of the sampled solutions; None where there are none."""

    @property
    def num_problems(self) -> int:
        """Problems, those without a figure among them."""
        return self.overall.num_problems

    @property
    def main(self) -> Figures:
        """What people quote: the macro average where there are groups."""
        return self.macro or self.overall

    def to_json(self) -> dict[str, Any]:
        """Return a JSON value."""
        return {
            "overall": self.overall.to_json(),
            "macro": self.macro and self.macro.to_json(),
            "groups": {name: one.to_json() for name, one in self.groups.items()},
            "labels": asdict(self.labels),
            "is_correct": dict(self.is_correct),
            "success_rate": dict(self.success_rate),
            "greedy": self.greedy and asdict(self.greedy),
            "sampled": self.sampled and asdict(self.sampled),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Evaluation:
        """Return what `to_json` wrote."""
        return cls(
            overall=Figures.from_json(value["overall"]),
            macro=value["macro"] and Figures.from_json(value["macro"]),
            groups={name: Figures.from_json(one) for name, one in value["groups"].items()},
            labels=Labels(**value["labels"]),
            is_correct=value["is_correct"],
            success_rate=value["success_rate"],
            greedy=value["greedy"] and Shares(**value["greedy"]),
            sampled=value["sampled"] and Shares(**value["sampled"]),
        )


@dataclass(frozen=True, slots=True)
class Metrics:
    """Which figures are wanted.

    Example:
        Metrics(pass_at=(1, 8), majority_at=(8,))
    """

    pass_at: Sequence[int]
    """The k of pass@k and best@k; 1 is always among them where there are greedy solutions."""
    majority_at: Sequence[int] = ()
    """The k of maj@k."""
    confidence: float = 0.95
    """Of the intervals."""
    same_answer: SameAnswer | None = None
    """As that of `vote_classes`."""


@dataclass(frozen=True, slots=True)
class Values:
    """What each problem has of every figure; NaN where it is not defined. P entries each."""

    pass_at: Mapping[int, Floats]
    majority_at: Mapping[int, Floats]
    best_at: Mapping[int, Floats]
    coverage: Floats | None
    greedy: Floats | None
    """The greedy verdict, 1 or 0."""
    num_votes: Floats | None
    """Unlike answers."""


def values_of(greedy: Columns | None, sampled: Columns | None, metrics: Metrics) -> Values:
    """Return what each problem has of every figure.

    Args:
        greedy: one solution a problem.
        sampled: of the same problems in the same order.
    """
    assert greedy is None or sampled is None or greedy.problem_ids == sampled.problem_ids
    verdicts = None if greedy is None else _means(greedy)
    if sampled is None:
        return Values({1: verdicts} if verdicts is not None else {}, {}, {}, None, verdicts, None)
    is_judged = sampled.verdict != UNKNOWN
    num_judged = np.bincount(sampled.problem[is_judged], minlength=sampled.num_problems)
    num_correct = np.bincount(sampled.problem[sampled.verdict == 1], minlength=sampled.num_problems)
    passed = {k: pass_at_k_of_each(num_judged, num_correct, k) for k in sorted(metrics.pass_at)}
    if verdicts is not None:
        passed = {1: verdicts} | {k: one for k, one in passed.items() if k != 1}
    majority, num_votes = {}, None
    if metrics.majority_at:
        ballots = sampled.ballots(metrics.same_answer)
        majority = {k: majority_at_k_of_each(ballots, k) for k in sorted(metrics.majority_at)}
        majority = {k: np.where(num_judged > 0, one, math.nan) for k, one in majority.items()}
        num_votes = np.where(num_judged > 0, [len(one.classes) for one in ballots], math.nan)
    return Values(
        pass_at=passed,
        majority_at=majority,
        best_at=_best(sampled, metrics.pass_at),
        coverage=np.where(num_judged > 0, num_correct > 0, math.nan),
        greedy=verdicts,
        num_votes=num_votes,
    )


def _means(columns: Columns) -> Floats:
    """Return each problem's share of correct solutions among those that could be judged."""
    is_judged = columns.verdict != UNKNOWN
    counts = np.bincount(columns.problem[is_judged], minlength=columns.num_problems)
    correct = np.bincount(columns.problem[columns.verdict == 1], minlength=columns.num_problems)
    return np.where(counts > 0, correct / np.maximum(counts, 1), math.nan)


def _best(sampled: Columns, ks: Sequence[int]) -> dict[int, Floats]:
    is_judged = sampled.verdict != UNKNOWN
    rewards, problem = sampled.reward[is_judged], sampled.problem[is_judged]
    if np.isin(rewards, (0.0, 1.0)).all():
        return {}
    order = np.argsort(problem, kind="stable")
    ends = np.cumsum(np.bincount(problem, minlength=sampled.num_problems))[:-1]
    by_problem = np.split(rewards[order], ends)
    best: dict[int, Floats] = {}
    for k in sorted(ks):
        each = [best_at_k(own, k) for own in by_problem]
        best[k] = np.array([math.nan if value is None else value for value in each])
    return best


def summarize(greedy: Columns | None, sampled: Columns | None, metrics: Metrics) -> Evaluation:
    """Return what one policy's judged samples of a set of problems say of it.

    A solution that could not be judged is not counted among its problem's samples; a problem with fewer than
    k left is undefined for k, and the estimates count it.

    Args:
        greedy: one solution a problem; None where there are none.
        sampled: the samples of the same problems in the same order; None where there are none.
    """
    columns = sampled or greedy
    assert columns is not None, "there are solutions of one kind at least"
    values = values_of(greedy, sampled, metrics)
    everywhere = np.ones(columns.num_problems, dtype=bool)
    names = [name for name in dict.fromkeys(columns.groups) if name is not None]
    groups = {
        name: _figures(values, columns, np.array([one == name for one in columns.groups]), metrics)
        for name in names
    }
    rates = None if sampled is None else _means(sampled)
    return Evaluation(
        overall=_figures(values, columns, everywhere, metrics),
        macro=_figures(values, columns, everywhere, metrics, is_macro=True) if groups else None,
        groups=groups,
        labels=Labels.of(columns),
        is_correct=_by_problem(columns, values.greedy, bool),
        success_rate=_by_problem(columns, rates, float),
        greedy=None if greedy is None else shares(greedy),
        sampled=None if sampled is None else shares(sampled, values.num_votes),
    )


def _by_problem(columns: Columns, values: Floats | None, kind: type) -> dict[str, Any]:
    if values is None:
        return dict.fromkeys(columns.problem_ids)
    return {
        key: None if math.isnan(value) else kind(value)
        for key, value in zip(columns.problem_ids, values.tolist(), strict=True)
    }


def _figures(
    values: Values,
    columns: Columns,
    chosen: npt.NDArray[np.bool_],
    metrics: Metrics,
    *,
    is_macro: bool = False,
) -> Figures:
    """Return the figures over the chosen problems."""
    every = Labels.of(columns)
    labels = Labels(every.groups if is_macro else None, kept(every.clusters, chosen))

    def figure(each: Floats, wanted: str, *, is_share: bool = True) -> Figure:
        return figure_of(each[chosen], labels, wanted, confidence=metrics.confidence, is_share=is_share)

    has_greedy = values.greedy is not None
    return Figures(
        num_problems=int(chosen.sum()),
        pass_at={
            k: figure(each, "no greedy solution" if k == 1 and has_greedy else _too_few(k))
            for k, each in values.pass_at.items()
        },
        majority_at={k: figure(each, _too_few(k)) for k, each in values.majority_at.items()},
        best_at={k: figure(each, _too_few(k), is_share=False) for k, each in values.best_at.items()},
        coverage=None if values.coverage is None else figure(values.coverage, _too_few(1)),
    )


def figure_of(
    values: Floats, labels: Labels, wanted: str, *, confidence: float, is_share: bool = True
) -> Figure:
    """Return a figure over problems, of groups the mean of their means; it says what it is not defined for.

    Args:
        values: one a problem, NaN where it is not defined.
        labels: of these problems.
        wanted: what a problem without it has, as in "fewer than 8 solutions".
        confidence: as that of `estimate`.
        is_share: as that of `estimate`.
    """
    is_defined = ~np.isnan(values)
    num_undefined = len(values) - int(is_defined.sum())
    found = estimate(
        values, clusters=labels.clusters, strata=labels.groups, confidence=confidence, is_share=is_share
    )
    if found is not None and not num_undefined:
        return Figure(found, len(values), 0)
    why = f"{num_undefined:,} of {len(values):,} problems have {wanted} that could be judged"
    if found is None and num_undefined < len(values):
        why = "of a single problem, or cluster, there is no error"
    without = {*map(str, labels.groups or ())} - {*map(str, kept(labels.groups, is_defined) or ())}
    if without:
        why += f"; the mean is without the groups {', '.join(sorted(without))}"
    return Figure(found, len(values) - num_undefined, num_undefined, why)


def _too_few(k: int) -> str:
    return f"fewer than {k} {'solution' if k == 1 else 'solutions'}"


def shares(columns: Columns, num_votes: Floats | None = None) -> Shares | None:
    """Return what became of a set of solutions; None if there are none.

    Args:
        num_votes: unlike answers of each problem; None where there are no votes.
    """
    num_solutions = len(columns.problem)
    if not num_solutions:
        return None
    is_judged = columns.verdict != UNKNOWN
    # Problem and text in one number, of which two unlike ones are equal once in 10^7 million samples.
    texts = np.sort(columns.text + columns.problem.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    return Shares(
        num_solutions=num_solutions,
        no_answer=_mean(columns.answer[is_judged] < 0),
        truncated=_mean(columns.is_truncated[columns.is_truncated != UNKNOWN]),
        unscorable=1 - float(is_judged.mean()),
        mean_tokens=_mean(columns.num_tokens[~np.isnan(columns.num_tokens)]),
        format_valid=_mean(columns.is_format_valid[columns.is_format_valid != UNKNOWN]),
        distinct_solutions=(1 + int(np.count_nonzero(np.diff(texts)))) / len(np.unique(columns.problem)),
        distinct_answers=None if num_votes is None else _mean(num_votes[~np.isnan(num_votes)]),
    )


def _mean(values: npt.NDArray[Any]) -> float | None:
    return float(values.mean()) if len(values) else None


def gain(evaluation: Evaluation, base: Evaluation, *, confidence: float = 0.95) -> Estimate | None:
    """Return how much higher greedy pass@1 is than the base's, on the same problems; of groups the mean's.

    Raises:
        ValueError: the two were measured on different problems.
    """
    if evaluation.is_correct.keys() != base.is_correct.keys():
        raise ValueError("a gain needs two evaluations of the same problems")
    ids = list(base.is_correct)
    return paired_gain(
        [evaluation.is_correct[key] for key in ids],
        [base.is_correct[key] for key in ids],
        clusters=base.labels.clusters,
        strata=base.labels.groups,
        confidence=confidence,
    )


def by_difficulty(evaluation: Evaluation, base: Evaluation, *, confidence: float = 0.95) -> dict[str, Figure]:
    """Return greedy pass@1 on the problems of each bucket of the base model's success.

    The base's success on a problem is the share of its samples that are correct. Problems without one stand
    in no bucket. The base's own greedy solutions are drawn apart from those samples, so that its figures show
    how much of a gain in a bucket is mere return to the mean.

    Raises:
        ValueError: the two were measured on different problems.
    """
    if evaluation.is_correct.keys() != base.is_correct.keys():
        raise ValueError("buckets need two evaluations of the same problems")
    verdicts: dict[str, list[bool | None]] = {name: [] for name in BUCKETS}
    for key, rate in base.success_rate.items():
        if rate is not None:
            name = next(name for name, least in BUCKETS.items() if rate >= least)
            verdicts[name].append(evaluation.is_correct[key])
    figures = {}
    for name, own in verdicts.items():
        num_undefined = own.count(None)
        why = f"{num_undefined} of {len(own)} problems have no greedy solution that could be judged"
        if not own:
            why = "no problem is that difficult for the base model"
        found = estimate(own, confidence=confidence)
        is_whole = bool(own) and not num_undefined
        figures[name] = Figure(found, len(own) - num_undefined, num_undefined, None if is_whole else why)
    return figures
