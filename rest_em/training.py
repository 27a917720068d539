"""The M-step: supervised fine-tuning from the base model, a stage of its own in every rank's child process.

transformers' Trainer does the work (accelerate, DDP or DeepSpeed ZeRO, peft). This module adds what
Algorithm 1 asks for: the loss is the reward-weighted mean over the solution tokens of the *global* batch,
whatever the accumulation and the ranks, and every epoch leaves an ordinary Hugging Face folder. Choosing
among the checkpoints is left to `algorithm`, the order of the examples to `batches`.
"""

# Shapes: B examples in the micro-batch, T tokens, K last positions whose logits are computed,
# S solution tokens, V vocabulary.

from __future__ import annotations

import copy
import inspect
import math
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Sampler
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

from rest_em.batches import EncodedExample, divide_global_batch, global_batches, micro_batches
from rest_em.devices import device_type, has_native_bfloat16
from rest_em.errors import TrainingError
from rest_em.processes import keep_freed_memory
from rest_em.recipe import TrainingSection
from rest_em.storage import read_examples, replacing_folder, write_json
from rest_em.tokens import encode_prompt, max_positions
from rest_em.types import TrainingExample
from rest_em.usage import Meter, resident_bytes

PROGRESS_SECONDS = 1.0
"""Between two writes of the progress file."""
EAGER_MAX_LENGTH = 128
"""Tokens up to which a CPU's eager attention beats SDPA; its memory grows with the square."""


def main(spec: dict[str, Any]) -> None:
    """Train on D_i; write `output/epoch-1` and on, `output/training.json` and `progress/0.json`.

    Args:
        spec: `model` (name_or_path, revision, trust_remote_code), `examples` (a path), `output` (a folder),
            `training` (the recipe's section), `lora` (LoraConfig's arguments or None), `seed`, `iteration`,
            `progress` (a folder).

    Every rank keeps what it took in `output/usage`.

    Raises:
        TrainingError: the settings contradict the ranks, the model or the examples.
    """
    started, at_start = time.monotonic(), resident_bytes()
    if device_type() == "cpu":
        keep_freed_memory()
    section = TrainingSection.model_validate(spec["training"])
    output = Path(spec["output"])
    order_seed = f"{spec['seed']}/{spec['iteration']}"
    arguments = _training_arguments(section, output, order_seed)
    meter = Meter(output, arguments.device, resident_bytes_at_start=at_start)
    base = _Base(**spec["model"])
    examples, num_left_out = encode_examples(
        read_examples(Path(spec["examples"])), base.tokenizer, _length_limit(section, base.config)
    )
    set_seed(arguments.seed)
    longest = max(len(one.token_ids) for one in examples)
    model = base.trainable_model(spec["lora"], is_half=arguments.bf16, attention=_attention(longest))
    trainer = _WeightedTrainer(model, arguments, examples, order_seed)
    checkpoints = _Checkpoints(trainer, base, output)
    journal = _Journal(Path(spec["progress"]) / "0.json", checkpoints.save)
    trainer.add_callback(journal)
    trainer.train()
    meter.add(
        num_tokens=trainer.num_computed,
        num_steps=trainer.state.global_step,
        work_seconds=journal.epoch_seconds,
    )
    if trainer.is_world_process_zero():
        write_json(
            output / "training.json",
            {
                "checkpoints": [f"epoch-{i + 1}" for i in range(len(journal.epoch_losses))],
                "num_examples": len(examples),
                "num_left_out": num_left_out,
                "num_tokens": sum(one.num_solution_tokens for one in examples),
                "loss": journal.epoch_losses,
                "num_steps": trainer.state.global_step,
                "seconds": round(time.monotonic() - started, 3),
            },
        )
    _leave_group(trainer)


def encode_examples(
    examples: Sequence[TrainingExample], tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> tuple[list[EncodedExample], int]:
    """Return D_i as the model reads it, and how many examples were longer than `max_length` and left out.

    A solution that a stop string ended gets the tokenizer's EOS; one that the model ended has it already.

    Raises:
        TrainingError: nothing is left, or the tokenizer has no EOS token.
    """
    if tokenizer.eos_token_id is None:
        raise TrainingError(
            f"the tokenizer of {tokenizer.name_or_path} has no EOS token, so a solution could not end; "
            "use a model whose tokenizer names one"
        )
    encoded = []
    for example in examples:
        assert example.finish_reason != "length", "a truncated solution is never trained on"
        prompt_ids = encode_prompt(tokenizer, example.prompt)
        end = (tokenizer.eos_token_id,) if example.finish_reason == "stop_string" else ()
        encoded.append(
            EncodedExample((*prompt_ids, *example.token_ids, *end), len(prompt_ids), example.weight)
        )
    kept = [one for one in encoded if max_length is None or len(one.token_ids) <= max_length]
    if not kept:
        lengths = [len(one.token_ids) for one in encoded]
        found = f"all {len(lengths)} have at least {min(lengths)} tokens" if lengths else "there are none"
        raise TrainingError(
            f"no example of at most {max_length} tokens (prompt and solution) to train on: {found}; "
            "raise training.max_length or use a shorter prompt.training"
        )
    return kept, len(encoded) - len(kept)


def _length_limit(section: TrainingSection, config: PretrainedConfig) -> int | None:
    limits = (section.max_length, max_positions(config))
    return min((limit for limit in limits if limit is not None), default=None)


def _attention(longest: int) -> str | None:
    """Return "eager" for short sequences on a CPU, where it is the faster one; see docs/training.md."""
    return "eager" if device_type() == "cpu" and longest <= EAGER_MAX_LENGTH else None


def _training_arguments(section: TrainingSection, output: Path, order_seed: str) -> TrainingArguments:
    num_ranks = int(os.environ.get("WORLD_SIZE", "1"))
    per_device, accumulation = divide_global_batch(
        section.global_batch_size, num_ranks, section.per_device_train_batch_size
    )
    uses_deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"
    device = device_type()
    is_on_cpu = device == "cpu"
    bf16 = has_native_bfloat16(device) if section.bf16 == "auto" else section.bf16
    os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16" if bf16 else "no"
    if uses_deepspeed:
        _prepare_deepspeed(accumulation, is_on_cpu=is_on_cpu)
    defaults = {
        "train_sampling_strategy": "group_by_length",
        "ddp_find_unused_parameters": False,
        "ddp_broadcast_buffers": False,
    }
    # transformers refuses bf16 on a CPU unless use_cpu is set, which would turn DeepSpeed off.
    is_bf16_refused = uses_deepspeed and is_on_cpu
    arguments = TrainingArguments(
        **{**defaults, **(section.model_extra or {})},
        output_dir=str(output),
        num_train_epochs=section.num_train_epochs,
        per_device_train_batch_size=per_device,
        gradient_accumulation_steps=accumulation,
        learning_rate=section.learning_rate,
        bf16=bf16 and not is_bf16_refused,
        seed=random.Random(order_seed).getrandbits(31),
        use_cpu=is_on_cpu and not uses_deepspeed,
        ddp_backend="gloo" if is_on_cpu and num_ranks > 1 else None,
        save_strategy="no",
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
    )
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


class _Base:
    """The base model as a recipe names it; read from disk or hub where it is needed, never changed."""

    def __init__(self, name_or_path: str, revision: str | None, trust_remote_code: bool) -> None:
        self.name_or_path = name_or_path
        self._source = {"revision": revision, "trust_remote_code": trust_remote_code}
        self.config: PretrainedConfig = AutoConfig.from_pretrained(name_or_path, **self._source)
        self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name_or_path, **self._source)

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the checkpoint on disk."""
        dtype = self.config.dtype
        return dtype if isinstance(dtype, torch.dtype) else torch.float32

    def read(self, dtype: torch.dtype, attention: str | None = None) -> PreTrainedModel:
        """Return the model; under ZeRO-3 a rank holds its share only."""
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            self.name_or_path, dtype=dtype, attn_implementation=attention, **self._source
        )
        return model

    def trainable_model(self, lora: dict[str, Any] | None, *, is_half: bool, attention: str | None) -> Any:
        """Return the model with fp32 weights, or frozen with fp32 adapters on it.

        Args:
            lora: peft's LoraConfig, or None to train all weights.
            is_half: whether a frozen base is held in bfloat16.
            attention: transformers' `attn_implementation`, None for the model's own choice.
        """
        if lora is None:
            return self.read(torch.float32, attention)
        from peft import LoraConfig, get_peft_model

        model = self.read(torch.bfloat16 if is_half else torch.float32, attention)
        return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **lora))


class _MicroBatches(Sampler[list[tuple[int, float]]]):
    """A rank's micro-batches of an epoch: indexes of examples, each with the scale of its tokens' weights.

    A token's scale is num_ranks / (the global batch's sum of weights over solution tokens). So micro-batches
    simply add up, and the mean over ranks that DDP and DeepSpeed take of the gradients gives the mean over
    the global batch's tokens.
    """

    def __init__(
        self, examples: Sequence[EncodedExample], arguments: TrainingArguments, order_seed: str
    ) -> None:
        self._lengths = [len(one.token_ids) for one in examples]
        self._token_weights = [one.weight * one.num_solution_tokens for one in examples]
        self._arguments = arguments
        self._order_seed = order_seed
        self._shortest = min(range(len(examples)), key=self._lengths.__getitem__)
        self.epoch = 0

    def __len__(self) -> int:
        """Micro-batches a rank and epoch."""
        per_round = self._arguments.per_device_train_batch_size * self._arguments.world_size
        return sum(-(-len(batch) // per_round) for batch in self._global_batches())

    def __iter__(self) -> Iterator[list[tuple[int, float]]]:
        num_ranks = self._arguments.world_size
        for batch in self._global_batches():
            scale = num_ranks / sum(self._token_weights[i] for i in batch)
            cuts = micro_batches(
                batch,
                self._lengths,
                per_device=self._arguments.per_device_train_batch_size,
                num_ranks=num_ranks,
            )
            for mine in cuts[self._arguments.process_index :: num_ranks]:
                # Ranks take equally many steps: one without an example computes another's, without weight.
                yield [(i, scale) for i in mine] or [(self._shortest, 0.0)]

    def _global_batches(self) -> list[list[int]]:
        return global_batches(
            self._lengths,
            self._arguments.per_device_train_batch_size
            * self._arguments.world_size
            * self._arguments.gradient_accumulation_steps,
            seed=f"{self._order_seed}/{self.epoch}",
            group_by_length=self._arguments.train_sampling_strategy == "group_by_length",
        )


class _EpochLoader(DataLoader[Any]):
    """A DataLoader whose order the Trainer may ask to change with the epoch."""

    def set_epoch(self, epoch: int) -> None:
        assert isinstance(self.batch_sampler, _MicroBatches)
        self.batch_sampler.epoch = epoch


class _Weighed(torch.utils.data.Dataset[tuple[EncodedExample, float]]):
    """Examples beside the scale that the sampler asks for them with."""

    def __init__(self, examples: Sequence[EncodedExample]) -> None:
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, key: tuple[int, float]) -> tuple[EncodedExample, float]:
        index, scale = key
        return self._examples[index], scale


def collate(rows: Sequence[tuple[EncodedExample, float]]) -> dict[str, torch.Tensor]:
    """Pad on the right to the longest; `token_weights` is 0 wherever the loss does not look.

    No attention mask: attention is causal, so no token sees the padding behind it, and without a mask the
    kernel neither repeats keys and values for every query head nor holds a bias of the length squared.
    """
    shape = (len(rows), max(len(example.token_ids) for example, _ in rows))
    input_ids_BT = torch.zeros(shape, dtype=torch.long)
    token_weights_BT = torch.zeros(shape)
    for row, (example, scale) in enumerate(rows):
        length = len(example.token_ids)
        input_ids_BT[row, :length] = torch.tensor(example.token_ids)
        token_weights_BT[row, example.num_prompt_tokens : length] = example.weight * scale
    return {"input_ids": input_ids_BT, "token_weights": token_weights_BT}


def solution_loss(
    logits_BKV: torch.Tensor, positions_S: torch.Tensor, targets_S: torch.Tensor, weights_S: torch.Tensor
) -> torch.Tensor:
    """Return the sum over solution tokens of weight times negative log-likelihood, in fp32.

    Args:
        logits_BKV: of the last positions of each row.
        positions_S: which of all rows' positions, counted through, predict the solution tokens.
        targets_S: those tokens.
        weights_S: what each counts.
    """
    logits_SV = logits_BKV.flatten(0, 1).index_select(0, positions_S).float()
    return (cross_entropy(logits_SV, targets_S, reduction="none") * weights_S).sum()


class _WeightedTrainer(Trainer):
    """transformers' Trainer with our batches and our loss."""

    loss_is_scaled_for_ga = True

    def __init__(
        self, model: Any, arguments: TrainingArguments, examples: list[EncodedExample], order_seed: str
    ) -> None:
        super().__init__(model=model, args=arguments)
        self._examples = examples
        self._order_seed = order_seed
        self.num_computed = 0
        """Tokens that this rank has computed, prompts and padding among them."""
        parameters = inspect.signature(
            model.get_base_model().forward if _is_adapted(model) else model.forward
        )
        self._can_keep_logits = "logits_to_keep" in parameters.parameters

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return this rank's micro-batches; not prepared by accelerate, which would share them out again."""
        return _EpochLoader(
            _Weighed(self._examples),
            batch_sampler=_MicroBatches(self._examples, self.args, self._order_seed),
            collate_fn=collate,
            pin_memory=self.args.device.type == "cuda",
        )

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Return the micro-batch's part of the global batch's loss, times the number of ranks."""
        assert not return_outputs, "rest_em evaluates by sampling"
        weights_BT = inputs.pop("token_weights")
        self.num_computed += weights_BT.numel()
        rows_S, places_S = torch.nonzero(weights_BT, as_tuple=True)
        length = weights_BT.shape[1]
        first = int(places_S.min()) if len(places_S) else length - 1
        kept = {"logits_to_keep": length - first + 1} if self._can_keep_logits else {}
        logits_BKV = model(**inputs, **kept).logits
        num_kept = logits_BKV.shape[1]
        return solution_loss(
            logits_BKV,
            rows_S * num_kept + places_S - 1 - (length - num_kept),
            inputs["input_ids"][rows_S, places_S],
            weights_BT[rows_S, places_S],
        )


def _is_adapted(model: Any) -> bool:
    return not isinstance(model, PreTrainedModel)


class _Checkpoints:
    """Writes `output/epoch-<k>`, whole or not at all."""

    def __init__(self, trainer: _WeightedTrainer, base: _Base, output: Path) -> None:
        self._trainer = trainer
        self._base = base
        self._output = output

    def save(self, epoch: int) -> None:
        """Save the weights after an epoch; every rank calls it, rank 0 writes."""
        weights = self._trainer.accelerator.get_state_dict(self._trainer.model_wrapped)
        if self._trainer.is_world_process_zero():
            with replacing_folder(self._output / f"epoch-{epoch}") as folder:
                self._write(folder, weights)
        self._trainer.accelerator.wait_for_everyone()

    def _write(self, folder: Path, weights: dict[str, torch.Tensor]) -> None:
        model: Any = self._trainer.accelerator.unwrap_model(self._trainer.model_wrapped)
        if _is_adapted(model):
            model.save_pretrained(folder / "adapter", state_dict=weights)
            model = self._merged(folder / "adapter")
            weights = model.state_dict()
        model.save_pretrained(folder, state_dict=_cast(weights, self._base.dtype))
        # The base's own configuration: training has changed dtype and use_cache in the model's.
        config = copy.deepcopy(self._base.config)
        config.architectures = model.config.architectures
        config.dtype = self._base.dtype
        config.save_pretrained(folder)
        self._base.tokenizer.save_pretrained(folder)

    def _merged(self, adapter: Path) -> PreTrainedModel:
        """Return a fresh base with the adapter merged into it, whole on this rank, also under ZeRO-3."""
        from peft import PeftModel

        unset_hf_deepspeed_config()  # type: ignore[no-untyped-call]
        adapted = PeftModel.from_pretrained(self._base.read(torch.float32), str(adapter))
        merged: PreTrainedModel = adapted.merge_and_unload()
        plugin = self._trainer.accelerator.state.deepspeed_plugin
        if plugin is not None:
            set_hf_deepspeed_config(plugin.hf_ds_config)  # type: ignore[no-untyped-call]
        return merged


def _cast(weights: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return the weights in `dtype`; tied weights stay one tensor, so that they are saved once."""
    by_storage: dict[tuple[int, torch.Size], torch.Tensor] = {}
    for tensor in weights.values():
        by_storage.setdefault((tensor.data_ptr(), tensor.shape), tensor.to(dtype))
    return {name: by_storage[tensor.data_ptr(), tensor.shape] for name, tensor in weights.items()}


class _Journal(TrainerCallback):
    """Keeps the losses, the time and the progress file, and has every epoch saved."""

    def __init__(self, progress: Path, save: Callable[[int], None]) -> None:
        self._progress = progress
        self._save = save
        self._losses: list[float] = []
        self._last_write = 0.0
        self._began = 0.0
        self.epoch_seconds = 0.0
        """Of all epochs so far, without their checkpoints."""
        self.epoch_losses: list[float] = []
        """The mean over an epoch's optimiser steps of the loss before each."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Take the loss of a step, the same on every rank."""
        if logs is None or "loss" not in logs:
            return
        if not math.isfinite(logs["loss"]):
            raise TrainingError(
                f"the loss is {logs['loss']} at step {state.global_step} of {state.max_steps}; "
                "lower training.learning_rate, or set training.bf16 to false"
            )
        self._losses.append(logs["loss"])
        is_due = time.monotonic() - self._last_write >= PROGRESS_SECONDS
        if state.is_world_process_zero and (is_due or state.global_step == state.max_steps):
            progress = {"done": state.global_step, "total": state.max_steps, "loss": logs["loss"]}
            write_json(self._progress, progress, is_durable=False)
            self._last_write = time.monotonic()

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the epoch."""
        self._began = time.monotonic()

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the epoch: its time, its mean loss and its checkpoint."""
        self.epoch_seconds += time.monotonic() - self._began
        self.epoch_losses.append(sum(self._losses) / len(self._losses))
        self._losses.clear()
        self._save(len(self.epoch_losses))


def _leave_group(trainer: Trainer) -> None:
    """Wait for all ranks and leave the group; a rank that does not is aborted at exit."""
    trainer.accelerator.wait_for_everyone()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
