"""Which weights ZeRO-3 has gathered through a micro-step: its coordinator followed over sizes.

Every weight counts as a module of its own, in the order of the forward and back, after the module that it is
in, which gathers nothing for itself and gathers ahead. Steady passes only: DeepSpeed records the order in the
second, and gathers ahead from the third on. Left out: a pass with gradient checkpointing, whose recomputation
gathers a layer once more while its neighbours are alive.

Source: deepspeed 0.19.8 `partitioned_param_coordinator.py`, `_fetch_sub_module_impl` and
`__params_to_release`; `partition_parameters.py`, `_all_gather_coalesced` and `AllGatherCoalescedHandle`.
"""

from __future__ import annotations

import functools
import math
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from rest_em.planner.reduction import Progress, partitioned_element_bytes
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
    order: list[int | None]
    """Index of the weight that each module has, forward and backward; None if it has none itself."""
    trained_bytes: int
    """Of an element of a trained weight."""
    available: set[int] = field(default_factory=set)
    flights: dict[int, _Flight] = field(default_factory=dict)
    last_fetch: dict[int, int] = field(default_factory=dict)
    queue: deque[tuple[int, int]] = field(default_factory=deque)
    num_available: int = 0
    held: int = 0
    peak: int = 0
    bytes_of: list[int] = field(init=False)
    """Of each weight, whole."""
    padded_bytes_of: list[int] = field(init=False)
    """The same as the ranks' equal parts add up."""
    uses: dict[int, list[int]] = field(init=False)
    """Steps in which each weight is used, ascending."""
    passed: list[int] = field(init=False)
    """Elements of the weights before each step."""

    def __post_init__(self) -> None:
        ranks = self.setup.num_ranks
        sizes = [
            self.trained_bytes if one.is_trainable else self.setup.weight_element_bytes
            for one in self.weights
        ]
        self.bytes_of = [one.num_elements * size for one, size in zip(self.weights, sizes, strict=True)]
        self.padded_bytes_of = [
            math.ceil(one.num_elements / ranks) * ranks * size
            for one, size in zip(self.weights, sizes, strict=True)
        ]
        self.uses = {}
        self.passed = [0]
        for step, index in enumerate(self.order):
            if index is not None:
                self.uses.setdefault(index, []).append(step)
            self.passed.append(self.passed[-1] + (0 if index is None else self.weights[index].num_elements))

    def is_persistent(self, index: int) -> bool:
        return self.weights[index].num_elements <= self.setup.zero.param_persistence_threshold

    def visit(self, step: int) -> None:
        """Gather what a module needs and what comes next, and release it again."""
        index = self.order[step]
        if index is None:
            self._prefetch()
            return
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
            self.held -= self.bytes_of[index]

    def _gather(self, indexes: set[int]) -> None:
        absent = {i for i in indexes if i not in self.available and i not in self.flights}
        if not absent:
            return
        padded_bytes = sum([self.padded_bytes_of[i] for i in absent])
        flight = _Flight(absent, padded_bytes)
        self.num_available += sum([self.weights[i].num_elements for i in absent])
        self.flights.update(dict.fromkeys(absent, flight))
        self.held += flight.buffer_bytes
        is_moved = self.setup.offload_param != "none"
        self.peak = max(
            self.peak, self.held + (flight.buffer_bytes // self.setup.num_ranks if is_moved else 0)
        )

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
                self.held += sum([self.bytes_of[i] for i in flight.waited_for])
        self.peak = max(self.peak, self.held)
        flight.waited_for.discard(index)
        if not flight.waited_for:
            self.held -= flight.buffer_bytes

    def _prefetch(self) -> None:
        limit = min(
            self.setup.zero.max_live_parameters - self.num_available, self.setup.zero.prefetch_bucket_size
        )
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
        later = self.uses[index]
        place = bisect_left(later, step)
        if place == len(later):
            return True
        return self.passed[later[place]] - self.passed[step] >= self.setup.zero.max_reuse_distance


def gathered(inventory: Weights, setup: StateSetup) -> Gathered:
    """Return what a rank has gathered through a micro-step, under ZeRO-3."""
    passes = setup.passes
    if passes.offload_param == "none" and inventory.is_divisible(setup.num_ranks):
        passes = replace(
            passes, num_ranks=1, local_ranks=1
        )  # nothing is padded: all numbers of ranks are alike
    return _gathered(inventory, passes)


@functools.lru_cache(maxsize=512)
def _gathered(inventory: Weights, setup: StateSetup) -> Gathered:
    weights, modules = inventory.expanded(), inventory.modules()
    tied = [i for i, one in enumerate(weights) if one.num_uses > 1]
    if tied:
        modules = (*modules, tuple(tied))
    order: list[int | None] = []
    for module in modules:
        order += [None, *module]
    num_forward = len(order)
    for module in reversed(_trained_back(weights, modules)):
        order += [None, *reversed(module)]
    coordinator = _Coordinator(weights, setup, order, partitioned_element_bytes(inventory, setup))
    coordinator.available = {i for i in range(len(weights)) if coordinator.is_persistent(i)}
    coordinator.queue = deque((index, step) for step, index in enumerate(order) if index is not None)
    forward = _pass(coordinator, range(num_forward))
    after_forward = coordinator.held
    backward = _pass(coordinator, range(num_forward, len(order)))
    missed = inventory.num_elements - (backward.num_elements[-1] if backward.num_elements else 0)
    if missed:
        backward = Progress(
            (*backward.num_elements, inventory.num_elements), (*backward.peaks, coordinator.held)
        )
    return Gathered(forward, backward, after_forward)


def _trained_back(
    weights: Sequence[Weight], modules: Sequence[tuple[int, ...]]
) -> tuple[tuple[int, ...], ...]:
    """Return the modules that a backward reaches: it ends at the first weight that is trained."""
    for first, module in enumerate(modules):
        if any(weights[i].is_trainable for i in module):
            reached = tuple(i for i in module if weights[i].is_trainable or not weights[i].reads_input)
            return (reached, *modules[first + 1 :])
    return ()


def _pass(coordinator: _Coordinator, steps: range) -> Progress:
    """Return the bytes through a forward or a backward; a tied weight counts where it is the embedding."""
    passed, moments, peaks = 0, [], []
    for step in steps:
        index = coordinator.order[step]
        coordinator.peak = coordinator.held
        coordinator.visit(step)
        if index is not None:
            weight = coordinator.weights[index]
            uses = [i for i in steps if coordinator.order[i] == index] if weight.num_uses > 1 else [step]
            is_embedding = step == (min(uses) if steps.start == 0 else max(uses))
            passed += weight.num_elements if is_embedding else 0
        moments.append(passed)
        peaks.append(coordinator.peak)
    return Progress(tuple(moments), tuple(peaks))
