"""The devices of this machine, without torch: GPUs by nvidia-smi, the processor by /proc and its cgroup.

Left out: AMD's GPUs, and CUDA_VISIBLE_DEVICES; both lists are of what is in the machine.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from rest_em.errors import PlanError
from rest_em.planner.hardware import Gpu, find_gpu
from rest_em.processes import usable_cores

_QUERY = ("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader")
_TIMEOUT_SECONDS = 2.0
_CLOCK = 2.5e9
"""Cycles a second where /proc/cpuinfo does not tell."""
_FP32_A_CYCLE = (("avx512f", 32), ("avx2", 32), ("asimd", 16))
"""Flag of /proc/cpuinfo, the best first, and the float32 FLOP a cycle and core that it stands for.

Of two units that multiply and add; AVX-512 comes with one of its full width or two, and one is taken.
"""
_OTHER_FP32_A_CYCLE = 4
_BF16_A_CYCLE = (("amx_bf16", 1024), ("avx512_bf16", 64))
"""The same for bfloat16; amx_bf16 is half of its peak, which no matrix of ours keeps fed."""
_CORE_BANDWIDTH = 10e9
"""Bytes a second that one core draws from memory, and the most that a socket gives; rough."""
_SOCKET_BANDWIDTH = 200e9


@dataclass(frozen=True, slots=True)
class LocalGpu:
    """One GPU of this machine."""

    name: str
    """As its driver calls it."""
    memory_bytes: int | None
    """As its driver says; None where it does not."""
    gpu: Gpu | None
    """What is known of its kind; None where nothing is."""


def local_gpus(gpus: Mapping[str, Gpu]) -> tuple[LocalGpu, ...]:
    """Return this machine's NVIDIA GPUs; none where nvidia-smi is absent, fails or takes over 2 seconds.

    Args:
        gpus: those that are known, as from `load_gpus`.
    """
    try:
        answer = subprocess.run(_QUERY, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return ()
    return parse_nvidia_smi(answer.stdout, gpus)


def parse_nvidia_smi(text: str, gpus: Mapping[str, Gpu]) -> tuple[LocalGpu, ...]:
    """Return the GPUs that nvidia-smi lists, one line each, as `NVIDIA H200, 143771 MiB`."""
    found = []
    for line in filter(None, map(str.strip, text.splitlines())):
        name, comma, memory = line.rpartition(",")
        if not comma:
            continue  # a message of the driver, as "No devices were found"
        size = re.fullmatch(r"([0-9]+) MiB", memory.strip())
        found.append(
            LocalGpu(name.strip(), int(size[1]) * 2**20 if size else None, _known(name.strip(), gpus))
        )
    return tuple(found)


def _known(name: str, gpus: Mapping[str, Gpu]) -> Gpu | None:
    try:
        return find_gpu(name, gpus)
    except PlanError:
        return None


def host_memory_bytes(root: Path = Path("/")) -> int:
    """Return this machine's memory, or its part that this process's cgroup (v1 or v2) may have.

    Raises:
        PlanError: there is no /proc/meminfo to read, as outside of Linux.
    """
    return min([_memory_bytes(root), *_limits(root)])


def local_cpu(root: Path = Path("/")) -> Gpu:
    """Return this machine's processor as a device; its rates are rough, from the kind of its cores.

    Its memory is that of `host_memory_bytes`. The FLOP rate is
    cores x clock x the FLOP a cycle of the best vector unit, the bandwidth 10 GB/s a core up to 200 GB/s.

    Args:
        root: the folder that /proc and /sys are in.

    Raises:
        PlanError: there is no /proc/meminfo to read, as outside of Linux.
    """
    memory_bytes = host_memory_bytes(root)
    cpuinfo = _text(root / "proc/cpuinfo")
    cores = usable_cores()
    flags = set(re.findall(r"\S+", " ".join(re.findall(r"(?mi)^(?:flags|features)\s*:(.*)$", cpuinfo))))
    clocks = [float(one) * 1e6 for one in re.findall(r"(?m)^cpu MHz\s*:\s*([0-9.]+)", cpuinfo)]
    cycles = cores * (max(clocks) if clocks else _CLOCK)
    fp32 = next((rate for flag, rate in _FP32_A_CYCLE if flag in flags), _OTHER_FP32_A_CYCLE)
    bf16 = next((rate for flag, rate in _BF16_A_CYCLE if flag in flags), None)
    bandwidth = min(cores * _CORE_BANDWIDTH, _SOCKET_BANDWIDTH)
    return Gpu(
        name="cpu",
        memory_bytes=memory_bytes,
        usable_bytes=memory_bytes,
        bandwidth=bandwidth,
        bf16_flops=None if bf16 is None else cycles * bf16,
        fp32_flops=cycles * fp32,
        link="memory",
        link_bandwidth=bandwidth / 2,
        has_peer_access=True,
        host_link_bandwidth=bandwidth / 2,
        source=f"rough: {cores} cores by the kind of their vector unit in /proc/cpuinfo",
        gpus_per_node=1,
        context_bytes=0,
        confidence="low",
    )


def shared_out(device: Gpu, num_ranks: int) -> Gpu:
    """Return a processor as each of several ranks has it: an equal part of its memory and its rates."""
    return replace(
        device,
        memory_bytes=device.memory_bytes // num_ranks,
        usable_bytes=device.usable_bytes // num_ranks,
        bandwidth=device.bandwidth / num_ranks,
        bf16_flops=device.bf16_flops and device.bf16_flops / num_ranks,
        fp32_flops=device.fp32_flops and device.fp32_flops / num_ranks,
    )


def _memory_bytes(root: Path) -> int:
    path = root / "proc/meminfo"
    total = re.search(r"(?m)^MemTotal:\s*([0-9]+) kB", _text(path))
    if total is None:
        raise PlanError(f"{path} does not tell this machine's memory; name a device with --gpu")
    return int(total[1]) * 1024


def _limits(root: Path) -> Iterator[int]:
    """Yield the memory limits of this process's cgroup and of those around it."""
    group = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            bases, name = [group, group / "unified"], "memory.max"
        elif "memory" in controllers.split(","):
            bases, name = [group / "memory"], "memory.limit_in_bytes"
        else:
            continue
        inside = PurePosixPath(path.lstrip("/"))
        for base in bases:
            # In a container the path may be one of the host's; the limit is then told at the root.
            for folder in (inside, *inside.parents):
                limit = _text(base / folder / name).strip()
                if limit.isdigit():
                    yield int(limit)


def _text(path: Path) -> str:
    """Return what a file of the kernel's says; nothing where there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
