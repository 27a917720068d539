"""README, CONTRIBUTING and docs/: what they quote, command and name is there, and their examples run."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import shlex
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet
import pytest
import torch
import yaml
from accelerate.commands.launch import launch_command_parser
from typer.main import get_command
from typer.testing import CliRunner

from rest_em.cli import app
from rest_em.errors import UnscorableError
from rest_em.ledger import Ledger, Stage
from rest_em.planner.hardware import load_gpus
from rest_em.recipe import Recipe, RewardSection, check_library_keys, load_recipe
from rest_em.rewards.registry import load_reward
from rest_em.storage import write_examples, write_graded, write_solutions
from rest_em.types import GradedSolution, Problem, Solution, TrainingExample, Verdict
from rest_em.usage import Meter, Usage, usage_entry

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = ("rest_em", "recipes", "launch", "docs", "tests", "benchmarks", ".ci")
"""A name in backquotes that begins with one of these and a slash is a path of the checkout."""
MINIMAL = {
    "model": "{name_or_path: org/base}",
    "problems": "{train: {path: train.jsonl}, test: {path: test.jsonl}}",
    "prompt": "{template: '{{ question }}'}",
    "reward": "{name: number}",
    "sampling": "{max_new_tokens: 32}",
}


def blocks(page: Path, language: str) -> list[str]:
    """Return a page's fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)


def names(page: Path) -> list[str]:
    """Return what stands in backquotes outside of fenced blocks, line breaks as spaces."""
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    return [" ".join(name.split()) for name in re.findall(r"`([^`]+)`", text)]


COMMAND = re.compile(r"(make|rest_em|accelerate launch .*-m) [^.:]")


def commands() -> Iterator[Any]:
    """Yield each command line of the pages as words, comments left out."""
    for page in PAGES:
        lines = [line for block in blocks(page, "bash") for line in block.replace("\\\n", " ").splitlines()]
        lines += [name for name in names(page) if COMMAND.match(name)]
        for line in dict.fromkeys(lines):
            words = shlex.split(line, comments=True)
            if words:
                yield pytest.param(words, id=f"{page.stem}: {' '.join(words)}")


@pytest.mark.parametrize("words", list(commands()))
def test_a_command_of_the_pages_can_be_given(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    program, *arguments = [word for word in words if not re.match(r"[A-Z_]+=", word)]
    if program == "make":
        makefile = Path("Makefile").read_text("utf-8")
        assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in arguments)
    elif program == "rest_em":
        assert_parses(arguments)
    elif program == "accelerate":
        asked = launch_command_parser().parse_args(arguments[1:])
        assert asked.module
        assert asked.training_script == "rest_em"
        assert Path(asked.config_file).is_file()
        assert_parses(asked.training_script_args)
    elif program == "sbatch":
        script = arguments.index("launch/slurm.sbatch")
        assert all(word.startswith("--") for word in arguments[:script])
        assert Path(arguments[script + 1]).is_file()
        assert_parses(["run", *arguments[script + 2 :]])
    else:
        known = (["touch", "runs/NAME/stop"], ["cp", "-r", "runs/A", "runs/B"])
        assert words in known


def assert_parses(arguments: list[str]) -> None:
    done = CliRunner().invoke(app, [*arguments, "--help"])
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_links_to_is_there(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8"))
    local = [link for link in links if not link.startswith("https://")]
    assert [link for link in local if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_path_that_a_page_names_is_there(page: Path) -> None:
    paths = [name for name in names(page) if re.fullmatch(rf"({'|'.join(FOLDERS)})/[\w./-]*", name)]
    assert [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_function_that_a_page_names_is_there(page: Path) -> None:
    for name in names(page):
        if re.fullmatch(r"rest_em[.\w]*:\w+", name):
            module, function = name.split(":")
            assert function in vars(importlib.import_module(module)), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_an_option_that_a_page_names_is_one_of_ours_or_of_accelerate(page: Path) -> None:
    ours = {"--help", "--version"} | {
        option
        for command in get_command(app).commands.values()  # type: ignore[attr-defined]
        for parameter in command.params
        for option in parameter.opts
    }
    theirs = {option for action in launch_command_parser()._actions for option in action.option_strings}
    named = {option for name in names(page) for option in re.findall(r"(?:^| )(--[a-z_-]+)", name)}
    assert named <= ours | theirs


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_key_that_a_page_names_is_one_of_the_recipes(page: Path) -> None:
    sections = "|".join(Recipe.model_fields)
    for name in names(page):
        found = re.fullmatch(rf"({sections})\.(\w+)", name)
        if found is None or found[2] in ("py", "yaml"):
            continue
        section = Recipe.model_fields[found[1]].annotation
        keys = getattr(section, "model_fields", {})
        assert found[2] in keys or found[1] in ("training", "lora"), name


def yaml_examples() -> Iterator[Any]:
    """Yield the YAML of the pages; that of recipes.md, which is wrong in part, is tested in test_recipe.

    memory.md has a table of GPUs, which the next test reads.
    """
    for page in PAGES:
        if page.stem not in ("recipes", "memory"):
            for number, block in enumerate(blocks(page, "yaml"), start=1):
                yield pytest.param(block, id=f"{page.stem}-{number}")


def test_a_table_of_gpus_of_the_pages_loads(tmp_path: Path) -> None:
    (page,) = (one for one in PAGES if one.stem == "memory")
    (tmp_path / "gpus.yaml").write_text("\n".join(blocks(page, "yaml")))
    assert load_gpus(tmp_path / "gpus.yaml")["h100_sxm"].dollars_per_hour == 2.10


@pytest.mark.parametrize("text", list(yaml_examples()))
def test_a_recipe_or_section_of_the_pages_loads(text: str, tmp_path: Path) -> None:
    given = yaml.safe_load(text)
    rest = {} if "model" in given else {key: value for key, value in MINIMAL.items() if key not in given}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text + "".join(f"{key}: {value}\n" for key, value in rest.items()), encoding="utf-8")
    check_library_keys(load_recipe(recipe))


def test_the_loop_of_the_readme_is_that_of_the_code() -> None:
    loop = blocks(ROOT / "README.md", "python")[0]
    assert "for i in range(1, run.recipe.num_iterations + 1):" in loop
    assert textwrap.indent(loop, "    ") in (ROOT / "rest_em" / "algorithm.py").read_text("utf-8")


# The rewards of the pages


def judge(reward: Any, reference: str, text: str) -> object:
    return reward(Problem("p", "?", reference), Solution("p", 0, 1, text, (), "eos"))


def test_the_reward_of_the_readme_judges(tmp_path: Path) -> None:
    (tmp_path / "my_reward.py").write_text(blocks(ROOT / "README.md", "python")[1])
    reward = load_reward(RewardSection(function=f"{tmp_path}/my_reward.py:is_correct")).parts[0].call.function
    assert judge(reward, "42", "17 + 25 = 42.") is True
    assert judge(reward, "-8", "4 - 12 = -8") is True
    assert judge(reward, "4", "2 + 2 = 14") is False
    assert judge(reward, "4", "four") is False


def footgun_rewards() -> list[dict[str, Any]]:
    """Return what the Python of docs/footguns.md defines, a block each: wrong and right in turn."""
    defined: list[dict[str, Any]] = []
    for block in blocks(ROOT / "docs" / "footguns.md", "python"):
        defined.append({})
        exec(block, defined[-1])
    return defined


def test_the_wrong_substring_accepts_what_the_right_one_refuses() -> None:
    wrong, right = (one["is_correct"] for one in footgun_rewards()[:2])
    assert [judge(one, "4", "2 + 2 = 14") for one in (wrong, right)] == [True, False]
    assert judge(right, "4", "2 + 2 = 4. The answer is 4.\n") is True


def test_a_broken_reference_is_unscorable_to_the_right_reward_alone() -> None:
    wrong, right = (one["is_close"] for one in footgun_rewards()[2:])
    assert judge(wrong, "four", "4") is False
    with pytest.raises(UnscorableError, match="the reference 'four' is no number"):
        judge(right, "four", "4")
    assert [judge(right, "4", text) for text in ("4.0", "5", "four")] == [True, False, False]


def test_the_task_of_the_readme_passes_its_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_task.yaml").write_text(blocks(ROOT / "README.md", "yaml")[0])
    (tmp_path / "my_reward.py").write_text(blocks(ROOT / "README.md", "python")[1])
    for name, first in (("train", 10), ("test", 50)):
        rows = [{"question": f"{first + k} + 25?", "answer": str(first + k + 25)} for k in range(20)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = CliRunner().invoke(app, ["check", "my_task.yaml"])
    assert done.exit_code == 0, done.exception
    assert "my_task.yaml: fine" in done.output


def test_the_layers_of_contributing_are_those_that_are_checked() -> None:
    told = blocks(ROOT / "CONTRIBUTING.md", "text")[0].split("\n")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    checked = settings["tool"]["importlinter"]["contracts"][0]["layers"]
    assert [line for line in told if line] == [layer.replace("rest_em.", "") for layer in checked]


def test_the_table_of_the_readme_is_that_of_the_recipe() -> None:
    shown = blocks(ROOT / "README.md", "text")[0]
    assert shown in blocks(ROOT / "recipes" / "quickstart" / "README.md", "text")


# docs/run_folder.md

RUN_FOLDER = ROOT / "docs" / "run_folder.md"
ONE = Solution("p", 0, 1, "4", (7, 2), "eos")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a run of one solution, of the name that the page reads, in the working directory."""
    monkeypatch.chdir(tmp_path)
    iteration = tmp_path / "runs" / "quickstart-smollm2-135m" / "iteration-01"
    write_solutions(iteration / "samples" / "units" / "00000.parquet", [ONE])
    graded = [GradedSolution(ONE, Verdict.CORRECT, 1.0, "4", "")]
    write_graded(iteration / "verdicts" / "0123456789abcdef" / "00000.parquet", graded)
    write_examples(iteration / "dataset.parquet", [TrainingExample("p", 0, "2 + 2 =", (7, 2), "eos", 1.0)])
    return iteration


def test_the_columns_of_the_page_are_those_of_the_files(run: Path) -> None:
    parts = re.split(r"^`(?=[\w/<>*.]+parquet`, a row)", RUN_FOLDER.read_text("utf-8"), flags=re.MULTILINE)[
        1:
    ]
    for part, file in zip(
        parts, ("samples/units/*.parquet", "verdicts/*/*.parquet", "dataset.parquet"), strict=True
    ):
        columns = pyarrow.parquet.read_schema(next(run.glob(file))).names
        assert keys(part) == columns


def keys(part: str) -> list[str]:
    """Return the first column of a part's table."""
    return re.findall(r"^\| `(\w+)` \|", part.split("\n## ", maxsplit=1)[0], flags=re.MULTILINE)


def test_the_page_tells_and_reads_what_a_stage_took(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (part,) = RUN_FOLDER.read_text("utf-8").split("\n## What a stage took\n")[1:]
    assert keys(part) == [field.name for field in dataclasses.fields(Usage)]
    folder, stage = run.parent, run / "samples"
    Meter(stage, torch.device("cpu"), resident_bytes_at_start=None).add(num_tokens=6, work_seconds=2.0)
    Ledger(folder).append(Stage("iteration-01/samples", {}), usage_entry(stage), seconds=2.0)
    exec(blocks(RUN_FOLDER, "python")[2], {})
    assert re.fullmatch(r"iteration-01/samples (\d+|None) 3\.0\n", capsys.readouterr().out)


def test_the_page_reads_solutions_and_verdicts(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(run / "cache"))
    with_pandas, with_datasets, _ = blocks(RUN_FOLDER, "python")
    exec(with_pandas, {})
    assert re.search(r"^correct +1$", capsys.readouterr().out, re.MULTILINE)
    read: dict[str, Any] = {}
    exec(with_datasets, read)
    assert read["solutions"]["token_ids"] == [[7, 2]]
