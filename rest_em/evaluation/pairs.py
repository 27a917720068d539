"""Two means over problems: one policy's paired gain over another's, the sign test, when a gain is shown."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from rest_em.evaluation.intervals import Estimate, kept, numbers_of, student_quantile
from rest_em.evaluation.spread import Ends, Floats, Spread, codes_of, ends_of_mean, spread_of

NUM_RESAMPLES = 10_000
"""Of the bootstrap."""
FEW = 4
"""So many problems must differ from the others for the bootstrap and Student's interval to be enough."""
RESAMPLES_AT_ONCE = 2_000_000
"""Numbers drawn at once, so that memory does not grow with the problems."""


def paired_gain(
    values: Sequence[float | None] | Floats,
    base_values: Sequence[float | None] | Floats,
    *,
    clusters: Sequence[object] | None = None,
    strata: Sequence[object] | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate | None:
    """Return the mean of `values - base_values` over problems, with an interval.

    The interval holds the percentiles of 10,000 bootstrap resamples of problems, widened for few problems as
    Student's quantile is, and Student's own, for a resample of few problems cannot go beyond them. Where
    fewer than four problems differ from the others it also holds that of Agresti and Min, which adds half a
    problem won, half a one lost and one tied; of at most five strata what their own intervals say together.
    A problem for which either figure is not defined is left out and counted; None if fewer than two problems,
    or clusters, are left.

    Args:
        values: one a problem, in [0, 1].
        base_values: the other policy's, of the same problems in the same order.
        clusters: as those of `estimate`.
        strata: as those of `estimate`.
        confidence: of the interval.
        seed: of the resamples; the same seed gives the same interval.

    Source: Hesterberg 2015, section 4.3 ("expanded percentile"); Rao and Wu 1988 for strata of few problems;
        Agresti and Min 2005; Zou and Donner 2008 for strata.
    """
    one, base = numbers_of(values), numbers_of(base_values)
    if len(one) != len(base):
        raise ValueError(f"{len(one)} values and {len(base)} of the base; one of each a problem is wanted")
    every = one - base
    is_defined = ~np.isnan(every)
    if is_defined.sum() < 2:
        return None
    differences, sources, groups = every[is_defined], kept(clusters, is_defined), kept(strata, is_defined)
    spread = spread_of(differences, sources, groups)
    if not spread.degrees_of_freedom:
        return None
    ends = ends_of_mean(spread, differences, sources, groups, partial(_ends, confidence=confidence))
    assert ends is not None, "_ends knows an interval of any differences"
    low, high = ends
    if spread.variance:
        moves = _resampled_moves(spread, np.random.default_rng(seed))
        tail = statistics.NormalDist().cdf(-student_quantile((1 + confidence) / 2, spread.degrees_of_freedom))
        below, above = np.quantile(moves, [tail, 1 - tail]).tolist()
        low, high = min(low, spread.mean + below), max(high, spread.mean + above)
    return Estimate(
        value=spread.mean,
        low=max(-1.0, low),
        high=min(1.0, high),
        standard_error=spread.standard_error,
        num_problems=int(is_defined.sum()),
        num_undefined=len(every) - int(is_defined.sum()),
    )


def _ends(
    spread: Spread, differences: Floats, clusters: Sequence[object] | None, *, confidence: float
) -> Ends:
    """Return Student's interval, and that of Agresti and Min with it where few problems differ."""
    t = student_quantile((1 + confidence) / 2, max(spread.degrees_of_freedom, 1.0))
    half = t * spread.standard_error
    low, high = spread.mean - half, spread.mean + half
    counts = np.unique(np.round(differences, 12), return_counts=True)[1]
    are_few = clusters is None and spread.num_strata == 1 and len(differences) - int(counts.max()) < FEW
    if are_few or not spread.variance:
        number = spread.effective_units
        one, other = _agresti_min(spread.mean, float((differences**2).mean()), number, confidence)
        low, high = min(low, one), max(high, other)
    return low, high


def _agresti_min(mean: float, mean_square: float, number: float, confidence: float) -> Ends:
    """Return the interval of Agresti and Min of so many differences.

    >>> [round(end, 3) for end in _agresti_min(1.0, 1.0, 6, 0.95)]  # six of six are won
    [0.363, 1.137]
    """
    z = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
    center = mean * number / (number + 2)
    square = (mean_square * number + 1) / (number + 2)
    half = z * math.sqrt((square - center**2) / (number + 2))
    return center - half, center + half


def _resampled_moves(spread: Spread, draws: np.random.Generator) -> Floats:
    """Return by how much each of `NUM_RESAMPLES` resamples of units, each in its stratum, moves the mean."""
    moves = np.zeros(NUM_RESAMPLES)
    for stratum in range(spread.num_strata):
        own = spread.deviations[spread.stratum == stratum]
        own = own * math.sqrt(len(own) / max(len(own) - 1, 1))
        unlike, counts = np.unique(own, return_counts=True)
        if len(unlike) < len(own) / 4:  # few unlike deviations: how often each comes, in one draw
            moves += draws.multinomial(len(own), counts / len(own), size=NUM_RESAMPLES) @ unlike
            continue
        step = max(1, RESAMPLES_AT_ONCE // len(own))
        for start in range(0, NUM_RESAMPLES, step):
            size = (min(step, NUM_RESAMPLES - start), len(own))
            chosen = draws.integers(len(own), size=size, dtype=np.int32)
            moves[start : start + step] += own[chosen].sum(axis=1)
    return moves


def unpaired_gain(one: Estimate, base: Estimate) -> Estimate:
    """Return how much one figure is above another that is of other problems, such as test problems.

    Source: Newcombe 1998, method 10, from any two intervals of one confidence.
    """
    value = one.value - base.value
    return Estimate(
        value=value,
        low=value - math.hypot(one.value - one.low, base.high - base.value),
        high=value + math.hypot(one.high - one.value, base.value - base.low),
        standard_error=math.hypot(one.standard_error, base.standard_error),
        num_problems=one.num_problems + base.num_problems,
        num_undefined=one.num_undefined + base.num_undefined,
    )


@dataclass(frozen=True, slots=True)
class SignTest:
    """How many problems each of two policies wins, and how likely so unlike numbers are by chance.

    Example:
        SignTest(num_won=30, num_lost=12, num_tied=158, p_value=0.0077)
    """

    num_won: int
    """Problems, or clusters of problems, on which it is better."""
    num_lost: int
    num_tied: int
    """Those with equal figures: they say nothing of which is better and are left out of the test."""
    p_value: float
    """Two-sided, exact; 1.0 where none is won or lost."""


def sign_test(
    values: Sequence[float | None] | Floats,
    base_values: Sequence[float | None] | Floats,
    *,
    clusters: Sequence[object] | None = None,
) -> SignTest:
    """Count the problems on which `values` are higher and lower, and test whether the two are as likely.

    >>> sign_test([1, 1, 1, 0, 1], [0, 0, 0, 1, 1])
    SignTest(num_won=3, num_lost=1, num_tied=1, p_value=0.625)

    Args:
        values: one a problem; None or NaN where it is not defined, and the problem is left out.
        base_values: the other policy's, in the same order.
        clusters: as those of `estimate`: they are counted then, by the sum of their problems' differences.

    Source: Dixon and Mood 1946; for one verdict a problem it is McNemar's exact test.
    """
    every = numbers_of(values) - numbers_of(base_values)
    is_defined = ~np.isnan(every)
    labels = kept(clusters, is_defined)
    units = codes_of(range(int(is_defined.sum())) if labels is None else labels)
    # Figures that differ by rounding only are tied.
    differences = np.round(np.bincount(units, every[is_defined]), 12)
    num_won, num_lost = int((differences > 0).sum()), int((differences < 0).sum())
    num_decided = num_won + num_lost
    tail, ways = 0, 1
    for i in range(min(num_won, num_lost) + 1):  # integers: exact, however many problems
        tail += ways
        ways = ways * (num_decided - i) // (i + 1)
    p_value = min(1.0, 2 * tail / 2**num_decided)
    return SignTest(num_won, num_lost, len(differences) - num_decided, p_value)


def is_shown(gain: Estimate | None, sign: SignTest, confidence: float) -> bool:
    """Say whether a gain, or a loss, may be called one.

    Its interval must leave out 0, and so many problems differ that all of them would seldom differ one way
    by chance: at 95 % six.
    """
    if gain is None or gain.low <= 0 <= gain.high:
        return False
    return 2.0 ** (1 - sign.num_won - sign.num_lost) <= 1 - confidence
