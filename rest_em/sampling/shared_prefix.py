"""The fast engine: a prompt is computed once for all its samples, and a row that has ended costs nothing.

Decodes at most `request.max_rows` solutions at once. As soon as one ends its row is given to the next that
waits, or the last row moves there; so every row of every forward pass belongs to a solution that goes on.
Everything that decides the order of computation follows from the unit and the request.

Shapes: R rows in use, P problems, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from rest_em.sampling.attention import HeadAttention, PromptAttention, RowAttention, forward, installed
from rest_em.sampling.draws import choose_tokens, uniforms
from rest_em.sampling.policy import LoadedPolicy
from rest_em.sampling.progress import Observer
from rest_em.sampling.prompts import EncodedProblem, common_head, encode_unit
from rest_em.sampling.stops import Stops
from rest_em.types import DrawRequest, Problem, Solution

MAX_PREFILL_TOKENS = 4096
"""Prompts are computed together up to so many tokens, padding counted."""


@dataclass(slots=True)
class _Row:
    """A solution being decoded."""

    problem: EncodedProblem
    index: int
    uniforms: np.ndarray[tuple[int], np.dtype[np.float64]]
    token_ids: list[int] = field(default_factory=list)

    def next_uniform(self) -> float:
        return float(self.uniforms[len(self.token_ids)])


@dataclass(frozen=True, slots=True)
class _Prefilled:
    """Some problems whose prompts have been computed."""

    problems: Sequence[EncodedProblem]
    attention: PromptAttention
    logits_pv: torch.Tensor
    """Of the token after each prompt."""


class SharedPrefixSampler:
    """A `Sampler` for models that let their attention be set; `unsupported_reason` says which do not."""

    def __init__(self, policy: LoadedPolicy, observe: Observer) -> None:
        self._policy = policy
        self._observe = observe

    def __call__(self, request: DrawRequest, unit: Sequence[tuple[Problem, range]]) -> list[Solution]:
        """Return the unit's solutions, ordered by problem as given, then by index."""
        encoded = encode_unit(self._policy, request, unit)
        with torch.inference_mode(), installed(self._policy.model):
            solutions = {
                (solution.problem_id, solution.index): solution
                for solution in _UnitDecoder(self._policy, request, encoded, self._observe).run()
            }
        return [solutions[problem.id, index] for problem, indices in unit for index in indices]


class _UnitDecoder:
    def __init__(
        self,
        policy: LoadedPolicy,
        request: DrawRequest,
        encoded: Sequence[EncodedProblem],
        observe: Observer,
    ) -> None:
        self._model = policy.model
        self._device = policy.model.device
        self._request = request
        self._observe = observe
        self._stops = Stops(policy.tokenizer, policy.eos_token_ids, request.params.stop_strings)
        self._head_length = common_head([one.token_ids for one in encoded])
        self._head = self._prefill_head(encoded[0].token_ids[: self._head_length])
        self._max_rows = min(request.max_rows, sum(len(one.indices) for one in encoded))
        self._attention = RowAttention(self._head, self._max_rows)
        self._rows: list[_Row] = []
        self._groups = _groups(encoded, self._head_length)
        self._prefilled: _Prefilled | None = None
        self._waiting: deque[tuple[int, int]] = deque()
        """Place among the prefilled problems, and sample index."""

    def run(self) -> Iterator[Solution]:
        """Yield the solutions as they end."""
        while True:
            while len(self._rows) < self._max_rows and self._has_waiting():
                yield from self._start_rows()
            if not self._rows:
                return
            yield from self._decode_token()

    def _has_waiting(self) -> bool:
        """Compute the next group of prompts if all rows of the last one have started."""
        if not self._waiting:
            self._prefilled = None
            group = next(self._groups, None)
            if group is None:
                return False
            self._prefilled = self._prefill_prompts(group)
            self._waiting.extend((place, index) for place, one in enumerate(group) for index in one.indices)
        return True

    def _prefill_head(self, token_ids: Sequence[int]) -> HeadAttention:
        head = HeadAttention()
        if token_ids:
            tokens = torch.tensor([token_ids], device=self._device)
            positions = torch.arange(len(token_ids), device=self._device)[None]
            forward(self._model, head, tokens, positions, logits_to_keep=1)
        return head

    def _prefill_prompts(self, group: Sequence[EncodedProblem]) -> _Prefilled:
        own = [one.token_ids[self._head_length :] for one in group]
        tokens = torch.zeros(len(own), max(map(len, own)), dtype=torch.int64)
        for row, token_ids in zip(tokens, own, strict=True):
            row[: len(token_ids)] = torch.tensor(token_ids)
        positions = torch.arange(tokens.shape[1]) + self._head_length
        last = torch.tensor([[len(token_ids) - 1] for token_ids in own])
        attention = PromptAttention(self._head)
        logits = forward(
            self._model,
            attention,
            tokens.to(self._device),
            positions.expand_as(tokens).to(self._device),
            logits_to_keep=last.to(self._device),
        )
        return _Prefilled(group, attention, logits[:, 0])

    def _start_rows(self) -> Iterator[Solution]:
        """Give free rows to waiting solutions and draw the first token of each."""
        assert self._prefilled is not None
        num_free = self._max_rows - len(self._rows)
        started = [self._waiting.popleft() for _ in range(min(num_free, len(self._waiting)))]
        places = [place for place, _ in started]
        problems = [self._prefilled.problems[place] for place in places]
        first = len(self._rows)
        self._rows.extend(
            _Row(one, index, uniforms(self._request, one.problem.id, index))
            for one, (_, index) in zip(problems, started, strict=True)
        )
        lengths = [len(one.token_ids) - self._head_length for one in problems]
        self._attention.start(self._prefilled.attention, places, lengths)
        index = torch.tensor(places, device=self._device)
        yield from self._take_tokens(self._prefilled.logits_pv[index], first)

    def _decode_token(self) -> Iterator[Solution]:
        tokens = torch.tensor([[row.token_ids[-1]] for row in self._rows], device=self._device)
        positions = torch.tensor([[self._head_length + length] for length in self._attention.lengths])
        self._attention.next_token(self._device)
        logits = forward(self._model, self._attention, tokens, positions.to(self._device), logits_to_keep=1)
        yield from self._take_tokens(logits[:, -1], first=0)

    def _take_tokens(self, logits_rv: torch.Tensor, first: int) -> Iterator[Solution]:
        """Draw a token for each row from `first` on; yield what ends with it and free its rows."""
        rows = self._rows[first:]
        numbers = torch.tensor([row.next_uniform() for row in rows], dtype=torch.float64, device=self._device)
        ended = []
        for place, (row, token) in enumerate(
            zip(rows, choose_tokens(logits_rv, numbers, self._request.params).tolist(), strict=True), first
        ):
            row.token_ids.append(token)
            ending = self._stops.ending(row.token_ids, row.problem.max_new_tokens)
            if ending is not None:
                ended.append(place)
                yield Solution(
                    problem_id=row.problem.problem.id,
                    index=row.index,
                    iteration=self._request.iteration,
                    text=ending.text,
                    token_ids=ending.token_ids,
                    finish_reason=ending.reason,
                )
        self._observe(len(rows), len(ended))
        self._remove(ended)

    def _remove(self, ended: Sequence[int]) -> None:
        moves = _moves(len(self._rows), ended)
        for source, place in moves:
            self._rows[place] = self._rows[source]
        del self._rows[len(self._rows) - len(ended) :]
        self._attention.move(moves, len(self._rows))


def _moves(num_rows: int, ended: Sequence[int]) -> list[tuple[int, int]]:
    """Return which rows (from, to) close the gaps that ended rows leave among the first ones.

    >>> _moves(5, [1, 3])
    [(4, 1)]
    """
    num_kept = num_rows - len(ended)
    gaps = [place for place in ended if place < num_kept]
    movable = [place for place in range(num_kept, num_rows) if place not in set(ended)]
    return list(zip(movable, gaps, strict=True))


def _groups(encoded: Sequence[EncodedProblem], head_length: int) -> Iterator[list[EncodedProblem]]:
    """Yield problems in order, as many together as fit into one prefill."""
    group: list[EncodedProblem] = []
    longest = 0
    for one in encoded:
        length = max(longest, len(one.token_ids) - head_length)
        if group and length * (len(group) + 1) > MAX_PREFILL_TOKENS:
            yield group
            group, length = [], len(one.token_ids) - head_length
        group.append(one)
        longest = length
    yield group
