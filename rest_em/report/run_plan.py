"""A run's plan in its own report: a line before the launch, and a table beside what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table

from rest_em.planner.measured import phase_of
from rest_em.planner.plan import Plan, certain_failures
from rest_em.report.cells import ABSENT, table_of
from rest_em.report.plan import duration, gib


def plan_lines(plan: Plan) -> Iterator[str]:
    """Yield what is told before a launch: both peaks against the device, the time, and what may not fit."""
    sampling, memory, cluster = plan.sampling, plan.training.memory, plan.cluster
    took = {
        "sampling": sampling.peak_bytes + sum(sampling.outside.values()),
        "training": memory.peak.total_bytes + sum(memory.outside.values()),
    }
    iterations = f"{plan.num_iterations} iteration{'s' if plan.num_iterations > 1 else ''}"
    time = "" if plan.seconds is None else f"; {iterations} in about {duration(plan.seconds)}"
    yield (
        f"plan: {cluster.num_devices} x {cluster.gpu.name} with {gib(cluster.gpu.usable_bytes)} each; "
        f"sampling takes {gib(took['sampling'])} at its peak, training {gib(took['training'])}{time}"
    )
    certain = certain_failures(plan)  # of these the refusal tells, or --force
    for phase, spare in (("sampling", sampling.spare_bytes), ("training", memory.spare_bytes)):
        if spare < 0 and phase not in certain:
            yield f"plan: {phase} is not expected to fit; {gib(-spare)} are lacking"


def usage_tables(plan: Mapping[str, Any] | None) -> list[Table]:
    """Return the E-steps and M-steps, predicted beside measured; none where a run has no plan.

    Args:
        plan: `plan.json`.
    """
    rows = [one for one in (plan or {}).get("measured", []) if phase_of(one["name"])]
    if not rows:
        return []
    kind = "resident memory" if rows[-1]["device"] == "cpu" else "memory"
    table = table_of(f"{kind} of a rank and speed of all, predicted beside measured")
    table.add_column("iteration", justify="right")
    table.add_column("stage")
    for heading in (
        "peak predicted", "measured", "ratio", "tokens/s predicted", "measured",
    ):  # fmt: skip
        table.add_column(heading, justify="right")
    for one in rows:
        table.add_row(
            str(one["iteration"]),
            one["kind"],
            _gib(one["predicted_peak_bytes"]),
            _gib(one["peak_bytes"]),
            ABSENT if one["peak_ratio"] is None else f"{one['peak_ratio']:.2f}",
            _rate(one["predicted_tokens_per_second"]),
            _rate(one["tokens_per_second"]),
        )
    return [table]


def _gib(num_bytes: int | None) -> str:
    return ABSENT if num_bytes is None else gib(num_bytes)


def _rate(tokens_per_second: float | None) -> str:
    return ABSENT if tokens_per_second is None else f"{tokens_per_second:,.0f}"
