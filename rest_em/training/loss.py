"""The loss of the M-step: the weighted negative log-likelihood of the solutions' tokens."""

# Shapes: B examples in the micro-batch, K last positions whose logits are computed, S solution tokens,
# V vocabulary.

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy


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
    logits_SV = logits_BKV.flatten(0, 1).index_select(0, positions_S).float()
    return (cross_entropy(logits_SV, targets_S, reduction="none") * weights_S).sum()
