"""Times of steps, worked by hand on a device of round numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rest_em.planner.hardware import Cluster, Gpu
from rest_em.planner.timing import (
    Efficiency,
    TrainingWork,
    offload_bytes,
    traffic_bytes,
    training_flops,
    training_seconds,
)

GPU = Gpu(
    name="round",
    memory_bytes=100 * 10**9,
    usable_bytes=100 * 10**9,
    bandwidth=1e12,
    bf16_flops=100e12,
    fp32_flops=None,
    link="round",
    link_bandwidth=100e9,
    has_peer_access=True,
    host_link_bandwidth=50e9,
    source="the test",
)
ALONE = Cluster(gpu=GPU)
FOUR = Cluster(gpu=GPU, num_gpus=4)
ALL = Efficiency(compute=0.5, bandwidth=1.0, launch_seconds=0.0)
WORK = TrainingWork(
    num_parameters=10**9,
    active_parameters=10**9,
    trainable_parameters=10**9,
    num_layers=10,
    attention_width=1000,
    num_sequences=2,
    num_tokens=1000,
)
LORA = replace(WORK, trainable_parameters=10**7)


@pytest.mark.parametrize(
    ("work", "of_weights", "of_attention"),
    [
        (WORK, 6, 12),
        (replace(WORK, recomputes=True), 8, 16),
        (LORA, 4, 12),
        (replace(LORA, recomputes=True), 6, 16),
    ],
)
def test_flops_of_a_step_are_of_its_weights_and_of_its_attention(
    work: TrainingWork, of_weights: int, of_attention: int
) -> None:
    # 1e9 parameters x 2000 tokens = 2e12; 10 layers x 1000² x 1000 x 2 sequences = 2e10
    assert training_flops(replace(work, causal=False)) == of_weights * 2e12 + of_attention * 2e10
    assert training_flops(work) == of_weights * 2e12 + of_attention * 1e10
    assert training_flops(replace(work, num_micro_batches=3)) == 3 * training_flops(work)


@pytest.mark.parametrize(
    ("strategy", "one", "three"),
    # 2e9 bytes of bfloat16, 4e9 of float32; each gather or scatter sends 3/4 of a buffer
    [("ddp", 6e9, 6e9), ("zero1", 3e9, 3e9), ("zero2", 3e9, 6e9), ("zero3", 4.5e9, 13.5e9)],
)
def test_traffic_by_strategy_and_micro_batches(strategy: str, one: float, three: float) -> None:
    work = replace(WORK, strategy=strategy)
    assert traffic_bytes(work, 4) == one
    assert traffic_bytes(replace(work, num_micro_batches=3), 4) == three
    assert traffic_bytes(work, 1) == 0


def test_frozen_weights_move_in_zero3_alone() -> None:
    # adapters are 2e7 bytes of bfloat16, the weights 2e9
    assert traffic_bytes(replace(LORA, strategy="zero2"), 4) == 2 * 2e7 * 0.75
    assert traffic_bytes(replace(LORA, strategy="zero3"), 4) == (2 * 2e9 + 2e7) * 0.75


def test_a_step_is_its_compute_and_its_optimiser() -> None:
    found = training_seconds(ALONE, WORK, ALL)
    # 12.12e12 FLOP at 50e12 a second; 28e9 bytes at 1e12
    assert found.compute == pytest.approx(0.2424)
    assert found.optimiser == pytest.approx(0.028)
    assert found.total == pytest.approx(0.2704)
    assert (found.communication, found.offload, found.bound_by) == (0, 0, "compute")


def test_communication_shows_only_where_it_is_longer_than_compute() -> None:
    work = replace(WORK, strategy="zero3")
    fast = training_seconds(FOUR, work, ALL)
    # 4.5e9 bytes at 100e9 are hidden; a quarter of the optimiser's 28 ms is not
    assert fast.communication == pytest.approx(0.045)
    assert fast.total == pytest.approx(0.2424 + 0.007)
    slow = training_seconds(replace(FOUR, gpu=replace(GPU, link_bandwidth=10e9)), work, ALL)
    assert slow.total == pytest.approx(0.45 + 0.007)
    assert slow.bound_by == "communication"


def test_an_offloaded_optimiser_goes_over_the_host_link_and_through_the_hosts_memory() -> None:
    work = replace(WORK, strategy="zero2", offloads_optimiser=True)
    assert offload_bytes(work, 4) == 2 * 2e9 / 4
    found = training_seconds(FOUR, work, ALL)
    # 1e9 bytes at 50e9; 28e9 bytes of the whole node at 100e9, which the four devices share
    assert found.offload == pytest.approx(0.02)
    assert found.optimiser == pytest.approx(0.28)
    assert found.total == pytest.approx(0.2424 + 0.02 + 0.28)
    two_nodes = replace(FOUR, num_gpus=2, num_nodes=2)
    assert training_seconds(two_nodes, work, ALL).optimiser == pytest.approx(0.14)


def test_offloaded_weights_go_up_twice_a_micro_batch() -> None:
    work = replace(
        WORK, strategy="zero3", offloads_optimiser=True, offloads_parameters=True, num_micro_batches=3
    )
    # gradients down 3 x 0.5e9, weights up 2 x 3 x 0.5e9
    assert offload_bytes(work, 4) == 4.5e9


def test_launches_are_the_floor_of_a_small_step() -> None:
    small = replace(WORK, active_parameters=10**6, num_sequences=1, num_tokens=10, recomputes=True)
    found = training_seconds(ALONE, small, replace(ALL, launch_seconds=1e-5))
    assert found.launches == pytest.approx(4 * 40 * 10 * 1e-5)
    assert found.total == pytest.approx(0.016 + 0.028)


def test_float32_and_a_processor_have_rates_of_their_own() -> None:
    exact = replace(GPU, fp32_flops=20e12)
    single = replace(WORK, itemsize=4)
    assert training_seconds(Cluster(gpu=exact), single, ALL).compute == pytest.approx(0.2424 * 5)
    assert training_seconds(ALONE, single, ALL).compute == pytest.approx(0.2424 * 2)  # nothing is known of it
    slow, fast = (training_seconds(Cluster(gpu=replace(GPU, name=name)), WORK) for name in ("round", "cpu"))
    assert slow.compute / fast.compute == pytest.approx(0.75 / 0.40)
