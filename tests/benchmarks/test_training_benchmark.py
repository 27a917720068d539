import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "training.py"


@pytest.mark.usefixtures("own_environment")
def test_the_benchmark_measures_a_stage(tiny_model_folder, capsys):
    spec = importlib.util.spec_from_file_location("training_benchmark", SCRIPT)
    benchmark = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    benchmark.measure_stage(str(tiny_model_folder), 4, 2)
    said = capsys.readouterr().out
    assert said.splitlines()[-1].startswith("stage, 2 examples a pass: 4 examples, 1 steps, ")
