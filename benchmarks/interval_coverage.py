"""How often 95 % intervals hold the truth, by simulation: 93 to 97 % is wanted.

python benchmarks/interval_coverage.py [--repeats N]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import numpy as np

from rest_em.evaluation import Estimate, estimate, paired_gain
from rest_em.evaluation.estimators import pass_at_k_of_each

NUM_SAMPLES = 16
K = 4


def pass_at_k_of_beta(a: float, b: float) -> float:
    """Return pass@k where a problem's success is drawn from a beta distribution: 1 - E (1 - p)^k."""
    logs = math.lgamma(b + K) + math.lgamma(a + b) - math.lgamma(b) - math.lgamma(a + b + K)
    return 1 - math.exp(logs)


def covered(find: Callable[[], Estimate | None], truth: float, repeats: int) -> float:
    """Return the share of intervals that hold the truth."""
    found = [find() for _ in range(repeats)]
    return sum(one is not None and one.low <= truth <= one.high for one in found) / repeats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=1500)
    repeats = parser.parse_args().repeats
    draws = np.random.default_rng(1)

    def verdicts(n: int, p: float) -> Estimate | None:
        return estimate((draws.random(n) < p).astype(float))

    def passed(n: int, a: float, b: float) -> Estimate | None:
        correct = draws.binomial(NUM_SAMPLES, draws.beta(a, b, n))
        return estimate(pass_at_k_of_each(np.full(n, NUM_SAMPLES), correct, K))

    def clustered(num_clusters: int, size: int) -> Estimate | None:
        levels = np.repeat(draws.beta(2, 2, num_clusters), size)
        labels = np.repeat(np.arange(num_clusters), size).tolist()
        return estimate((draws.random(len(levels)) < levels).astype(float), clusters=labels)

    def gained(n: int) -> Estimate | None:
        easy = draws.random(n)
        better = draws.random(n) < np.minimum(easy + 0.1, 1)
        return paired_gain(better.astype(float), (draws.random(n) < easy).astype(float))

    for n in (50, 200, 1000):
        for p in (0.1, 0.3, 0.5, 0.9):
            share = covered(lambda n=n, p=p: verdicts(n, p), p, repeats)
            print(f"one verdict a problem, n = {n}, p = {p}: {share:.1%}")
    for n in (50, 200):
        for a, b in ((0.5, 1.5), (1, 1), (2, 8)):
            truth = pass_at_k_of_beta(a, b)
            share = covered(lambda n=n, a=a, b=b: passed(n, a, b), truth, repeats // 2)
            print(f"pass@{K} of {NUM_SAMPLES} samples, n = {n}, pass@{K} = {truth:.2f}: {share:.1%}")
    for num_clusters, size in ((10, 5), (20, 10), (50, 4)):
        share = covered(lambda g=num_clusters, m=size: clustered(g, m), 0.5, repeats // 2)
        print(f"{num_clusters} clusters of {size}: {share:.1%}")
    for n in (30, 50, 200):
        share = covered(lambda n=n: gained(n), 0.1 - 0.1**2 / 2, repeats // 5)
        print(f"paired gain, n = {n}: {share:.1%}")


if __name__ == "__main__":
    main()
