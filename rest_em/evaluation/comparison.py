"""Two policies on the same problems: what each k says of which is better, and how sure that is.

A verdict in words never says more than its interval: a difference is called one if the interval of the paired
gain leaves out 0, and enough problems differ that chance alone would seldom make all of them differ one way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rest_em.evaluation.columns import Columns
from rest_em.evaluation.intervals import Estimate, Figure
from rest_em.evaluation.pairs import SignTest, is_shown, paired_gain, sign_test
from rest_em.evaluation.spread import Floats
from rest_em.evaluation.summary import Labels, Metrics, figure_of, values_of

TOO_FEW = "too few solutions"


@dataclass(frozen=True, slots=True)
class Side:
    """One policy's judged samples.

    Example:
        Side("base", greedy=columns, sampled=None)
    """

    name: str
    greedy: Columns | None
    sampled: Columns | None

    @property
    def columns(self) -> Columns:
        """Columns of either kind, for what both share: the problems."""
        found = self.sampled or self.greedy
        assert found is not None, "there are solutions of one kind at least"
        return found


@dataclass(frozen=True, slots=True)
class Difference:
    """One figure of two policies.

    Example:
        Difference("pass@8", a, b, gain, sign, verdict="B is better at pass@8 by 4.1 ± 2.8 points (...)")
    """

    figure: str
    """`greedy pass@1`, `pass@8`, `maj@8`."""
    a: Figure
    b: Figure
    gain: Estimate | None
    """Of b over a, paired by problem; None where fewer than two problems have both figures."""
    sign: SignTest
    """Problems, or clusters, that b wins and loses."""
    verdict: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """What two policies' samples say of which is better."""

    a: str
    b: str
    num_problems: int
    """That both have."""
    num_only_a: int
    num_only_b: int
    """Problems that only one has are left out, and counted."""
    num_groups: int
    """Whose means' mean the figures are; 0 where they are means over problems."""
    num_clusters: int
    """That the problems come from; 0 where each is its own."""
    confidence: float
    differences: Sequence[Difference]
    won: Sequence[str]
    """Problems on which b's first figure is higher."""
    lost: Sequence[str]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON value."""
        value = dataclasses.asdict(self)
        for one, written in zip(self.differences, value["differences"], strict=True):
            written["a"], written["b"] = one.a.to_json(), one.b.to_json()
        return value


def compare(
    a: Side,
    b: Side,
    *,
    ks: Sequence[int] = (),
    confidence: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Compare two policies on the problems that both have; majority votes only where solutions give answers.

    Args:
        a: the one that is there, such as the base.
        b: the one that is hoped to be better.
        ks: of pass@k and maj@k; none is the powers of 2 up to the number of samples that both have of most
            problems.
        confidence: of the intervals.
        seed: of the bootstrap.

    Raises:
        ValueError: they share no problem, or no kind of solutions.
    """
    others = set(b.columns.problem_ids)
    shared = [key for key in a.columns.problem_ids if key in others]
    if not shared:
        raise ValueError(f"{a.name} and {b.name} have no problem in common")
    one, other = _restricted(a, shared), _restricted(b, shared)
    has_greedy = one.greedy is not None and other.greedy is not None
    has_samples = one.sampled is not None and other.sampled is not None
    if not (has_greedy or has_samples):
        raise ValueError(f"of {a.name} and {b.name} one has greedy solutions and the other samples only")
    ks = sorted({*ks}) or (_common_ks(one, other) if has_samples else [])
    pairs = _pairs(one, other, ks, confidence, has_greedy=has_greedy, has_samples=has_samples)
    labels = Labels.of(one.columns).or_else(Labels.of(other.columns))
    differences = [
        _difference(name, *pair, labels, confidence=confidence, seed=seed) for name, pair in pairs.items()
    ]
    first_a, first_b = next(iter(pairs.values()))
    gaps = np.round(first_b - first_a, 12)  # what differs by rounding only is tied
    return Comparison(
        a=a.name,
        b=b.name,
        num_problems=len(shared),
        num_only_a=a.columns.num_problems - len(shared),
        num_only_b=b.columns.num_problems - len(shared),
        num_groups=len(set(labels.groups or ())),
        num_clusters=len(set(labels.clusters or ())),
        confidence=confidence,
        differences=differences,
        won=[key for key, gap in zip(shared, gaps, strict=True) if gap > 0],
        lost=[key for key, gap in zip(shared, gaps, strict=True) if gap < 0],
    )


def _pairs(
    one: Side, other: Side, ks: Sequence[int], confidence: float, *, has_greedy: bool, has_samples: bool
) -> dict[str, tuple[Floats, Floats]]:
    """Return what each problem has of every figure on both sides."""
    sampled = [side.sampled for side in (one, other) if has_samples and side.sampled is not None]
    has_votes = any(bool((columns.answer >= 0).any()) for columns in sampled)
    metrics = Metrics(ks, [k for k in ks if k > 1] if has_votes else (), confidence)
    a, b = (
        values_of(side.greedy if has_greedy else None, side.sampled if has_samples else None, metrics)
        for side in (one, other)
    )
    pairs = {f"pass@{k}": (a.pass_at[k], b.pass_at[k]) for k in a.pass_at}
    if has_greedy:
        pairs = {"greedy pass@1": pairs.pop("pass@1")} | pairs
    return pairs | {f"maj@{k}": (a.majority_at[k], b.majority_at[k]) for k in a.majority_at}


def _restricted(side: Side, problem_ids: Sequence[str]) -> Side:
    """Return a side's samples of these problems, in their order."""
    return Side(
        side.name,
        None if side.greedy is None else side.greedy.of_problems(problem_ids),
        None if side.sampled is None else side.sampled.of_problems(problem_ids),
    )


def _common_ks(one: Side, other: Side) -> list[int]:
    most = []
    for side in (one, other):
        assert side.sampled is not None
        counts = np.bincount(side.sampled.problem, minlength=side.sampled.num_problems)
        most.append(int(np.median(counts)))
    number = max(min(most), 1)
    return sorted({2**i for i in range(number.bit_length())} | {number})


def _difference(
    figure: str,
    a_values: Floats,
    b_values: Floats,
    labels: Labels,
    *,
    confidence: float,
    seed: int,
) -> Difference:
    found = paired_gain(
        b_values, a_values, clusters=labels.clusters, strata=labels.groups, confidence=confidence, seed=seed
    )
    sign = sign_test(b_values, a_values, clusters=labels.clusters)
    unit = "clusters" if labels.clusters else "problems"
    return Difference(
        figure,
        figure_of(a_values, labels, TOO_FEW, confidence=confidence),
        figure_of(b_values, labels, TOO_FEW, confidence=confidence),
        found,
        sign,
        _verdict(figure, found, sign, unit=unit, confidence=confidence),
    )


def _verdict(
    figure: str,
    found: Estimate | None,
    sign: SignTest,
    *,
    unit: str,
    confidence: float,
) -> str:
    """Return what may be said, and no more."""
    if found is None:
        return f"nothing can be said of {figure}: fewer than two {unit} have it on both sides"
    low, high = 100 * found.low, 100 * found.high
    interval = f"{100 * confidence:g} % interval {low:+.1f} to {high:+.1f}"
    if found.low <= 0 <= found.high:
        return f"no difference is shown at {figure} ({interval})"
    if not is_shown(found, sign, confidence):
        num_decided = sign.num_won + sign.num_lost
        differ = f"{unit} differ" if num_decided != 1 else f"{unit.removesuffix('s')} differs"
        return f"no difference is shown at {figure}: only {num_decided} {differ}"
    half = max(high - 100 * found.value, 100 * found.value - low)
    gain = f"{100 * abs(found.value):.1f} ± {half:.1f} points"
    return f"{'B' if found.value > 0 else 'A'} is better at {figure} by {gain} ({interval})"
