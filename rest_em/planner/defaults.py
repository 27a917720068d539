"""What transformers takes where a model's config.json leaves a key out, and which keys a family has at all.

A key that is not a family's is not read by its classes, whatever a config.json says there. Where the classes
fill None from other keys, None stands here too. Source: transformers 5.23, the configuration classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_ROTARY: Mapping[str, Any] = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "head_dim": None,
    "intermediate_size": 11008,
    "vocab_size": 32000,
    "tie_word_embeddings": False,
    "max_position_embeddings": 2048,
    "hidden_act": "silu",
    "attention_dropout": 0.0,
}
_LLAMA: Mapping[str, Any] = {**_ROTARY, "attention_bias": False, "mlp_bias": False}
_MISTRAL: Mapping[str, Any] = {
    **_ROTARY,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
}
_QWEN: Mapping[str, Any] = {
    **_ROTARY,
    "num_key_value_heads": 32,
    "intermediate_size": 22016,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
    "use_sliding_window": False,
}
_QWEN_MOE: Mapping[str, Any] = {
    **_QWEN,
    "hidden_size": 2048,
    "num_hidden_layers": 24,
    "decoder_sparse_step": 1,
    "mlp_only_layers": None,
    "norm_topk_prob": False,
    "output_router_logits": False,
}
_GEMMA: Mapping[str, Any] = {
    **_ROTARY,
    "head_dim": 256,
    "vocab_size": 256000,
    "tie_word_embeddings": True,
    "max_position_embeddings": 8192,
    "attention_bias": False,
}
_GEMMA2: Mapping[str, Any] = {
    **_GEMMA,
    "hidden_size": 2304,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "intermediate_size": 9216,
    "sliding_window": 4096,
    "hidden_activation": "gelu_pytorch_tanh",
}
_PHI: Mapping[str, Any] = {**_ROTARY, "intermediate_size": 8192, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "llama": _LLAMA,
    "mistral": {**_MISTRAL, "sliding_window": 4096},
    "qwen2": {**_QWEN, "max_window_layers": 28},
    "qwen3": {**_QWEN, "max_window_layers": 28, "head_dim": 128, "attention_bias": False},
    "gemma": {
        **_GEMMA,
        "hidden_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "intermediate_size": 24576,
        "hidden_act": "gelu_pytorch_tanh",
    },
    "gemma2": {**_GEMMA2, "final_logit_softcapping": 30.0},
    "gemma3_text": {
        **_GEMMA2,
        "vocab_size": 262208,
        "max_position_embeddings": 131072,
        "final_logit_softcapping": None,
    },
    "phi": {
        **_PHI,
        "hidden_size": 2048,
        "num_hidden_layers": 24,
        "vocab_size": 51200,
        "hidden_act": "gelu_new",
        "qk_layernorm": False,
        "partial_rotary_factor": 0.5,
    },
    "phi3": {
        **_PHI,
        "hidden_size": 3072,
        "vocab_size": 32064,
        "max_position_embeddings": 4096,
        "sliding_window": None,
        "partial_rotary_factor": 1.0,
    },
    "gpt2": {
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "n_inner": None,
        "vocab_size": 50257,
        "tie_word_embeddings": True,
        "n_positions": 1024,
        "activation_function": "gelu_new",
        "embd_pdrop": 0.1,
        "resid_pdrop": 0.1,
        "attn_pdrop": 0.1,
    },
    "gpt_neox": {
        "hidden_size": 6144,
        "num_hidden_layers": 44,
        "num_attention_heads": 64,
        "intermediate_size": 24576,
        "vocab_size": 50432,
        "tie_word_embeddings": False,
        "max_position_embeddings": 2048,
        "attention_bias": True,
        "hidden_act": "gelu",
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "use_parallel_residual": True,
        "partial_rotary_factor": 0.25,
    },
    "mixtral": {
        **_MISTRAL,
        "sliding_window": None,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "output_router_logits": False,
    },
    "qwen2_moe": {
        **_QWEN_MOE,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "intermediate_size": 5632,
        "max_window_layers": 28,
        "qkv_bias": True,
        "num_experts": 60,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
    },
    "qwen3_moe": {
        **_QWEN_MOE,
        "num_key_value_heads": 4,
        "intermediate_size": 6144,
        "attention_bias": False,
        "num_local_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
    },
}
"""Family -> key -> value."""
