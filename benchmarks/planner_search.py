"""How long a search takes, in a process that has planned nothing before.

    python benchmarks/planner_search.py

Qwen2.5-7B, GSM8K's 7,473 problems with 32 samples each, full fine-tuning of 256 examples a step, on one node
of H100 and on up to 64 of them. A candidate is a way to do the E-step or the M-step on some devices whose
memory was looked at in all its instants and whose time was costed; a configuration is a pair of them. Prints
markdown.
"""

from __future__ import annotations

import subprocess
import sys
import time

from rest_em.planner.hardware import Cluster, find_gpu, load_gpus
from rest_em.planner.plan import Plan, plan_sampling, plan_training, weight_bytes
from rest_em.planner.sampling_setup import SamplingSetup
from rest_em.planner.search import search
from rest_em.planner.shapes import ModelShape, shape_of
from rest_em.planner.training import TrainingSetup
from rest_em.planner.workload import Lengths, Workload

QWEN = {
    "model_type": "qwen2",
    "num_hidden_layers": 28,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": False,
}
PROMPT = Lengths(longest=400, shortest=50, mean=180.0, head=90)
NODES = {"one node": (1,), "up to 64 nodes": (1, 2, 4, 8, 16, 32, 64)}
PROCESSES = 5
"""The best of so many is told: others use the machine, too."""


def main() -> None:
    """Time each search in processes of its own."""
    print("| devices | E-steps | M-steps | candidates | configurations | seconds | candidates a second |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name in NODES:
        done = [_measured(name) for _ in range(PROCESSES)]
        sampling, training, pairs, seconds = min(done, key=lambda one: one[3])
        number = sampling + training
        print(
            f"| {name} | {sampling:,.0f} | {training:,.0f} | {number:,.0f} | {pairs:,.0f} | {seconds:.2f} | "
            f"{number / seconds:,.0f} |"
        )


def _measured(name: str) -> tuple[float, float, float, float]:
    said = subprocess.run([sys.executable, __file__, name], capture_output=True, text=True, check=True).stdout
    sampling, training, pairs, seconds = map(float, said.split())
    return sampling, training, pairs, seconds


def _search(name: str) -> None:
    plan, clusters = _plan(shape_of(QWEN)), _clusters(NODES[name])
    began = time.perf_counter()
    found = search(plan, clusters)
    print(found.num_sampling, found.num_training, found.num_pairs, time.perf_counter() - began)


def _clusters(nodes: tuple[int, ...]) -> list[Cluster]:
    gpu = find_gpu("h100_sxm", load_gpus())
    return [Cluster(gpu=gpu, num_gpus=gpus, num_nodes=number) for number in nodes for gpus in (1, 2, 4, 8)]


def _plan(shape: ModelShape) -> Plan:
    """Return the plan around which the search goes: its own time is not counted."""
    cluster = _clusters((1,))[0]
    workload = Workload(7473, 747, 1319, PROMPT, PROMPT, mean_new_tokens=200.0, success_rate=0.5)
    total, active = weight_bytes(shape, 2)
    sampling = SamplingSetup(
        weight_bytes=total,
        active_weight_bytes=active,
        dtype_bytes=2,
        num_samples=32,
        max_rows=128,
        unit_size=256,
        longest_prompt=400,
        mean_prompt=180.0,
        common_head=90,
        max_new_tokens=512,
        mean_new_tokens=200.0,
        temperature=0.7,
        top_k=40,
    )
    training = TrainingSetup(
        method="full",
        strategy="single",
        num_rows=8,
        global_batch_size=256,
        longest=913,
        mean_length=400.0,
        num_kept=864,
        num_solution_tokens=513,
    )
    num_examples = workload.num_examples(32, 10)
    return Plan(
        model="Qwen2.5-7B",
        shape=shape,
        cluster=cluster,
        workload=workload,
        sampling=plan_sampling(shape, sampling, cluster, workload),
        training=plan_training(shape, training, cluster, num_examples=num_examples, num_epochs=3),
        num_iterations=3,
        evaluation_share=0.1,
        base_share=0.1,
        save_seconds=900.0,
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        _search(sys.argv[1])
    else:
        main()
