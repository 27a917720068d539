"""pass@k and best@k: exact expectations over all subsets of k of a problem's samples.

What is not defined is None of one problem, and NaN in an array of many; never a plausible number. Majority
votes are in `votes`, means over problems and their intervals in `intervals`.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float | None:
    """Return the chance that k of a problem's samples, drawn without replacement, hold a correct one.

    1 - C(n - c, k) / C(n, k), exact up to the last rounding; None where k > n.

    >>> pass_at_k(4, 1, 2), pass_at_k(4, 0, 8)
    (0.5, None)

    Raises:
        ValueError: no samples, more correct ones than samples, or k < 1.

    Source: Chen et al. 2021, arXiv 2107.03374, section 2.1.
    """
    if num_samples < 1 or not 0 <= num_correct <= num_samples or k < 1:
        raise ValueError(f"pass@{k} of {num_correct} correct among {num_samples} samples is not defined")
    if k > num_samples:
        return None
    all_subsets = math.comb(num_samples, k)
    return (all_subsets - math.comb(num_samples - num_correct, k)) / all_subsets


def pass_at_k_of_each(num_samples: Counts, num_correct: Counts, k: int) -> Floats:
    """Return pass@k of each problem; NaN where it has fewer than k samples.

    Args:
        num_samples: of each problem, >= 0.
        num_correct: of each problem.
        k: >= 1.
    """
    # Few pairs (n, c) are unlike, however many problems there are, so each can be exact.
    pairs, of_each = np.unique(np.stack([num_samples, num_correct]), axis=1, return_inverse=True)
    values = [math.nan if n < k else pass_at_k(int(n), int(c), k) for n, c in pairs.T]
    return np.array(values, dtype=float)[of_each.reshape(-1)]


def best_at_k(rewards: Floats, k: int) -> float | None:
    """Return the highest reward that k of a problem's samples, drawn without replacement, hold on average.

    The mean over all subsets of k samples of the highest reward in it: the sum over the sorted rewards r_(i)
    of r_(i) C(i - 1, k - 1) / C(n, k). pass@k where rewards are 0 or 1. None where k > n.

    >>> best_at_k(np.array([0.2, 0.6, 1.0]), 2)  # of {0.2, 0.6}, {0.2, 1.0}, {0.6, 1.0}
    0.866666...

    Raises:
        ValueError: k < 1.
    """
    if k < 1:
        raise ValueError(f"best@{k} is not defined")
    num_samples = len(rewards)
    if k > num_samples:
        return None
    weights = [0.0] * (k - 1)
    all_subsets = math.comb(num_samples, k)
    weights += [math.comb(rank - 1, k - 1) / all_subsets for rank in range(k, num_samples + 1)]
    return float(np.sort(rewards) @ np.array(weights))
