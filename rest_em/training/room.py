"""Whether what an M-step will write has room on the disk of the run's folder, before it begins."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import TrainingArguments
from transformers.training_args import OptimizerNames

from rest_em.errors import TrainingError
from rest_em.recipe import TrainingSection
from rest_em.training.saved import MARKER

MASTER_BYTES = 4
"""Of a trained parameter in fp32."""
ADAMW_BYTES = 8
"""Of a trained parameter's moments, in fp32."""


@dataclass(frozen=True, slots=True)
class Written:
    """What an M-step writes, at least.

    Example:
        Written(epoch_bytes=269_000_000, checkpoint_bytes=1_614_000_000)
    """

    epoch_bytes: int
    """The folder of an epoch."""
    checkpoint_bytes: int
    """A checkpoint to go on from; 0: none are written."""


def written_by(
    model: torch.nn.Module,
    arguments: TrainingArguments,
    saved_dtype: torch.dtype,
    section: TrainingSection,
) -> Written:
    """Return what an M-step of this model writes, at least: of optimisers only AdamW's moments are counted.

    Args:
        model: its frozen parameters are an adapter's base, which a checkpoint leaves out.
        arguments: with the optimiser.
        saved_dtype: of an epoch's weights.
        section: the recipe's, which may do without checkpoints.
    """
    trained = frozen = 0
    for one in model.parameters():
        number = _num_elements(one)
        trained, frozen = (trained + number, frozen) if one.requires_grad else (trained, frozen + number)
    is_adamw = arguments.optim in (OptimizerNames.ADAMW_TORCH, OptimizerNames.ADAMW_TORCH_FUSED)
    per_trained = MASTER_BYTES + (ADAMW_BYTES if is_adamw else 0)
    adapter_bytes = trained * MASTER_BYTES if frozen else 0
    return Written(
        epoch_bytes=(frozen or trained) * saved_dtype.itemsize + adapter_bytes,
        checkpoint_bytes=trained * per_trained if section.save_seconds is not None else 0,
    )


def _num_elements(parameter: torch.nn.Parameter) -> int:
    """Return how many numbers a parameter stands for; ZeRO-3 shares them out, 4 bits pack two into a byte."""
    if hasattr(parameter, "ds_numel"):
        return int(parameter.ds_numel)
    packed = getattr(parameter, "quant_state", None)
    return parameter.numel() if packed is None else int(packed.shape.numel())


def check_room(output: Path, written: Written, num_epochs: int) -> None:
    """Refuse an M-step that would fill the disk of its folder.

    Args:
        output: the folder; epochs and a checkpoint that are there already need no more room.
        written: what it writes.
        num_epochs: of the whole M-step.

    Raises:
        TrainingError: there is too little room.
    """
    left = sum(not (output / f"epoch-{k + 1}").exists() for k in range(num_epochs))
    new = 1 if (output / MARKER).exists() else 2  # one is written while the one before it is still there
    epoch, checkpoint = written.epoch_bytes, written.checkpoint_bytes
    # The last checkpoint comes before the last epoch's folder, and then there is one less.
    needed = max(0, left - 1) * epoch + (new - 1) * checkpoint + max(epoch, checkpoint)
    output.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(output).free
    if needed <= free:
        return
    kept = f", and {new} at a time of {_size(checkpoint)} to go on from" if checkpoint else ""
    advice = ", or do without the latter by training.save_seconds: null" if checkpoint else ""
    raise TrainingError(
        f"{output}: the M-step needs {_size(needed)} on the disk, for {left} epochs' weights of "
        f"{_size(epoch)} each{kept}; {_size(free)} are free. Make room, or lower "
        f"training.num_train_epochs{advice}"
    )


def _size(num_bytes: int) -> str:
    """Return bytes as people read them.

    >>> _size(1_614_000_000), _size(2_400_000)
    ('1.61 GB', '2.40 MB')
    """
    return f"{num_bytes / 1e9:,.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:,.2f} MB"
