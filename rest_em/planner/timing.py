"""How long a training step takes: a roofline of compute, memory and links. Of sampling: `sampling_speed`.

Nothing here was calibrated on a GPU: the efficiencies are defaults to replace by what was measured. Left out:
NVMe offload, pipeline parallelism, and the overlap of offload with compute.

    N parameters, F bytes of them in bfloat16 (2N), G devices, L layers, h hidden width, b sequences, s tokens
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from rest_em.planner import textbook
from rest_em.planner.hardware import Cluster, Gpu
from rest_em.planner.strategies import Strategy

COMPUTE_EFFICIENCY = 0.40
"""Share of the peak FLOP rate that Hugging Face training reaches; 0.40 to 0.45 is usual."""
CPU_COMPUTE_EFFICIENCY = 0.75
"""The same of a processor: 62 of 78 GFLOP/s measured on one AVX2 core, of 135M parameters in float32."""
BANDWIDTH_EFFICIENCY = 0.70
"""Share of the memory's rate that Adam's step reaches; inferred, not measured."""
LAUNCH_SECONDS = 7e-6
"""Of one kernel launch from eager Python. 40 x 32 of them are 9 ms; 6 to 13 ms a step are inferred."""
LAUNCHES_A_LAYER = 40
"""Of one forward pass in eager transformers."""
ADAM_TRAFFIC_BYTES = 28
"""A parameter: 12 bytes of state read, 12 written, a bfloat16 gradient read and a weight written."""
DDP_GRADIENT_BYTES = textbook.FP32_BYTES
"""DDP holds its parameters, and so reduces its gradients, in float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seconds:
    """A time and what it is made of.

    The parts overlap: which of them add up to `total` is said by the function that gives it.
    """

    total: float
    compute: float = 0.0
    """FLOP at the peak rate x the efficiency."""
    communication: float = 0.0
    """Between devices."""
    offload: float = 0.0
    """Between the device and the host."""
    optimiser: float = 0.0
    """The optimiser's own step, on the device or the host."""
    launches: float = 0.0
    """Starting kernels, however small they are."""

    @property
    def bound_by(self) -> str:
        """The name of the longest part; of equal ones the first."""
        parts = [field.name for field in fields(self) if field.name != "total"]
        return max(parts, key=lambda name: float(getattr(self, name)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Efficiency:
    """What of a device's rates is reached."""

    compute: float = COMPUTE_EFFICIENCY
    bandwidth: float = BANDWIDTH_EFFICIENCY
    launch_seconds: float = LAUNCH_SECONDS


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingWork:
    """One optimiser step as one device sees it.

    A value is `TrainingWork(num_parameters=7 * 10**9, active_parameters=7 * 10**9,
    trainable_parameters=7 * 10**9, num_layers=32, attention_width=4096, num_sequences=1, num_tokens=2048)`.
    """

    num_parameters: int
    """Of the whole model: all of them are gathered in ZeRO-3."""
    active_parameters: int
    """That one token is multiplied with: fewer than all in a mixture of experts, and without the embedding's
    table."""
    trainable_parameters: int
    """Fewer than all with LoRA."""
    num_layers: int
    attention_width: int
    """Heads x their width."""
    num_sequences: int
    """In each micro-batch."""
    num_tokens: int
    """Of each sequence, padding included."""
    num_shared: int = 0
    """Of them, those that all sequences of a micro-batch begin with and that are computed once."""
    num_micro_batches: int = 1
    """Accumulated in one step."""
    strategy: Strategy = "ddp"
    recomputes: bool = False
    """Whether gradient checkpointing does the forward pass twice."""
    offloads_optimiser: bool = False
    """Whether the optimiser's states and step are the host's."""
    offloads_parameters: bool = False
    """Whether the weights are the host's too; of ZeRO-3 alone."""
    itemsize: Literal[2, 4] = 2
    """Bytes of the numbers that are multiplied: 2 under autocast, too."""
    causal: bool = True
    """Whether attention skips what is masked, as flash attention does."""

    @property
    def is_sharded(self) -> bool:
        """Say whether devices share out states, as under ZeRO."""
        return self.strategy.startswith("zero")

    @property
    def has_frozen_parameters(self) -> bool:
        """Say whether some weights need no gradient, as with LoRA."""
        return self.trainable_parameters < self.num_parameters


def efficiency_of(gpu: Gpu) -> Efficiency:
    """Return what of a device's rates is taken to be reached."""
    return Efficiency(compute=CPU_COMPUTE_EFFICIENCY) if gpu.name == "cpu" else Efficiency()


def training_flops(work: TrainingWork) -> float:
    """Return one device's FLOP of one optimiser step.

    The weights: 2N a token forward, 2N for the gradients of the inputs, 2N for those of the weights, and 2N
    more where the forward pass is recomputed: 6N or 8N, with LoRA 4N or 6N. Attention: 4·L·s²·h·b forward,
    twice that backward, 12 or 16 in all; half of it where it is causal. What sequences share counts once.

    Source: Kaplan et al. 2020, section 2.1; Narayanan et al. 2021, section 5.1; Dao 2023, section 4.1.
    """
    own = work.num_tokens - work.num_shared
    tokens = work.num_shared + work.num_sequences * own
    a_weight = (4 if work.has_frozen_parameters else 6) + (2 if work.recomputes else 0)
    attention = (16 if work.recomputes else 12) * (0.5 if work.causal else 1.0)
    squares = work.num_sequences * work.num_tokens**2 - (work.num_sequences - 1) * work.num_shared**2
    scores = work.num_layers * squares * work.attention_width
    return work.num_micro_batches * (a_weight * work.active_parameters * tokens + attention * scores)


def traffic_bytes(work: TrainingWork, num_devices: int) -> float:
    """Return what each device sends to the others in one optimiser step.

    F(G-1)/G each for a reduce-scatter of the gradients or an all-gather of the weights. DDP: both of the
    float32 gradients, once a step. ZeRO-1: one of each, once a step. ZeRO-2: gradients every micro-batch,
    weights once. ZeRO-3: weights twice and gradients once every micro-batch. For one micro-batch and no
    frozen weights that is 2F(G-1)/G, of ZeRO-3 3F(G-1)/G. Frozen weights have no gradients, and move in
    ZeRO-3 alone.

    Source: Rajbhandari et al. 2020, ZeRO, section 7; DeepSpeed 0.19 (ZeRO-2 reduces every micro-batch).
    """
    trainable = textbook.weight_bytes(work.trainable_parameters)
    micro = work.num_micro_batches
    if not work.is_sharded:
        gradients = textbook.weight_bytes(work.trainable_parameters, DDP_GRADIENT_BYTES)
        return textbook.all_reduce_bytes(gradients, num_devices)
    sent = {
        "zero1": 2 * trainable,
        "zero2": (micro + 1) * trainable,
        "zero3": micro * (2 * textbook.weight_bytes(work.num_parameters) + trainable),
    }[work.strategy]
    return textbook.reduce_scatter_bytes(sent, num_devices)


def training_seconds(cluster: Cluster, work: TrainingWork, efficiency: Efficiency | None = None) -> Seconds:
    """Return the time of one optimiser step.

    max(compute, communication, launches) + offload + optimiser: communication is taken to hide behind compute
    wherever it can, and only what is longer shows; offload is taken not to.

    Source: Rajbhandari et al. 2021, ZeRO-Infinity, section 4 (efficiency as compute against bandwidth).
    """
    reached = efficiency or efficiency_of(cluster.gpu)
    devices = cluster.num_devices
    compute = training_flops(work) / (cluster.gpu.flops_of(work.itemsize) * reached.compute)
    communication = traffic_bytes(work, devices) / cluster.slowest_link
    passes = 4 if work.recomputes else 3
    launches = work.num_micro_batches * passes * LAUNCHES_A_LAYER * work.num_layers * reached.launch_seconds
    offload = offload_bytes(work, devices) / cluster.gpu.host_link_bandwidth
    optimiser = optimiser_seconds(cluster, work, reached)
    return Seconds(
        total=max(compute, communication, launches) + offload + optimiser,
        compute=compute,
        communication=communication,
        offload=offload,
        optimiser=optimiser,
        launches=launches,
    )


def offload_bytes(work: TrainingWork, num_devices: int) -> float:
    """Return what crosses the link between each device and its host in one optimiser step.

    With the optimiser on the host, F/G of gradients down every micro-batch and F/G of weights up once; with
    the weights there, F/G of all of them up twice every micro-batch. DDP keeps whole copies: G is 1 there.

    Source: Ren et al. 2021, ZeRO-Offload, section 4; Rajbhandari et al. 2021, ZeRO-Infinity, section 5.
    """
    shards = num_devices if work.is_sharded else 1
    trainable = textbook.weight_bytes(work.trainable_parameters) / shards
    whole = textbook.weight_bytes(work.num_parameters) / shards
    moved = 0.0
    if work.offloads_optimiser:
        moved += work.num_micro_batches * trainable
        moved += 0.0 if work.offloads_parameters else trainable
    if work.offloads_parameters:
        moved += 2 * work.num_micro_batches * whole
    return moved


def optimiser_seconds(cluster: Cluster, work: TrainingWork, efficiency: Efficiency) -> float:
    """Return the time of Adam's own step: 28 bytes a trainable parameter of the device's share.

    At the memory's rate of the device, or of the host, which the devices of a node share.

    Source: Ren et al. 2021, ZeRO-Offload, section 5.1 (Adam on the host is bound by its memory).
    """
    shards = cluster.num_devices if work.is_sharded else 1
    moved = ADAM_TRAFFIC_BYTES * work.trainable_parameters / shards
    if work.offloads_optimiser:
        return moved * cluster.num_gpus / cluster.host_bandwidth
    return moved / (cluster.gpu.bandwidth * efficiency.bandwidth)
