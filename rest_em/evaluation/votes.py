"""Majority vote: which answers are the same, and the exact expectation of maj@k over all subsets.

Nobody's first k samples and nobody's first answer of a tie: all C(n, k) subsets count alike, and a tie is
broken evenly. Intervals are in `intervals`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

SameAnswer = Callable[[str, str], bool]
"""Whether two answers mean the same, as the reward judges that."""

NEGLIGIBLE = 1e-18
"""A number of votes that is less likely than this is left out: of at most k such terms nothing is seen."""
CHUNK = 2**17
"""Complex numbers worked on at once, so that they stay in the processor's cache."""

Complex = npt.NDArray[np.complex128]


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


@dataclass(frozen=True, slots=True)
class Ballot:
    """The votes of one problem's samples.

    Example:
        Ballot((VoteClass(5, 5), VoteClass(2, 0)), num_abstaining=1)
    """

    classes: tuple[VoteClass, ...]
    num_abstaining: int
    """Samples without an answer."""

    @property
    def num_samples(self) -> int:
        """All samples, those that abstain among them."""
        return sum(one.num_votes for one in self.classes) + self.num_abstaining


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
    """Return the chance that the most frequent answer among k of a problem's samples is correct.

    The exact expectation over all subsets of k samples: ties are broken evenly, the winning answer counts
    with the share of its samples that are correct, samples without an answer do not vote, and a subset
    without a vote is wrong. None where k > n.

    >>> round(majority_at_k([VoteClass(2, 2), VoteClass(1, 0)], num_abstaining=0, k=2), 12)  # AA, AB, AB
    0.666666666667

    Args:
        classes: the problem's answers.
        num_abstaining: its samples without one.
        k: samples that vote.

    Raises:
        ValueError: no samples, or k < 1.
    """
    ballot = Ballot(tuple(classes), num_abstaining)
    if ballot.num_samples < 1:
        raise ValueError(f"maj@{k} of {ballot.num_samples} samples is not defined")
    (value,) = majority_at_k_of_each([ballot], k)
    return None if math.isnan(value) else float(value)


def majority_at_k_of_each(ballots: Iterable[Ballot], k: int) -> npt.NDArray[np.float64]:
    """Return maj@k of each problem, as `majority_at_k` defines it; NaN where it has fewer than k samples.

    Raises:
        ValueError: k < 1.
    """
    if k < 1:
        raise ValueError(f"maj@{k} is not defined")
    ballots = list(ballots)
    values = np.full(len(ballots), math.nan)
    wanted: dict[int, dict[_Candidate, list[tuple[int, float]]]] = {}
    for index, ballot in enumerate(ballots):
        num_samples = ballot.num_samples
        if num_samples < k:
            continue
        values[index] = 0.0
        if num_samples == k:  # one subset: no chance but in a tie, however many samples there are
            values[index] = _decided(ballot.classes)
            continue
        for candidate, weight in _candidates(ballot.classes):
            wanted.setdefault(num_samples, {}).setdefault(candidate, []).append((index, weight))
    for num_samples, claims in wanted.items():
        chances = _win_chances(list(claims), num_samples, k)
        for chance, claim in zip(chances, claims.values(), strict=True):
            for index, weight in claim:
                values[index] += weight * chance
    clipped: npt.NDArray[np.float64] = np.clip(values, 0.0, 1.0)
    return clipped


def _decided(classes: Sequence[VoteClass]) -> float:
    """Return maj@n of n samples."""
    most = max((one.num_votes for one in classes), default=0)
    winners = [one.num_correct / one.num_votes for one in classes if one.num_votes == most]
    return sum(winners) / len(winners) if winners else 0.0


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A class that may win, and its rivals; problems often have the same."""

    size: int
    rivals: tuple[tuple[int, int], ...]
    """(votes, how many classes have so many), more votes first."""


def _candidates(classes: Sequence[VoteClass]) -> list[tuple[_Candidate, float]]:
    """Return the classes with a correct sample, and what the problem gets when one of them wins.

    Classes of one size are equally likely to win, so they share a candidate.
    """
    counts: dict[int, int] = {}
    weights: dict[int, float] = {}
    for one in classes:
        counts[one.num_votes] = counts.get(one.num_votes, 0) + 1
        if one.num_correct:
            weights[one.num_votes] = weights.get(one.num_votes, 0.0) + one.num_correct / one.num_votes
    sizes = sorted(counts.items(), reverse=True)
    found = []
    for size, weight in weights.items():
        rivals = tuple((each, count - (each == size)) for each, count in sizes if count - (each == size))
        found.append((_Candidate(size, rivals), weight))
    return found


def _win_chances(candidates: Sequence[_Candidate], num_samples: int, k: int) -> npt.NDArray[np.float64]:
    """Return the chance that each candidate wins among k < n samples, a tie of t rivals counting 1 / (1 + t).

    Each sample is taken with chance p = k / n on its own, and all is conditioned on k being taken: the same
    distribution, and numbers that neither overflow nor cancel. A candidate with v votes wins if each rival
    has fewer or as many. The generating function in x (samples taken) and y (ties) of all rivals is a
    product over them of

        (chance of u < v votes) x^u, summed, + y (chance of v votes) x^v.

    The coefficient of x^(k - v) is read by a discrete Fourier transform, and the mean of 1 / (1 + t) is the
    integral over y from 0 to 1, by Gauss and Legendre's nodes; both are exact for polynomials.
    """
    p = k / num_samples
    rivals = _Rivals.of(candidates)
    taken = _binomial(num_samples, p)
    period = _period(taken, k)
    points_H = np.exp(2j * math.pi * np.arange(period // 2 + 1) / period)
    # By conjugate symmetry half of the points say all.
    halves_H = np.where((np.arange(len(points_H)) * 2) % period == 0, 1.0, 2.0) / period
    silent_H = 1 - p + p * points_H  # the function of a sample that may be taken or not
    sizes = np.array([one.size for one in candidates])
    pmf = {size: _binomial(size, p) for size in {*sizes.tolist(), *rivals.sizes.tolist()}}
    fewer_RH = np.zeros((len(rivals.sizes), len(points_H)), dtype=complex)
    won = np.zeros(len(candidates))
    for v in range(1, min(k, int(sizes.max(initial=0))) + 1):
        exactly = {size: float(chances[v - 1]) for size, chances in pmf.items() if v <= size + 1}
        fewer_RH += np.outer([exactly.get(size, 0.0) for size in rivals.sizes.tolist()], points_H ** (v - 1))
        own = np.array([pmf[size][v] if size >= v else 0.0 for size in sizes.tolist()])
        active = np.flatnonzero(own > NEGLIGIBLE)
        if not len(active):
            continue
        equal = [pmf[size][v] if size >= v else 0.0 for size in rivals.sizes.tolist()]
        reading_H = halves_H * points_H ** -float(k - v)
        num_rest = num_samples - sizes[active] - rivals.num_votes(v)[active]
        unlike, places = np.unique(num_rest, return_inverse=True)
        read_CH = (reading_H * silent_H ** unlike[:, None])[places]
        ties_RH = np.outer(equal, points_H**v)
        won[active] += own[active] * rivals.lose_to(
            v, max_ties=(k - v) // v, active=active, read_CH=read_CH, fewer_RH=fewer_RH, ties_RH=ties_RH
        )
    return won / float(taken[k])


def _period(taken: npt.NDArray[np.float64], k: int) -> int:
    """Return how many points tell x^k from the other powers of x.

    A transform over so many points adds up what is that number of powers, or a multiple of it, apart: so many
    samples more or fewer than k are taken with a negligible chance, or are not there.

    Args:
        taken: the chance of 0 to n samples being taken.
    """
    num_samples = len(taken) - 1
    at_most, at_least = np.cumsum(taken), np.cumsum(taken[::-1])[::-1]
    for period in range(2, max(k, num_samples - k) + 1):
        above = at_least[k + period] if k + period <= num_samples else 0.0
        below = at_most[k - period] if k >= period else 0.0
        if above + below < NEGLIGIBLE:
            return period
    return max(k, num_samples - k) + 1


@dataclass(frozen=True, slots=True, eq=False)
class _Rivals:
    """The rivals of all candidates. C candidates, R unlike kinds of rivals, E rivals of all candidates."""

    sizes: npt.NDArray[np.int64]
    """[R] Votes of a kind."""
    counts: npt.NDArray[np.int64]
    """[R] Classes of a kind."""
    kind: npt.NDArray[np.int64]
    """[E] The kind of each."""
    candidate: npt.NDArray[np.int64]
    """[E] Whose rival it is, ascending."""
    num_candidates: int

    @classmethod
    def of(cls, candidates: Sequence[_Candidate]) -> _Rivals:
        kinds: dict[tuple[int, int], int] = {}
        kind = [kinds.setdefault(rival, len(kinds)) for one in candidates for rival in one.rivals]
        table = np.array(list(kinds), dtype=np.int64).reshape(-1, 2)
        owners = np.repeat(np.arange(len(candidates)), [len(one.rivals) for one in candidates])
        return cls(table[:, 0], table[:, 1], np.array(kind, dtype=np.int64), owners, len(candidates))

    def num_votes(self, least: int) -> npt.NDArray[np.int64]:
        """Return [C] the votes of each candidate's rivals that have `least` votes or more."""
        votes = np.where(self.sizes >= least, self.sizes * self.counts, 0)[self.kind]
        return np.bincount(self.candidate, votes, minlength=self.num_candidates).astype(np.int64)

    def lose_to(
        self,
        v: int,
        *,
        max_ties: int,
        active: npt.NDArray[np.int64],
        read_CH: Complex,
        fewer_RH: Complex,
        ties_RH: Complex,
    ) -> npt.NDArray[np.float64]:
        """Return the chance that v votes win against all rivals, for each active candidate.

        Args:
            v: votes of the candidate.
            max_ties: so many rivals can have v votes too, at most.
            active: the candidates, ascending.
            read_CH: what reads the coefficient from the product of the rivals' functions at the points, for
                each active candidate.
            fewer_RH: each kind's function of fewer than v votes.
            ties_RH: each kind's function of v votes.
        """
        able = np.flatnonzero((self.sizes >= v)[self.kind] & np.isin(self.candidate, active))
        place = np.searchsorted(active, self.candidate[able])
        num_rivals = np.bincount(place, self.counts[self.kind[able]], minlength=len(active)).astype(np.int64)
        num_nodes = np.minimum(num_rivals, max_ties) // 2 + 1  # exact for so many ties
        order = np.argsort(num_nodes, kind="stable")
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        by_rank = np.argsort(rank[place], kind="stable")
        kinds, ranks = self.kind[able][by_rank], rank[place][by_rank]
        chances = np.empty(len(active))
        chances[num_rivals == 0] = read_CH[num_rivals == 0].sum(axis=1).real
        work = num_nodes[order][ranks] * read_CH.shape[1]
        chunk_of = np.cumsum(work) // CHUNK
        starts = np.flatnonzero(np.diff(ranks, prepend=-1))  # of each candidate's rivals
        chunk_starts = starts[np.flatnonzero(np.diff(chunk_of[starts], prepend=-1))]
        for begin, end in itertools.pairwise([*chunk_starts.tolist(), len(kinds)]):
            whose = order[np.unique(ranks[begin:end])]
            nodes, weights = np.polynomial.legendre.leggauss(int(num_nodes[whose].max()))  # on [-1, 1]
            used, factors = np.unique(kinds[begin:end], return_inverse=True)
            one_class_UYH = fewer_RH[used][:, None] + ((nodes + 1) / 2)[:, None] * ties_RH[used][:, None]
            values_FYH = _power(one_class_UYH, self.counts[used])[factors]
            own_starts = starts[(starts >= begin) & (starts < end)] - begin
            product_CYH = np.multiply.reduceat(values_FYH, own_starts, axis=0)
            product_CH = np.tensordot(product_CYH, weights / 2, axes=(1, 0))
            chances[whose] = (product_CH * read_CH[whose]).sum(axis=1).real
        return chances


def _power(values: Complex, powers: npt.NDArray[np.int64]) -> Complex:
    """Return each of the values to its power >= 1 by products: exact where numpy's takes logarithms."""
    result = values.copy()
    for step in range(1, int(powers.max())):
        result[powers > step] *= values[powers > step]
    return result


def _binomial(n: int, p: float) -> npt.NDArray[np.float64]:
    """Return the chances of 0 to n successes, 0 < p < 1."""
    x = np.arange(n + 1)
    logs = [math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in range(n + 1)]
    chances: npt.NDArray[np.float64] = np.exp(logs + x * math.log(p) + (n - x) * math.log1p(-p))
    return chances
