"""How gradients grow and are reduced through a backward pass, under each strategy, weight by weight.

Every strategy's bookkeeping is followed as its code does it, over sizes only: which storages are alive when a
weight's gradient is produced. Gradients are taken in the reverse order of the forward. Left out: activations,
and that on a GPU a storage that another stream has read is freed late.
"""

from __future__ import annotations

import functools
import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rest_em.planner.strategies import StateSetup
from rest_em.planner.weights import Weight, Weights


@dataclass(frozen=True)
class Progress:
    """Bytes through a pass over the weights, the most while each one is worked on; no slots: `peak` is kept.

    Example:
        Progress(num_elements=(100, 250), peaks=(400, 1000))
    """

    num_elements: tuple[int, ...]
    """Elements passed once a weight is done, ascending."""
    peaks: tuple[int, ...]

    def at(self, num_elements: int) -> int:
        """Return the most bytes while the weight is worked on that reaches this number of elements.

        What comes after the last weight belongs to the number of all elements.
        """
        if not self.peaks:
            return 0
        first = min(bisect_left(self.num_elements, num_elements), len(self.peaks) - 1)
        last = first
        while last + 1 < len(self.peaks) and self.num_elements[last + 1] <= num_elements:
            last += 1
        return max(self.peaks[first : last + 1])

    @functools.cached_property
    def peak(self) -> int:
        """The most bytes of the whole pass."""
        return max(self.peaks, default=0)


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a weight that one rank owns in ZeRO-1 and 2."""

    rank: int
    num_elements: int


@dataclass(frozen=True, slots=True)
class Partitions:
    """Who owns what in ZeRO-1 and 2: a group of the optimiser is flattened, padded and cut in equal parts.

    Source: deepspeed 0.19.8 `stage_1_and_2.py`, `DeepSpeedZeroOptimizer.__init__` (the alignment is two
    elements a rank) and `get_partition_info`.
    """

    sizes: tuple[int, ...]
    """A rank's elements of each group."""
    pieces: tuple[tuple[Piece, ...], ...]
    """Of each weight that is trained, in the order of the weights."""
    groups: tuple[int, ...]
    """Each weight's group."""
    num_elements: tuple[int, ...]
    """Of each weight."""
    heaviest: int
    """The rank that owns parts of the most elements, the first of equals."""

    def num_owned(self, rank: int) -> int:
        """Return the elements of the weights of which a rank owns any part, whole weights."""
        return sum(self.num_elements[index] for index in self.owned(rank))

    def owned(self, rank: int) -> frozenset[int]:
        """Return the weights of which a rank owns any part."""
        return frozenset(
            index for index, pieces in enumerate(self.pieces) if pieces[0].rank <= rank <= pieces[-1].rank
        )

    def owned_pieces(self, rank: int, group: int) -> tuple[int, ...]:
        """Return the sizes of a rank's pieces of a group."""
        return tuple(
            piece.num_elements
            for pieces, own_group in zip(self.pieces, self.groups, strict=True)
            for piece in pieces
            if piece.rank == rank and own_group == group
        )


def trainable_groups(weights: Sequence[Weight]) -> tuple[tuple[int, ...], ...]:
    """Return the indexes of the trained weights in each of the optimiser's groups, with decay and without."""
    trained = [(i, one.is_decayed) for i, one in enumerate(weights) if one.is_trainable]
    both = (tuple(i for i, decays in trained if decays), tuple(i for i, decays in trained if not decays))
    return tuple(group for group in both if group)


@functools.lru_cache(maxsize=256)
def partitions(inventory: Weights, num_ranks: int) -> Partitions:
    """Return who owns what of the trained weights."""
    weights = inventory.expanded()
    pieces: dict[int, tuple[Piece, ...]] = {}
    groups: dict[int, int] = {}
    sizes = []
    for group, indexes in enumerate(trainable_groups(weights)):
        total = sum(weights[i].num_elements for i in indexes)
        size = math.ceil(total / (2 * num_ranks)) * 2
        sizes.append(size)
        start = 0
        for i in indexes:
            end = start + weights[i].num_elements
            owners = range(start // size, (end - 1) // size + 1)
            pieces[i] = tuple(
                Piece(rank, min(end, (rank + 1) * size) - max(start, rank * size)) for rank in owners
            )
            groups[i] = group
            start = end
    order = sorted(pieces)
    owned = [0] * num_ranks
    for i in order:
        for piece in pieces[i]:
            owned[piece.rank] += weights[i].num_elements
    return Partitions(
        tuple(sizes),
        tuple(pieces[i] for i in order),
        tuple(groups[i] for i in order),
        tuple(weights[i].num_elements for i in order),
        owned.index(max(owned)),
    )


@functools.lru_cache(maxsize=512)
def plain_gradients(inventory: Weights, setup: StateSetup, *, is_later: bool) -> Progress:
    """Return the gradients' bytes without DeepSpeed: fp32, kept from micro-step to micro-step.

    Under autocast a projection's gradient is computed in bf16 and cast.
    """
    every = inventory.expanded()
    weights = [every[i] for i in inventory.execution_order()]
    total = 4 * inventory.num_trainable
    held = (total if is_later else 0) + _tied_bytes(weights, 4)
    passed, moments, peaks = 0, [], []
    for one in reversed(weights):
        passed += one.num_elements
        peak = held
        if one.is_trainable:
            cast = 2 * one.num_elements if setup.precision == "autocast" and one.is_in_matmul else 0
            peak = held + 4 * one.num_elements * one.num_uses + cast
            held += 0 if is_later or one.num_uses > 1 else 4 * one.num_elements
        moments.append(passed)
        peaks.append(peak)
    return Progress(tuple(moments), tuple(peaks))


@functools.lru_cache(maxsize=512)
def autocast_casts(inventory: Weights, setup: StateSetup) -> Progress:
    """Return the bytes of autocast's bf16 copies of trained weights through a backward.

    A layer's backward needs its own and frees them. They are all there when it begins, as autograd has saved
    them; with gradient checkpointing a layer's are made when it is recomputed.
    """
    weights, layers = inventory.expanded(), inventory.layers()
    sizes = {
        i: 2 * one.num_elements for i, one in enumerate(weights) if one.is_trainable and one.is_in_matmul
    }
    if setup.precision != "autocast":
        sizes = {}
    passed, moments, peaks = 0, [], []
    left: Counter[tuple[int, str] | None] = Counter()
    for index, size in sizes.items():
        left[layers[index] if setup.is_checkpointed else None] += size
    for index in reversed(inventory.execution_order()):
        passed += weights[index].num_elements
        place = layers[index] if setup.is_checkpointed else None
        left[place] -= sizes.get(index, 0)
        moments.append(passed)
        peaks.append(left[place])
    return Progress(tuple(moments), tuple(peaks))


def _tied_bytes(weights: Sequence[Weight], element_bytes: int) -> int:
    """Return what is held of a tied weight's gradient until its last part comes and autograd sums up."""
    return sum(element_bytes * one.num_elements * (one.num_uses - 1) for one in weights if one.is_trainable)


class _Bucket:
    """ZeRO-1's and 2's bucket, and the gradients that are alive beside it.

    Source: deepspeed 0.19.8 `stage_1_and_2.py`: `reduce_independent_p_g_buckets_and_remove_grads`,
    `reduce_ipg_grads`, `average_tensor`, `allreduce_bucket`, `copy_grads_in_partition`.
    """

    def __init__(self, layout: Partitions, setup: StateSetup, rank: int, held: int, *, is_last: bool) -> None:
        self._is_last = is_last
        self._layout = layout
        self._setup = setup
        self._rank = rank
        self._size = setup.zero.reduce_bucket_size
        self._element_bytes = setup.weight_element_bytes
        self._is_contiguous = setup.zero.contiguous_gradients or setup.offload_optimizer != "none"
        self._owned = layout.owned(rank)
        self._waiting: list[int] = []
        self._num_waiting = 0
        self._own_storage: set[int] = set()
        self._has_partition = False
        self.held = held
        """Bytes of gradients, without the bucket."""
        self.peak = held

    def add(self, index: int, *, is_produced: bool) -> None:
        """Take a gradient in.

        Args:
            index: of the trained weight.
            is_produced: whether its bytes are held already, as ZeRO-1's are at the end of the backward.
        """
        num_elements = self._layout.num_elements[index]
        num_bytes = num_elements * self._element_bytes
        if not is_produced:
            self.held += num_bytes
        self._own_storage.add(index)
        self._see()
        if self._num_waiting + num_elements > self._size:
            self.flush()
        is_oversized = num_elements > self._size
        if self._is_contiguous and is_oversized and self._setup.offload_optimizer != "none":
            self._see(num_bytes)  # cloned, so that no other stream writes it
        if self._is_contiguous and not is_oversized:
            self.held -= num_bytes
            self._own_storage.discard(index)
        self._waiting.append(index)
        self._num_waiting += num_elements

    def flush(self) -> None:
        """Reduce what is in the bucket, and keep what this rank owns."""
        self._see(self._copied_bytes())
        for index in self._waiting:
            is_owned = index in self._owned
            if is_owned and self._is_contiguous:
                self._keep(index)
            elif not is_owned and self._setup.strategy == "zero2":
                self._release(index)
        self._waiting.clear()
        self._num_waiting = 0

    def _keep(self, index: int) -> None:
        owned = max(piece.num_elements for piece in self._layout.pieces[index] if piece.rank == self._rank)
        if self._setup.offload_optimizer != "none":
            if self._is_last:
                self._see(8 * owned)  # the norm in float64, then the fp32 copy that goes to the host
            self._release(index)
            return
        if not self._has_partition:
            self._has_partition = True
            self.held += self._layout.num_owned(self._rank) * self._element_bytes
            self._see()
        self._release(index)

    def _release(self, index: int) -> None:
        if index in self._own_storage:
            self._own_storage.discard(index)
            self.held -= self._layout.num_elements[index] * self._element_bytes

    def _copied_bytes(self) -> int:
        """Return the flat copy that is all-reduced: none where the bucket is one rank's."""
        if not self._is_contiguous:
            return self._num_waiting * self._element_bytes if len(self._waiting) > 1 else 0
        runs: list[list[int]] = []
        for index in self._waiting:
            for piece in self._layout.pieces[index]:
                if runs and runs[-1][0] == piece.rank:
                    runs[-1][1] += piece.num_elements
                else:
                    runs.append([piece.rank, piece.num_elements])
        most, chunk, num_runs = 0, 0, 0
        for _, size in runs:
            chunk += size
            num_runs += 1
            most = max(most, chunk if num_runs > 1 else 0)
            if chunk > self._size:
                chunk, num_runs = 0, 0
        return most * self._element_bytes

    def _see(self, transient: int = 0) -> None:
        self.peak = max(self.peak, self.held + transient)

    def take_peak(self) -> int:
        """Return the peak since the last call."""
        peak, self.peak = self.peak, self.held
        return peak


@functools.lru_cache(maxsize=512)
def sharded_gradients(
    inventory: Weights,
    setup: StateSetup,
    rank: int,
    *,
    is_later: bool,
    is_last: bool,
) -> tuple[Progress, int]:
    """Return the gradients under ZeRO-1 or 2 without the bucket, and what is left after the backward.

    ZeRO-2 reduces as gradients come; ZeRO-1 keeps all of them and reduces after the last micro-step's
    backward.

    Args:
        is_later: whether a micro-step of the same step came before.
        is_last: whether the step follows.
    """
    element_bytes, layout = setup.weight_element_bytes, partitions(inventory, setup.num_ranks)
    weights = inventory.expanded()
    numbers = {i: number for number, i in enumerate(i for i, one in enumerate(weights) if one.is_trainable)}
    total = element_bytes * sum(layout.num_elements)
    owned = layout.num_owned(rank) * element_bytes if setup.offload_optimizer == "none" else 0
    reduces_early = setup.strategy == "zero2" or (bool(setup.zero.overlap_comm) and is_last)
    is_whole = setup.strategy == "zero1" and is_later
    before = total if is_whole else owned if is_later else 0
    bucket = _Bucket(layout, setup, rank, before + _tied_bytes(weights, element_bytes), is_last=is_last)
    passed, moments, peaks = 0, [], []
    for place in reversed(inventory.execution_order()):
        one = weights[place]
        passed += one.num_elements
        if one.is_trainable:
            index = numbers[place]
            num_bytes = element_bytes * one.num_elements
            if one.num_uses > 1 or (is_whole and reduces_early):
                bucket.peak = max(bucket.peak, bucket.held + num_bytes * one.num_uses)
                is_produced = True
            else:
                is_produced = False
            if reduces_early:
                bucket.add(index, is_produced=is_produced)
            elif is_whole:
                bucket.peak = max(bucket.peak, bucket.held + num_bytes)
            elif not is_produced:
                bucket.held += num_bytes
                bucket.peak = max(bucket.peak, bucket.held)
        moments.append(passed)
        peaks.append(bucket.take_peak())
    if not reduces_early and is_last:
        for group in range(len(layout.sizes)):
            for i, own_group in enumerate(layout.groups):
                if own_group == group:
                    bucket.add(i, is_produced=True)
    if reduces_early or is_last:
        bucket.flush()
        moments.append(passed)
        peaks.append(bucket.take_peak())
        return Progress(tuple(moments), tuple(peaks)), owned
    return Progress(tuple(moments), tuple(peaks)), total


def partitioned_element_bytes(inventory: Weights, setup: StateSetup) -> int:
    """Return the bytes of an element of a trained weight under ZeRO-3.

    Adapters are made after zero.Init, which alone casts a model that is shared out: they stay in fp32.
    """
    return 4 if inventory.num_frozen else setup.weight_element_bytes


@functools.lru_cache(maxsize=512)
def partitioned_gradients(inventory: Weights, setup: StateSetup) -> Progress:
    """Return the gradients' bytes under ZeRO-3, without the bucket and the partitions, which are permanent.

    Source: deepspeed 0.19.8 `stage3.py`: `reduce_independent_p_g_buckets_and_remove_grads`,
    `__add_grad_to_ipg_bucket`; `runtime/comm/coalesced_collectives.py`, `reduce_scatter_coalesced`.
    """
    element_bytes, size = setup.weight_element_bytes, setup.zero.reduce_bucket_size
    produced_bytes = partitioned_element_bytes(inventory, setup)
    every = inventory.expanded()
    weights = [every[i] for i in inventory.execution_order()]
    held = _tied_bytes(weights, produced_bytes)
    waiting: list[int] = []
    own_storage = passed = 0
    moments, peaks = [], []

    def reduced() -> int:
        """Return the peak of reducing the bucket, which it empties."""
        nonlocal held, own_storage
        padded = sum(math.ceil(one / setup.num_ranks) * setup.num_ranks for one in waiting)
        is_copied = len(waiting) > 1 or padded != sum(waiting)
        peak = held + (padded * element_bytes if is_copied else 0)
        held -= own_storage
        own_storage = 0
        waiting.clear()
        return peak

    for one in reversed(weights):
        passed += one.num_elements
        peak = held
        if one.is_trainable:
            num_bytes = one.num_elements * produced_bytes
            peak = held + num_bytes * one.num_uses
            if one.num_uses == 1:
                held += num_bytes
            if waiting and sum(waiting) + one.num_elements > size:
                peak = max(peak, reduced())
            if setup.zero.contiguous_gradients and sum(waiting) + one.num_elements <= size:
                held -= num_bytes
            else:
                own_storage += num_bytes
            waiting.append(one.num_elements)
        moments.append(passed)
        peaks.append(peak)
    moments.append(passed)
    peaks.append(reduced() if waiting else held)
    return Progress(tuple(moments), tuple(peaks))
