"""What a launch that offloads to NVMe needs of a machine: a folder, and DeepSpeed's operator `async_io`.

It is compiled here, before anything of a run starts: DeepSpeed would do it at first use, hours later and in
every rank, and a build that is killed leaves a lock on which the next one waits for ever. Other launches
compile nothing.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from rest_em.errors import PlanError, TrainingError
from rest_em.planning import Launch
from rest_em.stages import EXTENSIONS_VARIABLE, extensions_folder

FOLDER_VARIABLES = {
    "offload_optimizer": "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_NVME_PATH",
    "offload_param": "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_NVME_PATH",
}
"""What accelerate reads in the processes it starts; its launcher does not hand its own options on."""
BUILD = """
from deepspeed.accelerator import get_accelerator
builder = get_accelerator().create_op_builder("AsyncIOBuilder")
if not builder.is_compatible():
    raise SystemExit("libaio's header or library is not found")
builder.load()
"""
TAIL_LINES = 5


def prepare_nvme(environment: Mapping[str, str], num_ranks: int, tell: Callable[[str], None]) -> None:
    """Check the folders of a launch that offloads to NVMe and compile what it needs; else do nothing.

    Args:
        environment: of a rank, as accelerate's launcher sets it.
        tell: is told that something is compiled.

    Raises:
        TrainingError: a folder is not named or cannot be written, or the operator cannot be built.
    """
    try:
        launch = Launch.from_environment(environment, num_ranks)
    except PlanError:  # the run's plan tells it
        return
    offloads = {"offload_optimizer": launch.offload_optimizer, "offload_param": launch.offload_param}
    for name in (name for name, device in offloads.items() if device == "nvme"):
        configured = ((launch.zero or {}).get(name) or {}).get("nvme_path")
        _check_folder(name, configured or environment.get(FOLDER_VARIABLES[name]))
    if "nvme" in offloads.values():
        _build(environment, tell)


def _check_folder(name: str, folder: str | None) -> None:
    wanted = (
        f"set {FOLDER_VARIABLES[name]} to a folder on a fast local disk of every machine (accelerate's "
        f"launcher does not hand on its own option --{name}_nvme_path)"
    )
    if folder is None:
        raise TrainingError(f"the launch's {name} is on NVMe, and no folder is named: {wanted}")
    if not os.access(folder, os.W_OK | os.X_OK) or not Path(folder).is_dir():
        raise TrainingError(f"{folder}: no folder that can be written, for {name} on NVMe: {wanted}")


def _build(environment: Mapping[str, str], tell: Callable[[str], None]) -> None:
    folder = extensions_folder(environment)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "rest_em.lock").open("w")
    except OSError as error:
        raise TrainingError(
            f"{folder}: DeepSpeed's operator async_io cannot be compiled there: {error.strerror}; name a "
            f"folder that can be written in {EXTENSIONS_VARIABLE}"
        ) from error
    with lock:  # the kernel gives it back whatever ends this process
        fcntl.flock(lock, fcntl.LOCK_EX)
        for stale in folder.glob("*/lock"):  # torch's own, of a build that was killed
            stale.unlink()
        if not list(folder.glob("async_io/*.so")):
            tell(f"{folder}: DeepSpeed's operator async_io is compiled for NVMe, once; it takes minutes")
        done = subprocess.run(
            [sys.executable, "-c", BUILD],
            env={**environment, EXTENSIONS_VARIABLE: str(folder)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        tail = "\n".join(f"  | {line}" for line in (done.stdout + done.stderr).splitlines()[-TAIL_LINES:])
        raise TrainingError(
            "the launch offloads to NVMe, and DeepSpeed's operator async_io cannot be built:\n"
            f"{tail}\n"
            "install a C++ compiler and libaio's headers (Debian and Ubuntu: libaio-dev; Fedora: "
            "libaio-devel), or say where they are in CFLAGS and LDFLAGS; without NVMe take "
            "launch/zero3_offload.yaml"
        )
