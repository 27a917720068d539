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

from rest_em.packs import Segment

NAME = "rest_em_packed"
"""The attention's name in transformers; `flash` in it would make models unpad their input."""
FAMILIES = (
    "gemma", "gemma3_text", "gpt2", "gpt_neox", "granite", "llama", "mistral", "mixtral", "olmo2", "phi",
    "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "smollm3", "stablelm", "starcoder2",
)  # fmt: skip
"""Whose loss and gradients were seen to be the same packed and one by one, by `model_type`; a test looks."""

Kernel = Callable[..., torch.Tensor]


class PackedAttention:
    """An attention function for transformers; `segments` says what the present pass computes.

    A plain attribute, not a context: with activation checkpointing a layer is computed again in the backward
    pass, which runs in another thread on a GPU.
    """

    def __init__(self, kernel: Kernel = scaled_dot_product_attention) -> None:
        self.segments: Sequence[Segment] = ()
        self._kernel = kernel

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
        has_groups = query_1HTD.shape[1] != key_1GTD.shape[1]
        found = []
        for segment in self.segments:
            query_1HQD = query_1HTD[:, :, segment.start : segment.end]
            keys, values = (_seen(one, segment) for one in (key_1GTD, value_1GTD))
            num_new, num_seen = query_1HQD.shape[2], keys.shape[2]
            mask = causal_lower_right(num_new, num_seen) if segment.sees else None
            found.append(
                self._kernel(
                    query_1HQD,
                    keys,
                    values,
                    attn_mask=mask,
                    dropout_p=dropout,
                    is_causal=mask is None,
                    scale=scaling,
                    enable_gqa=has_groups,
                )
            )
        return torch.cat(found, dim=2).transpose(1, 2), None


def _seen(rows_1GTD: torch.Tensor, segment: Segment) -> torch.Tensor:
    """Return the keys or values that a segment sees, its own the last."""
    runs = [*segment.sees, (segment.start, segment.end)]
    parts = [rows_1GTD[:, :, start:end] for start, end in runs]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


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
    window = narrowest_window(config)
    if window is not None and window < longest:
        return f"it has a sliding window of {window} tokens, and the longest example has {longest}"
    return None


def narrowest_window(config: PretrainedConfig) -> int | None:
    """Return how many tokens the narrowest layer sees, None if all see everything."""
    from transformers.cache_utils import DynamicCache, DynamicSlidingWindowLayer

    layers = DynamicCache(config=config).layers
    return min(
        (layer.get_max_length() for layer in layers if isinstance(layer, DynamicSlidingWindowLayer)),
        default=None,
    )
