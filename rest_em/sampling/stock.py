"""The engine for every other model: transformers' own `generate`, told which token comes next.

Works wherever `generate` works (state-space and hybrid models, sliding windows, ALiBi) and shares nothing
among the samples of a problem. Prompts of one length are decoded together, so there is no padding.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from transformers import GenerationConfig, LogitsProcessor, PreTrainedModel, StoppingCriteria

from rest_em.sampling.draws import choose_tokens, uniforms
from rest_em.sampling.policy import LoadedPolicy
from rest_em.sampling.progress import Observer
from rest_em.sampling.prompts import EncodedProblem, encode_unit
from rest_em.sampling.stops import Ending, Stops
from rest_em.types import DrawRequest, Problem, Solution

_Row = tuple[EncodedProblem, int]
"""A problem, and the index of one of its samples."""


class StockSampler:
    """A `Sampler` for any decoder-only model that transformers loads."""

    def __init__(self, policy: LoadedPolicy, observe: Observer) -> None:
        self._policy = policy
        self._observe = observe

    def __call__(self, request: DrawRequest, unit: Sequence[tuple[Problem, range]]) -> list[Solution]:
        """Return the unit's solutions, ordered by problem as given, then by index."""
        stops = Stops(self._policy.tokenizer, self._policy.eos_token_ids, request.params.stop_strings)
        by_length: dict[int, list[_Row]] = {}
        for one in encode_unit(self._policy, request, unit):
            by_length.setdefault(len(one.token_ids), []).extend((one, index) for index in one.indices)
        solutions = {
            (solution.problem_id, solution.index): solution
            for rows in by_length.values()
            for start in range(0, len(rows), request.max_rows)
            for solution in self._generate(request, rows[start : start + request.max_rows], stops)
        }
        return [solutions[problem.id, index] for problem, indices in unit for index in indices]

    def _generate(self, request: DrawRequest, rows: Sequence[_Row], stops: Stops) -> list[Solution]:
        """Decode solutions to prompts of one length, which have the same room for new tokens."""
        max_new_tokens = rows[0][0].max_new_tokens
        draws = _Draws(request, rows)
        endings = _Endings(stops, rows, self._observe)
        prompts = torch.tensor([one.token_ids for one, _ in rows], device=self._policy.model.device)
        with torch.inference_mode(), _only_explicit_settings(self._policy.model):
            self._policy.model.generate(  # type: ignore[operator]
                input_ids=prompts,
                attention_mask=torch.ones_like(prompts),
                generation_config=GenerationConfig(  # type: ignore[no-untyped-call]
                    max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=0, use_cache=True
                ),
                logits_processor=[draws],
                stopping_criteria=[endings],
            )
        return [
            Solution(
                problem_id=one.problem.id,
                index=index,
                iteration=request.iteration,
                text=ending.text,
                token_ids=ending.token_ids,
                finish_reason=ending.reason,
            )
            for (one, index), ending in zip(rows, endings.all(), strict=True)
        ]


@contextlib.contextmanager
def _only_explicit_settings(model: PreTrainedModel) -> Iterator[None]:
    """Hide the model's generation_config, from which `generate` takes what it is not told."""
    own = model.generation_config
    model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        model.generation_config = own


class _Draws(LogitsProcessor):
    """Draws each row's token and leaves it as the only one that `generate` can choose."""

    def __init__(self, request: DrawRequest, rows: Sequence[_Row]) -> None:
        self._params = request.params
        self._prompt_length = len(rows[0][0].token_ids)
        self._numbers = [uniforms(request, one.problem.id, index) for one, index in rows]

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        step = input_ids.shape[1] - self._prompt_length
        numbers = torch.tensor([numbers[step] for numbers in self._numbers], dtype=torch.float64)
        tokens = choose_tokens(scores, numbers.to(scores.device), self._params)
        only = torch.full_like(scores, -torch.inf)
        return only.scatter_(1, tokens[:, None], 0.0)  # type: ignore[return-value]


class _Endings(StoppingCriteria):
    """Notes how each row ends; `generate` goes on with a row that has ended until all have."""

    def __init__(self, stops: Stops, rows: Sequence[_Row], observe: Observer) -> None:
        self._stops = stops
        self._one = rows[0][0]
        self._observe = observe
        self._endings: list[Ending | None] = [None] * len(rows)

    def __call__(
        self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: object
    ) -> torch.BoolTensor:
        rows = input_ids[:, len(self._one.token_ids) :].tolist()
        going = [place for place, ending in enumerate(self._endings) if ending is None]
        for place in going:
            self._endings[place] = self._stops.ending(rows[place], self._one.max_new_tokens)
        self._observe(len(going), sum(self._endings[place] is not None for place in going))
        done = [ending is not None for ending in self._endings]
        return torch.tensor(done, device=input_ids.device)  # type: ignore[return-value]

    def all(self) -> list[Ending]:
        """Return the endings of all rows, which have all ended."""
        return [ending for ending in self._endings if ending is not None]
