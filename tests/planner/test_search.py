"""The search: its front against brute force, its figures against a plan's own, its advice applied."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_planning import CONFIG, write_recipe
from typer.testing import CliRunner

from rest_em.cli import app
from rest_em.planner.activations import StepSetup, _extended, _of_all_layers, _play, instants_of
from rest_em.planner.adapters import adapter_of
from rest_em.planner.candidates import Candidate, sampling_candidates, training_candidates
from rest_em.planner.hardware import Cluster, find_gpu, load_gpus
from rest_em.planner.plan import Plan, plan_sampling, plan_training
from rest_em.planner.search import Search, plan_of, search
from rest_em.planner.shapes import ModelShape, load_shape
from rest_em.planning import Launch, make_plan
from rest_em.recipe import load_recipe
from rest_em.run import ProblemSets

FAMILIES: list[dict[str, Any]] = [
    {"model_type": "llama", "num_key_value_heads": 2, "tie_word_embeddings": False},
    {"model_type": "qwen2", "num_key_value_heads": 2, "tie_word_embeddings": True},
    {"model_type": "gemma2", "num_key_value_heads": 2, "head_dim": 16, "sliding_window": 64},
    {"model_type": "phi"},
    {"model_type": "gpt_neox"},
    {"model_type": "gpt2", "n_embd": 64, "n_layer": 5, "n_head": 4, "n_positions": 512},
]

HUGE = {"hidden_size": 65536, "intermediate_size": 229376}
"""One layer does not fit on a small card."""
SMALL = {"num_hidden_layers": 2, "hidden_size": 256, "intermediate_size": 512, "vocab_size": 300}
"""What any machine holds."""


def clusters(gpu: str, *numbers: int) -> list[Cluster]:
    return [Cluster(gpu=find_gpu(gpu, load_gpus()), num_gpus=number) for number in numbers]


def planned(folder: Path, gpu: str, num_gpus: int, launch: Launch | None = None, **more: Any) -> Plan:
    recipe = load_recipe(write_recipe(folder, **more))
    default = Launch("ddp" if num_gpus > 1 else "single")
    return make_plan(recipe, ProblemSets(recipe), clusters(gpu, num_gpus)[0], launch or default)


def own_plan(plan: Plan, one: Candidate[Any]) -> tuple[int, float]:
    """Return the spare bytes and the seconds of a candidate that is planned by itself."""
    if one in _sampling(plan, one.cluster):
        drawing = plan_sampling(plan.shape, one.setup, one.cluster, plan.workload)
        assert drawing.speed is not None
        return drawing.spare_bytes, drawing.speed.total_seconds
    learning = plan_training(
        plan.shape,
        one.setup,
        one.cluster,
        num_examples=plan.training.num_examples,
        num_epochs=plan.training.num_epochs,
    )
    assert learning.time is not None
    return learning.memory.spare_bytes, learning.time.seconds


def _sampling(plan: Plan, cluster: Cluster) -> list[Candidate[Any]]:
    return list(sampling_candidates(plan, cluster))


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Llama 3 8B on two L4 of 22 GiB as DDP: neither phase fits."""
    return planned(tmp_path_factory.mktemp("search"), "l4", 2)


@pytest.fixture(scope="module")
def found(plan: Plan) -> Search:
    return search(plan, clusters("l4", 1, 2, 4))


def test_each_candidate_has_the_memory_and_time_that_its_own_plan_has(plan: Plan) -> None:
    (cluster,) = clusters("l4", 4)
    every = [*_sampling(plan, cluster), *training_candidates(plan, cluster)]
    for one in every[::29]:
        assert (one.spare_bytes, one.seconds) == own_plan(plan, one)


def test_no_configuration_that_fits_is_as_fast_and_as_cheap_as_one_of_the_front(
    plan: Plan, found: Search
) -> None:
    price = find_gpu("l4", load_gpus()).dollars_per_hour
    assert price is not None
    every = []
    for cluster in clusters("l4", 1, 2, 4):
        drawing = [one for one in _sampling(plan, cluster) if one.is_as_asked and one.fits]
        learning = [one for one in training_candidates(plan, cluster) if one.is_as_asked and one.fits]
        for first, second in itertools.product(drawing, learning):
            seconds = plan.run_seconds(first.seconds, second.seconds)
            every.append((seconds, seconds / 3600 * price * cluster.num_devices))
    best = {
        (time, money)
        for time, money in every
        if not any(x <= time and y <= money and (x, y) != (time, money) for x, y in every)
    }
    assert best == {(one.seconds, one.dollars) for one in found.front}
    assert list(found.front) == sorted(found.front, key=lambda one: one.seconds)


def test_what_is_recommended_is_the_fastest_and_fits_by_its_own_plan(plan: Plan, found: Search) -> None:
    assert found.recommended is not None
    chosen = plan_of(plan, found.recommended)
    assert chosen.fits
    assert chosen.seconds == found.recommended.seconds == min(one.seconds for one in found.front)
    assert chosen.dollars(chosen.seconds) == found.recommended.dollars
    assert chosen.sampling.spare_bytes == found.recommended.sampling.spare_bytes
    assert chosen.training.memory.spare_bytes == found.recommended.training.spare_bytes


def test_what_was_rejected_is_faster_and_lacks_what_its_own_plan_says(plan: Plan) -> None:
    rejected = search(plan, clusters("l4", 1, 2)).rejections
    assert {one.phase for one in rejected} == {"sampling", "training"}
    for one in rejected:
        spare, _ = own_plan(plan, one.candidate)
        assert one.over_bytes == -spare > 0
        assert one.component_bytes > 0
        if one.phase == "training":
            memory = plan_training(
                plan.shape, one.candidate.setup, one.candidate.cluster, num_examples=None, num_epochs=1
            ).memory
            assert one.instant == memory.peak.name
            every = {**memory.peak.components, **memory.outside}
            assert every[one.component] == one.component_bytes == max(every.values())


def test_every_way_out_fits_and_the_cheapest_come_first(plan: Plan, found: Search) -> None:
    assert {one.phase for one in found.ways} == {"sampling", "training"}
    for one in found.ways:
        assert own_plan(plan, one.candidate)[0] >= 0
        assert one.candidate.obstacle is None
    altered = [bool(one.candidate.altered) for one in found.ways if one.phase == "training"]
    assert altered == sorted(altered)
    names = [frozenset(change.name for change in one.changes) for one in found.ways]
    assert not any(one < other for one, other in itertools.permutations(names, 2) if one and other)


def test_the_cheapest_way_out_fits_when_it_is_applied(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    options = ["--gpu", "l4", "--num-gpus", "2"]
    before = _json(path, *options, "--search")
    assert not before["sampling"]["fits"]
    assert not before["training"]["fits"]
    for phase in ("sampling", "training"):
        way = next(one for one in before["search"]["ways"] if one["phase"] == phase)
        assert not way["is_altered"]
        applied = list(options)
        for change in way["changes"]:
            if change["name"] in ("strategy", "offload"):
                applied += [f"--{change['name']}", change["after"]]
            else:
                applied += ["--set", f"{change['name']}={change['after']}"]
        after = _json(path, *applied)[phase]
        assert after["fits"]
        assert after["spare_bytes"] == way["spare_bytes"]


def test_what_is_learned_is_never_changed_silently(plan: Plan, found: Search) -> None:
    for one in found.front:
        assert one.is_as_asked
        assert one.training.setup.method == "full"
        assert one.training.setup.optim == plan.training.setup.optim
        assert one.sampling.setup.dtype_bytes == plan.sampling.setup.dtype_bytes
        assert one.sampling.setup.engine == plan.sampling.setup.engine
    for one in found.beyond:
        assert one.notes
    told = " ".join(note for one in found.beyond for note in one.notes)
    assert "not runnable by rest_em" in told


def test_devices_that_cannot_share_the_global_batch_are_left_out(plan: Plan) -> None:
    (three,) = clusters("l4", 3)
    assert plan.training.setup.global_batch_size == 16
    assert list(training_candidates(plan, three)) == []
    assert search(plan, [three]).recommended is None


def test_where_nothing_fits_what_lacks_least_is_told(tmp_path: Path) -> None:
    config = CONFIG | HUGE
    plan = planned(tmp_path, "l4", 1, config=config)
    found = search(plan, clusters("l4", 1))
    assert found.front == found.ways == ()
    assert {one.phase for one in found.rejections} == {"sampling", "training"}
    for one in found.rejections:
        every = _sampling(plan, one.candidate.cluster)
        if one.phase == "training":
            every = list(training_candidates(plan, one.candidate.cluster))
        assert one.over_bytes == min(-each.spare_bytes for each in every if each.is_as_asked)


def test_a_search_is_told_in_one_screen(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    result = CliRunner().invoke(app, ["plan", str(path), "--gpu", "l4", "--num-gpus", "2", "--search"])
    assert result.exit_code == 0
    assert "recommended" in result.stdout
    assert "sampling as asked does not fit; it would with, the cheapest first:" in result.stdout
    assert "training as asked does not fit; it would with, the cheapest first:" in result.stdout
    assert "rejected: training with strategy" in result.stdout
    assert "GiB are lacking, most of it" in result.stdout
    assert "this changes what is drawn or learned" in result.stdout
    too_large = write_recipe(tmp_path / "large", config=CONFIG | HUGE)
    result = CliRunner().invoke(app, ["plan", str(too_large), "--gpu", "l4", "--search"])
    assert "nothing that rest_em can run as the recipe asks fits on these devices" in result.stdout
    assert "no change that rest_em can run helps on these devices; take more of them" in result.stdout


def test_a_search_on_the_processor_shares_its_memory_out(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, config=CONFIG | SMALL)
    plan = _json(path, "--gpu", "cpu", "--num-gpus", "2", "--search")
    assert plan["search"]["num_pairs"] > 1000
    front = plan["search"]["front"]
    assert front
    assert {one["dollars"] for one in front} == {None}
    assert {one["training"]["offload"] for one in front} == {"none"}  # it would be to the same memory


@pytest.mark.parametrize("values", FAMILIES, ids=lambda one: one["model_type"])
def test_many_rows_are_extended_exactly_from_two_and_three(values: dict[str, Any], tmp_path: Path) -> None:
    shape = _shape(values, tmp_path)
    adapters = [None, adapter_of({"r": 8, "target_modules": "all-linear"}, shape, 4)]
    for adapter, precision, is_checkpointed in itertools.product(adapters, ("bf16", "autocast"), (0, 1)):
        many = StepSetup(8, 96, 40, 39, precision, bool(is_checkpointed), adapter)  # type: ignore[arg-type]
        played = _of_all_layers(shape, many)
        peaks = {max(sum(one[:4]) for one in events) for events in played.values()}
        assert peaks <= {sum(one.components.values()) for one in instants_of(shape, many)}


def test_layers_are_extended_exactly_from_two_and_three(tmp_path: Path) -> None:
    shape = _shape(FAMILIES[0], tmp_path)
    setup = StepSetup(2, 96, 40, 39, "bf16")
    few, more = (_of_all_layers(replace(shape, num_layers=number), setup) for number in (4, 5))
    many = _play(replace(shape, num_layers=9), setup)
    assert _extended(few, more, 5) == many


def _shape(values: dict[str, Any], folder: Path) -> ModelShape:
    common = {
        "num_hidden_layers": 5, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4,
        "vocab_size": 300, "max_position_embeddings": 512,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(common | values))
    return load_shape(folder)


def _json(path: Path, *options: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["plan", str(path), "--json", *options])
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_a_search_takes_the_most_devices_that_the_batch_can_be_shared_over(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, config=CONFIG | SMALL, training={"global_batch_size": 16})
    command = ["plan", str(path), "--gpu", "l4"]
    result = CliRunner().invoke(app, [*command, "--num-gpus", "6"])
    assert "cannot be shared out evenly over 6 ranks" in str(result.exception)
    result = CliRunner().invoke(app, [*command, "--num-gpus", "6", "--search"])
    assert result.exit_code == 0, result.output
    told = "the recipe's global batch of 16 cannot be shared out over 6 devices; planned for 4 of them"
    assert result.output.splitlines().count(told) == 1
    found = json.loads(CliRunner().invoke(app, [*command, "--num-gpus", "6", "--search", "--json"]).stdout)
    assert (found["num_gpus"], found["search"]["num_gpus_asked"]) == (4, 6)
    nodes = [*command, "--num-gpus", "8", "--num-nodes", "3", "--search", "--json"]
    found = json.loads(CliRunner().invoke(app, nodes).stdout)
    assert (found["num_gpus"], found["num_nodes"]) == (8, 2)
    assert (found["search"]["num_gpus_asked"], found["search"]["num_nodes_asked"]) == (8, 3)
    rows = [f"--set=training.{key}" for key in ("global_batch_size=24", "per_device_train_batch_size=8")]
    for asked, taken in ((2, 1), (3, 3), (10**9, 24)):
        options = ["--num-gpus", str(asked), "--search", "--json", *rows]
        assert json.loads(CliRunner().invoke(app, [*command, *options]).stdout)["num_gpus"] == taken
