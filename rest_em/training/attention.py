"""Attention over a pack: each segment sees itself, causally, and what its examples begin with.

transformers' own code computes everything else of a model; it asks its attention of an `AttentionInterface`
and is given this one. A kernel is called once a segment, without a mask where the segment begins an example.
Left out: sliding windows that are shorter than an example, score caps, sinks and position biases.
"""

# Shapes: T tokens of the pack, Q queries, H heads, G key-value heads, D size of a head.

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention
from transformers import PretrainedConfig, PreTrainedModel

from rest_em.packs import FAMILIES, Segment
from rest_em.tokens import sliding_window

NAME = "rest_em_packed"
"""The attention's name in transformers; `flash` in it would make models unpad their input."""

Kernel = Callable[..., torch.Tensor]


class PackedAttention:
    """An attention function for transformers; `segments` says what the present pass computes.

    A plain attribute, not a context: with activation checkpointing a layer is computed again in the backward
    pass, which runs in another thread on a GPU.
    """

    def __init__(self, kernel: Kernel | None = None) -> None:
        """Use torch's kernels, or, for an account of memory, one that computes nothing."""
        self.segments: Sequence[Segment] = ()
        self._kernel = kernel or attend_causally

    def install(self, model: PreTrainedModel) -> None:
        """Let the model attend so from now on."""
        from transformers import AttentionInterface

        AttentionInterface.register(NAME, self)
        model.set_attn_implementation(NAME)

    def __call__(  # noqa: PLR0917 - transformers' signature
        self,
        module: torch.nn.Module,
        query_1HTD: torch.Tensor,
        key_1GTD: torch.Tensor,
        value_1GTD: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        **options: Any,
    ) -> tuple[torch.Tensor, None]:
        """Return (1, T, H, D) and no weights."""
        assert attention_mask is None, "transformers makes no mask for an attention that it does not know"
        sizes = [segment.end - segment.start for segment in self.segments]
        # Pieces of a split, not slices: the gradients of slices are each as large as the whole.
        queries, keys, values = (
            torch.split(_as_autocast(one), sizes, dim=2) for one in (query_1HTD, key_1GTD, value_1GTD)
        )
        found = []
        for number, segment in enumerate(self.segments):
            seen_keys, seen_values = (_seen(pieces, segment, number) for pieces in (keys, values))
            out_1HQD = self._kernel(queries[number], seen_keys, seen_values, dropout_p=dropout, scale=scaling)
            found.append(out_1HQD.transpose(1, 2))
        return found[0] if len(found) == 1 else torch.cat(found, dim=1), None


def attend_causally(
    query_1HQD: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    *,
    dropout_p: float,
    scale: float | None,
) -> torch.Tensor:
    """Return (1, H, Q, D), the queries being the last of the keys' tokens."""
    num_new, num_seen = query_1HQD.shape[2], keys.shape[2]
    mask = causal_lower_right(num_new, num_seen) if num_new < num_seen else None
    return scaled_dot_product_attention(
        query_1HQD,
        keys,
        values,
        attn_mask=mask,
        dropout_p=dropout_p,
        is_causal=mask is None,
        scale=scale,
        enable_gqa=query_1HQD.shape[1] != keys.shape[1],
    )


def _as_autocast(tensor: torch.Tensor) -> torch.Tensor:
    """Return queries, keys or values in the precision that autocast would give them to the kernel in."""
    device = tensor.device.type
    return tensor.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else tensor


def _seen(pieces: Sequence[torch.Tensor], segment: Segment, number: int) -> torch.Tensor:
    """Return the keys or values that a segment sees, its own the last."""
    if not segment.sees:
        return pieces[number]
    return torch.cat([pieces[index] for index in (*segment.sees, number)], dim=2)


def why_not_packed(config: PretrainedConfig, longest: int) -> str | None:
    """Return why a model's examples are trained on padded, None where they are packed.

    Args:
        longest: tokens of the longest example.
    """
    if config.model_type not in FAMILIES:
        return f"packing has not been tried with models of the type {config.model_type}"
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if getattr(config, key, None) is not None:
            return f"it has {key}"
    window = sliding_window(config)
    if window is not None and window < longest:
        return f"it has a sliding window of {window} tokens, and the longest example has {longest}"
    return None
