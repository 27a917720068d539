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
        ["llama", "mistral", "mixtral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"],
        frozenset({"q_proj", "v_proj"}),
    ),
    "phi": frozenset({"q_proj", "v_proj", "fc1", "fc2"}),
    "gpt2": frozenset({"c_attn"}),
    "gpt_neox": frozenset({"query_key_value"}),
}
"""Family -> what peft adapts if nothing is said. Source: peft 0.21, utils/constants.py."""
_PLANNED = frozenset(["r", "target_modules", "lora_dropout"])
_WITHOUT_MEMORY = frozenset(
    ["lora_alpha", "use_rslora", "init_lora_weights", "fan_in_fan_out", "inference_mode", "base_model_name_or_path",
     "revision", "task_type", "peft_type"]
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
    """Return the names of a model's linear layers without the output projection, as `target_modules` has them.

    A router's matrix and the stacked matrices of experts are parameters and not linear layers.
    """
    names = set()
    for one in weights_of(shape).items:
        module, _, kind = one.name.rpartition(".")
        is_router = module.endswith("mlp.gate")
        if module.startswith("layers") and kind == "weight" and one.is_in_matmul and not is_router:
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
