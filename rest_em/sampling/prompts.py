"""A unit's prompts as tokens, and how many new tokens each may get."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rest_em.errors import SamplingError
from rest_em.sampling.policy import LoadedPolicy
from rest_em.tokens import encode_prompt
from rest_em.types import DrawRequest, Problem


@dataclass(frozen=True, slots=True)
class EncodedProblem:
    """A problem of a unit, ready to be decoded."""

    problem: Problem
    indices: range
    """Of the samples wanted here."""
    token_ids: tuple[int, ...]
    """Of the prompt."""
    max_new_tokens: int
    """The request's cap, or less where the model's positions end before."""


def encode_unit(
    policy: LoadedPolicy, request: DrawRequest, unit: Sequence[tuple[Problem, range]]
) -> list[EncodedProblem]:
    """Return the unit's problems in order.

    Raises:
        SamplingError: a prompt leaves no room for a single new token.
    """
    encoded = []
    for problem, indices in unit:
        token_ids = encode_prompt(policy.tokenizer, problem.prompt)
        room = request.params.max_new_tokens
        if policy.max_positions is not None:
            room = min(room, policy.max_positions - len(token_ids))
        if room < 1:
            raise SamplingError(
                f"problem {problem.id}: its prompt has {len(token_ids)} tokens, the model has "
                f"{policy.max_positions} positions, and a solution needs at least one; shorten the prompt, "
                "show fewer examples, or leave the problem out"
            )
        encoded.append(EncodedProblem(problem, indices, tuple(token_ids), room))
    return encoded


def refuse_long_prompts(policy: LoadedPolicy, request: DrawRequest) -> None:
    """Look at all prompts of a request before any solution is drawn.

    Raises:
        SamplingError: a prompt leaves no room for a single new token.
    """
    encode_unit(policy, request, [(problem, range(0)) for problem in request.problems])


def common_head(prompts: Sequence[tuple[int, ...]]) -> int:
    """Return how many leading tokens all prompts share, leaving each at least one of its own.

    >>> common_head([(5, 6, 7), (5, 6, 8, 9)]), common_head([(5, 6)])
    (2, 1)
    """
    shortest, longest = min(prompts), max(prompts)
    limit = min(len(prompt) for prompt in prompts) - 1
    for place in range(limit):
        if shortest[place] != longest[place]:
            return place
    return limit
