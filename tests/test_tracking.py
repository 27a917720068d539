"""Trackers: one run, every point of metrics.jsonl once, and a failing one stops nothing."""

from __future__ import annotations

import functools
import importlib.util
import shutil
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, get_args

import pytest
from watched_run import plotted, points_of_lines

from rest_em.errors import RecipeError
from rest_em.recipe import Recipe, TrackingSection, check_trackers, load_recipe
from rest_em.storage import append_lines, read_json
from rest_em.tracking import TRACKERS, Curves, Tracking

RECIPE = """
model: {name_or_path: org/base}
problems: {train: {path: train.jsonl}, test: {path: test.jsonl}}
prompt: {template: "{{ question }}"}
reward: number
sampling: {max_new_tokens: 8}
tracking:
  report_to: [tensorboard, wandb]
"""


def unit(stage: str, number: int) -> dict[str, Any]:
    return {"stage": stage, "unit": number, "num_solutions": 4, "num_tokens": 20, "seconds": 2.0}


def step(iteration: int, number: int) -> dict[str, Any]:
    values = {"loss": 0.5, "learning_rate": 1e-3, "gradient_norm": None, "epoch": 0.5}
    return {"stage": f"iteration-{iteration:02d}/training", "fingerprint": "aa", "step": number} | values


def finished(stage: str, **figures: Any) -> dict[str, Any]:
    return {"stage": stage, "finished": "2026-01-01T00:00:00Z", "seconds": 1.0} | figures


def test_x_axes_count_on_over_the_iterations() -> None:
    curves = Curves()
    lines = [
        finished("iteration-00/prompt", scores=[0.2], chosen=0),
        unit("iteration-00/evals/test/greedy/samples", 0),
        unit("iteration-01/samples", 0),
        step(1, 1),
        step(1, 2),
        finished("iteration-01/policy", scores=[0.2, 0.4, 0.3], chosen=1),
        unit("iteration-02/samples", 0),
        step(2, 1),
        finished("iteration-02/policy", scores=[0.2, 0.5, 0.6], chosen=2),
        finished("iteration-02/evals/gsm8k/metrics", **{"pass@1": 0.5, "gain": None}),
    ]
    points = [point for line in lines for point in curves.points(line)]
    assert [point.number for point in points] == list(range(1, len(points) + 1))
    found = {(name, point.axis, point.x): value for point in points for name, value in point.values.items()}
    assert not any("gradient_norm" in name or "gain" in name for name, _, _ in found)
    places = {name: [key[1:] for key in found if key[0] == name] for name, _, _ in found}
    assert places["train/loss"] == [("train/step", x) for x in (1, 2, 3)]
    assert places["sample/tokens_per_second"] == [("sample/unit", 1), ("sample/unit", 2)]
    assert found["sample/tokens_per_second", "sample/unit", 1] == 10.0
    assert found["measure/tokens_per_solution", "measure/unit", 1] == 5.0
    curve = [(x, value) for (name, _, x), value in found.items() if name == "validation/pass@1"]
    assert curve == [(0, 0.2), (1, 0.4), (2, 0.3), (3, 0.5), (4, 0.6)]
    assert found["policy/validation/pass@1", "iteration", 2] == 0.6
    assert found["eval/gsm8k/pass@1", "iteration", 2] == 0.5
    assert found["seconds/policy", "iteration", 1] == 1.0


def track(folder: Path) -> list[str]:
    """Feed what is there, as a run does that has nothing else to do; return what people are told."""
    said: list[str] = []
    with Tracking(folder, said.append) as tracking:
        tracking.start(["tensorboard"], project="rest_em", recipe={"seed": 0})
    return said


def test_resumes_go_on_in_one_tracker_run_and_a_torn_line_waits(tmp_path: Path) -> None:
    metrics, notes = tmp_path / "metrics.jsonl", tmp_path / "tracking" / "tensorboard.json"
    append_lines(metrics, [step(1, 1), step(1, 2)])
    with metrics.open("ab") as file:
        file.write(b'{"stage": "iteration-01/training", "st')
    assert track(tmp_path) == [f"tracking: tensorboard --logdir {tmp_path}/tracking/tensorboard"]
    first = read_json(notes)
    assert first["lines"] == 2
    assert track(tmp_path) == []  # no tracker is opened for nothing
    append_lines(metrics, [step(1, 3), unit("iteration-02/samples", 0), step(2, 1)])
    track(tmp_path)
    assert read_json(notes) == {**first, "lines": 5}
    expected = points_of_lines(metrics)
    assert expected["train/loss", 4] == 1
    assert plotted(tmp_path) == expected
    copied = tmp_path.with_name("copied")  # as docs/comparisons.md has it
    shutil.copytree(tmp_path, copied)
    track(copied)
    assert read_json(copied / "tracking" / "tensorboard.json")["id"] != first["id"]
    assert plotted(copied) == expected


def test_a_tracker_that_fails_is_told_once_and_is_fed_later(tmp_path: Path) -> None:
    append_lines(tmp_path / "metrics.jsonl", [step(1, number) for number in range(1, 4)])
    in_the_way = tmp_path / "tracking" / "tensorboard"
    in_the_way.parent.mkdir()
    in_the_way.touch()
    failed, left = track(tmp_path)
    assert failed.startswith("tracking: tensorboard failed: FileExistsError: ")
    assert failed.endswith(
        "The run goes on, and all is kept in metrics.jsonl; tensorboard is tried again every 60 s and at the "
        "end"
    )
    assert left == (
        f"tracking: tensorboard may not have taken all of {tmp_path}/metrics.jsonl yet; "
        "the same command goes on with it"
    )
    in_the_way.unlink()
    track(tmp_path)
    assert plotted(tmp_path) == points_of_lines(tmp_path / "metrics.jsonl")


def test_a_tracker_that_is_not_installed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(RECIPE)
    (tmp_path / "wandb").mkdir()  # as wandb makes them: no package
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard" / "__init__.py").touch()
    only_here = functools.partial(PathFinder.find_spec, path=[str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", only_here)
    with pytest.raises(RecipeError) as told:
        check_trackers(load_recipe(path, []))
    assert str(told.value) == (
        f"{path}:8: tracking.report_to names wandb, which is not installed; pip install wandb, or "
        "leave it out: metrics.jsonl is written all the same"
    )


def test_a_recipe_names_the_trackers_that_there_are() -> None:
    names = get_args(get_args(TrackingSection.model_fields["report_to"].annotation)[0])
    assert names == tuple(TRACKERS)
    assert Recipe.model_fields["tracking"].default.report_to == ()
