"""The closed formulas of memory, compute, communication, money and failures, as textbooks give them.

They know nothing of libraries: what Hugging Face and DeepSpeed really hold is left to the planner's other
modules, which begin from these. Bytes and FLOP are exact where they are whole numbers; rates are a second.
tests/planner/test_vectors.py works each of them by hand.

    P parameters, D tokens, N devices, L layers, h hidden width, s tokens a sequence, b sequences a batch
"""

from __future__ import annotations

import math
from typing import Literal

ZeroStage = Literal[0, 1, 2, 3]
"""0 is plain data parallelism (DDP)."""

SECONDS_AN_HOUR = 3600
HOURS_A_YEAR = 24 * 365
HOURS_A_MONTH = 24 * 30
BF16_BYTES = 2
FP32_BYTES = 4
ADAM_BYTES = 12
"""A parameter: the float32 master weight, momentum and variance."""
MOMENTUM_SGD_BYTES = 8
"""A parameter: the float32 master weight and the momentum."""


# Memory


def weight_bytes(num_parameters: int, bytes_each: int = BF16_BYTES) -> int:
    """Return the bytes of the weights, and as well of their gradients: 2P in bfloat16."""
    return bytes_each * num_parameters


def adam_bytes(num_parameters: int) -> int:
    """Return the bytes of Adam's state in mixed precision, 12P.

    Source: Rajbhandari et al. 2020, ZeRO, section 3.1.
    """
    return ADAM_BYTES * num_parameters


def momentum_sgd_bytes(num_parameters: int) -> int:
    """Return the bytes of the state of SGD with momentum in mixed precision, 8P."""
    return MOMENTUM_SGD_BYTES * num_parameters


def mixed_precision_bytes(num_parameters: int) -> int:
    """Return the bytes of weights, gradients and Adam's state together, 16P.

    Source: Rajbhandari et al. 2020, ZeRO, section 3.1.
    """
    return 2 * weight_bytes(num_parameters) + adam_bytes(num_parameters)


def zero_state_bytes(num_parameters: int, num_devices: int, stage: ZeroStage) -> float:
    """Return one device's bytes of weights, gradients and Adam's state.

    16P without ZeRO, 4P + 12P/N of stage 1, 2P + 14P/N of stage 2, 16P/N of stage 3.

    Source: Rajbhandari et al. 2020, ZeRO, figure 1.
    """
    whole = {0: 16, 1: 4, 2: 2, 3: 0}[stage]
    return num_parameters * (whole + (16 - whole) / num_devices)


def megatron_activation_bytes(
    num_tokens: int, num_sequences: int, hidden_size: int, num_layers: int, tensor_parallel: int = 1
) -> float:
    """Return what selective recomputation keeps for the backward pass, s·b·h·L·(10 + 24/tp) bytes.

    Of a GPT's layer, whose MLP is 4h wide, with dropout; no model of today keeps just this.

    Args:
        num_tokens: of each sequence.

    Source: Korthikanti et al. 2022, Reducing activation recomputation, table 2.
    """
    values = num_tokens * num_sequences * hidden_size * num_layers
    return values * (10 + 24 / tensor_parallel)


def kv_cache_bytes(num_layers: int, kv_width: int, num_tokens: int, num_sequences: int) -> int:
    """Return the bytes of the keys and values of all layers and tokens, in bfloat16.

    Args:
        kv_width: KV heads x their width: the hidden width without grouped queries.
        num_tokens: of each sequence, prompt and solution.

    Source: Pope et al. 2022, section 2.
    """
    return 2 * num_layers * kv_width * num_tokens * num_sequences * BF16_BYTES


def hidden_state_bytes(num_sequences: int, num_tokens: int, hidden_size: int) -> int:
    """Return the bytes of one hidden state in bfloat16: what inference holds between two layers."""
    return num_sequences * num_tokens * hidden_size * BF16_BYTES


def devices_needed(num_bytes: float, bytes_a_device: float) -> int:
    """Return how many devices hold so much, if it divides evenly."""
    return math.ceil(num_bytes / bytes_a_device)


def pipeline_stashes(num_stages: int) -> int:
    """Return for how many micro-batches the first stage of a full pipeline keeps activations, 2N - 1.

    A micro-batch needs N - 1 steps to the last stage, one there and N - 1 back.
    """
    return 2 * num_stages - 1


# Compute


def forward_flops(num_parameters: int, num_tokens: int) -> int:
    """Return 2PD: a multiplication and an addition for each weight and token; attention is not counted.

    Source: Kaplan et al. 2020, section 2.1.
    """
    return 2 * num_parameters * num_tokens


def backward_flops(num_parameters: int, num_tokens: int) -> int:
    """Return 4PD: the gradients of the inputs and those of the weights cost a forward pass each."""
    return 4 * num_parameters * num_tokens


def training_flops(num_parameters: int, num_tokens: int) -> int:
    """Return 6PD, forward and backward.

    Source: Kaplan et al. 2020, section 2.1.
    """
    return forward_flops(num_parameters, num_tokens) + backward_flops(num_parameters, num_tokens)


def compute_seconds(flops: float, num_devices: int, achieved_flops: float) -> float:
    """Return the time of a number of FLOP.

    Args:
        achieved_flops: FLOP a second of each device: its peak x what of it is reached.
    """
    return flops / (num_devices * achieved_flops)


def utilization(flops: float, device_seconds: float, peak_flops: float) -> float:
    """Return the share of the devices' peak that was reached.

    Args:
        device_seconds: the time of all devices together.

    Source: Chowdhery et al. 2022, PaLM, appendix B: model FLOPs utilization.
    """
    return flops / (device_seconds * peak_flops)


def recomputed_layers(num_layers: int) -> int:
    """Return how many layers' forward passes a backward pass costs that recomputes each from the start.

    1 + ... + L = L(L + 1)/2.
    """
    return num_layers * (num_layers + 1) // 2


def cached_projection_flops(hidden_size: int, num_tokens: int, num_sequences: int, num_layers: int) -> int:
    """Return the FLOP that a KV cache saves in one decode step, 4h² a token and layer.

    The projections to keys and values of all earlier tokens, 2h² FLOP each, without grouped queries.
    """
    return 4 * hidden_size**2 * num_tokens * num_sequences * num_layers


# The roofline of generation


def balance_batch(peak_flops: float, bandwidth: float) -> float:
    """Return the batch at which a decode step's FLOP take as long as reading the weights.

    2P·b/peak = 2P/bandwidth, with weights in bfloat16: b is the device's FLOP a byte.
    """
    return peak_flops / bandwidth


def weight_reading_seconds(num_parameters: int, num_devices: int, bandwidth: float) -> float:
    """Return a decode step's time in a small batch: to read 2P bytes of weights that are split evenly."""
    return weight_bytes(num_parameters) / num_devices / bandwidth


def batch_decode_seconds(
    num_parameters: int, num_sequences: int, num_devices: int, peak_flops: float
) -> float:
    """Return a decode step's time in a large batch: 2P FLOP a sequence, split evenly."""
    return compute_seconds(forward_flops(num_parameters, num_sequences), num_devices, peak_flops)


def transfer_seconds(num_bytes: float, link_bandwidth: float, latency_seconds: float = 0.0) -> float:
    """Return the time of one transfer over a link.

    Args:
        link_bandwidth: bytes a second, one way.
    """
    return latency_seconds + num_bytes / link_bandwidth


def pipeline_token_seconds(stage_seconds: float, num_stages: int, hop_seconds: float = 0.0) -> float:
    """Return the time from a token to its next through a pipeline with a transfer behind each stage."""
    return num_stages * (stage_seconds + hop_seconds)


def hop_budget_seconds(tokens_per_second: float, compute_seconds_a_token: float, num_hops: int) -> float:
    """Return how long each hop of a pipeline may take for a sequence to get so many tokens a second."""
    return (1 / tokens_per_second - compute_seconds_a_token) / num_hops


def hop_batch(hop_seconds: float, hidden_size: int, link_bandwidth: float) -> int:
    """Return the most sequences whose hidden states of one token cross a link in a time."""
    return math.floor(hop_seconds * link_bandwidth / hidden_state_bytes(1, 1, hidden_size))


def pipeline_tokens_per_second(num_sequences: int, num_stages: int, tokens_per_second: float) -> float:
    """Return what a full pipeline gives: a batch in each stage.

    Args:
        num_sequences: in each stage.
        tokens_per_second: of each sequence.
    """
    return num_sequences * num_stages * tokens_per_second


def tensor_parallel_seconds(num_layers: int, transfer: float) -> float:
    """Return a decode step's time in transfers: two a layer, behind attention and MLP.

    Args:
        transfer: seconds of each.

    Source: Shoeybi et al. 2019, Megatron-LM, section 3.
    """
    return 2 * num_layers * transfer


def overlapped_tokens_per_second(num_sequences: int, *seconds: float) -> float:
    """Return what a batch gives where the parts of its steps overlap: the longest counts."""
    return num_sequences / max(seconds)


# Communication


def reduce_scatter_bytes(num_bytes: float, num_devices: int) -> float:
    """Return what each device sends in a ring's reduce-scatter, or all-gather, of a buffer: Φ(N-1)/N.

    Args:
        num_bytes: of the whole buffer.
    """
    return num_bytes * (num_devices - 1) / num_devices


def all_reduce_bytes(num_bytes: float, num_devices: int) -> float:
    """Return what each device sends in a ring's all-reduce of a buffer, 2Φ(N-1)/N.

    A reduce-scatter and an all-gather. A parameter server moves as much, but all of it through one link.

    Source: Patarasu and Yuan 2009, Bandwidth optimal all-reduce algorithms.
    """
    return 2 * reduce_scatter_bytes(num_bytes, num_devices)


def zero_traffic_bytes(num_bytes: float, num_devices: int, stage: ZeroStage) -> float:
    """Return what each device sends in a step of data parallelism.

    As much as an all-reduce up to stage 2; 1.5 times that in stage 3, which gathers the weights twice.

    Args:
        num_bytes: of the weights, and as many of the gradients.

    Source: Rajbhandari et al. 2020, ZeRO, section 7.
    """
    return (3 if stage == 3 else 2) * reduce_scatter_bytes(num_bytes, num_devices)


def largest_tensor_parallel(
    hidden_size: int, peak_flops: float, link_bandwidth: float, bytes_each: int = BF16_BYTES
) -> float:
    """Return the degree up to which tensor-parallel training is bound by compute, not by the link.

    2·3·(h/tp) FLOP for each value sent >= bytes x FLOP a byte of the link: tp = 6h/(bytes x peak / link).

    Args:
        link_bandwidth: bytes a second, one way.
    """
    return 6 * hidden_size / (bytes_each * peak_flops / link_bandwidth)


# Money and failures


def amortized_dollars_per_hour(price_dollars: float, years: float, running_dollars_per_hour: float) -> float:
    """Return what a bought machine costs an hour.

    Args:
        years: in which it is written off, running all the time.
        running_dollars_per_hour: power, rack and the like.
    """
    return price_dollars / (years * HOURS_A_YEAR) + running_dollars_per_hour


def tokens_per_dollar(tokens_per_second: float, dollars_per_hour: float) -> float:
    """Return how many tokens a dollar buys."""
    return tokens_per_second * SECONDS_AN_HOUR / dollars_per_hour


def cluster_mtbf_seconds(device_mtbf_seconds: float, num_devices: int) -> float:
    """Return the mean time between failures of any of the devices, which fail independently."""
    return device_mtbf_seconds / num_devices


def checkpoint_interval_seconds(checkpoint_seconds: float, mtbf_seconds: float) -> float:
    """Return the interval between checkpoints that loses the least time, sqrt(2·t·MTBF).

    Good where a checkpoint takes much less than the MTBF.

    Source: Young 1974; Daly 2006, of higher order.
    """
    return math.sqrt(2 * checkpoint_seconds * mtbf_seconds)


def lost_fraction(
    mtbf_seconds: float,
    *,
    lost_seconds: float,
    recovery_seconds: float,
    checkpoint_seconds: float = 0.0,
    interval_seconds: float = math.inf,
) -> float:
    """Return the expected share of time that failures and checkpoints take, at most 1.

    (lost + recovery)/MTBF + checkpoint/interval: of first order, good where it is small.

    Args:
        lost_seconds: work that a failure undoes, on average.
        recovery_seconds: from a failure until work goes on.
        interval_seconds: from checkpoint to checkpoint; infinite: there are none.
    """
    failures = (lost_seconds + recovery_seconds) / mtbf_seconds
    return min(1.0, failures + checkpoint_seconds / interval_seconds)
