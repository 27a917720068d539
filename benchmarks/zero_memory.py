"""Model states beside what DeepSpeed's real engine holds: two CPU ranks, every storage counted.

A Llama of 8 million weights trains under each strategy. Printed are MB at each instant, measured / planned,
and the step's peak beside DeepSpeed's own estimate. The figures are bytes of storages, the same on every
machine; on a CPU device and host are one, so an offload's are the sum of both.

    python benchmarks/zero_memory.py
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "planner"))

from deepspeed_states import LORA, case, compared, measure

CASES = [
    case("ddp", "fp32"),
    case("ddp", "autocast"),
    case("zero1"),
    case("zero1", accumulation=2),
    case("zero2"),
    case("zero2", accumulation=2),
    case("zero2", optimizer="foreach"),
    case("zero2", "fp32"),
    case("zero2", zero={"reduce_bucket_size": 500_000_000}),
    case("zero2", zero={"overlap_comm": True}),
    case("zero2", zero={"contiguous_gradients": False}),
    case("zero2", model={"tie_word_embeddings": True}),
    case("zero2", zero={"offload_optimizer": {"device": "cpu", "pin_memory": False}}),
    case("zero2", lora=LORA),
    case("zero3"),
    case("zero3", "fp32"),
    case("zero3", zero={"stage3_max_reuse_distance": 2_000_000, "stage3_prefetch_bucket_size": 1_000_000}),
    case("zero3", zero={"stage3_prefetch_bucket_size": 0, "sub_group_size": 1_000_000}),
    case("zero3", lora=LORA),
]
INSTANTS = ("before the step", "forward", "after forward 0", "backward 0", "after backward", "step")
"""Of the step's first micro-step; `forward` and `backward` are peaks, with 0.1 to 0.2 MB of activations."""


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(CASES, Path(folder))
    print(f"| case | {' | '.join(INSTANTS)} | largest difference |")
    print("|---" * (len(INSTANTS) + 2) + "|")
    for found in measured:
        rows = compared(found)
        cells = [f"{rows[name][0] / 1e6:.2f} / {rows[name][1] / 1e6:.2f}" for name in INSTANTS]
        largest = max(abs(rows[name][1] / rows[name][0] - 1) for name in INSTANTS)
        print(f"| {_title(found['case'])} | {' | '.join(cells)} | {100 * largest:.2f} % |")
    print("\n| case | step, measured MB | planner MB | DeepSpeed's estimate MB |\n|---|---:|---:|---:|")
    for found in measured:
        estimate = _estimate(found)
        if estimate:
            seen, predicted = compared(found)["step"]
            cells = " | ".join(f"{size / 1e6:.2f}" for size in (seen, predicted, estimate))
            print(f"| {_title(found['case'])} | {cells} |")


def _title(case: dict[str, Any]) -> str:
    """Return what tells a case from the others."""
    parts = [case["strategy"], case["precision"]]
    if case["accumulation"] > 1:
        parts.append(f"{case['accumulation']} micro-steps")
    if case["optimizer"] != "fused":
        parts.append(case["optimizer"])
    if case["lora"]:
        parts.append("LoRA")
    if case["model"]["tie_word_embeddings"]:
        parts.append("tied")
    for name, value in case["zero"].items():
        if name == "offload_optimizer":
            parts.append("offload")
        elif (name, value) != ("reduce_bucket_size", 1_000_000):
            parts.append(f"{name} {value:_}" if type(value) is int else f"{name} {value}")
    return ", ".join(parts)


def _estimate(found: dict[str, Any]) -> int | None:
    """Return DeepSpeed's own estimate of a device; of device and host where it offloads."""
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    num_weights = sum(size for _, size, _ in found["weights"])
    largest = max(size for _, size, _ in found["weights"])
    offloads = "offload_optimizer" in found["case"]["zero"]
    if found["case"]["strategy"] == "zero2":
        host, device = estimate_zero2_model_states_mem_needs(num_weights, 2, cpu_offload=offloads)
        return int(device + (host / 2 if offloads else 0))
    if found["case"]["strategy"] == "zero3":
        return int(
            estimate_zero3_model_states_mem_needs(
                num_weights, largest, 2, cpu_offload=False, cpu_offload_params=False
            )[1]
        )
    return None


if __name__ == "__main__":
    main()
