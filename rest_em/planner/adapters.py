"""Which linear layers a recipe's `lora` section adapts, as peft resolves it.

Left out: what changes memory in other ways than low-rank pairs on whole linear layers (DoRA, saved modules,
ranks by pattern and so on); those options are refused, for a plan without them would be wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rest_em.errors import PlanError
from rest_em.planner.inventory import weights_of
from rest_em.planner.layers import Adapter
from rest_em.planner.shapes import ModelShape
from rest_em.recipe import nearest

DEFAULT_TARGETS: Mapping[str, frozenset[str]] = {
    **dict.fromkeys(
        ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "stablelm"],
        frozenset({"q_proj", "v_proj"}),
    ),
    "phi": frozenset({"q_proj", "v_proj", "fc1", "fc2"}),
    "gpt2": frozenset({"c_attn"}),
    "gpt_neox": frozenset({"query_key_value"}),
}
"""Family -> what peft adapts if nothing is said. Source: peft 0.21, utils/constants.py."""
_ADAPTS_EXPERTS = frozenset(["mixtral", "qwen3_moe"])
"""Families in whose MLPs peft adapts stacked experts and routers, by whatever name an MLP's layers are asked
for, which is not planned for. Source: peft 0.21, utils/transformers_weight_conversion.py."""
_PLANNED = frozenset(["r", "target_modules", "lora_dropout"])
_WITHOUT_MEMORY = frozenset(
    ["lora_alpha", "use_rslora", "init_lora_weights", "fan_in_fan_out", "inference_mode", "task_type",
     "peft_type", "base_model_name_or_path", "revision"]
)  # fmt: skip
_DEFAULT_RANK = 8


def adapter_of(lora: Mapping[str, Any], shape: ModelShape, itemsize: int) -> Adapter:
    """Return the adapter that a recipe's section makes.

    Args:
        lora: arguments of peft's LoraConfig.
        itemsize: bytes of an adapter's element while it is trained.

    Raises:
        PlanError: a target is no linear layer of the model, peft has no default for its family, or an option
            is one that the planner does not know the memory of.
    """
    for key, value in lora.items():
        is_off = value is None or value is False or value in ("none", [], {})
        if key not in _PLANNED | _WITHOUT_MEMORY and not is_off:
            raise PlanError(
                f"lora.{key}: {value!r} is not planned for; leave it out, or measure a run instead (planned "
                f"for: {', '.join(sorted(_PLANNED))})"
            )
    return Adapter(
        rank=int(lora.get("r", _DEFAULT_RANK)),
        targets=_targets(lora.get("target_modules"), shape),
        itemsize=itemsize,
        dropout=float(lora.get("lora_dropout") or 0.0),
    )


def linear_modules(shape: ModelShape) -> frozenset[str]:
    """Return the names of a model's linear layers but for the output projection, as in `target_modules`.

    A router's matrix and the stacked matrices of experts are parameters and not linear layers. Where peft
    adapts those all the same, an MLP has none that can be named.
    """
    names = set()
    for one in weights_of(shape).items:
        module, _, kind = one.name.rpartition(".")
        is_adapted_apart = module.endswith("mlp.gate") or (
            shape.family in _ADAPTS_EXPERTS and ".mlp." in module
        )
        if module.startswith("layers") and kind == "weight" and one.is_in_matmul and not is_adapted_apart:
            names.add(module.rpartition(".")[2])
    return frozenset(names)


def _targets(wanted: Any, shape: ModelShape) -> frozenset[str]:
    known = linear_modules(shape)
    if wanted is None:
        if shape.family not in DEFAULT_TARGETS:
            raise PlanError(
                f"lora.target_modules: peft has no default for {shape.family}; name some of "
                f"{', '.join(sorted(known))}, or all-linear"
            )
        return DEFAULT_TARGETS[shape.family]
    if isinstance(wanted, str):
        if wanted.lower() == "all-linear" and shape.family in _ADAPTS_EXPERTS:
            raise PlanError(
                f"lora.target_modules: all-linear adapts the experts of {shape.family}, which is not planned "
                f"for; name some of {', '.join(sorted(known))}"
            )
        if wanted.lower() == "all-linear":
            return known
        raise PlanError(
            f"lora.target_modules: the pattern {wanted!r} is not planned for; list names of "
            f"{', '.join(sorted(known))}, or say all-linear"
        )
    for name in wanted:
        if name not in known:
            near = nearest(str(name), known)
            meant = f"; did you mean {near}?" if near else ""
            raise PlanError(
                f"lora.target_modules: {shape.family} has no linear layer {name!r} (it has "
                f"{', '.join(sorted(known))}){meant}"
            )
    return frozenset(wanted)
