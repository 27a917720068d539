"""What the recipe and the launch tell transformers, accelerate and DeepSpeed."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

from transformers import PretrainedConfig, TrainingArguments

from rest_em.batches import divide_global_batch
from rest_em.devices import device_type, has_native_bfloat16
from rest_em.errors import TrainingError
from rest_em.recipe import TrainingSection
from rest_em.stages import uses_deepspeed
from rest_em.training.attention import why_not_packed
from rest_em.training.loader import Packing

EAGER_MAX_LENGTH = 128
"""Tokens up to which a CPU's eager attention beats SDPA; its memory grows with the square."""


def training_arguments(section: TrainingSection, output: Path, order_seed: str) -> TrainingArguments:
    num_ranks = int(os.environ.get("WORLD_SIZE", "1"))
    per_device, accumulation = divide_global_batch(
        section.global_batch_size, num_ranks, section.per_device_train_batch_size
    )
    device = device_type()
    is_on_cpu = device == "cpu"
    bf16 = has_native_bfloat16(device) if section.bf16 == "auto" else section.bf16
    os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16" if bf16 else "no"
    if uses_deepspeed(os.environ):
        _prepare_deepspeed(accumulation, is_on_cpu=is_on_cpu)
    defaults = {
        "train_sampling_strategy": "group_by_length",
        "ddp_find_unused_parameters": False,
        "ddp_broadcast_buffers": False,
    }
    # transformers refuses bf16 on a CPU unless use_cpu is set, which would turn DeepSpeed off.
    is_bf16_refused = uses_deepspeed(os.environ) and is_on_cpu
    arguments = TrainingArguments(
        **{**defaults, **(section.model_extra or {})},
        output_dir=str(output),
        num_train_epochs=section.num_train_epochs,
        per_device_train_batch_size=per_device,
        gradient_accumulation_steps=accumulation,
        learning_rate=section.learning_rate,
        bf16=bf16 and not is_bf16_refused,
        seed=random.Random(order_seed).getrandbits(31),
        use_cpu=is_on_cpu and not uses_deepspeed(os.environ),
        ddp_backend="gloo" if is_on_cpu and num_ranks > 1 else None,
        save_strategy="no",
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
    )
    if uses_deepspeed(os.environ):
        # Where the optimiser is offloaded, torch's own steps on the host: as quick as DeepSpeed's, which
        # would have to be compiled; see docs/launch.md.
        assert arguments.deepspeed_plugin is not None, "TrainingArguments heeds ACCELERATE_USE_DEEPSPEED"
        arguments.deepspeed_plugin.deepspeed_config.setdefault("zero_force_ds_cpu_optimizer", False)
    arguments.bf16 = bf16
    arguments._n_gpu = min(arguments.n_gpu, 1)  # one process is one device: no DataParallel
    return arguments


def _prepare_deepspeed(accumulation: int, *, is_on_cpu: bool) -> None:
    """Let the recipe say what the launch file does not own, and keep DeepSpeed from compiling on a CPU.

    DeepSpeed would build its shared-memory all-reduce at first use (a minute; a kill meanwhile leaves a lock
    on which the next run waits for ever). Without it gloo carries the collectives.
    """
    os.environ["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] = str(accumulation)
    os.environ["ACCELERATE_GRADIENT_CLIPPING"] = "auto"
    os.environ["ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL"] = "true"
    if is_on_cpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
        import deepspeed.ops

        deepspeed.ops.__compatible_ops__ = {}


def choose_attention(longest: int) -> str | None:
    """Return "eager" for short sequences on a CPU, where it is the faster one; see docs/training.md."""
    return "eager" if device_type() == "cpu" and longest <= EAGER_MAX_LENGTH else None


def choose_packing(section: TrainingSection, config: PretrainedConfig, longest: int) -> Packing:
    """Return how examples share a forward pass; says so where `auto` does not pack them.

    Args:
        section: the recipe's.
        config: the model's.
        longest: tokens of the longest example.

    Raises:
        TrainingError: the recipe wants them packed and the model does not allow it.
    """
    if section.packing is False:
        return Packing(is_packed=False, share_prefixes=False)
    reason = why_not_packed(config, longest)
    if (section.model_extra or {}).get("neftune_noise_alpha") is not None:
        reason = "training.neftune_noise_alpha scales its noise by the length of a row"
    if reason is None:
        return Packing(is_packed=True, share_prefixes=section.prefix_sharing)
    if section.packing is True:
        raise TrainingError(f"training.packing is true, but {reason}; give auto or false")
    print(f"examples are padded, not packed: {reason}", file=sys.stderr)
    return Packing(is_packed=False, share_prefixes=False)
