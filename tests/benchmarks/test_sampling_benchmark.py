import importlib.util
import json
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "sampling.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("sampling_benchmark", SCRIPT)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_benchmark_runs_and_writes_what_it_prints(benchmark, tiny_model_folder, tmp_path, capsys):
    figures = tmp_path / "figures.json"
    benchmark.main([str(tiny_model_folder), "--rounds", "1", "--case", "1", "--json", str(figures)])
    (case,) = json.loads(figures.read_text())["cases"]
    assert case["ratio"] == pytest.approx(case["sampler"]["median"] / case["generate"]["median"])
    assert f"| {case['ratio']:.1f} |" in capsys.readouterr().out


def test_tokens_after_a_row_has_ended_do_not_count(benchmark):
    import torch

    generate = object.__new__(benchmark.Generate)
    generate._ends = torch.tensor([2, 9])
    new = torch.tensor([[5, 9, 0, 0], [5, 6, 7, 8], [2, 2, 9, 5]])
    assert generate.count(new) == 2 + 4 + 1
