"""A whole run small enough for a test: a tiny random model, a reward in a file of the user's own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from process_watch import processes_in

from rest_em.storage import read_examples, read_graded, read_solutions

REPOSITORY = Path(__file__).parents[1]

REWARD = '''
def even_length(problem, solution):
    """Call about half of what a random model says correct."""
    return len(solution.text) % 2 == 0
'''

RECIPE = """
seed: 3
num_iterations: 1
model: {{name_or_path: {model}, dtype: float32}}
problems:
  train: {{path: train.jsonl}}
  validation: {{path: validation.jsonl}}
  test: {{path: test.jsonl}}
  id: id
prompt:
  template: "{{{{ question }}}}="
  base:
    - {{name: shown, examples: examples.jsonl}}
    - {{name: bare}}
reward: {{function: "reward.py:even_length", num_workers: 1}}
sampling: {{num_samples: 4, max_new_tokens: 16, temperature: 1.0, top_k: 0, unit_size: 4, max_rows: 1,
           stop_strings: [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r, s, t]}}
selection: {{max_solutions_per_problem: 3}}
training: {{num_train_epochs: 2, global_batch_size: 4, per_device_train_batch_size: 2, learning_rate: 1e-3,
           bf16: false, checkpoint_choice: last}}
evaluation: {{num_samples: 2}}
"""

RUN = Path("runs") / "tiny"
"""Where its run lies."""


def write_recipe(folder: Path, model: Path) -> Path:
    """Write a recipe, its problems and its reward into `folder`; return the recipe."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, size in (("train", 16), ("validation", 3), ("test", 4)):
        rows = [{"id": f"{name}-{k}", "question": f"{name[:2]}{k}", "answer": "7"} for k in range(size)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "examples.jsonl").write_text(json.dumps({"question": "a", "solution": "bc"}) + "\n")
    (folder / "reward.py").write_text(REWARD)
    recipe = folder / "tiny.yaml"
    recipe.write_text(RECIPE.format(model=model))
    return recipe


def environment() -> dict[str, str]:
    """Return this environment for a launched run: the package importable from any directory, no hub.

    Threads that wait for each other sleep: spinning takes the cores from the other ranks of a test.
    """
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("ACCELERATE_", "RANK"))}
    return kept | {"PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE"}


def launch(*arguments: str, config: str | None = None, options: tuple[str, ...] = ()) -> list[str]:
    """Return the command line of `rest_em`, under `accelerate launch` if a launch file is named."""
    if config is None:
        return [sys.executable, "-m", "rest_em", *arguments]
    accelerate = [sys.executable, "-m", "accelerate.commands.launch"]
    file = str(REPOSITORY / "launch" / config)
    return [*accelerate, "--config_file", file, *options, "-m", "rest_em", *arguments]


def finish(command: list[str], cwd: Path, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    """Run a command to its end in `cwd`."""
    return subprocess.run(
        command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=timeout, check=False
    )


@contextmanager
def started(command: list[str], cwd: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a command in `cwd`, stdout and stderr in one pipe; what is left of it in the end is killed."""
    process = subprocess.Popen(
        command, cwd=cwd, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for number in processes_in(cwd):
            os.kill(number, signal.SIGKILL)
        if process.stdout is not None:
            process.stdout.close()


def wait_until(condition: Callable[[], object], process: subprocess.Popen[str], timeout: float = 300) -> None:
    """Wait for something that a running command does."""
    deadline = time.monotonic() + timeout
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise AssertionError(f"it did not happen:\n{process.communicate()[0]}")
        time.sleep(0.02)


def show(folder: Path) -> dict[str, Any]:
    """Return what `rest_em show --json` prints of a run."""
    done = finish(launch("show", str(folder), "--json"), cwd=folder)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def drawn(cwd: Path) -> dict[str, list[Any]]:
    """Return solutions and verdicts of the base model's draws, and D_1, by file."""
    run, found = cwd / RUN, dict[str, list[Any]]()
    for units in sorted([*run.glob("iteration-00/**/units"), run / "iteration-01" / "samples" / "units"]):
        (verdicts,) = (units.parents[1] / "verdicts").iterdir()
        for unit in sorted(units.iterdir()):
            solutions = read_solutions(unit)
            found[str(unit.relative_to(run))] = [*solutions, *read_graded(verdicts / unit.name, solutions)]
    found["dataset"] = [*read_examples(run / "iteration-01" / "dataset.parquet")]
    return found
