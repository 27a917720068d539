"""transformers' Trainer with the M-step's batches and its loss."""

# Shapes: B examples in the micro-batch, T tokens, K last positions whose logits are computed,
# S solution tokens, V vocabulary.

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from rest_em.batches import EncodedExample
from rest_em.training.attention import PackedAttention
from rest_em.training.base import without_adapter
from rest_em.training.loader import EpochLoader, MicroBatches, Packing, WeighedExamples, pack, pad
from rest_em.training.loss import SolutionLoss, solution_loss


class WeightedTrainer(Trainer):
    """transformers' Trainer with our batches and our loss."""

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: Any,
        arguments: TrainingArguments,
        examples: list[EncodedExample],
        order_seed: str,
        packing: Packing,
    ) -> None:
        """Take over the model's attention and its loss where examples are packed."""
        inner = without_adapter(model)
        self._attention = PackedAttention()
        self._can_keep_logits = "logits_to_keep" in inspect.signature(inner.forward).parameters
        if packing.is_packed:
            self._attention.install(inner)
            SolutionLoss(inner)
        super().__init__(model=model, args=arguments)
        self._examples = examples
        self._order_seed = order_seed
        self._packing = packing
        self.num_computed = 0
        """Tokens that this rank has computed since they were last counted, prompts and padding among them."""

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return this rank's micro-batches; not prepared by accelerate, which would share them out again."""
        packing = self._packing
        return EpochLoader(
            WeighedExamples(self._examples),
            batch_sampler=MicroBatches(self._examples, self.args, self._order_seed, packing=packing),
            collate_fn=functools.partial(pack, share_prefixes=packing.share_prefixes)
            if packing.is_packed
            else pad,
            pin_memory=self.args.dataloader_pin_memory and self.args.device.type == "cuda",
        )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the weights to go on from; not under DeepSpeed, whose own checkpoint has them."""
        if not self.is_deepspeed_enabled:
            super().save_model(output_dir, _internal_call)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Return the micro-batch's part of the global batch's loss, times the number of ranks."""
        assert not return_outputs, "rest_em evaluates by sampling"
        self.num_computed += inputs["input_ids"].numel()
        if not self._packing.is_packed:
            return self._padded_loss(model, inputs["input_ids"], inputs["token_weights"])
        self._attention.segments = inputs.pop("segments")
        return model(**inputs)

    def _padded_loss(
        self, model: torch.nn.Module, input_ids_BT: torch.Tensor, weights_BT: torch.Tensor
    ) -> torch.Tensor:
        rows_S, places_S = torch.nonzero(weights_BT, as_tuple=True)
        length = weights_BT.shape[1]
        first = int(places_S.min()) if len(places_S) else length - 1
        kept = {"logits_to_keep": length - first + 1} if self._can_keep_logits else {}
        logits_BKV = model(input_ids=input_ids_BT, use_cache=False, **kept).logits
        num_kept = logits_BKV.shape[1]
        return solution_loss(
            logits_BKV,
            rows_S * num_kept + places_S - 1 - (length - num_kept),
            input_ids_BT[rows_S, places_S],
            weights_BT[rows_S, places_S],
        )
