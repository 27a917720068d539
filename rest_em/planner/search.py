"""The search of a configuration that fits: the front of time and money, what was rejected and why, and the
cheapest changes with which a recipe as it stands would fit.

An E-step and an M-step share nothing but their devices, so each is searched by itself and every pair of them
is a configuration. Left out: several kinds of devices, host memory, and other global batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from rest_em.planner.candidates import (
    LORA,
    Candidate,
    Setup,
    offload_of,
    sampling_candidates,
    training_candidates,
)
from rest_em.planner.hardware import Cluster
from rest_em.planner.plan import Plan, outside_sampling, plan_sampling, plan_training
from rest_em.planner.sampling import sampling_memory
from rest_em.planner.sampling_setup import SamplingSetup
from rest_em.planner.training import TrainingSetup, training_memory

Phase = Literal["sampling", "training"]
MAX_WAYS = 4
"""Of the changes that would make a phase fit, so many are named."""
ORDER = ("single", "ddp", "zero1", "zero2", "zero3")


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that differs from what was asked.

    Example:
        Change("training.activation_checkpointing", "false", "true")
    """

    name: str
    """A key of the recipe, or `devices`, `strategy`, `offload`, `buckets`, `method`, `engine`."""
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.name}: {self.before} -> {self.after}"


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a faster way to do a phase was not taken."""

    phase: Phase
    candidate: Candidate[Any]
    changes: tuple[Change, ...]
    """From what was asked."""
    instant: str
    component: str
    """The largest at that instant."""
    component_bytes: int

    @property
    def over_bytes(self) -> int:
        """What it lacks, what lies outside the framework included."""
        return -self.candidate.spare_bytes


@dataclass(frozen=True, slots=True)
class Way:
    """Changes with which a phase that does not fit would."""

    phase: Phase
    candidate: Candidate[Any]
    changes: tuple[Change, ...]
    """From what was asked."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A whole configuration that fits."""

    sampling: Candidate[SamplingSetup]
    training: Candidate[TrainingSetup]
    seconds: float
    """Of the whole run."""
    dollars: float | None
    """None where no price is known."""
    changes: tuple[Change, ...]
    """From what was asked."""

    @property
    def cluster(self) -> Cluster:
        """The devices."""
        return self.training.cluster

    @property
    def device_seconds(self) -> float:
        """What money follows."""
        return self.seconds * self.cluster.num_devices

    @property
    def is_as_asked(self) -> bool:
        """Whether rest_em can run it, and learns what the recipe asks for."""
        return self.sampling.is_as_asked and self.training.is_as_asked

    @property
    def notes(self) -> tuple[str, ...]:
        """What keeps it from being recommended."""
        halves: tuple[Candidate[Any], ...] = (self.sampling, self.training)
        found = [f"not runnable by rest_em: {one.obstacle}" for one in halves if one.obstacle]
        for one, what in zip(halves, ("drawn", "learned"), strict=True):
            found += [f"changes what is {what}: {', '.join(one.altered)}"] if one.altered else []
        return tuple(found)


@dataclass(frozen=True, slots=True)
class Search:
    """What a search has found."""

    num_sampling: int
    """Ways to do the E-step that were costed, over all devices."""
    num_training: int
    num_pairs: int
    """Configurations that they make."""
    front: tuple[Choice, ...]
    """Of what rest_em can run as the recipe asks: no other one is as fast and as cheap; the fastest first."""
    beyond: tuple[Choice, ...]
    """Of all that fit, those not in `front`: some change what is learned, or need another engine."""
    rejections: tuple[Rejection, ...]
    """The next faster way of each phase; where nothing fits, the one that lacks least."""
    ways: tuple[Way, ...]
    """How each phase that does not fit as asked would, the cheapest first."""

    @property
    def recommended(self) -> Choice | None:
        """The fastest that fits, the cheaper of equals."""
        return self.front[0] if self.front else None


def search(plan: Plan, clusters: Sequence[Cluster]) -> Search:
    """Search around a plan.

    Args:
        clusters: the devices to choose from, all of one kind.
    """
    sampling = {one: list(sampling_candidates(plan, one)) for one in clusters}
    training = {one: list(training_candidates(plan, one)) for one in clusters}
    front, every = (
        _front(_best(plan, sampling[one], training[one], is_allowed=is_allowed) for one in clusters)
        for is_allowed in (_is_as_asked, _is_any)
    )
    recommended = front[0] if front else None
    return Search(
        num_sampling=sum(map(len, sampling.values())),
        num_training=sum(map(len, training.values())),
        num_pairs=sum(len(sampling[one]) * len(training[one]) for one in clusters),
        front=front,
        beyond=tuple(one for one in every if not one.is_as_asked),
        rejections=(
            *_rejections(plan, "sampling", _flat(sampling), recommended.sampling if recommended else None),
            *_rejections(plan, "training", _flat(training), recommended.training if recommended else None),
        ),
        ways=(
            *(_ways(plan, "sampling", _flat(sampling)) if plan.sampling.spare_bytes < 0 else ()),
            *(_ways(plan, "training", _flat(training)) if plan.training.memory.spare_bytes < 0 else ()),
        ),
    )


def _flat(found: dict[Cluster, list[Candidate[Setup]]]) -> list[Candidate[Setup]]:
    return [one for every in found.values() for one in every]


def _is_as_asked(one: Candidate[Any]) -> bool:
    return one.is_as_asked


def _is_any(one: Candidate[Any]) -> bool:
    return True


def _best(
    plan: Plan,
    sampling: Sequence[Candidate[SamplingSetup]],
    training: Sequence[Candidate[TrainingSetup]],
    *,
    is_allowed: Callable[[Candidate[Any]], bool],
) -> Choice | None:
    """Return the fastest configuration of some devices: their price an hour is one, so also the cheapest."""
    drawing = min((one for one in sampling if one.fits and is_allowed(one)), key=_rank_drawing, default=None)
    learning = min((one for one in training if one.fits and is_allowed(one)), key=_rank, default=None)
    if drawing is None or learning is None:
        return None
    seconds = plan.run_seconds(drawing.seconds, learning.seconds)
    price = learning.cluster.gpu.dollars_per_hour
    changes = _merged(sampling_changes(plan, drawing), training_changes(plan, learning))
    return Choice(
        drawing,
        learning,
        seconds,
        None if price is None else seconds / 3600 * price * learning.cluster.num_devices,
        changes,
    )


def _rank_drawing(one: Candidate[SamplingSetup]) -> tuple[Any, ...]:
    """Sort by time; of equals what asks for least comes first."""
    return (
        one.seconds,
        one.obstacle is not None,
        len(one.altered),
        one.setup.tensor_parallel,
        -one.spare_bytes,
    )


def _rank(one: Candidate[TrainingSetup]) -> tuple[Any, ...]:
    """Sort by time; of equals the simplest comes first."""
    setup = one.setup
    return (
        one.seconds,
        one.obstacle is not None,
        len(one.altered),
        ORDER.index(setup.strategy),
        setup.offload_optimizer != "none",
        setup.is_checkpointed,
        -one.spare_bytes,
    )


def _front(found: Iterable[Choice | None]) -> tuple[Choice, ...]:
    """Return those than which no other is as fast and as cheap, the fastest first."""
    kept: list[Choice] = []
    for one in sorted((one for one in found if one), key=lambda one: (one.seconds, one.device_seconds)):
        if not kept or one.device_seconds < kept[-1].device_seconds:
            kept.append(one)
    return tuple(kept)


def _merged(one: tuple[Change, ...], other: tuple[Change, ...]) -> tuple[Change, ...]:
    return (*one, *(change for change in other if change not in one))


def sampling_changes(plan: Plan, found: Candidate[SamplingSetup]) -> tuple[Change, ...]:
    """Return in what a way to draw differs from what was asked."""
    base, setup = plan.sampling.setup, found.setup
    dtypes = {2: "bfloat16", 4: "float32"}
    engine = f"{setup.engine}, tensor parallel {setup.tensor_parallel}"
    return _differences(
        ("devices", devices(plan.cluster), devices(found.cluster)),
        ("engine", base.engine, setup.engine if setup.engine == base.engine else engine),
        ("model.dtype", dtypes[base.dtype_bytes], dtypes[setup.dtype_bytes]),
        ("sampling.max_rows", str(base.max_rows), str(setup.max_rows)),
    )


def training_changes(plan: Plan, found: Candidate[TrainingSetup]) -> tuple[Change, ...]:
    """Return in what a way to train differs from what was asked."""
    base, setup = plan.training.setup, found.setup
    return _differences(
        ("devices", devices(plan.cluster), devices(found.cluster)),
        ("strategy", *_told_apart(base.strategy, setup.strategy)),
        ("offload", offload_of(base), offload_of(setup)),
        ("buckets", *_buckets_of(base, setup)),
        ("method", base.method, _method(setup, has_own=base.adapter is not None)),
        ("training.optim", base.optim, setup.optim),
        ("training.per_device_train_batch_size", str(base.num_rows), str(setup.num_rows)),
        (
            "training.activation_checkpointing",
            str(base.is_checkpointed).lower(),
            str(setup.is_checkpointed).lower(),
        ),
    )


def devices(cluster: Cluster) -> str:
    """Return devices as people count them: `8`, or `2 x 8` on nodes."""
    return str(cluster.num_gpus) if cluster.num_nodes == 1 else f"{cluster.num_nodes} x {cluster.num_gpus}"


def _told_apart(before: str, after: str) -> tuple[str, str]:
    """Return strategies; one process and several without ZeRO differ in the devices alone."""
    plain = ("single", "ddp")
    return (after, after) if before in plain and after in plain else (before, after)


def _method(setup: TrainingSetup, *, has_own: bool) -> str:
    if setup.method == "full" or has_own:
        return setup.method
    return f"{setup.method} ({', '.join(f'{name} {value}' for name, value in LORA.items())})"


def _buckets_of(before: TrainingSetup, after: TrainingSetup) -> tuple[str, str]:
    """Return the sizes of DeepSpeed's buckets; the same where only one of the two has any."""
    one, other = (f"{setup.zero.reduce_bucket_size:.2g} elements" for setup in (before, after))
    are_there = before.strategy.startswith("zero") and after.strategy.startswith("zero")
    return (one, other) if are_there else (one, one)


def _differences(*every: tuple[str, str, str]) -> tuple[Change, ...]:
    return tuple(Change(name, before, after) for name, before, after in every if before != after)


def _changes(plan: Plan, one: Candidate[Any]) -> tuple[Change, ...]:
    if isinstance(one.setup, SamplingSetup):
        return sampling_changes(plan, one)
    return training_changes(plan, one)


def _rejections(
    plan: Plan, phase: Phase, every: Sequence[Candidate[Setup]], taken: Candidate[Setup] | None
) -> tuple[Rejection, ...]:
    """Return the next faster way on the recommended devices; where none is, what lacks least of all."""
    rejected = [one for one in every if one.is_as_asked and not one.fits]
    if taken is None:
        if any(one.is_as_asked and one.fits for one in every) or not rejected:
            return ()
        return (_rejection(plan, phase, max(rejected, key=lambda one: one.spare_bytes)),)
    faster = [one for one in rejected if one.cluster == taken.cluster and one.seconds < taken.seconds]
    if not faster:
        return ()
    return (_rejection(plan, phase, max(faster, key=lambda one: (one.seconds, one.spare_bytes))),)


def _rejection(plan: Plan, phase: Phase, one: Candidate[Any]) -> Rejection:
    """Return where it exceeds the device, from the same memory as its plan's."""
    instant, components = peak_of(plan, one)
    largest = max(components, key=lambda name: components[name])
    return Rejection(phase, one, _changes(plan, one), instant, largest, components[largest])


def peak_of(plan: Plan, one: Candidate[Any]) -> tuple[str, dict[str, int]]:
    """Return the instant that binds a candidate, and what its device holds then."""
    if isinstance(one.setup, SamplingSetup):
        drawn = sampling_memory(plan.sampling_shape, one.setup).peak
        sizes = {each.name: getattr(drawn, each.name) for each in fields(drawn) if each.name != "instant"}
        return drawn.instant, {**sizes, **outside_sampling(one.cluster, drawn.total_bytes)}
    memory = training_memory(plan.shape, one.setup, one.cluster, num_epochs=plan.training.num_epochs)
    return memory.peak.name, {**memory.peak.components, **memory.outside}


def host_bytes(plan: Plan, one: Candidate[TrainingSetup]) -> int:
    """Return what a way to train takes of each node's memory at its peak."""
    return training_memory(
        plan.shape, one.setup, one.cluster, num_epochs=plan.training.num_epochs
    ).host_peak_bytes


def _ways(plan: Plan, phase: Phase, every: Sequence[Candidate[Setup]]) -> tuple[Way, ...]:
    """Return the smallest sets of changes that help, the fastest of each set.

    What leaves alone what is drawn or learned comes first, then what changes fewer things, then the faster.
    """
    fastest: dict[frozenset[str], Candidate[Setup]] = {}
    for one in every:
        if one.obstacle is None and one.fits and one.cluster.num_devices >= plan.cluster.num_devices:
            names = frozenset(change.name for change in _changes(plan, one))
            if names not in fastest or one.seconds < fastest[names].seconds:
                fastest[names] = one
    kept: list[frozenset[str]] = []
    for names in sorted(
        fastest, key=lambda one: (bool(fastest[one].altered), len(one), fastest[one].seconds, sorted(one))
    ):
        if not any(smaller < names for smaller in kept):
            kept.append(names)
    return tuple(
        Way(phase, one, _changes(plan, one)) for one in (fastest[names] for names in kept[:MAX_WAYS])
    )


def plan_of(plan: Plan, choice: Choice) -> Plan:
    """Return the plan of what a search has chosen."""
    training = plan.training
    return replace(
        plan,
        cluster=choice.cluster,
        sampling=plan_sampling(plan.sampling_shape, choice.sampling.setup, choice.cluster, plan.workload),
        training=plan_training(
            plan.shape,
            choice.training.setup,
            choice.cluster,
            num_examples=training.num_examples,
            num_epochs=training.num_epochs,
        ),
    )


def to_json(found: Search, plan: Plan) -> dict[str, Any]:
    """Return a search as JSON values: bytes of a device, seconds and dollars of the whole run."""
    recommended = found.recommended
    return {
        "num_sampling": found.num_sampling,
        "num_training": found.num_training,
        "num_pairs": found.num_pairs,
        "recommended": recommended and _choice_json(recommended, plan),
        "front": [_choice_json(one, plan) for one in found.front],
        "beyond": [_choice_json(one, plan) for one in found.beyond],
        "rejected": [
            {
                "phase": one.phase,
                "changes": _changes_json(one.changes),
                "instant": one.instant,
                "component": one.component,
                "component_bytes": one.component_bytes,
                "over_bytes": one.over_bytes,
                "seconds": one.candidate.seconds,
            }
            for one in found.rejections
        ],
        "ways": [
            {
                "phase": one.phase,
                "changes": _changes_json(one.changes),
                "spare_bytes": one.candidate.spare_bytes,
                "seconds": one.candidate.seconds,
                "host_peak_bytes": host_bytes(plan, one.candidate) if one.phase == "training" else None,
                "is_altered": bool(one.candidate.altered),
            }
            for one in found.ways
        ],
    }


def _changes_json(changes: Sequence[Change]) -> list[dict[str, str]]:
    return [{"name": one.name, "before": one.before, "after": one.after} for one in changes]


def _choice_json(one: Choice, plan: Plan) -> dict[str, Any]:
    drawing, learning = one.sampling.setup, one.training.setup
    return {
        "num_gpus": one.cluster.num_gpus,
        "num_nodes": one.cluster.num_nodes,
        "seconds": one.seconds,
        "dollars": one.dollars,
        "is_runnable": one.sampling.obstacle is None and one.training.obstacle is None,
        "is_as_asked": one.is_as_asked,
        "notes": list(one.notes),
        "changes": _changes_json(one.changes),
        "sampling": {
            "engine": drawing.engine,
            "tensor_parallel": drawing.tensor_parallel,
            "dtype_bytes": drawing.dtype_bytes,
            "max_rows": drawing.max_rows,
            "spare_bytes": one.sampling.spare_bytes,
            "seconds": one.sampling.seconds,
        },
        "training": {
            "strategy": learning.strategy,
            "offload": offload_of(learning),
            "method": learning.method,
            "optim": learning.optim,
            "precision": learning.precision,
            "activation_checkpointing": learning.is_checkpointed,
            "per_device_train_batch_size": learning.num_rows,
            "reduce_bucket_size": learning.zero.reduce_bucket_size,
            "spare_bytes": one.training.spare_bytes,
            "host_peak_bytes": host_bytes(plan, one.training),
            "seconds": one.training.seconds,
        },
    }
