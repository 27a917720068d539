"""Trains as a rank's stage does and, before it leaves, tells what it was shown and what came of it.

As a program, `python tests/rank_program.py JOBS.json`, it forks the ranks of one training after another, so
that the libraries are imported once.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rest_em.storage import write_json

if TYPE_CHECKING:
    from rest_em.training.trainer import WeightedTrainer


@contextmanager
def recorded() -> Iterator[None]:
    """Have `stage.main` write `rank<r>.json` beside its output: weights, what was shown, losses by step."""
    from rest_em.training import stage

    leave = stage.leave_group

    def record_and_leave(trainer: WeightedTrainer) -> None:
        weights = hashlib.sha256()
        for parameter in trainer.model.parameters():
            weights.update(parameter.detach().numpy().tobytes())
        shown = [row for batch in trainer.get_train_dataloader() for row in batch["input_ids"].tolist()]
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        found = {"weights": weights.hexdigest(), "shown": shown, "losses": losses}
        write_json(Path(trainer.args.output_dir).parent / f"rank{os.environ.get('RANK', '0')}.json", found)
        leave(trainer)

    stage.leave_group = record_and_leave
    try:
        yield
    finally:
        stage.leave_group = leave


def _train(spec: Mapping[str, Any], environment: Mapping[str, str], log: Path) -> None:
    """Be a rank: train and end the process."""
    from rest_em.training import stage

    os.environ.clear()
    os.environ.update(environment)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    try:
        with recorded():
            stage.main(dict(spec))
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def main(jobs: list[Any]) -> None:
    """Train one job after another; end at the first that fails."""
    import deepspeed  # noqa: F401

    from rest_em.training import stage  # noqa: F401

    for job in jobs:
        ranks = []
        for rank, environment in enumerate(job["environments"]):
            number = os.fork()
            if number == 0:
                _train(job["spec"], environment, Path(job["spec"]["output"]).parent / f"rank{rank}.log")
            ranks.append(number)
        if sum(os.waitpid(number, 0)[1] != 0 for number in ranks):
            raise SystemExit(f"{job['spec']['output']}: a rank failed")


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
