"""`metrics.jsonl`: everything that is plotted, one line a point; only rank 0's process appends to it.

A line tells of a work unit that was sampled (`drawing` writes it), of an optimiser step, or of a finished
stage. What the ledger has is taken from there. Feeding trackers with the lines is left to `tracking`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rest_em.storage import append_line, append_lines, read_lines, read_new_lines
from rest_em.usage import Usage

METRICS = "metrics.jsonl"
"""Below the run folder."""
STEPS = "steps.jsonl"
"""Below the folder of an M-step, whose process on rank 0 appends a line at each optimiser step."""


class FinishedStages:
    """Gives each finished stage its line, once, however often the run is interrupted."""

    def __init__(self, folder: Path) -> None:
        """Read what is there.

        Args:
            folder: the run's.
        """
        self._path = folder / METRICS
        self._lines = {line["stage"]: line for line in read_lines(self._path) if "finished" in line}

    def catch_up(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Write the lines that a kill, between the ledger and them, has left out.

        Args:
            records: the ledger's, oldest first.
        """
        for record in records:
            if self._lines.get(record["stage"], {}).get("finished") != record["finished"]:
                self.write(record)

    def write(self, record: Mapping[str, Any]) -> None:
        """Write the line of a stage that has been finished now: seconds, and figures by their names."""
        line = {"stage": record["stage"], "finished": record["finished"], "seconds": record["seconds"]}
        line |= _usage_figures(record["result"]) | self._figures(record["stage"], record["result"])
        append_line(self._path, line)
        self._lines[record["stage"]] = line

    def _figures(self, stage: str, result: Mapping[str, Any]) -> dict[str, Any]:
        iteration, name = stage.split("/", 1)
        if name == "verdicts":
            num_judged = result["num_solutions"] - result["num_unscorable"]
            return {
                "success_rate": _share(result["num_correct"], num_judged),
                "coverage": _share(result["num_solved"], result["num_problems"]),
            }
        if name == "dataset":
            return {"num_distinct": result["num_distinct"], "num_kept": result["num_kept"]}
        if name == "prompt":
            return {"scores": [result["validation"][result["chosen"]]], "chosen": 0}
        if name == "policy":
            return {"scores": result["validation"], "chosen": result["chosen"]}
        if re.fullmatch(r"evals/[^/]+/metrics", name):
            return self._measured(iteration, name, result)
        return {}

    def _measured(self, iteration: str, name: str, result: Mapping[str, Any]) -> dict[str, Any]:
        """Return a policy's figures on a set of problems, and how far they are from others of the run."""
        main = result["macro"] or result["overall"]  # what people quote: see `Evaluation.main`
        figures: dict[str, Any] = {
            f"{name}@{k}": one["value"]
            for name, key in (("pass", "pass_at"), ("maj", "majority_at"))
            for k, one in main[key].items()
        }
        here = figures.get("pass@1")
        others = {"gain": f"iteration-00/{name}"} if iteration != "iteration-00" else {}
        if name == "evals/train/metrics":
            others["gap"] = f"{iteration}/evals/test/metrics"
        for key, other in others.items():
            there = self._lines.get(other, {}).get("pass@1")
            figures[key] = None if here is None or there is None else here - there
        return figures


def _usage_figures(result: Mapping[str, Any]) -> dict[str, Any]:
    usage = result.get("usage")
    return {} if usage is None else {"peak_bytes": Usage(**usage).peak_bytes}


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


class Steps:
    """Copies what an M-step's process tells of each optimiser step into `metrics.jsonl`, each step once.

    A step that is computed again, since the M-step was killed after it, is known by the M-step's fingerprint.
    """

    def __init__(self, folder: Path, stage: str, fingerprint: str) -> None:
        """Look how far an interrupted M-step was.

        Args:
            folder: the run's.
            stage: the M-step's name in the ledger.
            fingerprint: of its inputs and of all before it.
        """
        self._path, self._source = folder / METRICS, folder / stage / STEPS
        self._identity = {"stage": stage, "fingerprint": fingerprint}
        written = (
            line["step"]
            for line in read_lines(self._path)
            if "step" in line and self._identity.items() <= line.items()
        )
        self._last_step = max(written, default=0)
        self._read_bytes = 0

    def copy(self) -> None:
        """Copy the steps that have been told of since."""
        told, self._read_bytes = read_new_lines(self._source, self._read_bytes)
        new = []
        for line in told:
            if line["step"] > self._last_step:
                self._last_step = line["step"]
                new.append(self._identity | line)
        if new:
            append_lines(self._path, new)
