"""What tests see of a run's folder and of its processes."""

from __future__ import annotations

import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from process_watch import processes_in
from tiny_run import RUN, drawn, show

from rest_em.ledger import Ledger
from rest_em.storage import read_json, read_lines
from rest_em.tracking import Curves
from rest_em.usage import measured_stages

MARKS = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc"),
]
EXIT_INTERRUPTED = 75
GONE_SECONDS = 10.0
"""How long anything of a run may live after a part of it was killed; seen on quiet cores: ours at most 0.9 s,
accelerate's own launcher 1.4 s."""


def assert_all_is_drawn_once(cwd: Path, undisturbed: Path) -> None:
    """Compare with a run on one process, row by row."""
    found, expected = drawn(cwd), drawn(undisturbed)
    assert found.keys() == expected.keys()
    for name, rows in expected.items():
        assert found[name] == rows, name
    samples = [row for name, rows in found.items() if name.startswith("iteration-01/samples") for row in rows]
    assert len(samples) == 2 * 64
    assert len(found["dataset"]) > 8


def unit_times(cwd: Path) -> dict[Path, int]:
    """Return when each committed unit was written."""
    return {path: path.stat().st_mtime_ns for path in (cwd / RUN).glob("iteration-*/**/units/*.parquet")}


def units_of_e_step(cwd: Path, iteration: int = 1) -> int:
    return len(list((cwd / RUN / f"iteration-{iteration:02d}" / "samples" / "units").glob("[0-9]*.parquet")))


def stages_done(cwd: Path) -> list[str]:
    return [line.get("stage", "reset") for line in read_lines(cwd / RUN / "ledger.jsonl")]


def runs_stage(cwd: Path, name: str) -> bool:
    return any(f"_stage {name} " in command for command in processes_in(cwd).values())


def assert_nothing_is_alive(cwd: Path) -> None:
    started_at = time.monotonic()
    while processes_in(cwd) and time.monotonic() - started_at < GONE_SECONDS:
        time.sleep(0.02)
    assert processes_in(cwd) == {}


def assert_finished(cwd: Path) -> None:
    assert read_json(cwd / RUN / "status.json")["state"] == "finished"
    assert stages_done(cwd)[-1] == "iteration-01/evals/train/metrics"
    assert processes_in(cwd) == {}


def points_of_lines(metrics: Path, num_lines: int | None = None) -> Counter[tuple[str, int]]:
    """Return how often each place of each curve stands in the first lines of metrics.jsonl, or in all."""
    curves = Curves()
    return Counter(
        (name, point.x)
        for line in read_lines(metrics)[:num_lines]
        for point in curves.points(line)
        for name in point.values
    )


def plotted(folder: Path) -> Counter[tuple[str, int]]:
    """Return how often TensorBoard has a value at each place of each curve of a run."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    return Counter(
        (value.tag, event.step)
        for path in sorted((folder / "tracking" / "tensorboard").glob("events.*"))
        for event in EventFileLoader(str(path)).Load()
        for value in event.summary.value
        if value.tag != "recipe"
    )


def plan_of(cwd: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_json(cwd / RUN / "plan.json")
    return found


def assert_planned(cwd: Path) -> None:
    """See that every stage stands beside what was predicted of it, E-step and M-step of both."""
    measured = {one.name: one.usage for one in measured_stages(Ledger(cwd / RUN).records)}
    kept = plan_of(cwd)
    assert kept["predicted"]["gpu"] == "cpu"
    assert [one["name"] for one in kept["measured"]] == list(measured)
    assert show(cwd / RUN)["plan"] == kept
    for one in kept["measured"]:
        assert one["peak_bytes"] == measured[one["name"]].peak_bytes
        if one["name"] in ("iteration-01/samples", "iteration-01/training"):
            assert one["predicted_peak_bytes"] > 400 * 2**20
            assert 0.5 < one["peak_ratio"] < 2
            assert one["predicted_tokens_per_second"] > 0
            assert one["tokens_per_second"] > 0
