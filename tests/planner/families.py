"""Small models of every family that the planner knows, as configurations of transformers."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from rest_em.planner.layers import Adapter

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_WIDTHS = {
    "num_hidden_layers": 5,
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 2048,
}
_GPT2 = {"n_embd": 256, "n_layer": 5, "n_head": 4, "vocab_size": 2048}
_OTHERS: dict[str, dict[str, object]] = {
    "gemma": {"num_key_value_heads": 1, "head_dim": 128},
    "gemma2": {"query_pre_attn_scalar": 64},
    "gemma3_text": {"head_dim": 96},
    "phi": {"num_key_value_heads": 4, "intermediate_size": 1024},
    "phi3": {"pad_token_id": 0},
    "gpt_neox": {"intermediate_size": 1024},
    "smollm3": {"pad_token_id": 0},
    "starcoder2": {"intermediate_size": 1024},
    "stablelm": {"partial_rotary_factor": 0.5},
    "olmo2": {"num_key_value_heads": 4},
    "mixtral": {"intermediate_size": 384, "num_local_experts": 4},
    "qwen2_moe": {
        "moe_intermediate_size": 192,
        "shared_expert_intermediate_size": 320,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "mlp_only_layers": [1],
    },
    "qwen3_moe": {"moe_intermediate_size": 192, "num_experts": 8, "num_experts_per_tok": 2},
}
_TARGETS = {
    "gpt2": ["c_attn", "c_fc"],
    "gpt_neox": ["query_key_value", "dense"],
    "phi": ["q_proj", "v_proj", "fc1", "fc2"],
    "phi3": ["qkv_proj", "gate_up_proj", "down_proj"],
    "starcoder2": ["q_proj", "v_proj", "c_fc", "c_proj"],
    "mixtral": ["q_proj", "o_proj"],
    "qwen3_moe": ["q_proj", "k_proj"],
}
FAMILIES = [
    "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi", "phi3", "gpt2", "gpt_neox",
    "granite", "smollm3", "olmo2", "starcoder2", "stablelm",
]  # fmt: skip
MIXTURES = ["mixtral", "qwen2_moe", "qwen3_moe"]


@functools.cache
def config_of(family: str, **changes: object) -> PretrainedConfig:
    """Return the configuration of five small layers, with changes to it."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    widths = _GPT2 if family == "gpt2" else {**_WIDTHS, **_OTHERS.get(family, {})}
    return CONFIG_MAPPING[family](**{**widths, **changes})


def adapter_for(family: str, itemsize: int) -> Adapter:
    """Return LoRA of rank 8 on some of the family's linear layers."""
    targets = _TARGETS.get(family, ["q_proj", "v_proj", "o_proj", "down_proj"])
    return Adapter(8, frozenset(targets), itemsize)
