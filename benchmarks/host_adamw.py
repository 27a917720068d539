"""A step of AdamW on the host, as an offloaded optimiser makes it: torch's beside DeepSpeed's compiled one.

    TORCH_EXTENSIONS_DIR=/tmp/extensions python benchmarks/host_adamw.py [NUM_TENSORS] [NUM_THREADS]

100M fp32 parameters, steps of each in turn, medians. DeepSpeed compiles its operator first: a minute or more.
"""

from __future__ import annotations

import os
import statistics
import sys
import time

os.environ["DS_ACCELERATOR"] = "cpu"

import torch
from deepspeed.ops.adam import DeepSpeedCPUAdam

NUM_PARAMETERS = 100_000_000
NUM_STEPS = 9


def parameters(num_tensors: int) -> list[torch.nn.Parameter]:
    """Return weights with gradients."""
    found = []
    for _ in range(num_tensors):
        one = torch.nn.Parameter(torch.randn(NUM_PARAMETERS // num_tensors) * 0.02)
        one.grad = torch.randn_like(one) * 1e-3
        found.append(one)
    return found


def main(num_tensors: int, num_threads: int) -> None:
    """Print the seconds of a step, and their ratio."""
    torch.set_num_threads(num_threads)
    optimizers = {
        "torch, fused": torch.optim.AdamW(parameters(num_tensors), lr=1e-4, fused=True),
        "torch, foreach": torch.optim.AdamW(parameters(num_tensors), lr=1e-4, foreach=True),
        "DeepSpeedCPUAdam": DeepSpeedCPUAdam(parameters(num_tensors), lr=1e-4, adamw_mode=True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in optimizers}
    for step in range(NUM_STEPS + 1):
        for name, optimizer in optimizers.items():
            began = time.perf_counter()
            optimizer.step()
            if step:  # the first makes the states
                seconds[name].append(time.perf_counter() - began)
    compiled = statistics.median(seconds["DeepSpeedCPUAdam"])
    for name, found in seconds.items():
        median = statistics.median(found)
        print(f"{name:16} {median:.3f} s ({min(found):.3f} to {max(found):.3f}), {median / compiled:.2f}")


if __name__ == "__main__":
    given = [int(word) for word in sys.argv[1:]]
    main(*(given + [10, 2][len(given) :]))
