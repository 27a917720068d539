"""What makes a mean over problems vary: units that are drawn independently, in the groups that they stay in.

A unit is a problem, or a cluster of problems with one source. Of a macro average the groups are strata: which
there are is no matter of chance, which problems stand in one is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Ends = tuple[float, float]
"""The low and the high end of an interval."""

FEW_STRATA = 5
"""With more the errors of small strata even out in the mean; else each stratum's own interval counts."""
ROUNDING = 1e-24
"""A variance below comes from the last bits of values up to 1."""


@dataclass(frozen=True, slots=True)
class Spread:
    """A mean, and what its error is computed from."""

    mean: float
    variance: float
    """Of the mean; 0.0 where all that is left is rounding."""
    degrees_of_freedom: float
    """Of the variance; 0.0 where a single unit says nothing of how much others would vary."""
    effective_units: float
    """Kish's number: so many units of equal weight would count as these do."""
    deviations: Floats
    """By how much each unit moves the mean; those of a stratum sum to 0."""
    stratum: Integers
    """The stratum that each unit varies in, from 0."""

    @property
    def num_strata(self) -> int:
        """Strata that units vary in; 1 without."""
        return int(self.stratum.max()) + 1

    @property
    def has_few_strata(self) -> bool:
        """Say whether a single stratum, perhaps of few problems, is much of the mean."""
        return 1 < self.num_strata <= FEW_STRATA

    @property
    def standard_error(self) -> float:
        """Of the mean."""
        return math.sqrt(self.variance)


def spread_of(
    values: Floats, clusters: Sequence[object] | None = None, strata: Sequence[object] | None = None
) -> Spread:
    """Return the mean over problems, or of the strata's means, with what it varies by.

    A stratum's variance is its own, unbiased, and as if of one unit more the variance that all values have
    about the mean, because of few units its own says little and of one nothing. The degrees of freedom are
    Satterthwaite's. Where a cluster has problems of several strata, all units are taken as one stratum.

    Args:
        values: one a problem, at least one, none of them NaN.
        clusters: what each problem comes from; None: itself.
        strata: what each problem belongs to; None: all to one.

    Source: Cochran 1977, sections 5.3 and 5.4; Lumley 2010, section 2.2, for clusters; Kish 1965.
    """
    group = np.zeros(len(values), dtype=np.int64) if strata is None else codes_of(strata)
    unit = np.arange(len(values)) if clusters is None else codes_of(clusters)
    sizes = np.bincount(group)
    weights = 1 / (len(sizes) * sizes[group])
    means = np.bincount(group, values) / sizes
    mean = float(means.mean())
    of_unit = _strata(unit, group)
    centers = means if of_unit.max() else np.array([mean])
    deviations = np.bincount(unit, weights * (values - centers[of_unit[unit]])).astype(float)
    about_mean = np.bincount(unit, weights * (values - mean)).astype(float)
    variance, degrees_of_freedom = _variance(deviations, about_mean, of_unit)
    return Spread(
        mean=mean,
        variance=variance,
        degrees_of_freedom=degrees_of_freedom,
        effective_units=float(1 / (np.bincount(unit, weights) ** 2).sum()),
        deviations=deviations,
        stratum=of_unit,
    )


def ends_of_mean(
    spread: Spread,
    values: Floats,
    clusters: Sequence[object] | None,
    strata: Sequence[object] | None,
    ends_of: Callable[[Spread, Floats, Sequence[object] | None], Ends | None],
) -> Ends | None:
    """Return a mean's interval; of few strata it also holds what their own intervals say together.

    Args:
        spread: the mean's.
        values: one a problem.
        clusters: as those of `spread_of`.
        strata: as those of `spread_of`.
        ends_of: gives the interval of a mean from its spread, values and clusters; None where none is known.

    Source: Zou and Donner 2008 (variance estimates recovered from the limits).
    """
    ends = ends_of(spread, values, clusters)
    if ends is None or strata is None or not spread.has_few_strata:
        return ends
    below, above = [], []
    group = codes_of(strata)
    for stratum in range(spread.num_strata):
        chosen = np.flatnonzero(group == stratum)
        own_clusters = None if clusters is None else [clusters[place] for place in chosen.tolist()]
        part = spread_of(values[chosen], own_clusters)
        own = ends_of(part, values[chosen], own_clusters)
        if own is None:
            return ends
        below.append(part.mean - own[0])
        above.append(own[1] - part.mean)
    low = spread.mean - math.hypot(*below) / len(below)
    high = spread.mean + math.hypot(*above) / len(above)
    return min(ends[0], low), max(ends[1], high)


def codes_of(labels: Sequence[object]) -> Integers:
    """Return a number for each label, from 0, the same for equal ones."""
    numbers: dict[object, int] = {}
    return np.array([numbers.setdefault(label, len(numbers)) for label in labels], dtype=np.int64)


def _strata(unit: Integers, group: Integers) -> Integers:
    """Return the stratum of each unit: its group, or 0 for all where a unit has problems of several."""
    pairs = np.unique(np.stack([unit, group]), axis=1)
    num_units = int(unit.max()) + 1
    return np.zeros(num_units, dtype=np.int64) if pairs.shape[1] > num_units else pairs[1]


def _variance(deviations: Floats, about_mean: Floats, stratum: Integers) -> tuple[float, float]:
    """Return the variance of the mean and its degrees of freedom.

    Args:
        deviations: of each unit, about its stratum's mean.
        about_mean: the same about the mean.
        stratum: of each unit.
    """
    counts = np.bincount(stratum)
    own = np.bincount(stratum, deviations**2) * counts / np.maximum(counts - 1, 1)
    own[own < ROUNDING] = 0.0
    if len(counts) == 1:
        return float(own[0]), float(counts[0] - 1)
    common = float((counts * np.bincount(stratum, about_mean**2)).mean())
    variances = ((counts - 1) * own + common / counts) / counts
    total = float(variances.sum())
    if total < ROUNDING:
        return 0.0, float(len(stratum) - 1)
    return total, total**2 / float((variances**2 / counts).sum())
