"""The memory of model states: weights, gradients, optimiser states, buffers, host memory and disk.

What is resident on the fullest device at named instants of a step, by component, under every strategy that
rest_em trains with. `tests/planner/test_states.py` holds it against DeepSpeed's own engine. Left out:
activations and what the model computes; CUDA's context; the allocator's fragmentation.

Confidence: within 0.5 % of the real engine on two CPU ranks without offload, and with ZeRO-2's offload to the
host; ZeRO-3's offload, NVMe, 8-bit and paged optimisers, nf4 and NCCL are read or reported, not measured.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rest_em.planner.gathering import Gathered, gathered
from rest_em.planner.optimizers import Optimizer, optimizer
from rest_em.planner.reduction import (
    Partitions,
    Progress,
    autocast_casts,
    partitioned_element_bytes,
    partitioned_gradients,
    partitions,
    plain_gradients,
    sharded_gradients,
)
from rest_em.planner.strategies import StateSetup
from rest_em.planner.weights import Weights

NCCL_BYTES = 600 * 2**20
"""NCCL's own buffers on a device, which torch does not allocate; inferred (0.3 to 1 GiB), not measured."""
DDP_BROADCAST_BYTES = 250 * 2**20
"""The buffer that DDP sends the first weights in. Source: torch 2.13, `nn/parallel/distributed.py`."""

Components = Mapping[str, int]
"""Bytes by what they are for."""


@dataclass(frozen=True, slots=True)
class ModelStates:
    """Bytes of model states on the fullest device, and on its node.

    An instant's total on the device is the sum of its components, with activations to be added.
    """

    forward: Components
    """Before a step's first forward, optimiser states included: what a steady run always holds."""
    accumulated: Components
    """Beyond `forward`, before the forward of a later micro-step; empty without accumulation."""
    backward_buffers: Components
    """Beyond these, through the whole of a backward."""
    after_backward: Components
    """Beyond `forward`, between the last backward and the step."""
    step: Components
    """The peak of the optimiser's step, all of it."""
    loading: Components
    """The peak while the weights come and the engine starts, all of it; the optimiser has no state yet."""
    autocast_casts_bytes: int
    """bf16 copies of weights that autocast has made at the end of a forward."""
    communication: Components
    """Beyond torch's allocator."""
    host: Components
    """Of a node, resident through the training."""
    pinned_host_bytes: int
    """Part of `host` that is page-locked, to be compared with `ulimit -l`."""
    host_loading: Components
    """Of a node, the peak while loading, all of it; page cache left out."""
    host_saving: Components
    """Of a node beyond `host`, while rank 0 writes an epoch's checkpoint."""
    checkpoint: Components
    """On disk, of an epoch."""
    swap: Components
    """On a node's NVMe, while training."""
    gathering: Gathered
    """ZeRO-3's whole weights through a micro-step; see `forward_gathered_bytes`."""
    first_gradients: Progress
    last_gradients: Progress
    """Of a step's last micro-step, which is also its first without accumulation."""
    casts: Progress
    """What is left of autocast's copies through a backward."""

    def forward_gathered_bytes(self, num_elements: int) -> int:
        """Return ZeRO-3's whole weights while a forward reaches this many elements of the weights."""
        return self.gathering.forward.at(num_elements)

    def gathered_bytes(self, num_elements: int) -> int:
        """Return the same while a backward reaches this many elements, counted from the last weight."""
        return self.gathering.backward.at(num_elements)

    def gradient_bytes(self, num_elements: int, *, is_later: bool = False) -> int:
        """Return the gradients while a backward reaches this many elements, from the last weight on.

        With the transients of reducing them; without `backward_buffers`. A frozen weight's elements count,
        too.

        Args:
            is_later: whether it is the last of several micro-steps; what `accumulated` holds is in the
            figure.
        """
        return (self.last_gradients if is_later else self.first_gradients).at(num_elements)

    def backward_bytes(self, num_elements: int, *, is_later: bool = False) -> int:
        """Return all model states while a backward reaches this many elements."""
        return (
            sum(self.forward.values())
            + sum(self.backward_buffers.values())
            + self.gradient_bytes(num_elements, is_later=is_later)
            + self.gathered_bytes(num_elements)
            + self.casts.at(num_elements)
        )

    def backward_peak_bytes(self, *, is_later: bool = False) -> int:
        """Return the most that a backward reaches, if there were no activations."""
        progress = self.last_gradients if is_later else self.first_gradients
        moments = {*progress.num_elements, *self.gathering.backward.num_elements}
        return max((self.backward_bytes(one, is_later=is_later) for one in moments), default=0)


def model_states(weights: Weights, setup: StateSetup, *, rank: int | None = None) -> ModelStates:
    """Return the memory of a model's states.

    Args:
        rank: whose device; None for the one whose part takes most.

    Raises:
        PlanError: the optimiser is unknown.
    """
    kind = optimizer(setup.optim)
    if setup.strategy in ("single", "ddp"):
        return _plain_states(weights, setup, kind)
    if setup.strategy == "zero3":
        return _partitioned_states(weights, setup, kind)
    return _sharded_states(weights, setup, kind, rank)


def _frozen_bytes(weights: Weights, setup: StateSetup) -> int:
    """Return the bytes of weights that are not trained, whole."""
    if setup.frozen == "nf4":
        return weights.quantised_frozen_bytes()
    return _frozen_element_bytes(setup) * weights.num_frozen


def _frozen_element_bytes(setup: StateSetup) -> int:
    return 2 if setup.frozen == "bf16" or setup.precision == "bf16" else 4


_NOT_GATHERED = Gathered(Progress((), ()), Progress((), ()), 0)


def _plain_states(weights: Weights, setup: StateSetup, kind: Optimizer) -> ModelStates:
    """Return the states of one device, or of DDP, on which every rank has everything.

    DDP's reducer keeps its buckets beside the gradients, which rest_em lets it do (`gradient_as_bucket_view`
    is off in accelerate). Source: torch 2.13, `csrc/distributed/c10d/reducer.cpp`.
    """
    trained = tuple(one for one in weights.items if one.is_trainable)
    gradients = 4 * weights.num_trainable
    frozen = _frozen_bytes(weights, setup)
    states = kind.states_bytes(trained)
    is_ddp = setup.strategy == "ddp"
    forward = {
        "weights": 4 * weights.num_trainable,
        "frozen weights": frozen,
        "optimiser states": 0 if kind.is_paged else states,
        "DDP buckets": gradients if is_ddp else 0,
    }
    temporaries = max(
        (kind.step_bytes(sizes) for sizes in weights.group_sizes()),
        default=0,
    )
    loaded = 4 * weights.num_trainable + frozen
    return ModelStates(
        forward=forward,
        accumulated={"gradients": gradients} if setup.accumulation > 1 else {},
        backward_buffers={},
        after_backward={"gradients": gradients},
        step={**forward, "gradients": gradients, "step temporaries": temporaries},
        loading={
            "weights": loaded,
            "DDP start": max(gradients, min(DDP_BROADCAST_BYTES, loaded)) if is_ddp else 0,
        },
        autocast_casts_bytes=2 * weights.num_in_matmul if setup.precision == "autocast" else 0,
        communication={"NCCL": NCCL_BYTES if setup.num_ranks > 1 else 0},
        host={"paged optimiser states": states * setup.local_ranks if kind.is_paged else 0},
        pinned_host_bytes=0,
        host_loading={"weights": loaded * setup.local_ranks},
        host_saving=_saving(weights, setup),
        checkpoint=_checkpoint(weights, setup),
        swap={},
        gathering=_NOT_GATHERED,
        first_gradients=plain_gradients(weights, setup.passes, is_later=False),
        last_gradients=plain_gradients(weights, setup.passes, is_later=setup.accumulation > 1),
        casts=autocast_casts(weights, setup.passes),
    )


def _sharded_states(weights: Weights, setup: StateSetup, kind: Optimizer, rank: int | None) -> ModelStates:
    """Return the states of ZeRO-1 and 2: whole weights, a part of the masters, the states and the gradients.

    Source: deepspeed 0.19.8 `stage_1_and_2.py`, `DeepSpeedZeroOptimizer.__init__`, `setup_buckets` and
    `step`.
    """
    layout = partitions(weights, setup.num_ranks)
    rank = layout.heaviest if rank is None else rank
    element_bytes = setup.weight_element_bytes
    share = sum(layout.sizes)
    is_offloaded = setup.offload_optimizer != "none"
    states = sum(kind.state_bytes(size) for size in layout.sizes)
    forward = {
        "weights": element_bytes * share * setup.num_ranks,
        "frozen weights": _frozen_bytes(weights, setup),
        "fp32 masters": 0 if is_offloaded else 4 * share,
        "optimiser states": 0 if is_offloaded or kind.is_paged else states,
        "offload buffer": element_bytes * weights.largest_trainable if is_offloaded else 0,
    }
    is_several = setup.accumulation > 1
    passes = setup.passes
    first, left = sharded_gradients(weights, passes, rank, is_later=False, is_last=not is_several)
    last, after = first, left
    if is_several:
        last, after = sharded_gradients(weights, passes, rank, is_later=True, is_last=True)
    # setup_buckets: ZeRO-1's stay from the first micro-step to the reduction after the last.
    is_contiguous = setup.zero.contiguous_gradients or is_offloaded
    bucket = element_bytes * setup.zero.reduce_bucket_size * setup.num_buckets if is_contiguous else 0
    buckets_stay = setup.strategy == "zero1" and is_several
    return ModelStates(
        forward=forward,
        accumulated={"gradients": left, "reduction bucket": bucket if buckets_stay else 0}
        if is_several
        else {},
        backward_buffers={"reduction bucket": bucket},
        after_backward={"gradients": after},
        step={**forward, **_sharded_step(setup, kind, layout, rank, after)},
        loading=_sharded_loading(weights, setup, layout),
        autocast_casts_bytes=0,
        communication={"NCCL": NCCL_BYTES if setup.num_ranks > 1 else 0},
        host=_sharded_host(weights, setup, kind, layout),
        pinned_host_bytes=_pinned_bytes(weights, setup, layout),
        host_loading=_host_loading(weights, setup),
        host_saving=_saving(weights, setup),
        checkpoint=_checkpoint(weights, setup),
        swap={},
        gathering=_NOT_GATHERED,
        first_gradients=first,
        last_gradients=last,
        casts=Progress((), ()),
    )


def _sharded_step(
    setup: StateSetup, kind: Optimizer, layout: Partitions, rank: int, gradients: int
) -> dict[str, int]:
    """Return what ZeRO-1's and 2's step holds beside the weights and states, at its peak.

    The norm goes weight by weight in float64. Then a group at a time: its gradients are flattened, then cast
    to fp32, then the optimiser steps. The half-precision gradients are one storage, which the last group
    frees.
    """
    if setup.offload_optimizer != "none":
        return {"gradients": 0}
    element_bytes = setup.weight_element_bytes
    groups = range(len(layout.sizes))
    owned = [layout.owned_pieces(rank, group) for group in groups]
    instants = [
        {
            "gradients": gradients,
            "step temporaries": 8 * max((max(one, default=0) for one in owned), default=0),
        }
    ]
    for group in groups:
        size = layout.sizes[group]
        is_one_tensor = len(owned[group]) == 1 and sum(owned[group]) == size
        flat = 0 if is_one_tensor else element_bytes * size
        cast = 4 * size if element_bytes == 2 else 0
        single = cast or flat
        instants.append({"gradients": gradients, "step temporaries": flat + cast})
        instants.append(
            {
                "gradients": 0 if group == groups[-1] and single else gradients,
                "fp32 gradients": single,
                "step temporaries": kind.step_bytes([size]),
            }
        )
    return max(instants, key=lambda one: sum(one.values()))


def _sharded_loading(weights: Weights, setup: StateSetup, layout: Partitions) -> dict[str, int]:
    """Return the device's peak while ZeRO-1 or 2 starts.

    A group is flattened beside its weights; its part is cloned, then cast; at last gradients as large as the
    masters are made, and dropped where nothing is offloaded.
    """
    element_bytes = setup.weight_element_bytes
    whole = element_bytes * sum(layout.sizes) * setup.num_ranks
    masters, instants = 0, []
    for size in layout.sizes:
        instants.append({"fp32 masters": masters, "flattening": element_bytes * size * setup.num_ranks})
        if setup.offload_optimizer == "none":
            cast = 4 * size if element_bytes == 2 else 0
            instants.append({"fp32 masters": masters, "flattening": element_bytes * size + cast})
            masters += 4 * size
    if setup.offload_optimizer == "none":
        instants.append({"fp32 masters": masters, "fp32 gradients": masters})
    else:
        instants.append({"offload buffer": element_bytes * weights.largest_trainable})
    return {
        "weights": whole,
        "frozen weights": _frozen_bytes(weights, setup),
        **max(instants, key=lambda one: sum(one.values())),
    }


def _sharded_host(weights: Weights, setup: StateSetup, kind: Optimizer, layout: Partitions) -> dict[str, int]:
    """Return a node's memory: the optimiser's where it is offloaded, 18/N bytes an element and rank."""
    states = sum(kind.state_bytes(size) for size in layout.sizes)
    if setup.offload_optimizer == "none":
        return {"paged optimiser states": states * setup.local_ranks if kind.is_paged else 0}
    share, element_bytes = sum(layout.sizes), setup.weight_element_bytes
    # With accumulation the owned gradients wait on the host, whole weights.
    accumulated = sum(layout.num_elements) // setup.num_ranks if setup.accumulation > 1 else 0
    each = {
        "fp32 masters": 4 * share,
        "fp32 gradients": 4 * share,
        "optimiser states": states,
        "half-precision weights": element_bytes * share,
        "offload buffer": element_bytes * weights.largest_trainable,
        "accumulated gradients": element_bytes * accumulated,
    }
    return {name: size * setup.local_ranks for name, size in each.items()}


def _pinned_bytes(weights: Weights, setup: StateSetup, layout: Partitions) -> int:
    """Return what ZeRO-1 and 2 page-lock: all of the offload but the optimiser's own states."""
    if setup.offload_optimizer == "none" or not setup.zero.pin_memory:
        return 0
    element_bytes = setup.weight_element_bytes
    each = (8 + element_bytes) * sum(layout.sizes) + element_bytes * weights.largest_trainable
    if setup.accumulation > 1:
        each += element_bytes * (sum(layout.num_elements) // setup.num_ranks)
    return each * setup.local_ranks


def _partitioned_states(weights: Weights, setup: StateSetup, kind: Optimizer) -> ModelStates:
    """Return the states of ZeRO-3: a part of everything, each weight rounded up, and what is gathered.

    Weights of at most the persistence threshold stay whole beside their parts. The bucket and the gradients'
    parts are there from the start. Source: deepspeed 0.19.8 `stage3.py`, `_setup_for_real_optimizer`, `step`;
    `parameter_offload.py`, `mark_persistent_parameters`.
    """
    share = weights.num_padded(setup.num_ranks, is_trainable=True)
    frozen_share = weights.num_padded(setup.num_ranks, is_trainable=False)
    element_bytes, trained_bytes = setup.weight_element_bytes, partitioned_element_bytes(weights, setup)
    sub_groups = _sub_groups(weights, setup.num_ranks, setup.zero.sub_group_size)
    is_offloaded = setup.offload_optimizer != "none"
    states = sum(kind.state_bytes(sum(group)) for group in sub_groups)
    bucket = element_bytes * setup.zero.reduce_bucket_size if setup.zero.contiguous_gradients else 0
    weights_on_device = 0 if setup.offload_param != "none" else 1
    forward = {
        "weights": weights_on_device * trained_bytes * share,
        "frozen weights": weights_on_device * _frozen_element_bytes(setup) * frozen_share,
        "persistent weights": _persistent_bytes(weights, setup),
        "fp32 masters": 0 if is_offloaded else 4 * share,
        "optimiser states": 0 if is_offloaded or kind.is_paged else states,
        "gradients": 0 if is_offloaded else element_bytes * share,
        "reduction bucket": bucket,
    }
    gradients = partitioned_gradients(weights, setup.passes)
    host = _partitioned_host(setup, kind, share, frozen_share, sub_groups)
    return ModelStates(
        forward=forward,
        accumulated={},
        backward_buffers={},
        after_backward={},
        step={**forward, "persistent weights": 0, **_partitioned_step(weights, setup, kind, sub_groups)},
        loading=_partitioned_loading(weights, setup, sub_groups, forward),
        autocast_casts_bytes=0,
        communication={"NCCL": NCCL_BYTES if setup.num_ranks > 1 else 0},
        host=host,
        pinned_host_bytes=_partitioned_pinned_bytes(setup, host),
        host_loading=_host_loading(weights, setup),
        host_saving=_saving(weights, setup),
        checkpoint=_checkpoint(weights, setup),
        swap=_swap(setup, kind, share, frozen_share),
        gathering=gathered(weights, setup),
        first_gradients=gradients,
        last_gradients=gradients,
        casts=Progress((), ()),
    )


def _persistent_bytes(weights: Weights, setup: StateSetup) -> int:
    """Return the bytes of weights that stay whole on every rank."""
    if setup.num_ranks == 1:
        return 0
    return sum(
        one.num_elements
        * one.count
        * (partitioned_element_bytes(weights, setup) if one.is_trainable else setup.weight_element_bytes)
        for one in weights.items
        if one.num_elements <= setup.zero.param_persistence_threshold
    )


@functools.lru_cache(maxsize=256)
def _sub_groups(weights: Weights, num_ranks: int, limit: int) -> tuple[tuple[int, ...], ...]:
    """Return the parts' elements in each of the sub-groups that ZeRO-3 steps one after another.

    Source: deepspeed 0.19.8 `stage3.py`, `_create_fp16_sub_groups`.
    """
    sub_groups: list[tuple[int, ...]] = []
    for sizes in weights.group_sizes():
        current: list[int] = []
        held = 0
        for size in sizes:
            current.append(math.ceil(size / num_ranks))
            held += current[-1]
            if held >= limit:
                sub_groups.append(tuple(current))
                current, held = [], 0
        if current:
            sub_groups.append(tuple(current))
    return tuple(sub_groups)


def _partitioned_step(
    weights: Weights, setup: StateSetup, kind: Optimizer, sub_groups: Sequence[Sequence[int]]
) -> dict[str, int]:
    """Return what ZeRO-3's step holds beside its states, without persistent weights, at its peak."""
    if setup.offload_optimizer != "none":
        return {"step temporaries": 0}
    element_bytes = setup.weight_element_bytes
    largest = max((max(group) for group in sub_groups), default=0)
    instants = [{"step temporaries": 8 * largest}]
    for group in sub_groups:
        size = sum(group)
        flat = element_bytes * size if len(group) > 1 else 0
        cast = 4 * size if element_bytes == 2 else 0
        instants.append({"step temporaries": flat + cast})
        instants.append({"fp32 gradients": cast or flat, "step temporaries": kind.step_bytes([size])})
    instants.append({"persistent weights": _persistent_bytes(weights, setup)})  # gathered again at last
    return max(instants, key=lambda one: sum(one.values()))


def _partitioned_loading(
    weights: Weights, setup: StateSetup, sub_groups: Sequence[Sequence[int]], forward: Components
) -> dict[str, int]:
    """Return the device's peak while ZeRO-3 starts, under zero.Init: weights are shared out as they are made.

    A weight is whole while it is made; then each sub-group's masters are cast and cloned; then there are
    gradients as large as the largest sub-group, which are dropped; at last every weight is gathered once to
    hook it. Source: deepspeed 0.19.8 `stage3.py`, `_create_fp32_partitions`, `initialize_optimizer_states`.
    """
    parts = {"weights": forward["weights"], "frozen weights": forward["frozen weights"]}
    masters, largest = 0, 0
    instants: list[dict[str, int]] = [{"whole weight": 4 * weights.largest}]
    if setup.offload_optimizer == "none":
        for group in sub_groups:
            size = 4 * sum(group)
            cast = size if setup.weight_element_bytes == 2 and not weights.num_frozen else 0
            instants.append({"fp32 masters": masters, "casting": size + cast})
            masters += size
            largest = max(largest, size)
        instants.append({"fp32 masters": masters, "fp32 gradients": largest})
    rest = {name: forward[name] for name in ("gradients", "reduction bucket")}
    whole = partitioned_element_bytes(weights, setup) * weights.largest_trainable
    instants.append({"fp32 masters": masters, **rest, "whole weight": whole})
    fullest: dict[str, int] = max(instants, key=lambda one: sum(one.values()))
    return {**parts, **fullest}


def _partitioned_host(
    setup: StateSetup, kind: Optimizer, share: int, frozen_share: int, sub_groups: Sequence[Sequence[int]]
) -> dict[str, int]:
    """Return a node's memory: 18/N bytes an element with the optimiser offloaded, 20/N with weights.

    NVMe keeps buffers for what it swaps: four of the largest sub-group in fp32, five of 1e8 elements for
    weights. Low confidence: read, not measured.
    """
    element_bytes, zero = setup.weight_element_bytes, setup.zero
    states = sum(kind.state_bytes(sum(group)) for group in sub_groups)
    each: dict[str, int] = {}
    if setup.offload_optimizer == "cpu":
        each = {
            "fp32 masters": 4 * share,
            "fp32 gradients": 4 * share,
            "optimiser states": states,
            "gradients": element_bytes * share,
        }
    elif setup.offload_optimizer == "nvme":
        largest = max((sum(group) for group in sub_groups), default=0)
        each = {
            "NVMe buffers of the optimiser": 4 * zero.nvme_optimizer_buffer_count * largest,
            "gradients": element_bytes * share,
        }
    elif kind.is_paged:
        each = {"paged optimiser states": states}
    if setup.offload_param != "none":
        every = element_bytes * share + _frozen_element_bytes(setup) * frozen_share
        is_swapped = setup.offload_param == "nvme"
        each["weights"] = min(every, element_bytes * zero.max_in_cpu) if is_swapped else every
        if is_swapped:
            each["NVMe buffers of weights"] = element_bytes * zero.nvme_buffer_count * zero.nvme_buffer_size
    return {name: size * setup.local_ranks for name, size in each.items()}


def _partitioned_pinned_bytes(setup: StateSetup, host: Components) -> int:
    """Return what ZeRO-3 page-locks; trained weights always, the rest where `pin_memory` says so."""
    always = {"weights", "NVMe buffers of weights", "NVMe buffers of the optimiser"}
    asked = {"fp32 gradients", "gradients"} if setup.zero.pin_memory else set()
    return sum(size for name, size in host.items() if name in always | asked)


def _swap(setup: StateSetup, kind: Optimizer, share: int, frozen_share: int) -> dict[str, int]:
    """Return what a node's ranks swap to NVMe; low confidence."""
    each = {}
    if setup.offload_optimizer == "nvme":
        each["fp32 masters, gradients and optimiser states"] = 8 * share + kind.state_bytes(share)
    if setup.offload_param == "nvme":
        each["weights"] = setup.weight_element_bytes * share + _frozen_element_bytes(setup) * frozen_share
    return {name: size * setup.local_ranks for name, size in each.items()}


def _host_loading(weights: Weights, setup: StateSetup) -> dict[str, int]:
    """Return a node's memory while DeepSpeed's ranks load.

    ZeRO-1 and 2: every rank reads the whole model, what is trained in fp32, and casts it before it moves.
    ZeRO-3: rank 0 alone reads the checkpoint. Its parts then go through the host once, to lie in one piece.
    Source: transformers 5.23 `modeling_utils.py`, `_load_pretrained_model`; deepspeed 0.19.8 `zero/utils.py`,
    `defragment`.
    """
    if setup.strategy == "zero3":
        parts = weights.num_padded(setup.num_ranks, is_trainable=True)
        return {
            "checkpoint": setup.checkpoint_element_bytes * weights.num_elements,
            "weights": setup.weight_element_bytes * parts * setup.local_ranks,
        }
    frozen = (
        weights.quantised_frozen_bytes()
        if setup.frozen == "nf4"
        else weights.num_frozen * (2 if setup.frozen == "bf16" else 4)
    )
    return {
        "weights": (4 * weights.num_trainable + frozen) * setup.local_ranks,
        "casting": 2 * weights.largest * setup.local_ranks if setup.precision == "bf16" else 0,
    }


def _saving(weights: Weights, setup: StateSetup) -> dict[str, int]:
    """Return rank 0's host memory while it writes a checkpoint.

    The weights are cast to the checkpoint's precision on the host. An adapter is merged into a fresh base,
    which is read in fp32. Under ZeRO every rank of 1 and 2 copies its weights to the host first; ZeRO-3
    gathers them there.
    """
    whole = weights.num_elements
    cast = setup.checkpoint_element_bytes * whole
    copied = 0
    if setup.strategy in ("zero1", "zero2"):
        copied = setup.local_ranks * (
            setup.weight_element_bytes * weights.num_trainable + _frozen_bytes(weights, setup)
        )
    elif setup.strategy == "zero3":
        copied = setup.weight_element_bytes * whole
    if weights.num_frozen:
        return {"weights": copied, "merged model": 4 * whole, "checkpoint": cast}
    return {"weights": copied, "checkpoint": cast}


def _checkpoint(weights: Weights, setup: StateSetup) -> dict[str, int]:
    """Return an epoch's bytes on disk: a whole model in the base's precision, and the adapter beside it."""
    if not weights.num_frozen:
        return {"weights": setup.checkpoint_element_bytes * weights.num_elements}
    return {
        "weights": setup.checkpoint_element_bytes * weights.num_frozen,
        "adapter": setup.weight_element_bytes * weights.num_trainable,
    }
