"""What a stage took: peak memory, tokens and seconds, measured in its processes and joined over the ranks.

Each process of a stage keeps its figures in the stage's folder; rank 0 joins them into the stage's result in
the ledger. Predicting them, and showing them beside a prediction, is left to the caller.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rest_em.devices import device_name
from rest_em.storage import read_json, write_json

if TYPE_CHECKING:
    import torch

USAGE = "usage"
"""Where the processes of a stage keep theirs, below its folder: one file a process, RANK-TIME.json."""
PEAKS = (
    "peak_allocated_bytes", "peak_reserved_bytes", "device_used_bytes", "device_bytes", "peak_resident_bytes",
)  # fmt: skip
"""Of several processes, the highest counts."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What one process, or all processes of all ranks, took for a stage. Bytes are those of one process.

    Example:
        Usage(num_ranks=1, device="cpu", device_name="AMD EPYC", peak_allocated_bytes=None,
            peak_reserved_bytes=None, device_used_bytes=None, device_bytes=None,
            peak_resident_bytes=1_300_000_000, resident_bytes_at_start=500_000_000, num_tokens=4096,
            num_steps=0, seconds=12.5, work_seconds=10.0)
    """

    num_ranks: int
    """How many have worked for the stage, and left their figures."""
    device: str
    """`cpu`, or an accelerator's kind, as `cuda`."""
    device_name: str
    """As the processor or the accelerator calls itself."""
    peak_allocated_bytes: int | None
    """The most that PyTorch's tensors had on the device at once; None without CUDA, as the three below."""
    peak_reserved_bytes: int | None
    """The most that PyTorch's allocator had taken from the device."""
    device_used_bytes: int | None
    """What was taken of the device in the end, whoever had it: also the CUDA context and what NCCL has."""
    device_bytes: int | None
    """What the device has."""
    peak_resident_bytes: int | None
    """The most host memory; None where /proc does not tell, as the next."""
    resident_bytes_at_start: int | None
    """Host memory after the imports and before a model, of the process with the highest peak."""
    num_tokens: int
    """Sampling: tokens drawn, twice if a kill lost their unit. Training: all that were computed, prompts and
    padding among them."""
    num_steps: int
    """Training: optimiser steps. Sampling: 0."""
    seconds: float
    """From a process's first work for the stage to its last, with loading; of the rank that took longest."""
    work_seconds: float
    """Without loading and without writing checkpoints; of the rank that took longest."""

    @property
    def peak_bytes(self) -> int | None:
        """The peak of what is scarce: allocated on a GPU, resident on the CPU; None where not measured."""
        return self.peak_resident_bytes if self.device == "cpu" else self.peak_allocated_bytes

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens of all ranks by the work of the one that took longest; None if there was none."""
        return self.num_tokens / self.work_seconds if self.work_seconds else None


@dataclass(frozen=True, slots=True)
class MeasuredStage:
    """A finished stage beside what it took.

    Example:
        MeasuredStage("iteration-01/samples", kind="sample", iteration=1, usage=usage)
    """

    name: str
    """As in the ledger."""
    kind: Literal["sample", "train"]
    iteration: int
    usage: Usage


class Meter:
    """Measures what this process takes for one stage, from now on."""

    def __init__(self, stage: Path, device: torch.device, *, resident_bytes_at_start: int | None) -> None:
        """Start the clock.

        Args:
            stage: the stage's folder.
            device: where this rank computes.
            resident_bytes_at_start: `resident_bytes` before a model was loaded.
        """
        rank = int(os.environ.get("RANK", "0"))
        self.stage = stage
        self._path = stage / USAGE / f"{rank}-{time.time_ns()}.json"
        self._device, self._device_name = device, device_name(device)
        self._at_start = resident_bytes_at_start
        self._began = time.monotonic()
        self._num_tokens = self._num_steps = 0
        self._work_seconds = 0.0

    def add(self, *, num_tokens: int, work_seconds: float, num_steps: int = 0) -> None:
        """Count work that has been done, and write what the stage has taken so far.

        A killed process leaves what it had measured. A crash of the machine may leave an empty file, which
        `joint_usage` passes over: the write is not waited for, as it comes with every work unit.
        """
        self._num_tokens += num_tokens
        self._num_steps += num_steps
        self._work_seconds += work_seconds
        usage = Usage(
            num_ranks=1,
            device=self._device.type,
            device_name=self._device_name,
            **_device_memory(self._device),
            peak_resident_bytes=_own_status("VmHWM"),
            resident_bytes_at_start=self._at_start,
            num_tokens=self._num_tokens,
            num_steps=self._num_steps,
            seconds=round(time.monotonic() - self._began, 3),
            work_seconds=round(self._work_seconds, 6),
        )
        write_json(self._path, dataclasses.asdict(usage), is_durable=False)


def resident_bytes() -> int | None:
    """Return the host memory of this process; None where /proc does not tell."""
    return _own_status("VmRSS")


def forget_peaks(device: torch.device) -> None:
    """Let the peaks of this process begin again, where it goes on from one stage to the next."""
    if device.type == "cuda":
        import torch

        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.reset_peak_memory_stats(device)
    # Where the kernel does not allow it, the peak is that of the process so far, never one too low.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _own_status(key: str) -> int | None:
    """Return a size of this process, e.g. VmHWM; None where it is not told. Source: proc_pid_status(5).

    Not getrusage's maxrss: a process that was forked starts with its parent's.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except FileNotFoundError:
        return None
    found = re.search(rf"^{key}:\s+(\d+) kB$", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _device_memory(device: torch.device) -> dict[str, int | None]:
    names = ("peak_allocated_bytes", "peak_reserved_bytes", "device_used_bytes", "device_bytes")
    if device.type != "cuda":
        return dict.fromkeys(names)
    import torch

    free, total = torch.cuda.mem_get_info(device)
    peaks = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
    return dict(zip(names, (*peaks, total - free, total), strict=True))


def joint_usage(stage: Path) -> Usage | None:
    """Return what all processes took that worked for a stage; None if none of their figures is there.

    Peaks are the highest. Tokens add up. A rank's seconds add up over its processes, which an interrupted
    stage has several of, and the longest rank's count. A process whose file cannot be read, as a crash of the
    machine may leave it, or is not there yet, as on a slow shared disk, is left out: it is never waited for.

    Args:
        stage: the stage's folder.
    """
    by_rank: dict[str, list[Usage]] = {}
    for path in sorted((stage / USAGE).glob("[0-9]*-*.json")):
        usage = _read(path)
        if usage is not None:
            by_rank.setdefault(path.name.split("-", maxsplit=1)[0], []).append(usage)
    if not by_rank:
        return None
    ranks = [_joined(each, sum, num_ranks=1) for each in by_rank.values()]
    return _joined(ranks, max, num_ranks=len(ranks))


def usage_entry(stage: Path) -> dict[str, Any]:
    """Return what a ledger's result gets of a stage: `usage`, the joint one, or None if there is none."""
    usage = joint_usage(stage)
    return {"usage": None if usage is None else dataclasses.asdict(usage)}


def measured_stages(records: Iterable[Mapping[str, Any]]) -> list[MeasuredStage]:
    """Return the stages of a ledger, in its order, that say what they took.

    An earlier version's do not, nor do those of which no figures were left.
    """
    measured = []
    for record in records:
        found = re.fullmatch(r"iteration-(\d+)/(?:.*/)?(samples|training)", record["stage"])
        value = record["result"].get("usage")
        if found and value is not None:
            kind: Literal["sample", "train"] = "sample" if found[2] == "samples" else "train"
            measured.append(MeasuredStage(record["stage"], kind, int(found[1]), Usage(**value)))
    return measured


def _read(path: Path) -> Usage | None:
    try:
        return Usage(**read_json(path))
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return None


def _joined(usages: Sequence[Usage], over: Callable[[Iterable[float]], float], *, num_ranks: int) -> Usage:
    """Return processes as one; `over` joins seconds and steps."""
    highest = max(usages, key=lambda one: one.peak_resident_bytes or 0)
    most = max(usages, key=lambda one: one.num_tokens)
    peaks: dict[str, Any] = {name: _highest([getattr(one, name) for one in usages]) for name in PEAKS}
    return dataclasses.replace(
        most,
        num_ranks=num_ranks,
        **peaks,
        resident_bytes_at_start=highest.resident_bytes_at_start,
        num_tokens=sum(one.num_tokens for one in usages),
        num_steps=int(over(one.num_steps for one in usages)),
        seconds=round(over(one.seconds for one in usages), 3),
        work_seconds=round(over(one.work_seconds for one in usages), 6),
    )


def _highest(values: Sequence[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)
