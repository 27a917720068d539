"""A policy in memory: model, tokenizer, end tokens, and the precision that the device computes natively."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from rest_em.devices import device_type, has_native_bfloat16
from rest_em.tokens import max_positions

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class LoadedPolicy:
    """What the engines need of a policy."""

    model: PreTrainedModel
    """In evaluation mode on its device."""
    tokenizer: PreTrainedTokenizerBase
    eos_token_ids: frozenset[int]
    """The tokenizer's and those of the model's generation_config, which contributes nothing else."""
    max_positions: int | None
    """The longest sequence that the model's positions allow; None if it names no limit."""


def local_device() -> torch.device:
    """Return the accelerator of this rank, or the CPU."""
    kind = device_type()
    return torch.device(kind) if kind == "cpu" else torch.device(kind, int(os.environ.get("LOCAL_RANK", "0")))


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype of a recipe's `model.dtype`; `auto` is bfloat16 where it is native, else float32."""
    if name != "auto":
        dtype: torch.dtype = getattr(torch, name)
        return dtype
    return torch.bfloat16 if has_native_bfloat16(device.type) else torch.float32


def load_policy(
    path: str,
    *,
    dtype: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    device: torch.device | None = None,
) -> LoadedPolicy:
    """Load a folder or a hub id onto a device, None being this rank's own.

    A folder is read without looking at the hub; `dtype` is as in `choose_dtype`.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    device = device or local_device()
    is_folder = Path(path).is_dir()
    tokenizer = AutoTokenizer.from_pretrained(
        path,
        revision=None if is_folder else revision,
        trust_remote_code=trust_remote_code,
        local_files_only=is_folder,
    )
    model = AutoModelForCausalLM.from_pretrained(
        path,
        revision=None if is_folder else revision,
        trust_remote_code=trust_remote_code,
        local_files_only=is_folder,
        dtype=choose_dtype(dtype, device),
    )
    model.to(device)  # type: ignore[arg-type]
    return in_memory(model.eval(), tokenizer)  # type: ignore[no-untyped-call]


def in_memory(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> LoadedPolicy:
    """Return a model that is already loaded as a policy."""
    configured = model.generation_config.eos_token_id if model.generation_config is not None else None
    configured = [configured] if isinstance(configured, int) else configured or []
    tokenizers = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return LoadedPolicy(
        model=model,
        tokenizer=tokenizer,
        eos_token_ids=frozenset([*tokenizers, *configured]),
        max_positions=max_positions(model.config),
    )
