"""The planned memory of a training step beside a trace of the real class, over the whole matrix.

    python benchmarks/soak_planner.py [--every 5] [MODEL ...]

Every family x {full, LoRA} x checkpointing x rows x length x precision, a micro-step of five small layers
each; and settings that change what a family's layers do, with one batch. One row has transformers' loss over
all tokens, four have the M-step's and dropout before the adapters; adapters are bf16 in a bf16 step and
otherwise fp32, as under DeepSpeed and without. Prints a line for each, with the errors of the forward and the
backward pass's peak and of the larger of both; exit status 1 where the last is beyond 1 %. `--every 5` takes
each fifth micro-step, every model's beginning at another one.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import statistics
import sys
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).parents[1]))
from rest_em.planner.activations import StepSetup, instants_of
from rest_em.planner.shapes import shape_of
from tests.planner.families import FAMILIES, MIXTURES, adapter_for, config_of

BOUND = 0.01
VARIANTS: dict[str, tuple[str, dict[str, object]]] = {
    "llama, biases, tied": ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "qwen2, tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3, tied": ("qwen3", {"tie_word_embeddings": True}),
    "phi, dropout": ("phi", {"resid_pdrop": 0.1, "embd_pdrop": 0.1}),
    "phi3, long rope, a part": ("phi3", {
        "max_position_embeddings": 4096, "original_max_position_embeddings": 512,
        "rope_parameters": {
            "rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 0.75,
            "original_max_position_embeddings": 512, "short_factor": [1.0] * 24, "long_factor": [2.0] * 24,
        },
    }),
    "gpt2, no dropout": ("gpt2", {"embd_pdrop": 0.0, "resid_pdrop": 0.0, "attn_pdrop": 0.0}),
    "gpt_neox, in sequence": (
        "gpt_neox",
        {"use_parallel_residual": False, "hidden_dropout": 0.1, "hidden_act": "gelu_fast"},
    ),
    "stablelm, parallel": ("stablelm", {"use_parallel_residual": True, "use_qkv_bias": True}),
    "starcoder2, dropout": ("starcoder2", {"residual_dropout": 0.1, "embedding_dropout": 0.1}),
    "qwen2_moe, all sparse": ("qwen2_moe", {"mlp_only_layers": [], "norm_topk_prob": True}),
    "qwen3_moe, some dense": ("qwen3_moe", {"mlp_only_layers": [0, 3]}),
}  # fmt: skip
"""Name -> family and settings."""
MODELS = {**{family: (family, {}) for family in (*FAMILIES, *MIXTURES)}, **VARIANTS}
PRECISIONS: tuple[Literal["bf16", "autocast", "fp32"], ...] = ("bf16", "autocast", "fp32")


BATCHES = ((1, 130), (1, 1024), (4, 130), (4, 1024))
"""Rows, and tokens of a row."""


def setups(family: str, batches: Sequence[tuple[int, int]]) -> Iterator[StepSetup]:
    """Yield a family's micro-steps."""
    for precision, is_lora, is_checkpointed, (num_rows, length) in itertools.product(
        PRECISIONS, (False, True), (False, True), batches
    ):
        adapter = adapter_for(family, 2 if precision == "bf16" else 4) if is_lora else None
        setup = StepSetup(
            num_rows=num_rows,
            length=length,
            num_kept=length,
            num_solution_tokens=length - 1,
            precision=precision,
            is_checkpointed=is_checkpointed,
            adapter=adapter,
            loss="model",
        )
        if num_rows > 1:
            adapter = replace(adapter, dropout=0.05) if adapter else None
            setup = replace(setup, loss="solution", num_kept=65, num_solution_tokens=64, adapter=adapter)
        yield setup


def errors_of(name: str, every: int) -> list[tuple[float, float, float]]:
    """Return a model's errors, one triple a micro-step: of the forward, the backward, and the whole peak."""
    from rest_em.tracing import trace_step

    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    family, changes = MODELS[name]
    config = type(config_of(family)).from_dict({**config_of(family).to_dict(), **changes})
    shape, found = shape_of(config.to_dict()), []
    steps = list(setups(family, BATCHES[-1:] if changes else BATCHES))
    for setup in steps[list(MODELS).index(name) % every :: every]:
        meter, planned = trace_step(config, setup), {"forward": 0, "backward": 0}
        for one in instants_of(shape, setup):
            phase = "backward" if "backward" in one.name else "forward"
            planned[phase] = max(planned[phase], sum(one.components.values()))
        traced = {phase: meter.peaks[phase] - meter.static_bytes for phase in planned}
        pairs = [
            *((planned[one], traced[one]) for one in planned),
            (max(planned.values()), max(traced.values())),
        ]
        found.append(tuple(mine / real - 1 for mine, real in pairs))
    return found


def line(name: str, errors: Sequence[tuple[float, float, float]]) -> str:
    """Return a row of the table: medians and worst of the errors' sizes."""
    cells = []
    for one in zip(*errors, strict=True):
        sizes = [100 * abs(error) for error in one]
        cells.append(f"{statistics.median(sizes):.2f} / {max(sizes):.2f} %")
    return f"| {name} | {len(errors)} | {' | '.join(cells)} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("models", nargs="*", metavar="MODEL")
    arguments = parser.parse_args()
    names = arguments.models or list(MODELS)
    if not set(names) <= set(MODELS):
        parser.error(f"models are {'; '.join(MODELS)}")
    print("| model | cases | forward, median / worst | backward | peak |\n|---|---:|---:|---:|---:|")
    total: list[tuple[float, float, float]] = []
    with ProcessPoolExecutor() as pool:
        found = pool.map(errors_of, names, itertools.repeat(arguments.every))
        for name, errors in zip(names, found, strict=False):
            total += errors
            print(line(name, errors), flush=True)
    print(line("all", total))
    if max(abs(peak) for _, _, peak in total) > BOUND:
        sys.exit(f"a peak is beyond {BOUND:.0%}")


if __name__ == "__main__":
    main()
