"""Keys and values of a unit, each kept once and written in place, and the attention over them.

Given to any transformers model through `AttentionInterface`: the model computes its new tokens only and is
told of no cache; the attention function finds the rest here, by a context variable and its layer's index.
Three kinds of forward pass, three kinds of `Attention`:

- `HeadAttention`: the tokens that all prompts of the unit begin with, once.
- `PromptAttention`: the rest of several problems' prompts, padded right, once a problem.
- `RowAttention`: one new token of each solution being decoded. Each row has its own keys and values behind
  the head's; the scores of both parts meet in one softmax.

Sliding windows shorter than the sequence, score caps, sinks and position biases are left to the stock engine.

Shapes: B rows of the forward pass, P problems, R rows, T tokens, L tokens of the head, U own tokens in use,
H heads, G key-value heads, M = H / G heads a group, D size of a head.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Protocol

import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "rest_em_shared_prefix"
"""The attention's name in transformers."""
REFUSED = ("softcap", "s_aux", "position_bias")
"""What a model may pass to its attention function and this one does not compute."""
CAPACITY_STEP = 16
"""The rows' buffers hold a multiple of so many tokens."""

KeysValues = tuple[torch.Tensor, torch.Tensor]


class UnsupportedAttentionError(Exception):
    """Raised when a model asks of its attention what this one does not compute."""


class Attention(Protocol):
    """Stores one layer's new keys and values and attends over all that the queries may see."""

    def attend(self, layer: int, query: torch.Tensor, new: KeysValues, scaling: float | None) -> torch.Tensor:
        """Return (B, T, H, D) for a query (B, H, T, D) and new keys and values (B, G, T, D)."""
        ...


_current: ContextVar[Attention] = ContextVar("attention")


def attention_function(  # noqa: PLR0917 - transformers' signature
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: object,
) -> tuple[torch.Tensor, None]:
    """Attend as the current `Attention` says; the signature is transformers'.

    Raises:
        UnsupportedAttentionError: the model wants more than softmax(q k) v, or passes a mask of its own.
    """
    for name in REFUSED:
        if options.get(name) is not None:
            raise UnsupportedAttentionError(f"its attention has {name}")
    if attention_mask is not None:
        raise UnsupportedAttentionError("it masks its attention in a way of its own")
    return _current.get().attend(module.layer_idx, query, (key, value), scaling), None  # type: ignore[arg-type]


@contextlib.contextmanager
def installed(model: PreTrainedModel) -> Iterator[None]:
    """Let the model use `attention_function` inside the block, and its own again after it."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attention_function)
    own = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(own)


def forward(
    model: PreTrainedModel,
    attention: Attention,
    token_ids_bt: torch.Tensor,
    position_ids_bt: torch.Tensor,
    logits_to_keep: int | torch.Tensor,
) -> torch.Tensor:
    """Return the logits of the kept positions; the attention keeps the keys and values."""
    token = _current.set(attention)
    try:
        logits: torch.Tensor = model(
            input_ids=token_ids_bt,
            position_ids=position_ids_bt,
            use_cache=False,
            logits_to_keep=logits_to_keep,
        ).logits
    finally:
        _current.reset(token)
    return logits


def _attend_causally(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float | None
) -> torch.Tensor:
    """Attend where the queries are the last of the keys' tokens."""
    num_new, num_seen = query.shape[2], keys.shape[2]
    visible = torch.ones(num_new, num_seen, dtype=torch.bool, device=query.device).tril(num_seen - num_new)
    out = F.scaled_dot_product_attention(
        query, keys, values, attn_mask=visible, scale=scaling, enable_gqa=query.shape[1] != keys.shape[1]
    )
    return out.transpose(1, 2)


def _by_head(rows: torch.Tensor, shared: torch.Tensor) -> torch.Tensor:
    """Multiply (R, G, M, x) by what all rows share, (G, x, y), in one product a group: (R, G, M, y)."""
    num_rows, num_groups, per_group, _ = rows.shape
    product = torch.bmm(rows.transpose(0, 1).flatten(1, 2), shared)
    return product.view(num_groups, num_rows, per_group, -1).transpose(0, 1)


class HeadAttention:
    """The tokens that all prompts begin with; `layers` holds their keys and values (G, L, D) afterwards."""

    def __init__(self) -> None:
        self.layers: dict[int, KeysValues] = {}

    def attend(self, layer: int, query: torch.Tensor, new: KeysValues, scaling: float | None) -> torch.Tensor:
        """See `Attention`; B is 1."""
        keys, values = new
        self.layers[layer] = (keys[0].contiguous(), values[0].contiguous())
        return _attend_causally(query, keys, values, scaling)


class PromptAttention:
    """The rest of some problems' prompts; `layers` holds their keys and values (P, G, T, D) afterwards.

    Padding on the right: no real token sees it, and what is computed for it is never looked at.
    """

    def __init__(self, head: HeadAttention) -> None:
        self.layers: dict[int, KeysValues] = {}
        self._head = head

    def attend(self, layer: int, query: torch.Tensor, new: KeysValues, scaling: float | None) -> torch.Tensor:
        """See `Attention`; B is P."""
        self.layers[layer] = new
        keys, values = new
        if layer in self._head.layers:
            num_problems = len(query)
            head_keys, head_values = self._head.layers[layer]
            keys = torch.cat([head_keys.expand(num_problems, -1, -1, -1), keys], dim=2)
            values = torch.cat([head_values.expand(num_problems, -1, -1, -1), values], dim=2)
        return _attend_causally(query, keys, values, scaling)


class RowAttention:
    """The rows being decoded: buffers (R, G, C, D) a layer, of which the first rows are in use.

    C is what the longest row needs, rounded up: a product over whole buffers spares torch a copy of the part
    in use, which costs as much as the product. Unused places hold zeros or what other rows left, always
    finite, and are hidden by the mask.
    """

    def __init__(self, head: HeadAttention, max_rows: int) -> None:
        self.lengths: list[int] = []
        """Own tokens of each row in use, the head's not counted."""
        self._head = head
        self._max_rows = max_rows
        self._buffers: dict[int, KeysValues] = {}
        self._capacity = 0
        self._hidden = torch.empty(0, dtype=torch.bool)
        self._written_places: dict[int, torch.Tensor] = {}
        """By number of groups: where each row's and group's new token goes, among all places of a buffer."""

    def start(self, prompts: PromptAttention, problems: Sequence[int], lengths: Sequence[int]) -> None:
        """Append rows that begin with the keys and values of these problems of `prompts`."""
        first, length = len(self.lengths), max(lengths)
        self._reserve(length + 1, like=prompts.layers)
        for layer, source in prompts.layers.items():
            index = torch.tensor(problems, device=source[0].device)
            for buffer, tensor in zip(self._buffers[layer], source, strict=True):
                buffer[first : first + len(problems), :, :length] = tensor[index, :, :length]
        self.lengths.extend(lengths)

    def move(self, moves: Sequence[tuple[int, int]], num_rows: int) -> None:
        """Copy rows (from, to), then keep the first `num_rows`."""
        if moves:
            length = max(self.lengths[source] for source, _ in moves)
            for buffer in (buffer for pair in self._buffers.values() for buffer in pair):
                index = torch.tensor(moves, device=buffer.device)
                buffer[index[:, 1], :, :length] = buffer[index[:, 0], :, :length]
        for source, place in moves:
            self.lengths[place] = self.lengths[source]
        del self.lengths[num_rows:]

    def next_token(self, device: torch.device) -> None:
        """Prepare a forward pass of one token a row: where it is written and what its query may see."""
        self._reserve(max(self.lengths) + 1, like=self._buffers)
        places = torch.tensor(self.lengths)
        self._hidden = (torch.arange(self._capacity) > places[:, None])[:, None, None, :].to(device)
        self._written_places = {}
        for keys, _ in self._buffers.values():
            num_groups = keys.shape[1]
            if num_groups not in self._written_places:
                starts = torch.arange(len(places) * num_groups).view(-1, num_groups) * self._capacity
                self._written_places[num_groups] = (starts + places[:, None]).flatten().to(device)
        self.lengths = [length + 1 for length in self.lengths]

    def attend(self, layer: int, query: torch.Tensor, new: KeysValues, scaling: float | None) -> torch.Tensor:
        """See `Attention`; B is the number of rows in use and T is 1."""
        num_rows, num_heads, _, size = query.shape
        own_keys, own_values = (
            self._written(buffer, tensor) for buffer, tensor in zip(self._buffers[layer], new, strict=True)
        )
        num_groups = len(own_keys) // num_rows
        query = query * (size**-0.5 if scaling is None else scaling)
        query = query.reshape(num_rows, num_groups, num_heads // num_groups, size)

        scores = torch.bmm(query.flatten(0, 1), own_keys.transpose(1, 2)).view(*query.shape[:3], -1)
        scores.masked_fill_(self._hidden, -torch.inf)
        if layer not in self._head.layers:
            weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
            return torch.bmm(weights.flatten(0, 1), own_values).view(num_rows, 1, num_heads, -1)

        head_keys, head_values = self._head.layers[layer]
        scores = torch.cat([_by_head(query, head_keys.transpose(1, 2)), scores], dim=-1)
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
        head_weights, own_weights = weights.tensor_split([head_keys.shape[1]], dim=-1)
        out = torch.bmm(own_weights.flatten(0, 1), own_values).view(*query.shape[:3], -1)
        out += _by_head(head_weights, head_values)
        return out.view(num_rows, 1, num_heads, -1)

    def _written(self, buffer: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        """Write a token a row and return the rows in use as (R G, C, D)."""
        _, num_groups, _, size = buffer.shape
        buffer.view(-1, size).index_copy_(0, self._written_places[num_groups], new.reshape(-1, size))
        return buffer[: len(new)].flatten(0, 1)

    def _reserve(self, length: int, like: dict[int, KeysValues]) -> None:
        """Make room for `length` own tokens a row."""
        if length <= self._capacity:
            return
        capacity = -(-max(length, self._capacity * 9 // 8) // CAPACITY_STEP) * CAPACITY_STEP
        num_rows = len(self.lengths)
        for layer, pair in like.items():
            old = self._buffers.get(layer)
            grown = [
                tensor.new_zeros(self._max_rows, tensor.shape[1], capacity, tensor.shape[3])
                for tensor in pair
            ]
            for new, kept in zip(grown, old or (), strict=old is not None):
                new[:num_rows, :, : self._capacity] = kept[:num_rows]
            self._buffers[layer] = (grown[0], grown[1])
        self._capacity = capacity
