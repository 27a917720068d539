"""The GPUs that the planner knows, from gpus.yaml and a user's own file, and a cluster of them.

What the present machine has is in `machine`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any

from rest_em.errors import PlanError, RecipeError
from rest_em.recipe.document import Document, Mistake, read_document, shown
from rest_em.recipe.loading import nearest

SHIPPED = Path(__file__).with_name("gpus.yaml")
CONTEXT_BYTES = 500 * 2**20
"""Of a CUDA context where none is reported: 501 MiB on an A100, 226 MiB on an L4."""
CONFIDENCES = ("high", "medium", "low")
_UNITS: Mapping[str, Mapping[str, float]] = {
    "_bytes": {"GiB": 2**30, "MiB": 2**20, "GB": 1e9, "MB": 1e6},
    "bandwidth": {"GB/s": 1e9, "TB/s": 1e12},
    "flops": {"TFLOPS": 1e12, "PFLOPS": 1e15},
}
"""End of a key -> the units in which its value can be written."""
_QUANTITY = re.compile(r"([0-9.]+(?:[eE][-+]?[0-9]+)?)\s*([A-Za-z/]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A kind of device: a GPU, or this machine's processor as `machine.local_cpu` sees it.

    A value is `find_gpu("NVIDIA H200", load_gpus())`.
    """

    name: str
    memory_bytes: int
    """All that is on it, as its driver says or else nominal."""
    usable_bytes: int
    """Of these what torch can see, the context of its own process included."""
    bandwidth: float
    """Bytes a second that it reads from its memory."""
    bf16_flops: float | None
    """Dense bfloat16 FLOP a second, accumulated in float32; None where bfloat16 is emulated."""
    fp32_flops: float | None
    """Dense float32 FLOP a second; None where not known."""
    link: str
    """What joins the devices of a node, as NVLink4."""
    link_bandwidth: float
    """Bytes a second, one way: half of what data sheets give."""
    has_peer_access: bool
    """Whether devices of a node read each other's memory; else all goes through the host's."""
    host_link_bandwidth: float
    """Bytes a second, one way, between the device and the host's memory."""
    source: str
    """Of these figures."""
    aliases: tuple[str, ...] = ()
    """What else it is called, as by nvidia-smi and torch."""
    gpus_per_node: int = 8
    """In the machines that are commonly sold."""
    context_bytes: int = CONTEXT_BYTES
    """Of each process, outside of what torch counts."""
    dollars_per_hour: float | None = None
    """Of one device; a ballpark that users replace by what they pay; None where not known."""
    dollars_as_of: str | None = None
    """When that was the price."""
    confidence: str = "low"
    """`high`, `medium` or `low`."""

    @property
    def peak_flops(self) -> float:
        """FLOP a second in what rest_em computes in: bfloat16, or float32 where that is emulated."""
        peak = self.bf16_flops or self.fp32_flops
        assert peak is not None, "a device is loaded with one of the two"
        return peak

    def flops_of(self, itemsize: int) -> float:
        """FLOP a second of products of 2-byte or 4-byte numbers; half where float32's are not known."""
        return self.peak_flops if itemsize == 2 else self.fp32_flops or self.peak_flops / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Equal nodes with equal devices.

    A value is `Cluster(gpu=find_gpu("h200", load_gpus()), num_gpus=8, num_nodes=2)`.
    """

    gpu: Gpu
    num_gpus: int = 1
    """Of each node."""
    num_nodes: int = 1
    node_bandwidth: float = 50e9
    """Bytes a second, one way, between two nodes: 400 Gb/s unless told."""
    host_memory_bytes: int | None = None
    """Of each node; None where not known."""
    host_bandwidth: float = 100e9
    """Bytes a second of each node's memory; half of what eight channels of DDR4-3200 peak at."""
    disk_bandwidth: float = 3e9
    """Bytes a second to each node's disk: one NVMe drive unless told."""

    def __post_init__(self) -> None:
        """Check that there is something of everything.

        Raises:
            PlanError: a count, a size or a rate is not above 0.
        """
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and not value > 0:
                raise PlanError(f"a cluster with {field.name} {value} is none; a number above 0 is wanted")

    @property
    def num_devices(self) -> int:
        """In all nodes together."""
        return self.num_gpus * self.num_nodes

    @property
    def slowest_link(self) -> float:
        """Bytes a second, one way, of the slowest link in a ring over all devices.

        A ring crosses each border between nodes once. Without peer access each byte goes into the host's
        memory and out again, and half the link's rate is left.
        """
        within = self.gpu.link_bandwidth if self.gpu.has_peer_access else self.gpu.link_bandwidth / 2
        if self.num_nodes == 1:
            return within
        return self.node_bandwidth if self.num_gpus == 1 else min(within, self.node_bandwidth)


def user_gpus_path() -> Path:
    """Return where a user's own GPUs are looked for: below XDG_CONFIG_HOME, or else ~/.config."""
    home = os.environ.get("XDG_CONFIG_HOME")
    return (Path(home) if home else Path.home() / ".config") / "rest_em" / "gpus.yaml"


def load_gpus(extra: Path | None = None) -> Mapping[str, Gpu]:
    """Return the shipped GPUs with a user's over them, by name.

    Args:
        extra: a file with more GPUs, or with single keys of known ones; None: `user_gpus_path()`,
            if it is there.

    Raises:
        PlanError: one line for each mistake in the file: where, what was found, what is wanted.
    """
    gpus = _read(SHIPPED, {})
    if extra is None:
        extra = user_gpus_path()
        if not extra.exists():
            return gpus
    return _read(extra, gpus)


def find_gpu(name: str, gpus: Mapping[str, Gpu]) -> Gpu:
    """Return the GPU of a name or alias; capitals, spaces and punctuation do not count.

    >>> find_gpu("NVIDIA GeForce RTX 4090", load_gpus(SHIPPED)).name
    'rtx4090'

    Raises:
        PlanError: there is none, or the name is the beginning of several.
    """
    wanted = _plain(name)
    found = _called(gpus).get(wanted)
    if found is not None:
        return gpus[found]
    begun = [key for key in gpus if wanted and _plain(key).startswith(wanted)]
    if len(begun) > 1:
        raise PlanError(f"GPU {name}: which of {', '.join(begun)}?")
    near = begun[0] if begun else nearest(name.lower(), [*gpus, *_aliases(gpus.values())])
    own = "for one of your own see rest_em/planner/gpus.yaml"
    if near is not None:
        raise PlanError(f"GPU {name}: none is known by this name; did you mean {near}? ({own})")
    raise PlanError(f"GPU {name}: none is known by this name; there are {', '.join(gpus)}; {own}")


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _aliases(gpus: Iterable[Gpu]) -> list[str]:
    return [alias for gpu in gpus for alias in gpu.aliases]


def _called(gpus: Mapping[str, Gpu]) -> Mapping[str, str]:
    """Return plain names and aliases -> names; where one is taken by two, a GPU's own name wins."""
    called = {_plain(alias): gpu.name for gpu in gpus.values() for alias in gpu.aliases}
    return called | {_plain(name): name for name in gpus}


def _read(path: Path, known: Mapping[str, Gpu]) -> Mapping[str, Gpu]:
    """Return the known GPUs with those of a file over them."""
    try:
        document = read_document(path, "a file of GPUs", "names of GPUs, each with its keys,")
    except RecipeError as error:
        raise PlanError(str(error)) from error
    gpus = dict(known)
    for name, values in document.values.items():
        entry = _Entry(document, name, known.get(name))
        gpu = entry.gpu(values)
        if gpu is not None:
            gpus[name] = gpu
    _refuse_taken_aliases(document, gpus)
    if document.mistakes:
        lines = sorted(document.mistakes, key=lambda one: one.place.order)
        raise PlanError("\n".join(map(str, lines)))
    return gpus


def _refuse_taken_aliases(document: Document, gpus: Mapping[str, Gpu]) -> None:
    for name in (key for key in document.values if key in gpus):
        for alias in gpus[name].aliases:
            others = [one for one in gpus.values() if one.name != name]
            holder = next(
                (one.name for one in others if _plain(alias) in map(_plain, (one.name, *one.aliases))), None
            )
            if holder is not None:
                key = (name, "aliases")
                text = f"{name}.aliases: {alias} is {holder} already; another name is wanted"
                document.mistakes.append(Mistake(document.place(key), key, text))


class _Entry:
    """One GPU of a file: its values as they are read, with the mistakes noted in the document."""

    def __init__(self, document: Document, name: str, known: Gpu | None) -> None:
        self._document = document
        self._name = name
        self._known = known
        self._fields = {field.name: field for field in fields(Gpu) if field.name != "name"}

    def gpu(self, values: Any) -> Gpu | None:
        """Return the GPU, or None where there is a mistake in it."""
        before = len(self._document.mistakes)
        if not isinstance(values, dict):
            self._note("", f"{shown(values)} is here; keys as dollars_per_hour: 2.5 are wanted")
            return None
        found = {key: self._value(key, value) for key, value in values.items()}
        if self._known is None:
            for key, field in self._fields.items():
                if field.default is MISSING and key not in values:
                    self._note("", f"{key} is missing; {_rule(key)[1]} is wanted")
        elif "dollars_per_hour" in found:
            found.setdefault("dollars_as_of", None)
        if len(self._document.mistakes) > before:
            return None
        gpu = replace(self._known, **found) if self._known else Gpu(name=self._name, **found)
        if gpu.usable_bytes > gpu.memory_bytes:
            text = f"is {gpu.usable_bytes}; no more than memory_bytes, {gpu.memory_bytes}, is wanted"
            self._note("usable_bytes", text)
            return None
        if gpu.bf16_flops is None and gpu.fp32_flops is None:
            self._note("bf16_flops", "is null, as is fp32_flops; one of the two is wanted")
            return None
        return gpu

    def _value(self, key: str, value: Any) -> Any:
        if key not in self._fields:
            near = nearest(key, self._fields)
            told = f"did you mean {near}?" if near else f"the keys are {', '.join(self._fields)}"
            self._note(key, f"is no key of a GPU; {told}")
            return None
        read = _quantity(key, value) if isinstance(value, str) else value
        is_right, wanted = _rule(key)
        if not is_right(read):
            self._note(key, f"is {shown(value)}; {wanted} is wanted")
            return None
        if key == "aliases":
            return tuple(read)
        return round(read) if key.endswith("_bytes") else read

    def _note(self, key: str, text: str) -> None:
        """Note a mistake of a key, or with `""` of the whole entry."""
        path = (self._name, key) if key else (self._name,)
        told = f"{self._name}.{key} {text}" if key else f"{self._name}: {text}"
        self._document.mistakes.append(Mistake(self._document.place(path), path, told))


def _units(key: str) -> Mapping[str, float]:
    return next((units for end, units in _UNITS.items() if key.endswith(end)), {})


def _quantity(key: str, text: str) -> Any:
    """Return `24 GB` as a number in the key's own unit, and any other text as it is."""
    match = _QUANTITY.fullmatch(text.strip())
    scale = _units(key).get(match[2]) if match else None
    if match is None or scale is None:
        return text
    try:
        return float(match[1]) * scale
    except ValueError:
        return text


def _is_number(value: Any, least: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value < 1e20


_RULES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "_bytes": (
        lambda value: _is_number(value, 2**20),
        "bytes, at least 2**20, or a size as '24 GiB' or '24 GB'",
    ),
    "bandwidth": (
        lambda value: _is_number(value, 1e6),
        "bytes a second, at least 1e6, or a rate as '900 GB/s'",
    ),
    "flops": (
        lambda value: value is None or _is_number(value, 1e9),
        "FLOP a second, at least 1e9, or a rate as '312 TFLOPS', or null",
    ),
    "context_bytes": (lambda value: _is_number(value, 0), "bytes, at least 0, or a size as '500 MiB'"),
    "aliases": (
        lambda value: isinstance(value, list) and all(isinstance(one, str) and one for one in value),
        "a list of names",
    ),
    "confidence": (lambda value: value in CONFIDENCES, "high, medium or low"),
    "has_peer_access": (lambda value: isinstance(value, bool), "true or false"),
    "gpus_per_node": (
        lambda value: isinstance(value, int) and _is_number(value, 1),
        "a whole number above 0",
    ),
    "dollars_per_hour": (
        lambda value: value is None or (_is_number(value, 0) and value > 0),
        "a number above 0, or null",
    ),
    "dollars_as_of": (lambda value: value is None or isinstance(value, str), "a text in quotes, or null"),
    "link": (lambda value: isinstance(value, str) and value != "", "a text"),
    "source": (lambda value: isinstance(value, str) and value != "", "a text"),
}
"""Key, or the end of several -> whether it can have a value, and what a message says is wanted."""


def _rule(key: str) -> tuple[Callable[[Any], bool], str]:
    return _RULES.get(key) or next(rule for end, rule in _RULES.items() if key.endswith(end))
