"""The plan of a run before its launch: told, refused where it is certain to fail, never in the way."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tiny_run import RUN, finish, launch, write_recipe

from rest_em import run_plan
from rest_em.cli_plan import STRATEGIES
from rest_em.errors import PlanError, RecipeError
from rest_em.planner.hardware import Cluster, find_gpu, load_gpus
from rest_em.planner.measured import PLAN, beside, read_plan
from rest_em.planner.strategies import DEVICES_OF
from rest_em.planning import Launch, make_plan
from rest_em.problem_sets import ProblemSets
from rest_em.recipe import load_recipe
from rest_em.report.run_plan import usage_tables
from rest_em.run_plan import RunPlan, launched_cluster, plan_run, refuse_impossible
from rest_em.stages import Ranks
from rest_em.storage import read_json
from rest_em.usage import MeasuredStage, Usage

CPU = {"ACCELERATE_USE_CPU": "true"}
HUGE = {"num_hidden_layers": 80, "hidden_size": 81920, "intermediate_size": 286720, "num_attention_heads": 64}
"""7e12 parameters: no machine has the memory. Wide rather than deep: each layer has its instants."""
UNHEARD_OF = {"model_type": "unheard_of"}


def model(folder: Path, tiny: Path, **changes: Any) -> Path:
    """Write a model without weights: the tiny one's tokenizer and a configuration."""
    shutil.copytree(tiny, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((folder / "config.json").read_text()) | changes
    config.pop("head_dim", None)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def files_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.name not in (".lock", "logs")}


def test_a_run_that_cannot_fit_is_refused_before_anything_starts(
    tmp_path: Path, tiny_model_folder: Path
) -> None:
    write_recipe(tmp_path, model(tmp_path / "huge", tiny_model_folder, **HUGE))
    dry = finish(launch("run", "tiny.yaml", "--dry-run"), tmp_path)
    assert (dry.returncode, dry.stdout) == (1, "")
    assert not (tmp_path / "runs").exists()
    done = finish(launch("run", "tiny.yaml"), tmp_path)
    assert done.returncode == 1
    for said in (dry.stderr, done.stderr):
        assert "plan: 1 x " in said
        assert "error: sampling: at the instant " in said
        assert "GiB more than it has; no number of rows fits: take a device with more memory or a" in said
        assert "GiB more than it has; nothing that learns the same fits on these devices" in said
        assert said.count("training: at the instant") == said.count("sampling: at the instant") == 1
        assert "is not expected to fit" not in said
        assert "RECIPE" not in said
        assert "--force starts the run all the same" in said
        assert "Traceback" not in said
    status = read_json(tmp_path / RUN / "status.json")
    assert status["state"] == "failed"
    assert done.stderr.endswith(f"error: {status['message']}\n")
    assert files_in(tmp_path / RUN) == {"status.json"}


LARGE = {"num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32}
"""Some 7e9 parameters."""
MIDDLE = LARGE | {
    "num_hidden_layers": 4,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "max_position_embeddings": 8192,
}


@pytest.mark.parametrize(
    ("config", "gpu", "number", "words"),
    [
        (MIDDLE, "l4", 1, ["it would fit with --set training.per_device_train_batch_size="]),
        (LARGE, "h100_sxm", 1, ["--offload ", " GiB of host memory a node)"]),
        (LARGE, "h100_sxm", 8, ["--strategy zero3", "--emit DIR"]),
    ],
)
def test_what_a_refusal_advises_fits(
    fresh: Path,
    tiny_model_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    config: dict[str, Any],
    gpu: str,
    number: int,
    words: list[str],
) -> None:
    folder = model(fresh / "large", tiny_model_folder, **config)
    (fresh / "tiny.yaml").unlink()
    write_recipe(fresh, folder)
    cluster = Cluster(gpu=find_gpu(gpu, load_gpus()), num_gpus=number)
    monkeypatch.setattr(run_plan, "launched_cluster", lambda ranks, environment: cluster)
    asked = [
        "training.global_batch_size=64",
        "training.per_device_train_batch_size=8",
        "training.max_length=4096",
        "sampling.max_new_tokens=4000",
    ]
    recipe = load_recipe(fresh / "tiny.yaml", asked)
    planned = plan_run(recipe, ProblemSets(recipe), Ranks(number, number), {})
    assert planned.failures.keys() == {"training"}, (planned.lines, planned.failures)
    told = planned.failures["training"]
    assert all(word in told for word in words), told
    sets = re.findall(r"--set (\S+)", told)
    strategy = re.search(r"--strategy (\w+)", told)
    offload = re.search(r"--offload (\w+)", told)
    advised = load_recipe(fresh / "tiny.yaml", [*asked, *sets])
    placed = dict[str, Any](DEVICES_OF)[offload[1] if offload else "none"]
    plain = "ddp" if number > 1 else "single"
    launched = Launch(STRATEGIES[strategy[1] if strategy else plain], *placed, is_sized=True)
    again = make_plan(advised, ProblemSets(advised), cluster, launched)
    assert again.training.memory.spare_bytes >= 0


def test_no_offload_is_advised_that_the_host_cannot_hold(
    fresh: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = model(fresh / "large", tiny_model_folder, **LARGE)
    (fresh / "tiny.yaml").unlink()
    write_recipe(fresh, folder)
    recipe = load_recipe(fresh / "tiny.yaml")
    told = []
    for host in (2**40, 2**36):
        cluster = Cluster(gpu=find_gpu("h100_sxm", load_gpus()), host_memory_bytes=host)
        monkeypatch.setattr(run_plan, "launched_cluster", lambda ranks, environment, one=cluster: one)
        told.append(plan_run(recipe, ProblemSets(recipe), Ranks(), {}).failures["training"])
    assert "--offload" in told[0]
    assert "--offload" not in told[1]
    assert "nothing that learns the same fits on these devices (method: full -> lora" in told[1]


def test_force_starts_a_run_that_cannot_fit(tmp_path: Path, tiny_model_folder: Path) -> None:
    write_recipe(tmp_path, model(tmp_path / "huge", tiny_model_folder, **HUGE))
    done = finish(launch("run", "tiny.yaml", "--force"), tmp_path)
    assert done.returncode == 1
    assert "--force: sampling is started all the same: at the instant" in done.stderr
    assert "stage sample failed on rank 0" in done.stderr  # there are no weights
    assert read_json(tmp_path / RUN / PLAN)["predicted"]["fits"] is False


def test_a_family_that_is_not_known_is_told_and_runs_all_the_same(
    tmp_path: Path, tiny_model_folder: Path
) -> None:
    write_recipe(tmp_path, model(tmp_path / "other", tiny_model_folder, **UNHEARD_OF))
    done = finish(launch("run", "tiny.yaml"), tmp_path)
    (line,) = [one for one in done.stderr.splitlines() if "no plan of memory and time: " in one]
    assert "model_type is 'unheard_of', which the planner does not know" in line
    assert "stage sample failed on rank 0" in done.stderr  # transformers does not know it either
    kept = read_json(tmp_path / RUN / PLAN)
    assert (kept.keys(), kept["measured"]) == ({"unplanned", "measured"}, [])
    assert "'unheard_of'" in kept["unplanned"]


def test_a_mistake_of_the_planners_own_stops_no_run(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe(fresh / "tiny.yaml")
    (fresh / "tokenizer.json").write_text("{")
    planned = plan_run(
        recipe.model_copy(update={"model": recipe.model.model_copy(update={"name_or_path": str(fresh)})}),
        ProblemSets(recipe),
        Ranks(),
        CPU,
    )
    assert planned.lines[0].startswith("no plan of memory and time: ")
    monkeypatch.setattr(run_plan, "local_cpu", lambda: 1 // 0)
    planned = plan_run(recipe, ProblemSets(recipe), Ranks(), CPU)
    assert planned.document == {"unplanned": "the planner failed with ZeroDivisionError: " + _division()}
    planned.refuse([])


def _division() -> str:
    with pytest.raises(ZeroDivisionError) as caught:
        _ = 1 // 0
    return str(caught.value)


def test_a_launch_that_is_not_planned_for_stops_no_run(fresh: Path) -> None:
    recipe = load_recipe(fresh / "tiny.yaml")
    deepspeed = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "0"}
    planned = plan_run(recipe, ProblemSets(recipe), Ranks(), CPU | deepspeed)
    assert "ZeRO stage 0 is not planned for" in planned.document["unplanned"]


def test_what_no_m_step_could_do_is_refused_before_an_e_step(fresh: Path, tiny_model_folder: Path) -> None:
    quantised = ["lora.r=4", "quantization.load_in_4bit=true"]
    recipe = load_recipe(fresh / "tiny.yaml", quantised)
    refuse_impossible(recipe, {})
    with pytest.raises(RecipeError, match=r"--set.*quantization: a quantised base is not trained with DeepS"):
        refuse_impossible(recipe, {"ACCELERATE_USE_DEEPSPEED": "true"})
    with pytest.raises(RecipeError, match=r"chooses FSDP; DDP or DeepSpeed is wanted"):
        refuse_impossible(load_recipe(fresh / "tiny.yaml"), {"ACCELERATE_USE_FSDP": "true"})
    capped = model(fresh / "capped", tiny_model_folder, model_type="gemma2")
    asked = [f"model.name_or_path={capped}", "training.packing=true"]
    with pytest.raises(RecipeError, match=r"training.packing is true, but .* like this gemma2; give auto"):
        refuse_impossible(load_recipe(fresh / "tiny.yaml", asked), {})


def test_only_a_kind_of_stage_that_has_not_finished_yet_is_refused() -> None:
    planned = RunPlan({}, (), {"sampling": "much too much", "training": "too much"})
    with pytest.raises(PlanError, match=r"sampling: much too much\ntraining: too much\n--force"):
        planned.refuse(["iteration-00/prompt"])
    with pytest.raises(PlanError, match=r"^training: too much\n--force"):
        planned.refuse(["iteration-00/validation/shown/samples"])
    planned.refuse(["iteration-01/samples", "iteration-01/training"])


def test_the_ranks_of_a_machine_share_its_processor() -> None:
    alone = launched_cluster(Ranks(), CPU)
    shared = launched_cluster(Ranks(world_size=4, local_world_size=2), CPU)
    assert (alone.gpu.name, alone.num_devices) == ("cpu", 1)
    assert (shared.num_gpus, shared.num_nodes) == (2, 2)
    assert shared.gpu.usable_bytes == alone.gpu.usable_bytes // 2


@pytest.mark.parametrize(
    ("told", "visible", "found"),
    [
        ("NVIDIA L4, 23034 MiB\nNVIDIA L4, 23034 MiB", None, "l4"),
        ("NVIDIA L4, 23034 MiB", "", "cpu"),
        ("NVIDIA L4, 23034 MiB\nTesla T4, 15360 MiB", None, "GPUs of several kinds: NVIDIA L4, Tesla T4"),
        ("NVIDIA Unheard Of, 23034 MiB", "0", "this machine's NVIDIA Unheard Of is not known"),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="the driver is a shell's script")
def test_a_launch_is_planned_on_the_gpus_of_its_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str, visible: str | None, found: str
) -> None:
    driver = tmp_path / "nvidia-smi"
    driver.write_text(f"#!/bin/sh\nprintf '{told}'\n")
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(run_plan, "version", lambda name: "2.9.0+cu128")
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    ranks = Ranks(world_size=2, local_world_size=2)
    if " " in found:
        with pytest.raises(PlanError, match=found):
            launched_cluster(ranks, environment)
    else:
        cluster = launched_cluster(ranks, environment)
        assert (cluster.gpu.name, cluster.num_devices) == (found, 2)


def test_a_torch_without_gpus_is_planned_on_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_plan, "version", lambda name: "2.9.0+cpu")
    assert launched_cluster(Ranks(), {}).gpu.name == "cpu"


def stage(name: str, *, seconds: float, device: str = "cpu") -> MeasuredStage:
    """Return a stage that took 300 bytes a rank and drew 50 tokens a second."""
    usage = Usage(
        num_ranks=1, device=device, device_name="one", peak_allocated_bytes=200, peak_reserved_bytes=250,
        device_used_bytes=None, device_bytes=None, peak_resident_bytes=300, resident_bytes_at_start=90,
        num_tokens=100, num_steps=0, seconds=seconds, work_seconds=2.0,
    )  # fmt: skip
    return MeasuredStage(name, "sample", 1, usage)


def predicted(gpu: str, peak: int) -> dict[str, Any]:
    phase = {"peak_bytes": peak, "outside": {"context": 50}, "tokens_per_second": 40.0}
    return {"predicted": {"gpu": gpu, "sampling": phase, "training": phase}}


def test_what_is_measured_is_of_the_kind_that_is_predicted() -> None:
    on_cpu, measuring = beside(
        predicted("cpu", 100),
        [
            stage("iteration-01/samples", seconds=3),
            stage("iteration-01/evals/test/greedy/samples", seconds=1),
        ],
    )
    assert (on_cpu["peak_bytes"], on_cpu["predicted_peak_bytes"], on_cpu["peak_ratio"]) == (300, 150, 2.0)
    assert (on_cpu["tokens_per_second"], on_cpu["predicted_tokens_per_second"]) == (50.0, 40.0)
    assert (measuring["peak_bytes"], measuring["peak_ratio"]) == (300, None)
    (on_gpu,) = beside(predicted("l4", 100), [stage("iteration-01/samples", seconds=3, device="cuda")])
    assert (on_gpu["peak_bytes"], on_gpu["predicted_peak_bytes"], on_gpu["peak_ratio"]) == (200, 100, 2.0)
    (elsewhere,) = beside(predicted("l4", 100), [stage("iteration-01/samples", seconds=3)])
    assert elsewhere["predicted_peak_bytes"] is None
    (unplanned,) = beside({"unplanned": "so"}, [stage("iteration-01/samples", seconds=3)])
    assert (unplanned["peak_bytes"], unplanned["peak_ratio"]) == (300, None)


def test_a_stage_keeps_the_prediction_of_its_own_launch_until_it_is_done_again() -> None:
    first = stage("iteration-01/samples", seconds=3)
    kept = predicted("cpu", 250) | {"measured": beside(predicted("cpu", 100), [first])}
    same, later = beside(kept, [first, stage("iteration-02/samples", seconds=3)])
    assert (same["predicted_peak_bytes"], later["predicted_peak_bytes"]) == (150, 300)
    (again,) = beside(kept, [stage("iteration-01/samples", seconds=4)])
    assert again["predicted_peak_bytes"] == 300


@pytest.mark.parametrize("text", [None, "", "{", "[]", "{}", '{"measured": 1}'])
def test_a_plan_that_is_gone_or_spoilt_is_none(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / PLAN).write_text(text)
    assert read_plan(tmp_path) is None


def test_the_table_has_a_line_a_predicted_stage_and_is_absent_without_a_plan() -> None:
    stages = [stage("iteration-01/samples", seconds=3), stage("iteration-01/evals/a/samples", seconds=3)]
    (table,) = usage_tables({"measured": beside(predicted("cpu", 2**30 - 50), stages)})
    console = Console(width=132, record=True)
    console.print(table)
    lines = console.export_text().splitlines()
    assert lines[0].strip() == "resident memory of a rank and speed of all, predicted beside measured"
    assert lines[2].split() == ["1", "sample", "1.00", "GiB", "0.00", "GiB", "0.00", "40", "50"]
    assert len(lines) == 3
    assert usage_tables(None) == []
    assert usage_tables({"unplanned": "so", "measured": []}) == []
