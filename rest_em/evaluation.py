"""What a policy's graded solutions say of it: pass@k, majority vote, intervals, the gain over another policy.

Pure arithmetic over verdicts. A figure that is not defined is None, never a plausible number: pass@k for
k > n, a problem none of whose solutions could be judged. Sampling and judging are elsewhere.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rest_em.types import GradedSolution, Verdict

SameAnswer = Callable[[str, str], bool]
"""Whether two answers mean the same, as the reward judges that."""

NUM_RESAMPLES = 10_000
"""Of the paired bootstrap."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over problems and its interval.

    Example:
        Estimate(value=0.41, low=0.36, high=0.46, standard_error=0.025, num_problems=400, num_undefined=0)
    """

    value: float
    low: float
    high: float
    standard_error: float
    """Over problems; 0.0 where there is only one."""
    num_problems: int
    """Problems that the mean is over."""
    num_undefined: int
    """Problems left out because the figure is not defined for them."""


@dataclass(frozen=True, slots=True)
class Shares:
    """What became of a set of solutions, shares in [0, 1].

    Example:
        Shares(num_solutions=3200, no_answer=0.1, truncated=0.05, unscorable=0.0, mean_tokens=41.5)
    """

    num_solutions: int
    no_answer: float
    """Of the solutions that could be judged."""
    truncated: float
    """Cut off at the cap on new tokens."""
    unscorable: float
    mean_tokens: float
    """Token ids a solution."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One policy, measured on one set of problems."""

    num_problems: int
    pass_at: Mapping[int, Estimate | None]
    """By k; 1 is the greedy solution's where there are greedy solutions. None: defined for no problem."""
    majority_at: Mapping[int, Estimate | None]
    """By k."""
    is_correct: Mapping[str, bool | None]
    """The greedy verdict by problem id, for paired comparisons; None where it could not be judged."""
    greedy: Shares | None
    """Of the greedy solutions; None where there are none."""
    sampled: Shares | None
    """Of the sampled solutions; None where there are none."""

    def to_json(self) -> dict[str, Any]:
        """Return a JSON value; k becomes a string."""
        return asdict(self) | {
            name: {str(k): one and asdict(one) for k, one in figures.items()}
            for name, figures in (("pass_at", self.pass_at), ("majority_at", self.majority_at))
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Evaluation:
        """Return what `to_json` wrote."""
        return cls(
            num_problems=value["num_problems"],
            pass_at={int(k): one and Estimate(**one) for k, one in value["pass_at"].items()},
            majority_at={int(k): one and Estimate(**one) for k, one in value["majority_at"].items()},
            is_correct=value["is_correct"],
            greedy=value["greedy"] and Shares(**value["greedy"]),
            sampled=value["sampled"] and Shares(**value["sampled"]),
        )


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float | None:
    """Return the chance that k of a problem's samples, drawn without replacement, hold a correct one.

    1 - C(n - c, k) / C(n, k), exact up to the last rounding; None where k > n.

    >>> pass_at_k(4, 1, 2), pass_at_k(4, 0, 8)
    (0.5, None)

    Raises:
        ValueError: no samples, more correct ones than samples, or k < 1.

    Source: Chen et al. 2021, arXiv 2107.03374, section 2.1.
    """
    if num_samples < 1 or not 0 <= num_correct <= num_samples or k < 1:
        raise ValueError(f"pass@{k} of {num_correct} correct among {num_samples} samples is not defined")
    if k > num_samples:
        return None
    all_subsets = math.comb(num_samples, k)
    return (all_subsets - math.comb(num_samples - num_correct, k)) / all_subsets


@dataclass(frozen=True, slots=True)
class VoteClass:
    """Samples of one problem that give the same answer.

    Example:
        VoteClass(num_votes=5, num_correct=5)
    """

    num_votes: int
    """> 0."""
    num_correct: int
    """As the reward judged them; one answer may have both verdicts where a reward looks at more than it."""


def vote_classes(
    votes: Mapping[str, int], correct: Mapping[str, int], same_answer: SameAnswer | None = None
) -> list[VoteClass]:
    """Return the classes of one problem's answers: the one place that says which answers are the same.

    >>> vote_classes({"4": 3, "5": 1}, {"4": 3})
    [VoteClass(num_votes=3, num_correct=3), VoteClass(num_votes=1, num_correct=0)]

    Args:
        votes: how many samples give each answer.
        correct: how many of these are correct; an answer without one may be absent.
        same_answer: whether two answers mean the same; an answer is held against the first one of each class,
            in the order of the votes. None: answers that are written alike are the same.
    """
    classes: dict[str, tuple[int, int]] = {}
    for answer, num_votes in votes.items():
        first = answer
        if same_answer is not None:
            first = next((one for one in classes if same_answer(one, answer)), answer)
        total, num_correct = classes.get(first, (0, 0))
        classes[first] = total + num_votes, num_correct + correct.get(answer, 0)
    return [VoteClass(*counts) for counts in classes.values()]


def majority_at_k(classes: Sequence[VoteClass], num_abstaining: int, k: int) -> float | None:
    """Return the chance that the most frequent answer among k samples is correct.

    The exact expectation over all subsets of k samples: ties are broken evenly, the winning answer counts
    with the share of its samples that are correct, samples without an answer do not vote, and a subset
    without a vote is wrong. None where k > n. Takes a few ms at n = 64, k = 32.

    >>> round(majority_at_k([VoteClass(2, 2), VoteClass(1, 0)], num_abstaining=0, k=2), 12)  # AA, AB, AB
    0.666666666667

    Args:
        classes: the problem's answers.
        num_abstaining: its samples without one.
        k: samples that vote.

    Raises:
        ValueError: no samples, or k < 1.
    """
    sizes = [one.num_votes for one in classes]
    num_samples = sum(sizes) + num_abstaining
    if num_samples < 1 or k < 1:
        raise ValueError(f"maj@{k} of {num_samples} samples is not defined")
    if k > num_samples:
        return None
    if k == num_samples:  # one subset: no chance but in a tie, however many samples there are
        winners = [one for one in classes if one.num_votes == max(sizes)]
        return sum(one.num_correct / one.num_votes for one in winners) / len(winners) if winners else 0.0
    correct_by_size: Counter[int] = Counter()  # classes of one size are equally likely to win
    for one in classes:
        correct_by_size[one.num_votes] += one.num_correct
    total = 0.0
    for size, num_correct in correct_by_size.items():
        if num_correct:
            others = Counter(sizes)
            others[size] -= 1
            total += num_correct / size * _win_chance(size, others, num_abstaining, k)
    return min(total, 1.0)


def _win_chance(size: int, others: Counter[int], num_abstaining: int, k: int) -> float:
    """Return the chance that a class of `size` votes wins among k samples, a tie of t counting 1/t.

    Each sample is taken with chance p = k/n on its own, and all is conditioned on k being taken: the
    same distribution, and numbers that neither overflow nor cancel. For each number v of votes that wins,
    `chance[t, x]` is that t other classes have v votes too, the rest fewer, and x samples are taken.
    """
    num_samples = size + num_abstaining + sum(each * count for each, count in others.items())
    p = k / num_samples
    won = 0.0
    for v in range(1, min(size, k) + 1):
        num_left = k - v
        small = num_abstaining + sum(each * count for each, count in others.items() if each < v)
        chance = np.zeros((num_left // v + 1, num_left + 1))
        start = _binomial(small, p)[: num_left + 1]
        chance[0, : len(start)] = start
        for each, count in others.items():
            if each >= v:
                pmf = _binomial(each, p)
                for _ in range(count):
                    chance = _with_class(chance, pmf, v)
        ties = np.arange(1, len(chance) + 1)
        won += float(_binomial(size, p)[v] * (chance[:, num_left] / ties).sum())
    return won / float(_binomial(num_samples, p)[k])


def _with_class(
    chance: npt.NDArray[np.float64], pmf: npt.NDArray[np.float64], v: int
) -> npt.NDArray[np.float64]:
    """Return `chance` with one more class that may have up to v votes."""
    width = chance.shape[1]
    after = np.zeros_like(chance)
    for votes in range(min(v, width)):
        after[:, votes:] += pmf[votes] * chance[:, : width - votes]
    if v < width:
        after[1:, v:] += pmf[v] * chance[:-1, : width - v]
    return after


def _binomial(n: int, p: float) -> npt.NDArray[np.float64]:
    """Return the chances of 0 to n successes."""
    if p == 1:
        return np.array([0.0] * n + [1.0])
    x = np.arange(n + 1)
    logs = [math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in range(n + 1)]
    chances: npt.NDArray[np.float64] = np.exp(logs + x * math.log(p) + (n - x) * math.log1p(-p))
    return chances


def estimate(values: Sequence[float | None], *, confidence: float = 0.95) -> Estimate | None:
    """Return the mean of a figure over problems, with an interval; None if it is defined for no problem.

    Wilson's interval with the effective number of problems n p (1 - p) / variance: exactly Wilson's for one
    solution a problem, narrower for figures between 0 and 1, and inside [0, 1] everywhere. It is for one
    policy; two on the same problems are compared with `paired_gain`.

    Args:
        values: one a problem, in [0, 1]; None where it is not defined.
        confidence: of the interval.

    Source: Wilson 1927; Korn and Graubard 1998 for the effective number.
    """
    defined = np.array([value for value in values if value is not None], dtype=float)
    n = len(defined)
    if n == 0:
        return None
    mean, variance = float(defined.mean()), float(defined.var())
    effective = n * mean * (1 - mean) / variance if variance > 0 else n
    z = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
    center = (mean + z * z / (2 * effective)) / (1 + z * z / effective)
    half = z * math.sqrt(mean * (1 - mean) / effective + (z / (2 * effective)) ** 2) / (1 + z * z / effective)
    return Estimate(
        value=mean,
        low=max(0.0, min(center - half, mean)),
        high=min(1.0, max(center + half, mean)),
        standard_error=_standard_error(defined),
        num_problems=n,
        num_undefined=len(values) - n,
    )


def paired_gain(
    values: Sequence[float | None],
    base_values: Sequence[float | None],
    *,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate | None:
    """Return the mean of `values - base_values` over problems, with a bootstrap interval over problems.

    Percentiles of the means of 10,000 resamples; the same seed gives the same interval. A problem for which
    either figure is not defined is left out and counted; None if fewer than two are left.

    Args:
        values: one a problem.
        base_values: the other policy's, of the same problems in the same order.
        confidence: of the interval.
        seed: of the resamples.
    """
    pairs = list(zip(values, base_values, strict=True))
    differences = np.array(
        [one - base for one, base in pairs if one is not None and base is not None], dtype=float
    )
    n = len(differences)
    if n < 2:
        return None
    unlike, counts = np.unique(differences, return_counts=True)
    draws = np.random.default_rng(seed)
    # In tenths: 10,000 resamples of 10,000 unlike differences would take 800 MB at once.
    means = np.concatenate(
        [draws.multinomial(n, counts / n, size=NUM_RESAMPLES // 10) @ unlike / n for _ in range(10)]
    )
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(
        value=float(differences.mean()),
        low=float(low),
        high=float(high),
        standard_error=_standard_error(differences),
        num_problems=n,
        num_undefined=len(pairs) - n,
    )


def gain(evaluation: Evaluation, base: Evaluation, *, confidence: float = 0.95) -> Estimate | None:
    """Return how much higher greedy pass@1 is than the base's, on the same problems.

    Raises:
        ValueError: the two were measured on different problems.
    """
    if evaluation.is_correct.keys() != base.is_correct.keys():
        raise ValueError("a gain needs two evaluations of the same problems")
    ids = list(base.is_correct)
    return paired_gain(
        [evaluation.is_correct[key] for key in ids],
        [base.is_correct[key] for key in ids],
        confidence=confidence,
    )


def summarize(
    greedy: Sequence[GradedSolution],
    sampled: Sequence[GradedSolution],
    *,
    pass_at: Sequence[int],
    majority_at: Sequence[int],
    confidence: float = 0.95,
    same_answer: SameAnswer | None = None,
) -> Evaluation:
    """Return what one policy's graded solutions to a set of problems say of it.

    A solution that could not be judged is not counted among its problem's samples; a problem with fewer than
    k left is undefined for k, and the estimates count it.

    Args:
        greedy: one solution a problem; may be empty.
        sampled: the samples; may be empty.
        pass_at: the k of pass@k; 1 is always among them where there are greedy solutions.
        majority_at: the k of maj@k.
        confidence: of the intervals.
        same_answer: as that of `vote_classes`.
    """
    ids = list(dict.fromkeys(one.solution.problem_id for one in (*greedy, *sampled)))
    samples: dict[str, list[GradedSolution]] = {key: [] for key in ids}
    for one in sampled:
        if one.verdict is not Verdict.UNSCORABLE:
            samples[one.solution.problem_id].append(one)
    is_correct: dict[str, bool | None] = dict.fromkeys(ids)
    for one in greedy:
        if one.verdict is not Verdict.UNSCORABLE:
            is_correct[one.solution.problem_id] = one.verdict is Verdict.CORRECT
    passed = {
        k: estimate([_pass_at(samples[key], k) for key in ids], confidence=confidence)
        for k in sorted(pass_at)
    }
    if greedy:
        passed = {1: estimate(list(is_correct.values()), confidence=confidence)} | {
            k: one for k, one in passed.items() if k != 1
        }
    votes = {key: _votes(samples[key], same_answer) for key in ids} if majority_at else {}
    return Evaluation(
        num_problems=len(ids),
        pass_at=passed,
        majority_at={
            k: estimate(
                [majority_at_k(*votes[key], k) if samples[key] else None for key in ids],
                confidence=confidence,
            )
            for k in sorted(majority_at)
        },
        is_correct=is_correct,
        greedy=shares(greedy),
        sampled=shares(sampled),
    )


def shares(graded: Sequence[GradedSolution]) -> Shares | None:
    """Return what became of a set of solutions; None if there are none."""
    if not graded:
        return None
    scorable = [one for one in graded if one.verdict is not Verdict.UNSCORABLE]
    return Shares(
        num_solutions=len(graded),
        no_answer=sum(one.answer is None for one in scorable) / max(len(scorable), 1),
        truncated=sum(one.solution.finish_reason == "length" for one in graded) / len(graded),
        unscorable=1 - len(scorable) / len(graded),
        mean_tokens=statistics.fmean(len(one.solution.token_ids) for one in graded),
    )


def _pass_at(scorable: Sequence[GradedSolution], k: int) -> float | None:
    if not scorable:
        return None
    return pass_at_k(len(scorable), sum(one.verdict is Verdict.CORRECT for one in scorable), k)


def _votes(scorable: Sequence[GradedSolution], same_answer: SameAnswer | None) -> tuple[list[VoteClass], int]:
    """Return the classes of one problem's answers, and how many samples give none."""
    votes = Counter(one.answer for one in scorable if one.answer is not None)
    correct = Counter(
        one.answer for one in scorable if one.answer is not None and one.verdict is Verdict.CORRECT
    )
    return vote_classes(votes, correct, same_answer), len(scorable) - votes.total()


def _standard_error(values: npt.NDArray[np.float64]) -> float:
    return float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
