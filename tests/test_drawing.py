"""What a draw depends on, what it took, and that nothing of it is missing."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import tiny_run
from rich.console import Console

from rest_em import drawing
from rest_em.drawing import (
    Draw,
    _Intake,
    _OpenDraw,
    _read,
    _seconds_of,
    _unit_path,
    _verdict_path,
    plan_draw,
)
from rest_em.errors import RewardError, StageError
from rest_em.ledger import Ledger
from rest_em.problem_sets import ProblemSets
from rest_em.recipe import load_recipe
from rest_em.report.progress import Progress
from rest_em.run import Judges, PromptedPolicy, Run, Workplace
from rest_em.stages import Ranks, Supervisor
from rest_em.storage import append_line, write_graded, write_solutions
from rest_em.types import GradedSolution, Policy, Problem, SamplingParams, Solution, Verdict


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run of which nothing is done, in the working directory."""
    monkeypatch.chdir(tmp_path)
    tiny_run.write_recipe(tmp_path, tmp_path / "model")
    return start()


def start() -> Run:
    """Return the run of the recipe in the working directory, on one rank."""
    recipe, folder = load_recipe(Path("tiny.yaml"), []), Path("run")
    progress = Progress(Console(file=io.StringIO()))
    place = Workplace(folder, Ledger(folder), Supervisor(Ranks(), folder), Judges(), progress)
    return Run(recipe, place, ProblemSets(recipe))


def validation_draw(run: Run) -> Draw:
    """Return a draw of the three validation problems, each a unit of four solutions."""
    prompted = PromptedPolicy(Policy("base", 0), run.base_prompts[0])
    problems = run.problems.rendered("validation", prompted.prompt)
    params = SamplingParams(num_samples=4, max_new_tokens=4, temperature=1.0)
    asked = run.asked(prompted.prompt)
    return plan_draw(
        run.place, "iteration-00/x", prompted, problems, params, asked=asked, title="x", iteration=0
    )


def test_a_run_goes_on_with_the_files_that_it_started_with(run: Run) -> None:
    before = validation_draw(run)
    with Path("reward.py").open("a") as file:
        file.write("# saved while the run goes on\n")
    with Path("examples.jsonl").open("a") as file:
        file.write('{"question": "d", "solution": "ef"}\n')
    assert validation_draw(run) == before
    after = validation_draw(start())
    assert after.samples.fingerprint != before.samples.fingerprint
    assert after.verdicts.inputs["reward"] != before.verdicts.inputs["reward"]


def test_a_run_knows_what_each_of_its_prompts_depends_on(run: Run) -> None:
    shown, bare = run.base_prompts
    assert run.prompt_inputs(shown)["examples"] != run.prompt_inputs(bare)["examples"]
    assert run.prompt_inputs(run.tuned_prompt) == run.prompt_inputs(run.training_prompt)


def test_the_time_of_a_draw_is_that_of_its_own_units_as_drawn_last(run: Run) -> None:
    draw = validation_draw(run)
    for stage, unit, seconds in (
        (draw.samples.name, 0, 100.0),
        (draw.samples.name, 3, 100.0),
        (draw.samples.name, 0, 1.0),
        (draw.samples.name, 2, 4.0),
        ("iteration-00/y/samples", 1, 100.0),
    ):
        append_line(run.folder / "metrics.jsonl", {"stage": stage, "unit": unit, "seconds": seconds})
    append_line(run.folder / "metrics.jsonl", {"loss": 1.0})
    assert _seconds_of(run.folder, draw) == 5.0


def test_an_unfinished_draw_keeps_only_the_verdicts_of_its_reward_that_say_something(run: Run) -> None:
    draw = validation_draw(run)
    for unit in range(3):
        one = Solution("p", unit, 0, "4", token_ids=(5,), finish_reason="eos")
        verdict = Verdict.UNSCORABLE if unit == 1 else Verdict.INCORRECT
        if unit < 2:
            write_solutions(_unit_path(run.place, draw, unit), [one])
        write_graded(_verdict_path(run.place, draw, unit), [GradedSolution(one, verdict, 0.0, "4", "")])
    of_another_reward = _verdict_path(run.place, draw, 0).parents[1] / "0123456789abcdef" / "00000.parquet"
    write_graded(of_another_reward, [])
    opened = _OpenDraw(run.place, draw)
    assert (opened.missing, opened.unread) == ([2], [1, 2])
    assert [_verdict_path(run.place, draw, unit).exists() for unit in range(3)] == [True, False, False]
    assert not of_another_reward.parent.exists()


def watched(run: Run, verdicts: Mapping[str, Sequence[Verdict]]) -> None:
    """Take verdicts by problem, in their order, of a draw of 3,200 solutions, and watch over each."""
    prompted = PromptedPolicy(Policy("base", 0), run.base_prompts[0])
    problems = [Problem(f"p{k}", "?", "7") for k in range(400)]
    params = SamplingParams(num_samples=8, max_new_tokens=4, temperature=1.0)
    asked = run.asked(prompted.prompt)
    plan = plan_draw(
        run.place, "iteration-01", prompted, problems, params, asked=asked, title="x", iteration=1
    )
    opened = _OpenDraw(run.place, plan)
    intake = _Intake(run.place, [opened])
    opened.sizes, opened._with_graders[0] = [3200], {}
    for key, each in verdicts.items():
        for place, verdict in enumerate(each):
            one = Solution(key, place, 1, "4", token_ids=(5,), finish_reason="eos")
            opened.take(0, opened.num_judged, GradedSolution(one, verdict, 0.0, None, "because"))
            intake._watch_unscorable(opened)


def test_a_few_problems_that_cannot_be_judged_do_not_stop_a_draw_wherever_they_stand(run: Run) -> None:
    unscorable, judged = [Verdict.UNSCORABLE] * 8, [Verdict.INCORRECT] * 8
    watched(run, {f"p{k}": unscorable if k < 10 else judged for k in range(400)})


def test_a_reward_that_fails_on_most_problems_or_too_often_stops_a_draw_early(run: Run) -> None:
    some = [Verdict.UNSCORABLE, *[Verdict.INCORRECT] * 7]
    with pytest.raises(RewardError, match="20 of 153 solutions could not be judged"):
        watched(run, {f"p{k}": some for k in range(400)})
    often = {f"p{k}": [Verdict.UNSCORABLE if k % 3 == 0 else Verdict.INCORRECT] * 8 for k in range(400)}
    with pytest.raises(RewardError, match="161 of 481 solutions could not be judged"):
        watched(run, often)


def test_a_unit_that_is_gone_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LATE_SECONDS", "QUIET_SECONDS", "SCAN_SECONDS"):
        monkeypatch.setattr(drawing, name, 0.01)
    with pytest.raises(StageError, match=r"00000\.parquet: drawn, and not there .* command draws it again"):
        _Intake(run.place, [_OpenDraw(run.place, validation_draw(run))]).judge()


def test_a_draw_of_which_a_verdict_is_missing_is_not_read(run: Run) -> None:
    draw = validation_draw(run)
    solutions = [Solution("p", index, 0, "4", token_ids=(5,), finish_reason="eos") for index in range(2)]
    verdicts = [GradedSolution(one, Verdict.CORRECT, 1.0, "4", "") for one in solutions]
    for unit in range(3):
        write_solutions(_unit_path(run.place, draw, unit), solutions)
        write_graded(_verdict_path(run.place, draw, unit), verdicts)
    assert _read(run.place, draw) == verdicts * 3
    write_graded(_verdict_path(run.place, draw, 1), verdicts[:1])
    with pytest.raises(AssertionError, match="1 verdicts on 2 solutions"):
        _read(run.place, draw)
