"""A recipe's `lora` section beside what peft makes of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from families import FAMILIES, MIXTURES, config_of

from rest_em.errors import PlanError
from rest_em.planner.adapters import DEFAULT_TARGETS, adapter_of
from rest_em.planner.layers import Adapter
from rest_em.planner.shapes import shape_of

LLAMA = shape_of(config_of("llama").to_dict())


@pytest.mark.parametrize("family", [*FAMILIES, *MIXTURES])
def test_the_defaults_are_those_of_peft(family: str) -> None:
    try:
        targets = adapted(family, None)
    except ValueError:
        targets = set()
    assert DEFAULT_TARGETS.get(family, frozenset()) == targets


def test_a_section_of_nothing_is_pefts_default() -> None:
    assert adapter_of({}, LLAMA, 4) == Adapter(8, frozenset({"q_proj", "v_proj"}), 4)


def test_rank_dropout_and_targets_are_taken_over() -> None:
    lora = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.05, "target_modules": ["o_proj"], "bias": "none"}
    assert adapter_of(lora, LLAMA, 2) == Adapter(16, frozenset({"o_proj"}), 2, 0.05)


@pytest.mark.parametrize("family", [*FAMILIES, "qwen2_moe"])
def test_all_linear_is_what_peft_makes_of_it(family: str) -> None:
    found = adapter_of({"target_modules": "all-linear"}, shape_of(config_of(family).to_dict()), 2)
    assert found.targets == adapted(family, "all-linear")


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_experts_that_peft_would_adapt_are_refused(family: str) -> None:
    shape = shape_of(config_of(family).to_dict())
    assert "experts" in adapted(family, "all-linear")
    with pytest.raises(PlanError, match=r"all-linear adapts the experts .* name some of k_proj, o_proj, "):
        adapter_of({"target_modules": "all-linear"}, shape, 2)
    with pytest.raises(PlanError, match=r"no linear layer 'down_proj'"):
        adapter_of({"target_modules": ["q_proj", "down_proj"]}, replace(shape, experts=None), 2)


def test_an_unknown_target_is_refused_with_the_known_ones() -> None:
    with pytest.raises(PlanError, match=r"no linear layer 'q_prj' .*down_proj, .*did you mean q_proj\?"):
        adapter_of({"target_modules": ["q_prj"]}, LLAMA, 4)


def test_a_family_without_a_default_must_name_its_targets() -> None:
    with pytest.raises(PlanError, match=r"no default for phi3; name some of .*qkv_proj"):
        adapter_of({}, shape_of(config_of("phi3").to_dict()), 4)


def test_a_pattern_is_refused() -> None:
    with pytest.raises(PlanError, match=r"the pattern '\.\*_proj' is not planned for"):
        adapter_of({"target_modules": ".*_proj"}, LLAMA, 4)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_dora", True),
        ("modules_to_save", ["lm_head"]),
        ("layers_to_transform", [0]),
        ("rank_pattern", {"q_proj": 4}),
        ("target_parameters", ["experts.down_proj"]),
        ("trainable_token_indices", [1]),
        ("bias", "all"),
        ("exclude_modules", ["q_proj"]),
    ],
)
def test_options_whose_memory_is_unknown_are_refused(key: str, value: object) -> None:
    with pytest.raises(PlanError, match=rf"lora\.{key}: .* is not planned for"):
        adapter_of({key: value}, LLAMA, 4)


def adapted(family: str, targets: str | None) -> set[str]:
    """Return the names of the modules that peft puts adapters on."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config_of(family))  # type: ignore[no-untyped-call]
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules=targets))
    names = (name for name, _ in model.named_parameters() if ".lora_A" in name)
    return {name.partition(".lora_A")[0].removesuffix(".base_layer").rpartition(".")[2] for name in names}
