"""The files with which a plan is launched: accelerate's YAML, DeepSpeed's JSON, overrides and the command.

They say what the plan was made for: precision, batch, accumulation and clipping stay the recipe's.
DeepSpeed's buckets are written out, so that what is launched is what was planned.
"""

from __future__ import annotations

import json
import shlex
import tempfile
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from rest_em.errors import PlanError
from rest_em.planner.candidates import obstacle_of
from rest_em.planner.plan import Plan
from rest_em.planner.training import TrainingSetup
from rest_em.recipe.document import Document, apply_options, dump

ACCELERATE, DEEPSPEED, OVERRIDES, COMMAND = "accelerate.yaml", "deepspeed.json", "overrides.yaml", "launch.sh"
FILES = frozenset({ACCELERATE, DEEPSPEED, OVERRIDES, COMMAND})
_GIB = 2**30


def emit(
    plan: Plan, recipe: Path, folder: Path, *, given: Sequence[str], overrides: Mapping[str, Any]
) -> tuple[Path, ...]:
    """Write the files of a plan into a folder, all of them or none; return them.

    Args:
        given: the `KEY=VALUE` that the plan was asked for with.
        overrides: further keys of the recipe, dotted, that the plan was made for.

    Raises:
        PlanError: rest_em cannot run the plan, or the folder holds something else.
    """
    obstacle = obstacle_of(plan.training.setup)
    if obstacle is not None:
        raise PlanError(f"--emit {folder}: {obstacle}; plan without it, or with --search for what it can run")
    try:
        return _write(plan, recipe, folder, given=given, overrides=overrides)
    except OSError as error:
        raise PlanError(
            f"--emit {folder}: cannot be written: {error.strerror or error}; name a folder that may be "
            "written"
        ) from error


def _write(
    plan: Plan, recipe: Path, folder: Path, *, given: Sequence[str], overrides: Mapping[str, Any]
) -> tuple[Path, ...]:
    if folder.resolve() == Path.cwd():
        raise PlanError(f"--emit {folder}: the working directory cannot be replaced; name a folder within it")
    if folder.exists() and not folder.is_dir():
        raise PlanError(f"--emit {folder}: a file is there; name a folder that --emit may write")
    others = sorted({one.name for one in folder.iterdir()} - FILES) if folder.is_dir() else []
    if others:
        raise PlanError(
            f"--emit {folder}: {', '.join(others[:3])} is there, and would be lost; name a new folder, or "
            f"one that only has {', '.join(sorted(FILES))}"
        )
    texts = files_of(plan, recipe, folder, given=given, overrides=overrides)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as place:
        new = Path(place) / "new"
        new.mkdir()
        for name, text in texts.items():
            (new / name).write_text(text, encoding="utf-8")
        (new / COMMAND).chmod(0o755)
        if folder.exists():
            folder.rename(Path(place) / "old")
        new.rename(folder)
    return tuple(folder / name for name in texts)


def files_of(
    plan: Plan, recipe: Path, folder: Path, *, given: Sequence[str], overrides: Mapping[str, Any]
) -> Mapping[str, str]:
    """Return the files' texts by their names; DeepSpeed's is there under ZeRO only."""
    setup = plan.training.setup
    texts = {ACCELERATE: _accelerate_yaml(plan, folder)}
    if setup.strategy.startswith("zero"):
        texts[DEEPSPEED] = json.dumps(deepspeed_config(setup), indent=2) + "\n"
    options = [*given, *(f"{key}={_yaml_value(value)}" for key, value in overrides.items())]
    texts[OVERRIDES] = _overrides_yaml(recipe, options)
    texts[COMMAND] = _command(plan, recipe, folder, options)
    return texts


def _accelerate_yaml(plan: Plan, folder: Path) -> str:
    """Return accelerate's launch file; accelerate reads a path in it from the working directory."""
    cluster, strategy = plan.cluster, plan.training.setup.strategy
    is_cpu = cluster.gpu.name == "cpu"
    values: dict[str, Any] = {"compute_environment": "LOCAL_MACHINE"}
    if strategy.startswith("zero"):
        values["distributed_type"] = "DEEPSPEED"
        values["deepspeed_config"] = {
            "deepspeed_config_file": str(folder / DEEPSPEED),
            "deepspeed_multinode_launcher": "standard",
            "zero3_init_flag": strategy == "zero3",
        }
    else:
        # Several processes are MULTI_GPU on a processor, too; with MULTI_CPU accelerate would want MPI.
        values["distributed_type"] = "NO" if cluster.num_devices == 1 else "MULTI_GPU"
        values["mixed_precision"] = "no"
    values |= {
        "num_machines": cluster.num_nodes,
        "num_processes": cluster.num_devices,
        "machine_rank": 0,
        "main_training_function": "main",
        "use_cpu": is_cpu and values["distributed_type"] == "NO",
    }
    if cluster.num_nodes == 1:
        values["main_process_port"] = 0  # any that is free
    if values["distributed_type"] != "NO":
        values |= {"rdzv_backend": "static", "same_network": True}
    head = (
        f"# {_devices(plan)}, {strategy}. Written by `rest_em plan --emit`; {COMMAND} beside it starts it.\n"
        "# Precision, batch, accumulation and clipping are the recipe's.\n"
    )
    return head + yaml.safe_dump(values, sort_keys=False)


def deepspeed_config(setup: TrainingSetup) -> dict[str, Any]:
    """Return DeepSpeed's configuration of a setup; what is "auto" is filled in from the recipe.

    Where the optimiser's states are on the host, torch's own optimiser steps there: DeepSpeed's would have to
    be compiled.
    """
    zero = setup.zero
    section: dict[str, Any] = {
        "stage": int(setup.strategy[-1]),
        "contiguous_gradients": zero.contiguous_gradients,
        "reduce_bucket_size": zero.reduce_bucket_size,
        "allgather_bucket_size": zero.allgather_bucket_size,
    }
    if zero.overlap_comm is not None:
        section["overlap_comm"] = zero.overlap_comm
    if setup.strategy == "zero3":
        section |= {
            "stage3_prefetch_bucket_size": zero.prefetch_bucket_size,
            "stage3_param_persistence_threshold": zero.param_persistence_threshold,
            "stage3_max_live_parameters": zero.max_live_parameters,
            "stage3_max_reuse_distance": zero.max_reuse_distance,
            "stage3_gather_16bit_weights_on_model_save": True,
            "sub_group_size": zero.sub_group_size,
        }
    for name, device in (
        ("offload_optimizer", setup.offload_optimizer),
        ("offload_param", setup.offload_param),
    ):
        if device != "none":
            section[name] = {"device": device, "pin_memory": zero.pin_memory}
    config: dict[str, Any] = {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
        "zero_optimization": section,
    }
    if setup.offload_optimizer != "none":
        config["zero_force_ds_cpu_optimizer"] = False
    return config


def _yaml_value(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("\n...\n").strip()


def _overrides_yaml(recipe: Path, options: Sequence[str]) -> str:
    """Return the keys as a recipe has them, to be read or pasted."""
    document = Document(OVERRIDES)
    apply_options(document, options)
    head = f"# What the plan changes of {recipe}; {COMMAND} says the same with --set.\n"
    return head + dump(document.values)


def _command(plan: Plan, recipe: Path, folder: Path, options: Sequence[str]) -> str:
    words = ["accelerate", "launch", "--config_file", shlex.quote(str(folder / ACCELERATE))]
    before = []
    if plan.cluster.num_nodes > 1:
        before += [
            "# On every node: MACHINE_RANK (0 on the first) and MAIN_PROCESS_IP (the first node's address).",
            ': "${MACHINE_RANK:?is not set: 0 on the first node, 1 on the next}"',
            ': "${MAIN_PROCESS_IP:?is not set: the address of the first node}"',
        ]
        words += ["--machine_rank", '"$MACHINE_RANK"', "--main_process_ip", '"$MAIN_PROCESS_IP"']
        words += ["--main_process_port", '"${MAIN_PROCESS_PORT:-29500}"']
    if plan.cluster.gpu.name == "cpu":
        before.append("export CUDA_VISIBLE_DEVICES=  # planned for the processor")
    lines = [" ".join(words), f"  -m rest_em run {shlex.quote(str(recipe))}"]
    lines += [f"  --set {shlex.quote(option)}" for option in options]
    lines[-1] += ' "$@"'
    file, config = shlex.quote(str(recipe)), shlex.quote(str(folder / ACCELERATE))
    return "\n".join(
        [
            "#!/bin/sh",
            *(f"# {line}" if line else "#" for line in _figures(plan)),
            "set -eu",
            f"for file in {file} {config}; do",
            '  [ -f "$file" ] || { echo "$0: start it where $file is" >&2; exit 1; }',
            "done",
            *before,
            "exec " + " \\\n".join(lines),
            "",
        ]
    )


def _figures(plan: Plan) -> list[str]:
    """Return what the plan says, for the head of the command."""
    sampling, memory = plan.sampling, plan.training.memory
    setup = plan.training.setup
    text = [
        f"Written by `rest_em plan --emit` for {plan.model} on {_devices(plan)}. Start it in the directory "
        "in which the plan was made; what you add goes to `rest_em run`.",
        "",
        f"sampling: {sampling.setup.rows} rows, peak {sampling.peak_bytes / _GIB:.2f} GiB at the instant "
        f"{sampling.memory.peak.instant!r}, {sampling.spare_bytes / _GIB:.2f} GiB spare",
        f"training: {setup.method}, {setup.strategy}, {setup.precision}, {setup.num_rows} x {setup.longest} "
        f"tokens, peak {memory.peak.total_bytes / _GIB:.2f} GiB at the instant {memory.peak.name!r}, "
        f"{memory.spare_bytes / _GIB:.2f} GiB spare",
    ]
    if plan.seconds is not None:
        money = plan.dollars(plan.seconds)
        cost = "" if money is None else f", ${money:,.2f}"
        text.append(f"about {told_time(plan.seconds)} for {plan.num_iterations} iterations{cost}")
    return [line for one in text for line in textwrap.wrap(one, 100) or [""]]


def told_time(seconds: float) -> str:
    """Return a time in the unit that fits.

    >>> told_time(0.4), told_time(90), told_time(600), told_time(9000)
    ('0.40 seconds', '90 seconds', '10.0 minutes', '2.5 hours')
    """
    if seconds >= 7200:
        return f"{seconds / 3600:,.1f} hours"
    if seconds >= 120:
        return f"{seconds / 60:.1f} minutes"
    return f"{seconds:.0f} seconds" if seconds >= 1 else f"{seconds:.2f} seconds"


def _devices(plan: Plan) -> str:
    cluster = plan.cluster
    nodes = "" if cluster.num_nodes == 1 else f" on {cluster.num_nodes} nodes"
    return f"{cluster.num_devices} x {cluster.gpu.name}{nodes}"
