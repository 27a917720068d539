"""The plan of a run: both phases' memory, time and money on a cluster, from a shape, setups and a workload.

Joins what `sampling`, `training`, `failures` and so on compute. Reading a recipe is left to
`rest_em.planning`, printing to `rest_em.report`, choosing among plans to `search`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from rest_em.planner.failures import FailurePlan, plan_failures
from rest_em.planner.hardware import Cluster
from rest_em.planner.inventory import active_parameters, weights_of
from rest_em.planner.sampling import max_batch, sampling_memory
from rest_em.planner.sampling_setup import SamplingMemory, SamplingSetup
from rest_em.planner.sampling_speed import Rates, SamplingSpeed, estimate_speed
from rest_em.planner.shapes import ModelShape
from rest_em.planner.textbook import largest_tensor_parallel
from rest_em.planner.timing import CPU_COMPUTE_EFFICIENCY
from rest_em.planner.training import (
    LIBRARY_BYTES,
    PYTHON_BYTES,
    SLACK,
    TrainingMemory,
    TrainingSetup,
    TrainingTime,
    training_memory,
    training_time,
)
from rest_em.planner.workload import Workload

RECOVERY_SECONDS = 600.0
"""From a failure until the same command goes on."""


@dataclass(frozen=True, slots=True)
class SamplingPlan:
    """The E-step: N solutions to every training problem, once."""

    setup: SamplingSetup
    memory: SamplingMemory
    outside: Mapping[str, int]
    usable_bytes: int
    max_batch: int
    """The largest `sampling.max_rows` that fits."""
    speed: SamplingSpeed | None
    """None where the problems are not counted."""
    num_solutions: int | None

    @property
    def peak_bytes(self) -> int:
        """What the framework has allocated at the peak."""
        return self.memory.peak.total_bytes

    @property
    def spare_bytes(self) -> int:
        """What is left of the device; below 0 if it does not fit."""
        return self.usable_bytes - self.peak_bytes - sum(self.outside.values())

    @property
    def is_certain_failure(self) -> bool:
        """Whether the tensors alone, beside the context, exceed the device."""
        return self.peak_bytes + self.outside["context"] > self.usable_bytes

    @property
    def components(self) -> dict[str, int]:
        """What the peak is made of."""
        peak = self.memory.peak
        sizes = {one.name: getattr(peak, one.name) for one in fields(peak) if one.name != "instant"}
        return {name: size for name, size in sizes.items() if size}


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """The M-step: all epochs on the expected examples, once."""

    setup: TrainingSetup
    memory: TrainingMemory
    time: TrainingTime | None
    """None where the problems are not counted."""
    num_examples: float | None
    num_epochs: int


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole run on a cluster."""

    model: str
    shape: ModelShape
    """Of the model that is trained."""
    sampler: str
    """Which model draws the E-step: `model`, or a teacher."""
    sampling_shape: ModelShape
    """Of that model."""
    cluster: Cluster
    workload: Workload
    sampling: SamplingPlan
    training: TrainingPlan
    num_iterations: int
    is_drawn: bool
    """Whether iterations have an E-step; else it is only the measure of what is drawn beside it."""
    evaluation_share: float
    """Tokens drawn to measure and to choose, for each token of an E-step."""
    base_share: float
    """The same of the base, which is measured once before the first iteration."""
    save_seconds: float | None
    """Of an M-step between two checkpoints to go on from; None for none."""

    @property
    def fits(self) -> bool:
        """Whether both phases fit, the host's memory included where it is known."""
        spare = (self.sampling.spare_bytes, self.training.memory.spare_bytes, self.host_spare_bytes or 0)
        return min(spare) >= 0

    @property
    def host_spare_bytes(self) -> int | None:
        """What an M-step leaves of a node's memory; None where that is not known."""
        has = self.cluster.host_memory_bytes
        return None if has is None else has - self.training.memory.host_peak_bytes

    @property
    def seconds(self) -> float | None:
        """Of all iterations: E-steps, M-steps and evaluation."""
        if self.sampling.speed is None or self.training.time is None:
            return None
        return self.run_seconds(self.sampling.speed.total_seconds, self.training.time.seconds)

    def run_seconds(self, sampling_seconds: float, training_seconds: float) -> float:
        """Return the seconds of all iterations, of those of an E-step and an M-step."""
        an_iteration = sampling_seconds * (self.is_drawn + self.evaluation_share) + training_seconds
        return self.num_iterations * an_iteration + sampling_seconds * self.base_share

    def dollars(self, seconds: float | None) -> float | None:
        """Return what so many seconds of the whole cluster cost; None without a price."""
        price = self.cluster.gpu.dollars_per_hour
        return None if price is None or seconds is None else seconds / 3600 * price * self.cluster.num_devices

    @property
    def largest_tensor_parallel(self) -> float | None:
        """Devices of a node that could share each layer before the link binds; None where there is no link.

        rest_em itself splits no layer: this is for an engine of one's own.
        """
        gpu = self.cluster.gpu
        if gpu.name == "cpu":
            return None
        link = gpu.link_bandwidth if gpu.has_peer_access else gpu.link_bandwidth / 2
        return largest_tensor_parallel(self.shape.hidden_size, gpu.peak_flops, link)

    @property
    def failures(self) -> FailurePlan | None:
        """What failures cost the M-step with its checkpoints every `training.save_seconds`."""
        if self.save_seconds is None:
            return self._failures(checkpoint_bytes=0)
        return self._failures(checkpoint_bytes=self._checkpoint_bytes, interval_seconds=self.save_seconds)

    @property
    def checkpointed_failures(self) -> FailurePlan | None:
        """The same if they were written at the interval at which least is lost."""
        return self._failures(checkpoint_bytes=self._checkpoint_bytes)

    @property
    def _checkpoint_bytes(self) -> int:
        """A node's share of a checkpoint to go on from, 14 bytes a trained parameter.

        They are bfloat16 weights, fp32 masters and both moments, as under DeepSpeed.
        """
        trained = weights_of(self.shape, self.training.setup.adapter).num_trainable
        return 14 * trained // self.cluster.num_nodes

    def _failures(
        self, *, checkpoint_bytes: int, interval_seconds: float | None = None
    ) -> FailurePlan | None:
        time = self.training.time
        if time is None:
            return None
        return plan_failures(
            self.cluster,
            time.seconds,
            recovery_seconds=RECOVERY_SECONDS,
            checkpoint_bytes=checkpoint_bytes,
            interval_seconds=interval_seconds,
        )


def plan_sampling(
    shape: ModelShape, setup: SamplingSetup, cluster: Cluster, workload: Workload
) -> SamplingPlan:
    """Return the plan of an E-step."""
    is_cpu = cluster.gpu.name == "cpu"
    memory = sampling_memory(shape, setup)
    outside = outside_sampling(cluster, memory.peak.total_bytes)
    return SamplingPlan(
        setup=setup,
        memory=memory,
        outside=outside,
        usable_bytes=cluster.gpu.usable_bytes,
        max_batch=max_batch(
            shape,
            setup,
            cluster.gpu.usable_bytes,
            outside_bytes=outside["context"] + outside["libraries"],
            reserve=0.0 if is_cpu else SLACK[False] / (1 + SLACK[False]),
        ),
        speed=sampling_speed(shape, setup, cluster, workload),
        num_solutions=None if workload.num_train is None else workload.num_train * setup.num_samples,
    )


def outside_sampling(cluster: Cluster, peak_bytes: int) -> dict[str, int]:
    """Return what a device holds beyond what the framework allocates, in an E-step."""
    if cluster.gpu.name == "cpu":
        return {"allocator slack": 0, "context": PYTHON_BYTES, "libraries": 0}
    return {
        "allocator slack": int(SLACK[False] * peak_bytes),
        "context": cluster.gpu.context_bytes,
        "libraries": LIBRARY_BYTES,
    }


def sampling_speed(
    shape: ModelShape, setup: SamplingSetup, cluster: Cluster, workload: Workload
) -> SamplingSpeed | None:
    """Return how fast an E-step goes; None where the problems are not counted."""
    if workload.num_train is None:
        return None
    gpu, node = cluster.gpu, replace(cluster, num_nodes=1)  # devices that share a model are on one node
    rates = Rates(
        flops=gpu.flops_of(setup.dtype_bytes), bandwidth=gpu.bandwidth, link_bandwidth=node.slowest_link
    )
    if gpu.name == "cpu":
        rates = replace(rates, flops_share=CPU_COMPUTE_EFFICIENCY)
    return estimate_speed(
        shape, setup, rates, num_problems=workload.num_train, num_devices=cluster.num_devices
    )


def plan_training(
    shape: ModelShape,
    setup: TrainingSetup,
    cluster: Cluster,
    *,
    num_examples: float | None,
    num_epochs: int,
) -> TrainingPlan:
    """Return the plan of an M-step."""
    memory = training_memory(shape, setup, cluster, num_epochs=num_epochs)
    time = None
    if num_examples is not None:
        time = training_time(shape, setup, cluster, num_examples=num_examples, num_epochs=num_epochs)
    return TrainingPlan(setup, memory, time, num_examples, num_epochs)


def weight_bytes(shape: ModelShape, dtype_bytes: int) -> tuple[int, int]:
    """Return the bytes of all weights, and of those that one token goes through."""
    total = weights_of(shape).num_elements * dtype_bytes
    if shape.experts is None:
        return total, total
    return total, min(total, (active_parameters(shape) + shape.vocab_size * shape.hidden_size) * dtype_bytes)


def _failures_json(found: FailurePlan | None) -> dict[str, Any] | None:
    return None if found is None else {one.name: getattr(found, one.name) for one in fields(found)}


def to_json(plan: Plan) -> dict[str, Any]:
    """Return the plan as JSON values: bytes of a device, seconds and dollars of one E-step and one M-step."""
    sampling, training = plan.sampling, plan.training
    speed, time, memory = sampling.speed, training.time, training.memory
    return {
        "model": plan.model,
        "num_parameters": weights_of(plan.shape).num_elements,
        "num_active_parameters": active_parameters(plan.shape),
        "gpu": plan.cluster.gpu.name,
        "num_gpus": plan.cluster.num_gpus,
        "num_nodes": plan.cluster.num_nodes,
        "usable_bytes": plan.cluster.gpu.usable_bytes,
        "fits": plan.fits,
        "sampling": {
            "model": plan.sampler,
            "is_drawn": plan.is_drawn,
            "fits": sampling.spare_bytes >= 0,
            "is_certain_failure": sampling.is_certain_failure,
            "peak_bytes": sampling.peak_bytes,
            "instant": sampling.memory.peak.instant,
            "components": sampling.components,
            "outside": dict(sampling.outside),
            "spare_bytes": sampling.spare_bytes,
            "engine": sampling.setup.engine,
            "max_rows": sampling.setup.rows,
            "max_batch": sampling.max_batch,
            "num_solutions": sampling.num_solutions,
            "tokens_per_second": speed and speed.tokens_per_second,
            "num_busy_devices": speed and speed.num_busy_devices,
            "bound_by": speed and speed.step.bound,
            "seconds": speed and speed.total_seconds,
            "dollars": plan.dollars(speed.total_seconds if speed else None),
        },
        "training": {
            "fits": memory.spare_bytes >= 0,
            "is_certain_failure": memory.is_certain_failure,
            "peak_bytes": memory.peak.total_bytes,
            "instant": memory.peak.name,
            "components": {name: size for name, size in memory.peak.components.items() if size},
            "instants": {one.name: one.total_bytes for one in memory.instants},
            "outside": dict(memory.outside),
            "spare_bytes": memory.spare_bytes,
            "host_peak_bytes": memory.host_peak_bytes,
            "host_spare_bytes": plan.host_spare_bytes,
            "pinned_host_bytes": memory.pinned_host_bytes,
            "disk_bytes": memory.disk_bytes,
            "swap_bytes": memory.swap_bytes,
            "strategy": training.setup.strategy,
            "method": training.setup.method,
            "precision": training.setup.precision,
            "per_device_train_batch_size": training.setup.num_rows,
            "longest": training.setup.longest,
            "num_examples": training.num_examples,
            "num_steps": time and time.num_steps,
            "tokens_per_second": time and time.num_tokens / time.seconds,
            "bound_by": time and time.step.bound_by,
            "seconds": time and time.seconds,
            "dollars": plan.dollars(time.seconds if time else None),
        },
        "total": {
            "num_iterations": plan.num_iterations,
            "seconds": plan.seconds,
            "gpu_hours": plan.seconds and plan.seconds / 3600 * plan.cluster.num_devices,
            "dollars": plan.dollars(plan.seconds),
        },
        "largest_tensor_parallel": plan.largest_tensor_parallel,
        "failures": _failures_json(plan.failures),
        "checkpointed_failures": _failures_json(plan.checkpointed_failures),
        "assumptions": {
            "mean_new_tokens": plan.workload.mean_new_tokens,
            "success_rate": plan.workload.success_rate,
            "num_train": plan.workload.num_train,
            "sources": list(plan.workload.sources),
        },
    }


def certain_failures(plan: Plan) -> dict[str, str]:
    """Return the phases whose tensors alone exceed the device, with the shortfall."""
    failures = {}
    gib = 2**30
    sampling, memory = plan.sampling, plan.training.memory
    if sampling.is_certain_failure:
        short = (sampling.peak_bytes + sampling.outside["context"] - sampling.usable_bytes) / gib
        failures["sampling"] = (
            f"at the instant {sampling.memory.peak.instant!r} a device holds "
            f"{sampling.peak_bytes / gib:.2f} GiB, {short:.2f} GiB more than it has"
        )
    if memory.is_certain_failure:
        short = (memory.peak.total_bytes + memory.outside["context"] - memory.usable_bytes) / gib
        largest = max(memory.peak.components, key=lambda name: memory.peak.components[name])
        failures["training"] = (
            f"at the instant {memory.peak.name!r} a device holds "
            f"{memory.peak.total_bytes / gib:.2f} GiB (most of it {largest}), {short:.2f} GiB more than it "
            "has"
        )
    return failures


def mean_padded(mean: float, longest: int, num_rows: int) -> float:
    """Return the tokens of a row of a micro-batch whose rows are of like length, padding among them."""
    return min(float(longest), mean * (1 + 0.05 * math.log2(max(1, num_rows))))
