"""M-steps that are killed at random moments and go on: whether each ends as one that nobody disturbed.

    python benchmarks/soak_resume.py [--kills 50] [--ranks 1] [--zero-stage 3] [--seed 0]

A tiny Llama with dropout in its adapters, a checkpoint after every step. A random rank is killed by SIGKILL
at a random moment of the time that an undisturbed training takes, and the others follow, as a launch ends;
then it goes on, until it ends or is killed again. Exit status 1 if the weights of an epoch, the losses or the
number of steps of one that has ended are not those of the undisturbed training, bit for bit.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from killed_training import attempt, start
from tiny_model import make_tokenizer, write_model

from rest_em.storage import read_json, write_examples
from rest_em.types import TrainingExample

EPOCHS = 3


def spec_of(folder: Path, model: Path) -> dict[str, Any]:
    """Return the specification of an M-step in `folder`: 17 examples, three steps an epoch."""
    folder.mkdir()
    examples = [
        TrainingExample("p", i, f"{i} + {i * 7}? ", tuple(f"={i * 8}".encode()), "stop_string", 1.0)
        for i in range(17)
    ]
    write_examples(folder / "dataset.parquet", examples)
    return {
        "model": {"name_or_path": str(model), "revision": None, "trust_remote_code": False},
        "examples": str(folder / "dataset.parquet"),
        "output": str(folder / "policy"),
        "training": {
            "global_batch_size": 8,
            "per_device_train_batch_size": 2,
            "num_train_epochs": EPOCHS,
            "learning_rate": 1e-3,
            "bf16": False,
            "save_seconds": 0.0,
        },
        "lora": {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "lora_dropout": 0.3},
        "seed": 3,
        "iteration": 1,
        "progress": str(folder / "progress"),
        "stop": str(folder / "stop"),
    }


def what_came(folder: Path) -> list[Any]:
    """Return the weights of all epochs, and what the stage tells of itself."""
    epochs = [folder / "policy" / f"epoch-{k + 1}" / "model.safetensors" for k in range(EPOCHS)]
    return [read_json(folder / "policy" / "training.json"), *(path.read_bytes() for path in epochs)]


def kill_once(spec: dict[str, Any], chance: random.Random, within: float, ranks: Mapping[str, Any]) -> bool:
    """Start the stage and kill it at a random moment; say whether it was still running."""
    processes = start(spec, **ranks)
    end = time.monotonic() + chance.uniform(0, within)
    while time.monotonic() < end and any(process.is_alive() for process in processes):
        time.sleep(0.001)
    victim = chance.choice(processes)
    is_running = victim.is_alive()
    victim.kill()
    for process in processes:
        process.join(0.05)
        process.kill()
        process.join()
    return is_running


def main() -> None:
    """Kill as often as the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--zero-stage", type=int)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    zero = {
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_ZERO_STAGE": str(options.zero_stage),
    }
    ranks = {"num_ranks": options.ranks, "launch": zero if options.zero_stage else {}}
    with tempfile.TemporaryDirectory() as name:
        model = Path(name) / "model"
        write_model(model, make_tokenizer())
        for path in ("first", "undisturbed"):  # the first one also imports all that the others find there
            began = time.monotonic()
            assert not any(attempt(spec_of(Path(name) / path, model), **ranks))
            took, wanted = time.monotonic() - began, what_came(Path(name) / path)
        num_kills = num_ended = num_wrong = 0
        while num_kills < options.kills:
            folder = Path(name) / f"killed-{num_ended}"
            spec, at_steps = spec_of(folder, model), []
            while num_kills < options.kills and kill_once(spec, chance, took, ranks):
                num_kills += 1
                marker = folder / "policy" / "checkpoint.json"
                at_steps.append(read_json(marker)["step"] if marker.exists() else 0)
            if not (folder / "policy" / "training.json").exists():
                assert not any(attempt(spec, **ranks))
            num_ended += 1
            is_right = what_came(folder) == wanted
            num_wrong += not is_right
            told = "the same" if is_right else "ANOTHER"
            print(f"killed after checkpoints {at_steps}: {told}", flush=True)
    print(f"{num_kills} kills, {num_ended} trainings, {num_wrong} of them not as undisturbed")
    sys.exit(num_wrong > 0)


if __name__ == "__main__":
    main()
