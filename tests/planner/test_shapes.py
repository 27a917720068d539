"""Shapes read from a config.json beside transformers' configuration classes."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from families import FAMILIES, MIXTURES, config_of

from rest_em.errors import PlanError
from rest_em.planner.defaults import DEFAULTS
from rest_em.planner.shapes import FAMILIES as KNOWN
from rest_em.planner.shapes import load_shape, shape_of

WIDTHS = {"hidden_size": 512, "num_attention_heads": 8, "num_key_value_heads": 4, "num_hidden_layers": 4}
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 80}),
    ("llama", {"num_key_value_heads": None, "head_dim": None, "tie_word_embeddings": True}),
    ("mistral", {"sliding_window": None, "attention_bias": True}),
    ("qwen2", {"use_sliding_window": True, "max_window_layers": 2, "attention_bias": True}),
    ("qwen3", {"use_sliding_window": True, "max_window_layers": 1, "attention_bias": True}),
    ("gemma2", {"final_logit_softcapping": None, "hidden_activation": "gelu"}),
    ("gemma3_text", {"layer_types": ["full_attention"] * 4}),
    ("phi", {"resid_pdrop": 0.1, "partial_rotary_factor": 0.25}),
    ("phi3", {"partial_rotary_factor": 0.75, "sliding_window": 2047, "embd_pdrop": 0.1}),
    ("gpt_neox", {"rotary_pct": 1.0, "use_parallel_residual": False, "hidden_dropout": 0.1}),
    ("smollm3", {"no_rope_layer_interval": 2, "use_sliding_window": True, "sliding_window": 64}),
    ("smollm3", {"no_rope_layers": [1, 1, 0, 0]}),
    ("starcoder2", {"use_bias": False, "embedding_dropout": 0.1, "residual_dropout": 0.2}),
    ("stablelm", {"use_qkv_bias": True, "use_parallel_residual": True, "hidden_dropout": 0.1}),
    ("mixtral", {"num_local_experts": 4}),
    ("mixtral", {"num_experts": 4}),
    ("qwen2_moe", {"decoder_sparse_step": 2, "use_sliding_window": True, "qkv_bias": False}),
    ("qwen3_moe", {"mlp_only_layers": [0, 2], "num_experts": 16, "norm_topk_prob": True}),
]


@pytest.mark.parametrize("family", sorted(KNOWN))
def test_a_key_that_is_left_out_is_what_the_class_takes(family: str) -> None:
    assert shape_of({"model_type": family}) == shape_of(whole({"model_type": family}))


@pytest.mark.parametrize("family", sorted(KNOWN - {"gpt2"}))
def test_widths_alone_give_the_classs_shape(family: str) -> None:
    config = {"model_type": family, **WIDTHS}
    assert shape_of(config) == shape_of(whole(config))


@pytest.mark.parametrize(("family", "settings"), VARIANTS)
def test_settings_are_read_as_the_class_reads_them(family: str, settings: dict[str, Any]) -> None:
    config = {"model_type": family, **WIDTHS, **settings}
    assert shape_of(config) == shape_of(whole(config))


def test_gpt2_drops_a_tenth_where_nothing_is_said() -> None:
    assert shape_of({"model_type": "gpt2"}).dropouts == (0.1, 0.1, 0.1)


@pytest.mark.parametrize("family", [*FAMILIES, *MIXTURES])
def test_a_saved_configuration_is_read_whole(family: str, tmp_path: Path) -> None:
    config = config_of(family)
    config.save_pretrained(tmp_path)
    assert load_shape(tmp_path) == shape_of(config.to_dict())


def test_another_family_is_refused_with_the_known_ones() -> None:
    with pytest.raises(PlanError, match=r"model_type is 'qwen22', .* knows gemma, .*did you mean qwen2\?"):
        shape_of({"model_type": "qwen22"})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "llama", "hidden_size": 0}, "hidden_size is 0; a whole number > 0 is wanted"),
        ({"model_type": "llama", "vocab_size": None}, "vocab_size is None; a whole number > 0"),
        ({"model_type": "gpt2", "resid_pdrop": 2}, "resid_pdrop is 2; a number from 0 to 1 is wanted"),
        ({"model_type": "phi", "qk_layernorm": True}, "qk_layernorm is True, which is not planned for"),
        (
            {"model_type": "llama", "num_key_value_heads": 3},
            "num_key_value_heads is 3, which does not divide the 32 heads",
        ),
        ({"model_type": "llama", "hidden_act": "mish"}, "hidden_act is 'mish', whose memory .* gelu_new"),
        (
            {"model_type": "mixtral", "output_router_logits": True},
            "output_router_logits is True, which is not",
        ),
        ({"model_type": ["llama"]}, r"model_type is \['llama'\], which the planner does not know"),
        (
            {"model_type": "llama", "hidden_size": 16, "num_attention_heads": 32},
            "a hidden size of 16 cannot be shared out over 32 attention heads; a multiple of them",
        ),
        (
            {"model_type": "qwen2", "hidden_size": 500, "num_attention_heads": 8},
            "a hidden size of 500 cannot",
        ),
        ({"model_type": "gpt2", "n_embd": 500, "n_head": 8}, "a hidden size of 500 cannot"),
        ({"model_type": "gpt_neox", "hidden_size": 500, "num_attention_heads": 8}, "a hidden size of 500"),
        (
            {"model_type": "phi", "partial_rotary_factor": "x"},
            "partial_rotary_factor is 'x'; a number from 0 to 1 is wanted",
        ),
        ({"model_type": "gpt_neox", "rotary_pct": 25}, "rotary_pct is 25; a number from 0 to 1 is wanted"),
        ({"model_type": "qwen3_moe", "mlp_only_layers": 3}, "mlp_only_layers is 3; a list is wanted"),
        ({"model_type": "qwen3_moe", "mlp_only_layers": ["a"]}, "mlp_only_layers has 'a'; whole numbers"),
        (
            {"model_type": "smollm3", "num_hidden_layers": 4, "no_rope_layers": [1, 0]},
            "no_rope_layers has 2 values; a list with a value for each of the 4 layers is wanted",
        ),
        (
            {"model_type": "llama", "num_hidden_layers": 4, "layer_types": ["full_attention"] * 3},
            "layer_types has 3 values; a list with a value for each of the 4 layers",
        ),
        (
            {"model_type": "qwen3", "num_hidden_layers": 1, "layer_types": ["linear_attention"]},
            "layer_types has 'linear_attention', which is not planned for; full_attention or",
        ),
        (
            {"model_type": "gemma3_text", "sliding_window_pattern": "x"},
            "sliding_window_pattern is 'x'; a whole number > 0 is wanted",
        ),
        (
            {"model_type": "mixtral", "num_local_experts": 2, "num_experts_per_tok": 4},
            "num_experts_per_tok is 4, and there are 2 experts",
        ),
        (
            {"model_type": "llama", "num_hidden_layers": 100_000_000},
            "num_hidden_layers is 100,000,000; no such model is planned for, 10,000 at most",
        ),
        (
            {"model_type": "llama", "hidden_size": 2**25},
            "hidden_size is 33,554,432; no such model is planned for, 16,777,216 at most",
        ),
        (
            {"model_type": "llama", "quantization_config": {"quant_method": "awq"}},
            "quantization_config is there, and a quantised checkpoint is not planned for",
        ),
    ],
)
def test_what_cannot_be_planned_is_said(config: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        shape_of(config)


@pytest.mark.parametrize("family", sorted(KNOWN))
@pytest.mark.parametrize("value", [None, "x", [1], {"a": 1}, -1, 0, 10**12, 1e400, True])
def test_no_value_of_any_key_is_more_than_a_mistake(family: str, value: Any) -> None:
    for key in (*DEFAULTS[family], "layer_types", "rope_parameters", "rotary_pct", "sliding_window_pattern"):
        with contextlib.suppress(PlanError):
            shape_of({"model_type": family, key: value})


def test_a_head_may_have_a_width_of_its_own() -> None:
    shape = shape_of(
        {
            "model_type": "qwen2",
            "hidden_size": 500,
            "num_attention_heads": 8,
            "head_dim": 64,
            "num_key_value_heads": 4,
        }
    )
    assert (shape.head_dim, shape.query_width) == (64, 512)


def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="no such file"):
        load_shape(tmp_path)
    for text, message in (("[]", "a list is there"), ("{", "cannot be read as JSON")):
        (tmp_path / "config.json").write_text(text, encoding="utf-8")
        with pytest.raises(PlanError, match=message):
            load_shape(tmp_path)


def whole(config: dict[str, Any]) -> dict[str, Any]:
    """Return all that the configuration class makes of a config.json, as JSON has it."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    found: dict[str, Any] = json.loads(
        CONFIG_MAPPING[config["model_type"]].from_dict(config).to_json_string(False)
    )
    return found
