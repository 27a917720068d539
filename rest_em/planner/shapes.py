"""The shape of a model, read from its `config.json`: what memory and time are computed from.

Widths and counts only, and only of families that the planner knows (`FAMILIES`): another one
is an error, never a guess. Where a key is left out, transformers' default counts, as when it loads the model
(`defaults`). What a layer does with all that is left to `layers`; the weights' values to nobody.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rest_em.errors import PlanError
from rest_em.planner.defaults import DEFAULTS
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
    unrotated_layers: frozenset[int] = frozenset()
    """SmolLM3: layers whose attention knows no positions."""
    has_attention_bias: bool = False
    """On the query, key and value projections."""
    has_output_bias: bool = False
    """On the attention's output projection."""
    has_mlp_bias: bool = False
    activation: str = "silu"
    """transformers' name of the MLP's activation."""
    has_qk_norm: bool = False
    is_parallel: bool = False
    """GPT-NeoX, Phi, some of StableLM: attention and MLP read the same residual."""
    has_logit_cap: bool = False
    """Gemma 2: logits pass through a scaled tanh."""
    has_score_cap: bool = False
    """Gemma 2: so do the attention's scores."""
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

    def is_rotated(self, layer: int) -> bool:
        """Whether a layer's queries and keys are rotated to their positions."""
        return bool(self.rotary_dim) and layer not in self.unrotated_layers

    def has_window(self, layer: int) -> bool:
        """Whether a layer's attention sees the last tokens only."""
        return layer < len(self.windows) and self.windows[layer] is not None

    @property
    def has_eager_attention(self) -> bool:
        """Whether the family trains with scores that are held, and not in a kernel."""
        return self.family in EAGER

    @property
    def has_equal_layers(self) -> bool:
        """Whether all layers are of one kind."""
        kinds = {(self.is_sparse(layer), self.is_rotated(layer)) for layer in range(self.num_layers)}
        return len(kinds) == 1

    def with_layers(self, number: int) -> ModelShape:
        """Return the model with another number of its equal layers."""
        assert self.has_equal_layers
        experts = (
            replace(self.experts, dense_layers=frozenset()) if self.experts and self.is_sparse(0) else None
        )
        unrotated = frozenset() if self.is_rotated(0) else frozenset(range(number))
        return replace(self, num_layers=number, experts=experts, unrotated_layers=unrotated)


FAMILIES = frozenset(DEFAULTS)
"""What transformers calls the families that the planner knows; Qwen2.5 is `qwen2`, SmolLM2 is `llama`."""
EAGER = frozenset(["gemma2"])
"""Families whose class has no `_supports_sdpa`, so that transformers takes `eager_attention_forward`."""
ACTIVATIONS = frozenset(["silu", "swish", "gelu", "gelu_pytorch_tanh", "gelu_new", "gelu_fast"])
"""Those whose operations the planner knows."""
MAX_LAYERS = 10_000
MAX_WIDTH = 2**24
"""No model has more: a larger number is a mistake, whose plan would take as long as it is wrong."""
LAYER_TYPES = frozenset(["full_attention", "sliding_attention"])
"""transformers' names of the kinds of layers that the planner knows."""
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
        PlanError: the family or its activation is unknown, or a number is none.
    """
    if config.get("quantization_config"):
        raise PlanError(
            f"{where}: quantization_config is there, and a quantised checkpoint is not planned for; name the "
            "model that it was made of"
        )
    family = config.get("model_type")
    if family == "gemma3" and isinstance(config.get("text_config"), Mapping):
        config = {**config["text_config"], "model_type": "gemma3_text"}
        family = "gemma3_text"
    if not isinstance(family, str) or family not in FAMILIES:
        near = nearest(str(family), FAMILIES)
        meant = f"; did you mean {near}?" if near else ""
        raise PlanError(
            f"{where}: model_type is {family!r}, which the planner does not know (it knows "
            f"{', '.join(sorted(FAMILIES))}){meant}; {_REMEDY}"
        )
    numbers = _Numbers(config, where)
    read = {"gpt2": _gpt2, "gpt_neox": _gpt_neox}.get(family, _rotary)
    shape = read(numbers)
    if shape.num_heads % shape.num_kv_heads:
        raise PlanError(
            f"{where}: num_key_value_heads is {shape.num_kv_heads}, which does not divide the "
            f"{shape.num_heads} heads of num_attention_heads; each group of heads shares one of them"
        )
    return shape


class _Numbers:
    """A configuration's values or else its class's, with messages that name its file."""

    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        self.config = config
        self.family = str(config["model_type"])
        self._where = where

    def value(self, key: str) -> Any:
        """Return what the configuration says, or else its class; None if the class has no such key."""
        defaults = DEFAULTS[self.family]
        return self.config.get(key, defaults[key]) if key in defaults else None

    def count(self, key: str, default: int | None = None) -> int:
        """Return a whole number > 0; the default where the configuration and its class have None."""
        value = self.value(key)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise PlanError(f"{self._where}: {key} is {value!r}; a whole number > 0 is wanted")
        most = MAX_LAYERS if key in ("num_hidden_layers", "n_layer") else MAX_WIDTH
        if value > most and "position" not in key:
            raise PlanError(
                f"{self._where}: {key} is {value:,}; no such model is planned for, {most:,} at most"
            )
        return value

    def head_width(self, hidden: int, heads: int) -> int:
        """Return the width of a head, which the family's class may have a key for."""
        if self.value("head_dim") is not None:
            return self.count("head_dim")
        if hidden % heads:
            raise PlanError(
                f"{self._where}: a hidden size of {hidden} cannot be shared out over {heads} attention "
                "heads; a multiple of them is wanted"
            )
        return hidden // heads

    def listed(self, key: str, *, num: int | None = None) -> Sequence[Any]:
        """Return a list, of so many values if told; an empty one where there is none."""
        value = self.config.get(key, DEFAULTS[self.family].get(key))
        if value is None:
            return ()
        if not isinstance(value, list | tuple) or (num is not None and len(value) != num):
            found = f"has {len(value)} values" if isinstance(value, list | tuple) else f"is {value!r}"
            wanted = "a list" if num is None else f"a list with a value for each of the {num} layers"
            raise PlanError(f"{self._where}: {key} {found}; {wanted} is wanted")
        return value

    def layer_types(self, layers: int) -> Sequence[str]:
        """Return the kinds of all layers; none where the configuration does not list them."""
        kinds = self.listed("layer_types", num=layers)
        for kind in kinds:
            if kind not in LAYER_TYPES:
                raise PlanError(
                    f"{self._where}: layer_types has {kind!r}, which is not planned for; "
                    f"{' or '.join(sorted(LAYER_TYPES))} is"
                )
        return kinds

    def optional(self, key: str) -> int | None:
        """Return a whole number > 0, or None."""
        return self.count(key) if self.value(key) else None

    def share(self, *keys: str) -> float:
        """Return the rate that the family has under one of its names, 0 if under none."""
        for key in keys:
            value = self.value(key) or 0.0
            if value:
                return self._rate(key, value)
        return 0.0

    def _rate(self, key: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise PlanError(f"{self._where}: {key} is {value!r}; a number from 0 to 1 is wanted")
        return float(value)

    def layers(self, key: str) -> frozenset[int]:
        """Return the layers that a list names."""
        listed = self.listed(key) if key in DEFAULTS[self.family] else ()
        for one in listed:
            if isinstance(one, bool) or not isinstance(one, int):
                raise PlanError(f"{self._where}: {key} has {one!r}; whole numbers are wanted")
        return frozenset(listed)

    def num_active(self, num_experts: int) -> int:
        """Return how many of the experts a token goes through."""
        number = self.count("num_experts_per_tok")
        if number > num_experts:
            raise PlanError(
                f"{self._where}: num_experts_per_tok is {number}, and there are {num_experts} experts; no "
                "more than there are is wanted"
            )
        return number

    def flag(self, key: str) -> bool:
        """Return a boolean."""
        return bool(self.value(key))

    def refuse(self, key: str, why: str) -> None:
        """Raise if a setting is on that the planner does not know the memory of."""
        if self.value(key):
            raise PlanError(f"{self._where}: {key} is {self.value(key)!r}, which is not planned for: {why}")

    @property
    def pattern(self) -> int:
        """Gemma 3: one layer of so many sees all tokens."""
        value = self.config.get("sliding_window_pattern") or 6
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise PlanError(
                f"{self._where}: sliding_window_pattern is {value!r}; a whole number > 0 is wanted"
            )
        return value

    @property
    def activation(self) -> str:
        """transformers' name of the MLP's activation."""
        for key in ("hidden_activation", "activation_function", "hidden_act"):
            if key in DEFAULTS[self.family]:
                break
        name = str(self.value(key))
        if name not in ACTIVATIONS:
            raise PlanError(
                f"{self._where}: {key} is {name!r}, whose memory the planner does not know (it knows "
                f"{', '.join(sorted(ACTIVATIONS))})"
            )
        return name

    @property
    def dtype(self) -> str:
        """Precision of the checkpoint."""
        return str(self.config.get("dtype") or self.config.get("torch_dtype") or "float32")

    @property
    def rotary_share(self) -> float:
        """Part of a head that is rotated, of a family that rotates parts."""
        if "partial_rotary_factor" not in DEFAULTS[self.family]:
            return 1.0
        rope = self.config.get("rope_parameters") or self.config.get("rope_scaling") or {}
        key = "partial_rotary_factor"
        for name, value in (
            (key, rope.get(key) if isinstance(rope, Mapping) else None),
            ("rotary_pct", self.config.get("rotary_pct")),
        ):
            if value is not None:
                return self._rate(name, value)
        return self._rate(key, self.value(key))


def _rotary(numbers: _Numbers) -> ModelShape:
    """Return the shape of a model with rotary positions: all families but GPT-2 and GPT-NeoX."""
    family, hidden, heads = numbers.family, numbers.count("hidden_size"), numbers.count("num_attention_heads")
    layers, is_phi = numbers.count("num_hidden_layers"), family == "phi"
    head_dim = numbers.head_width(hidden, heads)
    has_bias = is_phi or numbers.flag("attention_bias") or numbers.flag("use_bias")
    if family in ("phi", "stablelm"):
        numbers.refuse("qk_layernorm", "a norm for each head; say false")
    return ModelShape(
        family=family,
        num_layers=layers,
        hidden_size=hidden,
        num_heads=heads,
        num_kv_heads=numbers.count("num_key_value_heads", heads),
        head_dim=head_dim,
        intermediate_size=numbers.count("intermediate_size"),
        vocab_size=numbers.count("vocab_size"),
        is_tied=numbers.flag("tie_word_embeddings"),
        max_positions=numbers.optional("max_position_embeddings"),
        windows=_windows(numbers, layers),
        experts=_experts(numbers, layers),
        rotary_dim=int(head_dim * numbers.rotary_share),
        unrotated_layers=_unrotated_layers(numbers, layers),
        has_attention_bias=has_bias
        or family == "qwen2"
        or numbers.flag("qkv_bias")
        or numbers.flag("use_qkv_bias"),
        has_output_bias=has_bias,
        has_mlp_bias=is_phi or numbers.flag("mlp_bias") or numbers.flag("use_bias"),
        activation=numbers.activation,
        has_qk_norm=family in ("qwen3", "qwen3_moe", "gemma3_text", "olmo2"),
        is_parallel=is_phi or numbers.flag("use_parallel_residual"),
        has_logit_cap=numbers.value("final_logit_softcapping") is not None,
        has_score_cap=numbers.value("attn_logit_softcapping") is not None,
        dropouts=(
            0.0 if family == "phi3" else numbers.share("embd_pdrop", "embedding_dropout"),
            numbers.share("resid_pdrop", "residual_dropout", "hidden_dropout"),
            numbers.share("attention_dropout"),
        ),
        dtype=numbers.dtype,
    )


def _unrotated_layers(numbers: _Numbers, layers: int) -> frozenset[int]:
    if numbers.family != "smollm3":
        return frozenset()
    interval, listed = numbers.count("no_rope_layer_interval"), numbers.listed("no_rope_layers")
    if listed:
        numbers.listed("no_rope_layers", num=layers)
    rotated = listed or [(layer + 1) % interval for layer in range(layers)]  # the key lists those *with* it
    return frozenset(layer for layer in range(layers) if not rotated[layer])


def _windows(numbers: _Numbers, layers: int) -> tuple[int | None, ...]:
    family, window = numbers.family, numbers.optional("sliding_window")
    kinds = numbers.layer_types(layers)
    has_switch = "use_sliding_window" in DEFAULTS[family]
    if window is None or (has_switch and not numbers.flag("use_sliding_window")):
        return ()
    if kinds and family not in _WINDOW_EVERYWHERE:
        return tuple(window if kind == "sliding_attention" else None for kind in kinds)
    return tuple(window if _has_window(numbers, layer, layers) else None for layer in range(layers))


_WINDOW_EVERYWHERE = frozenset(["mistral", "mixtral", "phi3", "qwen3_moe", "starcoder2"])
"""Families whose layers all have the window, if there is one."""


def _has_window(numbers: _Numbers, layer: int, layers: int) -> bool:
    """Whether a layer has a window where the configuration doesn't list the layers' kinds."""
    family = numbers.family
    last = numbers.count("max_window_layers", layers)
    if family == "gemma2":
        return layer % 2 == 0
    if family == "gemma3_text":
        return (layer + 1) % numbers.pattern != 0
    if family == "smollm3":
        return layer in _unrotated_layers(numbers, layers)
    if family == "qwen2_moe":
        return layer % 2 == 0 and layer < last
    return family in _WINDOW_EVERYWHERE or layer >= last


def _experts(numbers: _Numbers, layers: int) -> Experts | None:
    family = numbers.family
    if family not in ("mixtral", "qwen2_moe", "qwen3_moe"):
        return None
    numbers.refuse("output_router_logits", "the loss that balances experts; say false")
    is_mixtral = family == "mixtral"
    step = 1 if is_mixtral else numbers.count("decoder_sparse_step")
    dense = {layer for layer in range(layers) if (layer + 1) % step}
    return Experts(
        num_experts=_num_experts(numbers),
        num_active=numbers.num_active(_num_experts(numbers)),
        intermediate_size=numbers.count("intermediate_size" if is_mixtral else "moe_intermediate_size"),
        shared_intermediate_size=numbers.optional("shared_expert_intermediate_size") or 0,
        dense_layers=frozenset(dense | numbers.layers("mlp_only_layers")),
        is_normalised=is_mixtral or numbers.flag("norm_topk_prob"),
    )


def _num_experts(numbers: _Numbers) -> int:
    """Return how many experts there are, whose key has two names."""
    if numbers.family == "qwen2_moe":
        return numbers.count("num_experts")
    other = numbers.config.get("num_experts")
    return other if isinstance(other, int) and other > 0 else numbers.count("num_local_experts")


def _gpt2(numbers: _Numbers) -> ModelShape:
    hidden, heads = numbers.count("n_embd"), numbers.count("n_head")
    head_dim = numbers.head_width(hidden, heads)
    return ModelShape(
        family="gpt2",
        num_layers=numbers.count("n_layer"),
        hidden_size=hidden,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=head_dim,
        intermediate_size=numbers.optional("n_inner") or 4 * hidden,
        vocab_size=numbers.count("vocab_size"),
        is_tied=numbers.flag("tie_word_embeddings"),
        max_positions=numbers.count("n_positions"),
        has_attention_bias=True,
        has_output_bias=True,
        has_mlp_bias=True,
        activation=numbers.activation,
        dropouts=(numbers.share("embd_pdrop"), numbers.share("resid_pdrop"), numbers.share("attn_pdrop")),
        dtype=numbers.dtype,
    )


def _gpt_neox(numbers: _Numbers) -> ModelShape:
    hidden, heads = numbers.count("hidden_size"), numbers.count("num_attention_heads")
    head_dim = numbers.head_width(hidden, heads)
    has_bias = numbers.flag("attention_bias")
    dropout = numbers.share("hidden_dropout")
    return ModelShape(
        family="gpt_neox",
        num_layers=numbers.count("num_hidden_layers"),
        hidden_size=hidden,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=head_dim,
        intermediate_size=numbers.count("intermediate_size"),
        vocab_size=numbers.count("vocab_size"),
        is_tied=numbers.flag("tie_word_embeddings"),
        max_positions=numbers.optional("max_position_embeddings"),
        rotary_dim=int(head_dim * numbers.rotary_share),
        has_attention_bias=has_bias,
        has_output_bias=has_bias,
        has_mlp_bias=True,
        activation=numbers.activation,
        is_parallel=numbers.flag("use_parallel_residual"),
        dropouts=(dropout, dropout, numbers.share("attention_dropout")),
        dtype=numbers.dtype,
    )
