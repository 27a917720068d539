"""Predicted against measured on the GPU at hand: `make bench-planner`.

    python benchmarks/planner_gpu.py [--quick]

Sweeps models of few layers: full and LoRA, checkpointing, batch and length, under autocast and with the
M-step's own loss. Prints allocated and reserved peaks beside the plan, and the median and worst errors; the
exit status is 1 if one is called fitting and does not fit. The E-step and several devices are left out.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import statistics
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rest_em.planner.hardware import Cluster, Gpu
from rest_em.planner.layers import Adapter
from rest_em.planner.shapes import ModelShape, shape_of
from rest_em.planner.training import TrainingSetup, training_memory
from rest_em.training.loss import solution_loss

GIB = 2**30
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 2048, "intermediate_size": 8192, "vocab_size": 128256, "head_dim": 64,
        "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": True},
    "qwen2": {"hidden_size": 1536, "intermediate_size": 8960, "vocab_size": 151936,
        "num_attention_heads": 12, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "qwen3": {"hidden_size": 2048, "intermediate_size": 6144, "vocab_size": 151936, "head_dim": 128,
        "num_attention_heads": 16, "num_key_value_heads": 8, "tie_word_embeddings": False},
    "gemma": {"hidden_size": 2048, "intermediate_size": 16384, "vocab_size": 256000, "head_dim": 256,
        "num_attention_heads": 8, "num_key_value_heads": 1, "tie_word_embeddings": True},
    "phi3": {"hidden_size": 3072, "intermediate_size": 8192, "vocab_size": 32064, "pad_token_id": 0,
        "num_attention_heads": 32, "num_key_value_heads": 32},
    "gpt_neox": {"hidden_size": 2048, "intermediate_size": 8192, "vocab_size": 50432,
        "num_attention_heads": 16},
}  # fmt: skip
"""Of small models as they are published, in width; layers are few."""
TARGETS = {"phi3": ["qkv_proj", "down_proj"], "gpt_neox": ["query_key_value"]}
NUM_LAYERS = 6


def here() -> Cluster:
    """Return the GPU at hand, whatever it is, by what its driver says."""
    properties = torch.cuda.get_device_properties(0)
    gpu = Gpu(
        name=properties.name,
        memory_bytes=properties.total_memory,
        usable_bytes=properties.total_memory,
        bandwidth=1e12,
        bf16_flops=1e14,
        fp32_flops=1e13,
        link="none",
        link_bandwidth=1e9,
        has_peer_access=True,
        host_link_bandwidth=1e9,
        source="the driver",
    )
    return Cluster(gpu=gpu)


def measured(family: str, shape: ModelShape, setup: TrainingSetup) -> tuple[int, int, float]:
    """Return the peaks of what is allocated and reserved in two steps, and the seconds of the second."""
    config = AutoConfig.for_model(family, num_hidden_layers=shape.num_layers, **MODELS[family])
    is_half = setup.adapter is not None
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16 if is_half else torch.float32)
    if setup.is_checkpointed:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if setup.adapter is not None:
        from peft import LoraConfig, get_peft_model

        options = {"r": setup.adapter.rank, "target_modules": sorted(setup.adapter.targets)}
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **options))
        if setup.is_checkpointed:
            model.enable_input_require_grads()
    model.config.use_cache = False
    model.train().cuda()
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], fused=True)
    size = setup.num_rows * setup.num_solution_tokens
    ids = torch.randint(5, 1000, (setup.num_rows, setup.longest), device="cuda")
    places = torch.arange(size, device="cuda") % (setup.num_rows * setup.num_kept)
    seconds = 0.0
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
        began = time.perf_counter()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            output = model(input_ids=ids, logits_to_keep=setup.num_kept)
        logits = output.logits.float()
        del output
        loss = solution_loss(logits, places, places % 1000, torch.ones(size, device="cuda"))
        del logits
        loss.backward()
        del loss
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        seconds = time.perf_counter() - began
    return torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved(), seconds


@dataclass(frozen=True, slots=True)
class Outcome:
    """One case, predicted and measured."""

    error: float | None
    """Of the planned peak; None where the device had no room."""
    reserved: float
    """What the allocator reserved beyond what was allocated, as a share."""
    is_false_fit: bool


def compare(family: str, setup: TrainingSetup, cluster: Cluster) -> Outcome:
    """Measure one case and print it beside its plan."""
    config = AutoConfig.for_model(family, num_hidden_layers=NUM_LAYERS, **MODELS[family])
    shape = shape_of(config.to_dict())
    planned = training_memory(shape, setup, cluster)
    name = (
        f"{family:9} {setup.method:5} checkpointing={setup.is_checkpointed!s:5} "
        f"{setup.num_rows} x {setup.longest}: "
        f"planned {planned.peak.total_bytes / GIB:7.3f} ({planned.peak.name})"
    )
    try:
        allocated, taken, seconds = measured(family, shape, setup)
    except torch.OutOfMemoryError:
        is_false_fit = planned.spare_bytes >= 0
        print(f"{name}, out of memory{', and was called fitting' if is_false_fit else ', as planned'}")
        return Outcome(None, 0.0, is_false_fit)
    finally:
        gc.collect()
        torch.cuda.empty_cache()
    error = planned.peak.total_bytes / allocated - 1
    print(
        f"{name}, allocated {allocated / GIB:7.3f} ({100 * error:+.2f} %), reserved {taken / GIB:7.3f}, "
        f"{seconds:.3f} s",
        flush=True,
    )
    return Outcome(error, taken / allocated - 1, is_false_fit=False)


def setup_of(
    family: str, num_rows: int, length: int, *, is_adapted: bool, is_checkpointed: bool
) -> TrainingSetup:
    """Return one case of the sweep: half of each row is solution."""
    targets = frozenset(TARGETS.get(family, ["q_proj", "v_proj"]))
    return TrainingSetup(
        method="lora" if is_adapted else "full",
        strategy="single",
        num_rows=num_rows,
        global_batch_size=num_rows,
        longest=length,
        mean_length=float(length),
        num_kept=length // 2 + 1,
        num_solution_tokens=length // 2,
        is_checkpointed=is_checkpointed,
        adapter=Adapter(16, targets, 4) if is_adapted else None,
    )


def main() -> int:
    """Sweep and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two batches and two families")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device: nothing to measure", file=sys.stderr)
        return 0
    cluster = here()
    print(f"{cluster.gpu.name}, {cluster.gpu.usable_bytes / GIB:.2f} GiB, torch {torch.__version__}; in GiB")
    families = ["llama", "qwen2"] if options.quick else list(MODELS)
    batches = ((2, 1024), (8, 1024)) if options.quick else ((1, 512), (4, 1024), (2, 4096), (8, 2048))
    outcomes = [
        compare(
            family,
            setup_of(family, *batch, is_adapted=is_adapted, is_checkpointed=is_checkpointed),
            cluster,
        )
        for family, is_adapted, is_checkpointed, batch in itertools.product(
            families, (False, True), (False, True), batches
        )
    ]
    done = [one for one in outcomes if one.error is not None]
    for name, values in (
        ("error of the peak", [abs(one.error) for one in done if one.error is not None]),
        ("reserved over allocated", [one.reserved for one in done]),
    ):
        print(f"{name}: median {100 * statistics.median(values):.2f} %, worst {100 * max(values):.2f} %")
    num_false = sum(one.is_false_fit for one in outcomes)
    print(f"{len(outcomes)} cases, {num_false} called fitting that did not fit")
    return 1 if num_false else 0


if __name__ == "__main__":
    sys.exit(main())
