"""Where a solution ends: end tokens, stop strings, the cap on new tokens; and what text and ids then remain.

A stop string may span tokens and its last character may be some bytes of a token. Text is decoded only when
a token could complete a stop string. One that is a special token, as `<|im_end|>`, stands in no text: the
token itself ends the solution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rest_em.types import FinishReason

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PARTIAL_CHARACTER = "\N{REPLACEMENT CHARACTER}"
TAIL_SLACK = 8
"""Tokens decoded beyond the bytes of the longest stop string: partial characters and special tokens."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a solution ends.

    Example:
        Ending("stop_string", token_ids=(34, 1232), text="2 +")
    """

    reason: FinishReason
    token_ids: tuple[int, ...]
    text: str


class Stops:
    """The ends of one request's solutions."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        eos_token_ids: frozenset[int],
        stop_strings: Sequence[str],
    ) -> None:
        self._tokenizer = tokenizer
        self._eos_token_ids = eos_token_ids
        special = {stop: ids[0] for stop in stop_strings if (ids := self._as_special_token(stop))}
        self._stop_token_ids = frozenset(special.values())
        self._stop_strings = tuple(stop for stop in stop_strings if stop not in special)
        self._last_characters = frozenset(stop[-1] for stop in self._stop_strings)
        self._tail = max((len(stop.encode()) for stop in self._stop_strings), default=0) + TAIL_SLACK
        self._anchor = tokenizer.encode("a", add_special_tokens=False)[-1:]
        self._anchor_text = self._decode(self._anchor)
        self._may_complete: dict[int, bool] = {}

    def ending(self, token_ids: Sequence[int], max_new_tokens: int) -> Ending | None:
        """Return how a solution ends with its last token, or None if it goes on.

        Takes all of the solution's tokens so far, at least one, and wants to be asked after each.
        """
        if token_ids[-1] in self._eos_token_ids:
            return Ending("eos", tuple(token_ids), self._decode(token_ids[:-1]))
        if token_ids[-1] in self._stop_token_ids:
            return Ending("stop_string", tuple(token_ids[:-1]), self._decode(token_ids[:-1]))
        if self._stop_strings and self._completes_stop(token_ids):
            return self._cut(token_ids)
        if len(token_ids) >= max_new_tokens:
            return Ending("length", tuple(token_ids), self._decode(token_ids))
        return None

    def _as_special_token(self, stop: str) -> list[int]:
        """Return the id of a stop string that is one special token, else nothing."""
        ids = self._tokenizer.encode(stop, add_special_tokens=False)
        return ids if len(ids) == 1 and self._decode(ids) == "" else []

    def _decode(self, token_ids: Sequence[int]) -> str:
        return str(
            self._tokenizer.decode(
                list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )

    def _completes_stop(self, token_ids: Sequence[int]) -> bool:
        token = token_ids[-1]
        if token not in self._may_complete:
            piece = self._decode([*self._anchor, token])[len(self._anchor_text) :]
            self._may_complete[token] = PARTIAL_CHARACTER in piece or not self._last_characters.isdisjoint(
                piece
            )
        if not self._may_complete[token]:
            return False
        tail = self._decode(token_ids[-self._tail :])
        if not any(stop in tail for stop in self._stop_strings):
            return False
        text = self._decode(token_ids)
        return any(stop in text for stop in self._stop_strings)

    def _cut(self, token_ids: Sequence[int]) -> Ending:
        """End the text before the first stop string, and the ids with it.

        The ids are the whole tokens before it and a re-encoded remainder. Where a tokenizer does not decode
        the remainder to itself, more tokens are re-encoded, at last all of them.
        """
        whole = self._decode(token_ids)
        text = whole[: min(place for stop in self._stop_strings if (place := whole.find(stop)) >= 0)]
        for num_kept in range(len(token_ids) - 1, -1, -1):
            kept = self._decode(token_ids[:num_kept])
            if len(kept) > len(text) or not text.startswith(kept):
                continue
            remainder = self._tokenizer.encode(text[len(kept) :], add_special_tokens=False)
            ids = [*token_ids[:num_kept], *remainder]
            if self._decode(ids) == text:
                return Ending("stop_string", tuple(ids), text)
        return Ending("stop_string", tuple(self._tokenizer.encode(text, add_special_tokens=False)), text)
