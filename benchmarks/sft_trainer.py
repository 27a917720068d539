"""The M-step beside TRL's SFTTrainer: trained solution tokens a second, same model, tokens and settings.

    python benchmarks/sft_trainer.py models/SmolLM2-135M-Instruct [--num-repeats 1]

Two kinds of examples: short prompts with solutions of unlike length, and the paper's, four worked examples
before each problem and four solutions a problem. Either side trains on the same token ids from the same
weights in fp32 with the same global batch, micro-batch, optimiser and learning rate, without activation
checkpointing (TRL's own default is to checkpoint) and in a process of its own, one after the other. TRL is
given each of its ways to batch, and the ratio is to its fastest one. Loading and saving are not counted, the
first step is.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SHOTS = ROOT / "evals" / "math_examples.jsonl"
SETTINGS = {"global_batch_size": 16, "per_device_train_batch_size": 8, "learning_rate": 2e-5}
TRL_WAYS: dict[str, dict[str, Any]] = {
    "padded": {},
    "grouped by length": {"train_sampling_strategy": "group_by_length"},
    "padding-free": {"padding_free": True},
}
OUR_WAYS: dict[str, dict[str, Any]] = {
    "packed": {"prefix_sharing": False},
    "packed, prefixes shared": {},
}
GOALS = {"short prompts": ("packed", 1.2), "four shots": ("packed, prefixes shared", 2.0)}


def write_examples(folder: Path, kind: str, model: str) -> None:
    """Write the examples of a kind for both sides: 32 with short prompts, 16 with four shots."""
    from transformers import AutoTokenizer

    from rest_em.storage import write_examples as write
    from rest_em.types import TrainingExample

    tokenizer = AutoTokenizer.from_pretrained(model)
    rng = random.Random(0)
    rows = [json.loads(line) for line in SHOTS.read_text(encoding="utf-8").splitlines()]
    shots = "".join(f"Problem: {row['problem']}\nSolution: {row['solution']}\n\n" for row in rows[:4])
    number, num_solutions = (32, 1) if kind == "short prompts" else (16, 4)
    examples = []
    for i in range(number):
        problem = f"What is the sum of the digits of {random.Random(i // num_solutions).randrange(10**6)}?"
        prompt = f"{'' if kind == 'short prompts' else shots}Problem: {problem}\nSolution:"
        steps = [
            f" Adding {rng.randrange(10)} gives {rng.randrange(60)}." for _ in range(rng.randrange(2, 28))
        ]
        solution = f" We add the digits one by one.{''.join(steps)} The answer is $\\boxed{{{i}}}$."
        token_ids = tokenizer(solution, add_special_tokens=False)["input_ids"]
        examples.append(TrainingExample(f"p{i}", 0, prompt, tuple(token_ids), "stop_string", 1.0))
    write(folder / "dataset.parquet", examples)


def train_ours(folder: Path, model: str, way: str) -> dict[str, float]:
    """Train for an epoch as the M-step does."""
    from rest_em.storage import read_json
    from rest_em.training.stage import main
    from rest_em.usage import joint_usage

    output = folder / "ours"
    main(
        {
            "model": {"name_or_path": model, "revision": None, "trust_remote_code": False},
            "examples": str(folder / "dataset.parquet"),
            "output": str(output),
            "training": {**SETTINGS, "num_train_epochs": 1, "bf16": False, **OUR_WAYS[way]},
            "lora": None,
            "seed": 0,
            "iteration": 1,
            "progress": str(folder / "progress"),
            "stop": str(folder / "stop"),
        }
    )
    result, usage = read_json(output / "training.json"), joint_usage(output)
    assert usage is not None
    return {
        "tokens": result["num_tokens"],
        "computed": usage.num_tokens,
        "seconds": usage.work_seconds,
        "loss": result["loss"][0],
        "steps": result["num_steps"],
    }


def train_trl(folder: Path, model: str, way: str) -> dict[str, float]:
    """Train for an epoch with SFTTrainer on the same token ids."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    from rest_em.storage import read_examples
    from rest_em.training.examples import encode_examples

    tokenizer = AutoTokenizer.from_pretrained(model)
    encoded, _ = encode_examples(read_examples(folder / "dataset.parquet"), tokenizer, None)
    masks = [[0] * one.num_prompt_tokens + [1] * one.num_solution_tokens for one in encoded]
    rows = {"input_ids": [list(one.token_ids) for one in encoded], "completion_mask": masks}
    per_device = SETTINGS["per_device_train_batch_size"]
    config = SFTConfig(
        output_dir=str(folder / "trl"),
        num_train_epochs=1,
        per_device_train_batch_size=int(per_device),
        gradient_accumulation_steps=int(SETTINGS["global_batch_size"] // per_device),
        learning_rate=SETTINGS["learning_rate"],
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        max_length=None,
        completion_only_loss=True,
        save_strategy="no",
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        **TRL_WAYS[way],
    )
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        args=config,
        train_dataset=Dataset.from_dict(rows),
        processing_class=tokenizer,
    )
    started = time.monotonic()
    trainer.train()
    losses = [one["loss"] for one in trainer.state.log_history if "loss" in one]
    return {
        "tokens": sum(map(sum, masks)),
        "computed": 0,
        "seconds": time.monotonic() - started,
        "loss": sum(losses) / len(losses),
        "steps": trainer.state.global_step,
    }


def measure(folder: Path, model: str, side: str, way: str) -> dict[str, float]:
    """Return what one side gives in a process of its own."""
    command = [sys.executable, __file__, model, "--worker", side, way, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side}, {way} failed:\n{done.stderr[-3000:]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def compare(model: str, kind: str, num_repeats: int) -> None:
    """Print the speeds of all ways on one kind of examples, and the ratio to the fastest of TRL's."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_examples(folder, kind, model)
        ways = [("trl", way) for way in TRL_WAYS] + [("ours", way) for way in OUR_WAYS]
        found: dict[tuple[str, str], list[dict[str, float]]] = {way: [] for way in ways}
        for _ in range(num_repeats):
            for side, way in ways:
                found[side, way].append(measure(folder, model, side, way))
        speeds = {
            key: max(one["tokens"] / one["seconds"] for one in results) for key, results in found.items()
        }
    print(
        f"{kind}: {found[ways[0]][0]['tokens']:.0f} solution tokens, {found[ways[0]][0]['steps']:.0f} steps"
    )
    for (side, way), speed in speeds.items():
        loss = found[side, way][0]["loss"]
        print(f"  {side:4} {way:24} {speed:7.1f} solution tokens/s   mean loss {loss:.4f}")
    way, goal = GOALS[kind]
    fastest = max(speed for (side, _), speed in speeds.items() if side == "trl")
    print(f"  {way}: {speeds['ours', way] / fastest:.2f} times TRL's fastest; the goal is {goal}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--num-repeats", type=int, default=1)
    parser.add_argument("--kind", choices=tuple(GOALS), action="append")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker is not None:
        side, way, folder = options.worker
        train = train_ours if side == "ours" else train_trl
        print(json.dumps(train(Path(folder), options.model, way)))
        return
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
    for kind in options.kind or GOALS:
        compare(options.model, kind, options.num_repeats)


if __name__ == "__main__":
    main()
