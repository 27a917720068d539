"""The run as a table: what the ledger says, nothing else."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rest_em.errors import RunFolderError
from rest_em.evaluation import Metrics, columns_of, summarize
from rest_em.ledger import Ledger, Stage, write_status
from rest_em.report.table import RunSummary, print_summary, summarize_run
from rest_em.types import GradedSolution, Solution, Verdict


def graded(problem_id: str, index: int, *, is_correct: bool) -> GradedSolution:
    solution = Solution(problem_id, index, 0, "4", token_ids=(5,), finish_reason="eos")
    verdict = Verdict.CORRECT if is_correct else Verdict.INCORRECT
    return GradedSolution(solution, verdict, float(is_correct), "4" if is_correct else "5", "")


def evaluation(num_correct: int) -> dict[str, Any]:
    """Return a measurement of four problems, of which the first so many are solved, each time."""
    greedy = [graded(f"p{k}", 0, is_correct=k < num_correct) for k in range(4)]
    sampled = [graded(f"p{k}", index, is_correct=k < num_correct) for k in range(4) for index in range(2)]
    measured = summarize(columns_of(greedy), columns_of(sampled), Metrics((1, 2), (2,)))
    value: dict[str, Any] = json.loads(json.dumps(measured.to_json()))
    return value


RESULTS: dict[str, tuple[dict[str, Any], float]] = {
    "iteration-00/validation/two-shot/samples": ({}, 2.0),
    "iteration-00/prompt": ({"chosen": "two-shot", "validation": {"two-shot": 0.25, "bare": 0.0}}, 0.0),
    "iteration-00/evals/test/greedy/samples": ({}, 3.0),
    "iteration-00/evals/test/metrics": (evaluation(1), 0.0),
    "iteration-01/samples": ({"num_solutions": 3200, "num_truncated": 16, "num_tokens": 70000}, 60.0),
    "iteration-01/verdicts": (
        {"num_problems": 400, "num_solutions": 3200, "num_correct": 400, "num_solved": 150,
         "num_unscorable": 0, "num_without_answer": 64},
        7.0,
    ),
    "iteration-01/dataset": ({"num_distinct": 300, "num_kept": 250}, 0.5),
    "iteration-01/training": ({}, 80.0),
    "iteration-01/validation/epoch-1/samples": ({}, 4.0),
    "iteration-01/policy": ({"chosen": 1, "validation": [0.25, 0.5]}, 0.0),
    "iteration-01/evals/test/sampled/samples": ({}, 5.0),
    "iteration-01/evals/test/metrics": (evaluation(3), 0.0),
}  # fmt: skip


def run_of(folder: Path, *, num_stages: int = len(RESULTS), state: str = "finished") -> RunSummary:
    """Return the summary of a run whose first stages are done."""
    ledger = Ledger(folder)
    for name, (result, seconds) in list(RESULTS.items())[:num_stages]:
        inputs = {"confidence": 0.95} if name.endswith("metrics") else {}
        ledger.append(Stage(name, inputs), result, seconds=seconds)
    write_status(folder, state, "it was 5 o'clock [tea]" if state != "finished" else "")
    return summarize_run(folder)


def printed(summary: RunSummary, width: int = 132) -> str:
    output = io.StringIO()
    print_summary(summary, Console(file=output, width=width))
    return output.getvalue()


def test_a_narrow_terminal_breaks_no_interval(tmp_path: Path) -> None:
    text = printed(run_of(tmp_path), width=80)
    wide = printed(run_of(tmp_path / "wide"))
    assert max(map(len, text.splitlines())) <= 80
    for interval in re.findall(r"\[.*?\]", wide):
        assert interval in text
    assert "truncated" in text


def test_json_has_the_measurements_of_each_iteration(tmp_path: Path) -> None:
    base, first = run_of(tmp_path).to_json()["iterations"]
    assert (base["iteration"], first["iteration"]) == (0, 1)
    assert (base["pass_at"]["1"]["value"], first["pass_at"]["1"]["value"]) == (0.25, 0.75)
    assert first["pass_at"]["2"]["value"] == first["majority_at"]["2"]["value"] == 0.75
    assert base["gain"] is None
    assert first["gain"]["value"] == 0.5
    assert first["gain"]["low"] < 0.5 < first["gain"]["high"]
    assert (first["num_sampled"], first["num_correct"], first["num_kept"]) == (3200, 400, 250)
    assert (first["success_rate"], first["coverage"]) == (0.125, 0.375)
    assert (first["no_answer"], first["truncated"]) == (0.02, 0.005)
    assert first["seconds"] == {
        "sample": 60.0, "judge": 7.0, "train": 80.0, "validate": 4.0, "measure": 5.0
    }  # fmt: skip
    assert (base["num_sampled"], base["success_rate"]) == (0, None)


def test_the_table_shows_what_the_json_has(tmp_path: Path) -> None:
    text = printed(run_of(tmp_path))
    rows = [line.split() for line in text.splitlines()]
    assert "two-shot (pass@1 on validation: two-shot 25.0, bare 0.0)" in text
    assert "4 test problems" in text
    (base,) = [row for row in rows if row[:3] == ["0", "(base)", "25.0"]]
    assert base[5] == "-"
    (first,) = [row for row in rows if row[:2] == ["1", "75.0"]]
    assert first[4] == "+50.0"
    (sampling,) = [row for row in rows if row[:2] == ["1", "3,200"]]
    assert sampling == ["1", "3,200", "400", "12.5", "37.5", "300", "250", "2.0", "0.5", "70,000"]
    (times,) = [row for row in rows if row[:2] == ["1", "60"]]
    assert times == ["1", "60", "7", "80", "4", "5", "156", "1", "25.0", "50.0"]
    assert rows[-2][:7] == ["all", "-", "-", "-", "-", "-", "161"]
    assert text.splitlines()[-1] == "best on validation: iteration 1"


def test_what_could_not_be_judged_is_neither_wrong_nor_without_an_answer(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    verdicts = {"num_problems": 4, "num_solutions": 10, "num_correct": 4, "num_solved": 2}
    verdicts |= {"num_unscorable": 2, "num_without_answer": 1}
    ledger.append(Stage("iteration-01/verdicts", {}), verdicts, seconds=0.0)
    write_status(tmp_path, "finished")
    summary = summarize_run(tmp_path)
    (first,) = summary.to_json()["iterations"]
    assert (first["num_unscorable"], first["unscorable"]) == (2, 0.2)
    assert (first["success_rate"], first["no_answer"]) == (0.5, 0.125)
    rows = [line.split() for line in printed(summary).splitlines()]
    assert ["1", "10", "4", "50.0", "50.0", "0", "0", "12.5", "0.0", "20.0", "0"] in rows


def test_iterations_may_be_measured_with_different_k(tmp_path: Path) -> None:
    run_of(tmp_path)
    other = evaluation(3)
    other["overall"]["pass_at"].pop("2")
    other["overall"]["majority_at"].pop("2")
    Ledger(tmp_path).append(
        Stage("iteration-02/evals/test/metrics", {"confidence": 0.95}), other, seconds=0.0
    )
    rows = [line.split() for line in printed(summarize_run(tmp_path)).splitlines()]
    (second,) = [row for row in rows if row[:2] == ["2", "75.0"]]
    assert second.count("-") == 2


def test_a_run_that_was_killed_is_not_called_running(tmp_path: Path) -> None:
    write_status(tmp_path, "running", "process 7")
    assert printed(summarize_run(tmp_path)).splitlines()[:2] == [
        f"{tmp_path.name}: interrupted",
        "process 7 was killed; the same command goes on from here",
    ]


@pytest.mark.parametrize("num_stages", range(len(RESULTS)))
def test_a_run_can_be_shown_at_any_moment(tmp_path: Path, num_stages: int) -> None:
    summary = run_of(tmp_path, num_stages=num_stages, state="running")
    json.dumps(summary.to_json(), allow_nan=False)
    assert "interrupted" in printed(summary)


def test_a_run_that_failed_says_why(tmp_path: Path) -> None:
    text = printed(run_of(tmp_path, num_stages=0, state="failed"))
    assert text.splitlines()[1:] == ["it was 5 o'clock [tea]", "nothing has been measured yet"]


@pytest.mark.parametrize("width", [80, 132])
def test_of_a_model_that_was_only_measured_no_empty_table_is_shown(tmp_path: Path, width: int) -> None:
    ledger = Ledger(tmp_path)
    ledger.append(Stage("iteration-00/evals/gsm8k/greedy/samples", {}), {}, seconds=3.0)
    ledger.append(Stage("iteration-00/evals/gsm8k/metrics", {"confidence": 0.95}), evaluation(1), seconds=0.0)
    write_status(tmp_path, "finished")
    text = printed(summarize_run(tmp_path), width)
    assert text.count("iteration") == 1
    assert "pass@1 elsewhere" in text
    assert not re.search("test problems|greedy solutions|training problems|seconds", text)


def test_of_judged_solutions_the_command_that_reads_them_is_told(tmp_path: Path) -> None:
    path = tmp_path / "iteration-00" / "evals" / "gsm8k" / "samples.parquet"
    path.parent.mkdir(parents=True)
    path.touch()
    with pytest.raises(
        RunFolderError, match=rf"no run here .*, but samples, {path}; `rest_em compare {tmp_path} "
    ):
        summarize_run(tmp_path)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="no run here"):
        summarize_run(tmp_path)
