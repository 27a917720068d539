"""Solutions that the model's own tokenizer has to encode: those that people wrote, and another model's.

What was sampled is trained on as token ids; only where there are none, or where they are another tokenizer's,
is the text encoded. Left out: prompts and length limits (`examples`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from rest_em.tokens import encode_continuation
from rest_em.types import TrainingExample

ENCODING_PARTS = ("model", "normalizer", "pre_tokenizer", "decoder")
"""What of a tokenizer's JSON says how text becomes ids, and ids text; templates and padding are aside."""


def with_own_tokens(
    examples: Sequence[TrainingExample],
    tokenizer: PreTrainedTokenizerBase,
    teacher: PreTrainedTokenizerBase | None = None,
) -> list[TrainingExample]:
    """Return examples whose token ids are the model's tokenizer's.

    Args:
        examples: D_i.
        tokenizer: of the model that is trained.
        teacher: of the model that sampled, where that is another one. Equal tokenizers share their ids; but
            the end token is always the trained model's: models with one vocabulary may end differently.
    """
    is_foreign = teacher is not None and not are_equal(tokenizer, teacher)
    own = []
    for one in examples:
        if one.index is None or is_foreign:
            ids = tuple(encode_continuation(tokenizer, one.prompt, one.text))
            own.append(replace(one, token_ids=ids, finish_reason="stop_string"))
        elif teacher is not None and one.finish_reason == "eos":
            own.append(replace(one, token_ids=one.token_ids[:-1], finish_reason="stop_string"))
        else:
            own.append(one)
    return own


def are_equal(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Say whether two tokenizers have one vocabulary and cut text into the same tokens, by what they are.

    A tokenizer that is written in Python tells too little of itself to be equal to any.
    """
    return one.get_vocab() == other.get_vocab() and _parts(one) is not None and _parts(one) == _parts(other)


def _parts(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any] | None:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    parts = json.loads(backend.to_str())
    return {key: parts[key] for key in ENCODING_PARTS}
