"""The devices of a machine, from what its driver and its kernel say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rest_em.errors import PlanError
from rest_em.planner import machine
from rest_em.planner.hardware import SHIPPED, load_gpus
from rest_em.planner.machine import local_cpu, local_gpus, parse_nvidia_smi

GPUS = load_gpus(SHIPPED)
GIB = 2**30


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path, "proc/meminfo", "MemTotal:       16777216 kB\nMemFree:  1 kB\n")
    write(tmp_path, "proc/cpuinfo", "cpu MHz\t\t: 2000.000\nflags\t\t: fpu sse2 avx2\n")
    return tmp_path


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_each_gpu_of_the_driver_is_recognised_by_its_name() -> None:
    first, second, third = parse_nvidia_smi(
        "NVIDIA H200, 143771 MiB\nNVIDIA GeForce GTX 1080, 8192 MiB\nTesla T4, [N/A]\n", GPUS
    )
    assert (first.gpu, first.memory_bytes) == (GPUS["h200"], 143_771 * 2**20)
    assert (second.name, second.gpu, second.memory_bytes) == ("NVIDIA GeForce GTX 1080", None, 8 * GIB)
    assert (third.gpu, third.memory_bytes) == (GPUS["t4"], None)


@pytest.mark.parametrize("text", ["", "\n", "No devices were found\n"])
def test_a_driver_without_gpus_gives_none(text: str) -> None:
    assert parse_nvidia_smi(text, GPUS) == ()


@pytest.mark.parametrize(
    ("program", "found"),
    [
        ("echo 'NVIDIA L4, 23034 MiB'", 1),
        ("echo 'NVIDIA-SMI has failed, as there is no driver'; exit 9", 0),
        ("exec sleep 60", 0),
        (None, 0),
    ],
)
def test_a_driver_that_fails_or_hangs_or_is_not_there_gives_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, program: str | None, found: int
) -> None:
    monkeypatch.setattr(machine, "_TIMEOUT_SECONDS", 0.5 if program == "exec sleep 60" else 60.0)
    if program is not None:
        write(tmp_path, "nvidia-smi", f"#!/bin/sh\n{program}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin" if program else str(tmp_path))
    assert len(local_gpus(GPUS)) == found


def test_the_processors_rate_is_cores_times_clock_times_its_vector_unit(
    monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    monkeypatch.setattr(machine, "usable_cores", lambda: 4)
    cpu = local_cpu(root)
    assert (cpu.name, cpu.memory_bytes, cpu.usable_bytes) == ("cpu", 16 * GIB, 16 * GIB)
    assert (cpu.fp32_flops, cpu.bf16_flops) == (4 * 2e9 * 32, None)
    assert (cpu.bandwidth, cpu.confidence, cpu.context_bytes) == (40e9, "low", 0)
    write(root, "proc/cpuinfo", "flags : avx2 avx512f avx512_bf16 amx_bf16\n")
    cpu = local_cpu(root)
    assert (cpu.fp32_flops, cpu.bf16_flops) == (4 * 2.5e9 * 32, 4 * 2.5e9 * 1024)


def test_many_cores_draw_no_more_than_their_socket_gives(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    monkeypatch.setattr(machine, "usable_cores", lambda: 128)
    assert local_cpu(root).bandwidth == 200e9


@pytest.mark.parametrize(
    ("group", "files", "gib"),
    [
        ("0::/a/b\n", {"a/b/memory.max": "max", "a/memory.max": f"{8 * GIB}"}, 8),
        ("0::/\n", {"memory.max": f"{4 * GIB}"}, 4),
        ("0::/not/seen/here\n", {"memory.max": f"{4 * GIB}"}, 4),
        ("4:memory:/a\n", {"memory/a/memory.limit_in_bytes": f"{2 * GIB}"}, 2),
        ("4:cpu,memory:/a\n", {"memory/memory.limit_in_bytes": "9223372036854771712"}, 16),
        ("4:memory:/\n0::/\n", {"unified/memory.max": f"{GIB}"}, 1),
        ("", {}, 16),
    ],
)
def test_the_memory_is_no_more_than_its_cgroup_lets_it_have(
    root: Path, group: str, files: dict[str, str], gib: int
) -> None:
    write(root, "proc/self/cgroup", group)
    for name, text in files.items():
        write(root, f"sys/fs/cgroup/{name}", f"{text}\n")
    assert local_cpu(root).memory_bytes == gib * GIB


def test_a_machine_that_does_not_tell_its_memory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="does not tell this machine's memory; name a device with --gpu"):
        local_cpu(tmp_path)


def test_looking_for_devices_loads_no_torch() -> None:
    code = (
        "import sys; from rest_em.planner import failures, hardware, machine, textbook, timing; "
        "machine.local_gpus(hardware.load_gpus(hardware.SHIPPED)); "
        "sys.exit(bool({'torch', 'numpy', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
