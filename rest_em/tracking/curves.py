"""What the lines of `metrics.jsonl` stand for on the plots of a tracker: names, values and x-axes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

AXES = {
    "sample": "sample/unit",
    "validate": "validate/unit",
    "measure": "measure/unit",
    "train": "train/step",
    "validation": "validation/epoch",
    "e_step": "iteration",
    "policy": "iteration",
    "eval": "iteration",
    "seconds": "iteration",
    "peak_bytes": "iteration",
}
"""What a curve's name begins with -> what its x-axis counts, over all iterations."""
SPEED_SECONDS = 1.0
"""A stage that has sampled no longer than this has no speed yet."""
STEP_VALUES = ("loss", "learning_rate", "gradient_norm", "epoch")
"""What is plotted of an optimiser step."""

_Values = tuple[str, int, Mapping[str, float | None]]
"""What the names begin with, the place on the x-axis, and the values by name."""


@dataclass(frozen=True, slots=True)
class Point:
    """Values at one place of an x-axis.

    Example:
        Point(number=17, axis="train/step", x=12, values={"train/loss": 0.7})
    """

    number: int
    """Which of all points of the run, from 1."""
    axis: str
    x: int
    """Counted over all iterations."""
    values: Mapping[str, float]


class Curves:
    """Gives the points of each line; where they lie follows from the lines before it, and from nothing else.

    >>> curves = Curves()
    >>> step = {"stage": "iteration-01/training", "step": 3, "epoch": 1, "learning_rate": 0.1}
    >>> curves.points(step | {"loss": 0.5, "gradient_norm": None})[0].values
    {'train/loss': 0.5, 'train/learning_rate': 0.1, 'train/epoch': 1.0}
    >>> step = {"stage": "iteration-02/training", "step": 1, "epoch": 0.5, "learning_rate": 0.1}
    >>> curves.points(step | {"loss": 0.4, "gradient_norm": None})[0].x
    4
    """

    def __init__(self) -> None:
        """Stand before the first line."""
        self._num_points = 0
        self._num_units: Counter[str] = Counter()
        self._tokens: Counter[str] = Counter()
        self._seconds: dict[str, float] = {}
        self._steps: dict[int, int] = {}
        self._epochs: dict[int, int] = {}

    def points(self, line: Mapping[str, Any]) -> list[Point]:
        """Return the points of the next line."""
        if "unit" in line:
            found = [self._unit(line)]
        elif "step" in line:
            found = [self._step(line)]
        else:
            found = self._finished(line)
        points = []
        for prefix, x, values in found:
            known = {name: float(value) for name, value in values.items() if value is not None}
            if known:
                self._num_points += 1
                points.append(Point(self._num_points, AXES[prefix], x, known))
        return points

    def _unit(self, line: Mapping[str, Any]) -> _Values:
        stage = line["stage"]
        kind = {"samples": "sample", "validation": "validate"}.get(stage.split("/")[1], "measure")
        self._num_units[kind] += 1
        self._tokens[stage] += line["num_tokens"]
        # The run folder is looked at now and then, and units that are seen at once have no time of their own:
        # the speed is that of the stage so far.
        seconds = self._seconds[stage] = self._seconds.get(stage, 0.0) + line["seconds"]
        values = {
            f"{kind}/tokens_per_second": self._tokens[stage] / seconds if seconds > SPEED_SECONDS else None,
            f"{kind}/tokens_per_solution": line["num_tokens"] / line["num_solutions"],
        }
        return kind, self._num_units[kind], values

    def _step(self, line: Mapping[str, Any]) -> _Values:
        iteration = _iteration(line["stage"])
        self._steps[iteration] = max(line["step"], self._steps.get(iteration, 0))
        x = _before(self._steps, iteration) + line["step"]
        return "train", x, {f"train/{name}": line[name] for name in STEP_VALUES}

    def _finished(self, line: Mapping[str, Any]) -> list[_Values]:
        iteration, name = _iteration(line["stage"]), line["stage"].split("/", 1)[1]
        taken = {key: line[key] for key in ("seconds", "peak_bytes") if key in line}
        figures = {key: line[key] for key in line.keys() - taken.keys() - {"stage", "finished"}}
        points: list[_Values] = [(key, iteration, {f"{key}/{name}": value}) for key, value in taken.items()]
        if "scores" in figures:
            points += self._validation(iteration, figures["scores"], figures["chosen"])
        elif figures:
            kind, _, measured = name.partition("/")
            prefix = f"eval/{measured.split('/')[0]}" if kind == "evals" else "e_step"
            values = {f"{prefix}/{key}": value for key, value in sorted(figures.items())}
            points.append((prefix.split("/", maxsplit=1)[0], iteration, values))
        return points

    def _validation(self, iteration: int, scores: list[float], chosen: int) -> list[_Values]:
        """Return pass@1 on D_val of each checkpoint, of the base once in a run, and of the chosen one."""
        self._epochs[iteration] = len(scores) - 1
        before = _before(self._epochs, iteration)
        points: list[_Values] = [
            ("validation", before + epoch, {"validation/pass@1": score})
            for epoch, score in enumerate(scores)
            if epoch or not iteration
        ]
        values = {"policy/validation/pass@1": scores[chosen], "policy/epoch": chosen}
        return [*points, ("policy", iteration, values)]


def _iteration(stage: str) -> int:
    return int(stage.split("/", 1)[0].removeprefix("iteration-"))


def _before(counts: Mapping[int, int], iteration: int) -> int:
    """Return how many there were in the iterations before one."""
    return sum(number for other, number in counts.items() if other < iteration)
