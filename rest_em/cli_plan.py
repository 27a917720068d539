"""The verb `plan`: whether a recipe fits, how long it takes and what it costs, before anything starts."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rest_em.errors import PlanError
from rest_em.report.cells import console

if TYPE_CHECKING:
    from rest_em.planner.hardware import Cluster, Gpu
    from rest_em.planner.plan import Plan
    from rest_em.planner.search import Search
    from rest_em.planner.strategies import Strategy
    from rest_em.planner.training import Comparison, Method
    from rest_em.planning import Launch
    from rest_em.recipe import Recipe

STRATEGIES: Mapping[str, Strategy] = {
    "single": "single", "ddp": "ddp", "zero1": "zero1", "zero2": "zero2", "zero3": "zero3",
}  # fmt: skip
METHODS: Mapping[str, Method] = {"full": "full", "lora": "lora", "qlora": "qlora"}


def plan(
    *,
    recipe: Annotated[Path | None, typer.Argument(metavar="RECIPE", help="A recipe's YAML file.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key: --set sampling.num_samples=8."),
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="A device of --list-gpus, or cpu; by default this machine's."),
    ] = None,
    num_gpus: Annotated[
        int | None, typer.Option(metavar="N", help="Devices a node; by default this machine's.")
    ] = None,
    num_nodes: Annotated[
        int | None, typer.Option(metavar="M", help="Nodes; by default 1.", show_default=False)
    ] = None,
    launch: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A launch file: its processes, ZeRO stage and offload."),
    ] = None,
    strategy: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="In its place: single, ddp, zero1, zero2 or zero3."),
    ] = None,
    offload: Annotated[
        str, typer.Option(metavar="WHERE", help="With a ZeRO strategy: none, optimizer, all or nvme.")
    ] = "none",
    method: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="In place of the recipe's: full, lora or qlora."),
    ] = None,
    success: Annotated[
        float | None, typer.Option(metavar="RATE", help="Expected share of correct solutions, 0 to 1.")
    ] = None,
    mean_tokens: Annotated[
        float | None, typer.Option(metavar="N", help="Expected tokens of a solution.")
    ] = None,
    gpus_file: Annotated[
        Path | None,
        typer.Option("--gpus-file", metavar="FILE", help="GPUs or prices of your own; see docs/memory.md."),
    ] = None,
    searched: Annotated[
        bool,
        typer.Option(
            "--search", help="Search strategy, offload, micro-batch, rows and so many devices or fewer."
        ),
    ] = False,
    emitted: Annotated[
        Path | None,
        typer.Option(
            "--emit",
            metavar="DIR",
            help="Write the launch file, DeepSpeed's JSON, overrides and command; with --search of what it "
            "recommends.",
        ),
    ] = None,
    explained: Annotated[
        bool, typer.Option("--explain", help="Say where each figure comes from and how far to trust it.")
    ] = False,
    verified: Annotated[
        bool,
        typer.Option("--verify", help="Trace the model's own class on tensors without data; takes seconds."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: bytes a device, seconds.")] = False,
    list_gpus: Annotated[bool, typer.Option("--list-gpus", help="List the devices that are known.")] = False,
) -> None:
    """Say whether a recipe fits, how long it takes and what it costs; no model is loaded."""
    from rest_em.planner.hardware import load_gpus
    from rest_em.planner.plan import to_json
    from rest_em.planner.provenance import explain
    from rest_em.planner.search import search
    from rest_em.planner.search import to_json as search_to_json
    from rest_em.planning import make_plan
    from rest_em.problem_sets import ProblemSets
    from rest_em.recipe import load_recipe
    from rest_em.report.plan import print_explained, print_gpus, print_plan, print_verified
    from rest_em.report.search import print_search

    gpus = load_gpus(gpus_file)
    if list_gpus:
        print_gpus(gpus, console())
        return
    if recipe is None:
        raise PlanError("a recipe is missing; give its YAML file, as in `rest_em plan recipes/x.yaml`")
    loaded = load_recipe(recipe, overrides or [])
    asked = _cluster(gpus, gpu, *_numbers(launch, num_gpus, num_nodes))
    cluster = _shared_over(loaded, gpus, gpu, asked) if searched else asked
    planned = make_plan(
        loaded,
        ProblemSets(loaded),
        cluster,
        _launch(launch, strategy, offload, cluster.num_devices),
        method=_method(method),
        success_rate=success,
        mean_new_tokens=mean_tokens,
    )
    found: dict[str, Any] = to_json(planned)
    result = search(planned, _clusters(gpus, gpu, cluster)) if searched else None
    if result is not None:
        found["search"] = search_to_json(result, planned)
        found["search"] |= {"num_gpus_asked": asked.num_gpus, "num_nodes_asked": asked.num_nodes}
    files: tuple[Path, ...] = ()
    if emitted is not None:
        files = _emit(_chosen(planned, result, emitted, recipe), loaded, recipe, emitted, overrides or [])
        found["emitted"] = [str(one) for one in files]
    if explained:
        found["explained"] = [dataclasses.asdict(one) for one in explain(planned)]
    comparisons: list[Comparison] = []
    if verified:
        from rest_em.tracing import verify

        comparisons = verify(loaded.model, planned.shape, planned.training.setup)
        found["verified"] = [dataclasses.asdict(one) for one in comparisons]
    if as_json:
        print(json.dumps(found, indent=2, allow_nan=False))
        return
    if cluster != asked:
        print(
            f"the recipe's global batch of {loaded.training.global_batch_size} cannot be shared out over "
            f"{asked.num_devices} devices; planned for {cluster.num_devices} of them"
        )
    print_plan(planned, console())
    if explained:
        print_explained(planned, console())
    if verified:
        print_verified(comparisons, console())
    if result is not None:
        print_search(result, planned, console())
    if files:
        print(f"written: {', '.join(map(str, files))}")


def _cluster(gpus: Mapping[str, Gpu], name: str | None, num_gpus: int | None, num_nodes: int) -> Cluster:
    """Return the devices that are asked for; without a name those of this machine, else its processor."""
    from rest_em.planner.hardware import Cluster, find_gpu
    from rest_em.planner.machine import host_memory_bytes, local_cpu, local_gpus, shared_out

    here: int = 1
    if name is None:
        local = local_gpus(gpus)
        unknown = [one.name for one in local if one.gpu is None]
        if unknown:
            raise PlanError(
                f"this machine's {unknown[0]} is not known; name a device of `rest_em plan --list-gpus` with "
                "--gpu, or describe it in a file for --gpus-file"
            )
        found = local[0].gpu if local else None
        device, here = (local_cpu(), 1) if found is None else (found, len(local))
    else:
        device = local_cpu() if name == "cpu" else find_gpu(name, gpus)
    count = here if num_gpus is None else num_gpus
    if device.name == "cpu" and count > 1:  # ranks on one machine share its memory and its cores
        device = shared_out(device, count)
    is_here = name is None and device.name != "cpu"
    return Cluster(
        gpu=device,
        num_gpus=count,
        num_nodes=num_nodes,
        host_memory_bytes=host_memory_bytes() if is_here else None,
    )


def _shared_over(recipe: Recipe, gpus: Mapping[str, Gpu], name: str | None, most: Cluster) -> Cluster:
    """Return the most devices of those asked for that a recipe's global batch can be shared out over."""
    from rest_em.batches import divide_global_batch
    from rest_em.errors import TrainingError

    batch, rows = recipe.training.global_batch_size, recipe.training.per_device_train_batch_size
    numbers = itertools.product(*(range(1, min(one, batch) + 1) for one in (most.num_gpus, most.num_nodes)))
    for gpus_a_node, nodes in sorted(numbers, key=lambda both: (both[0] * both[1], both[0]), reverse=True):
        with contextlib.suppress(TrainingError):
            divide_global_batch(batch, gpus_a_node * nodes, rows)
            same = (gpus_a_node, nodes) == (most.num_gpus, most.num_nodes)
            return most if same else _cluster(gpus, name, gpus_a_node, nodes)
    return most  # to be refused


def _numbers(file: Path | None, num_gpus: int | None, num_nodes: int | None) -> tuple[int | None, int]:
    """Return the devices a node, None for this machine's, and the nodes: of a launch file or as asked."""
    from rest_em.planning import devices_of_launch

    if file is None:
        return num_gpus, 1 if num_nodes is None else num_nodes
    found = []
    for option, said, asked in zip(
        ("--num-gpus", "--num-nodes"), devices_of_launch(file), (num_gpus, num_nodes), strict=True
    ):
        if said is not None and asked is not None and said != asked:
            raise PlanError(
                f"{option} is {asked}, and {file} starts {said} by its num_processes and num_machines; leave "
                f"{option} out, or change the file"
            )
        found.append(asked if said is None else said)
    return found[0], 1 if found[1] is None else found[1]


def _method(name: str | None) -> Method | None:
    if name is not None and name not in METHODS:
        raise PlanError(f"--method is {name!r}; {', '.join(METHODS)} are known")
    return METHODS[name] if name is not None else None


def _clusters(gpus: Mapping[str, Gpu], name: str | None, most: Cluster) -> list[Cluster]:
    """Return the devices that a search chooses from: powers of two up to what is asked for, and that."""
    from rest_em.planner.candidates import powers_of_two

    numbers = powers_of_two(most.num_gpus)
    found = [_cluster(gpus, name or most.gpu.name, number, 1) for number in numbers]
    if most.num_nodes > 1:
        nodes = powers_of_two(most.num_nodes)[1:]
        found += [_cluster(gpus, name or most.gpu.name, most.num_gpus, number) for number in nodes]
    return found


def _chosen(plan: Plan, found: Search | None, folder: Path, recipe: Path) -> Plan:
    """Return the plan of what a search recommends; without a search the one that was asked for."""
    from rest_em.planner.search import plan_of

    if found is None:
        return plan
    if found.recommended is None:
        raise PlanError(
            f"--emit {folder}: nothing that rest_em can run as {recipe} asks fits, so nothing is written; "
            "--search without --emit names the changes that would help"
        )
    return plan_of(plan, found.recommended)


def _emit(plan: Plan, loaded: Recipe, recipe: Path, folder: Path, overrides: list[str]) -> tuple[Path, ...]:
    from rest_em.planner.emit import emit
    from rest_em.planning import overrides_of

    return emit(plan, recipe, folder, given=overrides, overrides=overrides_of(loaded, plan))


def _launch(file: Path | None, strategy: str | None, offload: str, num_ranks: int) -> Launch:
    from rest_em.planner.strategies import DEVICES_OF
    from rest_em.planning import Launch

    if file is not None:
        if strategy is not None or offload != "none":
            raise PlanError(f"--launch {file} is given, and --strategy or --offload too; leave one out")
        return Launch.from_file(file, num_ranks)
    devices = {str(name): both for name, both in DEVICES_OF.items()}
    if offload not in devices:
        raise PlanError(f"--offload is {offload!r}; {', '.join(devices)} are known")
    optimizer, param = devices[offload]
    name = strategy or ("single" if num_ranks == 1 else "ddp")
    if name not in STRATEGIES:
        raise PlanError(f"--strategy is {name!r}; {', '.join(STRATEGIES)} are known")
    return Launch(STRATEGIES[name], optimizer, param, is_sized=True)
