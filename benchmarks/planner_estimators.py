"""Training memory as rest_em plans it, beside a trace, DeepSpeed's estimators and accelerate's
estimate-memory.

    python benchmarks/planner_estimators.py

One device and full fine-tuning with AdamW; bf16 under DeepSpeed (ZeRO-2 on one rank, so that its estimator
has no less to say), no weights are downloaded: models are made on `meta` from the configurations below. The
trace is of the real class on fake tensors; weights, gradients and optimiser states are added to it as they
are held. Prints markdown.
"""

from __future__ import annotations

import contextlib
import io
import logging

import torch
from accelerate.commands.estimate import estimate_training_usage
from accelerate.utils import calculate_maximum_sizes
from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from rest_em.planner.hardware import Cluster, find_gpu, load_gpus
from rest_em.planner.inventory import weights_of
from rest_em.planner.shapes import shape_of
from rest_em.planner.training import TrainingSetup, training_memory
from rest_em.tracing import trace_step

GIB = 2**30
CASES = {
    "Llama-3.2-1B": {
        "model_type": "llama",
        "num_hidden_layers": 16,
        "hidden_size": 2048,
        "head_dim": 64,
        "intermediate_size": 8192,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "tie_word_embeddings": True,
    },
    "Qwen2.5-7B": {
        "model_type": "qwen2",
        "num_hidden_layers": 28,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "tie_word_embeddings": False,
    },
    "Gemma-2-2B": {
        "model_type": "gemma2",
        "num_hidden_layers": 26,
        "hidden_size": 2304,
        "head_dim": 256,
        "intermediate_size": 9216,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "vocab_size": 256000,
        "tie_word_embeddings": True,
    },
}
"""Shapes as their publishers give them."""
BATCHES = ((1, 1024, False), (4, 2048, False), (4, 2048, True))
"""Rows, tokens of a row, checkpointing."""


def line(name: str, config: PretrainedConfig, num_rows: int, length: int, *, is_checkpointed: bool) -> str:
    """Return one row of the table."""
    shape = shape_of(config.to_dict())
    setup = TrainingSetup(
        method="full",
        strategy="single",
        num_rows=num_rows,
        global_batch_size=num_rows,
        longest=length,
        mean_length=float(length),
        num_kept=length,
        num_solution_tokens=length - 1,
        precision="autocast",
        is_checkpointed=is_checkpointed,
    )
    planned = training_memory(shape, setup, Cluster(gpu=find_gpu("h200", load_gpus()))).peak
    meter = trace_step(config, setup.step)
    # Fused AdamW steps in place; the trace's own step is foreach's, so its phase is left out.
    traced = max(meter.peaks["forward"], meter.peaks["backward"])
    total = weights_of(shape).num_elements
    deepspeed = estimate_zero2_model_states_mem_needs(total, num_gpus_per_node=1, cpu_offload=False)[1]
    with torch.device("meta"), contextlib.redirect_stdout(io.StringIO()):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    total_bytes, _ = calculate_maximum_sizes(model)
    accelerate = max(estimate_training_usage(total_bytes, "bfloat16").values())
    figures = (planned.total_bytes, traced, deepspeed, accelerate)
    cells = [f"{one / GIB:.2f}" for one in figures]
    errors = [f"{100 * (one / traced - 1):+.1f} %" for one in figures if one is not traced]
    checkpointing = "yes" if is_checkpointed else "no"
    return (
        f"| {name} | {num_rows} x {length} | {checkpointing} | {cells[1]} | {cells[0]} ({errors[0]}) | "
        f"{cells[2]} ({errors[1]}) | {cells[3]} ({errors[2]}) |"
    )


def main() -> None:
    """Print the table."""
    logging.disable(logging.WARNING)
    print("| model | batch | checkpointing | traced, GiB | rest_em plan | DeepSpeed | accelerate |")
    print("|---|---|---|---:|---:|---:|---:|")
    for name, values in CASES.items():
        config = AutoConfig.for_model(**values)
        for num_rows, length, is_checkpointed in BATCHES:
            print(line(name, config, num_rows, length, is_checkpointed=is_checkpointed), flush=True)


if __name__ == "__main__":
    main()
