"""How many rows are in use at each step of a unit: lengths of solutions, and the two engines' schedules.

Played out, not estimated; no random numbers. What a step costs is `sampling_speed`'s.
"""

from __future__ import annotations

import functools
import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rest_em.planner.sampling_setup import SamplingSetup

_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True, slots=True)
class Segment:
    """Steps of a unit during which the same rows are in use."""

    num_steps: int
    num_rows: int
    """Rows that are computed."""
    num_alive: int
    """Of them, rows whose solution has not ended."""
    mean_length: float
    """Solution tokens a row, over the segment."""
    longest: int
    """Most solution tokens that a row has had up to the segment's end."""


@functools.lru_cache(maxsize=256)
def solution_lengths(mean: float, cap: int, number: int) -> tuple[int, ...]:
    """Return so many lengths as an exponential distribution cut off at the cap has, well mixed, none random.

    Its quantiles, in the order of the multiples of the golden ratio, so that any stretch of them is spread
    alike. Real lengths vary less than these where most solutions end by themselves: waits come out too long.

    >>> solution_lengths(10, 10, 2), round(sum(solution_lengths(100, 512, 1000)) / 1000)
    ((10, 10), 100)
    """
    if mean >= cap:
        return (cap,) * number
    scale = _scale(mean, cap)
    order = sorted(range(number), key=lambda place: (place + 1) * _GOLDEN % 1)
    lengths = [0] * number
    for rank, place in enumerate(order):
        quantile = -scale * math.log1p(-(rank + 0.5) / number)
        lengths[place] = max(1, min(cap, round(quantile)))
    return tuple(lengths)


def _scale(mean: float, cap: int) -> float:
    """Return the scale s of the exponential with this mean when cut off: s (1 - exp(-cap / s)) = mean."""
    low, high = 0.0, 1e6 * cap
    for _ in range(100):
        middle = (low + high) / 2
        if middle * -math.expm1(-cap / middle) < mean:
            low = middle
        else:
            high = middle
    return high


def schedule(lengths: Sequence[int], max_rows: int) -> Iterator[Segment]:
    """Yield the steps of a unit whose rows are given on as soon as a solution ends.

    A solution of n tokens takes n - 1 steps: its first token comes from its prompt's pass.

    >>> [(one.num_steps, one.num_rows) for one in schedule([3, 5, 2], max_rows=2)]
    [(2, 2), (1, 2), (1, 1)]
    """
    waiting = iter(lengths)
    rows: list[tuple[int, int]] = []
    begun: list[int] = []
    """When each solution began, ascending; -1 once it has ended."""
    now = longest = oldest = sum_begun = 0

    def start() -> None:
        nonlocal sum_begun
        while len(rows) < max_rows and (length := next(waiting, None)) is not None:
            if length > 1:
                heapq.heappush(rows, (now + length - 1, len(begun)))
                begun.append(now)
                sum_begun += now

    start()
    while rows:
        end = rows[0][0]
        while begun[oldest] < 0:
            oldest += 1
        longest = max(longest, end - begun[oldest])
        mean = (now + end) / 2 - sum_begun / len(rows)
        yield Segment(end - now, len(rows), len(rows), 1 + mean, 1 + longest)
        now = end
        while rows and rows[0][0] == now:
            _, ended = heapq.heappop(rows)
            sum_begun -= begun[ended]
            begun[ended] = -1
        start()


def _waits(lengths: Sequence[int], num_rows: int) -> Iterator[Segment]:
    """Yield the steps of batches of which all rows are computed until the last has ended."""
    for start in range(0, len(lengths), num_rows):
        batch = sorted(lengths[start : start + num_rows])
        before = 1
        for place, length in enumerate(batch):
            if length > before:
                yield Segment(length - before, len(batch), len(batch) - place, (before + length) / 2, length)
                before = length


def segments(setup: SamplingSetup) -> tuple[Segment, ...]:
    """Return the schedule of the setup's engine through a unit.

    The stock one decodes prompts of one length together; only those of one problem are taken to have one.
    """
    num_solutions = setup.unit_problems * setup.unit_samples
    lengths = solution_lengths(setup.mean_new_tokens, setup.max_new_tokens, num_solutions)
    if setup.engine != "stock":
        return _scheduled(lengths, setup.rows)
    num_rows = min(setup.max_rows, setup.unit_samples)
    return tuple(
        segment
        for start in range(0, len(lengths), setup.unit_samples)
        for segment in _waits(lengths[start : start + setup.unit_samples], num_rows)
    )


@functools.lru_cache(maxsize=256)
def _scheduled(lengths: tuple[int, ...], max_rows: int) -> tuple[Segment, ...]:
    return tuple(schedule(lengths, max_rows))
