"""D_i as the model reads it; how its batches are made is left to `rest_em.batches` and `loader`."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from rest_em.batches import EncodedExample
from rest_em.errors import TrainingError
from rest_em.recipe import TrainingSection
from rest_em.tokens import encode_prompt, max_positions
from rest_em.types import TrainingExample


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


def length_limit(section: TrainingSection, config: PretrainedConfig) -> int | None:
    limits = (section.max_length, max_positions(config))
    return min((limit for limit in limits if limit is not None), default=None)
