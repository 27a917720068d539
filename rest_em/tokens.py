"""A prompt as token ids, and how many ids a model takes or sees: the same for sampling and training.

Needs a transformers tokenizer or configuration as argument. A sampled solution's tokens are those that were
sampled; only what was written elsewhere is encoded here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from rest_em.errors import ProblemError
from rest_em.types import Messages

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


def max_positions(config: PretrainedConfig) -> int | None:
    """Return the longest sequence that a model's positions allow; None if its configuration has no limit."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    return positions if isinstance(positions, int) and positions > 0 else None


def sliding_window(config: PretrainedConfig) -> int | None:
    """Return how many tokens the narrowest layer sees, None if all see everything."""
    from transformers.cache_utils import DynamicCache, DynamicSlidingWindowLayer

    layers = DynamicCache(config=config).layers
    windows = [layer.get_max_length() for layer in layers if isinstance(layer, DynamicSlidingWindowLayer)]
    return min(windows, default=None)


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str | Messages) -> list[int]:
    """Return the ids of a prompt to be continued: BOS at most once, no EOS that the tokenizer appends.

    Raises:
        ProblemError: messages, and the tokenizer has no chat template; or a prompt without any token.
    """
    ids = _encode_text(tokenizer, prompt) if isinstance(prompt, str) else _encode_chat(tokenizer, prompt)
    if not ids:
        raise ProblemError(
            f"the prompt {prompt!r} has no token, and the tokenizer adds no BOS; give it some text"
        )
    return ids


def encode_continuation(tokenizer: PreTrainedTokenizerBase, prompt: str | Messages, text: str) -> list[int]:
    """Return the ids of a text that follows a prompt, without an end: encoded together where that is a cut.

    Some tokenizers put a space before whatever begins a text, which is none here. Where a token would reach
    over the end of the prompt, as no sampled one can, the text is encoded alone.
    """
    if isinstance(prompt, str):
        head = encode_prompt(tokenizer, prompt)
        whole = _encode_text(tokenizer, prompt + text)
    else:
        before = str(
            tokenizer.apply_chat_template(
                [dict(message) for message in prompt], add_generation_prompt=True, tokenize=False
            )
        )
        head, whole = (tokenizer.encode(one, add_special_tokens=False) for one in (before, before + text))
    if whole[: len(head)] == head:
        return whole[len(head) :]
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return ids


def _encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=True)["input_ids"]
    if len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id:
        ids = ids[1:]
    if ids and ids[-1] == tokenizer.eos_token_id and not text.endswith(str(tokenizer.eos_token)):
        ids = ids[:-1]
    return ids


def _encode_chat(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> list[int]:
    if not tokenizer.chat_template:
        raise ProblemError(
            f"the prompt is a chat, but the tokenizer of {tokenizer.name_or_path} has no chat template; "
            "use a model that has one, or set prompt.chat_template to false"
        )
    ids = cast(
        list[int],
        tokenizer.apply_chat_template(
            [dict(message) for message in messages], add_generation_prompt=True, return_dict=False
        ),
    )
    if len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id:
        ids = ids[1:]
    return ids
