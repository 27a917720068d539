"""Runs that end with an error, from a reward or a model, and say why; and programs as a reward."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from process_watch import processes_in
from tiny_run import RUN, drawn, finish, launch

from rest_em.storage import read_json
from rest_em.types import GradedSolution, Verdict

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")

HANGING_REWARD = """
import time

def even_length(problem, solution):
    time.sleep(60 if solution.text else 0)
    return True
"""


def failed(cwd: Path, *options: str) -> str:
    """Return how a run says that it failed, after it has."""
    done = finish(launch("run", "tiny.yaml", *options), cwd)
    assert done.returncode == 1
    assert "Traceback (most recent call last)" not in done.stderr.replace("  | Traceback", "")
    status = read_json(cwd / RUN / "status.json")
    assert status["state"] == "failed"
    message: str = status["message"]
    assert done.stderr.endswith(f"error: {message}\n")
    assert processes_in(cwd) == {}
    return message


def test_a_reward_that_hangs_stops_the_run_with_reasons(fresh: Path) -> None:
    (fresh / "reward.py").write_text(HANGING_REWARD)
    message = failed(fresh, "--set", "reward.timeout_seconds=0.3")
    first, *reasons = message.splitlines()
    assert "solutions could not be judged" in first
    assert "allowed are 5.0%" in first
    assert "raise reward.max_unscorable" in first
    assert "even_length took longer than 0.3 s (reward.timeout_seconds) and was killed" in reasons[0]
    assert "validation-" in reasons[0]


def test_nothing_correct_stops_the_run_and_says_what_to_try(fresh: Path) -> None:
    (fresh / "reward.py").write_text("def even_length(problem, solution):\n    return False\n")
    message = failed(fresh)
    assert "64" in message
    assert "sampling.num_samples" in message
    assert not (fresh / RUN / "iteration-01" / "dataset.parquet").exists()


def test_unit_tests_are_the_reward_of_a_whole_iteration(fresh: Path) -> None:
    """What the tiny model writes is a comment behind a program: right wherever it keeps to one line.

    Of the first problem no program is right, so that the canary has one that refuses the empty program.
    """
    for name in ("train", "validation", "test"):
        rows = [json.loads(line) for line in (fresh / f"{name}.jsonl").read_text().splitlines()]
        for number, row in enumerate(rows):
            cases = [{"args": [], "expected": number > 0}]
            row["tests"] = {
                "format": "function",
                "entry_point": "f",
                "prompt": "def f():\n    return True  # ",
                "cases": cases,
            }
        (fresh / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    reward = "reward={name: unit_tests, options: {program: completion}, num_workers: 1}"
    options = ("--set", "problems.reference=tests", "--set", reward)
    refused = failed(fresh, *options)
    assert "reward.allow_code_execution: true" in refused
    done = finish(launch("run", "tiny.yaml", *options, "--set", "reward.allow_code_execution=true"), fresh)
    assert done.returncode == 0, done.stderr
    assert "isolation of programs: up: " in done.stderr
    graded = [row for rows in drawn(fresh).values() for row in rows if isinstance(row, GradedSolution)]
    assert {one.verdict for one in graded} == {Verdict.CORRECT, Verdict.INCORRECT}
    refusals = {one.reason for one in graded if one.solution.problem_id == "train-0"}
    assert any("returned True, wanted False" in reason for reason in refusals)
    assert read_json(fresh / RUN / "status.json")["state"] == "finished"


def test_a_stage_that_fails_is_told_with_the_end_of_its_log(fresh: Path, tiny_model_folder: Path) -> None:
    shutil.copytree(tiny_model_folder, fresh / "broken")
    (fresh / "broken" / "model.safetensors").write_bytes(b"no weights")
    message = failed(fresh, "--set", "model.name_or_path=./broken")
    assert "-rank0.log: stage sample failed on rank 0 (exit code 1); the end of its log:\n  | " in message
    assert "safetensor" in message.lower()
