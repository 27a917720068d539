"""Memory of the E-step, by instant and component, and the largest batch that fits.

What rest_em's two engines allocate, tensor by tensor as `rest_em.sampling` and transformers 5.23 write it, and a
coarser account of an engine outside (`server`). The peak is the largest instant, never a sum of maxima. Left out:
what lies outside torch's tensors (context, library workspaces), what an operation takes inside itself (a GPU's sort,
split-k), and the allocator's rounding; `max_batch` is given room for these. Time is `sampling_speed`'s.

Source: `benchmarks/sampling_memory.py` holds the figures against the storages of real runs; its docstring has them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Literal

from rest_em.planner.shapes import ModelShape

Engine = Literal["shared_prefix", "stock", "server"]
PREFILL_TOKENS = 4096
"""Prompts that the shared-prefix engine computes together; `rest_em.sampling.shared_prefix.MAX_PREFILL_TOKENS`."""
CAPACITY_STEP = 16
"""Of the rows' buffers; `rest_em.sampling.attention.CAPACITY_STEP`."""
DRAW_BLOCK = 256
"""`rest_em.sampling.draws.BLOCK`, and `NUM_NUCLEUS_CANDIDATES`."""
SERVER_PREFILL_TOKENS = 8192
"""Tokens of one pass of a server. Source: vLLM's `max_num_batched_tokens`, which users set otherwise."""
SERVER_PAGE = 16
"""Tokens a page of a server's cache; half of a sequence's last one is empty."""


@dataclass(frozen=True, slots=True)
class SamplingSetup:
    """How solutions are drawn, of which length, and by what.

    Example:
        SamplingSetup(weight_bytes=3_087_428_608, active_weight_bytes=3_087_428_608, dtype_bytes=2,
                      num_samples=32, max_rows=128, unit_size=256, longest_prompt=400, mean_prompt=180.0,
                      common_head=90, max_new_tokens=512, mean_new_tokens=200.0, temperature=0.7, top_k=40)
    """

    weight_bytes: int
    """Of all parameters and buffers, on all devices of a replica together."""
    active_weight_bytes: int
    """Of those that one token goes through; `weight_bytes` unless experts are mixed."""
    dtype_bytes: int
    """Of a number of the model: 2 or 4."""
    num_samples: int
    """N: solutions a problem."""
    max_rows: int
    """Sequences decoded at once."""
    unit_size: int
    """Solutions a work unit, at most."""
    longest_prompt: int
    """Tokens; memory follows it."""
    mean_prompt: float
    """Tokens; time follows it."""
    common_head: int
    """Tokens that all prompts begin with: shots, a system message."""
    max_new_tokens: int
    mean_new_tokens: float
    """Expected tokens of a solution; what the cap cuts off counts with the cap."""
    temperature: float = 0.7
    top_k: int = 0
    top_p: float = 1.0
    engine: Engine = "shared_prefix"
    tensor_parallel: int = 1
    """Devices that share the weights; more than 1 with `server` only."""
    sorted_share: float = 1.0
    """With `top_p` alone: largest share of rows, at one step, whose nucleus is not among the 256 likeliest tokens
    and which are sorted whole; 1 is the safe bound."""
    has_fused_attention: bool | None = None
    """Whether the shared-prefix engine's masked prefill runs in a fused kernel. None: only where queries and keys
    have equally many heads. On a GPU, torch's flash kernel takes no mask and its memory-efficient one no groups;
    what is left materialises the scores. Source: sdp_utils.cpp of torch 2.8, read; not tried on a GPU."""

    def __post_init__(self) -> None:
        if self.tensor_parallel > 1 and self.engine != "server":
            raise ValueError(f"engine {self.engine} has no tensor parallelism; use server")
        if self.common_head >= self.longest_prompt:
            raise ValueError(
                f"common_head {self.common_head} is not below longest_prompt {self.longest_prompt}"
            )

    @property
    def unit_problems(self) -> int:
        """Problems of a full unit, as `rest_em.sampling.units.plan_units` cuts it."""
        return max(1, self.unit_size // self.num_samples)

    @property
    def unit_samples(self) -> int:
        """Solutions a problem in a unit."""
        if self.num_samples <= self.unit_size:
            return self.num_samples
        return math.ceil(self.num_samples / math.ceil(self.num_samples / self.unit_size))

    @property
    def rows(self) -> int:
        """Rows that are really decoded at once: a unit may have fewer solutions than `max_rows`."""
        return min(self.max_rows, self.unit_problems * self.unit_samples)

    @property
    def head(self) -> int:
        """Tokens kept once a unit: all but the last of the prompt where a unit has one problem."""
        return self.longest_prompt - 1 if self.unit_problems == 1 else self.common_head

    @property
    def own_prompt(self) -> int:
        """Tokens of the longest prompt behind the head, at least 1."""
        return self.longest_prompt - self.head

    @property
    def group(self) -> int:
        """Problems whose prompts the shared-prefix engine computes together."""
        return min(self.unit_problems, max(1, PREFILL_TOKENS // self.own_prompt))


@dataclass(frozen=True, slots=True)
class Components:
    """One device's bytes at one instant."""

    instant: str
    """`loading`, `head`, `prefill`, `refill` (later prompts, beside full rows), `growth`, `decode` or `draw`."""
    weights: int = 0
    kv_cache_head: int = 0
    """Keys and values of what all prompts begin with."""
    kv_cache_prompts: int = 0
    """Of the prompts computed last, once a problem."""
    kv_cache_rows: int = 0
    kv_growth: int = 0
    """What of the old cache is still there while a layer's new one is made."""
    logits: int = 0
    """The model's output, and copies that an engine keeps."""
    draw: int = 0
    """Temporaries of choosing a token."""
    activations: int = 0
    """Of one layer, and what the model's code holds from its start."""
    inputs: int = 0
    """Token ids, positions and masks."""

    @property
    def total_bytes(self) -> int:
        """Sum of all components."""
        return sum(getattr(self, field.name) for field in fields(self) if field.name != "instant")


@dataclass(frozen=True, slots=True)
class SamplingMemory:
    """The instants of a unit, in order."""

    instants: tuple[Components, ...]

    @property
    def peak(self) -> Components:
        """The largest instant."""
        return max(self.instants, key=lambda instant: instant.total_bytes)


def memory(shape: ModelShape, setup: SamplingSetup) -> SamplingMemory:
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
        return memory(shape, replace(setup, max_rows=rows)).peak.total_bytes <= room

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


def grown_capacity(first: int, longest: int) -> tuple[int, int]:
    """Return the last capacity of the rows' buffers and the one before (0 if there was none).

    From `first` tokens on, a buffer that is full grows by an eighth, up to a multiple of 16, until `longest` fit.

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
    capacity, before = grown_capacity(own + (setup.max_new_tokens > 1), longest)
    kept = own * setup.group * shape.num_layers * _kept_width(shape) * width
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
            kv_cache_head=max(0, head - 1) * token_kv,
            activations=_prefill_bytes(shape, setup, 1, head, head) if head else 0,
            inputs=16 * head + head * head,
        ),
        replace(
            held,
            instant="prefill",
            logits=0,
            activations=_prefill_bytes(shape, setup, setup.group, own, head + own),
            inputs=8 * setup.group * own + own * (head + own),
        ),
        replace(
            held,
            instant="growth",
            kv_cache_rows=capacity * row_bytes,
            kv_growth=before * row_bytes * 3 // (2 * shape.num_layers),
        ),
        replace(full, instant="decode", activations=_step_bytes(shape, setup, head + capacity)),
        replace(
            full,
            instant="draw",
            logits=(rows + setup.group) * shape.vocab_size * width,
            draw=_draw_bytes(shape, setup, logit_bytes=width),
        ),
    ]
    if later:
        refill = replace(
            full,
            instant="refill",
            logits=0,
            kv_cache_prompts=kept * later // setup.group,
            activations=_prefill_bytes(shape, setup, later, own, head + own),
            inputs=8 * later * own + own * (head + own) + rows * capacity,
        )
        instants.append(refill)
    return tuple(instants)


def _stock(shape: ModelShape, setup: SamplingSetup) -> tuple[Components, ...]:
    """Return the instants of `generate` with its dynamic cache, all rows having the longest prompt.

    A cached layer is copied a token; while its keys are, the old ones are there as well. The logits of the last step,
    in float32, and what was made of them stay until the next ones.
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
            activations=_prefill_bytes(shape, setup, rows, prompt, prompt),
            inputs=32 * rows * prompt,
        ),
        replace(
            decode,
            instant="decode",
            kv_growth=max(seen) * layer_kv // 2,
            activations=_step_bytes(shape, setup, length),
        ),
        replace(
            decode,
            instant="draw",
            logits=rows * shape.vocab_size * width + 2 * scores,
            draw=max(scores, _draw_bytes(shape, setup, logit_bytes=4)),
        ),
    )


def _server(shape: ModelShape, setup: SamplingSetup) -> tuple[Components, ...]:
    """Return the instants of a paged cache: sequences at their expected length, prompts once a problem.

    Weights, keys and values divide among the devices, the latter no further than by their heads. Rows are taken at
    the middle of what is left of them on average; a server that has too many at once delays some. Low confidence.
    """
    parts, width = setup.tensor_parallel, setup.dtype_bytes
    token_kv = kv_bytes_per_token(shape, width) // min(parts, shape.num_kv_heads)
    length = setup.mean_new_tokens + SERVER_PAGE / 2
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
            activations=_mlp_width(shape) * SERVER_PREFILL_TOKENS * width // parts,
            inputs=32 * SERVER_PREFILL_TOKENS,
        ),
        replace(
            held,
            instant="draw",
            logits=setup.rows * shape.vocab_size * (4 + width),
            draw=_draw_bytes(shape, setup, logit_bytes=4),
        ),
    )


def _windows(shape: ModelShape) -> tuple[int | None, ...]:
    return shape.windows or (None,) * shape.num_layers


def _kept_width(shape: ModelShape) -> int:
    """Return the numbers a token and layer that stay with a prompt's keys and values.

    Where one product gives queries, keys and values, those that are views of it keep all of it: both in GPT-2, the
    values, beside rotated keys, in GPT-NeoX and Phi-3.
    """
    if shape.family == "gpt2":
        return shape.query_width + 2 * shape.kv_width
    if shape.family in ("gpt_neox", "phi3"):
        return shape.query_width + 3 * shape.kv_width
    return 2 * shape.kv_width


def _mlp_width(shape: ModelShape) -> int:
    """Return the numbers a token in a layer's MLP, with the residual stream: the usual peak of a pass.

    What the eager code holds at once: `gate`'s activation, `up` and their product; `gelu_new`'s input and three of its
    steps; a token's chosen experts side by side. And the embedding, the layer's input, the sum behind the attention,
    the norm, and the rotation's cosines and sines.
    """
    around = 4 * shape.hidden_size + 2 * shape.rotary_dim
    if shape.family == "gpt2":
        around += 2 * shape.hidden_size
    experts = shape.experts
    if experts is not None:
        chosen = experts.num_active * (shape.hidden_size + 4 * experts.intermediate_size)
        return around + 3 * experts.num_experts + max(chosen, 3 * experts.shared_intermediate_size)
    if shape.family in ("gpt2", "gpt_neox", "phi"):
        return around + shape.intermediate_size * (4 if shape.activation == "gelu_new" else 2)
    return around + shape.intermediate_size * (4 if shape.family == "phi3" else 3)


def _attention_bytes(shape: ModelShape, width: int) -> int:
    """Return the bytes a token before the attention: queries, then keys, being rotated, or queries normalised."""
    query, kv = shape.query_width, shape.kv_width
    rotating = max(4 * query + 2 * kv, 2 * query + 5 * kv) if shape.rotary_dim else 2 * (query + kv)
    normalising = query * (width + 8) if shape.has_qk_norm and width == 2 else 0
    return width * (3 * shape.hidden_size + 2 * shape.rotary_dim) + max(width * rotating, normalising)


def _prefill_bytes(shape: ModelShape, setup: SamplingSetup, num_prompts: int, new: int, seen: int) -> int:
    """Return the activations of a pass over prompts, beside all layers' keys and values.

    Args:
        new: tokens a prompt computed now.
        seen: tokens that the last of them attends to.
    """
    width, tokens = setup.dtype_bytes, num_prompts * new
    is_shared = setup.engine == "shared_prefix"
    kept = tokens * width * (_kept_width(shape) if is_shared else 2 * shape.kv_width)
    attend = _shared_attention_bytes if is_shared else _stock_attention_bytes
    attending = max(tokens * _attention_bytes(shape, width), attend(shape, setup, num_prompts, new, seen))
    return max(tokens * width * _mlp_width(shape), attending - kept)


def _shared_attention_bytes(
    shape: ModelShape, setup: SamplingSetup, num_prompts: int, new: int, seen: int
) -> int:
    """Return what is held inside the attention over prompts: the head joined to them, and masked scores.

    Without a fused kernel torch computes scores and their softmax in float32, 8 bytes a pair, on keys and values
    repeated for each query head, and float32 copies of what it is given in bfloat16.
    """
    width, query, kv = setup.dtype_bytes, shape.query_width, shape.kv_width
    tokens, all_seen = num_prompts * new, num_prompts * seen
    is_grouped = shape.num_heads != shape.num_kv_heads
    held = tokens * width * (3 * shape.hidden_size + 2 * shape.rotary_dim + 2 * query + 2 * kv)
    held += 2 * kv * all_seen * width if seen > new else 0
    if (not is_grouped) if setup.has_fused_attention is None else setup.has_fused_attention:
        return held
    held += 8 * shape.num_heads * tokens * seen
    held += 2 * query * all_seen * width if is_grouped else 0
    return held + (4 * query * (tokens + 2 * all_seen) if width == 2 else 0)


def _stock_attention_bytes(
    shape: ModelShape, setup: SamplingSetup, num_prompts: int, new: int, seen: int
) -> int:
    """Return what is held inside the model's own attention over prompts.

    Gemma 2 computes its scores eagerly. Where a window is shorter than the prompt there is a mask, in the model's
    precision for each prompt, and keys and values are repeated for each query head.
    """
    width, query, kv = setup.dtype_bytes, shape.query_width, shape.kv_width
    tokens = num_prompts * new
    held = tokens * width * (3 * shape.hidden_size + 2 * shape.rotary_dim + query + 2 * kv)
    repeated = 2 * query * num_prompts * seen * width
    if shape.has_logit_cap:
        return held + repeated + (8 * shape.num_heads + 2 * width) * tokens * seen
    if any(window is not None and window < seen for window in shape.windows):
        return held + query * tokens * width + repeated + width * tokens * seen
    return held + query * tokens * width


def _step_bytes(shape: ModelShape, setup: SamplingSetup, seen: int) -> int:
    """Return the activations of one new token a row.

    The shared-prefix engine's scores, and its weights in float32, are whole: 8 bytes a row, head and place. Gemma 2's
    own are as well, on repeated keys and values.
    """
    rows, width = setup.rows, setup.dtype_bytes
    around = rows * width * (3 * shape.hidden_size + 2 * shape.query_width + 2 * shape.kv_width)
    if setup.engine == "shared_prefix":
        around += 8 * rows * shape.num_heads * seen
    elif shape.has_logit_cap:
        around += rows * seen * (8 * shape.num_heads + 2 * shape.query_width * width)
    return max(rows * width * _mlp_width(shape), rows * _attention_bytes(shape, width), around)


def _draw_bytes(shape: ModelShape, setup: SamplingSetup, *, logit_bytes: int) -> int:
    """Return the temporaries of `rest_em.sampling.draws.choose_tokens`.

    A row's vocabulary: 8 bytes a token where all are looked at or a nucleus is searched (scaled logits and
    probabilities, float32); 56 where it is sorted whole (float32 and int64 of the sort, float64 probabilities, their
    sort by id, and sums); nothing for the greedy choice and, beside k numbers, for top-k.
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
