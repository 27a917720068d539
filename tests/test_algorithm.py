"""Algorithm 1's own decisions: which checkpoint serves, and what a tuned model depends on."""

from __future__ import annotations

import io
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_run
from rich.console import Console

from rest_em.algorithm import (
    _keep_chosen,
    _scores,
    _train,
    _what_matters,
    is_worse,
    pass_rate,
    start_of,
    survey,
    walk_forward,
)
from rest_em.drawing import Draw
from rest_em.errors import RecipeChangedError, RewardError, RunFolderError
from rest_em.ledger import Ledger, Stage, best_iteration
from rest_em.problem_sets import ProblemSets
from rest_em.recipe import PromptVariant, TrainingSection, load_recipe
from rest_em.report.progress import Progress
from rest_em.run import Judges, PromptedPolicy, Run, Workplace
from rest_em.stages import Ranks, Supervisor
from rest_em.storage import write_json
from rest_em.training.saved import SavedStep, commit
from rest_em.types import DrawRequest, GradedSolution, Policy, SamplingParams, Solution, Verdict


@pytest.mark.parametrize(
    ("scores", "first_drop", "best", "last"),
    [
        ([0.2, 0.5, 0.4, 0.6], 1, 3, 3),
        ([0.2, 0.5, 0.5, 0.4], 2, 1, 3),
        ([0.5, 0.4, 0.6], 0, 2, 2),
        ([0.2, 0.2, 0.2], 2, 0, 2),
        ([0.1, 0.2, 0.3], 2, 2, 2),
        ([0.3], 0, 0, 0),
    ],
)
def test_which_checkpoint_serves(scores: Sequence[float], first_drop: int, best: int, last: int) -> None:
    assert walk_forward(scores, "first_drop") == first_drop
    assert walk_forward(scores, "best") == best
    assert walk_forward(scores, "last") == last


def judged(*verdicts: Verdict) -> list[GradedSolution]:
    return [
        GradedSolution(Solution("p", index, 0, "", (), "eos"), verdict, 0.0, None, "")
        for index, verdict in enumerate(verdicts)
    ]


def draw(prompt: str) -> Draw:
    """Return a draw of the base model on D_val."""
    name = f"iteration-00/validation/{prompt}"
    request = DrawRequest(f"{name}/samples", (), SamplingParams(1, 4, 0.0), 0, 0, 4, 1)
    prompted = PromptedPolicy(Policy("base", 0), PromptVariant(name=prompt))
    samples = Stage(f"{name}/samples", {})
    asked: Any = None  # how it was judged does not matter here
    verdicts = Stage(f"{name}/verdicts", {}, (samples,))
    return Draw(name, "validation 0", prompted, asked, request, samples, verdicts)


def test_a_score_leaves_out_what_could_not_be_judged() -> None:
    correct, wrong, unscorable = Verdict.CORRECT, Verdict.INCORRECT, Verdict.UNSCORABLE
    draws = [draw("bare"), draw("shown")]
    assert _scores(draws, [judged(correct, wrong, wrong, unscorable), judged(correct)]) == [1 / 3, 1.0]


def test_where_nothing_could_be_judged_there_is_no_score() -> None:
    with pytest.raises(RewardError) as caught:
        _scores([draw("bare")], [judged(Verdict.UNSCORABLE)])
    assert "iteration-00/validation/bare: none of its 1 solutions could be judged" in str(caught.value)
    assert "--from-stage '*/verdicts'" in str(caught.value)


def trained(folder: Path, num_epochs: int = 3) -> Path:
    """Return an iteration's folder after its training."""
    for epoch in range(1, num_epochs + 1):
        (folder / "training" / f"epoch-{epoch}").mkdir(parents=True)
        (folder / "training" / f"epoch-{epoch}" / f"weights-{epoch}").touch()
    return folder


def test_the_chosen_checkpoint_becomes_the_policy_and_the_others_go(tmp_path: Path) -> None:
    folder = trained(tmp_path / "iteration-01")
    for _ in range(2):  # the second time there is nothing to do
        _keep_chosen(folder, 2)
        assert [path.name for path in (folder / "policy").iterdir()] == ["weights-2"]
        assert list((folder / "training").iterdir()) == []


def test_the_untrained_model_as_the_choice_leaves_no_checkpoint(tmp_path: Path) -> None:
    folder = trained(tmp_path / "iteration-01")
    _keep_chosen(folder, 0)
    assert [path.name for path in folder.iterdir()] == ["training"]
    assert list((folder / "training").iterdir()) == []


def test_a_policy_that_somebody_removed_is_told_with_the_way_on(tmp_path: Path) -> None:
    folder = trained(tmp_path / "iteration-01")
    _keep_chosen(folder, 1)
    shutil.rmtree(folder / "policy")
    with pytest.raises(RunFolderError, match="epoch-1 is gone; train again with --from-stage iteration-01/t"):
        _keep_chosen(folder, 1)


class _Training:
    """Stands where stages are started: writes what the training stage writes."""

    def __init__(self) -> None:
        self.num_runs = 0
        self.spec: Mapping[str, Any] = {}

    def run(self, stage: str, spec: Mapping[str, Any], *, label: str, meanwhile: object) -> None:
        assert (stage, label) == ("train", "iteration-01-train")
        self.num_runs += 1
        self.spec = spec
        trained(Path(spec["output"]).parent, num_epochs=2)
        write_json(Path(spec["output"]) / "training.json", {"checkpoints": ["epoch-1", "epoch-2"]})


def run_that_trains(folder: Path, training: _Training, *overrides: str) -> Run:
    recipe = load_recipe(tiny_run.write_recipe(folder, folder / "model"), overrides)
    supervisor: Any = training
    place = Workplace(
        folder / "run", Ledger(folder / "run"), supervisor, Judges(), Progress(Console(file=io.StringIO()))
    )
    return Run(recipe, place, ProblemSets(recipe))


def dataset_of(run: Run) -> tuple[Path, Stage]:
    return run.folder / "iteration-01/dataset.parquet", Stage("iteration-01/dataset", {})


def test_checkpoints_that_went_with_a_choice_are_trained_again_for_another_choice(tmp_path: Path) -> None:
    training = _Training()
    run = run_that_trains(tmp_path, training)
    base, dataset = PromptedPolicy(Policy("base", 0), PromptVariant()), dataset_of(run)

    stage, checkpoints = _train(run, base, dataset, iteration=1, needs_checkpoints=True)
    assert [path.name for path in checkpoints] == ["epoch-1", "epoch-2"]
    _train(run, base, dataset, iteration=1, needs_checkpoints=True)
    assert training.num_runs == 1
    _keep_chosen(run.folder / "iteration-01", 1)
    assert _train(run, base, dataset, iteration=1, needs_checkpoints=False) == (stage, checkpoints)
    assert training.num_runs == 1
    scored = Stage("iteration-01/validation/epoch-1/samples", {}, after=(stage,))
    run.ledger.append(scored, {}, seconds=0.0)
    assert _train(run, base, dataset, iteration=1, needs_checkpoints=True) == (stage, checkpoints)
    assert training.num_runs == 2
    assert run.ledger.result(scored) is None, "what the checkpoints scored that are gone says nothing"
    assert all(path.exists() for path in checkpoints)
    (run.folder / "ledger.jsonl").unlink()  # killed at the end of the stage, before the ledger knew
    (run.folder / stage.name / "checkpoint-9").mkdir()
    late = replace(run, place=replace(run.place, ledger=Ledger(run.folder)))
    assert _train(late, base, dataset, iteration=1, needs_checkpoints=True) == (stage, checkpoints)
    assert training.num_runs == 2
    assert not (run.folder / stage.name / "checkpoint-9").exists()


def test_other_settings_are_refused_where_an_m_step_has_a_checkpoint_to_go_on_from(tmp_path: Path) -> None:
    training = _Training()
    run = run_that_trains(tmp_path, training)
    base, dataset = PromptedPolicy(Policy("base", 0), PromptVariant()), dataset_of(run)
    _train(run, base, dataset, iteration=1, needs_checkpoints=True)
    (run.folder / "ledger.jsonl").unlink()
    output = run.folder / "iteration-01/training"
    (output / "training.json").unlink()
    for name in ("epoch-1", "epoch-2"):
        shutil.rmtree(output / name)
    (output / "checkpoint-1").mkdir()
    commit(output, SavedStep(step=1, num_epochs=0, num_ranks=1, strategy="replicated"))
    other = run_that_trains(tmp_path, training, "training.learning_rate=1e-5")
    with pytest.raises(RecipeChangedError, match=r"learning_rate.*\n.*--from-stage iteration-01/training"):
        _train(other, base, dataset, iteration=1, needs_checkpoints=True)
    assert (output / "checkpoint-1").exists()
    told = run_that_trains(tmp_path, training, "training.log_level=info")
    _train(told, base, dataset, iteration=1, needs_checkpoints=True)
    assert training.num_runs == 2


def test_what_is_tuned_is_the_base_or_the_previous_policy_on_which_the_stage_then_depends(
    tmp_path: Path,
) -> None:
    training = _Training()
    run = run_that_trains(tmp_path, training, "training.train_from=previous", "model.revision=v1")
    base = PromptedPolicy(Policy(run.recipe.model.name_or_path, 0), PromptVariant())
    choice = Stage("iteration-01/policy", {"checkpoint_choice": "last"})
    first = PromptedPolicy(Policy("run/iteration-01/policy", 1), PromptVariant(), made_by=(choice,))
    assert start_of(run, base, first) is first
    stage, _ = _train(run, first, dataset_of(run), iteration=1, needs_checkpoints=True)
    assert stage.after[1] == choice
    assert training.spec["model"]["name_or_path"] == "run/iteration-01/policy"
    assert training.spec["model"]["revision"] is None, "a folder has none"
    # The first iteration's previous policy is the base: both settings are one stage there.
    (tmp_path / "other").mkdir()
    other = run_that_trains(tmp_path / "other", training, "model.revision=v1")
    base = PromptedPolicy(Policy(other.recipe.model.name_or_path, 0), PromptVariant())
    assert start_of(other, base, first) is base
    plain, _ = _train(other, base, dataset_of(other), iteration=1, needs_checkpoints=True)
    assert training.spec["model"]["revision"] == "v1"
    assert (plain.inputs["training"]["train_from"], plain.after[1:]) == ("base", ())
    assert stage.inputs["training"] == plain.inputs["training"] | {"train_from": "previous"}


def test_a_tuned_model_depends_on_the_recipe_and_not_on_the_machine() -> None:
    plain = TrainingSection.model_validate({"learning_rate": 1e-3, "global_batch_size": 8})
    moved = TrainingSection.model_validate(
        {
            "learning_rate": 1e-3,
            "global_batch_size": 8,
            "per_device_train_batch_size": 2,
            "gradient_checkpointing": True,
            "activation_checkpointing": True,
            "torch_empty_cache_steps": 4,
            "dataloader_num_workers": 1,
            "checkpoint_choice": "best",
        }
    )
    warmer = TrainingSection.model_validate(
        {"learning_rate": 1e-3, "global_batch_size": 8, "warmup_steps": 3}
    )
    assert _what_matters(plain.model_dump(mode="json")) == _what_matters(moved.model_dump(mode="json"))
    assert _what_matters(plain.model_dump(mode="json")) != _what_matters(warmer.model_dump(mode="json"))


def test_a_survey_ends_where_the_chosen_prompt_is_no_candidate_any_more(tmp_path: Path) -> None:
    recipe = load_recipe(tiny_run.write_recipe(tmp_path, tmp_path / "model"), [])
    folder = tmp_path / "run"
    for stage in ("validation/shown/samples", "validation/shown/verdicts", "validation/bare/samples",
                  "validation/bare/verdicts"):  # fmt: skip
        Ledger(folder).append(Stage(f"iteration-00/{stage}", {}), {}, seconds=0.0)
    prompt = Stage("iteration-00/prompt", {"candidates": ["gone", "bare"]})
    Ledger(folder).append(prompt, {"chosen": "gone", "validation": {}}, seconds=0.0)
    ledger = Ledger(folder, is_survey=True)
    place = Workplace(
        folder, ledger, Supervisor(Ranks(), folder), Judges(), Progress(Console(file=io.StringIO()))
    )
    survey(Run(recipe, place, ProblemSets(recipe)))
    assert "iteration-00/prompt" in ledger.conflicts


def run_that_stops(folder: Path, stop_on: str) -> Run:
    recipe = load_recipe(tiny_run.write_recipe(folder, folder / "model"), [f"evaluation.stop_on={stop_on}"])
    progress = Progress(Console(file=io.StringIO()))
    own = folder / "run"
    place = Workplace(own, Ledger(own), Supervisor(Ranks(), folder), Judges(), progress)
    return Run(recipe, place, ProblemSets(recipe))


def policy_of(iteration: int, num_correct: int) -> PromptedPolicy:
    """Return a policy with so many of 60 validation problems right."""
    verdicts = {f"v{k}": k < num_correct for k in range(60)}
    return PromptedPolicy(Policy("p", iteration), PromptVariant(), validation=verdicts)


def test_a_fall_on_validation_beyond_its_interval_ends_the_iterations_and_a_smaller_one_does_not(
    tmp_path: Path,
) -> None:
    run = run_that_stops(tmp_path, "validation")
    assert is_worse(run, policy_of(1, 30), policy_of(0, 30)) is False
    assert is_worse(run, policy_of(2, 29), policy_of(0, 30)) is False
    assert is_worse(run, policy_of(4, 26), policy_of(0, 30)) is False, "four problems are too few"
    assert is_worse(run, policy_of(5, 45), policy_of(0, 30)) is False, "a rise is no fall"
    assert is_worse(run, policy_of(3, 15), policy_of(0, 30)) is True
    again = run_that_stops(tmp_path, "validation")
    assert is_worse(again, policy_of(3, 15), policy_of(0, 30)) is True
    (stop,) = [one["result"] for one in again.ledger.records if one["stage"] == "iteration-03/stop"]
    assert stop["than"] == 0
    assert stop["gain"]["high"] < 0
    never = run_that_stops(tmp_path / "never", "never")
    assert is_worse(never, policy_of(3, 0), policy_of(0, 60)) is False


def test_the_best_policy_is_the_first_of_the_highest_pass_rate() -> None:
    assert pass_rate(policy_of(0, 15)) == 0.25
    records = [
        {"stage": "iteration-00/prompt", "result": {"chosen": "a", "validation": {"a": 0.4, "b": 0.3}}},
        {"stage": "iteration-01/policy", "result": {"chosen": 2, "validation": [0.4, 0.5, 0.6]}},
        {"stage": "iteration-02/policy", "result": {"chosen": 1, "validation": [0.4, 0.6]}},
    ]
    assert best_iteration(records) == 1
    assert best_iteration(records[:1]) == 0
    assert best_iteration([]) == 0
