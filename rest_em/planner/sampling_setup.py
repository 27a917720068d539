"""How the E-step draws, as the planner sees it, and what memory is reported as: values alone."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

Engine = Literal["shared_prefix", "stock", "server"]
"""rest_em's own two, and one outside with tensor parallelism and a paged cache."""
PREFILL_TOKENS = 4096
"""Tokens of prompts computed together; `rest_em.sampling.shared_prefix.MAX_PREFILL_TOKENS`."""


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
    """With `top_p` alone: largest share of rows, at one step, whose nucleus is not among the 256 likeliest
    tokens and which are sorted whole; 1 is the safe bound."""
    has_fused_attention: bool | None = None
    """Whether the shared-prefix engine's masked prefill runs in a fused kernel. None: only where queries and
    keys have equally many heads. On a GPU, torch's flash kernel takes no mask and its memory-efficient one no
    groups; what is left materialises the scores. Source: sdp_utils.cpp of torch 2.8, read; not tried on a
    GPU."""

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
    """`loading`, `head`, `prefill`, `refill`, `growth`, `decode` or `draw`; a refill is the prefill of later
    prompts, beside full rows."""
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
