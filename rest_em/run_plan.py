"""The plan of a run that is about to start, on the devices of its launch; kept in `plan.json`.

A run is refused where its tensors alone exceed the device. Nothing else here stops one: what cannot be
planned for is told, and the run starts.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from math import ceil, inf
from pathlib import Path
from typing import Any

from rest_em.devices import is_cpu_asked_for
from rest_em.errors import PlanError, RecipeError
from rest_em.ledger import Ledger
from rest_em.planner.candidates import offload_of
from rest_em.planner.hardware import Cluster, Gpu, load_gpus
from rest_em.planner.machine import host_memory_bytes, local_cpu, local_gpus, shared_out
from rest_em.planner.measured import PHASES, PLAN, beside, read_plan
from rest_em.planner.plan import Plan, certain_failures, plan_training, to_json
from rest_em.planner.search import Way, host_bytes, search
from rest_em.planning import Launch, can_pack, make_plan, overrides_of, shape_of_model
from rest_em.problem_sets import ProblemSets
from rest_em.recipe import Recipe
from rest_em.report.plan import gib
from rest_em.report.run_plan import plan_lines
from rest_em.stages import Ranks, uses_deepspeed
from rest_em.storage import write_json
from rest_em.usage import measured_stages

DRIVERS = (Path("/dev/nvidiactl"), Path("/dev/kfd"))
"""There where a GPU's driver is, NVIDIA's or AMD's."""


@dataclass(frozen=True, slots=True)
class RunPlan:
    """What is known of a run before its launch.

    Example:
        RunPlan({"unplanned": "the model's family is not known"}, ("no plan of memory and time: ...",))
    """

    document: Mapping[str, Any]
    """`predicted`, the plan as JSON, or `unplanned`, why there is none."""
    lines: tuple[str, ...]
    """For people."""
    failures: Mapping[str, str] = field(default_factory=dict)
    """Phase -> what it certainly lacks, and what would help."""

    def certain_failures(self, done: Collection[str]) -> dict[str, str]:
        """Return the phases that certainly run out of memory, but for those that did not.

        Args:
            done: finished stages. A stage of a kind that has finished here before is given its chance.
        """
        finished = {PHASES.get(name.rpartition("/")[2]) for name in done}
        return {phase: told for phase, told in self.failures.items() if phase not in finished}

    def refuse(self, done: Collection[str]) -> None:
        """Refuse a run that certainly runs out of memory.

        Raises:
            PlanError: with the shortfall and what would help.
        """
        failures = self.certain_failures(done)
        if failures:
            told = [f"{phase}: {failure}" for phase, failure in failures.items()]
            raise PlanError("\n".join([*told, "--force starts the run all the same"]))

    def keep(self, folder: Path, ledger: Ledger) -> None:
        """Write `plan.json`: this plan, and what each finished stage took beside its own launch's plan."""
        measured = beside(read_plan(folder), measured_stages(ledger.records))
        write_json(folder / PLAN, {**self.document, "measured": measured})


def plan_run(recipe: Recipe, problems: ProblemSets, ranks: Ranks, environment: Mapping[str, str]) -> RunPlan:
    """Return the plan of a run as it is launched, or why there is none; it never fails."""
    try:
        plan = make_plan(
            recipe,
            problems,
            launched_cluster(ranks, environment),
            Launch.from_environment(environment, ranks.world_size),
        )
        predicted = to_json(plan)
        json.dumps(predicted, allow_nan=False)
        failures = {
            phase: f"{shortfall}; {_way_out(recipe, plan, phase)}"
            for phase, shortfall in certain_failures(plan).items()
        }
        return RunPlan({"predicted": predicted}, tuple(plan_lines(plan)), failures)
    except PlanError as error:
        reason = str(error)
    except Exception as error:  # a mistake of the planner's, or a library's, must not cost the run
        reason = f"the planner failed with {type(error).__name__}: {error}"
    reason = "; ".join(reason.strip().splitlines())
    return RunPlan({"unplanned": reason}, (f"no plan of memory and time: {reason}",))


def refuse_impossible(recipe: Recipe, environment: Mapping[str, str]) -> None:
    """Refuse what no M-step could do under this launch, before an E-step is spent on it.

    Raises:
        RecipeError: a line for each.
    """
    lines = []
    if environment.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        lines.append("the launch file chooses FSDP; DDP or DeepSpeed is wanted, see docs/launch.md")
    if recipe.quantization is not None and uses_deepspeed(environment):
        lines.append(
            f"{recipe.place('quantization')}: quantization: a quantised base is not trained with DeepSpeed, "
            "whose ranks would share out adapters alone; launch it with launch/ddp.yaml or "
            "launch/single_gpu.yaml"
        )
    if recipe.training.packing is True:
        with contextlib.suppress(PlanError):  # told where the run is planned
            shape = shape_of_model(recipe.model, "model")
            if not can_pack(shape, recipe.training.max_length or 0):
                lines.append(
                    f"{recipe.place('training.packing')}: training.packing is true, but packing has not been "
                    f"tried with models like this {shape.family}; give auto or false"
                )
    if lines:
        raise RecipeError("\n".join(lines))


def _way_out(recipe: Recipe, plan: Plan, phase: str) -> str:
    """Return what would make a phase fit on the devices of its plan, with what it draws or learns left alone.

    Search takes a second, and a run that is refused has it.
    """
    if phase == "sampling":
        if plan.sampling.max_batch:
            return f"it would fit with --set sampling.max_rows={plan.sampling.max_batch}"
        return "no number of rows fits: take a device with more memory or a smaller model"
    host = plan.cluster.host_memory_bytes or inf
    ways = [
        one
        for one in search(plan, [plan.cluster]).ways
        if one.phase == phase and host_bytes(plan, one.candidate) <= host
    ]
    for way in ways:
        if not way.candidate.altered:
            return f"it would fit with {_told(recipe, plan, way)}"
    others = f" ({', '.join(str(change) for change in ways[0].changes)} would change that)" if ways else ""
    return (
        f"nothing that learns the same fits on these devices{others}: take more of them, larger ones or a "
        "smaller model"
    )


def _told(recipe: Recipe, plan: Plan, way: Way) -> str:
    """Return how a run is started so that it trains in a way."""
    setup, training = way.candidate.setup, plan.training
    found = plan_training(
        plan.shape, setup, plan.cluster, num_examples=training.num_examples, num_epochs=training.num_epochs
    )
    overrides = overrides_of(recipe, replace(plan, training=found))
    keys = [
        f"--set {key}={json.dumps(value)}" for key, value in overrides.items() if key.startswith("training.")
    ]
    told = " ".join(keys)
    if {"strategy", "offload", "buckets"} & {one.name for one in way.changes}:
        offload = offload_of(setup)
        options = f"--strategy {setup.strategy}" + ("" if offload == "none" else f" --offload {offload}")
        joined = " and " if told else ""
        told += f"{joined}the launch file that `rest_em plan` writes with {options} --emit DIR"
        if offload != "none":
            told += f" (it takes {gib(host_bytes(plan, way.candidate))} of host memory a node)"
    return told


def launched_cluster(ranks: Ranks, environment: Mapping[str, str]) -> Cluster:
    """Return the devices of a launch, all machines taken to be as this one.

    Raises:
        PlanError: its GPUs are not known, or of several kinds.
    """
    is_cpu = is_cpu_asked_for(environment) or version("torch").endswith("+cpu")
    gpu = None if is_cpu else _visible_gpu(environment)
    if gpu is None:  # the ranks of a machine share its memory and its cores
        gpu = shared_out(local_cpu(), ranks.local_world_size)
    return Cluster(
        gpu=gpu,
        num_gpus=ranks.local_world_size,
        num_nodes=ceil(ranks.world_size / ranks.local_world_size),
        host_memory_bytes=None if gpu.name == "cpu" else host_memory_bytes(),
    )


def _visible_gpu(environment: Mapping[str, str]) -> Gpu | None:
    """Return the kind of this machine's GPUs; None where there is none or none is visible."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):
        return None
    found = local_gpus(load_gpus())
    if not found:
        if any(driver.exists() for driver in DRIVERS):
            raise PlanError("this machine has a GPU's driver, and nvidia-smi tells of no GPU")
        return None
    names = sorted({one.name for one in found})
    if len(names) > 1:
        raise PlanError(f"this machine has GPUs of several kinds: {', '.join(names)}")
    if found[0].gpu is None:
        raise PlanError(f"this machine's {names[0]} is not known; docs/memory.md says how to describe it")
    return found[0].gpu
