"""What counts as done, what is refused, and what is done again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from rest_em.errors import RecipeChangedError, RunFolderError
from rest_em.ledger import Ledger, NotDoneError, Stage, read_status, write_status
from rest_em.storage import read_json, read_lines, write_json

SAMPLES = Stage("iteration-01/samples", {"sampling": {"temperature": 0.7, "stop": ["a"]}})
VERDICTS = Stage("iteration-01/verdicts", {"reward": {"name": "number"}}, after=(SAMPLES,))
DATASET = Stage("iteration-01/dataset", {"selection": {"max": 4}}, after=(VERDICTS,))
TRAINING = Stage("iteration-01/training", {"training": {"learning_rate": 1e-3}}, after=(DATASET,))
POLICY = Stage("iteration-01/policy", {"checkpoint_choice": "last"}, after=(TRAINING,))
METRICS = Stage("iteration-01/evals/test/metrics", {"pass_at": [1]}, after=(POLICY,))
NEXT = Stage("iteration-02/samples", {"sampling": {}}, after=(POLICY,))
BASE_EVAL = Stage("iteration-00/evals/test/greedy/samples", {"seed": 0})
ALL = (BASE_EVAL, SAMPLES, VERDICTS, DATASET, TRAINING, POLICY, METRICS, NEXT)


def with_inputs(stage: Stage, inputs: Mapping[str, Any]) -> Stage:
    return Stage(stage.name, inputs, stage.after)


def finish(folder: Path, *stages: Stage) -> Ledger:
    """Return the ledger of a folder where these stages are done and have left their files."""
    ledger = Ledger(folder)
    for stage in stages:
        place = folder / stage.name
        if stage.name.endswith("dataset"):
            place.parent.mkdir(parents=True, exist_ok=True)
            place.with_name("dataset.parquet").touch()
        else:
            place.mkdir(parents=True)
            (place / "file").touch()
        ledger.append(stage, {"done": stage.name}, seconds=1.5)
    return ledger


def left_in(folder: Path) -> list[str]:
    """Return the files of the stages that are there."""
    files = [path.relative_to(folder) for path in folder.glob("iteration-*/**/*") if path.is_file()]
    return sorted(str(file.parent if file.name == "file" else file.with_suffix("")) for file in files)


def test_a_finished_stage_is_found_by_the_next_process(tmp_path: Path) -> None:
    finish(tmp_path, SAMPLES)
    ledger = Ledger(tmp_path)
    assert ledger.result(SAMPLES) == {"done": "iteration-01/samples"}
    assert ledger.is_done("iteration-01/samples")
    assert ledger.result(VERDICTS) is None
    assert not ledger.is_done("iteration-01/verdicts")


def test_a_stage_whose_line_was_torn_is_to_be_done(tmp_path: Path) -> None:
    finish(tmp_path, SAMPLES, VERDICTS)
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    ledger = Ledger(tmp_path)
    assert ledger.result(SAMPLES) is not None
    assert ledger.result(VERDICTS) is None
    ledger.append(VERDICTS, {}, seconds=0.0)
    assert [record["stage"] for record in Ledger(tmp_path).records] == [SAMPLES.name, VERDICTS.name]


def test_a_fingerprint_depends_on_name_inputs_and_what_came_before() -> None:
    assert Stage("a/b", {"x": 1}).fingerprint == Stage("a/b", {"x": 1}).fingerprint
    assert Stage("a/b", {"x": 1}).fingerprint != Stage("a/c", {"x": 1}).fingerprint
    assert Stage("a/b", {"x": 1}).fingerprint != Stage("a/b", {"x": 2}).fingerprint
    hotter = with_inputs(SAMPLES, {"sampling": {"temperature": 1.0}})
    assert Stage("v/v", {}, (SAMPLES,)).fingerprint != Stage("v/v", {}, (hotter,)).fingerprint


def test_a_changed_input_is_refused_with_the_difference_and_the_way_on(tmp_path: Path) -> None:
    finish(tmp_path, SAMPLES)
    hotter = with_inputs(SAMPLES, {"sampling": {"temperature": 1.0, "stop": ["a"]}})
    with pytest.raises(RunFolderError) as caught:
        Ledger(tmp_path).result(hotter)
    assert str(caught.value) == (
        f"{tmp_path}: what was finished had other settings:\n"
        "  sampling.temperature: 0.7 -> 1.0, on which iteration-01/samples depends\n"
        "Undo the change, or do what depends on it, and all that follows, again with "
        "--from-stage iteration-01/samples, or keep both with --set run_name=NAME."
    )


def test_a_survey_finds_all_that_a_change_concerns_and_names_the_options_that_do_it_again(
    tmp_path: Path,
) -> None:
    finish(tmp_path, *ALL)
    survey = Ledger(tmp_path, is_survey=True)
    changed = {
        one.name: with_inputs(one, {**one.inputs, "seed": 1}) for one in (BASE_EVAL, SAMPLES, NEXT, METRICS)
    }
    for stage in ALL:
        assert survey.result(changed.get(stage.name, stage)) == {"done": stage.name}
    verdicts_of_other_samples = Stage(VERDICTS.name, VERDICTS.inputs, after=(changed[SAMPLES.name],))
    assert survey.result(verdicts_of_other_samples) is not None
    assert survey.conflicts == {
        BASE_EVAL.name: ["seed: 0 -> 1"],
        SAMPLES.name: ["seed: absent -> 1"],
        METRICS.name: ["seed: absent -> 1"],
        NEXT.name: ["seed: absent -> 1"],
    }
    with pytest.raises(RecipeChangedError) as caught:
        survey.refuse_conflicts()
    assert str(caught.value).splitlines()[1:] == [
        f"  seed: 0 -> 1, on which {BASE_EVAL.name} depends",
        f"  seed: absent -> 1, on which {SAMPLES.name} and 2 more stages depend",
        "Undo the change, or do what depends on it, and all that follows, again with "
        f"--from-stage '*/evals/test/greedy/samples' --from-stage {SAMPLES.name}, or keep both with "
        "--set run_name=NAME.",
    ]
    with pytest.raises(RecipeChangedError, match=rf"--from-stage {SAMPLES.name}, or"):
        survey.refuse_conflicts("iteration-00")
    survey.refuse_conflicts("iteration-00", "iteration-01/samples")
    with pytest.raises(NotDoneError):
        survey.result(Stage("iteration-02/verdicts", {}))


def test_a_pattern_that_would_do_more_again_than_the_change_concerns_is_not_proposed(tmp_path: Path) -> None:
    draws = [Stage(f"iteration-00/validation/{name}/samples", {"prompt": name}) for name in ("bare", "shown")]
    ledger = finish(tmp_path, *draws)
    with pytest.raises(RecipeChangedError, match=r"--from-stage iteration-00/validation/bare/samples, or"):
        ledger.result(with_inputs(draws[0], {"prompt": "other"}))


def test_a_stage_after_one_that_was_done_otherwise_is_refused_too(tmp_path: Path) -> None:
    finish(tmp_path, DATASET)
    other = Stage(DATASET.name, DATASET.inputs, after=(Stage("v/v", {}),))
    with pytest.raises(RunFolderError, match="an earlier stage has been done again"):
        Ledger(tmp_path).result(other)


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("iteration-00/validation/bare/verdicts", "'*/verdicts'"),
        ("iteration-00/validation/bare/samples", "'*/validation/*/samples'"),
        ("iteration-00/evals/test/sampled/samples", "'*/evals/test/sampled/samples'"),
        ("iteration-00/evals/test/greedy/verdicts", "'*/evals/*/verdicts'"),
        ("iteration-01/evals/test/metrics", "'*/evals/test/metrics'"),
        ("iteration-01/verdicts", "iteration-01/verdicts"),
    ],
)
def test_the_way_on_covers_all_stages_that_the_change_concerns(
    tmp_path: Path, name: str, pattern: str
) -> None:
    finish(tmp_path, Stage(name, {"a": 1}))
    with pytest.raises(RunFolderError) as caught:
        Ledger(tmp_path).result(Stage(name, {"a": 2}))
    assert f"--from-stage {pattern}," in str(caught.value)
    assert Ledger(tmp_path).reset(pattern.strip("'")) == [name]


def test_another_choice_of_checkpoint_is_refused(tmp_path: Path) -> None:
    ledger = finish(tmp_path, TRAINING, POLICY)
    with pytest.raises(RecipeChangedError, match="--from-stage iteration-01/policy,"):
        ledger.result(with_inputs(POLICY, {"checkpoint_choice": "best"}))


def test_reset_forgets_a_stage_and_what_came_of_it_and_nothing_else(tmp_path: Path) -> None:
    forgotten = finish(tmp_path, *ALL).reset("iteration-01/dataset")
    assert forgotten == [stage.name for stage in (DATASET, TRAINING, POLICY, METRICS, NEXT)]
    assert left_in(tmp_path) == [BASE_EVAL.name, SAMPLES.name, VERDICTS.name]
    again = Ledger(tmp_path)
    assert [record["stage"] for record in again.records] == [BASE_EVAL.name, SAMPLES.name, VERDICTS.name]
    assert again.result(DATASET) is None


def test_reset_takes_patterns_across_iterations(tmp_path: Path) -> None:
    assert finish(tmp_path, *ALL).reset("*/evals/*") == [BASE_EVAL.name, METRICS.name]
    assert left_in(tmp_path) == sorted(
        one.name for one in (SAMPLES, VERDICTS, DATASET, TRAINING, POLICY, NEXT)
    )


def test_reset_of_a_whole_iteration_by_its_folder(tmp_path: Path) -> None:
    finish(tmp_path, *ALL).reset("iteration-01")
    assert left_in(tmp_path) == [BASE_EVAL.name]
    assert [record["stage"] for record in Ledger(tmp_path).records] == [BASE_EVAL.name]


def test_a_stage_that_was_reset_can_be_finished_and_reset_again(tmp_path: Path) -> None:
    ledger = finish(tmp_path, *ALL)
    ledger.reset("iteration-02/samples")
    ledger.append(NEXT, {"second": True}, seconds=0.0)
    assert Ledger(tmp_path).result(NEXT) == {"second": True}
    Ledger(tmp_path).reset("iteration-02/samples")
    assert Ledger(tmp_path).result(NEXT) is None
    assert len(read_lines(tmp_path / "ledger.jsonl")) == len(ALL) + 5


def test_a_reset_that_is_killed_is_finished_by_the_next_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = finish(tmp_path, *ALL)
    monkeypatch.setattr(Ledger, "finish_reset", lambda self: None)
    ledger.reset("iteration-01/policy")
    monkeypatch.undo()
    assert METRICS.name in left_in(tmp_path)
    Ledger(tmp_path).finish_reset()
    assert left_in(tmp_path) == sorted(one.name for one in ALL[:5])
    number = len(read_lines(tmp_path / "ledger.jsonl"))
    Ledger(tmp_path).finish_reset()
    assert len(read_lines(tmp_path / "ledger.jsonl")) == number


def test_reset_removes_unfinished_work_of_that_name(tmp_path: Path) -> None:
    (tmp_path / NEXT.name / "units").mkdir(parents=True)
    assert finish(tmp_path, SAMPLES).reset("iteration-02/samples") == []
    assert not (tmp_path / NEXT.name).exists()
    assert (tmp_path / SAMPLES.name).exists()


@pytest.mark.parametrize("pattern", ["iteration-09/samples", "", "logs", "../other", "/", "iteration-0"])
def test_a_pattern_that_means_no_stage_is_refused_and_removes_nothing(tmp_path: Path, pattern: str) -> None:
    run = tmp_path / "run"
    for folder in (run / "logs", tmp_path / "other" / "iteration-01"):
        folder.mkdir(parents=True)
    ledger = finish(run, SAMPLES)
    with pytest.raises(RunFolderError, match=r"no stage matches .* finished are: iteration-01/samples"):
        ledger.reset(pattern)
    assert (run / "logs").exists()
    assert (tmp_path / "other" / "iteration-01").exists()
    assert left_in(run) == [SAMPLES.name]


def test_if_one_of_several_patterns_means_no_stage_nothing_is_removed(tmp_path: Path) -> None:
    ledger = finish(tmp_path, *ALL)
    with pytest.raises(RunFolderError, match="no stage matches 'iteration-09'"):
        ledger.reset("iteration-01", "iteration-09")
    assert len(left_in(tmp_path)) == len(Ledger(tmp_path).records) == len(ALL)
    assert ledger.meant_by("iteration-01/policy", "*/evals/*") == [
        BASE_EVAL.name,
        POLICY.name,
        METRICS.name,
        NEXT.name,
    ]
    assert ledger.reset("iteration-01", "iteration-01/policy") == [stage.name for stage in ALL[1:]]


def test_a_stage_that_was_begun_keeps_its_work(tmp_path: Path) -> None:
    Ledger(tmp_path).begin(SAMPLES)
    (tmp_path / SAMPLES.name / "file").touch()
    Ledger(tmp_path).begin(SAMPLES)
    assert (tmp_path / SAMPLES.name / "file").exists()


def test_a_stage_that_was_begun_with_other_inputs_is_refused(tmp_path: Path) -> None:
    Ledger(tmp_path).begin(SAMPLES)
    with pytest.raises(
        RecipeChangedError, match=r"what was begun had other settings:\n  sampling.temperature: 0.7 -> 1"
    ):
        Ledger(tmp_path).begin(with_inputs(SAMPLES, {"sampling": {"temperature": 1.0, "stop": ["a"]}}))


def test_a_stage_that_gives_way_keeps_only_what_the_same_inputs_have_left(tmp_path: Path) -> None:
    left, ledger = tmp_path / TRAINING.name / "file", Ledger(tmp_path)
    left.parent.mkdir(parents=True)
    left.touch()  # by nobody knows which inputs
    assert ledger.begin_anew(TRAINING) == []
    assert not left.exists()
    left.touch()
    assert ledger.begin_anew(TRAINING) == []
    assert left.exists()
    changed = with_inputs(TRAINING, {"training": {"learning_rate": 0.5}})
    assert ledger.begin_anew(changed)[0] == "training.learning_rate: 0.001 -> 0.5"
    assert not left.exists()


def test_work_of_a_policy_that_has_been_trained_again_is_dropped(tmp_path: Path) -> None:
    Ledger(tmp_path).begin(NEXT)
    (tmp_path / NEXT.name / "file").touch()
    other_policy = Stage(POLICY.name, POLICY.inputs, after=(with_inputs(TRAINING, {"training": {}}),))
    again = Stage(NEXT.name, NEXT.inputs, after=(other_policy,))
    Ledger(tmp_path).begin(again)
    assert not (tmp_path / NEXT.name / "file").exists()
    assert read_json(tmp_path / NEXT.name / "stage.json")["fingerprint"] == again.fingerprint


def test_reset_drops_what_was_begun_with_the_results_that_it_forgets(tmp_path: Path) -> None:
    ledger = finish(tmp_path, *ALL[:-2])
    unfinished = {one.name: one for one in (NEXT, Stage("iteration-09/samples", {}, after=(BASE_EVAL,)))}
    for one in unfinished.values():
        ledger.begin(one)
        (tmp_path / one.name / "file").touch()
    ledger.reset("iteration-01/verdicts")
    assert left_in(tmp_path) == [
        BASE_EVAL.name,
        SAMPLES.name,
        "iteration-09/samples",
        "iteration-09/samples/stage",
    ]
    Ledger(tmp_path).begin(NEXT)
    assert not (tmp_path / NEXT.name / "file").exists()


def test_status_says_what_became_of_a_run(tmp_path: Path) -> None:
    write_status(tmp_path, "failed", "out of luck")
    status = read_status(tmp_path)
    assert (status["state"], status["message"]) == ("failed", "out of luck")


def test_a_folder_without_status_is_no_run(tmp_path: Path) -> None:
    write_json(tmp_path / "other.json", {})
    with pytest.raises(RunFolderError, match="no run here"):
        read_status(tmp_path)
