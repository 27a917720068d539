"""Time of the E-step: a roofline of one decoding step, integrated over the lengths of a unit's solutions.

Takes plain rates of a device, so that it can be read and checked alone. Lengths are exponential, cut off at
the cap, and a unit's schedule is played out as the engine does it: how many rows are in use at each step is
counted, not estimated. Left out: loading the model, the tokenizer and the host's work between steps (stop
strings, random numbers), and waiting for the last rank beyond whole units. Nothing here has been measured on
a GPU.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from rest_em.planner.sampling import grown_capacity, kv_bytes_per_token
from rest_em.planner.sampling_schedule import Segment, segments, solution_lengths
from rest_em.planner.sampling_setup import SamplingSetup
from rest_em.planner.shapes import ModelShape

Bound = Literal["bandwidth", "compute", "launches", "communication"]
LAUNCHES_PER_LAYER = {"shared_prefix": 56, "stock": 43, "server": 12}
"""Kernels of a layer and decoding step. Counted on a Llama (operations that are no views, traced on a CPU, 2
and 4 layers); a server's are what fusion leaves, inferred."""
LAUNCHES_PER_STEP = {"shared_prefix": 26, "stock": 39, "server": 10}
"""Kernels around the layers, counted likewise."""
DRAW_LAUNCHES = {"greedy": 1, "top_k": 14, "top_p": 51, "whole": 22}
"""Kernels of choosing the tokens, counted likewise."""


@dataclass(frozen=True, slots=True)
class Rates:
    """What a device does in a second, and what of it code like ours reaches.

    Example:
        Rates(flops=312e12, bandwidth=2.039e12)
    """

    flops: float
    """Dense matrix products in the model's precision, of the data sheet."""
    bandwidth: float
    """Bytes a second of its memory, of the data sheet."""
    link_bandwidth: float | None = None
    """Bytes a second to another device, one way; None where there is one device."""
    launch_seconds: float = 8e-6
    """Host's time for one operation of eager PyTorch: 5 to 10 us are reported; a slow host takes more."""
    graph_launch_seconds: float = 2e-6
    """The same in a replayed CUDA graph, as a server does it. Inferred."""
    collective_seconds: float = 30e-6
    """Latency of one transfer among devices: 30 us over PCIe, about 10 over NVLink. Source: reported."""
    bandwidth_share: float = 0.7
    """Of the bandwidth that weights and keys are read with. Source: 60 to 85 % reported for large reads."""
    flops_share: float = 0.45
    """Of the FLOP/s in a prefill or a large batch, as for training: 0.40 to 0.45 reported."""


@dataclass(frozen=True, slots=True)
class StepSeconds:
    """One decoding step, by what could bound it.

    Reading, computing and launching overlap, so the largest counts; communication waits and is added.
    """

    bandwidth: float
    compute: float
    launches: float
    communication: float

    @property
    def total_seconds(self) -> float:
        """max(bandwidth, compute, launches) + communication."""
        return max(self.bandwidth, self.compute, self.launches) + self.communication

    @property
    def bound(self) -> Bound:
        """What takes the longest."""
        times: dict[Bound, float] = {
            "bandwidth": self.bandwidth,
            "compute": self.compute,
            "launches": self.launches,
            "communication": self.communication,
        }
        return max(times, key=lambda name: times[name])


@dataclass(frozen=True, slots=True)
class SamplingSpeed:
    """How fast solutions come, and what that sums to.

    Confidence: about a factor of 1.5 where bandwidth or compute bound, 2 where launches do, more for
    `server`; the mean length, on which everything depends, is the user's guess.
    """

    tokens_per_second: float
    """Of all devices: the tokens of all solutions by `total_seconds`; with prefill, tail and idle devices."""
    step: StepSeconds
    """With all rows in use, in the middle of a unit."""
    mean_rows: float
    """Rows whose solution goes on, over the steps of a unit; the rest is its tail, or rows that wait."""
    prefill_seconds: float
    """A unit's prompts."""
    decode_seconds: float
    """A unit's steps."""
    total_seconds: float
    """All units over all devices, the last ones waited for."""
    num_busy_devices: int = 1
    """Devices that have a unit to draw."""


def estimate_speed(
    shape: ModelShape, setup: SamplingSetup, rates: Rates, *, num_problems: int, num_devices: int = 1
) -> SamplingSpeed:
    """Return the speed of drawing N solutions to each problem.

    A unit goes to one replica (one device, or `tensor_parallel` of them), and units are dealt out evenly: the
    seconds are those of ceil(units / replicas) units.

    Raises:
        ValueError: there are fewer devices than one replica takes, or several without a link.
    """
    if num_devices < setup.tensor_parallel:
        raise ValueError(f"tensor_parallel {setup.tensor_parallel} takes more than {num_devices} devices")
    if num_problems < setup.unit_problems:
        setup = replace(setup, unit_size=num_problems * setup.num_samples)
    num_replicas = num_devices // setup.tensor_parallel
    num_units = math.ceil(num_problems / setup.unit_problems) * math.ceil(
        setup.num_samples / setup.unit_samples
    )
    unit = _unit_speed(
        shape, setup, rates if setup.tensor_parallel > 1 else replace(rates, link_bandwidth=None)
    )
    total_seconds = math.ceil(num_units / num_replicas) * unit.total_seconds
    unit_tokens = unit.tokens_per_second * unit.total_seconds
    share = num_problems * setup.num_samples / (setup.unit_problems * setup.unit_samples)
    return replace(
        unit,
        tokens_per_second=share * unit_tokens / total_seconds,
        total_seconds=total_seconds,
        num_busy_devices=min(num_units, num_replicas) * setup.tensor_parallel,
    )


@functools.lru_cache(maxsize=1024)
def _unit_speed(shape: ModelShape, setup: SamplingSetup, rates: Rates) -> SamplingSpeed:
    """Return the speed of one unit on one replica."""
    schedule = segments(setup)
    step = _step_of(shape, setup, rates)
    decode = sum(segment.num_steps * _total(step(*_segment_tokens(setup, segment))) for segment in schedule)
    prefill = prefill_seconds(shape, setup, rates)
    full = max(schedule, key=lambda segment: (segment.num_rows, segment.longest), default=None)
    num_steps = sum(segment.num_steps for segment in schedule)
    num_tokens = sum(
        solution_lengths(
            setup.mean_new_tokens, setup.max_new_tokens, setup.unit_problems * setup.unit_samples
        )
    )
    return SamplingSpeed(
        tokens_per_second=num_tokens / (prefill + decode),
        step=StepSeconds(*step(*_segment_tokens(setup, full or Segment(1, setup.rows, setup.rows, 1.0, 1)))),
        mean_rows=sum(segment.num_steps * segment.num_alive for segment in schedule) / max(1, num_steps),
        prefill_seconds=prefill,
        decode_seconds=decode,
        total_seconds=prefill + decode,
    )


def _total(parts: tuple[float, float, float, float]) -> float:
    """Return the seconds of a step as `StepSeconds.total_seconds` sums them up."""
    return max(parts[:3]) + parts[3]


def _segment_tokens(setup: SamplingSetup, segment: Segment) -> tuple[int, float, float]:
    """Return a segment's rows, the tokens of each, and those that all share."""
    head = _mean_head(setup)
    own_prompt = setup.mean_prompt - head
    if setup.engine == "shared_prefix":
        # Whole buffers are read, those of the longest row, whatever of them is in use.
        capacity, _ = grown_capacity(math.ceil(own_prompt) + 1, math.ceil(own_prompt) + segment.longest)
        return segment.num_rows, capacity, head
    return segment.num_rows, setup.mean_prompt + segment.mean_length, 0


def _mean_head(setup: SamplingSetup) -> float:
    """Return the tokens of a mean prompt that a unit keeps once, leaving it at least one of its own."""
    if setup.unit_problems == 1:
        return setup.mean_prompt - 1
    return min(float(setup.common_head), setup.mean_prompt - 1)


def step_seconds(
    shape: ModelShape,
    setup: SamplingSetup,
    rates: Rates,
    *,
    num_rows: int,
    num_tokens: float,
    num_shared: float = 0,
) -> StepSeconds:
    """Return the time of one new token for each row.

    - bandwidth: (weights + keys and values + scores + logits) / (bandwidth · share). Weights are those of the
      experts that some row chooses; keys and values of the head are read once, a row's own once, by the stock
      engine three times, which copies them to append a token; scores are written and read whole by the
      shared-prefix engine.
    - compute: (2 · active parameters + 4 · queries · places · layers) · rows / (FLOP/s · share).
    - launches: kernels · time of a launch, whatever the number of rows.
    - communication: two all-reduces a layer, each its latency and 2 (n - 1) / n of rows · hidden bytes by the
      link.

    Source: Pope et al. 2022, section 3; the counts of bytes follow `rest_em.sampling.attention` and
    transformers 5.23.
    """
    return StepSeconds(*_step_of(shape, setup, rates)(num_rows, num_tokens, num_shared))


def _step_of(
    shape: ModelShape, setup: SamplingSetup, rates: Rates
) -> Callable[[int, float, float], tuple[float, float, float, float]]:
    """Return `step_seconds` as a function of rows, tokens and shared tokens: a unit has hundreds of steps."""
    width, parts = setup.dtype_bytes, setup.tensor_parallel
    kv = kv_bytes_per_token(shape, width) / min(parts, shape.num_kv_heads)
    copies = 3 if setup.engine == "stock" else 1
    score_bytes = (6 * width + 8) * shape.num_heads if setup.engine == "shared_prefix" else 0
    drawn_bytes = shape.vocab_size * _draw_traffic(setup)
    num_launches = (
        LAUNCHES_PER_LAYER[setup.engine] * shape.num_layers
        + LAUNCHES_PER_STEP[setup.engine]
        + DRAW_LAUNCHES[_draw_kind(setup)]
    )
    is_server = setup.engine == "server"
    launches = num_launches * (rates.graph_launch_seconds if is_server else rates.launch_seconds)
    bandwidth = rates.bandwidth * rates.bandwidth_share
    flops_rate = rates.flops * rates.flops_share
    weights_of_rows = functools.cache(lambda num_rows: _weights_read(shape, setup, num_rows))

    def step(num_rows: int, num_tokens: float, num_shared: float) -> tuple[float, float, float, float]:
        weights, active = weights_of_rows(num_rows)
        seen = _seen_share(shape, num_shared + num_tokens)
        places = num_rows * (num_shared + num_tokens) * seen * shape.num_layers
        read = weights / parts + kv * seen * (num_shared + copies * num_rows * num_tokens)
        read += score_bytes * places + num_rows * drawn_bytes
        flops = (2 * active / width * num_rows + 4 * shape.query_width * places) / parts
        communication = _communication(shape, setup, rates, num_rows)
        return read / bandwidth, flops / flops_rate, launches, communication

    return step


def prefill_seconds(shape: ModelShape, setup: SamplingSetup, rates: Rates) -> float:
    """Return the time of a unit's prompts: (2 · active parameters + attention) · tokens / (FLOP/s · share).

    A prompt is computed once, and the head once a unit; by the stock engine, once a solution. Never less than
    the weights' reading takes, a pass.
    """
    if setup.engine == "stock":
        num_prompts, head, own = setup.unit_problems * setup.unit_samples, 0.0, setup.mean_prompt
        num_passes = num_prompts / min(setup.max_rows, setup.unit_samples)
    else:
        num_prompts, head, own = (
            setup.unit_problems,
            _mean_head(setup),
            setup.mean_prompt - _mean_head(setup),
        )
        num_passes = setup.unit_problems / setup.group + (head > 0)
    tokens = head + num_prompts * own
    pairs = head * head / 2 + num_prompts * own * (head + own / 2)
    weights, active = _weights_read(shape, setup, num_rows=math.ceil(tokens / num_passes))
    flops = 2 * active / setup.dtype_bytes * tokens + 4 * shape.query_width * pairs * shape.num_layers
    computing = flops / (rates.flops * rates.flops_share)
    reading = num_passes * weights / (rates.bandwidth * rates.bandwidth_share)
    communicating = num_passes * _communication(shape, setup, rates, num_rows=math.ceil(tokens / num_passes))
    return max(computing, reading) / setup.tensor_parallel + communicating


def _weights_read(shape: ModelShape, setup: SamplingSetup, num_rows: int) -> tuple[float, float]:
    """Return the bytes of weights that a step reads, and those that each token is multiplied with.

    Of E experts, k a token, chosen evenly, rows choose E (1 - (1 - k/E)^rows). The embedding is looked up,
    not multiplied with; where it is the output projection as well, it counts once.
    """
    lookup = 0 if shape.is_tied else shape.vocab_size * shape.hidden_size * setup.dtype_bytes
    active = setup.active_weight_bytes - lookup
    if shape.experts is None:
        return setup.weight_bytes - lookup, active
    share = shape.experts.num_active / shape.experts.num_experts
    all_experts = (setup.weight_bytes - setup.active_weight_bytes) / (1 - share) if share < 1 else 0.0
    chosen = 1 - (1 - share) ** num_rows
    return active + all_experts * (chosen - share), active


def _seen_share(shape: ModelShape, num_tokens: float) -> float:
    """Return the share of a sequence that its layers look at: less than 1 where windows are shorter."""
    if not shape.windows:
        return 1.0
    return sum(min(num_tokens, window or num_tokens) for window in shape.windows) / (
        num_tokens * shape.num_layers
    )


def _draw_kind(setup: SamplingSetup) -> Literal["greedy", "top_k", "top_p", "whole"]:
    if setup.temperature == 0:
        return "greedy"
    if setup.top_k:
        return "top_k"
    return "top_p" if setup.top_p < 1 else "whole"


def _draw_traffic(setup: SamplingSetup) -> int:
    """Return the bytes moved a row and token of the vocabulary, the logits' writing included. Low confidence.

    A radix selection reads four times; where all are looked at there are some ten passes in float32. A
    nucleus is taken to be among the likeliest tokens: `sorted_share` is a bound, for memory.
    """
    width = setup.dtype_bytes
    return {"greedy": 2 * width, "top_k": 6 * width, "top_p": 2 * width + 40, "whole": 2 * width + 40}[
        _draw_kind(setup)
    ]


def _communication(shape: ModelShape, setup: SamplingSetup, rates: Rates, num_rows: int) -> float:
    parts = setup.tensor_parallel
    if parts == 1:
        return 0.0
    if rates.link_bandwidth is None:
        raise ValueError("tensor_parallel takes a link_bandwidth")
    bytes_moved = 2 * (parts - 1) / parts * num_rows * shape.hidden_size * setup.dtype_bytes
    return 2 * shape.num_layers * (rates.collective_seconds + bytes_moved / rates.link_bandwidth)
