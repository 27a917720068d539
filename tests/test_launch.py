"""The launch files: accelerate and DeepSpeed read them, and their heads say what the planner says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DeepSpeedPlugin
from accelerate.utils.launch import (
    prepare_deepspeed_cmd_env,
    prepare_multi_gpu_env,
    prepare_simple_launcher_cmd_env,
)

from rest_em.devices import is_cpu_asked_for
from rest_em.errors import TrainingError
from rest_em.nvme import FOLDER_VARIABLES, prepare_nvme
from rest_em.planner.states import model_states
from rest_em.planner.strategies import StateSetup, ZeroSettings
from rest_em.planner.weights import Weight, Weights
from rest_em.planning import Launch

LAUNCH = Path(__file__).parents[1] / "launch"
FILES = sorted(path.stem for path in LAUNCH.glob("*.yaml"))


def launched(name: str, *options: str) -> dict[str, str]:
    """Return the environment that `accelerate launch` would start processes with under a launch file."""
    file = str(LAUNCH / f"{name}.yaml")
    asked = launch_command_parser().parse_args(["--config_file", file, *options, "-m", "rest_em"])
    asked, config, _ = _validate_launch_command(asked)
    environment: dict[str, str]
    if asked.use_deepspeed:
        asked.deepspeed_fields_from_accelerate_config = ",".join(config.deepspeed_config)
        _, environment = prepare_deepspeed_cmd_env(asked)
    elif asked.multi_gpu:
        environment = prepare_multi_gpu_env(asked)
    else:
        _, environment = prepare_simple_launcher_cmd_env(asked)
    return environment


def options(name: str) -> tuple[str, ...]:
    """Return what a launch file leaves to the command line."""
    return () if "num_processes:" in (LAUNCH / f"{name}.yaml").read_text() else ("--num_processes", "4")


def strategy(name: str) -> str:
    """Return the planner's name of what a launch file launches."""
    plain = {"cpu": "single", "single_gpu": "single", "zero_infinity": "zero3"}
    return plain.get(name, name.removesuffix("_cpu").removesuffix("_offload"))


@pytest.mark.parametrize("name", FILES)
def test_a_launch_file_starts_what_its_name_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config_from_file(str(LAUNCH / f"{name}.yaml"))
    environment = launched(name, *options(name))
    assert environment["ACCELERATE_MIXED_PRECISION"] == "no"  # the recipe's
    assert is_cpu_asked_for(environment) == (name == "cpu")
    assert config.num_machines == 1
    if strategy(name) == "single":
        assert (config.distributed_type.value, config.num_processes) == ("NO", 1)
        return
    assert config.main_process_port == 0
    if strategy(name) == "ddp":
        assert config.distributed_type.value == "MULTI_GPU"
        return
    assert config.distributed_type.value == "DEEPSPEED"
    assert config.deepspeed_config["deepspeed_multinode_launcher"] == "standard"
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    from deepspeed.runtime.config import DeepSpeedConfig

    filled = DeepSpeedPlugin().deepspeed_config | {
        "train_batch_size": 8, "train_micro_batch_size_per_gpu": 8, "gradient_accumulation_steps": 1,
        "gradient_clipping": 1.0, "bf16": {"enabled": True},
    }  # fmt: skip
    zero = DeepSpeedConfig(filled).zero_config
    device = {"zero_infinity": "nvme", "zero3_offload": "cpu"}.get(name.removesuffix("_cpu"), "none")
    assert (zero.stage, zero.gather_16bit_weights_on_model_save) == (int(strategy(name)[-1]), zero.stage == 3)
    assert (zero.offload_optimizer.device, zero.offload_param.device) == (device, device)
    planned = Launch.from_environment(environment, 4)
    assert planned == Launch.from_file(LAUNCH / f"{name}.yaml", 4)
    assert (planned.strategy, planned.offload_optimizer, planned.offload_param) == (
        strategy(name), device, device
    )  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_the_head_of_a_launch_file_gives_commands_that_accelerate_takes(name: str) -> None:
    text = (LAUNCH / f"{name}.yaml").read_text()
    head = "".join(re.findall(r"^#(.*\n)", text, re.MULTILINE)).replace("\\\n", " ")
    commands = re.findall(rf"accelerate launch (--config_file launch/{name}\.yaml .*)", head)
    is_for_several = strategy(name) != "single" and not name.endswith("_cpu")
    assert len(commands) == (2 if is_for_several else 1)
    for number, command in enumerate(commands, start=1):
        asked = launch_command_parser().parse_args(shlex.split(command.replace("launch/", f"{LAUNCH}/", 1)))
        assert (asked.training_script, asked.training_script_args) == ("rest_em", ["run", "RECIPE.yaml"])
        asked, *_ = _validate_launch_command(asked)
        assert asked.num_machines == number
        if number == 2:
            assert (asked.num_processes, asked.main_process_port, asked.machine_rank) == (16, 29500, 0)
    assert "For: " in head
    if is_for_several:
        with pytest.raises(ValueError, match="manually pass in `--num_processes`"):
            launched(name)


@pytest.mark.parametrize("name", [name for name in FILES if "cpu" not in name])
@pytest.mark.parametrize("number", [4, 8, 64])
def test_the_bytes_a_parameter_in_a_head_are_the_planners(name: str, number: int) -> None:
    (formula,) = re.findall(
        r"^# Model states on each .*, bytes a trained parameter: (.*)$",
        (LAUNCH / f"{name}.yaml").read_text(),
        re.MULTILINE,
    )
    weights = Weights((Weight("layers.mlp.weight", 64_000, count=640),))
    offload = {"zero3_offload": "cpu", "zero_infinity": "nvme"}.get(name, "none")
    kind = strategy(name)
    number = 1 if kind == "single" else number
    states = model_states(
        weights,
        StateSetup(
            kind, number, number, "bf16" if kind.startswith("zero") else "autocast",
            offload_optimizer=offload, offload_param=offload,
            zero=ZeroSettings(reduce_bucket_size=0, param_persistence_threshold=0),
        ),
    )  # fmt: skip
    after_backward = sum(states.forward.values()) + sum(states.after_backward.values())
    # The end of ZeRO-1's backward holds all gradients, which its step has shared out.
    end = sum(states.forward.values()) + states.gradient_bytes(weights.num_elements - 1)
    peak = max(after_backward, sum(states.step.values()), end if kind == "zero1" else 0)
    assert eval(formula, {"N": number, "max": max}) == pytest.approx(peak / weights.num_elements)
    if name == "zero3_offload":
        assert sum(states.host.values()) == 20 * weights.num_elements
    if name == "zero_infinity":
        assert sum(states.swap.values()) == 18 * weights.num_elements


def test_a_run_on_nvme_wants_a_folder_that_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in FOLDER_VARIABLES.values():
        monkeypatch.delenv(name, raising=False)
    environment = launched("zero_infinity", "--num_processes", "2")
    first, second = FOLDER_VARIABLES.values()
    with pytest.raises(
        TrainingError, match=rf"offload_optimizer is on NVMe, and no folder is named: set {first}"
    ):
        prepare_nvme(environment, 2, print)
    environment |= {first: str(tmp_path), second: str(tmp_path / "none")}
    with pytest.raises(TrainingError, match=rf"none: no folder that can be written, .*: set {second} to a"):
        prepare_nvme(environment, 2, print)
    prepare_nvme(launched("zero3_offload", "--num_processes", "2"), 2, print)  # wants none


def test_a_run_whose_operator_cannot_be_built_says_what_to_install_and_waits_for_no_lock(
    tmp_path: Path,
) -> None:
    (tmp_path / "async_io").mkdir()
    (tmp_path / "async_io" / "lock").touch()  # of a build that was killed
    environment = launched("zero_infinity", "--num_processes", "2") | {
        "TORCH_EXTENSIONS_DIR": str(tmp_path),
        "LDFLAGS": "-nostdlib",  # libaio is not found, also where it is
        "DS_ACCELERATOR": "cpu",
        **{name: str(tmp_path) for name in FOLDER_VARIABLES.values()},
    }
    said: list[str] = []
    with pytest.raises(TrainingError) as told:
        prepare_nvme(environment, 2, said.append)
    assert "libaio's header or library is not found" in str(told.value)
    assert "Debian and Ubuntu: libaio-dev" in str(told.value)
    assert said == [f"{tmp_path}: DeepSpeed's operator async_io is compiled for NVMe, once; it takes minutes"]
    assert not (tmp_path / "async_io" / "lock").exists()
