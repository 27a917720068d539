"""Checkpoints within an M-step, to go on from: `checkpoint-STEP`, and `checkpoint.json` once it is whole.

At most one whole one is kept, beside one that is being written. What is in them is left to transformers'
Trainer, and when they are written to `resume`; nothing here needs torch.
"""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path

from rest_em.errors import TrainingError
from rest_em.storage import read_json, write_json

MARKER = "checkpoint.json"
NOTE = "note.json"
"""In the folder of progress files: what a user is told of where the M-step begins."""


@dataclass(frozen=True, slots=True)
class SavedStep:
    """A whole checkpoint within an M-step.

    Example:
        SavedStep(step=12, num_epochs=1, num_ranks=2, strategy="zero3")
    """

    step: int
    """Optimiser steps done."""
    num_epochs: int
    """Epochs done; the folder of each was there before the checkpoint."""
    num_ranks: int
    """How many wrote it."""
    strategy: str
    """How their states were shared out, as `resume.strategy_of` names it."""

    def folder(self, output: Path) -> Path:
        """Return where it lies."""
        return step_folder(output, self.step)


def step_folder(output: Path, step: int) -> Path:
    """Return where transformers' Trainer saves after a step."""
    return output / f"checkpoint-{step}"


def last_saved(output: Path) -> SavedStep | None:
    """Return the whole checkpoint in an M-step's folder; None if there is none or a part of it is gone.

    Raises:
        TrainingError: what says so cannot be read.
    """
    marker = output / MARKER
    if not marker.exists():
        return None
    try:
        saved = SavedStep(**read_json(marker))
    except (TypeError, ValueError) as error:
        told = f"{marker}: cannot be read ({error}); remove it to begin this M-step again"
        raise TrainingError(told) from error
    needed = [saved.folder(output), *(output / f"epoch-{k + 1}" for k in range(saved.num_epochs))]
    return saved if all(path.exists() for path in needed) else None


def commit(output: Path, saved: SavedStep) -> None:
    """Let a checkpoint count, which is on disk, and remove the one before it."""
    write_json(output / MARKER, dataclasses.asdict(saved))
    _remove_steps(output, but=saved)


def remove_saved(output: Path) -> None:
    """Remove the checkpoints of an M-step that has ended."""
    (output / MARKER).unlink(missing_ok=True)
    _remove_steps(output, but=None)


def remove_later(output: Path, saved: SavedStep | None) -> None:
    """Remove what an interrupted M-step left after a checkpoint: epochs, half of another, its end."""
    (output / "training.json").unlink(missing_ok=True)
    if saved is None:
        (output / MARKER).unlink(missing_ok=True)
    _remove_steps(output, but=saved)
    kept = {f"epoch-{k + 1}" for k in range(saved.num_epochs if saved else 0)}
    for path in (*output.glob("epoch-*"), *output.glob(".epoch-*")):
        if path.name not in kept:
            shutil.rmtree(path)


def _remove_steps(output: Path, *, but: SavedStep | None) -> None:
    for path in output.glob("checkpoint-*"):
        if but is None or path != but.folder(output):
            shutil.rmtree(path)
