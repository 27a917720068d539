"""An M-step that is killed or left goes on from its last checkpoint, and ends as if it had not been."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from killed_training import attempt
from test_training import (
    LORA,
    NF4,
    PLAIN_STEPS,
    _assert_equal_training,
    _examples,
    _spec,
    _usage,
    _weights,
)

from rest_em.errors import TrainingError
from rest_em.recipe import TrainingSection
from rest_em.storage import read_json
from rest_em.training.arguments import training_arguments
from rest_em.training.base import Base
from rest_em.training.room import Written, check_room, written_by
from rest_em.training.saved import SavedStep, commit, last_saved, remove_saved
from rest_em.training.stage import main

pytestmark = pytest.mark.usefixtures("own_environment")

SEVENTEEN = _examples(17)
"""Three steps an epoch, the third of a single example."""
EVERY_STEP: dict[str, Any] = {"save_seconds": 0.0, "per_device_train_batch_size": 2}
"""A checkpoint after every step, of four micro-batches."""
ZERO_3 = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}
DROPOUT = {**LORA, "lora_dropout": 0.3}
"""With it the random states count, beside weights, moments and schedule."""


def _in(folder: Path, model: Path, *, lora: Any = None, **training: Any) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    return _spec(folder, model, SEVENTEEN, lora=lora, **{**EVERY_STEP, **training})


def _left(folder: Path) -> list[str]:
    left = {path.name for path in (folder / "policy").iterdir()}
    return sorted(left - {"usage", "steps.jsonl"})


def _note(folder: Path) -> str:
    found: str = read_json(folder / "progress" / "note.json")
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    """An M-step of adapters with dropout that nobody disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert attempt(_in(folder, tiny_model_folder, lora=DROPOUT)) == [0]
    return folder


def test_killed_at_any_point_an_m_step_ends_bit_for_bit_as_undisturbed(
    tmp_path: Path, tiny_model_folder: Path, undisturbed: Path
) -> None:
    spec = _in(tmp_path, tiny_model_folder, lora=DROPOUT)
    left_at = {
        ("step", 1): [],
        ("half", 2): ["checkpoint-1", "checkpoint-2", "checkpoint.json"],
        ("step", 3): ["checkpoint-2", "checkpoint.json"],
        ("epoch", 1): ["checkpoint-2", "checkpoint.json", "epoch-1"],
        ("step", 5): ["checkpoint-4", "checkpoint.json", "epoch-1"],
    }
    for point, left in left_at.items():
        assert attempt(spec, point) == [-9]
        assert _left(tmp_path) == left
    assert attempt(spec) == [0]
    assert _note(tmp_path) == "goes on after step 4"
    for epoch in (1, 2):
        one, other = _weights(undisturbed, epoch), _weights(tmp_path, epoch)
        assert all(torch.equal(one[name], other[name]) for name in one)
    told = [read_json(folder / "policy" / "training.json") for folder in (undisturbed, tmp_path)]
    assert told[0] == told[1]
    whole, pieces = _usage(undisturbed), _usage(tmp_path)
    assert (pieces.num_steps, pieces.num_tokens) == (6, whole.num_tokens)
    remove_saved(tmp_path / "policy")
    assert _left(tmp_path) == ["epoch-1", "epoch-2", "training.json"]


def test_asked_to_stop_it_saves_where_it_is_and_leaves(tmp_path: Path, tiny_model_folder: Path) -> None:
    seldom = _in(tmp_path, tiny_model_folder, lora=LORA, save_seconds=3600.0)
    assert attempt(seldom, ("stop", 3)) == [0]
    assert _left(tmp_path) == ["checkpoint-3", "checkpoint.json", "epoch-1"]
    main(seldom)  # the file is still there
    assert _note(tmp_path) == "goes on after step 3"
    assert _left(tmp_path) == ["checkpoint-3", "checkpoint.json", "epoch-1"]
    never = _in(tmp_path / "never", tiny_model_folder, lora=LORA, save_seconds=None)
    assert attempt(never, ("stop", 1)) == [0]
    assert _left(tmp_path / "never") == []


def test_any_number_of_ranks_that_hold_all_states_goes_on(tmp_path: Path, tiny_model_folder: Path) -> None:
    spec = _in(tmp_path / "two", tiny_model_folder, **PLAIN_STEPS)
    assert -9 in attempt(spec, ("half", 2), num_ranks=2)
    assert -9 in attempt(spec, ("step", 5), num_ranks=2)
    assert _note(tmp_path / "two") == "goes on after step 1"
    main(spec)
    assert _note(tmp_path / "two") == "goes on after step 4 with 1 rank; 2 ranks went so far"
    main(_in(tmp_path / "one", tiny_model_folder, **PLAIN_STEPS))
    _assert_equal_training(tmp_path / "two", tmp_path / "one")


def test_adapters_under_zero_3_killed_and_gone_on_with_equal_those_of_one_process(
    tmp_path: Path, tiny_model_folder: Path
) -> None:
    spec = _in(tmp_path / "two", tiny_model_folder, lora=LORA)
    assert -9 in attempt(spec, ("step", 5), num_ranks=2, launch=ZERO_3)
    saved = last_saved(tmp_path / "two" / "policy")
    assert saved == SavedStep(step=4, num_epochs=1, num_ranks=2, strategy="zero3")
    assert attempt(spec, num_ranks=2, launch=ZERO_3) == [0, 0]
    assert _note(tmp_path / "two") == "goes on after step 4"
    main(_in(tmp_path / "one", tiny_model_folder, lora=LORA))
    _assert_equal_training(tmp_path / "two", tmp_path / "one")


def test_ranks_that_cannot_read_a_checkpoint_begin_again_and_leave_it_until_there_is_another(
    tmp_path: Path, tiny_model_folder: Path
) -> None:
    output = tmp_path / "policy"
    (output / "checkpoint-2").mkdir(parents=True)
    commit(output, SavedStep(step=2, num_epochs=0, num_ranks=2, strategy="zero3"))
    main(_in(tmp_path, tiny_model_folder, save_seconds=None, num_train_epochs=1))
    assert _note(tmp_path) == (
        "begins again from its start: 1 rank (replicated) cannot read the checkpoint after step 2, which "
        "2 ranks wrote (zero3). It stays until there is another: to go on from it, stop this run and launch "
        "it as before"
    )
    assert read_json(output / "training.json")["num_steps"] == 3
    assert _left(tmp_path) == ["checkpoint-2", "checkpoint.json", "epoch-1", "training.json"]
    main(_in(tmp_path, tiny_model_folder))
    assert _left(tmp_path) == ["checkpoint-5", "checkpoint.json", "epoch-1", "epoch-2", "training.json"]
    assert last_saved(output) == SavedStep(step=5, num_epochs=1, num_ranks=1, strategy="replicated")


def test_a_checkpoint_of_which_a_part_is_gone_is_none(tmp_path: Path) -> None:
    for name in ("checkpoint-4", "epoch-1"):
        (tmp_path / name).mkdir()
    saved = SavedStep(step=4, num_epochs=1, num_ranks=1, strategy="replicated")
    commit(tmp_path, saved)
    assert last_saved(tmp_path) == saved
    (tmp_path / "epoch-1").rmdir()
    assert last_saved(tmp_path) is None


def test_what_cannot_be_read_names_what_to_remove(tmp_path: Path, tiny_model_folder: Path) -> None:
    spec = _in(tmp_path, tiny_model_folder, num_train_epochs=1)
    output = tmp_path / "policy"
    (output / "checkpoint-2").mkdir(parents=True)
    (output / "checkpoint-2" / "trainer_state.json").write_text("{")
    commit(output, SavedStep(step=2, num_epochs=0, num_ranks=1, strategy="replicated"))
    with pytest.raises(TrainingError, match=r"checkpoint-2: cannot be read \(.*; remove the folder to begin"):
        main(spec)
    (output / "checkpoint.json").write_text("")
    with pytest.raises(TrainingError, match=r"checkpoint.json: cannot be read \(.*; remove it to begin"):
        main(spec)


def test_what_other_ranks_left_after_the_same_step_is_not_written_over(
    tmp_path: Path, tiny_model_folder: Path
) -> None:
    output = tmp_path / "policy"
    (output / "checkpoint-2").mkdir(parents=True)
    (output / "checkpoint-2" / "theirs").touch()
    commit(output, SavedStep(step=2, num_epochs=0, num_ranks=2, strategy="zero3"))
    seldom = _in(tmp_path, tiny_model_folder, lora=LORA, save_seconds=3600.0)
    assert attempt(seldom, ("stop", 1)) == [0]  # seen after step 2
    assert [path.name for path in (output / "checkpoint-2").iterdir()] == ["theirs"]
    assert last_saved(output) == SavedStep(step=2, num_epochs=0, num_ranks=2, strategy="zero3")


# Room


def test_an_m_step_that_would_fill_the_disk_is_refused_with_what_it_needs(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    check_room(tmp_path, Written(epoch_bytes=free // 8, checkpoint_bytes=free // 8), 2)
    with pytest.raises(TrainingError) as refused:
        check_room(tmp_path, Written(epoch_bytes=10**15, checkpoint_bytes=6 * 10**15), 3)
    told = str(refused.value)
    assert (
        "needs 14,000,000.00 GB on the disk, for 3 epochs' weights of 1,000,000.00 GB each, and 2 at a "
        in told
    )
    assert "at a time of 6,000,000.00 GB to go on from; " in told
    assert told.endswith("num_train_epochs, or do without the latter by training.save_seconds: null")
    for name in ("epoch-1", "checkpoint.json"):
        (tmp_path / name).touch()
    with pytest.raises(TrainingError, match=r"needs 7,000,000.00 GB on the disk, for 2 epochs'.*and 1 at a"):
        check_room(tmp_path, Written(epoch_bytes=10**15, checkpoint_bytes=6 * 10**15), 3)
    with pytest.raises(TrainingError, match=r"needs 2,000,000.00 GB.* each; .* training.num_train_epochs$"):
        check_room(tmp_path, Written(epoch_bytes=10**15, checkpoint_bytes=0), 3)


def test_what_an_m_step_is_said_to_write_is_what_it_writes(
    tmp_path: Path, tiny_model_folder: Path, undisturbed: Path
) -> None:
    def size(path: Path) -> int:
        return sum(one.stat().st_size for one in path.rglob("*.safetensors"))

    section = TrainingSection.model_validate({"bf16": False})
    arguments = training_arguments(section, tmp_path, "0")
    base = Base(str(tiny_model_folder), None, False)
    model = base.trainable_model(DROPOUT, None, is_half=False, attention=None)
    written = written_by(model, arguments, base.dtype, section)
    quantised = base.trainable_model(DROPOUT, NF4, is_half=False, attention=None)
    assert written_by(quantised, arguments, base.dtype, section) == written
    policy = undisturbed / "policy"
    assert 0 <= size(policy / "epoch-2") - written.epoch_bytes < 20_000  # names and shapes of tensors
    states = size(policy / "checkpoint-5") + (policy / "checkpoint-5" / "optimizer.pt").stat().st_size
    assert 0 <= states - written.checkpoint_bytes < 40_000
