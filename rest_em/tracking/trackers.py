"""The trackers that a recipe can name, by their own few calls.

Not by accelerate's classes for them: importing those imports torch, which rank 0's supervisor never does, and
each of their calls asks for the ranks' process group, which only the stages have.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import yaml

from rest_em.tracking.curves import AXES, Point

INIT_SECONDS = 10.0
"""How long wandb tries to open a run."""
FINISH_SECONDS = 10.0
"""How long wandb goes on sending at the end of a process."""
MLFLOW_PARAMS, MLFLOW_METRICS, MLFLOW_VALUE = 100, 1000, 6000
"""Parameters and metrics in one request, characters of a parameter. Source: mlflow.utils.validation, 3.17."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """What a tracker is told of a run, always the same but for the recipe.

    Example:
        TrackedRun(Path("runs/gsm8k/tracking"), project="rest_em", name="gsm8k", id="1f0c9a2b",
                   recipe={"seed": 0})
    """

    folder: Path
    """For what the tracker keeps in files."""
    project: str
    name: str
    id: str
    """Of the tracker run; chosen by us, so that whatever is killed the next process finds the same one."""
    recipe: Mapping[str, Any]
    """As resolved: JSON values."""


class Tracker(Protocol):
    """An open tracker run."""

    where: str
    """Where people find it, or how."""

    def log(self, points: Sequence[Point]) -> None:
        """Hand points over; what goes wrong is raised."""

    def close(self) -> None:
        """End the tracker's own processes and files; what it holds back is sent before."""


class TensorBoard:
    """Event files in the run folder; each process of the run adds one."""

    def __init__(self, run: TrackedRun) -> None:
        """Begin a file, with the recipe in it."""
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        folder = run.folder / "tensorboard"
        self.where = f"tensorboard --logdir {folder}"
        self._writer = EventFileWriter(str(folder))
        self._write([_text("recipe", yaml.safe_dump(dict(run.recipe), sort_keys=False))], step=0)
        self._writer.flush()

    def log(self, points: Sequence[Point]) -> None:
        """Write points, and return when they are in the file."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        for point in points:
            values = [Summary.Value(tag=name, simple_value=one) for name, one in point.values.items()]
            self._write(values, step=point.x)
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()

    def _write(self, values: Sequence[Any], *, step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))


def _text(tag: str, text: str) -> Any:
    """Return a text as TensorBoard's plugin for texts reads it, which takes it for Markdown."""
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto

    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)])
    indented = "".join(f"    {line}\n" for line in text.splitlines())
    return Summary.Value(
        tag=tag,
        metadata=SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text")),
        tensor=TensorProto(dtype="DT_STRING", string_val=[indented.encode()], tensor_shape=shape),
    )


class WandB:
    """Weights & Biases, online or offline as its own settings say."""

    def __init__(self, run: TrackedRun) -> None:
        """Open the run, or go on with it."""
        import wandb

        # Silent, it asks no questions on a terminal either: without a key it raises.
        settings = wandb.Settings(
            console="off", silent=True, init_timeout=INIT_SECONDS, finish_timeout=FINISH_SECONDS
        )
        with ExitStack() as unless_open:
            # Else its own process takes the run for open, and the next try waits for ever.
            unless_open.callback(wandb.teardown)
            self._run = wandb.init(
                project=run.project,
                name=run.name,
                id=run.id,
                resume="allow",
                dir=run.folder,
                settings=settings,
            )
            # A resume may have more iterations.
            self._run.config.update(dict(run.recipe), allow_val_change=True)
            unless_open.pop_all()
        own = Path(self._run.dir).parent
        self.where = f"wandb sync {own}" if self._run.offline else str(self._run.url)
        for prefix, axis in AXES.items():
            self._run.define_metric(f"{prefix}/*", step_metric=axis)

    def log(self, points: Sequence[Point]) -> None:
        """Hand points to wandb's own process, which drops one whose number it has already."""
        for point in points:
            self._run.log({**point.values, point.axis: point.x}, step=point.number)

    def close(self) -> None:
        """Finish, as far as the network is fast enough; the rest is kept for `wandb sync`."""
        self._run.finish()


class Trackio:
    """trackio, in its own folder or wherever its environment variables say."""

    def __init__(self, run: TrackedRun) -> None:
        """Open the run, or go on with it; trackio knows runs by their names."""
        import trackio

        name = f"{run.name}-{run.id}"
        self._run = trackio.init(
            project=run.project, name=name, resume="allow", config=dict(run.recipe), embed=False
        )
        self.where = f"trackio show --project {run.project}, run {name}"

    def log(self, points: Sequence[Point]) -> None:
        """Hand points to trackio's own thread."""
        for point in points:
            self._run.log({**point.values, point.axis: point.x}, step=point.x)

    def close(self) -> None:
        """Send what is left."""
        self._run.finish()


class MLflow:
    """MLflow, at its tracking URI; it allows no @ in a name, so that pass@1 is pass_at_1."""

    def __init__(self, run: TrackedRun) -> None:
        """Open the run, or go on with it: our id is one of its tags."""
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client = client = MlflowClient()
        found = client.get_experiment_by_name(run.project)
        experiment = found.experiment_id if found else client.create_experiment(run.project)
        known = client.search_runs([experiment], f"tags.`rest_em.id` = '{run.id}'")
        if known:
            client.update_run(known[0].info.run_id, status="RUNNING")
        own = known[0] if known else client.create_run(
            experiment, run_name=run.name, tags={"rest_em.id": run.id}
        )  # fmt: skip
        self._id = own.info.run_id
        self.where = f"{client.tracking_uri}, experiment {run.project}, run {self._id}"
        # A parameter that is there cannot be changed.
        new = [Param(*one) for one in _flat(run.recipe) if one[0] not in own.data.params]
        for some in batched(new, MLFLOW_PARAMS):
            client.log_batch(self._id, params=some)

    def log(self, points: Sequence[Point]) -> None:
        """Send points."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [
            Metric(name.replace("@", "_at_"), value, now, point.x)
            for point in points
            for name, value in point.values.items()
        ]
        for some in batched(metrics, MLFLOW_METRICS):
            self._client.log_batch(self._id, metrics=some)

    def close(self) -> None:
        """Say that nothing comes for now."""
        self._client.set_terminated(self._id)


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield the keys of nested mappings, joined by dots, and the values as MLflow takes them."""
    if isinstance(value, Mapping):
        for name, one in value.items():
            yield from _flat(one, f"{key}.{name}" if key else str(name))
    else:
        yield key, str(value)[:MLFLOW_VALUE]


def batched(values: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Yield values in their order, `size` at once and in the end what is left.

    >>> list(batched([1, 2, 3], 2))
    [[1, 2], [3]]
    """
    for start in range(0, len(values), size):
        yield values[start : start + size]


TRACKERS: Mapping[str, Callable[[TrackedRun], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "trackio": Trackio,
    "mlflow": MLflow,
}
"""By the names that `tracking.report_to` takes, which are those of the packages."""
