"""The verbs: what they print, and how a mistake is told."""

from __future__ import annotations

import errno
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import tiny_run
import yaml

from rest_em import cli
from rest_em.ledger import Ledger, Stage, read_status, write_status
from rest_em.status import message_of

VERBS = (
    "", "run", "check", "score", "show", "evaluate", "compare", "export", "recipes", "recipes list", "recipes copy",
    "evals", "evals list", "evals copy", "plan",
)  # fmt: skip


@dataclass(frozen=True)
class Said:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str


Call = Callable[..., Said]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run a command line in a folder with the recipe `tiny.yaml`, whose model has no weights."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    tiny_run.write_recipe(tmp_path, tmp_path / "model")
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["rest_em", *arguments])
        with pytest.raises(SystemExit) as caught:
            raise SystemExit(cli.main())
        printed = capsys.readouterr()
        return Said(int(caught.value.code or 0), printed.out, printed.err)

    return run


def replace(path: str, old: str, new: str) -> None:
    """Change one place of a file, on the same line."""
    text = Path(path).read_text()
    assert text.count(old) == 1
    Path(path).write_text(text.replace(old, new))


def line_of(path: str, text: str) -> int:
    """Return the number of the first line with a text."""
    lines = Path(path).read_text().splitlines()
    return next(number for number, line in enumerate(lines, start=1) if text in line)


def test_check_shows_what_would_be_sampled_from(call: Call) -> None:
    said = call("check", "tiny.yaml")
    assert (said.code, said.err) == (0, "")
    lines = said.out.splitlines()
    assert lines[:4] == [
        "tiny.yaml: fine",
        "problems: 16 train, 3 validation, 4 test",
        "solutions an E-step: 64",
        "contamination: none of 16 training problems overlaps with one of test",
    ]
    assert "prompt shown of problem train-0" in lines[4]
    assert lines[5:8] == ["a=bc", "", "tr0="]
    assert "prompt bare of problem train-0" in lines[8]
    assert lines[9] == "tr0="
    assert "prompt 0-shot of problem train-0" in lines[10], "the tuned policies'"


def test_check_shows_a_prompt_and_an_id_as_they_are(call: Call) -> None:
    replace("tiny.yaml", "{{ question }}=", f"{'long ' * 40}{{{{ question }}}} [red] 1:100:2=")
    replace("train.jsonl", '"train-0"', '"[/INST]"')
    said = call("check", "tiny.yaml")
    assert (said.code, said.err) == (0, "")
    assert f"{'long ' * 40}tr0 [red] 1:100:2=" in said.out.splitlines()
    assert "of problem [/INST]" in said.out


def test_check_shows_a_chat_as_the_model_reads_it(call: Call, tiny_model_folder: Path) -> None:
    model = Path("model")
    shutil.copytree(tiny_model_folder, model, dirs_exist_ok=True)
    replace("tiny.yaml", "prompt:", "prompt:\n  chat_template: true")
    assert "<s>[user]tr0=\n[assistant]" in call("check", "tiny.yaml").out
    said = call("check", "tiny.yaml", "--set", "model.name_or_path=org/base")
    assert '"content": "tr0="' in said.out
    (model / "chat_template.jinja").unlink()
    said = call("check", "tiny.yaml")
    assert said.code == 1
    assert "has no chat template; use a model that has one" in said.err


def test_check_shows_a_human_solution_and_tells_of_a_row_without_one(call: Call) -> None:
    alone = ("check", "tiny.yaml", "--set", "selection.human_solutions=only")
    said = call(*alone, "--set", "problems.solution=' = {{ answer }}'")
    assert "solutions an E-step: 0\n" in said.out
    assert re.search(r"human solution of problem train-0, which follows its prompt ─+\n = 7\n", said.out)
    said = call(*alone)
    assert said.code == 1
    assert "train.jsonl:1: there is no column 'solution' (prompt.solution)" in said.err


def test_all_that_is_missing_or_unknown_is_told_at_once(call: Call) -> None:
    replace("tiny.yaml", "learning_rate: 1e-3", "learning_rates: 1e-3")
    Path("train.jsonl").unlink()
    said = call("check", "tiny.yaml", "--set", "tracking.report_to=[trackio]")
    assert "tracking.report_to names trackio, which is not installed; pip install trackio" in said.err
    assert "train.jsonl, and there is no such file" in said.err
    assert "unknown key training.learning_rates" in said.err


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("num_samples: 4", "num_sample: 4", "unknown key sampling.num_sample; did you mean num_samples?"),
        ("seed: 3", "seed: three", "seed is 'three'; a whole number >= 0 and < 4294967296 is wanted"),
        ("temperature: 1.0", "temperature: 0", "sampling.temperature is 0 (greedy) and num_samples is 4"),
        ("max_new_tokens: 16", "max_new_tokens: 0", "sampling.max_new_tokens is 0; a whole number > 0"),
        ("seed: 3", "seed: [3", ""),
        ("learning_rate: 1e-3", "learning_rates: 1e-3", "unknown key training.learning_rates"),
        ("num_train_epochs: 2", "output_dir: x", "training.output_dir is rest_em's own"),
        ("train.jsonl", "trains.jsonl", "trains.jsonl"),
        ("id: id", "id: ids", "ids"),
        ("{{ question }}", "{{ questions }}", "questions"),
        ("{{ question }}", "{{ question ", "prompt.template is no Jinja template"),
        ("even_length", "odd_length", "unknown name 'odd_length'; did you mean"),
        ("reward.py:", "rewards.py:", "rewards.py, and there is no such file"),
        ("num_workers: 1", "options: {base: 8}", "reward.options"),
        ("global_batch_size: 4", "global_batch_size: 5", "per_device_train_batch_size is 2"),
        ("num_samples: 2}", "num_samples: 2, pass_at: [1, 8]}", "evaluation.pass_at has k = 8"),
    ],
)
def test_a_wrong_recipe_is_told_in_one_line_without_a_traceback(
    call: Call, old: str, new: str, told: str
) -> None:
    number = line_of("tiny.yaml", old)
    replace("tiny.yaml", old, new)
    for verb in (("check",), ("run", "--dry-run"), ("run",)):
        said = call(*verb, "tiny.yaml")
        assert said.code == 1
        assert told in said.err
        assert said.err.startswith("error: ")
        assert said.err.count("\n") == 1
        assert "Traceback" not in said.err
        place = said.err.split()[1]
        assert ".jsonl:1" in place or place in {f"tiny.yaml:{number}:", f"tiny.yaml:{number + 1}:"}
        assert said.out == ""


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("check", "none.yaml"), "none.yaml"),
        (("check", "."), "."),
        (("check", "tiny.yaml", "--set", "seed"), "--set seed"),
        (("check", "tiny.yaml", "--set", "sampling.num_sample=2"), "did you mean num_samples?"),
        (("run", "tiny.yaml", "--from-stage", "iteration-01/sample"), "no stage matches"),
        (("show", "runs/none"), "runs/none: no run here"),
        (("recipes", "copy", "none", "there"), "none: no such recipe; there are: "),
    ],
)
def test_a_wrong_argument_is_told_in_one_line(call: Call, arguments: tuple[str, ...], told: str) -> None:
    said = call(*arguments)
    assert said.code == 1
    assert told in said.err
    assert said.err.count("\n") == 1


def test_a_mistake_in_one_of_several_rewards_is_told_with_its_line(call: Call) -> None:
    one = 'reward: {function: "reward.py:even_length", num_workers: 1}'
    several = "reward:\n  threshold: 1\n  rewards:\n  - function: reward.py:even_length\n  - name: numbers"
    replace("tiny.yaml", one, several)
    line = Path("tiny.yaml").read_text().splitlines().index("  - name: numbers") + 1
    said = call("check", "tiny.yaml")
    assert f"tiny.yaml:{line}: reward.rewards[1].name: unknown name 'numbers'; did you mean" in said.err


def test_a_broken_reward_is_told_before_anything_is_drawn(call: Call) -> None:
    Path("reward.py").write_text("def even_length(problem, solution):\n    return 1 / len(solution.text)\n")
    said = call("run", "tiny.yaml")
    assert said.code == 1
    assert "tried on problem train-0 with an empty solution" in said.err
    assert f"ZeroDivisionError: division by zero ({Path.cwd()}/reward.py:2)" in said.err
    assert json.loads(Path("runs/tiny/status.json").read_text())["state"] == "failed"
    assert not Path("runs/tiny/ledger.jsonl").exists()


def finish_samples(folder: Path) -> Ledger:
    """Return the ledger of a run whose base model has been sampled from."""
    ledger = Ledger(folder)
    ledger.append(Stage("iteration-00/evals/test/greedy/samples", {}), {}, seconds=1.0)
    (folder / "iteration-00/evals/test/greedy/samples").mkdir(parents=True)
    return ledger


def test_nothing_is_forgotten_for_a_recipe_that_is_wrong(call: Call) -> None:
    done = finish_samples(Path("runs/tiny")).records
    Path("reward.py").write_text("def even_length(problem, solution):\n    return 1 / 0\n")
    said = call("run", "tiny.yaml", "--from-stage", "*/evals/*")
    assert (said.code, "ZeroDivisionError" in said.err) == (1, True)
    assert Ledger(Path("runs/tiny")).records == done
    assert Path("runs/tiny/iteration-00/evals/test/greedy/samples").exists()


def test_a_dry_run_leaves_nothing_behind(call: Call) -> None:
    said = call("run", "tiny.yaml", "--dry-run", "--set", "run_name=other")
    assert said.code == 0
    plan, done = said.err.splitlines()
    assert plan.startswith("no plan of memory and time: ")
    assert "model_type is None, which the planner does not know" in plan
    assert done == "runs/other: 0 stages are done; --dry-run goes no further"
    assert not Path("runs").exists()


def test_a_dry_run_says_what_from_stage_would_forget_and_forgets_nothing(call: Call) -> None:
    done = finish_samples(Path("runs/tiny")).records
    said = call("run", "tiny.yaml", "--dry-run", "--from-stage", "*/evals/*")
    assert said.err.splitlines()[1:] == [
        "--from-stage would do again: iteration-00/evals/test/greedy/samples",
        "runs/tiny: 1 stages are done; --dry-run goes no further",
    ]
    assert Ledger(Path("runs/tiny")).records == done
    said = call("run", "tiny.yaml", "--dry-run", "--from-stage", "iteration-09")
    assert (said.code, "no stage matches 'iteration-09'" in said.err) == (1, True)


def test_in_a_dry_run_of_several_ranks_only_the_first_speaks_and_none_waits(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert "--dry-run goes no further" in call("run", "tiny.yaml", "--dry-run").err
    monkeypatch.setenv("RANK", "1")
    assert call("run", "tiny.yaml", "--dry-run") == Said(0, "", "")


def test_a_global_batch_that_the_ranks_cannot_share_is_told_before_anything_is_drawn(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    for options in ((), ("--dry-run",)):
        said = call("run", "tiny.yaml", *options)
        assert said.code == 1
        assert "4 examples cannot be shared out evenly over 3 ranks" in said.err
    assert not Path("runs/tiny/ledger.jsonl").exists()


def test_a_folder_that_refuses_a_recipe_keeps_its_own_and_stays_finished(call: Call) -> None:
    folder = Path("runs/tiny")
    Ledger(folder).append(Stage("iteration-00/validation/shown/samples", {"seed": 1}), {}, seconds=1.0)
    write_status(folder, "finished")
    (folder / "recipe.yaml").write_text("seed: 1\n")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    said = call("run", "tiny.yaml")
    assert said.code == 1
    assert "what was finished had other settings:" in said.err
    assert "  seed: 1 -> 3, on which iteration-00/validation/shown/samples depends\n" in said.err
    assert before.items() <= {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}.items()


@pytest.mark.parametrize("options", [("--from-stage", "iteration-09"), ("--set", "reward.name=none.py:f")])
def test_a_command_that_is_wrong_leaves_the_status_of_a_finished_run(
    call: Call, options: tuple[str, str]
) -> None:
    write_status(Path("runs/tiny"), "finished")
    assert call("run", "tiny.yaml", *options).code == 1
    assert read_status(Path("runs/tiny"))["state"] == "finished"


def test_a_stop_that_was_meant_for_an_earlier_run_does_not_stop_this_one(call: Call) -> None:
    folder = Path("runs/tiny")
    Ledger(folder).append(Stage("iteration-00/validation/shown/samples", {"seed": 1}), {}, seconds=1.0)
    (folder / "stop").touch()
    assert (
        "what was finished had other settings" in call("run", "tiny.yaml").err
    )  # it has come as far as that
    assert not (folder / "stop").exists()


def test_a_recipe_without_a_validation_problem_is_told_at_the_start(call: Call) -> None:
    replace("tiny.yaml", "  validation: {path: validation.jsonl}\n", "")
    only = Path("train.jsonl").read_text().splitlines()[0]
    Path("train.jsonl").write_text(only + "\n")
    said = call("check", "tiny.yaml")
    assert (said.code, said.err.count("\n")) == (1, 1)
    assert said.err.startswith("error: tiny.yaml:5: problems.validation: there is no problem to validate on")
    assert "problems.validation_fraction" in said.err


def test_a_place_where_nothing_can_be_written_is_told_in_one_line(call: Call) -> None:
    Path("runs").write_text("in the way")
    said = call("run", "tiny.yaml")
    assert said.code == 1
    assert said.err.startswith("error: runs/tiny/.lock: cannot be written")
    assert said.err.count("\n") == 1


def test_a_full_disk_is_no_bug_of_ours_and_other_errors_of_the_system_are() -> None:
    message = message_of(OSError(errno.ENOSPC, "No space left on device"))
    assert message is not None
    assert "make room on the disk of the run's folder, and the same command goes on" in message
    assert message_of(OSError(errno.EIO, "Input/output error")) is None


def test_a_run_is_found_by_its_name_and_shown_while_it_has_nothing(call: Call) -> None:
    write_status(Path("runs/tiny"), "failed", "out of luck")
    assert call("show", "tiny").out == "tiny: failed\nout of luck\nnothing has been measured yet\n"
    shown = json.loads(call("show", "runs/tiny", "--json").out)
    assert (shown["name"], shown["status"]["state"], shown["iterations"]) == ("tiny", "failed", [])


def test_recipes_are_listed_and_copied_with_their_data(call: Call) -> None:
    listed = call("recipes", "list").out.splitlines()
    name = "quickstart/smollm2-135m"
    assert [line for line in listed if line.startswith(f"{name}: ")]
    said = call("recipes", "copy", name, "mine")
    assert said.out == "mine/smollm2-135m.yaml\n"
    copied = yaml.safe_load(Path("mine/smollm2-135m.yaml").read_text())
    assert (Path("mine") / copied["problems"]["train"]["path"]).is_file()
    again = call("recipes", "copy", name, "mine")
    assert (again.code, again.err) == (1, "error: mine: exists already; name a folder that does not\n")


def test_an_eval_is_copied_beside_another(call: Call) -> None:
    for name in ("gsm8k", "arithmetic"):
        assert call("evals", "copy", name, "mine").out == f"mine/{name}.yaml\n"
    assert sorted(path.name for path in Path("mine").iterdir()) == [
        "arithmetic.yaml", "arithmetic_examples.jsonl", "arithmetic_test.jsonl", "gsm8k.yaml",
    ]  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_has_help(call: Call, verb: str) -> None:
    said = call(*verb.split(), "--help")
    assert said.code == 0
    assert "Usage:" in said.out
    assert "_stage" not in said.out


def test_every_verb_is_tried(call: Call) -> None:
    groups = {"": cli.app, "recipes": cli.recipes_app, "evals": cli.evals_app}
    verbs = {
        f"{group} {command.name or command.callback.__name__}".strip()
        for group, app in groups.items()
        for command in app.registered_commands
        if not command.hidden and command.callback is not None
    }
    assert verbs | {"", "recipes", "evals"} == set(VERBS)


def test_the_light_verbs_load_neither_torch_nor_transformers(tmp_path: Path) -> None:
    tiny_run.write_recipe(tmp_path, tmp_path / "model")
    write_status(tmp_path / "runs" / "tiny", "running")
    (tmp_path / "model").mkdir()
    shape = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
    (tmp_path / "model" / "config.json").write_text(
        json.dumps({"model_type": "llama", "vocab_size": 99, **shape})
    )
    planned = ["plan", "tiny.yaml", "--gpu", "l4", "--json"]
    searched = [*planned, "--num-gpus", "2", "--search", "--emit", "out"]
    for arguments in (["show", "tiny"], ["recipes", "list"], planned, searched, ["--help"]):
        program = f"""
import sys
from rest_em.cli import main
sys.argv = ["rest_em", *{arguments}]
try:
    main()
except SystemExit:
    pass
print({{"torch", "transformers", "datasets"}} & set(sys.modules))
"""
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=tmp_path,
            env=tiny_run.environment(),
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        assert done.stdout.endswith("set()\n")
        assert arguments != planned or '"fits": true' in done.stdout
