"""Memory of the E-step, by instant and component, and the largest batch that fits.

What rest_em's two engines allocate, tensor by tensor as `rest_em.sampling` and transformers 5.23 write it,
and a coarser account of an engine outside (`server`). The peak is the largest instant, never a sum of maxima.
Left out: what lies outside torch's tensors (context, library workspaces), what an operation takes inside
itself (a GPU's sort, split-k), and the allocator's rounding; `max_batch` leaves room for these. Time is
`sampling_speed`'s.

Source: `benchmarks/sampling_memory.py`, which holds the figures against the storages of real runs.
"""

from __future__ import annotations

import functools
import math
from dataclasses import replace

from rest_em.planner.sampling_passes import (
    attention_bytes,
    draw_bytes,
    kept_width,
    mlp_width,
    prefill_bytes,
    step_bytes,
)
from rest_em.planner.sampling_setup import Components, SamplingMemory, SamplingSetup
from rest_em.planner.shapes import ModelShape

CAPACITY_STEP = 16
"""Of the rows' buffers; `rest_em.sampling.attention.CAPACITY_STEP`."""
SERVER_PREFILL_TOKENS = 8192
"""Tokens of one pass of a server. Source: vLLM's `max_num_batched_tokens`, which users set otherwise."""
SERVER_PAGE = 16
"""Tokens a page of a server's cache; half of a sequence's last one is empty."""


@functools.lru_cache(maxsize=4096)
def sampling_memory(shape: ModelShape, setup: SamplingSetup) -> SamplingMemory:
    """Return what one device holds while a full unit is drawn, all solutions running to the cap.

    Confidence: for `shared_prefix` and `stock`, the storages of real runs on a CPU are met (see the module);
    for `server`, read in its documentation and not tried.
    """
    if setup.engine == "shared_prefix":
        return SamplingMemory(_shared_prefix(shape, setup))
    return SamplingMemory(_stock(shape, setup) if setup.engine == "stock" else _server(shape, setup))


def max_batch(
    shape: ModelShape,
    setup: SamplingSetup,
    usable_bytes: int,
    *,
    outside_bytes: int = 0,
    reserve: float = 0.1,
) -> int:
    """Return the largest `max_rows` that fits, at most a unit's solutions; 0 if not even one row does.

    Args:
        usable_bytes: of the device, as its driver gives them.
        outside_bytes: what is held outside torch: context, cuBLAS, NCCL, other processes.
        reserve: share of the rest left for the allocator's gaps and operations' workspaces.
    """
    room = (usable_bytes - outside_bytes) * (1 - reserve)

    def fits(rows: int) -> bool:
        return sampling_memory(shape, replace(setup, max_rows=rows)).peak.total_bytes <= room

    least, most = 0, setup.unit_problems * setup.unit_samples
    while least < most:
        rows = (least + most + 1) // 2
        least, most = (rows, most) if fits(rows) else (least, rows - 1)
    return least


def kv_bytes_per_token(shape: ModelShape, dtype_bytes: int) -> int:
    """Return one token's keys and values over all layers: 2 · layers · KV heads · head size · bytes.

    Source: Pope et al. 2022, section 2; confirmed in traces. Windows are not looked at.
    """
    return 2 * shape.num_layers * shape.kv_width * dtype_bytes


@functools.lru_cache(maxsize=4096)
def grown_capacity(first: int, longest: int) -> tuple[int, int]:
    """Return the last capacity of the rows' buffers and the one before (0 if there was none).

    From `first` tokens on, a buffer that is full grows by an eighth, up to a multiple of 16, until `longest`
    fit.

    >>> grown_capacity(10, 100)
    (112, 96)
    """
    before, capacity = 0, _rounded(first)
    while capacity < longest:
        before, capacity = capacity, _rounded(max(capacity + 1, capacity * 9 // 8))
    return capacity, before


def _rounded(length: int) -> int:
    return -(-length // CAPACITY_STEP) * CAPACITY_STEP


def _shared_prefix(shape: ModelShape, setup: SamplingSetup) -> tuple[Components, ...]:
    width, rows, head, own = setup.dtype_bytes, setup.rows, setup.head, setup.own_prompt
    token_kv = kv_bytes_per_token(shape, width)
    longest = own + setup.max_new_tokens - 1
    capacity, before = grown_capacity(own + 1, longest)
    kept = own * setup.group * shape.num_layers * kept_width(shape) * width
    base = Components("loading", weights=setup.weight_bytes)
    held = replace(
        base,
        kv_cache_head=head * token_kv,
        kv_cache_prompts=kept,
        logits=setup.group * shape.vocab_size * width,
    )
    row_bytes = rows * token_kv
    full = replace(held, kv_cache_rows=capacity * row_bytes, inputs=rows * capacity)
    later = min(setup.group, setup.unit_problems - setup.group)
    instants = [
        base,
        replace(
            base,
            instant="head",
            kv_cache_head=head * token_kv,
            activations=prefill_bytes(shape, setup, 1, head, head) if head else 0,
            inputs=16 * head,
        ),
        replace(
            held,
            instant="prefill",
            logits=0,
            activations=prefill_bytes(shape, setup, setup.group, own, head + own),
            inputs=8 * setup.group * own,
        ),
        replace(
            held,
            instant="growth",
            kv_cache_rows=capacity * row_bytes,
            kv_growth=before * row_bytes * 3 // (2 * shape.num_layers),
        ),
        replace(full, instant="decode", activations=step_bytes(shape, setup, head + capacity)),
        replace(
            full,
            instant="draw",
            logits=(rows + setup.group) * shape.vocab_size * width,
            draw=draw_bytes(shape, setup, logit_bytes=width),
        ),
    ]
    if later:
        refill = replace(
            full,
            instant="refill",
            logits=0,
            kv_cache_prompts=kept * later // setup.group,
            activations=prefill_bytes(shape, setup, later, own, head + own),
            inputs=8 * later * own + rows * capacity,
        )
        instants.append(refill)
    return tuple(instants)


def _stock(shape: ModelShape, setup: SamplingSetup) -> tuple[Components, ...]:
    """Return the instants of `generate` with its dynamic cache, all rows having the longest prompt.

    A cached layer is copied a token; while its keys are, the old ones are there as well. The logits of the
    last step, in float32, and what was made of them stay until the next ones.
    """
    width, rows, prompt = setup.dtype_bytes, setup.rows, setup.longest_prompt
    layer_kv = 2 * shape.kv_width * width * rows
    length = prompt + setup.max_new_tokens - 1
    seen = [min(length, window or length) for window in _windows(shape)]
    scores = 4 * rows * shape.vocab_size
    base = Components("loading", weights=setup.weight_bytes)
    decode = replace(
        base,
        kv_cache_rows=sum(seen) * layer_kv,
        inputs=16 * rows * (prompt + length),
        logits=2 * scores,
    )
    return (
        base,
        replace(
            base,
            instant="prefill",
            kv_cache_rows=prompt * layer_kv * shape.num_layers,
            activations=prefill_bytes(shape, setup, rows, prompt, prompt),
            inputs=32 * rows * prompt + (prompt * prompt if min(seen) < prompt else 0),
        ),
        replace(
            decode,
            instant="growth",
            kv_growth=max(seen) * layer_kv // 2,
            activations=rows * attention_bytes(shape, width),
        ),
        replace(decode, instant="decode", activations=step_bytes(shape, setup, length)),
        replace(
            decode,
            instant="draw",
            logits=rows * shape.vocab_size * width + 2 * scores,
            draw=max(scores, draw_bytes(shape, setup, logit_bytes=4)),
        ),
    )


def _server(shape: ModelShape, setup: SamplingSetup) -> tuple[Components, ...]:
    """Return the instants of a paged cache: sequences at their expected length, prompts once a problem.

    Weights, keys and values divide among the devices, the latter no further than by their heads. Rows are
    taken at the mean solution's length, which is their mean age where lengths are exponential; a server that
    has too many at once delays some. Low confidence.
    """
    parts, width = setup.tensor_parallel, setup.dtype_bytes
    token_kv = kv_bytes_per_token(shape, width) // min(parts, shape.num_kv_heads)
    length = min(setup.mean_new_tokens, setup.max_new_tokens) + SERVER_PAGE / 2
    problems = math.ceil(setup.rows / setup.unit_samples)
    base = Components("loading", weights=-(-setup.weight_bytes // parts))
    held = replace(
        base,
        kv_cache_head=setup.head * token_kv,
        kv_cache_prompts=problems * setup.own_prompt * token_kv,
        kv_cache_rows=math.ceil(setup.rows * length * token_kv),
    )
    return (
        base,
        replace(
            held,
            instant="prefill",
            activations=mlp_width(shape) * SERVER_PREFILL_TOKENS * width // parts,
            inputs=32 * SERVER_PREFILL_TOKENS,
        ),
        replace(
            held,
            instant="draw",
            logits=setup.rows * shape.vocab_size * (4 + width),
            draw=draw_bytes(shape, setup, logit_bytes=4),
        ),
    )


def _windows(shape: ModelShape) -> tuple[int | None, ...]:
    return shape.windows or (None,) * shape.num_layers
