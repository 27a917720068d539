"""Tiny real objects that tests share: a byte-level tokenizer and a small random Llama."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tiny_model import make_tokenizer, write_model
from tiny_run import RUN, finish, launch, write_recipe
from watched_run import assert_finished

from rest_em.storage import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

FIRST = [
    "tests/test_run.py", "tests/planner/test_states.py", "tests/test_failing_runs.py",
    "tests/test_run_ends.py", "tests/planner/test_emit.py", "tests/planner/test_activations.py",
    "tests/test_run_plan.py", "tests/test_evaluating.py",
]  # fmt: skip
"""The longest files, so that none of them ends alone where files share the cores. `test_run` begins with a
run that `test_run_ends`, were it the second, would wait for."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first; of a file and its folder in `testpaths` pytest 9 sees the folder."""
    places = {file: place for place, file in enumerate(FIRST)}
    items.sort(key=lambda item: places.get(item.nodeid.partition("::")[0], len(FIRST)))


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Encodes any text, byte by byte."""
    return make_tokenizer()


@pytest.fixture(scope="session")
def tiny_model_folder(
    tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast
) -> Path:
    """A small random Llama and its tokenizer, as a checkpoint."""
    folder = tmp_path_factory.mktemp("tiny") / "llama"
    write_model(folder, tiny_tokenizer)
    return folder


@pytest.fixture
def own_environment() -> Iterator[None]:
    """Undo what a training stage, whose process is otherwise its own, writes into the environment."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def fresh(tmp_path: Path, tiny_model_folder: Path) -> Path:
    """A folder with the recipe of a tiny run and no run."""
    write_recipe(tmp_path, tiny_model_folder)
    return tmp_path


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    """A run on one process, launched as the quickstart, from its beginning to its end; nobody changes it.

    The first of pytest-xdist's workers that needs it launches it for all of them.
    """
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    cwd = folder / "alone"
    with (folder / "alone.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not cwd.exists():
            write_recipe(cwd, tiny_model_folder)
            done = finish(launch("run", "tiny.yaml", config="cpu.yaml"), cwd)
            assert done.returncode == 0, done.stderr
            assert "plan: 1 x cpu with " in done.stderr
            assert "tiny: finished" in done.stdout
            assert "memory of a rank and speed of all, predicted beside measured" in done.stdout
            assert_finished(cwd)
    assert read_json(cwd / RUN / "status.json")["state"] == "finished"
    return cwd
