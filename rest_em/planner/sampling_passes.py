"""What a pass through the model and the choice of its tokens hold for a moment: activations and temporaries.

As transformers 5.23 writes its layers in eager mode under inference, and as `rest_em.sampling` its attention
and draws; read off the storages that were alive at the peaks of traced runs. What an operation takes inside
itself is left out.
"""

from __future__ import annotations

import math

from rest_em.planner.sampling_setup import SamplingSetup
from rest_em.planner.shapes import ModelShape

DRAW_BLOCK = 256
"""`rest_em.sampling.draws.BLOCK`, and `NUM_NUCLEUS_CANDIDATES`."""


def kept_width(shape: ModelShape) -> int:
    """Return the numbers a token and layer that stay with a prompt's keys and values.

    Where one product gives queries, keys and values, those that are views of it keep all of it: both in
    GPT-2; the values, beside rotated keys, in GPT-NeoX and Phi-3.
    """
    if shape.family == "gpt2":
        return shape.query_width + 2 * shape.kv_width
    if shape.family in ("gpt_neox", "phi3"):
        return shape.query_width + 3 * shape.kv_width
    return 2 * shape.kv_width


def mlp_width(shape: ModelShape) -> int:
    """Return the numbers a token in a layer's MLP, with the residual stream: the usual peak of a pass.

    What the eager code holds at once: `gate`'s activation, `up` and their product; `gelu_new`'s input and
    three of its steps; a token's chosen experts side by side. And the embedding, the layer's input, the sum
    behind the attention, the norm, and the rotation's cosines and sines.
    """
    around = 4 * shape.hidden_size + 2 * shape.rotary_dim
    if shape.family == "gpt2":
        around += 2 * shape.hidden_size
    experts = shape.experts
    if experts is not None:
        chosen = experts.num_active * (shape.hidden_size + 4 * experts.intermediate_size)
        return around + 3 * experts.num_experts + max(chosen, 3 * experts.shared_intermediate_size)
    if shape.family in ("gpt2", "gpt_neox", "phi", "starcoder2"):
        return around + shape.intermediate_size * (4 if shape.activation == "gelu_new" else 2)
    return around + shape.intermediate_size * (4 if shape.family == "phi3" else 3)


def attention_bytes(shape: ModelShape, width: int) -> int:
    """Return the bytes a token before the attention: queries, then keys, rotated, or queries normalised.

    A norm computes in float32: beside bfloat16 there are two such copies of the queries, and means and roots.
    """
    query, kv = shape.query_width, shape.kv_width
    rotating = max(4 * query + 2 * kv, 2 * query + 5 * kv) if shape.rotary_dim else 2 * (query + kv)
    normalising = query * (width + 8) + 8 * shape.num_heads if shape.has_qk_norm and width == 2 else 0
    if shape.family == "gemma3_text" and normalising:
        normalising += shape.hidden_size * width
    return width * (3 * shape.hidden_size + 2 * shape.rotary_dim) + max(width * rotating, normalising)


def prefill_bytes(shape: ModelShape, setup: SamplingSetup, num_prompts: int, new: int, seen: int) -> int:
    """Return the activations of a pass over prompts, beside all layers' keys and values.

    Args:
        new: tokens a prompt computed now.
        seen: tokens that the last of them attends to.
    """
    width, tokens = setup.dtype_bytes, num_prompts * new
    is_shared = setup.engine == "shared_prefix"
    kept = tokens * width * (kept_width(shape) if is_shared else 2 * shape.kv_width)
    attend = _shared_attention_bytes if is_shared else _stock_attention_bytes
    attending = max(tokens * attention_bytes(shape, width), attend(shape, setup, num_prompts, new, seen))
    return max(tokens * width * mlp_width(shape), attending - kept)


def _shared_attention_bytes(
    shape: ModelShape, setup: SamplingSetup, num_prompts: int, new: int, seen: int
) -> int:
    """Return what is held inside the attention over prompts: the head joined to them, and masked scores.

    Without a fused kernel torch computes scores and their softmax in float32, 8 bytes a pair, on keys and
    values repeated for each query head, and float32 copies of what it is given in bfloat16.
    """
    width, query, kv = setup.dtype_bytes, shape.query_width, shape.kv_width
    tokens, all_seen = num_prompts * new, num_prompts * seen
    is_grouped = shape.num_heads != shape.num_kv_heads
    held = tokens * width * (3 * shape.hidden_size + 2 * shape.rotary_dim + 2 * query + 2 * kv)
    held += new * seen + (2 * kv * all_seen * width if seen > new else 0)
    if (not is_grouped) if setup.has_fused_attention is None else setup.has_fused_attention:
        return held
    held += 8 * shape.num_heads * tokens * seen
    held += 2 * query * all_seen * width if is_grouped else 0
    return held + (4 * query * (tokens + 2 * all_seen) if width == 2 else 0)


def _stock_attention_bytes(
    shape: ModelShape, setup: SamplingSetup, num_prompts: int, new: int, seen: int
) -> int:
    """Return what is held inside the model's own attention over prompts.

    Gemma 2 computes its scores eagerly. Where a window is shorter than the prompt there is a mask, in the
    model's precision for each prompt, and keys and values are repeated for each query head.
    """
    width, query, kv = setup.dtype_bytes, shape.query_width, shape.kv_width
    tokens = num_prompts * new
    held = tokens * width * (3 * shape.hidden_size + 2 * shape.rotary_dim + query + 2 * kv)
    repeated = 2 * query * num_prompts * seen * width
    if shape.has_logit_cap:
        return held + repeated + (8 * shape.num_heads + 2 * width) * tokens * seen
    if any(window is not None and window < seen for window in shape.windows):
        held += repeated + width * tokens * seen
    return held + tokens * (query * width + 4 * shape.num_heads)


def step_bytes(shape: ModelShape, setup: SamplingSetup, seen: int) -> int:
    """Return the activations of one new token a row.

    The shared-prefix engine's scores, and its weights in float32, are whole: 8 bytes a row, head and place.
    Gemma 2's own are as well, on repeated keys and values.
    """
    rows, width = setup.rows, setup.dtype_bytes
    around = rows * width * (3 * shape.hidden_size + 2 * shape.query_width + 2 * shape.kv_width)
    if setup.engine == "shared_prefix":
        around += 8 * rows * shape.num_heads * seen
    elif shape.has_logit_cap:
        around += rows * seen * (8 * shape.num_heads + 2 * shape.query_width * width)
    return max(rows * width * mlp_width(shape), rows * attention_bytes(shape, width), around)


def draw_bytes(shape: ModelShape, setup: SamplingSetup, *, logit_bytes: int) -> int:
    """Return the temporaries of `rest_em.sampling.draws.choose_tokens`.

    A row's vocabulary: 8 bytes a token where all are looked at or a nucleus is searched (scaled logits and
    probabilities, float32); 56 where it is sorted whole (float32 and int64 of the sort, float64
    probabilities, their sort by id, and sums); k numbers of a row for top-k; none for the greedy choice.
    """
    rows, vocabulary = setup.rows, shape.vocab_size
    if setup.temperature == 0:
        return 8 * rows
    if setup.top_k:
        return rows * min(setup.top_k, vocabulary) * (logit_bytes + 56)
    if setup.top_p < 1:
        candidates = 20 * rows * min(DRAW_BLOCK, vocabulary)
        sorted_rows = math.ceil(setup.sorted_share * rows)
        return candidates + vocabulary * max(8 * rows, 4 * rows + 52 * sorted_rows)
    num_blocks = -(-vocabulary // DRAW_BLOCK)
    return rows * (4 * vocabulary + 4 * num_blocks * DRAW_BLOCK + 16 * num_blocks + 16 * DRAW_BLOCK)
