"""The values that pass between the stages: problems, policies, solutions, verdicts.

All are frozen and hold plain data, so that a stage is a function of values and can run in any process.
This module leaves out behaviour: judging is in `rest_em.rewards`, drawing in `rest_em.sampling`.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

FinishReason = Literal["eos", "stop_string", "length"]
"""Why a solution ends: the model's end token, a stop string of the recipe, or the cap on new tokens."""

Messages = tuple[Mapping[str, str], ...]
"""A chat: `role` and `content` of each message, in order."""


@dataclass(frozen=True, slots=True)
class Problem:
    """x: something to solve whose solutions can be checked.

    Example:
        Problem(id="train-17", prompt="What is 2 + 2?\\n", reference="4", metadata={"kind": "sum"})
    """

    id: str
    """Unique within a run, stable from run to run."""
    prompt: str | Messages
    """The rendered text, or the messages of a chat that the tokenizer's template will render."""
    reference: Any
    """What the reward checks against: a gold answer, or a set of unit tests."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """The row's columns, for rewards and reports."""


@dataclass(frozen=True, slots=True)
class Policy:
    """p_theta at rest: a model on disk (or on the hub) and the iteration that made it.

    Example:
        Policy(path="HuggingFaceTB/SmolLM2-135M-Instruct", iteration=0)
    """

    path: str
    """A Hugging Face folder or hub id."""
    iteration: int
    """0 is the base model; i is what the i-th M-step made."""


@dataclass(frozen=True, slots=True)
class Solution:
    """y ~ p_theta(y | x): one sample.

    Example:
        Solution(problem_id="train-17", index=3, iteration=1, text="2 + 2 = 4",
                 token_ids=(34, 1232, 33, 446, 36, 2), finish_reason="eos")
    """

    problem_id: str
    index: int
    """Which of the problem's samples, from 0."""
    iteration: int
    """The iteration whose E-step or evaluation drew it."""
    text: str
    """`token_ids` decoded, special tokens left out: for graders and people, never for training."""
    token_ids: tuple[int, ...]
    """What was sampled. Ends with the end token if `finish_reason` is `eos`; ends at the last whole token
    before the stop string (a remainder re-encoded) if it is `stop_string`."""
    finish_reason: FinishReason


class Verdict(enum.Enum):
    """What a reward says of a solution. There is no truth value: unscorable is neither right nor wrong."""

    CORRECT = "correct"
    INCORRECT = "incorrect"
    UNSCORABLE = "unscorable"

    def __bool__(self) -> bool:
        raise TypeError("a Verdict has no truth value; compare it with Verdict.CORRECT")


@dataclass(frozen=True, slots=True)
class GradedSolution:
    """A solution and what its reward said.

    Example:
        GradedSolution(solution, Verdict.CORRECT, reward=1.0, answer="4", reason="")
    """

    solution: Solution
    verdict: Verdict
    reward: float
    """r(x, y) >= 0, the weight in the M-step; 0.0 where unscorable."""
    answer: str | None
    """The final answer for majority votes, normalised; None where the solution gives none."""
    reason: str
    """Why it is incorrect or unscorable; where correct, what is to be known of it, mostly nothing."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a reward may return in place of a number, to say why.

    Example:
        Outcome(0.0, "wrong answer: case 2 of 4: returned [1], wanted [0]")
    """

    reward: float
    reason: str
    """Why the solution is incorrect; where it is correct, what is to be known of that verdict."""


RewardFunction = Callable[[Problem, Solution], bool | float | Outcome]
"""r(x, y), the plug-in point: a plain function; it may raise `UnscorableError`.

What a plug-in returns is believed only once it is looked at: see `rest_em.rewards.registry.RawReward`.
"""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How solutions are drawn; all explicit, a model's generation_config gives its EOS ids only.

    Names and meaning are those of `transformers.GenerationConfig`.
    """

    num_samples: int
    """N: solutions a problem, > 0."""
    max_new_tokens: int
    """The cap on a solution's tokens, > 0."""
    temperature: float
    """>= 0; 0 is greedy and then `num_samples` is 1."""
    top_k: int = 0
    """Only the k likeliest tokens; 0 turns it off."""
    top_p: float = 1.0
    """Only the smallest set of tokens whose probability reaches this, in (0, 1]; after `top_k`."""
    stop_strings: tuple[str, ...] = ()
    """A solution ends before the first of these."""


@dataclass(frozen=True, slots=True)
class TrainingExample:
    """One row of D_i.

    Example:
        TrainingExample("train-17", 3, prompt="What is 2 + 2?\\n", token_ids=(34, 1232, 33, 446, 36, 2),
                        finish_reason="eos", weight=1.0)
    """

    problem_id: str
    index: int | None
    """The solution's index among the problem's samples; None is a solution that people wrote."""
    prompt: str | Messages
    """Rendered with `prompt.training`."""
    token_ids: tuple[int, ...]
    """As sampled; training appends the EOS token if `finish_reason` is `stop_string`. Of a solution that
    people wrote there are none, and `text` is encoded."""
    finish_reason: FinishReason
    weight: float
    """r(x, y), > 0; 1 of a solution that people wrote."""
    text: str = ""
    """What is encoded where there are no `token_ids`, or those of another tokenizer; else for people."""


@dataclass(frozen=True, slots=True)
class DrawRequest:
    """One set of draws that a policy is asked for: the E-step's, an evaluation's, a validation's.

    Example:
        DrawRequest(name="iteration-01/samples", problems=problems, params=params, iteration=1,
                    seed=0, unit_size=256, max_rows=128)
    """

    name: str
    """Where it belongs in the run folder, e.g. `iteration-01/samples`; part of the draws' identity."""
    problems: tuple[Problem, ...]
    """Rendered with the prompt that this policy gets."""
    params: SamplingParams
    iteration: int
    """What `Solution.iteration` will be."""
    seed: int
    """The run's seed. Draws depend on (seed, name, problem id, sample index) alone."""
    unit_size: int
    """Solutions a work unit: decoded and committed whole, whatever the number of ranks."""
    max_rows: int
    """Sequences decoded at once."""


class Sampler(Protocol):
    """The E-step's engine: one call."""

    def __call__(self, request: DrawRequest, unit: Sequence[tuple[Problem, range]]) -> list[Solution]:
        """Return the unit's solutions, ordered by problem as given, then by index."""
        ...
