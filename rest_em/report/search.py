"""What a search has found, as people read it: the front, what was rejected and why, what would help."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from rest_em.planner.candidates import Candidate, offload_of
from rest_em.planner.plan import Plan
from rest_em.planner.search import Change, Choice, Rejection, Search, Way, devices, host_bytes
from rest_em.planner.training import TrainingSetup
from rest_em.report.cells import table_of
from rest_em.report.plan import dollars, duration, gib

MAX_BEYOND = 3
"""Rows of what is not as the recipe asks."""


def print_search(found: Search, plan: Plan, console: Console) -> None:
    """Print a search."""
    table = table_of(
        f"searched: {found.num_sampling:,} E-steps and {found.num_training:,} M-steps, "
        f"{found.num_pairs:,} configurations; the fastest of each number of devices that no other beats"
    )
    for name in ("", "devices", "E-step", "M-step", "spare", "time", "cost"):
        table.add_column(name, justify="right" if name in ("spare", "time", "cost") else "left")
    for number, one in enumerate(found.front):
        _add(table, plan, one, "recommended" if number == 0 else "")
    for one in found.beyond[:MAX_BEYOND]:
        _add(table, plan, one, "not as asked")
    if table.row_count:
        console.print(table)
    for line in _lines(found, plan):
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def _add(table: Table, plan: Plan, one: Choice, mark: str) -> None:
    drawing, learning = one.sampling.setup, one.training.setup
    parallel = f", TP {drawing.tensor_parallel}" if drawing.tensor_parallel > 1 else ""
    dtype = {2: "16 bit", 4: "32 bit"}[drawing.dtype_bytes]
    parts = [
        learning.strategy,
        _offload(plan, one.training),
        learning.method,
        "" if "optim" not in one.training.altered else learning.optim,
        f"{learning.num_rows} a micro-batch",
        "checkpointing" if learning.is_checkpointed else "",
    ]
    table.add_row(
        mark,
        devices(one.cluster),
        f"{drawing.engine}{parallel}, {dtype}, {drawing.max_rows} rows",
        ", ".join(filter(None, parts)),
        gib(min(one.sampling.spare_bytes, one.training.spare_bytes)),
        duration(one.seconds),
        dollars(one.dollars),
    )


def _lines(found: Search, plan: Plan) -> list[str]:
    lines = []
    for note in dict.fromkeys(note for one in found.beyond[:MAX_BEYOND] for note in one.notes):
        lines.append(f"not as asked: {note}")
    if found.recommended is None:
        lines.append("nothing that rest_em can run as the recipe asks fits on these devices")
    lines += [_rejected(one) for one in found.rejections]
    for phase in ("sampling", "training"):
        ways = [one for one in found.ways if one.phase == phase]
        if ways:
            lines.append(f"{phase} as asked does not fit; it would with, the cheapest first:")
            lines += [_way(plan, one) for one in ways]
    failing = {"sampling": plan.sampling.spare_bytes, "training": plan.training.memory.spare_bytes}
    helped = {one.phase for one in found.ways}
    for phase, spare in failing.items():
        if spare < 0 and phase not in helped:
            lines.append(
                f"{phase} as asked does not fit, and no change that rest_em can run helps on these devices; "
                "take more of them (--num-gpus), larger ones (--gpu) or a smaller model"
            )
    return lines


def _rejected(one: Rejection) -> str:
    took = duration(one.candidate.seconds)
    return (
        f"rejected: {one.phase} with {_told(one.changes)} would take {took}; at the "
        f"instant {one.instant!r} {gib(one.over_bytes)} are lacking, most of it {one.component}, "
        f"{gib(one.component_bytes)}"
    )


def _offload(plan: Plan, one: Candidate[TrainingSetup]) -> str:
    """Return what is offloaded and what that takes of a node's memory, at which the search does not look."""
    offload = offload_of(one.setup)
    return (
        "" if offload == "none" else f"offload {offload} ({gib(host_bytes(plan, one))} of host memory a node)"
    )


def _way(plan: Plan, one: Way) -> str:
    found = one.candidate
    offload = _offload(plan, found) if one.phase == "training" else ""
    host = f"; {offload}" if offload else ""
    altered = "; this changes what is drawn or learned" if found.altered else ""
    spare = f"{gib(found.spare_bytes)} spare{host}{altered}"
    return f"  {_told(one.changes)} ({duration(found.seconds)} a phase, {spare})"


def _told(changes: Sequence[Change]) -> str:
    return ", ".join(f"{one.name} {one.after}" for one in changes) or "what was asked"
