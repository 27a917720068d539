"""Where each figure of a plan comes from: its formula, its source, and how far to trust it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import yaml

from rest_em.planner.plan import Plan

FILE = Path(__file__).with_name("provenance.yaml")
"""The formulas and sources, by phase and name."""


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a figure comes from.

    Example:
        Provenance("training", "fp32 masters", 4_000_000, "4N/G", "deepspeed 0.19.8, …", "measured")
    """

    phase: str
    """`training`, `sampling`, `outside` (of what the framework allocates) or `times`."""
    name: str
    value: float | None
    """Bytes, seconds or dollars; None where it is not known."""
    formula: str
    source: str
    confidence: str
    """measured, traced, read, reported or inferred; the file says what each means."""


def explain(plan: Plan) -> list[Provenance]:
    """Return where the figures of a plan's binding instants, its times and its money come from."""
    known = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    sampling, training, failures = plan.sampling, plan.training, plan.failures
    saved = plan.checkpointed_failures
    speed, time = sampling.speed, training.time
    rows: list[tuple[str, str, float | None]] = [
        *_rows("sampling", sampling.components.items()),
        *_rows("training", training.memory.peak.components.items()),
        *_rows("outside", training.memory.outside.items()),
        ("times", "sampling seconds", speed.total_seconds if speed else None),
        ("times", "training seconds", time.seconds if time else None),
        ("times", "dollars", plan.dollars(plan.seconds)),
        ("times", "failures", failures.mtbf_seconds if failures else None),
        ("times", "checkpoint interval", saved.checkpoint_interval_seconds if saved else None),
        ("times", "examples", training.num_examples),
        ("times", "largest tensor parallel", plan.largest_tensor_parallel),
    ]
    return [Provenance(phase, name, value, **known[phase][name]) for phase, name, value in rows]


def _rows(phase: str, items: Iterable[tuple[str, int]]) -> list[tuple[str, str, float | None]]:
    return [(phase, name, size) for name, size in items if size]
