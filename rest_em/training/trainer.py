"""transformers' Trainer with the M-step's batches and its loss."""

# Shapes: B examples in the micro-batch, T tokens, K last positions whose logits are computed,
# S solution tokens, V vocabulary.

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from rest_em.batches import EncodedExample
from rest_em.training.base import is_adapted
from rest_em.training.loader import EpochLoader, MicroBatches, WeighedExamples, collate
from rest_em.training.loss import solution_loss


class WeightedTrainer(Trainer):
    """transformers' Trainer with our batches and our loss."""

    loss_is_scaled_for_ga = True

    def __init__(
        self, model: Any, arguments: TrainingArguments, examples: list[EncodedExample], order_seed: str
    ) -> None:
        super().__init__(model=model, args=arguments)
        self._examples = examples
        self._order_seed = order_seed
        self.num_computed = 0
        """Tokens that this rank has computed, prompts and padding among them."""
        parameters = inspect.signature(model.get_base_model().forward if is_adapted(model) else model.forward)
        self._can_keep_logits = "logits_to_keep" in parameters.parameters

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return this rank's micro-batches; not prepared by accelerate, which would share them out again."""
        return EpochLoader(
            WeighedExamples(self._examples),
            batch_sampler=MicroBatches(self._examples, self.args, self._order_seed),
            collate_fn=collate,
            pin_memory=self.args.device.type == "cuda",
        )

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Return the micro-batch's part of the global batch's loss, times the number of ranks."""
        assert not return_outputs, "rest_em evaluates by sampling"
        weights_BT = inputs.pop("token_weights")
        self.num_computed += weights_BT.numel()
        rows_S, places_S = torch.nonzero(weights_BT, as_tuple=True)
        length = weights_BT.shape[1]
        first = int(places_S.min()) if len(places_S) else length - 1
        kept = {"logits_to_keep": length - first + 1} if self._can_keep_logits else {}
        logits_BKV = model(**inputs, **kept).logits
        num_kept = logits_BKV.shape[1]
        return solution_loss(
            logits_BKV,
            rows_S * num_kept + places_S - 1 - (length - num_kept),
            inputs["input_ids"][rows_S, places_S],
            weights_BT[rows_S, places_S],
        )
