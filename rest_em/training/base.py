"""The base model, read where it is needed and never changed."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rest_em.errors import TrainingError


class Base:
    """The base model as a recipe names it; read from disk or hub where it is needed, never changed."""

    def __init__(self, name_or_path: str, revision: str | None, trust_remote_code: bool) -> None:
        self.name_or_path = name_or_path
        self._source = {"revision": revision, "trust_remote_code": trust_remote_code}
        self.config: PretrainedConfig = AutoConfig.from_pretrained(name_or_path, **self._source)
        self.tokenizer = tokenizer_of(name_or_path, revision, trust_remote_code)

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the checkpoint on disk."""
        dtype = self.config.dtype
        return dtype if isinstance(dtype, torch.dtype) else torch.float32

    def read(
        self,
        dtype: torch.dtype,
        attention: str | None = None,
        quantization: BitsAndBytesConfig | None = None,
    ) -> PreTrainedModel:
        """Return the model; under ZeRO-3 a rank holds its share only."""
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            self.name_or_path,
            dtype=dtype,
            attn_implementation=attention,
            quantization_config=quantization,
            **self._source,
        )
        return model

    def trainable_model(
        self,
        lora: dict[str, Any] | None,
        quantization: dict[str, Any] | None,
        *,
        is_half: bool,
        attention: str | None,
    ) -> Any:
        """Return the model with fp32 weights, or frozen with fp32 adapters on it.

        Args:
            lora: peft's LoraConfig, or None to train all weights.
            quantization: transformers' BitsAndBytesConfig for a frozen base, computed with in the precision
                that `is_half` says unless it says another; None leaves the base as it is.
            is_half: whether a frozen base is held in bfloat16.
            attention: transformers' `attn_implementation`, None for the model's own choice.
        """
        if lora is None:
            return self.read(torch.float32, attention)
        from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

        dtype = torch.bfloat16 if is_half else torch.float32
        if quantization is None:
            model: Any = self.read(dtype, attention)
        else:
            config = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
                **{"bnb_4bit_compute_dtype": dtype, **quantization}
            )
            # What is not quantised (norms, embeddings, the head) is held in fp32.
            model = prepare_model_for_kbit_training(
                self.read(dtype, attention, config), use_gradient_checkpointing=False
            )
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **lora))
        refuse_shared_targets(without_adapter(model))
        return model


def refuse_shared_targets(model: PreTrainedModel) -> None:
    """Refuse adapters on a matrix that is embedding and head: merged for one, it would change for both.

    Raises:
        TrainingError: there is one.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    ends = (model.get_input_embeddings(), model.get_output_embeddings())  # type: ignore[no-untyped-call]
    if model.config.tie_word_embeddings and any(isinstance(one, BaseTunerLayer) for one in ends):
        raise TrainingError(
            "lora.target_modules: the model's embedding and head share a matrix, and an adapter on one of "
            "them cannot be merged for it alone; leave it out, or train it whole by lora.modules_to_save"
        )


def tokenizer_of(name_or_path: str, revision: str | None, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a model that a recipe names."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        name_or_path, revision=revision, trust_remote_code=trust_remote_code
    )
    return tokenizer


def is_adapted(model: Any) -> bool:
    """Say whether a model is one of peft's, around transformers'."""
    return not isinstance(model, PreTrainedModel)


def without_adapter(model: Any) -> PreTrainedModel:
    """Return transformers' model; if there are adapters, they are in its layers."""
    inner: PreTrainedModel = model.get_base_model() if is_adapted(model) else model
    return inner
