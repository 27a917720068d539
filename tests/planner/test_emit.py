"""The files of --emit: they load, they are what was planned for, and one launches a run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import yaml
from test_planning import CONFIG, write_recipe
from typer.testing import CliRunner

from rest_em.cli import app
from rest_em.errors import PlanError
from rest_em.planning import Launch
from rest_em.recipe.document import read_document
from rest_em.storage import read_json

NAMES = ["accelerate.yaml", "deepspeed.json", "launch.sh", "overrides.yaml"]
SMALL = CONFIG | {"num_hidden_layers": 4, "hidden_size": 512, "intermediate_size": 1024, "vocab_size": 1000}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe in the working directory, in which paths of a launch file are found."""
    write_recipe(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def plan(*options: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["plan", "recipe.yaml", "--json", *options])
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def refusal(*options: str) -> str:
    result = CliRunner().invoke(app, ["plan", "recipe.yaml", *options])
    assert isinstance(result.exception, PlanError)
    return str(result.exception)


def sets_of(folder: Path) -> list[str]:
    """Return the overrides of a folder as options."""
    found = []
    for section, values in (yaml.safe_load((folder / "overrides.yaml").read_text()) or {}).items():
        for key, value in values.items():
            found += ["--set", f"{section}.{key}={json.dumps(value)}"]
    return found


def planned_again(folder: Path, *options: str) -> dict[str, Any]:
    return plan("--launch", str(folder / "accelerate.yaml"), *sets_of(folder), *options)


@pytest.mark.parametrize(("gpu", "number"), [("h100", "8"), ("l4", "2"), ("l4", "8")])
def test_what_a_search_emits_is_planned_again_with_the_same_figures(
    folder: Path, gpu: str, number: str
) -> None:
    devices = ["--gpu", gpu, "--num-gpus", number]
    found = plan(*devices, "--search", "--emit", "out")
    assert found["emitted"] == [
        f"out/{name}" for name in ("accelerate.yaml", "deepspeed.json", "overrides.yaml", "launch.sh")
    ]
    chosen = found["search"]["recommended"]
    again = planned_again(Path("out"), "--gpu", gpu, "--num-gpus", str(chosen["num_gpus"]))
    assert again["fits"]
    assert again["total"]["seconds"] == pytest.approx(chosen["seconds"])
    for phase in ("sampling", "training"):
        assert again[phase]["spare_bytes"] == chosen[phase]["spare_bytes"]
    assert again["training"]["strategy"] == chosen["training"]["strategy"]


@pytest.mark.parametrize(
    ("strategy", "offload"),
    [("ddp", "none"), ("zero1", "none"), ("zero2", "optimizer"), ("zero3", "none"), ("zero3", "all")],
)
def test_a_plan_as_asked_is_emitted_with_what_it_was_planned_for(
    folder: Path, strategy: str, offload: str
) -> None:
    devices = ["--gpu", "h200", "--num-gpus", "4"]
    asked = [*devices, "--set", "training.global_batch_size=32"]
    found = plan(*asked, "--strategy", strategy, "--offload", offload, "--emit", "out")
    del found["emitted"]
    assert planned_again(Path("out"), *devices) == found
    assert sets_of(Path("out")) == ["--set", "training.global_batch_size=32"]


@pytest.mark.parametrize("strategy", ["single", "ddp", "zero1", "zero2", "zero3"])
def test_accelerate_and_deepspeed_load_what_is_emitted(
    folder: Path, strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.utils import DeepSpeedPlugin

    number = 1 if strategy == "single" else 4
    plan("--gpu", "h200", "--num-gpus", str(number), "--strategy", strategy, "--emit", "out")
    config = load_config_from_file("out/accelerate.yaml")
    assert (config.num_processes, config.num_machines, config.main_process_port) == (number, 1, 0)
    assert config.distributed_type.value == {"single": "NO", "ddp": "MULTI_GPU"}.get(strategy, "DEEPSPEED")
    if not strategy.startswith("zero"):
        assert not Path("out/deepspeed.json").exists()
        return
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setenv("ACCELERATE_CONFIG_DS_FIELDS", ",".join(config.deepspeed_config))
    plugin = DeepSpeedPlugin(hf_ds_config=config.deepspeed_config["deepspeed_config_file"])
    assert plugin.zero_stage == int(strategy[-1])
    if strategy == "zero3":
        assert plugin.zero3_save_16bit_model
    from deepspeed.runtime.config import DeepSpeedConfig

    filled = plugin.deepspeed_config | {
        "train_batch_size": 8, "train_micro_batch_size_per_gpu": 8, "gradient_accumulation_steps": 1,
        "gradient_clipping": 1.0, "bf16": {"enabled": True},
    }  # fmt: skip
    zero = DeepSpeedConfig(filled).zero_config
    assert zero.stage == int(strategy[-1])
    assert (
        zero.reduce_bucket_size
        == read_json(Path("out/deepspeed.json"))["zero_optimization"]["reduce_bucket_size"]
    )


def test_buckets_are_no_larger_than_a_small_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_recipe(tmp_path, config=SMALL)
    monkeypatch.chdir(tmp_path)
    found = plan("--gpu", "l4", "--num-gpus", "2", "--strategy", "zero2", "--emit", "out")
    bucket = read_json(Path("out/deepspeed.json"))["zero_optimization"]["reduce_bucket_size"]
    assert bucket == found["num_parameters"] < 16_777_216


def test_the_command_says_what_the_overrides_say(folder: Path) -> None:
    plan(
        "--gpu",
        "l4",
        "--num-gpus",
        "2",
        "--search",
        "--emit",
        "out",
        "--set",
        "prompt.template=It's {{ question }}",
    )
    command = Path("out/launch.sh")
    assert os.access(command, os.X_OK)
    subprocess.run(["sh", "-n", str(command)], check=True)
    said = Path("fake")
    said.mkdir()
    (said / "accelerate").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (said / "accelerate").chmod(0o755)
    environment = os.environ | {"PATH": f"{said.absolute()}:{os.environ['PATH']}"}
    done = subprocess.run(
        [str(command), "--dry-run"], env=environment, capture_output=True, text=True, check=True
    )
    words = done.stdout.splitlines()
    assert words[:4] == ["launch", "--config_file", "out/accelerate.yaml", "-m"]
    assert words[4:7] == ["rest_em", "run", "recipe.yaml"]
    assert words[-1] == "--dry-run"
    given = words[7:-1]
    assert given[:2] == ["--set", "prompt.template=It's {{ question }}"]
    overrides = yaml.safe_load(Path("out/overrides.yaml").read_text())
    assert overrides.pop("prompt") == {"template": "It's {{ question }}"}
    assert len(given) == 2 + 2 * sum(map(len, overrides.values())) > 4
    for option in given[3::2]:
        key, _, value = option.partition("=")
        section, name = key.split(".")
        assert overrides[section][name] == yaml.safe_load(value)
    elsewhere = subprocess.run(
        [str(command.absolute())], cwd=said, env=environment, capture_output=True, text=True, check=False
    )
    assert elsewhere.returncode == 1
    assert "start it where recipe.yaml is" in elsewhere.stderr


def test_the_command_is_not_started_where_its_launch_file_is_not(folder: Path) -> None:
    recipe = str(Path("recipe.yaml").absolute())
    options = ["--gpu", "h200", "--strategy", "single", "--emit", "out's"]
    done = CliRunner().invoke(app, ["plan", recipe, *options])
    assert done.exit_code == 0, done.output
    Path("other").mkdir()
    elsewhere = subprocess.run(
        [str(Path("out's/launch.sh").absolute())], cwd="other", capture_output=True, text=True, check=False
    )
    assert elsewhere.returncode == 1
    assert "launch.sh: start it where out's/accelerate.yaml is" in elsewhere.stderr


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = str(write_recipe(tmp_path / "there"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "file").write_text("")
    for place, told in (
        (".", "--emit .: the working directory cannot be replaced; name a folder within it"),
        (str(tmp_path / "file" / "x"), "cannot be written: File exists; name a folder that may be written"),
        ("/proc/x", "--emit /proc/x: cannot be written: "),
    ):
        done = CliRunner().invoke(app, ["plan", recipe, "--gpu", "h200", "--emit", place])
        assert isinstance(done.exception, PlanError)
        assert told in str(done.exception)
    assert not list(Path.cwd().iterdir())
    assert {one.name for one in tmp_path.iterdir()} == {"there", "here", "file"}


def test_nodes_are_told_apart_by_the_environment(folder: Path) -> None:
    plan("--gpu", "h100", "--num-gpus", "8", "--num-nodes", "2", "--strategy", "zero3", "--emit", "out")
    values = yaml.safe_load(Path("out/accelerate.yaml").read_text())
    assert (values["num_machines"], values["num_processes"]) == (2, 16)
    assert values["deepspeed_config"]["deepspeed_multinode_launcher"] == "standard"
    done = subprocess.run(["out/launch.sh"], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "MACHINE_RANK" in done.stderr
    assert "0 on the first node" in done.stderr


def test_a_folder_with_something_else_is_refused_and_left_alone(folder: Path) -> None:
    options = ("--gpu", "h200", "--strategy", "single", "--emit", "out")
    Path("out").mkdir()
    Path("out/notes.txt").write_text("mine")
    told = refusal(*options)
    assert "--emit out: notes.txt is there, and would be lost; name a new folder, or one that only" in told
    assert [one.name for one in Path("out").iterdir()] == ["notes.txt"]
    Path("out/notes.txt").unlink()
    plan(*options)
    plan("--gpu", "h200", "--num-gpus", "2", "--strategy", "zero2", "--emit", "out")
    assert sorted(one.name for one in Path("out").iterdir()) == NAMES
    plan(*options)
    assert not Path("out/deepspeed.json").exists()
    assert {one.name for one in folder.iterdir()} == {
        "model",
        "out",
        "recipe.yaml",
        "test.jsonl",
        "train.jsonl",
    }
    assert "--emit recipe.yaml: a file is there" in refusal("--gpu", "h200", "--emit", "recipe.yaml")


def test_what_rest_em_cannot_run_or_what_does_not_fit_is_not_emitted(folder: Path) -> None:
    nvme = refusal(
        "--gpu", "h200", "--num-gpus", "2", "--strategy", "zero3", "--offload", "nvme", "--emit", "out"
    )
    assert "--emit out: NVMe takes an operator that DeepSpeed compiles" in nvme
    assert "plan without it, or with --search for what it can run" in nvme
    nothing = refusal(
        "--gpu", "rtx4090", "--num-gpus", "4", "--set", "training.optim=adamw_bnb_8bit", "--search",
        "--emit", "out",
    )  # fmt: skip
    assert "nothing that rest_em can run as recipe.yaml asks fits" in nothing
    assert not Path("out").exists()


def test_overrides_are_read_as_a_recipe_reads_them(folder: Path) -> None:
    plan("--gpu", "h100", "--set", "training.learning_rate=1e-4", "--set", "lora.r=8", "--emit", "out")
    found = read_document(Path("out/overrides.yaml"))
    assert found.values["training"]["learning_rate"] == 1e-4
    assert found.values["lora"] == {"r": 8}
    command = Path("out/launch.sh").read_text()
    assert "--set training.learning_rate=1e-4" in command


def test_a_configuration_of_deepspeed_is_planned_for_as_it_says(folder: Path) -> None:
    Path("ds.json").write_text(
        json.dumps({"zero_optimization": {"stage": 3, "reduce_bucket_size": "auto", "sub_group_size": 1e8}})
    )
    Path("launch.yaml").write_text(
        "distributed_type: DEEPSPEED\ndeepspeed_config: {deepspeed_config_file: ds.json}\n"
    )
    launch = Launch.from_file(Path("launch.yaml"), 4)
    assert launch.strategy == "zero3"
    environment = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": "ds.json"}
    assert Launch.from_environment(environment, 4) == launch
    found = plan("--gpu", "h100", "--num-gpus", "4", "--launch", "launch.yaml")
    assert found["training"]["components"]["reduction bucket"] == 2 * 4096 * 4096
    Path("ds.json").write_text(json.dumps({"zero_optimization": {"stage": 3, "reduce_bucket_size": "large"}}))
    told = refusal("--gpu", "h100", "--num-gpus", "4", "--launch", "launch.yaml")
    assert (
        told
        == "zero_optimization.reduce_bucket_size is 'large'; a number from 0 to 2**63 or \"auto\" is wanted"
    )
    Path("ds.json").write_text("{}")
    assert "ds.json: cannot be read as a configuration of DeepSpeed" in refusal(
        "--launch", "launch.yaml", "--gpu", "h100"
    )


def test_an_emitted_launch_runs_on_two_ranks_with_the_optimiser_on_the_host(
    tmp_path: Path, tiny_model_folder: Path
) -> None:
    tiny_run.write_recipe(tmp_path, tiny_model_folder)
    small = [
        "training.num_train_epochs=1", "evaluation.num_samples=0", "evaluation.num_train_problems=0",
        "sampling.num_samples=2", "sampling.max_new_tokens=8", "prompt.base=[{name: bare}]",
    ]  # fmt: skip
    asked = [word for one in small for word in ("--set", one)]
    options = ["--gpu", "cpu", "--num-gpus", "2", "--strategy", "zero2", "--offload", "optimizer", *asked]
    planned = tiny_run.finish(
        tiny_run.launch("plan", "tiny.yaml", *options, "--json", "--emit", "out"), tmp_path
    )
    assert planned.returncode == 0, planned.stderr
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = tiny_run.finish(["env", f"PATH={path}", "out/launch.sh"], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / tiny_run.RUN
    assert read_json(run / "status.json")["state"] == "finished"
    assert list((run / "iteration-01" / "policy").glob("*.safetensors"))
    predicted = read_json(run / "plan.json")["predicted"]["training"]
    emitted = json.loads(planned.stdout)["training"]
    assert predicted["strategy"] == "zero2"
    assert predicted["instants"] == emitted["instants"]
    assert predicted["host_peak_bytes"] == emitted["host_peak_bytes"]
