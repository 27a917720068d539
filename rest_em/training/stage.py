"""The M-step: supervised fine-tuning from the base model, a stage of its own in every rank's child process.

transformers' Trainer does the work (accelerate, DDP or DeepSpeed ZeRO, peft). This package adds what
Algorithm 1 asks for: the loss is the reward-weighted mean over the solution tokens of the *global* batch,
whatever the accumulation and the ranks, and every epoch leaves an ordinary Hugging Face folder. Choosing
among the checkpoints is left to `algorithm`, the order of the examples to `batches`.
"""

from __future__ import annotations

import functools
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed

from rest_em.devices import device_type
from rest_em.errors import TrainingError
from rest_em.points import STEPS
from rest_em.processes import keep_freed_memory
from rest_em.recipe import TrainingSection
from rest_em.stages import uses_deepspeed
from rest_em.storage import append_lines, read_examples, write_json
from rest_em.training.arguments import choose_attention, choose_packing, training_arguments
from rest_em.training.base import Base, tokenizer_of
from rest_em.training.checkpoints import Checkpoints
from rest_em.training.examples import encode_examples, length_limit
from rest_em.training.resume import Interruptions, find_start, is_epoch_over, steps_per_epoch
from rest_em.training.retokenized import with_own_tokens
from rest_em.training.room import check_room, written_by
from rest_em.training.saved import NOTE
from rest_em.training.trainer import WeightedTrainer
from rest_em.usage import Meter, resident_bytes

PROGRESS_SECONDS = 1.0
"""Between two writes of the progress file."""


def main(spec: dict[str, Any]) -> None:
    """Train on D_i; write `output/epoch-1` and on, `training.json` and `steps.jsonl`, and `progress/0.json`.

    Goes on from the last whole checkpoint in `output`, which must hold nothing of another training. Where the
    file `stop` is found, the stage saves and ends without a `training.json`.

    Args:
        spec: `model` (name_or_path, revision, trust_remote_code), perhaps `teacher` (the same of
            another model that sampled), `examples` (a path), `output` (a folder),
            `training` (the recipe's section), `lora` (LoraConfig's arguments or None), perhaps
            `quantization` (BitsAndBytesConfig's), `seed`, `iteration`, `progress` (a folder), `stop` (a
            path).

    Every rank keeps what it took in `output/usage`.

    Raises:
        TrainingError: the settings contradict the ranks, the model or the examples.
    """
    at_start = resident_bytes()
    if device_type() == "cpu":
        keep_freed_memory()
    if spec.get("quantization") and uses_deepspeed(os.environ):
        raise TrainingError(
            "quantization: a quantised base is not trained with DeepSpeed, whose ranks would share out "
            "adapters alone; launch it with launch/ddp.yaml or launch/single_gpu.yaml"
        )
    section = TrainingSection.model_validate(spec["training"])
    output, progress = Path(spec["output"]), Path(spec["progress"])
    order_seed = f"{spec['seed']}/{spec['iteration']}"
    arguments = training_arguments(section, output, order_seed)
    meter = Meter(output, arguments.device, resident_bytes_at_start=at_start)
    start = find_start(output, arguments)
    if start.note:
        write_json(progress / NOTE, start.note)
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
    if arguments.process_index == 0:
        check_room(output, written_by(model, arguments, base.dtype, section), section.num_train_epochs)
    trainer = WeightedTrainer(model, arguments, examples, order_seed, packing)
    journal = Journal(progress / "0.json", output / STEPS, Checkpoints(trainer, base, output).save)
    count = functools.partial(count_work, meter, trainer, journal)
    interruptions = Interruptions(trainer, output, Path(spec["stop"]), section.save_seconds, on_saved=count)
    for callback in (journal, interruptions):  # an epoch's folder comes before the checkpoint behind it
        trainer.add_callback(callback)
    if not interruptions.leaves_at_once():
        train_to_end(start.checkpoint(output), trainer, interruptions)
        count()
    if trainer.is_world_process_zero() and not interruptions.has_left:
        counts = {
            "num_examples": len(examples),
            "num_left_out": num_left_out,
            "num_tokens": sum(one.num_solution_tokens for one in examples),
        }
        write_json(output / "training.json", counts | journal.result(trainer.state))
    leave_group(trainer)


def count_work(meter: Meter, trainer: WeightedTrainer, journal: Journal) -> None:
    """Keep what was taken since this was last called; so what a kill undoes and is done again counts once."""
    meter.add(num_tokens=trainer.num_computed, num_steps=journal.num_steps, work_seconds=journal.work_seconds)
    trainer.num_computed = journal.num_steps = 0
    journal.work_seconds = 0.0


def train_to_end(checkpoint: str | None, trainer: Trainer, interruptions: Interruptions) -> None:
    """Train to the end, or until the training is left.

    Raises:
        TrainingError: the checkpoint cannot be read.
    """
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except (AssertionError, EOFError, KeyError, OSError, RuntimeError, UnpicklingError, ValueError) as error:
        if checkpoint is None or interruptions.has_begun:
            raise
        raise TrainingError(
            f"{checkpoint}: cannot be read ({type(error).__name__}: {error}); remove the folder to begin "
            "this M-step again"
        ) from error


class Journal(TrainerCallback):
    """Keeps the losses, the time, the progress file and a line a step, and has every epoch saved."""

    def __init__(self, progress: Path, steps: Path, save: Callable[[int], None]) -> None:
        self._progress, self._steps = progress, steps
        self._save = save
        self._last_write = 0.0
        self._began = 0.0
        self.work_seconds = 0.0
        """Of the steps since they were last counted, without what is saved between them."""
        self.num_steps = 0
        """Optimiser steps since they were last counted."""
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
        self.num_steps += 1
        self._stop_clock()
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
        """Start the clock."""
        self._began = time.monotonic()

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock again, which the last step stopped."""
        self._began = time.monotonic()

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close an epoch, unless it was left: its mean loss and its checkpoint."""
        if not is_epoch_over(state):
            return
        losses, size = [one["loss"] for one in state.log_history if "loss" in one], steps_per_epoch(state)
        self.epoch_losses = [sum(losses[i : i + size]) / size for i in range(0, len(losses), size)]
        self._save(len(self.epoch_losses))

    def result(self, state: TrainerState) -> dict[str, Any]:
        """Return what came of the training: a checkpoint and a mean loss an epoch, and the steps of all."""
        return {
            "checkpoints": [f"epoch-{i + 1}" for i in range(len(self.epoch_losses))],
            "loss": self.epoch_losses,
            "num_steps": state.global_step,
        }

    def _stop_clock(self) -> None:
        now = time.monotonic()
        self.work_seconds, self._began = self.work_seconds + now - self._began, now


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
