"""What a stage took: measured in a process, joined over processes and ranks, read from a ledger."""

from __future__ import annotations

import dataclasses
import mmap
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from rest_em.storage import read_json, write_json
from rest_em.usage import (
    MeasuredStage,
    Meter,
    Usage,
    forget_peaks,
    joint_usage,
    measured_stages,
    resident_bytes,
    usage_entry,
)

CPU, GPU = torch.device("cpu"), torch.device("cuda", 1)
BLOCK_BYTES = 256 * 2**20
SLACK_BYTES = 64 * 2**20
"""What else may happen to a process's memory meanwhile."""
ONE = Usage(
    num_ranks=1,
    device="cuda",
    device_name="H200",
    peak_allocated_bytes=50,
    peak_reserved_bytes=60,
    device_used_bytes=70,
    device_bytes=100,
    peak_resident_bytes=30,
    resident_bytes_at_start=10,
    num_tokens=400,
    num_steps=0,
    seconds=5.0,
    work_seconds=4.0,
)
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="host memory is read in /proc")


def keep(stage: Path, process: str, **fields: Any) -> None:
    """Leave what a process of a stage measured."""
    write_json(stage / "usage" / f"{process}.json", dataclasses.asdict(dataclasses.replace(ONE, **fields)))


def peak(stage: Path) -> int:
    """Return the peak of this process up to now."""
    Meter(stage, CPU, resident_bytes_at_start=None).add(num_tokens=0, work_seconds=0.0)
    usage = joint_usage(stage)
    assert usage is not None
    assert usage.peak_bytes is not None
    return usage.peak_bytes


@on_linux
def test_a_process_keeps_what_it_took_so_far(tmp_path: Path) -> None:
    at_start = resident_bytes()
    assert at_start is not None
    meter = Meter(tmp_path, CPU, resident_bytes_at_start=at_start)
    with mmap.mmap(-1, BLOCK_BYTES) as block:  # memory of its own, not what an allocator has left
        block.write(b"\1" * BLOCK_BYTES)
        meter.add(num_tokens=100, work_seconds=1.5)
    meter.add(num_tokens=20, work_seconds=0.5, num_steps=3)
    (path,) = (tmp_path / "usage").iterdir()
    assert path.name.startswith("0-")
    usage = joint_usage(tmp_path)
    assert usage is not None
    assert (usage.num_ranks, usage.device, usage.num_steps) == (1, "cpu", 3)
    assert (usage.num_tokens, usage.work_seconds, usage.tokens_per_second) == (120, 2.0, 60.0)
    assert usage.peak_bytes is not None
    assert usage.peak_bytes >= at_start + BLOCK_BYTES - SLACK_BYTES
    assert usage.resident_bytes_at_start == at_start
    assert (usage.peak_allocated_bytes, usage.device_bytes) == (None, None)
    assert usage_entry(tmp_path) == {"usage": read_json(path)}


@on_linux
def test_a_peak_of_an_earlier_stage_is_not_that_of_the_next(tmp_path: Path) -> None:
    forget_peaks(CPU)
    with mmap.mmap(-1, BLOCK_BYTES) as block:
        block.write(b"\1" * BLOCK_BYTES)
        first = peak(tmp_path / "first")
    forget_peaks(CPU)
    assert peak(tmp_path / "second") < first - BLOCK_BYTES + SLACK_BYTES


def test_a_gpus_peaks_are_those_of_the_ranks_own_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def answer(value: Any) -> Any:
        return lambda device: asked.append(device) or value

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    for name, value in {
        "get_device_name": "H200",
        "max_memory_allocated": 50,
        "max_memory_reserved": 60,
        "mem_get_info": (30, 100),
        "reset_peak_memory_stats": None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, answer(value))
    forget_peaks(GPU)
    Meter(tmp_path, GPU, resident_bytes_at_start=None).add(num_tokens=1, work_seconds=1.0)
    usage = joint_usage(tmp_path)
    assert usage is not None
    assert asked == [GPU] * 5
    assert (usage.device, usage.device_name, usage.peak_bytes) == ("cuda", "H200", 50)
    assert (usage.peak_reserved_bytes, usage.device_used_bytes, usage.device_bytes) == (60, 70, 100)


def test_ranks_work_at_once_and_the_processes_of_one_in_turn(tmp_path: Path) -> None:
    keep(tmp_path, "0-1", num_tokens=100, seconds=3.0, work_seconds=2.0, peak_allocated_bytes=80)
    keep(tmp_path, "0-2", num_tokens=300, seconds=4.0, work_seconds=3.0, num_steps=2)
    keep(tmp_path, "1-2", num_tokens=350, num_steps=2, peak_resident_bytes=40, resident_bytes_at_start=12)
    assert joint_usage(tmp_path) == dataclasses.replace(
        ONE,
        num_ranks=2,
        peak_allocated_bytes=80,
        peak_resident_bytes=40,
        resident_bytes_at_start=12,
        num_tokens=750,
        num_steps=2,
        seconds=7.0,
        work_seconds=5.0,
    )


@pytest.mark.parametrize("content", [b"", b'{"num_ranks": 1, "dev', b"\0" * 64, b"\xff\xfe"])
def test_figures_that_a_crash_has_torn_are_left_out(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "usage").mkdir()
    (tmp_path / "usage" / "1-7.json").write_bytes(content)
    (tmp_path / "usage" / ".0-7.json.node.99").write_text("{")
    assert joint_usage(tmp_path) is None
    keep(tmp_path, "0-7")
    assert joint_usage(tmp_path) == ONE


def test_a_stage_without_figures_has_none(tmp_path: Path) -> None:
    assert usage_entry(tmp_path / "absent") == {"usage": None}
    assert dataclasses.replace(ONE, work_seconds=0.0).tokens_per_second is None


def test_a_ledger_tells_what_its_stages_took() -> None:
    value = dataclasses.asdict(ONE)
    records = [
        {"stage": "iteration-00/validation/bare/samples", "result": {"num_tokens": 1, "usage": value}},
        {"stage": "iteration-01/samples", "result": {"num_tokens": 1}},
        {"stage": "iteration-01/verdicts", "result": {"num_correct": 1}},
        {"stage": "iteration-01/training", "result": {"usage": value}},
        {"stage": "iteration-12/training", "result": {"usage": None}},
    ]
    assert measured_stages(records) == [
        MeasuredStage("iteration-00/validation/bare/samples", "sample", 0, ONE),
        MeasuredStage("iteration-01/training", "train", 1, ONE),
    ]
