"""The loop end to end: on ranks, DeepSpeed and machines; changed on the way. Killed runs: `test_run_ends`.

Every launch computes with a tiny random model. What is compared is what does not depend on training: the
base model's draws, the verdicts and D_1.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
from pathlib import Path

import pytest
from tiny_run import REPOSITORY, RUN, drawn, finish, launch, show, started, wait_until, write_recipe
from tiny_slurm import job, requeued
from watched_run import (
    EXIT_INTERRUPTED,
    MARKS,
    assert_all_is_drawn_once,
    assert_finished,
    assert_planned,
    runs_stage,
    stages_done,
    unit_times,
    units_of_e_step,
)

from rest_em.ledger import Ledger
from rest_em.storage import read_json
from rest_em.types import GradedSolution, Verdict
from rest_em.usage import measured_stages

pytestmark = MARKS

NUM_UNITS = 16
"""Of the first E-step: 16 problems, 4 samples each, 4 solutions a unit."""


EVAL = """
title: Sums
problems: {path: sums.jsonl, id: id}
prompt: {template: "{{ question }}="}
reward: {function: "reward.py:even_length", num_workers: 1}
sampling: {max_new_tokens: 6, num_samples: 2, unit_size: 4, max_rows: 4}
"""


def assert_measured(cwd: Path, *, num_ranks: int) -> None:
    """See that the ledger tells of every stage of a rank's processes what it took."""
    records = Ledger(cwd / RUN).records
    measured = measured_stages(records)
    assert [one.name for one in measured] == [
        record["stage"] for record in records if record["stage"].endswith(("/samples", "/training"))
    ]
    by_name = {one.name: one.usage for one in measured}
    for record in records:
        usage = by_name.get(record["stage"])
        if usage is not None:
            assert (usage.device, usage.peak_allocated_bytes) == ("cpu", None)
            assert usage.peak_bytes is not None
            assert usage.resident_bytes_at_start is not None
            assert usage.peak_bytes >= usage.resident_bytes_at_start > 100 * 2**20  # torch alone is more
            assert usage.tokens_per_second is not None
            assert usage.num_tokens >= record["result"]["num_tokens"] > 0
    assert by_name["iteration-01/training"].num_ranks == num_ranks
    assert 1 <= by_name["iteration-01/samples"].num_ranks <= num_ranks  # a slow rank may find all drawn


@pytest.fixture
def copy(alone: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, elsewhere."""
    shutil.copytree(alone, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_one_process_runs_to_the_end_and_shows_what_it_measured(alone: Path) -> None:
    assert_measured(alone, num_ranks=1)
    assert_planned(alone)
    base, first = show(alone / RUN)["iterations"]
    assert (base["iteration"], first["iteration"]) == (0, 1)
    for one in (base, first):
        for interval in (one["pass_at"]["1"], one["pass_at"]["2"], one["majority_at"]["2"]):
            assert 0 <= interval["low"] <= interval["value"] <= interval["high"] <= 1
        settings = one["test"]["settings"]
        assert settings["data"] == {"path": str(alone / "test.jsonl")}
        assert (settings["num_samples"], settings["max_new_tokens"], settings["dtype"]) == (2, 16, "float32")
    assert base["gain"] is None
    assert first["gain"]["low"] <= first["gain"]["value"] <= first["gain"]["high"]
    assert first["num_sampled"] == 64
    assert first["num_sampled"] > first["num_correct"] >= first["num_kept"] > 8
    assert first["chosen_epoch"] == 2


def test_a_finished_run_does_nothing_and_goes_on_with_more_iterations(copy: Path) -> None:
    before, logs = stages_done(copy), sorted((copy / RUN / "logs").iterdir())
    for options in ((), ("--set", "training.per_device_train_batch_size=4")):
        again = finish(launch("run", "tiny.yaml", *options), copy)
        assert again.returncode == 0, again.stderr
        assert "runs/tiny: finished already, nothing to do" in again.stderr
        assert stages_done(copy) == before
        assert sorted((copy / RUN / "logs").iterdir()) == logs
    times = unit_times(copy)
    with started(launch("run", "tiny.yaml", "--set", "num_iterations=2"), copy) as process:
        wait_until(lambda: units_of_e_step(copy, 2), process)
        (copy / RUN / "stop").touch()
        assert process.wait(60) == EXIT_INTERRUPTED
    assert stages_done(copy)[: len(before)] == before
    assert times.items() <= unit_times(copy).items()


def test_evals_that_a_finished_run_gets_are_measured_and_compared(copy: Path) -> None:
    rows = [{"id": f"sum-{k}", "question": f"1+{k}", "answer": str(1 + k)} for k in range(3)]
    (copy / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (copy / "sums.yaml").write_text(EVAL)
    (copy / "best.yaml").write_text(EVAL)
    evals = "evaluation.evals=[{path: sums.yaml, limit: 2}, {path: best.yaml, when: best}]"
    times = unit_times(copy)
    done = finish(launch("run", "tiny.yaml", "--set", evals), copy)
    assert done.returncode == 0, done.stderr
    assert times.items() <= unit_times(copy).items()
    found = show(copy / RUN)
    measured = [
        {name: one["overall"]["num_problems"] for name, one in each["evals"].items()}
        for each in found["iterations"]
    ]
    assert measured[0] == {"train": 16, "sums-first-2": 2, "best": 3}
    assert found["iterations"][1]["evals"]["sums-first-2"]["settings"]["limit"] == 2
    assert measured[1] == {"train": 16, "sums-first-2": 2} | ({"best": 3} if found["best_iteration"] else {})
    compared = finish(launch("compare", f"{RUN}:0", f"{RUN}:1", "--json"), copy)
    assert compared.returncode == 0, compared.stderr
    assert {"sums-first-2", "test", "train"} <= json.loads(compared.stdout).keys()


def test_a_changed_setting_is_refused_and_done_again_only_when_asked_for(copy: Path) -> None:
    before = stages_done(copy)
    hotter = ("--set", "sampling.temperature=0.5")
    refused = finish(launch("run", "tiny.yaml", *hotter), copy)
    assert refused.returncode == 1
    changed = "what was finished had other settings:\n  sampling.temperature: 1.0 -> 0.5, on which iteration"
    assert changed in refused.stderr
    assert "--from-stage iteration-01/samples" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert read_json(copy / RUN / "status.json")["state"] == "finished"
    assert stages_done(copy) == before
    times = unit_times(copy)
    with started(
        launch("run", "tiny.yaml", *hotter, "--from-stage", "iteration-01/samples"), copy
    ) as process:
        wait_until(lambda: 0 < units_of_e_step(copy) < NUM_UNITS, process)
        (copy / RUN / "stop").touch()
        assert process.wait(60) == EXIT_INTERRUPTED
    kept = {path: time for path, time in times.items() if "iteration-00" in str(path)}
    assert kept.items() <= unit_times(copy).items()
    assert not (copy / RUN / "iteration-01" / "policy").exists()
    # Half drawn at one temperature and half at another must not be.
    refused = finish(launch("run", "tiny.yaml"), copy)
    changed = "what was begun had other settings:\n  sampling.temperature: 0.5 -> 1.0, on which iteration-01"
    assert changed in refused.stderr


def test_all_that_a_changed_key_concerns_is_told_before_anything_is_done(copy: Path) -> None:
    files = {path: path.stat().st_mtime_ns for path in (copy / RUN).rglob("*") if path.is_file()}
    shorter = ("run", "tiny.yaml", "--dry-run", "--set", "sampling.max_new_tokens=8")
    refused = finish(launch(*shorter), copy)
    assert refused.returncode == 1
    assert "sampling.max_new_tokens: 16 -> 8, on which iteration-00/validation/shown/samples and " in (
        refused.stderr
    )
    options = re.findall(r"--from-stage '?([^ ',]+)", refused.stderr)
    assert options == [
        "*/validation/*/samples",
        "*/evals/test/greedy/samples",
        "*/evals/test/sampled/samples",
        "*/evals/train/greedy/samples",
        "iteration-01/samples",
    ]
    allowed = finish(launch(*shorter, *(word for one in options for word in ("--from-stage", one))), copy)
    assert allowed.returncode == 0, allowed.stderr
    assert "runs/tiny: 30 stages are done" in allowed.stderr
    assert files == {path: path.stat().st_mtime_ns for path in (copy / RUN).rglob("*") if path.is_file()}


def test_another_reward_judges_the_same_solutions_again(copy: Path, alone: Path) -> None:
    reward = (copy / "reward.py").read_text()
    (copy / "reward.py").write_text(reward.replace("== 0", "== 0 or solution.index == 3"))
    refused = finish(launch("run", "tiny.yaml"), copy)
    assert refused.returncode == 1
    assert "reward.source: " in refused.stderr
    assert "--from-stage '*/verdicts'" in refused.stderr
    times = unit_times(copy)
    with started(launch("run", "tiny.yaml", "--from-stage", "*/verdicts"), copy) as process:
        wait_until(lambda: runs_stage(copy, "train"), process)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == EXIT_INTERRUPTED
    drawn_before_training = {path: time for path, time in times.items() if path.exists()}
    assert len(drawn_before_training) > NUM_UNITS
    assert drawn_before_training.items() <= unit_times(copy).items()
    found, expected = drawn(copy), drawn(alone)
    rows = [row for name, rows in found.items() if name.startswith("iteration-01/samples") for row in rows]
    verdicts = [row for row in rows if isinstance(row, GradedSolution)]
    assert all(
        (one.verdict is Verdict.CORRECT) == (len(one.solution.text) % 2 == 0 or one.solution.index == 3)
        for one in verdicts
    )
    assert len(found["dataset"]) > len(expected["dataset"])


@pytest.fixture(scope="module")
def on_machines(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    """A run on two machines, both this host, a rank of ZeRO-3 each, as launch/slurm.sbatch starts it."""
    cwd = tmp_path_factory.mktemp("machines")
    write_recipe(cwd, tiny_model_folder)
    config = str(REPOSITORY / "launch" / "zero3_cpu.yaml")
    done = finish(job(cwd / "slurm", config, "tiny.yaml", num_nodes=2), cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "runs/tiny: finished, exit code 0" in done.stdout
    assert requeued(cwd / "slurm") == ""
    return cwd


def test_ranks_draw_judge_and_keep_what_one_process_does(on_machines: Path, alone: Path) -> None:
    assert_all_is_drawn_once(on_machines, alone)
    assert_finished(on_machines)
    assert list((on_machines / RUN / "iteration-01" / "policy").glob("*.safetensors"))
    assert len(list((on_machines / RUN / "logs").glob("*train-rank*.log"))) == 2
    assert_measured(on_machines, num_ranks=2)
    assert_planned(on_machines)
