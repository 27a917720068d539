"""What makes a mean over problems vary: units that are drawn independently, in the groups that they stay in.

A unit is a problem, or a cluster of problems with one source. Of a macro average the groups are strata: which
there are is no matter of chance, which problems stand in one is. What the mean would do with other units is
told by each unit's deviation, in shares of the mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Spread:
    """A mean and the deviations that its error is computed from, one a unit."""

    mean: float
    deviations: Floats
    """By how much each unit moves the mean; those of a stratum sum to 0."""
    stratum: Integers
    """The stratum that each unit varies in, from 0."""

    @property
    def num_units(self) -> int:
        """Units over all strata."""
        return len(self.stratum)

    @property
    def degrees_of_freedom(self) -> int:
        """Units less strata; 0 where a single unit says nothing of how much others would vary."""
        return self.num_units - int(self.stratum.max()) - 1

    @property
    def scaled(self) -> Floats:
        """The deviations times sqrt(n / (n - 1)) for n units of the stratum: their squares are unbiased."""
        sizes = np.bincount(self.stratum)
        return self.deviations * np.sqrt(sizes / np.maximum(sizes - 1, 1))[self.stratum]

    @property
    def variance(self) -> float:
        """Of the mean, unbiased; 0.0 where all that is left is rounding."""
        variance = float((self.scaled**2).sum())
        return variance if variance > ROUNDING else 0.0

    @property
    def standard_error(self) -> float:
        """Of the mean."""
        return math.sqrt(self.variance)


ROUNDING = 1e-24
"""A variance below comes from the last bits of values up to 1."""


def spread_of(
    values: Floats, clusters: Sequence[object] | None = None, strata: Sequence[object] | None = None
) -> Spread:
    """Return the mean over problems, or of the strata's means, with its deviations.

    Strata of a single unit are taken together as one, or a single such stratum with the smallest other: it
    makes the error a little too large, where leaving them out would make it far too small. Where a cluster
    has problems of several strata, all units are taken as one stratum.

    Args:
        values: one a problem, at least one, none of them NaN.
        clusters: what each problem comes from; None: itself.
        strata: what each problem belongs to; None: all to one.

    Source: Cochran 1977, sections 5.3 and 5A.12 (collapsed strata); Lumley 2010, section 2.2, for clusters.
    """
    group = np.zeros(len(values), dtype=np.int64) if strata is None else codes_of(strata)
    unit = np.arange(len(values)) if clusters is None else codes_of(clusters)
    sizes = np.bincount(group)
    weights = 1 / (len(sizes) * sizes[group])
    of_unit = _strata(unit, group)
    stratum = of_unit[unit]
    centers = np.bincount(stratum, weights * values) / np.bincount(stratum, weights)
    deviations = np.bincount(unit, weights * (values - centers[stratum]))
    return Spread(float((np.bincount(group, values) / sizes).mean()), deviations.astype(float), of_unit)


def codes_of(labels: Sequence[object]) -> Integers:
    """Return a number for each label, from 0, the same for equal ones."""
    numbers: dict[object, int] = {}
    return np.array([numbers.setdefault(label, len(numbers)) for label in labels], dtype=np.int64)


def _strata(unit: Integers, group: Integers) -> Integers:
    """Return the stratum of each unit, from 0."""
    pairs = np.unique(np.stack([unit, group]), axis=1)
    num_units = int(unit.max()) + 1
    if pairs.shape[1] > num_units:
        return np.zeros(num_units, dtype=np.int64)
    counts = np.bincount(pairs[1])
    joined = np.flatnonzero(counts == 1)
    if len(joined) == 1:
        joined = np.argsort(counts, kind="stable")[:2]
    stratum = np.arange(len(counts))
    stratum[joined] = joined.min(initial=len(counts))
    return codes_of(stratum[pairs[1]].tolist())
