"""A plan from a recipe: what is planned for, what is said, and what each mistake is told as."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from rest_em.cli import app
from rest_em.errors import PlanError
from rest_em.planner.hardware import Cluster, find_gpu, load_gpus
from rest_em.planner.plan import certain_failures, to_json
from rest_em.planner.workload import expected_kept
from rest_em.planning import Launch, make_plan
from rest_em.problem_sets import ProblemSets
from rest_em.recipe import load_recipe

CONFIG = {
    "model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 14336,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "dtype": "bfloat16",
    "max_position_embeddings": 8192, "tie_word_embeddings": False,
}  # fmt: skip
"""Llama 3 8B: 8,030,261,248 parameters."""


def write_recipe(folder: Path, config: dict[str, Any] | None = None, **more: Any) -> Path:
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "config.json").write_text(json.dumps(config or CONFIG))
    for name, start in (("train", 0), ("test", 500)):
        rows = [{"question": f"What is {i} + {i}?", "answer": str(2 * i)} for i in range(start, start + 40)]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    values = {
        "model": {"name_or_path": "model"},
        "problems": {"train": {"path": "train.jsonl"}, "test": {"path": "test.jsonl"}},
        "prompt": {"template": "Q: {{ question }}\nA:"},
        "reward": {"name": "number"},
        "sampling": {"num_samples": 8, "max_new_tokens": 512},
        **more,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def _json(path: Path, *options: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["plan", str(path), "--json", *options])
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_json_has_both_phases_in_bytes_seconds_and_dollars(tmp_path: Path) -> None:
    plan = _json(write_recipe(tmp_path), "--gpu", "h100", "--num-gpus", "8", "--strategy", "zero3")
    assert plan["num_parameters"] == 8_030_261_248
    sampling, training = plan["sampling"], plan["training"]
    assert sampling["fits"] is True
    assert sampling["components"]["weights"] == 2 * 8_030_261_248
    assert sum(sampling["components"].values()) == sampling["peak_bytes"]
    assert sampling["max_batch"] >= 128
    assert sampling["tokens_per_second"] > 0
    assert sum(training["components"].values()) == training["peak_bytes"]
    assert training["peak_bytes"] == max(training["instants"].values())
    assert training["instants"][training["instant"]] == training["peak_bytes"]
    assert training["host_peak_bytes"] > 2 * 8_030_261_248
    for phase in (sampling, training):
        assert phase["seconds"] > 0
        price = find_gpu("h100", load_gpus()).dollars_per_hour
        assert price is not None
        assert phase["dollars"] == pytest.approx(phase["seconds"] / 3600 * price * 8)


def test_a_full_8b_model_in_fp32_masters_does_not_fit_on_one_card_and_zero3_fits_on_eight(
    tmp_path: Path,
) -> None:
    path = write_recipe(tmp_path)
    alone = _json(path, "--gpu", "h100", "--num-gpus", "1")["training"]
    assert alone["fits"] is False
    assert alone["is_certain_failure"] is True
    assert alone["components"]["weights"] == 4 * 8_030_261_248
    assert alone["components"]["optimiser states"] == 8 * 8_030_261_248
    shared = _json(path, "--gpu", "h100", "--num-gpus", "8", "--strategy", "zero3")["training"]
    assert shared["fits"] is True


def test_a_certain_failure_names_the_instant_and_the_shortfall(tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path))
    cluster = Cluster(gpu=find_gpu("l4", load_gpus()))
    plan = make_plan(recipe, ProblemSets(recipe), cluster, Launch("single"))
    failures = certain_failures(plan)
    assert failures.keys() == {"sampling", "training"}
    holds = "at the instant '.*' a device holds .* GiB"
    assert re.fullmatch(rf"{holds}, [0-9.]+ GiB more than it has", failures["sampling"])
    assert re.fullmatch(rf"{holds} \(most of it .*\), [0-9.]+ GiB more than it has", failures["training"])


def test_lora_and_checkpointing_of_a_recipe_are_planned_for(tmp_path: Path) -> None:
    path = write_recipe(
        tmp_path, lora={"r": 16, "target_modules": "all-linear"}, training={"activation_checkpointing": True}
    )
    training = _json(path, "--gpu", "l40s")["training"]
    assert training["method"] == "lora"
    assert training["fits"] is True
    assert training["components"]["frozen weights"] == 2 * 8_030_261_248
    # r (in + out) a matrix and layer: q and o 8192, k and v 5120, gate, up and down 18432 each.
    trained = 32 * 16 * (2 * 8192 + 2 * 5120 + 3 * 18432)
    assert training["components"]["weights"] == 4 * trained


def test_methods_that_are_not_the_recipes_are_planned_for(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    full, lora, qlora = (
        _json(path, "--gpu", "h100", "--method", name)["training"] for name in ("full", "lora", "qlora")
    )
    assert full == _json(path, "--gpu", "h100")["training"]
    same = _json(path, "--gpu", "h100", "--set", "lora.r=16", "--set", "lora.target_modules=all-linear")
    assert lora == same["training"]
    lora, qlora = lora["components"], qlora["components"]
    assert lora["frozen weights"] == 2 * 8_030_261_248
    # 6,979,321,856 of them in linear layers: half a byte each, and 4 bytes for 64; the others in fp32
    assert qlora["frozen weights"] == 6_979_321_856 * 0.5625 + (8_030_261_248 - 6_979_321_856) * 4
    assert qlora["dequantised weight"] == 2 * 4096 * 14336


def test_batches_of_all_rows_at_the_cap_are_what_memory_follows(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    few = _json(path, "--gpu", "h200", "--set", "training.per_device_train_batch_size=1")["training"]
    more = _json(path, "--gpu", "h200", "--set", "training.per_device_train_batch_size=4")["training"]
    assert more["peak_bytes"] > few["peak_bytes"]
    assert few["longest"] == more["longest"] > 512


def test_expected_examples_are_the_mean_of_the_capped_binomial() -> None:
    # N 2, rate 1/2, cap 1: P(X > 0) = 3/4. Cap 2: the mean, 1.
    assert expected_kept(2, 0.5, 1) == 0.75
    assert expected_kept(2, 0.5, 2) == 1.0
    assert expected_kept(8, 1.0, 4) == 4.0
    assert expected_kept(8, 0.0, 4) == 0.0


def test_a_launch_file_says_the_stage(tmp_path: Path) -> None:
    file = Path(__file__).parents[2] / "launch" / "zero3_cpu.yaml"
    assert Launch.from_file(file, 2) == Launch("zero3")
    assert Launch.from_file(file.with_name("cpu.yaml"), 1) == Launch("single")
    (tmp_path / "fsdp.yaml").write_text("distributed_type: FSDP\n")
    with pytest.raises(PlanError, match="distributed_type is FSDP, which is not planned for"):
        Launch.from_file(tmp_path / "fsdp.yaml", 2)
    with pytest.raises(PlanError, match="cannot be read as a launch file"):
        Launch.from_file(tmp_path / "none.yaml", 2)


def test_a_launch_file_says_the_devices(tmp_path: Path) -> None:
    path, file = write_recipe(tmp_path), tmp_path / "launch.yaml"
    shipped = str(Path(__file__).parents[2] / "launch" / "zero2_cpu.yaml")
    plan = _json(path, "--launch", shipped, "--gpu", "l40s")
    assert (plan["num_gpus"], plan["num_nodes"], plan["training"]["strategy"]) == (2, 1, "zero2")
    assert _json(path, "--launch", shipped, "--gpu", "l40s", "--num-gpus", "2", "--num-nodes", "1") == plan
    file.write_text("distributed_type: MULTI_GPU\nnum_machines: 2\nnum_processes: 16\n")
    plan = _json(path, "--launch", str(file), "--gpu", "l40s")
    assert (plan["num_gpus"], plan["num_nodes"], plan["training"]["strategy"]) == (8, 2, "ddp")
    file.write_text("distributed_type: MULTI_GPU\nnum_machines: 2\n")
    plan = _json(path, "--launch", str(file), "--gpu", "l40s", "--num-gpus", "4")
    assert (plan["num_gpus"], plan["num_nodes"]) == (4, 2)


@pytest.mark.parametrize(
    ("text", "options", "told"),
    [
        (
            "num_processes: 2\nnum_machines: 1\n",
            ["--num-gpus", "4"],
            "--num-gpus is 4, and launch.yaml starts 2 by its num_processes and num_machines; leave",
        ),
        (
            "num_processes: 4\nnum_machines: 2\n",
            ["--num-gpus", "4"],
            "--num-gpus is 4, and launch.yaml starts 2 by",
        ),
        (
            "num_processes: 2\nnum_machines: 1\n",
            ["--num-nodes", "2"],
            "--num-nodes is 2, and launch.yaml starts 1 by",
        ),
        ("num_processes: two\n", [], "launch.yaml: num_processes is 'two'; a whole number > 0 is wanted"),
        (
            "distributed_type: 'NO'\nnum_processes: 2\n",
            [],
            "launch.yaml: num_processes is 2 with distributed_type NO, with which accelerate starts one",
        ),
        (
            "distributed_type: 'NO'\n",
            ["--num-gpus", "2"],
            "--num-gpus is 2, and launch.yaml starts 1 by",
        ),
        ("num_machines: 0\n", [], "launch.yaml: num_machines is 0; a whole number > 0 is wanted"),
        (
            "num_processes: 3\nnum_machines: 2\n",
            [],
            "launch.yaml: num_processes is 3, and num_machines 2; as many",
        ),
        (
            "distributed_type: DEEPSPEED\ndeepspeed_config: [1]\n",
            [],
            "launch.yaml: deepspeed_config is [1]; keys, as zero_stage: 2, are wanted",
        ),
        (
            "distributed_type: DEEPSPEED\ndeepspeed_config: {deepspeed_config_file: ds.json}\n",
            [],
            "zero_optimization.reduce_bucket_size is inf; a number from 0 to 2**63",
        ),
    ],
)
def test_each_mistake_of_a_launch_file_is_told_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, options: list[str], told: str
) -> None:
    write_recipe(tmp_path)
    monkeypatch.chdir(tmp_path)
    Path("launch.yaml").write_text(text)
    Path("ds.json").write_text('{"zero_optimization": {"stage": 2, "reduce_bucket_size": 1e400}}')
    result = CliRunner().invoke(
        app, ["plan", "recipe.yaml", "--gpu", "l4", "--launch", "launch.yaml", *options]
    )
    assert isinstance(result.exception, PlanError)
    assert told in str(result.exception)
    assert "\n" not in str(result.exception)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--gpu", "h900"], "h900"),
        (
            ["--gpu", "l4", "--strategy", "zero9"],
            "--strategy is 'zero9'; single, ddp, zero1, zero2,",
        ),
        (["--gpu", "l4", "--offload", "moon"], "--offload is 'moon'; none, optimizer, all, nvme are known"),
        (["--gpu", "l4", "--success", "40"], "--success is 40.0; a rate from 0 to 1 is wanted"),
        (["--gpu", "l4", "--mean-tokens", "0"], "--mean-tokens is 0.0; above 0 and at most"),
        (["--gpu", "l4", "--num-nodes", "0"], "num_nodes 0"),
        (["--gpu", "l4", "--method", "dora"], "--method is 'dora'; full, lora, qlora are known"),
        (
            ["--gpu", "cpu", "--method", "qlora", "--set", "training.bf16=false"],
            "a quantised base (qlora) cannot be planned for with fp32",
        ),
        (["--gpu", "l4", "--num-gpus", "0"], "num_gpus 0"),
        (["--gpu", "l4", "--num-gpus", "7"], "cannot be shared out evenly over 7 ranks"),
        (["--gpu", "l4", "--set", "training.optim=lomo"], "training.optim is 'lomo'"),
    ],
)
def test_each_mistake_is_told(tmp_path: Path, options: list[str], told: str) -> None:
    result = CliRunner().invoke(app, ["plan", str(write_recipe(tmp_path)), *options])
    assert result.exit_code != 0
    assert told in str(result.exception)


def test_an_unknown_family_is_an_error_and_no_guess(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, {**CONFIG, "model_type": "llama9"})
    result = CliRunner().invoke(app, ["plan", str(path), "--gpu", "l4"])
    assert "model_type is 'llama9', which the planner does not know" in str(result.exception)
    assert "did you mean llama?" in str(result.exception)


def test_a_model_without_a_configuration_is_told(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    (tmp_path / "model" / "config.json").unlink()
    result = CliRunner().invoke(app, ["plan", str(path), "--gpu", "l4"])
    assert "no such file; a model's folder has a config.json" in str(result.exception)


def test_every_figure_that_is_explained_has_a_formula(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    for options in (
        ["--strategy", "single"],
        ["--strategy", "ddp", "--num-gpus", "2"],
        ["--strategy", "zero1", "--num-gpus", "2"],
        ["--strategy", "zero2", "--num-gpus", "2", "--offload", "optimizer"],
        ["--strategy", "zero3", "--num-gpus", "2"],
        ["--strategy", "zero3", "--num-gpus", "2", "--offload", "nvme"],
    ):
        found = _json(path, "--gpu", "h100", "--explain", *options)["explained"]
        assert all(one["formula"] and one["source"] and one["confidence"] for one in found)


def test_a_plan_for_people_has_a_bar_a_phase(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["plan", str(write_recipe(tmp_path)), "--gpu", "h100"])
    assert result.exit_code == 0, result.output
    assert re.search(r"^sampling, [a-z]+: [0-9.]+ GiB of 79.20 GiB$", result.output, re.MULTILINE)
    assert re.search(r"^training, [a-z ]+: [0-9.]+ GiB of 79.20 GiB$", result.output, re.MULTILINE)
    assert "NO" in result.output


def test_devices_without_a_work_unit_are_told_and_draw_nothing(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    whole = _json(path, "--gpu", "h100", "--num-gpus", "8")["sampling"]
    num_tokens = whole["num_solutions"] * 256
    assert whole["tokens_per_second"] == pytest.approx(num_tokens / whole["seconds"], rel=0.02)
    assert whole["num_busy_devices"] < 8
    options = [
        "--gpu",
        "h100",
        "--num-gpus",
        "8",
        "--set",
        f"sampling.unit_size={whole['num_solutions'] // 8}",
    ]
    assert _json(path, *options)["sampling"]["num_busy_devices"] == 8
    result = CliRunner().invoke(app, ["plan", str(path), "--gpu", "h100", "--num-gpus", "8"])
    told = f"sampling.unit_size {whole['num_solutions'] // 8} would share them out"
    assert f"of 8 devices have no solutions to draw: {told}" in result.output


def test_checkpoints_at_youngs_interval_lose_less_where_an_m_step_is_long(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, selection={"max_solutions_per_problem": 8})
    options = ["--num-gpus", "8", "--num-nodes", "128", "--strategy", "zero3", "--gpu", "h100"]
    long = ["--set", "training.num_train_epochs=400000", "--set", "training.global_batch_size=1024"]
    plan = _json(path, *options, *long)
    asked, saved = plan["failures"], plan["checkpointed_failures"]
    written = 14 * 8_030_261_248 / 128 / 3e9
    assert asked["checkpoint_interval_seconds"] == pytest.approx(900 + written)
    assert saved["checkpoint_seconds"] == pytest.approx(written, rel=1e-6)
    mtbf = 50_000 * 3600 / 1024
    assert saved["mtbf_seconds"] == pytest.approx(mtbf)
    assert saved["checkpoint_interval_seconds"] == pytest.approx(
        (2 * saved["checkpoint_seconds"] * mtbf) ** 0.5
    )
    assert saved["expected_loss"] < asked["expected_loss"]


def test_an_offload_that_the_host_cannot_hold_does_not_fit(tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path))
    options = {"num_gpus": 8, "gpu": find_gpu("h100", load_gpus())}
    small, large, unknown = (
        make_plan(
            recipe,
            ProblemSets(recipe),
            Cluster(**options, host_memory_bytes=size),
            Launch("zero3", "cpu", "none"),
        )
        for size in (64 * 2**30, 512 * 2**30, None)
    )
    assert (small.fits, large.fits, unknown.fits) == (False, True, True)
    assert small.host_spare_bytes == 64 * 2**30 - small.training.memory.host_peak_bytes < 0
    assert unknown.host_spare_bytes is None


def test_tensor_parallelism_is_worth_it_up_to_what_the_link_carries(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    # as X4 of the worked numbers, of width 4096 and not 8192: half
    assert _json(path, "--gpu", "h100")["largest_tensor_parallel"] == pytest.approx(11.2 / 2, abs=0.05)
    assert _json(path, "--gpu", "cpu")["largest_tensor_parallel"] is None
    result = CliRunner().invoke(app, ["plan", str(path), "--gpu", "h100", "--num-gpus", "8"])
    assert "for an engine of your own: worth it up to 5.6 devices over " in result.output
    path = write_recipe(tmp_path / "narrow", CONFIG | {"hidden_size": 1024})
    assert 0 < _json(path, "--gpu", "l4")["largest_tensor_parallel"] < 2
    result = CliRunner().invoke(app, ["plan", str(path), "--gpu", "l4", "--num-gpus", "8"])
    assert "for an engine of your own: does not pay over " in result.output
    assert "worth it" not in result.output


def test_a_mixture_is_told_by_its_total_and_its_active_parameters(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, {"model_type": "mixtral"})  # that of 8 x 7B
    plan = _json(path, "--gpu", "h100", "--num-gpus", "8", "--strategy", "zero3")
    assert plan["num_parameters"] == 46_702_792_704
    assert plan["num_active_parameters"] == 12_748_853_248
    result = CliRunner().invoke(app, ["plan", str(path), "--gpu", "h100"])
    assert "46.703e9 parameters (12.749e9 active)" in result.output


def test_the_trace_agrees_with_the_plan(tmp_path: Path) -> None:
    small = {
        **CONFIG, "num_hidden_layers": 4, "hidden_size": 256, "intermediate_size": 704, "vocab_size": 2048,
        "num_attention_heads": 8, "num_key_value_heads": 2,
    }  # fmt: skip
    found = _json(write_recipe(tmp_path, small), "--gpu", "l4", "--verify")["verified"]
    for one in found:
        assert one["planned_bytes"] == pytest.approx(one["traced_bytes"], rel=0.01)


def test_the_plan_is_plain_json(tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path))
    cluster = Cluster(gpu=find_gpu("h100", load_gpus()))
    plan = make_plan(recipe, ProblemSets(recipe), cluster, Launch("single"))
    assert json.loads(json.dumps(to_json(plan), allow_nan=False)) == to_json(plan)


def test_the_e_step_is_planned_for_the_teacher_that_draws_it(tmp_path: Path) -> None:
    large = write_recipe(tmp_path / "large", CONFIG | {"num_hidden_layers": 80}).parent / "model"
    path = write_recipe(tmp_path / "small")
    own = _json(path, "--gpu", "h100")
    teacher = ("--set", f"sampling.model.name_or_path={large}", "--set", "num_iterations=1")
    distilled = _json(path, "--gpu", "h100", *teacher, "--search")
    assert distilled["sampling"]["model"] == str(large)
    assert distilled["sampling"]["peak_bytes"] > 2 * own["sampling"]["peak_bytes"]
    assert distilled["training"]["peak_bytes"] == own["training"]["peak_bytes"]
    told = CliRunner().invoke(app, ["plan", str(path), "--gpu", "h100", *teacher]).output
    assert f"the E-step is drawn by {large}, llama" in told


def test_human_solutions_change_how_much_is_trained_on_and_drawn(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    once = ("--gpu", "h100", "--set", "num_iterations=1", "--set", "sampling.num_samples=4")
    once += ("--set", "problems.solution=' {{ answer }}'")

    def planned(kind: str, *more: str) -> dict[str, Any]:
        return _json(path, *once, "--success", "0.5", "--set", f"selection.human_solutions={kind}", *more)

    none, mix, solved, only = map(planned, ("none", "mix", "solved", "only"))
    num_train = only["training"]["num_examples"]
    assert none["training"]["num_examples"] == 2 * num_train
    assert mix["training"]["num_examples"] == 3 * num_train
    assert solved["training"]["num_examples"] == pytest.approx((1 - 0.5**4) * num_train)
    spared = none["sampling"]["seconds"] + none["training"]["seconds"] - only["training"]["seconds"]
    assert none["total"]["seconds"] - only["total"]["seconds"] == pytest.approx(spared)
    long = ("--set", "problems.solution=' {{ question * 200 }}'")
    assert planned("none", *long)["training"]["longest"] == none["training"]["longest"]
    for kind in ("mix", "only"):  # 200 questions of 5 tokens or so, and more than are sampled
        assert planned(kind, *long)["training"]["longest"] > 800 > none["training"]["longest"]
    arguments = ["plan", str(path), *once, "--set", "selection.human_solutions=only"]
    assert "no E-step is drawn: D_1 is of human solutions" in CliRunner().invoke(app, arguments).output
