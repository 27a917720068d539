"""Which weights ZeRO-3 has gathered through a forward and a backward pass: its coordinator followed over sizes.

Every weight counts as a module of its own, in the order of the forward and back. Steady passes only: DeepSpeed
records the order in the second, and gathers ahead from the third on. Left out: a pass with gradient checkpointing,
whose recomputation gathers a layer once more while its neighbours are alive.

Source: deepspeed 0.19.8 `partitioned_param_coordinator.py`, `_fetch_sub_module_impl` and `__params_to_release`;
`partition_parameters.py`, `_all_gather_coalesced` and `AllGatherCoalescedHandle`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from rest_em.planner.reduction import Progress
from rest_em.planner.strategies import StateSetup
from rest_em.planner.weights import Weight, Weights


@dataclass(frozen=True, slots=True)
class Gathered:
    """Bytes of whole weights beyond the persistent ones, and of the buffers that they are gathered in."""

    forward: Progress
    backward: Progress
    after_forward: int


@dataclass(slots=True)
class _Flight:
    """An all-gather: its weights, and which of them nobody has waited for."""

    waited_for: set[int]
    buffer_bytes: int
    is_complete: bool = False


@dataclass(slots=True)
class _Coordinator:
    weights: Sequence[Weight]
    setup: StateSetup
    order: list[int]
    """Index of the weight that each module has, forward and backward."""
    available: set[int] = field(default_factory=set)
    flights: dict[int, _Flight] = field(default_factory=dict)
    last_fetch: dict[int, int] = field(default_factory=dict)
    queue: deque[tuple[int, int]] = field(default_factory=deque)
    num_available: int = 0
    held: int = 0
    peak: int = 0

    def is_persistent(self, index: int) -> bool:
        return self.weights[index].num_elements <= self.setup.zero.param_persistence_threshold

    def visit(self, step: int) -> None:
        """Gather what a module needs and what comes next, and release it again."""
        index = self.order[step]
        self._gather({index})
        self._wait(index)
        if self.last_fetch.get(index, -1) < step:
            while self.queue:
                other, at = self.queue.popleft()
                self.last_fetch[other] = at
                if other == index:
                    break
        self._prefetch()
        if self._is_released(index, step + 1):
            self.available.discard(index)
            self.num_available -= self.weights[index].num_elements
            self.held -= self._bytes(index)

    def _bytes(self, index: int) -> int:
        return self.weights[index].num_elements * self.setup.weight_element_bytes

    def _gather(self, indexes: set[int]) -> None:
        absent = {i for i in indexes if i not in self.available and i not in self.flights}
        if not absent:
            return
        padded = sum(
            math.ceil(self.weights[i].num_elements / self.setup.num_ranks) * self.setup.num_ranks for i in absent
        )
        flight = _Flight(absent, padded * self.setup.weight_element_bytes)
        self.num_available += sum(self.weights[i].num_elements for i in absent)
        self.flights.update(dict.fromkeys(absent, flight))
        self.held += flight.buffer_bytes
        is_moved = self.setup.offload_param != "none"
        self.peak = max(self.peak, self.held + (flight.buffer_bytes // self.setup.num_ranks if is_moved else 0))

    def _wait(self, index: int) -> None:
        flight = self.flights.pop(index, None)
        if flight is None:
            return
        if not flight.is_complete:
            flight.is_complete = True
            self.available |= flight.waited_for
            if len(flight.waited_for) == 1:
                flight.buffer_bytes = 0  # the buffer is the weight
            else:
                self.held += sum(self._bytes(i) for i in flight.waited_for)
        self.peak = max(self.peak, self.held)
        flight.waited_for.discard(index)
        if not flight.waited_for:
            self.held -= flight.buffer_bytes

    def _prefetch(self) -> None:
        limit = min(self.setup.zero.max_live_parameters - self.num_available, self.setup.zero.prefetch_bucket_size)
        wanted: set[int] = set()
        num_wanted = 0
        while self.queue and num_wanted < limit:
            index, at = self.queue.popleft()
            self.last_fetch[index] = max(self.last_fetch.get(index, -1), at)
            if index not in self.available and index not in self.flights and index not in wanted:
                wanted.add(index)
                num_wanted += self.weights[index].num_elements
        self._gather(wanted)

    def _is_released(self, index: int, step: int) -> bool:
        if self.is_persistent(index) or self.last_fetch.get(index, -1) > step:
            return False
        passed = 0
        for other in self.order[step:]:
            if passed >= self.setup.zero.max_reuse_distance:
                break
            if other == index:
                return False
            passed += self.weights[other].num_elements
        return True


def gathered(inventory: Weights, setup: StateSetup) -> Gathered:
    """Return what a rank has gathered through a micro-step, under ZeRO-3."""
    every = inventory.expanded()
    weights = [every[i] for i in inventory.execution_order()]
    if setup.num_ranks == 1:
        return Gathered(Progress((), ()), Progress((), ()), 0)
    passes = [*range(len(weights)), *(i for i, one in enumerate(weights) if one.num_uses > 1)]
    order = [*passes, *reversed(passes)]
    coordinator = _Coordinator(weights, setup, order)
    coordinator.available = {i for i in range(len(weights)) if coordinator.is_persistent(i)}
    coordinator.queue = deque((index, step) for step, index in enumerate(order))
    moments: list[list[int]] = [[], []]
    peaks: list[list[int]] = [[], []]
    after_forward = 0
    for step, index in enumerate(order):
        is_backward = step >= len(passes)
        if step in (0, len(passes)):
            passed = 0
            after_forward = coordinator.held
        is_first_use = step not in range(len(weights), 2 * len(passes) - len(weights))
        passed += weights[index].num_elements if is_first_use else 0
        coordinator.peak = coordinator.held
        coordinator.visit(step)
        moments[is_backward].append(passed)
        peaks[is_backward].append(coordinator.peak)
    return Gathered(
        Progress(tuple(moments[0]), tuple(peaks[0])),
        Progress(tuple(moments[1]), tuple(peaks[1])),
        after_forward,
    )
