"""metrics.jsonl: every point once, whatever was killed in between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rest_em.ledger import Ledger, Stage
from rest_em.points import FinishedStages, Steps
from rest_em.storage import append_lines, read_lines


def measured(pass_at_1: float | None) -> dict[str, Any]:
    figure = {"value": pass_at_1}
    return {"macro": None, "overall": {"pass_at": {"1": figure}, "majority_at": {"8": {"value": 0.5}}}}


def figures(folder: Path) -> dict[str, dict[str, Any]]:
    """Return by stage what its line has beside when it was finished."""
    return {
        line.pop("stage"): {key: value for key, value in line.items() if key != "finished"}
        for line in read_lines(folder / "metrics.jsonl")
    }


def test_a_finished_stage_has_a_line_with_its_figures(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, tell=FinishedStages(tmp_path).write)
    counts = {"num_solutions": 9, "num_unscorable": 1, "num_correct": 2, "num_solved": 1, "num_problems": 3}
    results: dict[str, dict[str, Any]] = {
        "iteration-00/prompt": {"chosen": "bare", "validation": {"shown": 0.1, "bare": 0.3}},
        "iteration-00/evals/test/metrics": measured(0.25),
        "iteration-01/samples": {"usage": None},
        "iteration-01/verdicts": counts,
        "iteration-01/dataset": counts | {"num_distinct": 2, "num_kept": 1},
        "iteration-01/policy": {"chosen": 1, "validation": [0.3, 0.5], "verdicts": {}},
        "iteration-01/evals/test/metrics": measured(0.75),
        "iteration-01/evals/train/metrics": measured(1.0),
        "iteration-02/evals/test/metrics": measured(None),
    }
    for name, result in results.items():
        ledger.append(Stage(name, {}), result, seconds=2.0)
    assert figures(tmp_path) == {
        name: {"seconds": 2.0} | expected
        for name, expected in {
            "iteration-00/prompt": {"scores": [0.3], "chosen": 0},
            "iteration-00/evals/test/metrics": {"pass@1": 0.25, "maj@8": 0.5},
            "iteration-01/samples": {},
            "iteration-01/verdicts": {"success_rate": 0.25, "coverage": 1 / 3},
            "iteration-01/dataset": {"num_distinct": 2, "num_kept": 1},
            "iteration-01/policy": {"scores": [0.3, 0.5], "chosen": 1},
            "iteration-01/evals/test/metrics": {"pass@1": 0.75, "maj@8": 0.5, "gain": 0.5},
            "iteration-01/evals/train/metrics": {"pass@1": 1.0, "maj@8": 0.5, "gain": None, "gap": 0.25},
            "iteration-02/evals/test/metrics": {"pass@1": None, "maj@8": 0.5, "gain": None},
        }.items()
    }


def test_a_line_that_a_kill_has_left_out_or_torn_is_written_and_no_line_twice(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    ledger = Ledger(tmp_path, tell=FinishedStages(tmp_path).write)
    for number in range(3):
        ledger.append(Stage(f"iteration-01/validation/epoch-{number}/verdicts", {}), {}, seconds=number)
    whole = metrics.read_bytes()
    for torn in (whole[:-1], whole[: whole.index(b"\n") + 20], b"", whole):
        metrics.write_bytes(torn)
        for _ in range(2):
            FinishedStages(tmp_path).catch_up(Ledger(tmp_path).records)
            assert metrics.read_bytes() == whole


def test_a_step_that_is_computed_again_is_written_once(tmp_path: Path) -> None:
    stage, metrics = "iteration-01/training", tmp_path / "metrics.jsonl"
    source = tmp_path / stage / "steps.jsonl"

    def tell(*steps: int) -> None:
        append_lines(source, [{"step": step, "loss": float(step)} for step in steps])

    first = Steps(tmp_path, stage, "aa")
    first.copy()
    tell(1, 2)
    first.copy()
    tell(3)
    with source.open("ab") as file:
        file.write(b'{"step": 4, "lo')
    first.copy()
    assert [line["step"] for line in read_lines(metrics)] == [1, 2, 3]
    tell(2, 3, 4)  # goes on from a checkpoint after step 1; the torn line is cut off
    resumed = Steps(tmp_path, stage, "aa")
    resumed.copy()
    resumed.copy()
    assert [line["step"] for line in read_lines(metrics)] == [1, 2, 3, 4]
    source.unlink()
    tell(1, 2)
    Steps(tmp_path, stage, "bb").copy()  # of another D_1
    assert [(line["fingerprint"], line["step"]) for line in read_lines(metrics)[4:]] == [("bb", 1), ("bb", 2)]
