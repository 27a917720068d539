"""The loss of the M-step: the weighted negative log-likelihood of the solutions' tokens.

Logits are computed where a solution token is predicted and nowhere else, and in fp32 for a bounded number of
tokens at once, whatever the batch.
"""

# Shapes: B examples in the micro-batch, T tokens, K last positions whose logits are computed, S solution
# tokens, C of them at once, H hidden size, V vocabulary.

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from rest_em.packs import num_chunks


def solution_loss(
    logits_BKV: torch.Tensor, positions_S: torch.Tensor, targets_S: torch.Tensor, weights_S: torch.Tensor
) -> torch.Tensor:
    """Return the sum over solution tokens of weight times negative log-likelihood, in fp32.

    Args:
        logits_BKV: of the last positions of each row.
        positions_S: which of all rows' positions, counted through, predict the solution tokens.
        targets_S: those tokens.
        weights_S: what each counts.
    """
    logits_NV = logits_BKV.flatten(0, 1)
    return _in_chunks(
        lambda positions_C: logits_NV.index_select(0, positions_C),
        positions_S,
        targets_S,
        weights_S,
        vocab_size=logits_NV.shape[1],
    )


class SolutionLoss:
    """A causal language model's forward that returns the loss of a pack in the place of logits.

    The loss is within the forward of the model, and its head in one call of the head's module, so that DDP
    and DeepSpeed, which act before and after a module, see one pass and gather the head's weights once.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """Take over the model's forward and its head's.

        Args:
            model: without peft's wrapper.
        """
        self._decoder, self._head = model.base_model, model.get_output_embeddings()  # type: ignore[no-untyped-call]
        self._vocab_size: int = model.config.vocab_size
        self._scaling: float = getattr(model.config, "logits_scaling", 1.0)  # Granite's
        self._project: Callable[[torch.Tensor], torch.Tensor] = self._head.forward
        self._head.forward = self._loss
        model.forward = self

    def __call__(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        predicting_S: torch.Tensor,
        targets_S: torch.Tensor,
        weights_S: torch.Tensor,
        **_defaults: Any,
    ) -> torch.Tensor:
        """Return the sum over solution tokens of weight times negative log-likelihood, in fp32.

        Args:
            input_ids: the pack, (1, T), as `position_ids`.
            predicting_S: places of the pack that predict the solution tokens.
            targets_S: those tokens.
            weights_S: what each counts.
            _defaults: what peft's wrapper passes besides.
        """
        hidden_1TH = self._decoder(
            input_ids=input_ids, position_ids=position_ids, use_cache=False
        ).last_hidden_state
        loss: torch.Tensor = self._head(hidden_1TH[0], predicting_S, targets_S, weights_S)
        return loss

    def _loss(
        self,
        hidden_TH: torch.Tensor,
        predicting_S: torch.Tensor,
        targets_S: torch.Tensor,
        weights_S: torch.Tensor,
    ) -> torch.Tensor:
        def project(predicting_C: torch.Tensor) -> torch.Tensor:
            logits_CV = self._project(hidden_TH.index_select(0, predicting_C))
            return logits_CV if self._scaling == 1 else logits_CV / self._scaling

        return _in_chunks(project, predicting_S, targets_S, weights_S, vocab_size=self._vocab_size)


def _in_chunks(
    logits_of: Callable[[torch.Tensor], torch.Tensor],
    places_S: torch.Tensor,
    targets_S: torch.Tensor,
    weights_S: torch.Tensor,
    *,
    vocab_size: int,
) -> torch.Tensor:
    def loss_of(places_C: torch.Tensor, targets_C: torch.Tensor, weights_C: torch.Tensor) -> torch.Tensor:
        logits_CV = logits_of(places_C).float()
        return (cross_entropy(logits_CV, targets_C, reduction="none") * weights_C).sum()

    number = num_chunks(len(places_S), vocab_size)
    if number == 1:
        return loss_of(places_S, targets_S, weights_S)
    parts = [one.tensor_split(number) for one in (places_S, targets_S, weights_S)]
    losses = [
        checkpoint(loss_of, *chunk, use_reentrant=False, preserve_rng_state=False)
        for chunk in zip(*parts, strict=True)
    ]
    return torch.stack(losses).sum()
