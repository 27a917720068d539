"""Which linear layers a recipe's `lora` section adapts, as peft resolves it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rest_em.errors import PlanError
from rest_em.planner.inventory import weights_of
from rest_em.planner.layers import Adapter
from rest_em.planner.shapes import ModelShape

DEFAULT_TARGETS: Mapping[str, tuple[str, ...]] = {
    "gpt2": ("c_attn",),
    "gpt_neox": ("query_key_value",),
    "phi3": ("qkv_proj",),
    "phi": ("q_proj", "v_proj", "fc1", "fc2"),
}
"""Where a recipe names no modules; of every other family `q_proj` and `v_proj`. Source: peft 0.21."""


def adapter_of(lora: Mapping[str, Any], shape: ModelShape, itemsize: int) -> Adapter:
    """Return the adapters of a `lora` section.

    Raises:
        PlanError: a module that it names is not there.
    """
    linear = {
        one.name.rpartition(".")[0].rpartition(".")[2]
        for one in weights_of(shape).items
        if one.name.startswith("layers.") and one.name.endswith(".weight") and one.is_decayed
    }
    asked = lora.get("target_modules")
    if asked is None:
        asked = DEFAULT_TARGETS.get(shape.family, ("q_proj", "v_proj"))
    names = linear if asked == "all-linear" else {asked} if isinstance(asked, str) else set(asked)
    unknown = sorted(names - linear)
    if unknown:
        raise PlanError(
            f"lora.target_modules has {', '.join(unknown)}, which no layer of a {shape.family} model has; "
            f"{', '.join(sorted(linear))} are there"
        )
    return Adapter(int(lora.get("r", 8)), frozenset(names), itemsize, float(lora.get("lora_dropout", 0.0)))
