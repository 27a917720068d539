"""Seconds of the M-step: one pass over a micro-batch by attention and shape, then a whole stage.

The examples are the quickstart's problems with a worked solution each, as the tuned model is trained on them.

    python benchmarks/training.py models/SmolLM2-135M-Instruct [--num-examples 96] [--threads 2]

Wall-clock and processor seconds are printed beside each other: on a machine that others use too, processor
seconds of one thread (`--threads 1`) are the figure that repeats.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rest_em.storage import read_json, write_examples
from rest_em.training.stage import main as train
from rest_em.types import TrainingExample
from rest_em.usage import joint_usage

PROBLEMS = Path(__file__).parents[1] / "recipes" / "quickstart" / "train.jsonl"
SHAPES = ((8, 40), (16, 40), (8, 80), (4, 160), (2, 320))
"""Examples and tokens of a micro-batch."""


def timed(work: Callable[[], object], num_repeats: int = 3) -> str:
    """Return the least wall-clock and processor seconds of a call, after one call to warm up."""
    work()
    seconds = []
    for _ in range(num_repeats):
        wall, processor = time.perf_counter(), time.process_time()
        work()
        seconds.append((time.perf_counter() - wall, time.process_time() - processor))
    return f"{min(wall for wall, _ in seconds):.2f} s, {min(one for _, one in seconds):.2f} s of processor"


def measure_passes(folder: str, *, bf16: bool) -> None:
    """Print the time of a forward and a backward pass for each attention and shape."""
    for attention in ("sdpa", "eager"):
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation=attention
        ).train()
        for num_examples, num_tokens in SHAPES:
            input_ids = torch.randint(5, 1000, (num_examples, num_tokens))
            attention_mask = torch.ones_like(input_ids)
            attention_mask[0, -2:] = 0

            def work(model: torch.nn.Module = model, **batch: torch.Tensor) -> None:
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
                    logits = model(**batch, logits_to_keep=20, use_cache=False).logits
                logits.float().logsumexp(-1).sum().backward()

            taken = timed(
                lambda work=work, ids=input_ids, mask=attention_mask: work(input_ids=ids, attention_mask=mask)
            )
            print(f"{attention:6} {num_examples:3} x {num_tokens:3} tokens: {taken}", flush=True)


def examples(folder: str, number: int) -> list[TrainingExample]:
    """Return solutions of the quickstart's kind."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = [json.loads(line) for line in PROBLEMS.read_text().splitlines()]
    found = []
    for i in range(number):
        row = rows[i % len(rows)]
        solution = f" {row['expression']} = {row['answer']}. The answer is {row['answer']}."
        token_ids = tokenizer(solution, add_special_tokens=False)["input_ids"]
        prompt = f"Question: What is {row['expression']}?\nAnswer:"
        found.append(TrainingExample(row["id"], i, prompt, tuple(token_ids), "stop_string", 1.0))
    return found


def measure_stage(folder: str, number: int, per_device: int) -> None:
    """Print the time of a stage of one epoch, the reading of the model and its checkpoint included."""
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        write_examples(scratch / "dataset.parquet", examples(folder, number))
        processor = time.process_time()
        train(
            {
                "model": {"name_or_path": folder, "revision": None, "trust_remote_code": False},
                "examples": str(scratch / "dataset.parquet"),
                "output": str(scratch / "policy"),
                "training": {"num_train_epochs": 1, "per_device_train_batch_size": per_device},
                "lora": None,
                "seed": 0,
                "iteration": 1,
                "progress": str(scratch / "progress"),
                "stop": str(scratch / "stop"),
            }
        )
        result, usage = read_json(scratch / "policy" / "training.json"), joint_usage(scratch / "policy")
        assert usage is not None
        print(
            f"stage, {per_device} examples a pass: {number} examples, {result['num_steps']} steps, "
            f"{result['num_tokens']} solution tokens in {usage.seconds:.1f} s, "
            f"{time.process_time() - processor:.1f} s of processor",
            flush=True,
        )


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--num-examples", type=int, default=96)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only-stage", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{options.threads} threads, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
    if not options.only_stage:
        measure_passes(options.model, bf16=True)
    for per_device in (8, 16):
        measure_stage(options.model, options.num_examples, per_device)


if __name__ == "__main__":
    main()
