"""Where this rank computes, and whether in bfloat16: one answer for sampling and for training.

torch is imported by the calls, not with the module. Loading a model onto a device is left to the stages.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

NATIVE_BFLOAT16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""Flags in /proc/cpuinfo of processors (x86, ARM) that multiply in bfloat16 faster than in float32."""
_TRUE = ("1", "true", "t", "yes", "y", "on")
"""What accelerate reads as true in an environment variable."""


def device_type() -> str:
    """Return `cpu`, or the kind of the accelerator that is there, as `cuda`.

    A launch file's `use_cpu: true` (ACCELERATE_USE_CPU) wins over an accelerator.
    """
    import torch

    if is_cpu_asked_for(os.environ):
        return "cpu"
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return "cpu" if accelerator is None else accelerator.type


def is_cpu_asked_for(environment: Mapping[str, str]) -> bool:
    """Return whether the launch file says `use_cpu: true`, as accelerate tells its processes."""
    return environment.get("ACCELERATE_USE_CPU", "false").lower() in _TRUE


def has_native_bfloat16(device: str) -> bool:
    """Return whether a kind of device, as `device_type` names it, multiplies bfloat16 in hardware."""
    import torch

    if device == "cpu":
        return _cpu_has_bfloat16()
    return device != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def device_name(device: torch.device) -> str:
    """Return what a GPU or the processor calls itself, e.g. AMD EPYC; one that says nothing has its kind."""
    if device.type == "cuda":
        import torch

        name: str = torch.cuda.get_device_name(device)
        return name
    found = re.search(r"^model name\s*: (.+)$", _cpuinfo(), re.MULTILINE) if device.type == "cpu" else None
    return found[1].strip() if found else f"{device.type} of {platform.machine()}"


def _cpu_has_bfloat16() -> bool:
    return not NATIVE_BFLOAT16.isdisjoint(_cpuinfo().split())


def _cpuinfo() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
