"""Which engine decodes a policy: the shared-prefix one where the model allows it, else transformers' own.

What a model's code does with its attention is not declared anywhere, so it is tried: a few tokens are
computed both ways, and a model whose logits differ is left to the stock engine.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from rest_em.sampling.attention import (
    HeadAttention,
    PromptAttention,
    RowAttention,
    UnsupportedAttentionError,
    forward,
    installed,
)
from rest_em.sampling.policy import LoadedPolicy
from rest_em.sampling.progress import Observer
from rest_em.sampling.shared_prefix import SharedPrefixSampler
from rest_em.sampling.stock import StockSampler
from rest_em.tokens import encode_prompt, sliding_window
from rest_em.types import DrawRequest, Problem, Sampler, Solution

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TRIAL_SHARES = ((0.21, 0.47, 0.33, 0.72, 0.58, 0.15, 0.64), (0.21, 0.47, 0.39, 0.81, 0.27, 0.53))
"""Two short sequences with a common head, ids as shares of the vocabulary.

From its middle: the first ids are often special tokens with untrained embeddings, whose bfloat16 logits may
differ by their own size between any two ways to compute them (seen: 0.17 to 3.3 on tuned models).
"""
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.15, torch.float16: 0.15}
"""How far the two ways' logits may differ, relative to their size; seen in bfloat16: at most 0.036."""


def make_sampler(policy: LoadedPolicy, attn_implementation: str, observe: Observer) -> Sampler:
    """Return the engine for a policy and the recipe's `model.attn_implementation`, `auto` or `stock`.

    Says on stderr if `auto` finds that the fast engine cannot serve the model.
    """
    stock = StockSampler(policy, observe)
    if attn_implementation == "stock":
        return stock
    reason = unsupported_reason(policy.model)
    if reason is not None:
        kind = type(policy.model).__name__
        print(f"sampling with transformers' generate, which is slower: {kind}: {reason}", file=sys.stderr)
        return stock
    return _WindowedSampler(policy, SharedPrefixSampler(policy, observe), stock)


class _WindowedSampler:
    """The shared-prefix engine, and the stock one for units that are longer than a sliding window."""

    def __init__(self, policy: LoadedPolicy, shared_prefix: Sampler, stock: Sampler) -> None:
        self._policy = policy
        self._window = sliding_window(policy.model.config)
        self._shared_prefix = shared_prefix
        self._stock = stock

    def __call__(self, request: DrawRequest, unit: Sequence[tuple[Problem, range]]) -> list[Solution]:
        if self._window is None:
            return self._shared_prefix(request, unit)
        longest = max(len(encode_prompt(self._policy.tokenizer, problem.prompt)) for problem, _ in unit)
        fits = longest + request.params.max_new_tokens <= self._window
        return (self._shared_prefix if fits else self._stock)(request, unit)


def unsupported_reason(model: PreTrainedModel) -> str | None:
    """Return why the shared-prefix engine cannot decode a model, None if it can."""
    if not model._can_set_attn_implementation():
        return "its attention cannot be set"
    if model._is_stateful:
        return "it keeps a state that is no key-value cache"
    try:
        with torch.inference_mode():
            expected = [_plain_logits(model, one) for one in _trial_sequences(model)]
            with installed(model):
                found = _try_three_passes(model).float()
    except UnsupportedAttentionError as error:
        return str(error)
    # The model's code is not ours: whatever it raises when used in this way, the stock engine serves it.
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    difference = max(
        ((one - other).norm() / other.norm()).item() for one, other in zip(found, expected, strict=True)
    )
    if not difference <= TOLERANCE[model.dtype]:
        return f"its logits differ by {difference:.2g} of their size"
    return None


def _trial_sequences(model: PreTrainedModel) -> list[list[int]]:
    vocabulary = model.config.get_text_config().vocab_size
    return [[int(share * vocabulary) for share in shares] for shares in TRIAL_SHARES]


def _plain_logits(model: PreTrainedModel, token_ids: Sequence[int]) -> torch.Tensor:
    """Return the logits after a sequence as the model itself computes them."""
    tokens = torch.tensor([token_ids], device=model.device)
    logits: torch.Tensor = model(input_ids=tokens, use_cache=False).logits[0, -1]
    return logits.float()


def _try_three_passes(model: PreTrainedModel) -> torch.Tensor:
    """Return the logits after both trial sequences: head once, padded rests, then the last tokens as rows."""
    device = model.device
    long, short = _trial_sequences(model)
    head = HeadAttention()
    forward(model, head, torch.tensor([long[:2]], device=device), torch.arange(2, device=device)[None], 1)
    prompts = PromptAttention(head)
    padded = torch.tensor([long[2:-1], [*short[2:-1], 0]], device=device)
    positions = torch.arange(2, 2 + padded.shape[1], device=device).expand_as(padded)
    forward(model, prompts, padded, positions, torch.tensor([[3], [2]], device=device))
    rows = RowAttention(head, max_rows=2)
    rows.start(prompts, [0, 1], [len(long) - 3, len(short) - 3])
    rows.next_token(device)
    last = torch.tensor([[long[-1]], [short[-1]]], device=device)
    at = torch.tensor([[len(long) - 1], [len(short) - 1]], device=device)
    return forward(model, rows, last, at, 1)[:, -1]
