"""The shape of a model, read from its `config.json`: what memory and time are computed from.

Widths and counts only, and only of families that the planner knows (`FAMILIES`): another one
is an error, never a guess. What a layer does with them is left to `layers`; the weights' values to nobody.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rest_em.errors import PlanError
from rest_em.recipe import nearest


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture of experts, in the layers that have one."""

    num_experts: int
    num_active: int
    """Experts that a token goes through."""
    intermediate_size: int
    """Width of one expert."""
    shared_intermediate_size: int = 0
    """Width of the expert that every token goes through; 0 if there is none."""
    dense_layers: frozenset[int] = frozenset()
    """Layers with an ordinary MLP in its place."""
    is_normalised: bool = True
    """Whether the shares of a token's experts are made to sum to one."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Widths and counts of a decoder-only model.

    Example:
        ModelShape(family="llama", num_layers=30, hidden_size=576, num_heads=9, num_kv_heads=3, head_dim=64,
                   intermediate_size=1536, vocab_size=49152, is_tied=True, max_positions=8192)
    """

    family: str
    """transformers' `model_type`."""
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    """Width of the MLP."""
    vocab_size: int
    is_tied: bool
    """Whether the output projection is the embedding."""
    max_positions: int | None
    """Longest sequence; None if the configuration has no limit."""
    windows: tuple[int | None, ...] = ()
    """Tokens that each layer's attention sees, None for all; empty if every layer sees all."""
    experts: Experts | None = None
    rotary_dim: int = 0
    """Part of a head that is rotated; 0 if positions are learned."""
    has_attention_bias: bool = False
    """On the query, key and value projections."""
    has_output_bias: bool = False
    """On the attention's output projection."""
    has_mlp_bias: bool = False
    activation: str = "silu"
    """transformers' name of the MLP's activation."""
    has_qk_norm: bool = False
    is_parallel: bool = False
    """GPT-NeoX: attention and MLP read the same residual."""
    has_logit_cap: bool = False
    """Gemma 2: logits pass through a scaled tanh."""
    dropouts: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Of embeddings, of what joins the residual stream, and of attention weights."""
    dtype: str = "bfloat16"
    """Of the checkpoint."""

    @property
    def query_width(self) -> int:
        """Width of all heads' queries."""
        return self.num_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Width of all heads' keys, and of their values."""
        return self.num_kv_heads * self.head_dim

    def is_sparse(self, layer: int) -> bool:
        """Whether a layer's MLP is a mixture of experts."""
        return self.experts is not None and layer not in self.experts.dense_layers

    @property
    def has_equal_layers(self) -> bool:
        """Whether all layers are of one kind."""
        return len({self.is_sparse(layer) for layer in range(self.num_layers)}) == 1

    def with_layers(self, number: int) -> ModelShape:
        """Return the model with another number of its equal layers."""
        assert self.has_equal_layers
        experts = replace(self.experts, dense_layers=frozenset()) if self.experts and self.is_sparse(0) else None
        return replace(self, num_layers=number, experts=experts)


GATED = frozenset(
    ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "mixtral", "qwen2_moe",
     "qwen3_moe"]
)  # fmt: skip
"""Families that are read alike: RMS norms, rotary positions, a gated MLP."""
FAMILIES = GATED | {"phi", "gpt2", "gpt_neox"}
"""What transformers calls the families that the planner knows; Qwen2.5 is `qwen2`, SmolLM2 is `llama`."""
_REMEDY = "name a model of a known family, or one whose shapes and layers are a known family's"


def load_shape(path: Path) -> ModelShape:
    """Read the shape of a model's folder, or of its `config.json` itself.

    Raises:
        PlanError: there is none, or it is of a family that the planner does not know.
    """
    file = path / "config.json" if path.is_dir() else path
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise PlanError(f"{file}: no such file; a model's folder has a config.json") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise PlanError(f"{file}: cannot be read as JSON: {error}") from error
    if not isinstance(config, dict):
        raise PlanError(f"{file}: a {type(config).__name__} is there; an object with model_type is wanted")
    return shape_of(config, str(file))


def shape_of(config: Mapping[str, Any], where: str = "config.json") -> ModelShape:
    """Return the shape that a configuration describes.

    Args:
        config: what `config.json` holds; of a model with several modalities, its `text_config` counts.
        where: begins messages.

    Raises:
        PlanError: the family is unknown, or a number is missing or is none.
    """
    family = config.get("model_type")
    if family == "gemma3" and isinstance(config.get("text_config"), Mapping):
        config = {**config["text_config"], "model_type": "gemma3_text"}
        family = "gemma3_text"
    if family not in FAMILIES:
        near = nearest(str(family), FAMILIES)
        meant = f"; did you mean {near}?" if near else ""
        raise PlanError(
            f"{where}: model_type is {family!r}, which the planner does not know (it knows "
            f"{', '.join(sorted(FAMILIES))}){meant}; {_REMEDY}"
        )
    numbers = _Numbers(config, where)
    if family == "gpt2":
        return _gpt2(numbers)
    if family == "gpt_neox":
        return _gpt_neox(numbers)
    return _rotary(numbers, str(family))


class _Numbers:
    """A configuration's values, with messages that name its file."""

    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        self.config = config
        self._where = where

    def count(self, key: str, default: int | None = None) -> int:
        """Return a whole number > 0."""
        value = self.config.get(key)
        if value is None:
            value = default
        if value is None:
            raise PlanError(f"{self._where}: {key} is missing; a {self.config['model_type']} model has it")
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise PlanError(f"{self._where}: {key} is {value!r}; a whole number > 0 is wanted")
        return value

    def optional(self, key: str) -> int | None:
        """Return a whole number > 0, or None."""
        return self.count(key) if self.config.get(key) else None

    def share(self, key: str) -> float:
        """Return a rate, 0 where it is missing."""
        value = self.config.get(key) or 0.0
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise PlanError(f"{self._where}: {key} is {value!r}; a number from 0 to 1 is wanted")
        return float(value)

    def flag(self, key: str, *, default: bool) -> bool:
        """Return a boolean."""
        value = self.config.get(key, default)
        return default if value is None else bool(value)

    @property
    def dtype(self) -> str:
        """Precision of the checkpoint."""
        return str(self.config.get("dtype") or self.config.get("torch_dtype") or "float32")

    @property
    def rotary_share(self) -> float:
        """Part of a head that is rotated."""
        rope = self.config.get("rope_parameters") or self.config.get("rope_scaling") or {}
        for value in (
            rope.get("partial_rotary_factor") if isinstance(rope, Mapping) else None,
            self.config.get("partial_rotary_factor"),
            self.config.get("rotary_pct"),
        ):
            if value is not None:
                return float(value)
        return {"phi": 0.5, "gpt_neox": 0.25}.get(self.config["model_type"], 1.0)


def _rotary(numbers: _Numbers, family: str) -> ModelShape:
    """Return the shape of a model with rotary positions: all families but GPT-2 and GPT-NeoX."""
    config = numbers.config
    hidden, heads = numbers.count("hidden_size"), numbers.count("num_attention_heads")
    layers = numbers.count("num_hidden_layers")
    head_dim = numbers.count("head_dim", _DEFAULT_HEAD_DIM.get(family, hidden // heads))
    is_gemma, is_phi = family.startswith("gemma"), family == "phi"
    act_default = "gelu_pytorch_tanh" if is_gemma else "gelu_new" if is_phi else "silu"
    activation = config.get("hidden_activation") or config.get("hidden_act") or act_default
    has_bias = numbers.flag("attention_bias", default=False)
    return ModelShape(
        family=family,
        num_layers=layers,
        hidden_size=hidden,
        num_heads=heads,
        num_kv_heads=numbers.count("num_key_value_heads", heads),
        head_dim=head_dim,
        intermediate_size=numbers.count("intermediate_size"),
        vocab_size=numbers.count("vocab_size"),
        is_tied=numbers.flag("tie_word_embeddings", default=is_gemma),
        max_positions=numbers.optional("max_position_embeddings"),
        windows=_windows(numbers, family, layers),
        experts=_experts(numbers, family, layers),
        rotary_dim=int(head_dim * numbers.rotary_share),
        has_attention_bias=family in ("qwen2", "qwen2_moe", "phi") or has_bias,
        has_output_bias=is_phi or (has_bias and family not in ("qwen2", "qwen2_moe")),
        has_mlp_bias=is_phi or numbers.flag("mlp_bias", default=False),
        activation=str(activation),
        has_qk_norm=family in ("qwen3", "qwen3_moe", "gemma3_text")
        or numbers.flag("qk_layernorm", default=False),
        is_parallel=is_phi,
        has_logit_cap=config.get("final_logit_softcapping") is not None,
        dropouts=(
            numbers.share("embd_pdrop"),
            numbers.share("resid_pdrop"),
            numbers.share("attention_dropout"),
        ),
        dtype=numbers.dtype,
    )


_DEFAULT_HEAD_DIM = {"qwen3": 128, "gemma": 256, "gemma2": 256, "gemma3_text": 256}
"""Where a head's size may be left out and is not the quotient. Source: transformers 5.23."""


def _windows(numbers: _Numbers, family: str, layers: int) -> tuple[int | None, ...]:
    window = numbers.optional("sliding_window")
    if window is None or (
        family.startswith("qwen") and not numbers.flag("use_sliding_window", default=False)
    ):
        return ()
    kinds = numbers.config.get("layer_types")
    if isinstance(kinds, list):
        return tuple(window if kind == "sliding_attention" else None for kind in kinds[:layers])
    if family == "gemma2":
        return tuple(window if layer % 2 == 0 else None for layer in range(layers))
    if family == "gemma3_text":
        pattern = numbers.count("sliding_window_pattern", 6)
        return tuple(None if (layer + 1) % pattern == 0 else window for layer in range(layers))
    if family.startswith("qwen"):
        first = numbers.config.get("max_window_layers") or 0
        return tuple(window if layer >= first else None for layer in range(layers))
    return (window,) * layers


def _experts(numbers: _Numbers, family: str, layers: int) -> Experts | None:
    config = numbers.config
    if family == "mixtral":
        return Experts(
            numbers.count("num_local_experts", 8),
            numbers.count("num_experts_per_tok", 2),
            numbers.count("intermediate_size"),
        )
    if family not in ("qwen2_moe", "qwen3_moe"):
        return None
    step = numbers.count("decoder_sparse_step", 1)
    dense = {layer for layer in range(layers) if (layer + 1) % step} | set(
        config.get("mlp_only_layers") or ()
    )
    is_qwen2 = family == "qwen2_moe"
    num_experts = config.get("num_experts") or config.get("num_local_experts")
    return Experts(
        numbers.count("num_experts" if config.get("num_experts") else "num_local_experts", num_experts),
        numbers.count("num_experts_per_tok", 4 if is_qwen2 else 8),
        numbers.count("moe_intermediate_size"),
        numbers.count("shared_expert_intermediate_size") if is_qwen2 else 0,
        frozenset(dense),
        numbers.flag("norm_topk_prob", default=False),
    )


def _gpt2(numbers: _Numbers) -> ModelShape:
    hidden, heads = numbers.count("n_embd"), numbers.count("n_head")
    return ModelShape(
        family="gpt2",
        num_layers=numbers.count("n_layer"),
        hidden_size=hidden,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=hidden // heads,
        intermediate_size=numbers.optional("n_inner") or 4 * hidden,
        vocab_size=numbers.count("vocab_size"),
        is_tied=numbers.flag("tie_word_embeddings", default=True),
        max_positions=numbers.count("n_positions", 1024),
        has_attention_bias=True,
        has_output_bias=True,
        has_mlp_bias=True,
        activation=str(numbers.config.get("activation_function") or "gelu_new"),
        dropouts=(numbers.share("embd_pdrop"), numbers.share("resid_pdrop"), numbers.share("attn_pdrop")),
        dtype=numbers.dtype,
    )


def _gpt_neox(numbers: _Numbers) -> ModelShape:
    hidden, heads = numbers.count("hidden_size"), numbers.count("num_attention_heads")
    has_bias = numbers.flag("attention_bias", default=True)
    dropout = numbers.share("hidden_dropout")
    return ModelShape(
        family="gpt_neox",
        num_layers=numbers.count("num_hidden_layers"),
        hidden_size=hidden,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=hidden // heads,
        intermediate_size=numbers.count("intermediate_size"),
        vocab_size=numbers.count("vocab_size"),
        is_tied=numbers.flag("tie_word_embeddings", default=False),
        max_positions=numbers.optional("max_position_embeddings"),
        rotary_dim=int(hidden // heads * numbers.rotary_share),
        has_attention_bias=has_bias,
        has_output_bias=has_bias,
        has_mlp_bias=True,
        activation=str(numbers.config.get("hidden_act") or "gelu"),
        is_parallel=numbers.flag("use_parallel_residual", default=True),
        dropouts=(dropout, dropout, numbers.share("attention_dropout")),
        dtype=numbers.dtype,
    )
