"""One answer for sampling and training to where a rank computes, and in what precision."""

from __future__ import annotations

import platform

import pytest
import torch

from rest_em import devices


@pytest.mark.parametrize(("asked", "type_there"), [("true", "cpu"), ("1", "cpu"), ("false", "cuda")])
def test_a_launch_files_use_cpu_wins_over_a_gpu(
    monkeypatch: pytest.MonkeyPatch, asked: str, type_there: str
) -> None:
    monkeypatch.setattr(
        torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda")
    )
    monkeypatch.setenv("ACCELERATE_USE_CPU", asked)
    assert devices.device_type() == type_there


def test_without_an_accelerator_it_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: None)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    assert devices.device_type() == "cpu"


def test_what_computes_says_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    told = "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz \nprocessor\t: 1\nmodel name\t: Other\n"
    for cpuinfo, name in ((told, "Some CPU @ 2 GHz"), ("", f"cpu of {platform.machine()}")):
        monkeypatch.setattr(devices, "_cpuinfo", lambda cpuinfo=cpuinfo: cpuinfo)
        assert devices.device_name(torch.device("cpu")) == name
    assert devices.device_name(torch.device("xpu", 0)) == f"xpu of {platform.machine()}"


def test_a_gpu_that_only_emulates_bfloat16_does_not_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert not devices.has_native_bfloat16("cuda")
