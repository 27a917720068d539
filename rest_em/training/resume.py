"""Leaving an M-step where it is, and going on from there: when it is saved, and who can read it again.

What is saved is the checkpoint of transformers' Trainer: weights, optimiser, schedule and random states,
under DeepSpeed each rank's share of them. Rank 0 decides and tells the others, after every step.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rest_em.storage import flush_folder
from rest_em.training.saved import SavedStep, commit, last_saved, remove_later, step_folder
from rest_em.usage import USAGE

REPLICATED = "replicated"
"""The strategy under which every rank holds all states, so that any number of ranks can read them."""
GO_ON, SAVE, LEAVE, LEAVE_UNSAVED = range(4)


@dataclass(frozen=True, slots=True)
class Start:
    """Where an M-step begins.

    Example:
        Start(12, "goes on after step 12")
    """

    step: int
    """Optimiser steps that are done already."""
    note: str | None
    """What a user is told of it; None where there is nothing to tell, and on all ranks but 0."""

    def checkpoint(self, output: Path) -> str | None:
        """Return what the Trainer resumes from."""
        return str(step_folder(output, self.step)) if self.step else None


def find_start(output: Path, arguments: TrainingArguments) -> Start:
    """Return where all ranks begin; rank 0 removes what an interrupted attempt has done beyond that.

    A checkpoint that these ranks cannot read stays until there is another: those that wrote it can go on.
    """
    start = Start(0, None)
    if arguments.process_index == 0:
        saved = last_saved(output)
        remove_later(output, saved)
        start = _start_from(saved, arguments.world_size, strategy_of(arguments))
        if not start.step:  # what is done again counts once
            shutil.rmtree(output / USAGE, ignore_errors=True)
    return Start(agreed(start.step, arguments.device), start.note)


def _start_from(saved: SavedStep | None, num_ranks: int, strategy: str) -> Start:
    """Return where ranks begin that find a checkpoint; `saved` is None where they find none.

    >>> _start_from(SavedStep(step=12, num_epochs=1, num_ranks=1, strategy="replicated"), 2, "replicated")
    Start(step=12, note='goes on after step 12 with 2 ranks; 1 rank went so far')
    """
    if saved is None:
        return Start(0, None)
    told, now = _ranks(saved.num_ranks), _ranks(num_ranks)
    if (saved.strategy, saved.num_ranks) == (strategy, num_ranks):
        return Start(saved.step, f"goes on after step {saved.step}")
    if saved.strategy == strategy == REPLICATED:
        return Start(saved.step, f"goes on after step {saved.step} with {now}; {told} went so far")
    return Start(
        0,
        f"begins again from its start: {now} ({strategy}) cannot read the checkpoint after step "
        f"{saved.step}, which {told} wrote ({saved.strategy}). It stays until there is another: to go on "
        "from it, stop this run and launch it as before",
    )


def _ranks(number: int) -> str:
    return "1 rank" if number == 1 else f"{number} ranks"


def strategy_of(arguments: TrainingArguments) -> str:
    """Return how the ranks share out the states, as far as reading a checkpoint depends on it.

    Example: `replicated`, `zero3`, `zero2, optimizer on cpu, bf16`.
    """
    plugin = arguments.deepspeed_plugin
    if plugin is None:
        return REPLICATED
    settings: dict[str, Any] = plugin.hf_ds_config.config.get("zero_optimization", {})
    offloads = [(part, settings.get(f"offload_{part}") or {}) for part in ("optimizer", "param")]
    words = [
        f"zero{settings.get('stage', 0)}",
        *(f"{part} on {to['device']}" for part, to in offloads if to.get("device", "none") != "none"),
        *([f"sub_group_size {settings['sub_group_size']}"] if "sub_group_size" in settings else []),
        *(["bf16"] if arguments.bf16 else []),
    ]
    return ", ".join(words)


def agreed(value: int, device: torch.device) -> int:
    """Return rank 0's value on every rank."""
    if not torch.distributed.is_initialized():
        return value
    told = torch.tensor([value], device=device)
    torch.distributed.broadcast(told, src=0)
    return int(told)


def steps_per_epoch(state: TrainerState) -> int:
    return state.max_steps // int(state.num_train_epochs)


def is_epoch_over(state: TrainerState) -> bool:
    return state.global_step % steps_per_epoch(state) == 0


class Interruptions(TrainerCallback):
    """Has a checkpoint written when one is due, and the training left when the file `stop` is there.

    After an epoch's last step this waits until the epoch's folder is written, so that a checkpoint never
    goes on beyond an epoch that has none. After the last epoch of all there is nothing to go on from.
    """

    def __init__(
        self,
        trainer: Trainer,
        output: Path,
        stop: Path,
        save_seconds: float | None,
        *,
        on_saved: Callable[[], None],
    ) -> None:
        """Wait for the first step.

        Args:
            stop: the file; only rank 0 looks for it.
            save_seconds: between two checkpoints; None: none are written, whoever asks to leave.
            on_saved: called on every rank once a checkpoint counts.
        """
        self._trainer = trainer
        self._output = output
        self._stop = stop
        self._save_seconds = save_seconds
        self._on_saved = on_saved
        self._saved_at = time.monotonic()
        self.has_left = False
        self.has_begun = False
        """Whether all that is resumed from has been read."""

    def leaves_at_once(self) -> bool:
        """Say whether the training is left before it has begun: the file came while the model was loaded."""
        self.has_left = agreed(int(self._stop.exists()), self._trainer.args.device) == 1
        return self.has_left

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin to count the time."""
        self.has_begun = True
        self._saved_at = time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save or leave within an epoch."""
        if not is_epoch_over(state):
            self._decide(args, state, control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save or leave between two epochs; the Trainer calls it too where an epoch was left."""
        if is_epoch_over(state) and state.global_step < state.max_steps:
            self._decide(args, state, control)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Let what every rank has just written count, once it is on disk."""
        accelerator = self._trainer.accelerator
        saved = SavedStep(
            step=state.global_step,
            num_epochs=state.global_step // steps_per_epoch(state),
            num_ranks=args.world_size,
            strategy=strategy_of(args),
        )
        accelerator.wait_for_everyone()
        flush_folder(saved.folder(self._output))
        accelerator.wait_for_everyone()
        if state.is_world_process_zero:
            commit(self._output, saved)
        accelerator.wait_for_everyone()
        self._on_saved()
        self._saved_at = time.monotonic()

    def _decide(self, args: TrainingArguments, state: TrainerState, control: TrainerControl) -> None:
        decision = agreed(self._decision(state) if args.process_index == 0 else GO_ON, args.device)
        control.should_save = decision in (SAVE, LEAVE)
        control.should_training_stop = self.has_left = decision in (LEAVE, LEAVE_UNSAVED)

    def _decision(self, state: TrainerState) -> int:
        """Return what rank 0 decides; what other ranks left after this very step is not written over."""
        is_taken = step_folder(self._output, state.global_step).exists()
        can_save = self._save_seconds is not None and not is_taken
        if self._stop.exists():
            return LEAVE if can_save else LEAVE_UNSAVED
        is_due = self._save_seconds is not None and time.monotonic() - self._saved_at >= self._save_seconds
        return SAVE if is_due and can_save else GO_ON
