"""Several examples in one sequence without padding, what they begin with in common computed once.

A pack is a tree: its segments are runs of tokens, and a token sees its own segment up to itself and the whole
segments that its example begins with. So no example sees another, and every token has the position that it
has alone. Only prompts are shared: each solution stands by itself. Here too is what the M-step and its plan
must agree on: which models are packed, and in how many parts logits are computed. Pure functions; tensors
and attention are left to `rest_em.training`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rest_em.batches import EncodedExample

FAMILIES = (
    "gemma", "gemma3_text", "gpt2", "gpt_neox", "granite", "llama", "mistral", "mixtral", "olmo2", "phi",
    "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "smollm3", "stablelm", "starcoder2",
)  # fmt: skip
"""Models, by `model_type`, whose loss and gradients were seen to be the same packed and one by one."""
MIN_SHARED_TOKENS = 16
"""What prompts have in common is computed once if it is so long; attention in more parts has its price."""

MAX_LOGITS_BYTES = 2**28
"""Of logits in fp32 at once; where a micro-batch has more, they are computed again in the backward pass."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of tokens of a pack.

    Example:
        Segment(start=40, end=55, sees=(0,))
    """

    start: int
    """Its first token's place in the pack."""
    end: int
    """The place after its last token."""
    sees: tuple[int, ...] = ()
    """Which earlier segments its examples begin with, ascending."""


@dataclass(slots=True)
class Pack:
    """A micro-batch as one sequence.

    Example:
        Pack(
            token_ids=[1, 7, 8, 9], positions=[0, 1, 2, 2],
            segments=[Segment(0, 2), Segment(2, 3, (0,)), Segment(3, 4, (0,))],
            predicting=[1, 1], examples=[0, 1], targets=[8, 9],
        )
    """

    token_ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    """Each token's place in its example."""
    segments: list[Segment] = field(default_factory=list)
    """One after another, all tokens."""
    predicting: list[int] = field(default_factory=list)
    """For each solution token the place of the token before it; solutions of one prompt share the first."""
    examples: list[int] = field(default_factory=list)
    """For each solution token which example it is of."""
    targets: list[int] = field(default_factory=list)
    """The solution tokens."""


def pack_examples(examples: Sequence[EncodedExample], *, share_prefixes: bool) -> Pack:
    """Return the examples as a pack.

    Args:
        share_prefixes: whether tokens that prompts begin with in common are there once.

    >>> one, other = EncodedExample((1, 2, 3), 2, 1.0), EncodedExample((4, 5), 1, 1.0)
    >>> pack = pack_examples([one, other], share_prefixes=False)
    >>> pack.token_ids, pack.positions, pack.predicting, pack.targets
    ([1, 2, 3, 4, 5], [0, 1, 2, 0, 1], [1, 3], [3, 5])
    """
    pack = Pack()
    if share_prefixes:
        # Neighbours in the order of their prompts have the most in common.
        order = sorted(range(len(examples)), key=lambda i: examples[i].prompt_ids)
        _share(pack, examples, order, ())
    else:
        for index in range(len(examples)):
            _append(pack, examples[index], index, ())
    return pack


def num_chunks(num_tokens: int, vocab_size: int) -> int:
    """Return in how many parts the logits of so many solution tokens are computed.

    >>> num_chunks(512, 131072), num_chunks(513, 131072)
    (1, 2)
    """
    return max(1, -(-num_tokens * vocab_size * 4 // MAX_LOGITS_BYTES))


def _share(
    pack: Pack, examples: Sequence[EncodedExample], order: Sequence[int], sees: tuple[int, ...]
) -> None:
    """Append examples in the order of their prompts, all of which begin with the segments that they see."""
    if len(order) == 1:
        _append(pack, examples[order[0]], order[0], sees)
        return
    first, last = (examples[order[i]].prompt_ids for i in (0, -1))
    common, seen = _num_common(first, last), _num_tokens(pack, sees)
    if common - seen >= MIN_SHARED_TOKENS:
        _append_tokens(pack, first[seen:common], seen, sees)
        sees = (*sees, len(pack.segments) - 1)
    for group in _by_next_token(examples, order, common):
        _share(pack, examples, group, sees)


def _by_next_token(
    examples: Sequence[EncodedExample], order: Sequence[int], common: int
) -> list[Sequence[int]]:
    """Return the examples in groups by the token after what all have in common; prompts that end, alone."""
    groups: list[list[int]] = []
    before: int | None = None
    for index in order:
        prompt = examples[index].prompt_ids
        token = prompt[common] if len(prompt) > common else None
        if token is None or not groups or token != before:
            groups.append([])
        groups[-1].append(index)
        before = token
    return list(groups)


def _append(pack: Pack, example: EncodedExample, index: int, sees: tuple[int, ...]) -> None:
    """Append what an example has beyond what it begins with in common with others."""
    seen, num_prompt = _num_tokens(pack, sees), example.num_prompt_tokens
    start = len(pack.token_ids)
    _append_tokens(pack, example.token_ids[seen:], seen, sees)
    # The prompt's last token predicts the first of the solution; it may be a shared one.
    last = start + num_prompt - 1 - seen if num_prompt > seen else pack.segments[sees[-1]].end - 1
    first = start + num_prompt - seen
    pack.predicting += [last, *range(first, len(pack.token_ids) - 1)]
    pack.examples += [index] * example.num_solution_tokens
    pack.targets += example.token_ids[num_prompt:]


def _append_tokens(pack: Pack, token_ids: Sequence[int], position: int, sees: tuple[int, ...]) -> None:
    start = len(pack.token_ids)
    pack.token_ids += token_ids
    pack.positions += range(position, position + len(token_ids))
    pack.segments.append(Segment(start, len(pack.token_ids), sees))


def _num_tokens(pack: Pack, segments: Sequence[int]) -> int:
    return sum(pack.segments[index].end - pack.segments[index].start for index in segments)


def _num_common(one: Sequence[int], other: Sequence[int]) -> int:
    for place, (token, its) in enumerate(zip(one, other, strict=False)):
        if token != its:
            return place
    return min(len(one), len(other))
