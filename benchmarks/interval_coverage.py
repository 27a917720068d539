"""How often 95 % intervals hold the truth, by simulation: 93 to 97 % is wanted.

python benchmarks/interval_coverage.py [--repeats N]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence

import numpy as np

from rest_em.evaluation import Estimate, estimate, paired_gain
from rest_em.evaluation.estimators import pass_at_k_of_each
from rest_em.evaluation.spread import Floats

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

    def averaged(num_problems: int, levels: Floats) -> Estimate | None:
        groups = np.arange(num_problems) % len(levels)
        return estimate((draws.random(num_problems) < levels[groups]).astype(float), strata=groups.tolist())

    def unequal(sizes: Sequence[int], levels: Sequence[float]) -> Estimate | None:
        verdicts = draws.random(sum(sizes)) < np.repeat(levels, sizes)
        return estimate(verdicts.astype(float), strata=np.repeat(range(len(sizes)), sizes).tolist())

    def nested(num_clusters: int, levels: Floats) -> Estimate | None:
        clusters = np.repeat(np.arange(num_clusters * len(levels)), 5)
        groups = clusters % len(levels)
        sources = draws.beta(4 * levels[groups[::5]], 4 * (1 - levels[groups[::5]]))
        verdicts = (draws.random(len(groups)) < sources[clusters]).astype(float)
        return estimate(verdicts, clusters=clusters.tolist(), strata=groups.tolist())

    def gained(n: int) -> Estimate | None:
        easy = draws.random(n)
        better = draws.random(n) < np.minimum(easy + 0.1, 1)
        return paired_gain(better.astype(float), (draws.random(n) < easy).astype(float))

    def gained_by_cluster(num_clusters: int) -> Estimate | None:
        clusters = np.repeat(np.arange(num_clusters), 20)
        one, base = (draws.random(len(clusters)) < draws.beta(2, 2, num_clusters)[clusters] for _ in range(2))
        return paired_gain(one.astype(float), base.astype(float), clusters=clusters.tolist())

    def gained_by_group(num_problems: int) -> Estimate | None:
        groups = np.arange(num_problems) % 27
        easy = np.linspace(0.1, 0.8, 27)[groups]
        one, base = (draws.random(num_problems) < level for level in (easy + 0.1, easy))
        return paired_gain(one.astype(float), base.astype(float), strata=groups.tolist())

    for n in (50, 200, 1000):
        for p in (0.1, 0.3, 0.5, 0.9):
            share = covered(lambda n=n, p=p: verdicts(n, p), p, repeats)
            print(f"one verdict a problem, n = {n}, p = {p}: {share:.1%}")
    for n in (50, 200):
        for a, b in ((0.5, 1.5), (1, 1), (2, 8)):
            truth = pass_at_k_of_beta(a, b)
            share = covered(lambda n=n, a=a, b=b: passed(n, a, b), truth, repeats // 2)
            print(f"pass@{K} of {NUM_SAMPLES} samples, n = {n}, pass@{K} = {truth:.2f}: {share:.1%}")
    for num_clusters, size in ((3, 20), (5, 20), (10, 5), (20, 10), (50, 4)):
        share = covered(lambda g=num_clusters, m=size: clustered(g, m), 0.5, repeats // 2)
        print(f"{num_clusters} clusters of {size}: {share:.1%}")
    levels = np.linspace(0.1, 0.9, 27)
    for n in (27, 28, 30, 40, 54, 81, 270, 2700):
        share = covered(lambda n=n: averaged(n, levels), float(levels.mean()), repeats)
        print(f"macro average of 27 groups, n = {n}: {share:.1%}")
    for sizes, each in (
        ((1, 100), (0.5, 0.1)),
        ((1, *[50] * 9), (0.5,) * 10),
        ((3, 200), (0.8, 0.8)),
        ((5, 100, 100), (0.9, 0.3, 0.3)),
        ((10, 200), (0.9, 0.5)),
        ((30, 100, 300), (0.2, 0.5, 0.8)),
    ):
        share = covered(lambda s=sizes, p=each: unequal(s, p), sum(each) / len(each), repeats)
        print(f"macro average of groups of {sizes} problems with success {each}: {share:.1%}")
    for num_clusters in (1, 2, 5):
        share = covered(lambda g=num_clusters: nested(g, levels), float(levels.mean()), repeats)
        print(f"macro average of 27 groups of {num_clusters} clusters of 5: {share:.1%}")
    for n in (5, 10, 30, 50, 200):
        share = covered(lambda n=n: gained(n), 0.1 - 0.1**2 / 2, repeats // 3)
        print(f"paired gain, n = {n}: {share:.1%}")
    for num_clusters in (3, 5, 10, 30):
        share = covered(lambda g=num_clusters: gained_by_cluster(g), 0.0, repeats // 3)
        print(f"paired gain, {num_clusters} clusters of 20: {share:.1%}")
    for n in (30, 54, 270):
        share = covered(lambda n=n: gained_by_group(n), 0.1, repeats // 3)
        print(f"paired gain of the macro average of 27 groups, n = {n}: {share:.1%}")


if __name__ == "__main__":
    main()
