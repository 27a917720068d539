"""A table of 1,000,000 samples of 10,000 problems to all figures: seconds and memory.

    python benchmarks/evaluation.py [--problems N]

What is written first is made up: 100 samples a problem, answers of unlike frequency, texts of 60 words.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from rest_em.evaluation import Metrics, columns_of_table, summarize
from rest_em.samples import Sample, write_samples
from rest_em.types import Verdict

NUM_SAMPLES = 100
NUM_ANSWERS = 30
WORDS = np.array(["so", "we", "have", "the", "sum", "of", "two", "numbers", "therefore", "equal", "plus"])


def samples(num_problems: int) -> Iterator[Sample]:
    """Yield made-up samples; a third of the problems has no correct one."""
    draws = np.random.default_rng(0)
    for problem in range(num_problems):
        chances = draws.dirichlet(np.full(NUM_ANSWERS, 0.3))
        answers = draws.choice(NUM_ANSWERS, size=NUM_SAMPLES, p=chances)
        gold = int(draws.choice(NUM_ANSWERS, p=chances)) if draws.random() < 0.7 else NUM_ANSWERS
        for index, answer in enumerate(answers.tolist()):
            verdict = Verdict.CORRECT if answer == gold else Verdict.INCORRECT
            yield Sample(
                problem_id=f"p{problem}",
                prompt="",
                reference=str(gold),
                decoding="sampled",
                index=index,
                text=f"{' '.join(draws.choice(WORDS, 60))} The answer is {answer}",
                verdict=verdict,
                reward=float(verdict is Verdict.CORRECT),
                answer=None if answer == 0 else str(answer),
                finish_reason="eos",
                num_tokens=80,
                is_format_valid=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=10_000)
    num_problems = parser.parse_args().problems
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "samples.parquet"
        write_samples(path, samples(num_problems))
        started = time.perf_counter()
        columns = columns_of_table(path)
        read = time.perf_counter()
        metrics = Metrics((1, 2, 4, 8, 16, 32, 64, 100), (4, 16, 64, 100))
        summarize(None, columns["sampled"], metrics)
        done = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{num_problems * NUM_SAMPLES:,} samples of {num_problems:,} problems")
    print(f"read {read - started:.1f} s, figures {done - read:.1f} s, all {done - started:.1f} s")
    print(f"peak {peak:,.0f} MB, what writes the table among it")


if __name__ == "__main__":
    main()
