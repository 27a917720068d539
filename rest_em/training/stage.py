"""The M-step: supervised fine-tuning from the base model, a stage of its own in every rank's child process.

transformers' Trainer does the work (accelerate, DDP or DeepSpeed ZeRO, peft). This package adds what
Algorithm 1 asks for: the loss is the reward-weighted mean over the solution tokens of the *global* batch,
whatever the accumulation and the ranks, and every epoch leaves an ordinary Hugging Face folder. Choosing
among the checkpoints is left to `algorithm`, the order of the examples to `batches`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed

from rest_em.devices import device_type
from rest_em.errors import TrainingError
from rest_em.points import STEPS
from rest_em.processes import keep_freed_memory
from rest_em.recipe import TrainingSection
from rest_em.storage import append_lines, read_examples, write_json
from rest_em.training.arguments import choose_attention, choose_packing, training_arguments, uses_deepspeed
from rest_em.training.base import Base, tokenizer_of
from rest_em.training.checkpoints import Checkpoints
from rest_em.training.examples import encode_examples, length_limit
from rest_em.training.retokenized import with_own_tokens
from rest_em.training.trainer import WeightedTrainer
from rest_em.usage import Meter, resident_bytes

PROGRESS_SECONDS = 1.0
"""Between two writes of the progress file."""


def main(spec: dict[str, Any]) -> None:
    """Train on D_i; write `output/epoch-1` and on, `training.json` and `steps.jsonl`, and `progress/0.json`.

    Args:
        spec: `model` (name_or_path, revision, trust_remote_code), perhaps `teacher` (the same of
            another model that sampled), `examples` (a path), `output` (a folder),
            `training` (the recipe's section), `lora` (LoraConfig's arguments or None), perhaps
            `quantization` (BitsAndBytesConfig's), `seed`, `iteration`, `progress` (a folder).

    Every rank keeps what it took in `output/usage`.

    Raises:
        TrainingError: the settings contradict the ranks, the model or the examples.
    """
    started, at_start = time.monotonic(), resident_bytes()
    if device_type() == "cpu":
        keep_freed_memory()
    if spec.get("quantization") and uses_deepspeed():
        raise TrainingError(
            "quantization: a quantised base is not trained with DeepSpeed, whose ranks would share out "
            "adapters alone; launch it with launch/ddp.yaml or launch/single_gpu.yaml"
        )
    section = TrainingSection.model_validate(spec["training"])
    output = Path(spec["output"])
    order_seed = f"{spec['seed']}/{spec['iteration']}"
    arguments = training_arguments(section, output, order_seed)
    meter = Meter(output, arguments.device, resident_bytes_at_start=at_start)
    base = Base(**spec["model"])
    teacher = tokenizer_of(**spec["teacher"]) if spec.get("teacher") else None
    own = with_own_tokens(read_examples(Path(spec["examples"])), base.tokenizer, teacher)
    examples, num_left_out = encode_examples(own, base.tokenizer, length_limit(section, base.config))
    set_seed(arguments.seed)
    longest = max(len(one.token_ids) for one in examples)
    packing = choose_packing(section, base.config, longest)
    attention = None if packing.is_packed else choose_attention(longest)
    model = base.trainable_model(
        spec["lora"], spec.get("quantization"), is_half=arguments.bf16, attention=attention
    )
    trainer = WeightedTrainer(model, arguments, examples, order_seed, packing)
    checkpoints = Checkpoints(trainer, base, output)
    journal = Journal(Path(spec["progress"]) / "0.json", output / STEPS, checkpoints.save)
    trainer.add_callback(journal)
    trainer.train()
    meter.add(
        num_tokens=trainer.num_computed,
        num_steps=trainer.state.global_step,
        work_seconds=journal.epoch_seconds,
    )
    if trainer.is_world_process_zero():
        write_json(
            output / "training.json",
            {
                "checkpoints": [f"epoch-{i + 1}" for i in range(len(journal.epoch_losses))],
                "num_examples": len(examples),
                "num_left_out": num_left_out,
                "num_tokens": sum(one.num_solution_tokens for one in examples),
                "loss": journal.epoch_losses,
                "num_steps": trainer.state.global_step,
                "seconds": round(time.monotonic() - started, 3),
            },
        )
    leave_group(trainer)


class Journal(TrainerCallback):
    """Keeps the losses, the time, the progress file and a line a step, and has every epoch saved."""

    def __init__(self, progress: Path, steps: Path, save: Callable[[int], None]) -> None:
        self._progress, self._steps = progress, steps
        self._save = save
        self._losses: list[float] = []
        self._last_write = 0.0
        self._began = 0.0
        self.epoch_seconds = 0.0
        """Of all epochs so far, without their checkpoints."""
        self.epoch_losses: list[float] = []
        """The mean over an epoch's optimiser steps of the loss before each."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Take the loss of a step, the same on every rank."""
        if logs is None or "loss" not in logs:
            return
        if not math.isfinite(logs["loss"]):
            raise TrainingError(
                f"the loss is {logs['loss']} at step {state.global_step} of {state.max_steps}; "
                "lower training.learning_rate, or set training.bf16 to false"
            )
        self._losses.append(logs["loss"])
        if state.is_world_process_zero:
            append_lines(self._steps, [_line_of(state, logs)], is_durable=False)
        is_due = time.monotonic() - self._last_write >= PROGRESS_SECONDS
        if state.is_world_process_zero and (is_due or state.global_step == state.max_steps):
            progress = {"done": state.global_step, "total": state.max_steps, "loss": logs["loss"]}
            write_json(self._progress, progress, is_durable=False)
            self._last_write = time.monotonic()

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the epoch."""
        self._began = time.monotonic()

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the epoch: its time, its mean loss and its checkpoint."""
        self.epoch_seconds += time.monotonic() - self._began
        self.epoch_losses.append(sum(self._losses) / len(self._losses))
        self._losses.clear()
        self._save(len(self.epoch_losses))


def _line_of(state: TrainerState, logs: dict[str, float]) -> dict[str, float | None]:
    """Return the line of an optimiser step; null is what was not measured, or is no finite number."""
    values = {
        "loss": logs["loss"],
        "learning_rate": logs.get("learning_rate"),
        "gradient_norm": logs.get("grad_norm"),
        "epoch": state.epoch,
    }
    known = {name: one if one is not None and math.isfinite(one) else None for name, one in values.items()}
    return {"step": state.global_step, **known}


def leave_group(trainer: Trainer) -> None:
    """Wait for all ranks and leave the group; a rank that does not is aborted at exit."""
    trainer.accelerator.wait_for_everyone()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
