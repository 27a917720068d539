"""How much work a recipe is: problems, tokens of prompts and solutions, what is left to train on.

Counts and lengths alone. Where they come from (the problems' files, a tokenizer, a run that has begun) is
left to `rest_em.planning`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import comb


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of some prompts.

    Example:
        Lengths(longest=412, shortest=180, mean=240.5, head=120)
    """

    longest: int
    shortest: int
    mean: float
    head: int = 0
    """Tokens that all begin with."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What a recipe asks for.

    Example:
        Workload(num_train=7473, num_validation=747, num_test=1319, prompt=lengths, training_prompt=lengths,
            mean_new_tokens=120.0, success_rate=0.4)
    """

    num_train: int | None
    """Problems that are sampled from; None where nobody has counted them."""
    num_validation: int | None
    num_test: int | None
    prompt: Lengths
    """Of what is sampled from: the longest of the base's and the tuned policy's prompts."""
    training_prompt: Lengths
    """Of what is trained on."""
    mean_new_tokens: float
    """Expected tokens of a solution."""
    success_rate: float
    """Expected share of correct solutions, in [0, 1]."""
    longest_human: int = 0
    """Tokens of the longest solution that people wrote and that is trained on."""
    sources: tuple[str, ...] = ()
    """Where each figure comes from, for people."""

    def num_examples(self, num_samples: int, max_solutions: int) -> float | None:
        """Return how many solutions are expected to be left to train on.

        Of each problem E[min(K, X)], X binomial of N draws with the success rate: as if all problems were
        equally hard and no two solutions the same, so an upper estimate.

        >>> Workload(10, 0, 0, Lengths(1, 1, 1.0), Lengths(1, 1, 1.0), 1.0, 0.5).num_examples(2, 1)
        7.5
        """
        if self.num_train is None:
            return None
        return self.num_train * expected_kept(num_samples, self.success_rate, max_solutions)


def expected_kept(num_samples: int, rate: float, cap: int) -> float:
    """Return E[min(cap, X)] for X successes of so many draws: the sum over k < cap of P(X > k)."""
    below, total = 0.0, 0.0
    for k in range(min(cap, num_samples)):
        below += comb(num_samples, k) * rate**k * (1 - rate) ** (num_samples - k)
        total += 1 - below
    return total
