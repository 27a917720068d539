"""A slurm allocation on this host: `srun` and `scontrol` that do here what launch/slurm.sbatch asks for."""

from __future__ import annotations

import random
import socket
import sys
from pathlib import Path

from tiny_run import REPOSITORY

SRUN = """#!/bin/bash
# Starts a task for each node, all of them here, and waits for them.
echo "$*" >> "$SLURM_STAND_IN/srun.log"
while [[ $1 == --* ]]; do shift; done
tasks=()
for ((node = 0; node < SLURM_JOB_NUM_NODES; node++)); do
    SLURM_NODEID=$node "$@" &
    tasks+=($!)
done
code=0
for task in "${tasks[@]}"; do wait "$task" || code=$?; done
exit "$code"
"""
SCONTROL = """#!/bin/bash
# Tells the nodes of the allocation, and writes down what is requeued.
if [[ "$1 $2" == "show hostnames" ]]; then
    for ((node = 0; node < SLURM_JOB_NUM_NODES; node++)); do echo 127.0.0.1; done
else
    echo "$*" >> "$SLURM_STAND_IN/scontrol.log"
fi
"""
FIRST_PORT, NUM_PORTS = 20_000, 20_000
"""Of slurm.sbatch: a job's port is 20000 + its id % 20000."""


def job(folder: Path, *arguments: str, num_nodes: int = 1) -> list[str]:
    """Return a command that runs launch/slurm.sbatch as slurm does on its first node.

    Args:
        folder: for the stand-ins, and for `srun.log` and `scontrol.log`, which they write.
        arguments: of the script.
        num_nodes: of the allocation, each without a GPU.
    """
    folder.mkdir(exist_ok=True)
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    variables = [
        f"PATH={folder}:{Path(sys.executable).parent}:/usr/bin:/bin", f"SLURM_STAND_IN={folder}",
        f"SLURM_JOB_ID={_free_job()}", f"SLURM_JOB_NUM_NODES={num_nodes}", "SLURM_JOB_NODELIST=node-[0-1]",
    ]  # fmt: skip
    return ["env", *variables, "bash", str(REPOSITORY / "launch" / "slurm.sbatch"), *arguments]


def _free_job() -> int:
    """Return a job's id whose port is free."""
    while True:
        number = random.randrange(NUM_PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("", FIRST_PORT + number))
            except OSError:
                continue
            return number


def requeued(folder: Path) -> str:
    """Return what `scontrol` was asked for, besides hosts."""
    log = folder / "scontrol.log"
    return log.read_text() if log.exists() else ""
