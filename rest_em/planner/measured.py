"""What stages took beside what was predicted of them, as `plan.json` keeps it in the run folder.

What was predicted is read as JSON: of a stage that is finished, the prediction of its own launch stays.
Making a prediction is left to `rest_em.planning`, measuring to `rest_em.usage`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rest_em.storage import read_json
from rest_em.usage import MeasuredStage

PLAN = "plan.json"
"""Below the run folder."""
PHASES = {"samples": "sampling", "training": "training"}
"""The end of a stage's name -> the phase of a plan."""


def phase_of(stage: str) -> str | None:
    """Return the phase of a plan that a stage is; None for draws that only measure, which are not predicted.

    >>> phase_of("iteration-01/samples"), phase_of("iteration-01/evals/test/greedy/samples")
    ('sampling', None)
    """
    found = re.fullmatch(r"iteration-\d+/(samples|training)", stage)
    return found and PHASES[found[1]]


def read_plan(folder: Path) -> dict[str, Any] | None:
    """Return the `plan.json` of a run folder; None where there is none, or a file that is no longer one.

    A run does not depend on it, so that whatever somebody has made of the file stops nothing.
    """
    try:
        found = read_json(folder / PLAN)
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return None
    if not isinstance(found, dict) or not isinstance(found.get("measured"), list):
        return None
    return found


def beside(plan: Mapping[str, Any] | None, stages: Iterable[MeasuredStage]) -> list[dict[str, Any]]:
    """Return what each stage took, and what had been predicted of it.

    Args:
        plan: what `read_plan` gives. A stage that it has already keeps its prediction; any other gets that
            of `plan["predicted"]`, as from `to_json`.
    """
    plan = plan or {}
    known = [one for one in plan.get("measured", []) if isinstance(one, dict)]
    return [_beside(stage, known, plan.get("predicted") or {}) for stage in stages]


def _beside(
    stage: MeasuredStage, known: Iterable[dict[str, Any]], predicted: Mapping[str, Any]
) -> dict[str, Any]:
    usage = stage.usage
    measured: dict[str, Any] = {
        "name": stage.name,
        "kind": stage.kind,
        "iteration": stage.iteration,
        "device": usage.device,
        "num_ranks": usage.num_ranks,
        "peak_bytes": usage.peak_bytes,
        "peak_reserved_bytes": usage.peak_reserved_bytes,
        "tokens_per_second": usage.tokens_per_second,
        "seconds": usage.seconds,
    }
    for one in known:
        if measured.items() <= one.items():  # else the stage has been done again
            return one
    peak, speed = _prediction(stage, predicted)
    return measured | {
        "predicted_peak_bytes": peak,
        "peak_ratio": usage.peak_bytes / peak if usage.peak_bytes and peak else None,
        "predicted_tokens_per_second": speed,
    }


def _prediction(stage: MeasuredStage, predicted: Mapping[str, Any]) -> tuple[int | None, float | None]:
    """Return the peak of the same kind as `Usage.peak_bytes`, and tokens a second; None where there is none.

    On a GPU the peak is what the framework allocates. On the CPU it is resident memory, so that the process
    counts, the context of the plan.
    """
    phase = phase_of(stage.name)
    is_cpu = stage.usage.device == "cpu"
    if phase is None or not predicted or is_cpu != (predicted["gpu"] == "cpu"):
        return None, None
    values = predicted[phase]
    return values["peak_bytes"] + (values["outside"]["context"] if is_cpu else 0), values["tokens_per_second"]
