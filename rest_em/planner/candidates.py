"""What a search tries: each way to do an E-step or an M-step on given devices, with its memory and its time.

A candidate's memory is looked at in all its instants and its time is costed, as a plan's are, by the same
functions; only what does not differ between candidates is shared. Choosing among them is `search`'s.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Literal, TypeVar

from rest_em.planner.activations import instants_of
from rest_em.planner.adapters import adapter_of
from rest_em.planner.hardware import Cluster
from rest_em.planner.inventory import weights_of
from rest_em.planner.layers import Adapter
from rest_em.planner.plan import Plan, mean_padded, outside_sampling, sampling_speed, weight_bytes
from rest_em.planner.sampling import sampling_memory
from rest_em.planner.sampling_setup import Engine, SamplingSetup
from rest_em.planner.states import ModelStates, model_states
from rest_em.planner.strategies import DEVICES_OF, Placement, Strategy, ZeroSettings
from rest_em.planner.training import (
    Method,
    Moment,
    TrainingSetup,
    instants_with,
    moments_with,
    outside_of,
    state_setup,
    training_time,
)
from rest_em.planner.weights import Weights

MAX_ROWS = 32
"""Largest micro-batch that is tried."""
TENSOR_PARALLEL = (1, 2, 4, 8)
OPTIMIZERS = ("adamw_torch_fused", "adamw_bnb_8bit", "paged_adamw_8bit", "adafactor")
"""Tried beside the recipe's."""
LORA: Mapping[str, int | str] = {"r": 16, "target_modules": "all-linear"}
"""The adapters that are tried where a recipe trains all weights."""
NF4: Mapping[str, bool | str] = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
"""How the base below them is quantised where a recipe does not."""

Setup = TypeVar("Setup", SamplingSetup, TrainingSetup)


@dataclass(frozen=True, slots=True)
class Candidate(Generic[Setup]):
    """One way to do a phase.

    A value is `Candidate(cluster, setup, spare_bytes=2**30, seconds=5400.0)`.
    """

    cluster: Cluster
    setup: Setup
    spare_bytes: int
    """What it leaves of a device; below 0 if it does not fit."""
    seconds: float
    """Of one E-step or one M-step."""
    obstacle: str | None = None
    """Why rest_em cannot do it yet; None where it can."""
    altered: tuple[str, ...] = ()
    """What of it changes what is drawn or learned, not just how fast: `method`, `optim`, `dtype`."""

    @property
    def fits(self) -> bool:
        """Whether the device holds it."""
        return self.spare_bytes >= 0

    @property
    def is_as_asked(self) -> bool:
        """Whether rest_em can do it, and learns what the recipe asks for."""
        return self.obstacle is None and not self.altered


def sampling_candidates(plan: Plan, cluster: Cluster) -> Iterator[Candidate[SamplingSetup]]:
    """Yield the ways to draw on these devices: engine and tensor parallelism x precision x rows."""
    base, shape = plan.sampling.setup, plan.sampling_shape
    engines: list[tuple[Engine, int]] = [(base.engine, 1)]
    engines += [
        ("server", parts)
        for parts in TENSOR_PARALLEL
        if cluster.num_gpus % parts == 0 and shape.num_heads % parts == 0 and parts <= shape.num_kv_heads
    ]
    unit = base.unit_problems * base.unit_samples
    rows = sorted({*powers_of_two(unit), base.max_rows})
    widths = sorted({2, 4, base.dtype_bytes})
    for (engine, parts), width, number in itertools.product(engines, widths, rows):
        total, active = weight_bytes(shape, width)
        setup = replace(
            base,
            weight_bytes=total,
            active_weight_bytes=active,
            dtype_bytes=width,
            max_rows=number,
            engine=engine,
            tensor_parallel=parts,
        )
        peak = sampling_memory(shape, setup).peak.total_bytes
        speed = sampling_speed(shape, setup, cluster, plan.workload)
        assert speed is not None, "a search is of a recipe whose problems are counted"
        yield Candidate(
            cluster=cluster,
            setup=setup,
            spare_bytes=cluster.gpu.usable_bytes - peak - sum(outside_sampling(cluster, peak).values()),
            seconds=speed.total_seconds,
            obstacle=None if engine != "server" else "rest_em samples with engines of its own, not a server",
            altered=() if width == base.dtype_bytes else ("dtype",),
        )


def powers_of_two(most: int) -> list[int]:
    """Return the numbers that a search tries: powers of two, and the most itself.

    >>> powers_of_two(6)
    [1, 2, 4, 6]
    """
    return sorted({*(2**power for power in range(most.bit_length())), most})


@dataclass(frozen=True, slots=True)
class _Family:
    """What candidates of an M-step have in common: what is trained, by which strategy, in which precision."""

    method: Method
    strategy: Strategy
    offload: Placement
    precision: Literal["fp32", "autocast", "bf16"]
    adapter: Adapter | None
    weights: Weights


def training_candidates(plan: Plan, cluster: Cluster) -> Iterator[Candidate[TrainingSetup]]:
    """Yield the ways to train on these devices.

    Method x strategy x offload x micro-batch x checkpointing x optimiser; none where the global batch cannot
    be shared out over the devices.
    """
    share, rest = divmod(plan.training.setup.global_batch_size, cluster.num_devices)
    if rest:
        return
    rows = [size for size in range(1, min(share, MAX_ROWS) + 1) if share % size == 0]
    for family in _families(plan, cluster):
        yield from _of_family(plan, cluster, family, rows)


def _families(plan: Plan, cluster: Cluster) -> Iterator[_Family]:
    base, shape = plan.training.setup, plan.shape
    is_half = base.precision != "fp32"
    for method, (strategy, offload) in itertools.product(_methods(base), _strategies(cluster)):
        is_deepspeed = strategy.startswith("zero")
        if method == "qlora" and is_deepspeed:  # bitsandbytes' weights are not flattened
            continue
        precision: Literal["fp32", "autocast", "bf16"] = (
            "fp32" if not is_half else "bf16" if is_deepspeed else "autocast"
        )
        adapter = None
        if method != "full":
            itemsize = 2 if precision == "bf16" and strategy != "zero3" else 4
            adapter = (
                adapter_of(LORA, shape, itemsize)
                if base.adapter is None
                else replace(base.adapter, itemsize=itemsize)
            )
        yield _Family(method, strategy, offload, precision, adapter, weights_of(shape, adapter))


def _methods(base: TrainingSetup) -> tuple[Method, ...]:
    """Return what can be trained, the recipe's own first."""
    known: tuple[Method, ...] = ("full", "lora", "qlora")
    return (base.method, *(one for one in known if one != base.method))


def _strategies(cluster: Cluster) -> list[tuple[Strategy, Placement]]:
    """Return the strategies with what each can offload, the simplest first; a processor is its own host."""
    num_devices = cluster.num_devices
    found: list[tuple[Strategy, Placement]] = [("single" if num_devices == 1 else "ddp", "none")]
    stages: tuple[Strategy, ...] = ("zero1", "zero2", "zero3")
    if num_devices > 1:
        found += [(one, "none") for one in stages]
    if cluster.gpu.name == "cpu":
        return found
    return [*found, ("zero2", "optimizer"), ("zero3", "optimizer"), ("zero3", "all"), ("zero3", "nvme")]


def _of_family(
    plan: Plan, cluster: Cluster, family: _Family, rows: Sequence[int]
) -> Iterator[Candidate[TrainingSetup]]:
    base, shape = plan.training.setup, plan.shape
    num_examples = plan.training.num_examples
    assert num_examples is not None, "a search is of a recipe whose problems are counted"
    optimizers = (base.optim, *(one for one in OPTIMIZERS if one != base.optim))
    if family.offload != "none":  # DeepSpeed steps on the host
        optimizers = (base.optim,)
    on_optimizer, on_param = DEVICES_OF[family.offload]
    zero = ZeroSettings().sized(shape.hidden_size, family.weights.num_elements)
    known: dict[tuple[str, bool], ModelStates] = {}
    for number, is_checkpointed in itertools.product(rows, (False, True)):
        setup = replace(
            base,
            method=family.method,
            strategy=family.strategy,
            num_rows=number,
            mean_length=_mean_length(plan, number),
            precision=family.precision,
            is_checkpointed=is_checkpointed,
            adapter=family.adapter,
            offload_optimizer=on_optimizer,
            offload_param=on_param,
            zero=zero if family.strategy.startswith("zero") else base.zero,
        )
        played = instants_of(shape, setup.step)
        moments: tuple[Moment, ...] = ()
        is_accumulating = setup.num_micro_steps(cluster.num_devices) > 1
        seconds = training_time(
            shape, setup, cluster, num_examples=num_examples, num_epochs=plan.training.num_epochs
        ).seconds
        for optim in optimizers:
            one = setup if optim == setup.optim else replace(setup, optim=optim)
            states = known.get((optim, is_accumulating))
            if states is None:  # of what else differs here they depend on nothing that is looked at
                states = model_states(family.weights, state_setup(one, cluster, family.weights))
                known[optim, is_accumulating] = states
            if not moments:
                moments = moments_with(states, played, family.weights, setup, cluster.num_devices)
            yield Candidate(
                cluster=cluster,
                setup=one,
                spare_bytes=_spare(states, moments, one, cluster),
                seconds=seconds,
                obstacle=obstacle_of(one),
                altered=_altered(base, one),
            )


def _altered(base: TrainingSetup, setup: TrainingSetup) -> tuple[str, ...]:
    return tuple(name for name in ("method", "optim") if getattr(base, name) != getattr(setup, name))


def _mean_length(plan: Plan, num_rows: int) -> float:
    workload = plan.workload
    mean = workload.training_prompt.mean + workload.mean_new_tokens
    if plan.training.setup.is_packed:
        return mean
    return mean_padded(mean, plan.training.setup.longest, num_rows)


def _spare(states: ModelStates, moments: Sequence[Moment], setup: TrainingSetup, cluster: Cluster) -> int:
    peak = max([one.total_bytes for one in instants_with(states, moments)])
    return cluster.gpu.usable_bytes - peak - sum(outside_of(states, setup, cluster, peak).values())


def obstacle_of(setup: TrainingSetup) -> str | None:
    """Return why rest_em cannot train like this yet; None where it can."""
    if setup.method == "qlora" and setup.strategy.startswith("zero"):
        return "a quantised base is not trained with DeepSpeed, whose ranks would share out adapters alone"
    if "nvme" in (setup.offload_optimizer, setup.offload_param):
        return "NVMe takes an operator that DeepSpeed compiles and a folder, and launch/zero_infinity.yaml"
    if "8bit" in setup.optim or setup.optim.startswith("paged"):
        return "this optimiser takes bitsandbytes, the extra qlora, and the planner has not seen it at work"
    return None


def offload_of(setup: TrainingSetup) -> str:
    """Return a setup's offload by the names of `--offload`."""
    both = (setup.offload_optimizer, setup.offload_param)
    return next((name for name, devices in DEVICES_OF.items() if devices == both), "/".join(both))
