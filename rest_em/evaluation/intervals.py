"""How sure a mean over problems is: standard errors plain and clustered, intervals, two policies in pairs.

The problems are taken as a sample of those that could have been asked; what a figure would be on these very
problems with endless samples is not what the intervals are about. Docs and formulas: docs/evaluation.md.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

NUM_RESAMPLES = 10_000
"""Of the paired bootstrap."""
RESAMPLES_AT_ONCE = 2_000_000
"""Numbers drawn at once, so that memory does not grow with the problems."""

Floats = npt.NDArray[np.float64]


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
    """Over problems, or over their clusters; 0.0 where there is only one."""
    num_problems: int
    """Problems that the mean is over."""
    num_undefined: int
    """Problems left out because the figure is not defined for them."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure over a set of problems; where it is not defined, for all or for some of them, it says why.

    Example:
        Figure(None, num_problems=0, num_undefined=3, why_undefined="3 of 3 problems have fewer than 8 ...")
    """

    estimate: Estimate | None
    """None where it is defined for no problem."""
    num_problems: int
    """Problems that the mean is over."""
    num_undefined: int
    why_undefined: str | None = None
    """None where it is defined for every problem."""

    def to_json(self) -> dict[str, Any]:
        """Return a JSON value; what is not defined is null."""
        names = ("value", "standard_error", "low", "high")
        values = dict.fromkeys(names) if self.estimate is None else asdict(self.estimate)
        return {name: values[name] for name in names} | {
            "num_problems": self.num_problems,
            "num_undefined": self.num_undefined,
            "why_undefined": self.why_undefined,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Figure:
        """Return what `to_json` wrote."""
        counts = {name: value[name] for name in ("num_problems", "num_undefined")}
        if value["value"] is None:
            return cls(None, **counts, why_undefined=value["why_undefined"])
        numbers = {name: value[name] for name in ("value", "standard_error", "low", "high")}
        return cls(Estimate(**numbers, **counts), **counts, why_undefined=value["why_undefined"])


def estimate(
    values: Sequence[float | None] | Floats,
    *,
    clusters: Sequence[object] | None = None,
    strata: Sequence[object] | None = None,
    confidence: float = 0.95,
    is_share: bool = True,
) -> Estimate | None:
    """Return the mean of a figure over problems, with an interval; None if it is defined for no problem.

    Wilson's interval with the effective number of problems m (1 - m) / variance: exactly Wilson's for one
    solution a problem, narrower for figures between 0 and 1, and inside [0, 1] everywhere. It is for one
    policy; two on the same problems are compared with `paired_gain`.

    >>> found = estimate([1.0] * 8 + [0.0] * 2)
    >>> round(found.low, 4), round(found.high, 4)
    (0.4902, 0.9433)

    Args:
        values: one a problem, in [0, 1]; None or NaN where it is not defined.
        clusters: what each problem comes from. Problems of one cluster are not independent: the standard
            error is that of the clusters' sums of deviations, the interval has Student's quantile with as
            many degrees of freedom as there are clusters, less one.
        strata: what each problem belongs to: the mean is that of the strata's means (the macro average), and
            problems vary inside their strata only.
        confidence: of the interval.
        is_share: without it values may be any numbers, and the interval is the mean and its standard error
            times the quantile.

    Source: Wilson 1927; Korn and Graubard 1998 for the effective number; Miller 2024, arXiv 2411.00640, for
        the clustered standard error, here with G / (G - 1) for G clusters.
    """
    every = _numbers(values)
    is_defined = ~np.isnan(every)
    defined = every[is_defined]
    n = len(defined)
    if n == 0:
        return None
    codes = _codes(strata, is_defined) if strata is not None else np.zeros(n, dtype=np.int64)
    sizes = np.bincount(codes)
    means = np.bincount(codes, defined) / sizes
    mean = float(means.mean())
    parts = (defined - means[codes]) / (len(sizes) * sizes[codes])
    if clusters is None:
        num_groups = n
        variance = float((parts**2).sum())
        error = math.sqrt(float((parts**2 * _without_bias(sizes)[codes]).sum()))
        z = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
    else:
        sums = np.bincount(_codes(clusters, is_defined), parts)
        num_groups = len(sums)
        variance = float((sums**2).sum() * _without_bias(np.array([num_groups]))[0])
        error = math.sqrt(variance)
        z = student_quantile((1 + confidence) / 2, max(num_groups - 1, 1))
    low, high = mean - z * error, mean + z * error
    if is_share:
        # Where all values are equal the variance says nothing: as many problems, or clusters, as there are.
        low, high = _wilson(mean, mean * (1 - mean) / variance if variance > 0 else num_groups, z)
    return Estimate(mean, min(low, mean), max(high, mean), error, n, len(every) - n)


def _numbers(values: Sequence[float | None] | Floats) -> Floats:
    return np.array([math.nan if value is None else value for value in values], dtype=float)


def _codes(labels: Sequence[object], kept: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Return a number for each label that is kept, from 0, the same for equal ones."""
    numbers: dict[object, int] = {}
    return np.array(
        [
            numbers.setdefault(label, len(numbers))
            for label, is_kept in zip(labels, kept, strict=True)
            if is_kept
        ],
        dtype=np.int64,
    )


def _without_bias(sizes: npt.NDArray[np.int64]) -> Floats:
    """Return n / (n - 1) of each size; 1 of a single one, whose deviation is 0."""
    return sizes / np.maximum(sizes - 1, 1)


def _wilson(mean: float, effective: float, z: float) -> tuple[float, float]:
    center = (mean + z * z / (2 * effective)) / (1 + z * z / effective)
    half = z * math.sqrt(mean * (1 - mean) / effective + (z / (2 * effective)) ** 2) / (1 + z * z / effective)
    return max(0.0, center - half), min(1.0, center + half)


def student_quantile(probability: float, degrees_of_freedom: int) -> float:
    """Return the quantile of Student's t distribution.

    >>> round(student_quantile(0.975, 9), 2), round(student_quantile(0.975, 10**6), 2)
    (2.26, 1.96)

    Its density is integrated by the trapezoid rule in the angle atan(t / sqrt(df)), where it is
    cos(angle) ** (df - 1).
    """
    nu = degrees_of_freedom
    if nu > 10_000:
        return statistics.NormalDist().inv_cdf(probability)
    angles = np.linspace(0, math.pi / 2, 20_001)
    density = np.cos(angles) ** (nu - 1)
    steps = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    share = np.abs(2 * probability - 1)
    angle = float(np.interp(share, steps / steps[-1], angles))
    return math.copysign(math.sqrt(nu) * math.tan(angle), probability - 0.5)


def paired_gain(
    values: Sequence[float | None] | Floats,
    base_values: Sequence[float | None] | Floats,
    *,
    clusters: Sequence[object] | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate | None:
    """Return the mean of `values - base_values` over problems, with a bootstrap interval over problems.

    Percentiles of the means of 10,000 resamples of problems (of clusters, where they are given), widened for
    few problems as Student's quantile is; the same seed gives the same interval. A problem for which either
    figure is not defined is left out and counted; None if fewer than two problems, or clusters, are left.

    Args:
        values: one a problem.
        base_values: the other policy's, of the same problems in the same order.
        clusters: as those of `estimate`.
        confidence: of the interval.
        seed: of the resamples.

    Source: Hesterberg 2015, section 4.3 ("expanded percentile"), for the widening.
    """
    one, base = _numbers(values), _numbers(base_values)
    if len(one) != len(base):
        raise ValueError(f"{len(one)} values and {len(base)} of the base; one of each a problem is wanted")
    every = one - base
    is_defined = ~np.isnan(every)
    differences = every[is_defined]
    n = len(differences)
    codes = np.arange(n) if clusters is None else _codes(clusters, is_defined)
    sums, sizes = np.bincount(codes, differences).astype(float), np.bincount(codes).astype(float)
    num_groups = len(sums)
    if num_groups < 2:
        return None
    mean = float(differences.mean())
    means = _resampled_means(sums, sizes, np.random.default_rng(seed))
    t = student_quantile((1 + confidence) / 2, num_groups - 1)
    tail = statistics.NormalDist().cdf(-t * math.sqrt(num_groups / (num_groups - 1)))
    low, high = np.quantile(means, [tail, 1 - tail])
    spread = float(((sums - mean * sizes) ** 2).sum())
    return Estimate(
        value=mean,
        low=min(float(low), mean),
        high=max(float(high), mean),
        standard_error=math.sqrt(spread * num_groups / (num_groups - 1)) / n,
        num_problems=n,
        num_undefined=len(every) - n,
    )


def _resampled_means(sums: Floats, sizes: Floats, draws: np.random.Generator) -> Floats:
    """Return the mean of each of `NUM_RESAMPLES` resamples of groups with these sums and sizes."""
    pairs, counts = np.unique(np.stack([sums, sizes]), axis=1, return_counts=True)
    num_groups, num_unlike = len(sums), pairs.shape[1]
    step = max(1, RESAMPLES_AT_ONCE // (num_unlike if num_unlike < num_groups / 4 else num_groups))
    means = []
    for start in range(0, NUM_RESAMPLES, step):
        size = min(step, NUM_RESAMPLES - start)
        if num_unlike < num_groups / 4:  # few unlike differences: how often each comes, in one draw
            times = draws.multinomial(num_groups, counts / num_groups, size=size)
            means.append(times @ pairs[0] / (times @ pairs[1]))
        else:
            chosen = draws.integers(num_groups, size=(size, num_groups), dtype=np.int32)
            means.append(sums[chosen].sum(axis=1) / sizes[chosen].sum(axis=1))
    return np.concatenate(means)


@dataclass(frozen=True, slots=True)
class SignTest:
    """How many problems each of two policies wins, and how likely so unlike numbers are by chance.

    Example:
        SignTest(num_won=30, num_lost=12, num_tied=158, p_value=0.0077)
    """

    num_won: int
    num_lost: int
    num_tied: int
    """Problems with equal figures; they say nothing of which is better and are left out of the test."""
    p_value: float
    """Two-sided, exact; 1.0 where no problem is won or lost."""


def sign_test(
    values: Sequence[float | None] | Floats, base_values: Sequence[float | None] | Floats
) -> SignTest:
    """Count the problems on which `values` are higher and lower, and test whether the two are as likely.

    >>> sign_test([1, 1, 1, 0, 1], [0, 0, 0, 1, 1])
    SignTest(num_won=3, num_lost=1, num_tied=1, p_value=0.625)

    Args:
        values: one a problem; None or NaN where it is not defined, and the problem is left out.
        base_values: the other policy's, in the same order.

    Source: Dixon and Mood 1946; for one verdict a problem it is McNemar's exact test.
    """
    one, base = _numbers(values), _numbers(base_values)
    # Figures that differ by rounding only are tied.
    differences = np.round((one - base)[~np.isnan(one - base)], 12)
    num_won, num_lost = int((differences > 0).sum()), int((differences < 0).sum())
    num_decided = num_won + num_lost
    tail, ways = 0, 1
    for i in range(min(num_won, num_lost) + 1):  # integers: exact, however many problems
        tail += ways
        ways = ways * (num_decided - i) // (i + 1)
    p_value = min(1.0, 2 * tail / 2**num_decided)
    return SignTest(num_won, num_lost, len(differences) - num_decided, p_value)
