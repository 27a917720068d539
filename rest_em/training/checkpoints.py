"""What an epoch leaves: an ordinary Hugging Face folder, and the adapter if there is one."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

from rest_em.storage import replacing_folder
from rest_em.training.base import Base, is_adapted
from rest_em.training.trainer import WeightedTrainer


class Checkpoints:
    """Writes `output/epoch-<k>`, whole or not at all."""

    def __init__(self, trainer: WeightedTrainer, base: Base, output: Path) -> None:
        self._trainer = trainer
        self._base = base
        self._output = output

    def save(self, epoch: int) -> None:
        """Save the weights after an epoch; every rank calls it, rank 0 writes."""
        weights = self._trainer.accelerator.get_state_dict(self._trainer.model_wrapped)
        if self._trainer.is_world_process_zero():
            with replacing_folder(self._output / f"epoch-{epoch}") as folder:
                self._write(folder, weights)
        self._trainer.accelerator.wait_for_everyone()

    def _write(self, folder: Path, weights: dict[str, torch.Tensor]) -> None:
        model: Any = self._trainer.accelerator.unwrap_model(self._trainer.model_wrapped)
        if is_adapted(model):
            model.save_pretrained(folder / "adapter", state_dict=weights)
            model = self._merged(folder / "adapter")
            weights = model.state_dict()
        model.save_pretrained(folder, state_dict=_cast(weights, self._base.dtype))
        # The base's own configuration: training has changed dtype and use_cache in the model's.
        config = copy.deepcopy(self._base.config)
        config.architectures = model.config.architectures
        config.dtype = self._base.dtype
        config.save_pretrained(folder)
        self._base.tokenizer.save_pretrained(folder)

    def _merged(self, adapter: Path) -> PreTrainedModel:
        """Return a fresh base with the adapter merged into it, whole on this rank, also under ZeRO-3."""
        from peft import PeftModel

        unset_hf_deepspeed_config()  # type: ignore[no-untyped-call]
        adapted = PeftModel.from_pretrained(self._base.read(torch.float32), str(adapter))
        merged: PreTrainedModel = adapted.merge_and_unload()
        plugin = self._trainer.accelerator.state.deepspeed_plugin
        if plugin is not None:
            set_hf_deepspeed_config(plugin.hf_ds_config)  # type: ignore[no-untyped-call]
        return merged


def _cast(weights: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return the weights in `dtype`; tied weights stay one tensor, so that they are saved once."""
    by_storage: dict[tuple[int, torch.Size], torch.Tensor] = {}
    for tensor in weights.values():
        by_storage.setdefault((tensor.data_ptr(), tensor.shape), tensor.to(dtype))
    return {name: by_storage[tensor.data_ptr(), tensor.shape] for name, tensor in weights.items()}
