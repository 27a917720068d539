"""The planner's formulas give the worked numbers, each named after its number in the list that we keep.

70e9 parameters, 80 layers, hidden width 8192: LLaMA-2 70B, as the source of the numbers counts it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest

from rest_em.planner import textbook
from rest_em.planner.hardware import SHIPPED, Gpu, load_gpus
from rest_em.planner.sampling import kv_bytes_per_token
from rest_em.planner.sampling_setup import SamplingSetup
from rest_em.planner.sampling_speed import Rates, step_seconds
from rest_em.planner.shapes import ModelShape
from rest_em.planner.states import model_states
from rest_em.planner.strategies import StateSetup, Strategy, ZeroSettings
from rest_em.planner.timing import TrainingWork, traffic_bytes, training_flops
from rest_em.planner.weights import Weight, Weights

P = 70 * 10**9
LAYERS, HIDDEN, TOKENS, BATCH = 80, 8192, 4096, 8
GIB = 2**30
GIGABIT = 1e9 / 8
"""Bytes a second."""


@pytest.fixture(scope="module")
def seed() -> Gpu:
    return load_gpus(SHIPPED)["seed_4090"]


@pytest.fixture(scope="module")
def h100() -> Gpu:
    return load_gpus(SHIPPED)["h100_sxm"]


# Memory


def test_m1_weights() -> None:
    assert textbook.weight_bytes(P) == 140 * 10**9


def test_m2_gradients() -> None:
    assert textbook.weight_bytes(P) == 140 * 10**9


def test_m3_optimizer_states() -> None:
    assert textbook.adam_bytes(P) == 840 * 10**9
    assert textbook.momentum_sgd_bytes(P) == 560 * 10**9


def test_m4_activations_under_selective_recomputation() -> None:
    exact = [
        textbook.megatron_activation_bytes(TOKENS, BATCH, HIDDEN, LAYERS, degree) for degree in (1, 2, 4, 8)
    ]
    # 4096·8·8192·80 = 21,474,836,480 values; x 34, 22, 16, 13
    assert exact == [730_144_440_320, 472_446_402_560, 343_597_383_680, 279_172_874_240]


def test_m5_training_in_all_and_the_cards_that_hold_it(seed: Gpu) -> None:
    activations = textbook.megatron_activation_bytes(TOKENS, BATCH, HIDDEN, LAYERS)
    total = textbook.mixed_precision_bytes(P) + activations
    assert total == 1_850_144_440_320
    assert textbook.devices_needed(total, 80e9) == 24
    assert textbook.devices_needed(total, seed.usable_bytes) == 78
    # An "80 GB" card is one of 80 GiB, of which torch sees 79.2; a "24 GB" one has 23.6 GiB.
    real = load_gpus(SHIPPED)
    assert textbook.devices_needed(total, real["a100_80"].usable_bytes) == 22
    assert textbook.devices_needed(total, real["rtx4090"].usable_bytes) == 74


def test_m6_inference_and_the_cards_that_hold_it(seed: Gpu) -> None:
    total = textbook.weight_bytes(P) + 40 * 10**9
    assert textbook.devices_needed(total, 80e9) == 3
    assert textbook.devices_needed(total, seed.usable_bytes) == 8


def test_m7_key_value_cache_without_and_with_grouped_queries() -> None:
    whole = textbook.kv_cache_bytes(LAYERS, HIDDEN, TOKENS, BATCH)
    assert whole == 85_899_345_920 == 80 * GIB
    assert textbook.kv_cache_bytes(LAYERS, 8 * 128, TOKENS, BATCH) == 10 * GIB


def test_m7_the_source_is_wrong_of_one_prompt_and_of_32() -> None:
    assert textbook.kv_cache_bytes(LAYERS, HIDDEN, TOKENS, 1) == 10 * GIB  # "5 GB"
    assert textbook.kv_cache_bytes(LAYERS, HIDDEN, TOKENS, 32) == 320 * GIB  # "160 GB"


def test_m9_hidden_states_of_inference() -> None:
    assert textbook.hidden_state_bytes(BATCH, TOKENS, HIDDEN) == GIB // 2


def test_m11_mixed_precision() -> None:
    assert textbook.mixed_precision_bytes(175 * 10**9) == 2_800 * 10**9


def test_m14_stages_of_zero() -> None:
    exact = [textbook.zero_state_bytes(7_500_000_000, 64, stage) for stage in (0, 1, 2, 3)]
    assert exact == [120e9, 31.40625e9, 16.640625e9, 1.875e9]
    assert exact[0] / exact[3] == 64  # "120x"


# Compute and time


def test_c1_training_flops_and_their_time() -> None:
    assert textbook.forward_flops(P, 1000) == 2 * P * 1000
    assert textbook.backward_flops(P, 1000) == 4 * P * 1000
    assert textbook.training_flops(P, 1000) == 6 * P * 1000
    # 6·70e9·1e6 = 4.2e17 FLOP; 8 devices at half of 312e12: 1.248e15 a second
    assert textbook.compute_seconds(4.2e17, 8, 156e12) == pytest.approx(336.538, abs=1e-3)


def test_c2_device_hours_of_llama_2() -> None:
    hours = 1.7e6
    assert hours / textbook.HOURS_A_YEAR == pytest.approx(194.1, abs=0.05)
    assert hours / textbook.HOURS_A_MONTH == pytest.approx(2361, abs=0.5)
    a100 = load_gpus(SHIPPED)["a100_80"]
    flops = textbook.training_flops(P, 2 * 10**12)
    share = textbook.utilization(flops, hours * textbook.SECONDS_AN_HOUR, a100.peak_flops)
    assert share == pytest.approx(0.440, abs=5e-4)


def test_c3_recomputation_from_the_start() -> None:
    assert textbook.recomputed_layers(LAYERS) == sum(range(1, 81)) == 3240
    assert textbook.recomputed_layers(LAYERS) / LAYERS == 40.5


def test_c4_a_stage_of_one_billion_parameters(seed: Gpu) -> None:
    flops = textbook.training_flops(10**9, BATCH * TOKENS)
    assert flops == 196_608 * 10**9
    seconds = textbook.compute_seconds(flops, 1, seed.peak_flops)
    assert seconds == pytest.approx(0.596, abs=5e-4)
    assert 80 * seconds == pytest.approx(47.7, abs=0.05)


def test_c5_micro_batches_that_a_pipeline_keeps() -> None:
    assert textbook.pipeline_stashes(80) == 159
    assert textbook.pipeline_stashes(8) == 15  # "16x": 2N for 2N - 1, as "160x" for 80 stages


def test_c7_what_inference_costs_and_the_cache_saves() -> None:
    assert textbook.forward_flops(P, 1) == 140 * 10**9
    saved = textbook.cached_projection_flops(HIDDEN, TOKENS, BATCH, LAYERS)
    assert saved == 640 * 2**40  # 4·2^26·2^12·2^3·80


# Roofline of generation


def test_l1_the_batch_that_balances_reading_and_computing(seed: Gpu, h100: Gpu) -> None:
    assert textbook.balance_batch(seed.peak_flops, seed.bandwidth) == 330
    assert textbook.balance_batch(h100.peak_flops, h100.bandwidth) == pytest.approx(295.2, abs=0.05)


def test_l2_decoding_a_small_batch(seed: Gpu) -> None:
    step = textbook.weight_reading_seconds(P, 8, seed.bandwidth)
    assert step == pytest.approx(17.5e-3)
    assert textbook.pipeline_token_seconds(step, 8) == pytest.approx(0.14)


def test_l3_decoding_a_large_batch(seed: Gpu) -> None:
    assert textbook.batch_decode_seconds(P, 1024, 8, seed.peak_flops) == pytest.approx(0.0543, abs=5e-5)


def test_l4_hops_of_a_pipeline_over_pcie(seed: Gpu) -> None:
    small, large = (textbook.hidden_state_bytes(size, 1, HIDDEN) for size in (8, 330))
    assert (small, large) == (131_072, 5_406_720)
    assert textbook.transfer_seconds(small, seed.link_bandwidth) == pytest.approx(4.1e-6, abs=5e-8)
    assert textbook.transfer_seconds(large, seed.link_bandwidth) == pytest.approx(0.169e-3, abs=5e-7)


def test_l5_hops_of_a_pipeline_over_ethernet() -> None:
    one, many = (
        textbook.transfer_seconds(textbook.hidden_state_bytes(size, 1, HIDDEN), GIGABIT) for size in (1, 330)
    )
    assert one == pytest.approx(0.131e-3, abs=5e-7)  # "0.25 ms"
    assert many == pytest.approx(43.3e-3, abs=5e-5)
    assert textbook.pipeline_token_seconds(0.0, 8, many) == pytest.approx(0.346, abs=5e-4)


def test_l6_what_a_hop_may_take(seed: Gpu) -> None:
    step = textbook.weight_reading_seconds(P, 8, seed.bandwidth)
    hop = textbook.hop_budget_seconds(5, textbook.pipeline_token_seconds(step, 8), 8)
    assert hop == pytest.approx(7.5e-3)
    batch = textbook.hop_batch(hop, HIDDEN, GIGABIT)
    assert batch == 57
    assert textbook.pipeline_tokens_per_second(batch, 8, 5) == 2280
    assert textbook.pipeline_tokens_per_second(60, 8, 5) == 2400


def test_l7_tensor_parallel_latency(seed: Gpu) -> None:
    transfers = textbook.tensor_parallel_seconds(LAYERS, 30e-6)
    assert transfers == pytest.approx(4.8e-3)
    step = transfers + textbook.weight_reading_seconds(P, 8, seed.bandwidth)
    assert step == pytest.approx(22.3e-3)
    assert 1 / step == pytest.approx(44.8, abs=0.05)


def test_l8_tensor_parallel_over_pcie(seed: Gpu) -> None:
    hop = textbook.transfer_seconds(textbook.hidden_state_bytes(330, 1, HIDDEN), seed.link_bandwidth)
    transfers = textbook.tensor_parallel_seconds(LAYERS, hop)
    weights = textbook.weight_reading_seconds(P, 8, seed.bandwidth)
    assert transfers == pytest.approx(27.03e-3, abs=5e-6)
    assert transfers + weights == pytest.approx(44.5e-3, abs=5e-5)
    assert textbook.overlapped_tokens_per_second(330, transfers, weights) == pytest.approx(12_207, abs=0.5)


def test_l9_tensor_parallel_over_nvlink(h100: Gpu) -> None:
    hop = textbook.transfer_seconds(textbook.hidden_state_bytes(295, 1, HIDDEN), h100.link_bandwidth)
    transfers = textbook.tensor_parallel_seconds(LAYERS, hop)
    weights = textbook.weight_reading_seconds(P, 8, h100.bandwidth)
    assert transfers + weights == pytest.approx(6.94e-3, abs=5e-6)
    assert 1 / (transfers + weights) == pytest.approx(144.0, abs=0.05)
    assert textbook.overlapped_tokens_per_second(295, transfers, weights) == pytest.approx(56_471, abs=0.5)


# Communication


def test_x1_ring_all_reduce() -> None:
    gathered, reduced = textbook.reduce_scatter_bytes(8e9, 8), textbook.all_reduce_bytes(8e9, 8)
    assert (gathered, reduced) == (7e9, 14e9)
    assert textbook.all_reduce_bytes(1.0, 10**6) == pytest.approx(2.0, abs=1e-5)  # towards 2Φ
    assert textbook.all_reduce_bytes(8e9, 1) == 0


def test_x2_traffic_of_the_stages_of_zero() -> None:
    traffic = [textbook.zero_traffic_bytes(8e9, 8, stage) for stage in (0, 1, 2, 3)]
    assert traffic == [14e9, 14e9, 14e9, 21e9]
    assert traffic[3] / traffic[2] == 1.5


def test_x3_gradients_over_pcie(seed: Gpu) -> None:
    once = textbook.transfer_seconds(
        textbook.weight_bytes(10**9, textbook.FP32_BYTES), seed.host_link_bandwidth
    )
    assert (once, 2 * once) == (0.125, 0.25)


def test_x4_the_largest_tensor_parallel_degree(seed: Gpu, h100: Gpu) -> None:
    gpus = load_gpus(SHIPPED)

    def degree(gpu: Gpu) -> float:
        return textbook.largest_tensor_parallel(HIDDEN, gpu.peak_flops, gpu.link_bandwidth)

    assert degree(seed) == pytest.approx(2.38, abs=0.005)
    assert degree(h100) == pytest.approx(11.2, abs=0.05)
    assert degree(gpus["h800"]) == pytest.approx(4.97, abs=0.005)
    # The source gives the PCIe card the SXM one's rate: 1.59; its own is lower, and the degree higher.
    pcie = gpus["h100_pcie"]
    with_sxm_rate = textbook.largest_tensor_parallel(HIDDEN, h100.peak_flops, pcie.link_bandwidth)
    assert with_sxm_rate == pytest.approx(1.59, abs=0.005)
    assert degree(pcie) == pytest.approx(2.08, abs=0.005)


def test_x4_the_source_is_wrong_of_what_an_h100_computes_a_byte_of_its_link(h100: Gpu) -> None:
    assert h100.peak_flops / h100.link_bandwidth == pytest.approx(2198, abs=0.5)  # "1100"


# Money and failures


def test_f1_tokens_a_dollar_of_eight_4090() -> None:
    bought = textbook.amortized_dollars_per_hour(40_000, 3, 0.0)
    assert bought == pytest.approx(1.522, abs=5e-4)  # of 2.5 the rest, 0.978, is power and rack
    dollars = textbook.amortized_dollars_per_hour(40_000, 3, 2.5 - bought)
    assert textbook.tokens_per_dollar(12_207, dollars) == pytest.approx(17.6e6, abs=0.05e6)


def test_f2_tokens_a_dollar_of_eight_h100() -> None:
    assert textbook.tokens_per_dollar(56_000, 13.4) == pytest.approx(15.0e6, abs=0.05e6)
    assert textbook.tokens_per_dollar(56_471, 13.4) == pytest.approx(15.2e6, abs=0.05e6)


def test_f3_tokens_a_dollar_of_a_cheap_cluster() -> None:
    assert textbook.amortized_dollars_per_hour(20_000, 3, 0.739) == pytest.approx(1.5, abs=5e-4)
    assert textbook.tokens_per_dollar(44e6 / 3600, 1.5) == pytest.approx(29.3e6, abs=0.05e6)


def test_f4_failures_of_2048_devices() -> None:
    month = textbook.HOURS_A_MONTH * textbook.SECONDS_AN_HOUR
    mtbf = textbook.cluster_mtbf_seconds(month, 2048)
    assert mtbf / 60 == pytest.approx(21.1, abs=0.05)
    assert textbook.lost_fraction(mtbf, lost_seconds=0, recovery_seconds=600) == pytest.approx(
        0.474, abs=5e-4
    )


# The same rows through what a plan is made of


def _llama_70b(num_kv_heads: int) -> ModelShape:
    return ModelShape(
        family="llama", num_layers=LAYERS, hidden_size=HIDDEN, num_heads=64, num_kv_heads=num_kv_heads,
        head_dim=128, rotary_dim=128, intermediate_size=28672, vocab_size=32000, is_tied=False,
        max_positions=4096,
    )  # fmt: skip


def test_m7_in_a_plan() -> None:
    whole, grouped = (kv_bytes_per_token(_llama_70b(number), 2) * TOKENS * BATCH for number in (64, 8))
    assert whole == textbook.kv_cache_bytes(LAYERS, HIDDEN, TOKENS, BATCH)
    assert grouped == 10 * GIB


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_m14_in_a_plan(stage: Literal[1, 2, 3]) -> None:
    parameters, ranks = 7_500_000_000, 64
    weights = Weights((Weight("layers.mlp.up_proj.weight", parameters // 75, count=75),))
    strategies: dict[int, Strategy] = {1: "zero1", 2: "zero2", 3: "zero3"}
    zero = ZeroSettings(reduce_bucket_size=0)
    states = model_states(
        weights,
        StateSetup(strategy=strategies[stage], num_ranks=ranks, precision="bf16", zero=zero),
    )
    held = sum(states.forward.values())
    gradients = {1: 2 * parameters, 2: 2 * parameters / ranks, 3: 0}[
        stage
    ]  # of stage 3 they are always there
    expected = textbook.zero_state_bytes(parameters, ranks, stage)
    assert held + gradients == pytest.approx(expected, rel=0.002)


def test_c1_x1_and_x2_in_a_plan() -> None:
    work = TrainingWork(
        num_parameters=P, active_parameters=P, trainable_parameters=P, num_layers=LAYERS, attention_width=0,
        num_sequences=BATCH, num_tokens=TOKENS,
    )  # fmt: skip
    assert training_flops(work) == textbook.training_flops(P, BATCH * TOKENS)
    for strategy, stage in (("zero1", 1), ("zero2", 2), ("zero3", 3)):
        sent = traffic_bytes(replace(work, strategy=strategy), 64)
        assert sent == textbook.zero_traffic_bytes(2 * P, 64, stage)
    assert traffic_bytes(work, 64) == textbook.all_reduce_bytes(4 * P, 64)  # DDP's gradients are float32


def test_l2_and_l7_in_a_plan(seed: Gpu) -> None:
    setup = SamplingSetup(
        weight_bytes=2 * P, active_weight_bytes=2 * P, dtype_bytes=2, num_samples=1, max_rows=1, unit_size=1,
        longest_prompt=1, mean_prompt=1.0, common_head=0, max_new_tokens=1, mean_new_tokens=1.0,
        temperature=0.0, top_k=None, top_p=1.0, engine="server", tensor_parallel=8,
    )  # fmt: skip
    rates = Rates(flops=seed.peak_flops, bandwidth=seed.bandwidth, link_bandwidth=32e9, bandwidth_share=1.0)
    step = step_seconds(_llama_70b(8), setup, rates, num_rows=1, num_tokens=0)
    assert step.bandwidth == pytest.approx(17.5e-3, rel=0.005)  # an embedding that is looked up is not read
    transfer = textbook.transfer_seconds(textbook.all_reduce_bytes(2 * HIDDEN, 8), 32e9, 30e-6)
    assert step.communication == pytest.approx(textbook.tensor_parallel_seconds(LAYERS, transfer))
