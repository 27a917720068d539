"""Attempts at an M-step that are killed at a certain point, forked from a process that has imported all."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
from collections.abc import Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rest_em.stages import Ranks, stage_environment

PRELOADED = ["rest_em.training.stage", "peft", "pandas", "pyarrow.parquet", "transformers.models.llama"]
"""What takes seconds to import."""


def start(
    spec: dict[str, Any],
    at: tuple[str, int] | None = None,
    *,
    num_ranks: int = 1,
    launch: Mapping[str, str] = MappingProxyType({}),
) -> list[ForkServerProcess]:
    """Start the stage on every rank.

    Args:
        spec: the stage's.
        at: where it is killed: after a `step`, `half` way through the checkpoint after a step, once all is
            written and it does not count yet, or behind the folder of an `epoch`; or after which step it is
            asked to `stop`.
        num_ranks: how many.
        launch: what the launch file tells it by its environment.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(num_ranks):
        ranks = Ranks(rank, num_ranks, rank, num_ranks)
        environment = stage_environment(ranks, port, {**os.environ, **launch}, is_training=True)
        processes.append(context.Process(target=_run, args=(spec, environment, at)))
    for process in processes:
        process.start()
    return processes


def attempt(
    spec: dict[str, Any],
    at: tuple[str, int] | None = None,
    *,
    num_ranks: int = 1,
    launch: Mapping[str, str] = MappingProxyType({}),
) -> list[int]:
    """Run the stage as `start` does; return the ranks' exit codes, -9 for one that was killed."""
    processes = start(spec, at, num_ranks=num_ranks, launch=launch)
    for process in processes:
        process.join(120)
        process.kill()
    return [process.exitcode or 0 for process in processes]


def _run(spec: dict[str, Any], environment: dict[str, str], at: tuple[str, int] | None) -> None:
    os.environ.clear()
    os.environ.update(environment)
    import torch

    from rest_em.stages import leave_stage
    from rest_em.training import stage

    log = os.open(Path(spec["output"]).with_suffix(".log"), os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    torch.set_num_threads(1)
    if at is not None:
        _disturb(*at, Path(spec["stop"]))
    stage.main(spec)
    leave_stage()


def _disturb(point: str, number: int, stop: Path) -> None:
    from rest_em.training import checkpoints, resume, stage

    def die_at(name: str, reached: int) -> None:
        if (name, reached) == (point, number):
            os.kill(os.getpid(), signal.SIGKILL)

    log, commit, save = stage.Journal.on_log, resume.commit, checkpoints.Checkpoints.save

    def on_log(self: Any, args: Any, state: Any, control: Any, logs: Any = None, **others: Any) -> None:
        log(self, args, state, control, logs, **others)
        die_at("step", state.global_step)
        if ("stop", state.global_step) == (point, number):
            stop.touch()

    def on_commit(output: Path, saved: Any) -> None:
        die_at("half", saved.step)
        commit(output, saved)

    def on_epoch(self: Any, epoch: int) -> None:
        save(self, epoch)
        die_at("epoch", epoch)

    patched: Any = stage.Journal
    patched.on_log, resume.commit = on_log, on_commit
    patched = checkpoints.Checkpoints
    patched.save = on_epoch
