"""Runs that are killed or asked to leave: all of them ends, and the same command goes on."""

from __future__ import annotations

import os
import random
import signal
import socket
import time
from collections import Counter
from pathlib import Path

from process_watch import processes_in
from tiny_run import RUN, finish, launch, started, wait_until
from watched_run import (
    EXIT_INTERRUPTED,
    MARKS,
    assert_all_is_drawn_once,
    assert_finished,
    assert_nothing_is_alive,
    assert_planned,
    plan_of,
    plotted,
    points_of_lines,
    runs_stage,
    stages_done,
    unit_times,
    units_of_e_step,
)

from rest_em.ledger import Ledger
from rest_em.storage import read_json, read_lines

pytestmark = MARKS


def supervisor_of_rank(cwd: Path, rank: int) -> int:
    """Return the process that `accelerate launch` started for a rank."""
    (found,) = [
        number
        for number, command in processes_in(cwd).items()
        if "-m rest_em run" in command
        and "accelerate" not in command
        and f"\0LOCAL_RANK={rank}\0" in f"\0{Path(f'/proc/{number}/environ').read_text()}\0"
    ]
    return found


def processes_of_stage(cwd: Path) -> list[int]:
    return sorted(number for number, command in processes_in(cwd).items() if "rest_em _stage" in command)


def test_whatever_is_killed_all_ends_and_the_same_command_goes_on(fresh: Path, alone: Path) -> None:
    chance = random.Random(2)
    command = launch("run", "tiny.yaml", config="ddp_cpu.yaml")
    report_to_tensorboard(fresh)
    with started(command, fresh) as launcher:
        at = chance.randrange(2, 8)
        wait_until(lambda: units_of_e_step(fresh) >= at, launcher)
        launcher.kill()
        assert_nothing_is_alive(fresh)
    times, repeated = unit_times(fresh), fed_and_not_noted(fresh)
    with started(command, fresh) as launcher:
        wait_until(lambda: runs_stage(fresh, "train"), launcher)
        time.sleep(4 * chance.random())
        os.kill(supervisor_of_rank(fresh, chance.randrange(2)), signal.SIGKILL)
        assert_nothing_is_alive(fresh)
    repeated = fed_and_not_noted(fresh)
    assert read_json(fresh / RUN / "status.json")["state"] in ("interrupted", "running")
    assert_all_is_drawn_once(fresh, alone)
    with started(command, fresh) as launcher:
        wait_until(lambda: "iteration-01/training" in stages_done(fresh), launcher)
        wait_until(lambda: len(processes_of_stage(fresh)) == 2, launcher)
        time.sleep(2 * chance.random())
        os.kill(chance.choice(processes_of_stage(fresh)), signal.SIGKILL)
        assert_nothing_is_alive(fresh)
    status = read_json(fresh / RUN / "status.json")
    assert status["state"] == "failed"
    assert "stage sample failed on rank" in status["message"]
    assert "killed by SIGKILL; out of memory?" in status["message"]
    done = finish(command, fresh)
    assert done.returncode == 0, done.stderr
    assert_finished(fresh)
    assert_planned(fresh)
    (training,) = [one for one in plan_of(fresh)["measured"] if one["name"] == "iteration-01/training"]
    assert training["num_ranks"] == 2
    assert_all_is_drawn_once(fresh, alone)
    assert times.items() <= unit_times(fresh).items()
    metrics = fresh / RUN / "metrics.jsonl"
    keys = [
        tuple(line.get(key) for key in ("stage", "unit", "step", "finished")) for line in read_lines(metrics)
    ]
    assert len(keys) == len(set(keys))
    stages = [key[0] for key in keys if key[3]]
    assert stages == stages_done(fresh)
    (training,) = [one for one in Ledger(fresh / RUN).records if one["stage"] == "iteration-01/training"]
    steps = [step for stage, _, step, _ in keys if step]
    assert steps == list(range(1, training["result"]["num_steps"] + 1))
    assert plotted(fresh / RUN) == points_of_lines(metrics) + repeated


def report_to_tensorboard(cwd: Path) -> None:
    with (cwd / "tiny.yaml").open("a") as recipe:
        recipe.write("tracking: {report_to: [tensorboard]}\n")


def fed_and_not_noted(cwd: Path) -> Counter[tuple[str, int]]:
    """Return what the tracker has of a run that was killed before it was noted: mostly nothing."""
    notes = cwd / RUN / "tracking" / "tensorboard.json"
    num_lines = read_json(notes)["lines"] if notes.exists() else 0
    return plotted(cwd / RUN) - points_of_lines(cwd / RUN / "metrics.jsonl", num_lines)


def test_a_run_that_is_asked_to_leave_does_so_and_goes_on(fresh: Path, alone: Path) -> None:
    command = launch("run", "tiny.yaml", "--set", "training.save_seconds=0")
    report_to_tensorboard(fresh)
    tracked = fresh / RUN / "tracking"
    tracked.mkdir(parents=True)
    (tracked / "tensorboard").touch()  # is in the way of the tracker's folder, which then fails
    m_step = fresh / RUN / "iteration-01" / "training"
    with started(command, fresh) as process:
        wait_until((fresh / RUN / "status.json").exists, process)
        second = finish(command, fresh)
        assert second.returncode == 1
        assert f"process {process.pid} on {socket.gethostname()} is running here" in second.stderr
        wait_until(lambda: units_of_e_step(fresh) > 1, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == EXIT_INTERRUPTED
        assert_nothing_is_alive(fresh)
    status, times = read_json(fresh / RUN / "status.json"), unit_times(fresh)
    assert status["state"] == "interrupted"
    assert status["message"] == "interrupted by SIGTERM; the same command goes on from here"
    with started(command, fresh) as process:
        wait_until((m_step / "checkpoint.json").exists, process)
        (fresh / RUN / "stop").touch()
        said, _ = process.communicate(timeout=60)
        assert process.returncode == EXIT_INTERRUPTED
        assert "error: runs/tiny/stop: asked to stop; the same command goes on from here" in said
        assert said.count("tracking: tensorboard failed: FileExistsError: ") == 1
        assert "tracking: tensorboard may not have taken all of runs/tiny/metrics.jsonl yet" in said
        assert_nothing_is_alive(fresh)
    assert not (fresh / RUN / "stop").exists()
    assert not (m_step / "training.json").exists()
    (e_step,) = [one for one in plan_of(fresh)["measured"] if one["name"] == "iteration-01/samples"]
    assert e_step["peak_ratio"] > 0
    assert read_json(fresh / RUN / "status.json")["state"] == "interrupted"
    assert_all_is_drawn_once(fresh, alone)
    assert times.items() <= unit_times(fresh).items()
    step = read_json(m_step / "checkpoint.json")["step"]
    with started(command, fresh) as process:
        wait_until(lambda: "iteration-01/training" in stages_done(fresh), process)
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=60)
    assert f"iteration-01: train: goes on after step {step}\n" in said
    assert [path.name for path in m_step.glob("checkpoint*")] == []
    tuned, undisturbed = m_step / "epoch-2", alone / RUN / "iteration-01" / "policy"
    names = "model.safetensors", "config.json"
    assert all((tuned / name).read_bytes() == (undisturbed / name).read_bytes() for name in names)
