"""What is shipped: recipes whose header says how they are run and what was measured, and a wheel with them.

That recipes load is tested in test_recipe, that accelerate reads the launch files in test_training.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rest_em import __version__
from rest_em.cli import app

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))


COLUMNS = {
    "gsm8k": {"question": "How many are {0} and {0}?", "answer": "They are {0} + {0}.\n#### {1}"},
    "math": {"problem": "Double ${0}$.", "level": "Level 1", "type": "Algebra",
             "solution": "It is $\\boxed{{{1}}}$."},
    "apps": {"id": "{0}", "question": "Print {1}.", "starter_code": "", "solution": "print({1})",
             "input_output": '{{"inputs": [""], "outputs": ["{1}\\n"]}}'},
}  # fmt: skip
"""Rows as those data sets have them that are not shipped, of a number and its double."""


def own_data(task: str, folder: Path) -> list[str]:
    """Return the options that put files of a data set's form in the place of one that is not shipped."""
    if task not in COLUMNS:
        return []
    for name, numbers in (("train", range(1, 9)), ("test", range(20, 24))):
        rows = [{key: text.format(k, 2 * k) for key, text in COLUMNS[task].items()} for k in numbers]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = [f"problems.{name}={{path: {folder}/{name}.jsonl}}" for name in ("train", "test")]
    options += ["num_iterations=1", "selection.human_solutions=only"]  # so that they are read too
    return [part for option in options for part in ("--set", option)]


def header(recipe: Path) -> list[str]:
    """Return the comment at the beginning of a recipe, without its marks."""
    lines = recipe.read_text("utf-8").splitlines()
    end = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    return [line.removeprefix("#").strip() for line in lines[:end]]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.relative_to(ROOT / "recipes").as_posix())
def test_the_header_of_a_recipe_says_the_command_the_hardware_and_what_was_measured(recipe: Path) -> None:
    lines = header(recipe)
    launch = r"accelerate launch --config_file (\S+)( --num_processes \d+)?"
    wanted = re.compile(rf"{launch} -m rest_em run {recipe.relative_to(ROOT)}")
    (command,) = filter(None, map(wanted.fullmatch, lines))
    assert (ROOT / command[1]).is_file()
    assert any(line.startswith("hardware: ") for line in lines)
    if "not measured" not in lines:
        after = lines[lines.index("measured:") + 1 :]
        assert any(line.startswith("|") for line in after), "the table of what was measured"


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.relative_to(ROOT / "recipes").as_posix())
def test_a_shipped_recipe_passes_its_check_but_for_the_model(recipe: Path, tmp_path: Path) -> None:
    arguments = ["--set", "model.name_or_path=org/base", *own_data(recipe.parent.name, tmp_path)]
    done = CliRunner().invoke(app, ["check", str(recipe), *arguments])
    assert done.exit_code == 0, done.exception
    assert "fine" in done.output


def test_the_problems_of_the_quickstart_are_what_their_script_makes(tmp_path: Path) -> None:
    shipped = ROOT / "recipes" / "quickstart"
    script = shutil.copy(shipped / "make_problems.py", tmp_path)
    subprocess.run([sys.executable, script], check=True)
    made = sorted(tmp_path.glob("*.jsonl"))
    assert [path.stem for path in made] == ["examples", "test", "train", "validation"]
    assert all(path.read_bytes() == (shipped / path.name).read_bytes() for path in made)


def test_the_problems_of_apps_are_those_of_its_introductory_ones_that_have_tests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.spec_from_file_location("make_apps", ROOT / "recipes" / "apps" / "make_problems.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(script, "HERE", tmp_path)
    easy = {"question": "q", "difficulty": "introductory", "solutions": '["a", "b"]', "starter_code": ""}
    tests = json.dumps({"inputs": ["1"], "outputs": ["2"]})
    rows = [
        easy | {"input_output": ""},
        easy | {"input_output": tests, "difficulty": "interview"},
        easy | {"input_output": tests},
        easy | {"input_output": '{"inputs": [' + "9" * 5000 + "]}"},
        easy | {"input_output": tests, "solutions": ""},
    ]
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    script.main(tmp_path)
    made = [json.loads(line) for line in (tmp_path / "data" / "train.jsonl").read_text().splitlines()]
    assert [(one["id"], one["solution"]) for one in made] == [("train-2", "a"), ("train-4", None)]
    assert made[0]["input_output"] == tests
    assert "train: 2 problems; 2 have no test and are left out" in capsys.readouterr().out


def test_the_wheel_carries_the_recipes(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    assert (tmp_path / "installed" / "rest_em" / "py.typed").is_file()

    def rest_em(*arguments: str) -> str:
        command = [sys.executable, "-m", "rest_em", *arguments]
        environment = os.environ | {"PYTHONPATH": str(tmp_path / "installed")}
        return subprocess.run(
            command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
        ).stdout

    listed = [line.partition(":")[0] for line in rest_em("recipes", "list").splitlines()]
    assert listed == [str(path.relative_to(ROOT / "recipes").with_suffix("")) for path in RECIPES]
    assert rest_em("recipes", "copy", "quickstart/smollm2-135m", "mine") == "mine/smollm2-135m.yaml\n"
    assert (tmp_path / "mine" / "train.jsonl").is_file()
    assert rest_em("evals", "copy", "arithmetic", "evals") == "evals/arithmetic.yaml\n"
    assert (tmp_path / "evals" / "arithmetic_test.jsonl").is_file()


def test_the_version_is_printed() -> None:
    assert CliRunner().invoke(app, ["--version"]).output == f"rest_em {__version__}\n"
