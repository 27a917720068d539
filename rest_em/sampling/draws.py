"""Tokens from logits and random numbers that belong to a sample, not to a batch.

Temperature, then `top_k`, then `top_p` over the renormalised rest, as transformers' warpers; then one uniform
number a token picks from the cumulative distribution. `torch.multinomial` is not used: over a vocabulary it
costs more than the model's forward pass, and its random numbers belong to the batch.

Shapes, as suffixes of names: b sequences, v vocabulary, k candidates.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np
import numpy.typing as npt
import torch

from rest_em.types import DrawRequest, SamplingParams

NUM_NUCLEUS_CANDIDATES = 256
"""So many likeliest tokens are sorted for `top_p`; a row whose mass they do not reach is sorted whole."""
BLOCK = 256
"""Tokens a block of the two-level search over a whole vocabulary."""


def uniforms(request: DrawRequest, problem_id: str, index: int) -> npt.NDArray[np.float64]:
    """Return the numbers in [0, 1) of one sample, one a token, from its identity alone."""
    identity = json.dumps([request.seed, request.name, problem_id, index]).encode()
    key = int.from_bytes(hashlib.sha256(identity).digest()[:16], "little")
    return np.random.Generator(np.random.Philox(key=key)).random(request.params.max_new_tokens)


def choose_tokens(logits_bv: torch.Tensor, uniforms_b: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """Return the next token of each row, int64.

    The uniforms are in [0, 1), float64, on the logits' device; a temperature of 0 does not look at them.
    """
    if params.temperature == 0:
        return logits_bv.argmax(dim=-1)
    if params.top_k:
        return _choose_of_top_k(logits_bv, uniforms_b, params)
    if params.top_p < 1:
        return _choose_of_nucleus(logits_bv, uniforms_b, params)
    return _choose_of_all(logits_bv, uniforms_b, params.temperature)


def _choose_of_top_k(
    logits_bv: torch.Tensor, uniforms_b: torch.Tensor, params: SamplingParams
) -> torch.Tensor:
    top_bk, ids_bk = logits_bv.topk(min(params.top_k, logits_bv.shape[-1]), dim=-1)
    probabilities_bk = torch.softmax(top_bk.double() / params.temperature, dim=-1)
    return _invert(_keep_nucleus(probabilities_bk, params.top_p), ids_bk, uniforms_b)


def _choose_of_nucleus(
    logits_bv: torch.Tensor, uniforms_b: torch.Tensor, params: SamplingParams
) -> torch.Tensor:
    scaled_bv = logits_bv.float() / params.temperature
    top_bk, ids_bk = scaled_bv.topk(min(NUM_NUCLEUS_CANDIDATES, scaled_bv.shape[-1]), dim=-1)
    probabilities_bk = (top_bk - scaled_bv.logsumexp(dim=-1, keepdim=True)).double().exp()
    tokens_b = _invert(_keep_nucleus(probabilities_bk, params.top_p), ids_bk, uniforms_b)
    (short,) = torch.nonzero(probabilities_bk.sum(dim=-1) < params.top_p, as_tuple=True)
    if len(short):
        sorted_bv, ids_bv = scaled_bv[short].sort(dim=-1, descending=True)
        kept_bv = _keep_nucleus(torch.softmax(sorted_bv.double(), dim=-1), params.top_p)
        tokens_b[short] = _invert(kept_bv, ids_bv, uniforms_b[short])
    return tokens_b


def _choose_of_all(logits_bv: torch.Tensor, uniforms_b: torch.Tensor, temperature: float) -> torch.Tensor:
    """Search the block, then the token in it, with sums in float64."""
    probabilities_bv = torch.softmax(logits_bv.float() / temperature, dim=-1)
    padding = -probabilities_bv.shape[-1] % BLOCK
    blocks = torch.nn.functional.pad(probabilities_bv, (0, padding)).view(len(logits_bv), -1, BLOCK)
    sums = blocks.sum(dim=-1, dtype=torch.float64)
    ends = sums.cumsum(dim=-1)
    targets = (uniforms_b * ends[:, -1])[:, None]
    block = torch.searchsorted(ends, targets, right=True).clamp_(max=ends.shape[-1] - 1)
    starts = ends.gather(1, block) - sums.gather(1, block)
    inside = blocks.gather(1, block[..., None].expand(-1, -1, BLOCK)).squeeze(1).double()
    return block.squeeze(1) * BLOCK + _search(inside, (targets - starts).clamp_(min=0))


def _keep_nucleus(probabilities_bk: torch.Tensor, top_p: float) -> torch.Tensor:
    """Zero what lies outside the smallest leading set whose probability reaches `top_p`; the first stays."""
    if top_p >= 1:
        return probabilities_bk
    before_bk = probabilities_bk.cumsum(dim=-1) - probabilities_bk
    before_bk[:, 0] = 0
    return probabilities_bk.masked_fill(before_bk >= top_p, 0)


def _invert(kept_bk: torch.Tensor, ids_bk: torch.Tensor, uniforms_b: torch.Tensor) -> torch.Tensor:
    """Draw among the kept candidates in the order of their ids.

    In the order of their probabilities, the last bit of a logit would decide which of two tokens that are
    about equally likely a number means.
    """
    ids_bk, order_bk = ids_bk.sort(dim=-1)
    kept_bk = kept_bk.gather(1, order_bk)
    targets = (uniforms_b * kept_bk.sum(dim=-1))[:, None]
    return ids_bk.gather(1, _search(kept_bk, targets)[:, None]).squeeze(1)


def _search(probabilities_bk: torch.Tensor, targets_b1: torch.Tensor) -> torch.Tensor:
    """Return the first place whose cumulative probability exceeds the target.

    Rounding can put the target at or above the last sum: the last place with any probability then serves.
    """
    ends_bk = probabilities_bk.cumsum(dim=-1)
    found = torch.searchsorted(ends_bk, targets_b1, right=True)
    last = torch.searchsorted(ends_bk, ends_bk[:, -1:].contiguous())
    return torch.minimum(found, last).squeeze(1)
