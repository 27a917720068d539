"""launch/slurm.sbatch: a run is asked to leave in time, and requeued if it did. Several nodes: `test_run`."""

from __future__ import annotations

import signal
from pathlib import Path

from tiny_run import REPOSITORY, finish, started, wait_until
from tiny_slurm import job, requeued
from watched_run import MARKS, assert_nothing_is_alive

from rest_em.storage import read_json

pytestmark = MARKS
CPU = str(REPOSITORY / "launch" / "cpu.yaml")


def test_a_job_whose_time_is_over_is_interrupted_and_requeued_and_no_other_is(fresh: Path) -> None:
    slurm = fresh / "slurm"
    with started(job(slurm, CPU, "tiny.yaml", "--set", "run_name=mine"), fresh) as script:
        wait_until((fresh / "runs" / "mine" / "status.json").exists, script)
        script.send_signal(signal.SIGUSR1)
        said, _ = script.communicate(timeout=240)
        assert script.returncode == 0, said
        assert_nothing_is_alive(fresh)
    assert "runs/mine: interrupted, exit code" in said
    assert read_json(fresh / "runs" / "mine" / "status.json")["state"] == "interrupted"
    assert requeued(slurm).startswith("requeue ")
    (slurm / "scontrol.log").unlink()
    # It still says interrupted, but this time nobody asked: the run cannot start.
    asked = ("tiny.yaml", "--set", "run_name=mine", "--set", "problems.train.path=none.jsonl")
    failed = finish(job(slurm, CPU, *asked), fresh)
    assert failed.returncode == 1, failed.stdout + failed.stderr
    assert "runs/mine: interrupted, exit code 1" in failed.stdout
    assert requeued(slurm) == ""


def test_a_mistake_in_the_command_ends_a_job_before_anything_is_started(fresh: Path) -> None:
    slurm = fresh / "slurm"
    for arguments, told in (
        ((CPU,), "usage: sbatch launch/slurm.sbatch LAUNCH_FILE RECIPE"),
        ((CPU, "tiny.yaml", "--set", "sampling.num_sample=8"), "did you mean num_samples?"),
        ((CPU, "tiny.yaml", "--from-stage", "*/verdicts"), "--from-stage would be done again"),
    ):
        done = finish(job(slurm, *arguments), fresh)
        assert done.returncode != 0
        assert told in done.stderr
    assert not (slurm / "srun.log").exists()
    assert not (fresh / "runs").exists()
