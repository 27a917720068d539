"""The symbolic account of a step beside a trace of the real class, and beside closed formulas."""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from families import FAMILIES, MIXTURES, adapter_for, config_of

from rest_em import packs
from rest_em.planner.activations import StepSetup, instants_of
from rest_em.planner.hardware import Cluster, find_gpu, load_gpus
from rest_em.planner.inventory import active_parameters, weights_of
from rest_em.planner.layers import Adapter
from rest_em.planner.shapes import ModelShape, shape_of
from rest_em.planner.training import TrainingSetup, training_memory

STEP = StepSetup(num_rows=2, length=192, num_kept=65, num_solution_tokens=64)
LLAMA = ModelShape(
    family="llama", num_layers=7, hidden_size=256, num_heads=8, num_kv_heads=2, head_dim=32, rotary_dim=32,
    intermediate_size=640, vocab_size=4096, is_tied=False, max_positions=4096,
)  # fmt: skip


@pytest.mark.parametrize(
    ("family", "adapter", "is_checkpointed", "precision", "loss"),
    [
        ("llama", 4, True, "bf16", "packed"),
        ("mistral", 2, False, "bf16", "packed"),
        ("qwen2", None, True, "autocast", "packed"),
        ("qwen3", 4, False, "autocast", "model"),
        ("gemma", None, False, "autocast", "packed"),
        ("gemma2", None, True, "autocast", "solution"),
        ("gemma2", None, False, "bf16", "solution"),
        ("gemma2", 4, True, "fp32", "solution"),
        ("gemma2", 2, False, "bf16", "model"),
        ("gemma3_text", None, False, "fp32", "packed"),
        ("phi", 4, True, "fp32", "model"),
        ("phi3", 4, False, "autocast", "packed"),
        ("gpt2", None, True, "bf16", "packed"),
        ("gpt_neox", None, True, "autocast", "packed"),
        ("granite", 4, True, "bf16", "model"),
        ("smollm3", None, True, "bf16", "packed"),
        ("olmo2", None, True, "bf16", "model"),
        ("starcoder2", None, False, "bf16", "model"),
        ("stablelm", 2, False, "bf16", "packed"),
        ("mixtral", None, False, "bf16", "model"),
        ("qwen2_moe", None, True, "autocast", "packed"),
        ("qwen3_moe", 4, True, "bf16", "packed"),
    ],
)
def test_the_peaks_are_those_of_a_trace(
    family: str, adapter: int | None, is_checkpointed: bool, precision: Any, loss: Any
) -> None:
    from rest_em.tracing import trace_step

    config = copy.deepcopy(config_of(family))  # the attention over packs is set in it
    setup = replace(
        STEP,
        precision=precision,
        is_checkpointed=is_checkpointed,
        adapter=None if adapter is None else adapter_for(family, adapter),
        loss=loss,
        num_shared=64 if loss == "packed" else 0,
    )
    meter, shape = trace_step(config, setup), shape_of(config.to_dict())
    for phase in ("forward", "backward"):
        traced = meter.peaks[phase] - meter.static_bytes
        assert peak(shape, setup, phase) == pytest.approx(traced, rel=0.01)


@pytest.mark.parametrize("num_shared", [0, 64])
def test_logits_in_parts_are_those_of_a_trace(monkeypatch: pytest.MonkeyPatch, num_shared: int) -> None:
    from rest_em.tracing import trace_step

    config = copy.deepcopy(config_of("llama", vocab_size=32000))
    monkeypatch.setattr(packs, "MAX_LOGITS_BYTES", 4 * 32000 * 60)
    setup = replace(STEP, num_rows=4, precision="bf16", loss="packed", num_shared=num_shared)
    meter, shape = trace_step(config, setup), shape_of(config.to_dict())
    for phase in ("forward", "backward"):
        traced = meter.peaks[phase] - meter.static_bytes
        assert peak(shape, setup, phase) == pytest.approx(traced, rel=0.01)


@pytest.mark.parametrize("is_later", [False, True])
@pytest.mark.parametrize("is_tied", [False, True])
def test_an_m_steps_whole_peak_is_that_of_a_trace(*, is_tied: bool, is_later: bool) -> None:
    from rest_em.tracing import trace_step

    config = config_of("llama", tie_word_embeddings=is_tied, vocab_size=32000)
    setup = TrainingSetup(
        method="full", strategy="single", num_rows=2, global_batch_size=4 if is_later else 2, longest=192,
        mean_length=192, num_kept=65, num_solution_tokens=64, precision="fp32", optim="adamw_torch_fused",
    )  # fmt: skip
    memory = training_memory(shape_of(config.to_dict()), setup, Cluster(gpu=find_gpu("l4", load_gpus())))
    meter = trace_step(config, setup.step, is_later=is_later)
    traced = max(meter.peaks["forward"], meter.peaks["backward"])
    assert memory.peak.total_bytes == pytest.approx(traced, rel=0.001)


@pytest.mark.parametrize(
    ("precision", "changes"),
    [
        ("bf16", {}),
        ("autocast", {"attention_dropout": 0.1}),
        ("fp32", {"attn_logit_softcapping": None}),
    ],
)
def test_held_scores_are_those_of_a_trace(precision: Any, changes: dict[str, Any]) -> None:
    from rest_em.tracing import trace_step

    config = config_of("gemma2", num_hidden_layers=7, **changes)
    setup = replace(STEP, num_rows=4, length=384, precision=precision, is_checkpointed=True)
    meter, shape = trace_step(config, setup), shape_of(config.to_dict())
    for phase in ("forward", "backward"):
        traced = meter.peaks[phase] - meter.static_bytes
        assert peak(shape, setup, phase) == pytest.approx(traced, rel=0.01)


@pytest.mark.parametrize(
    ("num_rows", "num_heads", "num_kv_heads"), [(1, 4, 4), (2, 4, 4), (1, 4, 1), (2, 1, 1)]
)
def test_held_scores_of_any_groups(num_rows: int, num_heads: int, num_kv_heads: int) -> None:
    from rest_em.tracing import trace_step

    config = config_of("gemma2", num_attention_heads=num_heads, num_key_value_heads=num_kv_heads)
    setup = replace(STEP, num_rows=num_rows, precision="bf16")
    meter, shape = trace_step(config, setup), shape_of(config.to_dict())
    for phase in ("forward", "backward"):
        traced = meter.peaks[phase] - meter.static_bytes
        assert peak(shape, setup, phase) == pytest.approx(traced, rel=0.01)


@pytest.mark.parametrize("family", [*FAMILIES, *MIXTURES])
def test_scores_are_held_where_the_class_has_no_kernel(family: str) -> None:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    config = config_of(family)
    shape = shape_of(config.to_dict())
    assert shape.has_eager_attention != MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]._supports_sdpa


@pytest.mark.parametrize("family", [*FAMILIES, *MIXTURES])
def test_the_inventory_is_that_of_the_real_class(family: str) -> None:
    config, adapter = config_of(family), adapter_for(family, 2)
    shape = shape_of(config.to_dict())
    for targets, weights in (
        (None, weights_of(shape)),
        (sorted(adapter.targets), weights_of(shape, adapter)),
    ):
        planned: Counter[tuple[str, int, bool]] = Counter()
        for one in weights.items:
            planned[_NUMBER.sub("", one.name), one.num_elements, one.is_trainable] += one.count
        assert planned == Counter(real_weights(family, targets))


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("qwen2_moe", {"decoder_sparse_step": 2, "norm_topk_prob": True}),
        ("qwen3_moe", {"mlp_only_layers": [0, 3]}),
        ("qwen3_moe", {"mlp_only_layers": [0, 1, 2, 3, 4]}),
    ],
)
def test_dense_layers_among_sparse_ones(family: str, settings: dict[str, Any]) -> None:
    from rest_em.tracing import trace_step

    changed = {**config_of(family).to_dict(), "mlp_only_layers": [], **settings}
    config = type(config_of(family)).from_dict(changed)
    setup = replace(STEP, precision="bf16", is_checkpointed=True)
    meter, shape = trace_step(config, setup), shape_of(config.to_dict())
    for phase in ("forward", "backward"):
        traced = meter.peaks[phase] - meter.static_bytes
        assert peak(shape, setup, phase) == pytest.approx(traced, rel=0.01)


def test_a_token_is_multiplied_with_its_experts_only() -> None:
    shape = shape_of(config_of("mixtral").to_dict())
    expert = 3 * 256 * 384
    idle = 5 * 2 * expert  # in 5 layers 2 of 4 experts
    assert active_parameters(shape) == weights_of(shape).num_elements - idle - 2048 * 256


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_bytes_saved_by_a_layer(family: str) -> None:
    shape, setup = replace(LLAMA, family=family), replace(STEP, precision="bf16")
    expected = 16 * 256 + 4 * 256 + 4 * 64 + 8 * 640 + 4 * 8 + 8
    assert saved_per_layer(shape, setup) == expected * setup.num_rows * setup.length


def test_head_norms_of_qwen3_save_more() -> None:
    plain, setup = replace(LLAMA, family="qwen3"), replace(STEP, precision="bf16")
    more = saved_per_layer(replace(plain, has_qk_norm=True), setup) - saved_per_layer(plain, setup)
    assert more == (6 * 256 + 4 * 8 + 6 * 64 + 4 * 2) * setup.num_rows * setup.length


def test_checkpointing_saves_a_layers_input_only() -> None:
    setup = replace(STEP, precision="bf16", is_checkpointed=True)
    assert saved_per_layer(LLAMA, setup) == 2 * 256 * setup.num_rows * setup.length


def test_fp32_adapters_save_more_than_the_whole_model_would() -> None:
    setup = replace(STEP, precision="bf16")
    targets = frozenset({"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"})
    sizes = [
        saved_per_layer(LLAMA, replace(setup, adapter=adapter))
        for adapter in (Adapter(16, targets, 2), None, Adapter(16, targets, 4), Adapter(16, targets, 4, 0.05))
    ]
    assert sizes == sorted(sizes)


def test_logits_of_a_loss_over_all_tokens() -> None:
    setup = replace(STEP, precision="bf16", loss="model")
    size = LLAMA.vocab_size * setup.num_rows * setup.length
    peaks = {one.name: one.components["logits"] for one in instants_of(LLAMA, setup)}
    assert peaks["loss forward"] == pytest.approx(10 * size, rel=0.001)
    stash = {one.name: one.components["activations"] for one in instants_of(LLAMA, setup)}
    backward = peaks["loss backward"] + stash["loss backward"] - stash["loss forward"]
    assert backward == pytest.approx(12 * size, rel=0.001)


def peak(shape: ModelShape, setup: StepSetup, phase: str) -> int:
    """Return the largest of the instants of the `forward` or `backward` pass."""
    instants = [one for one in instants_of(shape, setup) if ("backward" in one.name) == (phase == "backward")]
    return max(sum(one.components.values()) for one in instants)


_NUMBER = re.compile(r"(?<=layers\.)\d+\.")
_NAMES = {
    "base_model.model.": "",
    "base_layer.": "",
    ".default": "",
    "model.": "",
    "transformer.": "",
    "gpt_neox.": "",
    "h.": "layers.",
    "wte": "embed_tokens",
    "embed_in": "embed_tokens",
    "embed_out": "lm_head",
    "ln_f": "norm",
    "final_layer_norm": "norm",
    "final_layernorm": "norm",
}
"""Parts of real names and what the planner has instead, which leaves a family's outermost names."""


def real_weights(family: str, targets: list[str] | None) -> Iterator[tuple[str, int, bool]]:
    """Yield the real model's weights: names as `plain_name` gives them, sizes, and which are trained."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config_of(family))  # type: ignore[no-untyped-call]
        if targets is not None:
            model = get_peft_model(model, LoraConfig(r=8, target_modules=targets))
    for name, parameter in model.named_parameters():
        yield plain_name(name), parameter.numel(), parameter.requires_grad


def plain_name(name: str) -> str:
    """Return the planner's name of a weight, without its layer's number."""
    for before, after in _NAMES.items():
        name = re.sub(rf"(?<![a-z0-9_]){re.escape(before)}", after, name)
    return _NUMBER.sub("", name)


def saved_per_layer(shape: ModelShape, setup: StepSetup) -> int:
    """Return what one more layer leaves behind when the forward is over."""
    held = [
        next(one for one in instants_of(replace(shape, num_layers=number), setup) if one.name == "forward")
        for number in (7, 8)
    ]
    return held[1].components["activations"] - held[0].components["activations"]
