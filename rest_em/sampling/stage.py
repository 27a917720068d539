"""The sampling stage: the process of one rank that loads policies and decodes work units to disk.

Runs as `python -m rest_em _stage sample SPEC.json` on every rank. A unit is written whole, by one rank, and
is the same whichever rank that is. Judging, and what the draws are for, is left to the supervisor.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rest_em.sampling.engine import make_sampler
from rest_em.sampling.policy import choose_dtype, load_policy, local_device
from rest_em.sampling.progress import Progress
from rest_em.sampling.prompts import refuse_long_prompts
from rest_em.sampling.tickets import tickets
from rest_em.sampling.units import Unit, plan_units, unit_path
from rest_em.storage import import_parquet, read_json, request_from_json, write_solutions
from rest_em.types import DrawRequest, Sampler
from rest_em.usage import Meter, forget_peaks, resident_bytes


@dataclass(frozen=True, slots=True)
class _Task:
    """One unit to decode."""

    policy: str
    request: DrawRequest
    unit: Unit
    folder: Path
    """Of the draw's samples."""
    path: Path
    """Where its solutions go."""


def main(spec: dict[str, Any]) -> None:
    """Decode this rank's share of the units; keep what each draw took in its folder.

    Args:
        spec: `{"model": {"dtype", "attn_implementation", "trust_remote_code", "revision"},
            "draws": [{"policy", "folder", "units"}, ...], "progress": folder}`. A draw's folder holds
            `request.json`; its `units` are the numbers of those still to do. Draws are done in order.
    """
    import_parquet()
    at_start = resident_bytes()
    tasks = [task for draw in spec["draws"] for task in _tasks(draw)]
    progress = Progress(Path(spec["progress"]) / f"{os.environ.get('RANK', '0')}.json")
    device = local_device()
    dtype = str(choose_dtype(spec["model"]["dtype"], device)).removeprefix("torch.")
    policy: str | None = None
    sampler: Sampler | None = None
    meter: Meter | None = None
    for ticket in tickets(len(tasks)):
        task = tasks[ticket]
        if meter is None or meter.stage != task.folder:
            forget_peaks(device)
            meter = Meter(task.folder, device, resident_bytes_at_start=at_start)
        if sampler is None or task.policy != policy:
            sampler = None
            gc.collect()
            requests = [other.request for other in tasks[ticket:] if other.policy == task.policy]
            policy, sampler = task.policy, _load_sampler(spec["model"], task.policy, requests, progress)
        problems = task.request.problems
        began = time.monotonic()
        solutions = sampler(task.request, [(problems[place], indices) for place, indices in task.unit])
        num_tokens = sum(len(solution.token_ids) for solution in solutions)
        # Before the unit: who sees the last one of a draw finds what all of them took.
        meter.add(num_tokens=num_tokens, work_seconds=time.monotonic() - began)
        write_solutions(task.path, solutions, dtype)
    progress.write()


def _tasks(draw: dict[str, Any]) -> list[_Task]:
    folder = Path(draw["folder"])
    request = request_from_json(read_json(folder / "request.json"))
    units = plan_units(len(request.problems), request.params.num_samples, request.unit_size)
    return [
        _Task(draw["policy"], request, units[number], folder, unit_path(folder, number))
        for number in draw["units"]
    ]


def _load_sampler(
    model: dict[str, Any], path: str, requests: Sequence[DrawRequest], progress: Progress
) -> Sampler:
    """Return a policy's engine, once all that it will be asked for is known to fit."""
    policy = load_policy(
        path,
        dtype=model["dtype"],
        revision=model["revision"],
        trust_remote_code=model["trust_remote_code"],
    )
    for request in {request.name: request for request in requests}.values():
        refuse_long_prompts(policy, request)
    return make_sampler(policy, model["attn_implementation"], progress.observe)
