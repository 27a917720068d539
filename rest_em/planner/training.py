"""One M-step: memory as the maximum over named instants, host and disk, time and money.

Joins what the strategy holds (`states`) with what a micro-step allocates (`activations`), instant by instant:
the peak is the largest sum, never a sum of maxima.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from rest_em.planner.activations import Instant, StepSetup, instants_of
from rest_em.planner.hardware import Cluster
from rest_em.planner.inventory import active_parameters, weights_of
from rest_em.planner.layers import Adapter
from rest_em.planner.shapes import ModelShape
from rest_em.planner.states import ModelStates, model_states
from rest_em.planner.strategies import Offload, StateSetup, Strategy, ZeroSettings
from rest_em.planner.timing import Seconds, TrainingWork, training_seconds
from rest_em.planner.weights import Weight, Weights

Method = Literal["full", "lora", "qlora"]

SLACK = {False: 0.073, True: 0.119}
"""What the caching allocator reserves beyond what is allocated, without and with checkpointing: medians of
replays of its algorithm; the worst were 0.22 and 0.31. `expandable_segments` needs less."""
DEFAULT_ZERO = ZeroSettings()
PYTHON_BYTES = 450 * 2**20
"""Resident memory of a stage's process before a model is loaded: Python, torch and transformers. Measured:
414 to 440 MiB."""
LIBRARY_BYTES = 32 * 2**20
"""cuBLAS's workspace. Source: torch 2.13, CUDABlas.cpp (8 to 32 MiB a handle)."""


@dataclass(frozen=True, slots=True)
class TrainingSetup:
    """How the M-step is done.

    Example:
        TrainingSetup(method="full", strategy="zero2", num_rows=4, global_batch_size=64, longest=1024,
            mean_length=600.0, num_kept=513, num_solution_tokens=512, precision="bf16")
    """

    method: Method
    strategy: Strategy
    num_rows: int
    """Examples a forward pass and device."""
    global_batch_size: int
    longest: int
    """Tokens of the longest example: what memory follows."""
    mean_length: float
    """Tokens of an example, padding among them: what time follows."""
    num_kept: int
    """Last positions of the longest example whose logits are computed."""
    num_solution_tokens: int
    """Of the longest example."""
    precision: Literal["fp32", "autocast", "bf16"] = "autocast"
    is_checkpointed: bool = False
    optim: str = "adamw_torch_fused"
    adapter: Adapter | None = None
    offload_optimizer: Offload = "none"
    offload_param: Offload = "none"
    zero: ZeroSettings = DEFAULT_ZERO
    checkpoint_element_bytes: int = 2
    is_packed: bool = False
    """Whether the examples of a forward pass are in one row."""
    num_shared: int = 0
    """Tokens that all examples begin with and that a forward pass computes once; only where it is packed."""

    @property
    def mean_computed(self) -> float:
        """Tokens of an example that go through the model, its part of those that are computed once."""
        return self.mean_length - self.num_shared * (1 - 1 / self.num_rows)

    @property
    def step(self) -> StepSetup:
        """One device's micro-step on its longest examples."""
        return StepSetup(
            num_rows=self.num_rows,
            length=self.longest,
            num_kept=min(self.num_kept, self.longest),
            num_solution_tokens=self.num_solution_tokens,
            precision=self.precision,
            is_checkpointed=self.is_checkpointed,
            adapter=self.adapter,
            loss="packed" if self.is_packed else "solution",
            num_shared=self.num_shared if self.num_rows > 1 else 0,
        )

    def num_micro_steps(self, num_devices: int) -> int:
        """Forward passes a device and optimiser step."""
        return max(1, math.ceil(self.global_batch_size / (self.num_rows * num_devices)))


@dataclass(frozen=True, slots=True)
class Comparison:
    """A phase of a micro-step as it is planned and as it was traced, beyond weights and optimiser states.

    Example:
        Comparison("backward", planned_bytes=1_000_000, traced_bytes=1_001_000)
    """

    phase: str
    planned_bytes: int
    traced_bytes: int

    @property
    def error(self) -> float:
        """Of the plan, relative to the trace."""
        return self.planned_bytes / self.traced_bytes - 1


@dataclass(frozen=True, slots=True)
class InstantBytes:
    """What one device holds at one instant."""

    name: str
    parts: tuple[Mapping[str, int], ...]
    """Bytes by component; a component may be in several of them."""
    total_bytes: int
    """Of all components: what the framework has allocated."""

    @property
    def components(self) -> Mapping[str, int]:
        """Bytes by what they are for."""
        found: dict[str, int] = {}
        for part in self.parts:
            for name, size in part.items():
                found[name] = found.get(name, 0) + size
        return found


@dataclass(frozen=True, slots=True)
class TrainingMemory:
    """What an M-step needs; bytes of a device, or of a node where it says so."""

    instants: tuple[InstantBytes, ...]
    outside: Mapping[str, int]
    """Beyond what the framework allocates: the allocator's slack, the context, communication buffers."""
    usable_bytes: int
    host_peak_bytes: int
    """Of a node."""
    host: Mapping[str, int]
    """Of a node, at that peak."""
    pinned_host_bytes: int
    disk_bytes: int
    """Of one M-step: a checkpoint an epoch."""
    swap_bytes: int

    @property
    def peak(self) -> InstantBytes:
        """The instant that binds."""
        return max(self.instants, key=lambda one: one.total_bytes)

    @property
    def spare_bytes(self) -> int:
        """What is left of the device; below 0 if it does not fit."""
        return self.usable_bytes - self.peak.total_bytes - sum(self.outside.values())

    @property
    def is_certain_failure(self) -> bool:
        """Whether the tensors alone, beside the context, exceed the device: no allocator can help."""
        return self.peak.total_bytes + self.outside["context"] > self.usable_bytes


def training_memory(
    shape: ModelShape, setup: TrainingSetup, cluster: Cluster, *, num_epochs: int = 1
) -> TrainingMemory:
    """Return the memory of an M-step.

    Confidence: activations and plain states within 1 % of traces of the model class, ZeRO's within 0.5 % of
    its engine on two CPU ranks; what lies outside the framework is reported or inferred.
    """
    weights = weights_of(shape, setup.adapter)
    states = model_states(weights, state_setup(setup, cluster, weights))
    played = instants_of(shape, setup.step)
    instants = instants_with(states, moments_with(states, played, weights, setup, cluster.num_devices))
    peak_bytes = max(one.total_bytes for one in instants)
    host = max(
        (states.host_loading, _sum(states.host, states.host_saving)), key=lambda one: sum(one.values())
    )
    return TrainingMemory(
        instants=instants,
        outside=outside_of(states, setup, cluster, peak_bytes),
        usable_bytes=cluster.gpu.usable_bytes,
        host_peak_bytes=sum(host.values()),
        host=host,
        pinned_host_bytes=states.pinned_host_bytes,
        disk_bytes=num_epochs * sum(states.checkpoint.values()),
        swap_bytes=sum(states.swap.values()),
    )


@dataclass(frozen=True, slots=True)
class Moment:
    """An instant of a micro-step without what is always held: the same whatever the optimiser."""

    name: str
    is_backward: bool
    parts: Mapping[str, int]
    total_bytes: int


def moments_with(
    states: ModelStates,
    instants: Sequence[Instant],
    weights: Weights,
    setup: TrainingSetup,
    num_devices: int,
) -> tuple[Moment, ...]:
    """Return the instants of a micro-step with the gradients and gathered weights of the strategy."""
    embedding = weights.items[0]
    is_accumulating = setup.num_micro_steps(num_devices) > 1
    always = {}
    if setup.method == "qlora":
        always["dequantised weight"] = 2 * weights.largest_quantised
    found = []
    for instant in instants:
        is_backward = "backward" in instant.name
        if is_backward:
            parts = _in_backward(instant, states, setup, embedding, is_accumulating=is_accumulating) | always
        else:
            parts = _of_moment(instant) | always
            parts["gathered weights"] = states.gathering.forward.peak
        found.append(Moment(instant.name, is_backward, parts, sum(parts.values())))
    return tuple(found)


def instants_with(states: ModelStates, moments: Sequence[Moment]) -> tuple[InstantBytes, ...]:
    """Return all instants of an M-step: loading, those of a micro-step with what is held, and the step."""
    held = {
        False: (states.forward, states.accumulated),
        True: (states.forward, states.backward_buffers),
    }
    sizes = {is_backward: sum(sum(one.values()) for one in parts) for is_backward, parts in held.items()}
    found = [InstantBytes("loading", (states.loading,), sum(states.loading.values()))]
    for one in moments:
        parts = (*held[one.is_backward], one.parts)
        found.append(InstantBytes(one.name, parts, sizes[one.is_backward] + one.total_bytes))
    found.append(InstantBytes("optimiser step", (states.step,), sum(states.step.values())))
    return tuple(found)


def outside_of(
    states: ModelStates, setup: TrainingSetup, cluster: Cluster, peak_bytes: int
) -> dict[str, int]:
    """Return what a device holds beyond what the framework allocates."""
    if cluster.gpu.name == "cpu":
        return {"allocator slack": 0, "context": PYTHON_BYTES, "communication": 0, "libraries": 0}
    return {
        "allocator slack": int(SLACK[setup.is_checkpointed] * peak_bytes),
        "context": cluster.gpu.context_bytes,
        "communication": sum(states.communication.values()),
        "libraries": LIBRARY_BYTES,
    }


def state_setup(setup: TrainingSetup, cluster: Cluster, weights: Weights) -> StateSetup:
    """Return what the model's states depend on."""
    zero = setup.zero
    if cluster.gpu.name == "cpu":  # of a bucket that is never full, the host gives only what is written to
        zero = replace(zero, reduce_bucket_size=min(zero.reduce_bucket_size, weights.num_trainable))
    return StateSetup(
        strategy=setup.strategy,
        num_ranks=cluster.num_devices,
        local_ranks=cluster.num_gpus,
        precision=setup.precision,
        optim=setup.optim,
        frozen="nf4" if setup.method == "qlora" else "fp32" if setup.precision == "fp32" else "bf16",
        is_checkpointed=setup.is_checkpointed,
        accumulation=setup.num_micro_steps(cluster.num_devices),
        offload_optimizer=setup.offload_optimizer,
        offload_param=setup.offload_param,
        zero=zero,
        checkpoint_element_bytes=setup.checkpoint_element_bytes,
    )


def _sum(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    return {name: one.get(name, 0) + other.get(name, 0) for name in {**one, **other}}


def _of_moment(instant: Instant) -> dict[str, int]:
    """Return what a micro-step holds, without gradients."""
    return {name: size for name, size in instant.components.items() if name != "gradients"}


def _in_backward(
    instant: Instant, states: ModelStates, setup: TrainingSetup, embedding: Weight, *, is_accumulating: bool
) -> dict[str, int]:
    """Return what an instant of the backward holds beside the states and the buffers that are always there.

    Where gradients are accumulated it is a later micro-step, which begins with those of the first.
    """
    parts = _of_moment(instant)
    if setup.strategy in ("single", "ddp"):
        gradients = instant.components["gradients"]
        if is_accumulating:
            is_tied = embedding.num_uses > 1 and embedding.is_trainable
            pending = 4 * embedding.num_elements if is_tied else 0
            # The first gradient of a tied embedding waits for the second, beside what was accumulated.
            gradients = sum(states.accumulated.values()) + (pending if gradients >= pending else 0)
        return {**parts, "gradients": gradients}
    if instant.name == "embedding backward" and setup.adapter is None:  # `states` counts that gradient, too
        parts["activations"] = max(
            0, parts["activations"] - embedding.num_elements * (2 if setup.precision == "bf16" else 4)
        )
    parts["gradients"] = states.gradient_bytes(instant.num_passed, is_later=is_accumulating)
    parts["gathered weights"] = states.gathered_bytes(instant.num_passed)
    return parts


@dataclass(frozen=True, slots=True)
class TrainingTime:
    """How long an M-step takes."""

    seconds: float
    """Of one M-step, all its epochs."""
    num_steps: int
    """Optimiser steps."""
    num_tokens: float
    """That go through the model in all epochs."""
    step: Seconds
    """One optimiser step and what it is made of."""


def training_time(
    shape: ModelShape, setup: TrainingSetup, cluster: Cluster, *, num_examples: float, num_epochs: int
) -> TrainingTime:
    """Return the time of an M-step on so many examples.

    Confidence: about a factor of 1.5; nothing of it has been measured on a GPU.
    """
    weights = weights_of(shape, setup.adapter)
    step = setup.step
    num_read, num_computed = setup.num_rows * step.num_kept, setup.num_rows * setup.longest
    if step.packed is not None:
        num_read, num_computed = setup.num_rows * step.num_solution_tokens, step.packed.num_tokens
    unread = 1 - num_read / num_computed  # positions whose logits are not computed
    work = TrainingWork(
        num_parameters=weights.num_elements,
        active_parameters=active_parameters(shape) - round(unread * shape.vocab_size * shape.hidden_size),
        trainable_parameters=weights.num_trainable,
        num_layers=shape.num_layers,
        attention_width=shape.query_width,
        num_sequences=setup.num_rows,
        num_tokens=max(1, round(setup.mean_length)),
        num_shared=setup.num_shared,
        num_micro_batches=setup.num_micro_steps(cluster.num_devices),
        strategy=setup.strategy,
        recomputes=setup.is_checkpointed,
        offloads_optimiser=setup.offload_optimizer != "none",
        offloads_parameters=setup.offload_param != "none",
        itemsize=4 if setup.precision == "fp32" else 2,
    )
    seconds = training_seconds(cluster, work)
    num_steps = num_epochs * max(1, math.ceil(num_examples / setup.global_batch_size))
    return TrainingTime(
        num_steps * seconds.total, num_steps, num_epochs * num_examples * setup.mean_computed, seconds
    )
