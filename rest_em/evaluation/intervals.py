"""How sure a mean over problems is: standard errors plain, clustered and stratified, and intervals.

The problems are taken as a sample of those that could have been asked; what a figure would be on these very
problems with endless samples is not what the intervals are about. Docs and formulas: docs/evaluation.md.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from rest_em.evaluation.spread import Ends, Floats, Spread, ends_of_mean, spread_of

MAX_VERDICTS = 100
"""A problem's figure never counts as more verdicts than these, however alike the problems' figures are."""


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

    Wilson's interval, exactly, for one verdict a problem. For other figures, clusters and strata it is
    Wilson's with the effective number of problems m (1 - m) / variance and Student's quantile: inside [0, 1]
    everywhere. Of at most five strata it also holds what their own intervals say together, for a few problems
    may be a large part of the mean. It is for one policy; two are compared with `paired_gain`.

    >>> found = estimate([1.0] * 8 + [0.0] * 2)
    >>> round(found.low, 4), round(found.high, 4)
    (0.4902, 0.9433)

    Args:
        values: one a problem, in [0, 1]; None or NaN where it is not defined.
        clusters: what each problem comes from: problems of one cluster are not independent.
        strata: what each problem belongs to: the mean is that of the strata's means (the macro average), and
            problems vary inside their strata only.
        confidence: of the interval.
        is_share: without it values may be any numbers, and the interval is the mean and its standard error
            times the quantile; None for a single problem or cluster, of which no error is known.

    Source: Wilson 1927; Korn and Graubard 1998 for the effective number; Miller 2024, arXiv 2411.00640, for
        clusters; Zou and Donner 2008 for strata.
    """
    every = numbers_of(values)
    is_defined = ~np.isnan(every)
    defined = every[is_defined]
    if not len(defined):
        return None
    sources, groups = kept(clusters, is_defined), kept(strata, is_defined)
    spread = spread_of(defined, sources, groups)
    ends_of = partial(_ends, confidence=confidence, is_share=is_share)
    ends = ends_of_mean(spread, defined, sources, groups, ends_of)
    if ends is None:
        return None
    return Estimate(
        value=spread.mean,
        low=min(ends[0], spread.mean),
        high=max(ends[1], spread.mean),
        standard_error=spread.standard_error,
        num_problems=len(defined),
        num_undefined=len(every) - len(defined),
    )


def _ends(
    spread: Spread, values: Floats, clusters: Sequence[object] | None, *, confidence: float, is_share: bool
) -> Ends | None:
    """Return the interval of a mean; None where nothing is known of its error."""
    if clusters is None and spread.num_strata == 1 and bool(np.isin(values, (0.0, 1.0)).all()):
        z = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
        return _wilson(spread.mean, len(values), z)
    if not spread.degrees_of_freedom:
        return (0.0, 1.0) if is_share else None
    # Problems that do not vary tell no error: then they are counted, as verdicts are.
    is_counted = clusters is None and not spread.variance
    t = student_quantile((1 + confidence) / 2, math.inf if is_counted else spread.degrees_of_freedom)
    if is_share:
        return _wilson(spread.mean, _effective_number(spread), t)
    return spread.mean - t * spread.standard_error, spread.mean + t * spread.standard_error


def numbers_of(values: Sequence[float | None] | Floats) -> Floats:
    """Return values as an array, None as NaN."""
    return np.array([math.nan if value is None else value for value in values], dtype=float)


def kept(labels: Sequence[object] | None, is_kept: npt.NDArray[np.bool_]) -> Sequence[object] | None:
    """Return the labels of the problems that are kept."""
    if labels is None:
        return None
    return [label for label, stays in zip(labels, is_kept.tolist(), strict=True) if stays]


def _effective_number(spread: Spread) -> float:
    """Return how many verdicts would vary as much as this mean does.

    Where the units do not vary at all they say nothing of that: it is their number.
    """
    if not spread.variance:
        return spread.effective_units
    return min(spread.mean * (1 - spread.mean) / spread.variance, MAX_VERDICTS * spread.effective_units)


def _wilson(mean: float, effective: float, z: float) -> Ends:
    mean = min(max(mean, 0.0), 1.0)  # a sum of values in [0, 1] may round beyond
    center = (mean + z * z / (2 * effective)) / (1 + z * z / effective)
    half = z * math.sqrt(mean * (1 - mean) / effective + (z / (2 * effective)) ** 2) / (1 + z * z / effective)
    return max(0.0, center - half), min(1.0, center + half)


def student_quantile(probability: float, degrees_of_freedom: float) -> float:
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
