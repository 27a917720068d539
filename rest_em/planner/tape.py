"""What a training step allocates, told without tensors: torch's autograd as an account of bytes.

A layer is described as the operations that its code does (`rest_em.planner.layers`). Each operation here
allocates what torch's does, saves for its backward what torch's saves, and gives back what torch gives back;
the lifetime of a value is that of the Python object, as in torch. So the peak comes out of the same events as
on a device, and not of a formula fitted to it. Sources are the operations' derivatives in torch 2.13
(derivatives.yaml and FunctionsManual.cpp). Shapes are elements, not dimensions: no operation's memory depends
on more.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

Gradients = Sequence["Value | None"]
Backward = Callable[["Value"], Gradients]


KINDS = ("activations", "logits", "weight casts", "gradients")
"""What bytes are counted as."""
Event = tuple[int, ...]
"""Bytes of each of `KINDS` after an allocation, and the elements of weights that the backward has passed."""


class Account:
    """Bytes that are allocated, by kind, after every allocation of each phase."""

    def __init__(self) -> None:
        self.phase = ""
        self.kind = "activations"
        """That of what is allocated from now on."""
        self.by_kind = dict.fromkeys(KINDS, 0)
        self.num_passed = 0
        """Elements of weights that the backward pass has left behind."""
        self.events: dict[str, list[Event]] = {}
        """Phase -> what its allocations left, in order."""

    def allocate(self, num_bytes: int, kind: str) -> None:
        """Count a new storage."""
        self.by_kind[kind] += num_bytes
        self.events.setdefault(self.phase, []).append((*self.by_kind.values(), self.num_passed))

    def release(self, num_bytes: int, kind: str) -> None:
        """Count a storage that is given back."""
        self.by_kind[kind] -= num_bytes


class Storage:
    """Some bytes, until the last value that lies in them is gone."""

    __slots__ = ("_account", "kind", "num_bytes", "num_values")

    def __init__(self, account: Account, num_bytes: int) -> None:
        self._account, self.num_bytes, self.kind, self.num_values = account, num_bytes, account.kind, 0
        account.allocate(num_bytes, self.kind)

    def become(self, kind: str) -> None:
        """Change what it is counted as."""
        self._account.release(self.num_bytes, self.kind)
        self.kind = kind
        self._account.allocate(self.num_bytes, kind)

    def drop(self) -> None:
        """Take note that a value is gone."""
        self.num_values -= 1
        if not self.num_values:
            self._account.release(self.num_bytes, self.kind)


class Value:
    """A tensor: elements of so many bytes each, in a storage of its own or another value's (a view)."""

    __slots__ = ("itemsize", "node", "num_elements", "storage")

    def __init__(self, storage: Storage, num_elements: int, itemsize: int, node: Node | None = None) -> None:
        self.storage, self.num_elements, self.itemsize, self.node = storage, num_elements, itemsize, node
        storage.num_values += 1

    def __del__(self) -> None:
        self.storage.drop()

    @property
    def requires_grad(self) -> bool:
        """Whether a gradient flows back through it."""
        return self.node is not None

    def view(self, num_elements: int | None = None) -> Value:
        """Return another value in the same storage, of some of its elements."""
        return Value(self.storage, self.num_elements if num_elements is None else num_elements, self.itemsize,
                     self.node)  # fmt: skip

    def detached(self) -> Value:
        """Return the value as no gradient knows it."""
        return Value(self.storage, self.num_elements, self.itemsize)


@dataclass(slots=True)
class Node:
    """A step of the backward pass."""

    sequence: int
    inputs: tuple[Node | None, ...]
    backward: Backward | None
    shape: tuple[tuple[int, int], ...]
    """Elements and item size of each input: what its gradient has."""
    phase: str = ""
    again: Callable[[], Value] | None = None
    """Computes a checkpointed layer again, in the place of a backward."""
    stands_for: tuple[_Recomputation, int] | None = None
    """A node of a layer that has yet to be computed again, and which one it is."""
    keeps: tuple[Value, Callable[[Value], Value]] | None = None
    """A checkpointed layer and its input, which are held until the gradient has come through the layer."""
    is_computed_again: bool = False
    """Whether it is part of a checkpointed layer that is computed again."""


Buffers = dict[int, tuple[Node, Value]]
"""What waits for nodes of the backward pass, by the nodes' identities."""
Queue = list[tuple[int, int, int]]
"""The last node first, of equals what came first; and its identity, which decides nothing."""


@dataclass(slots=True)
class _Recomputation:
    """A checkpointed layer, computed again as soon as a backward needs what it saves."""

    again: Callable[[], Value]
    num_saves: int
    nodes: list[Node] | None = None


@dataclass(eq=False, slots=True)
class Weight:
    """A parameter of the model."""

    name: str
    num_elements: int
    itemsize: int
    is_trainable: bool
    gradient: Value | None = None
    cast: Value | None = None
    """Its copy in half precision, which autocast keeps until the forward pass ends."""


@dataclass(slots=True)
class Tape:
    """Records operations, and plays them backwards."""

    account: Account
    autocast: bool = False
    """Matrix products in half precision, whatever comes in."""
    weights: dict[str, Weight] = field(default_factory=dict)
    saving: bool = True
    """Off inside a forward pass whose layers are computed again."""
    _sequence: int = 0
    _casts: list[Weight] = field(default_factory=list)
    _leaves: list[Value] = field(default_factory=list)
    _num_saves: int = 0
    _last_save: int = 0
    """How many times a layer that is computed again saves something; 0 if none is."""
    _last_saver: int = 0
    """Which of the recorded nodes it is that saves something last."""
    _recorded: list[Node] | None = None
    """The nodes of a layer that is computed again, in order."""
    _num_delivered: int = 0
    _is_over: bool = False
    """A layer that is computed again has all that its backward needs: nothing more is allocated."""

    # ---- what every operation is made of

    def new(self, num_elements: int, itemsize: int) -> Value:
        """Allocate a value that no gradient flows through."""
        num_bytes = 0 if self._is_over else num_elements * itemsize
        return Value(Storage(self.account, num_bytes), num_elements, itemsize)

    def save(self, *inputs: Value) -> None:
        """Note that an operation saves something for its backward; before or after it, as torch does."""
        if self.saving and any(one.requires_grad for one in inputs):
            self._num_saves += 1
            self._last_saver = len(self._recorded or ())
            self._is_over = self._num_saves == self._last_save

    def attach(self, out: Value, inputs: Sequence[Value], backward: Backward) -> Value:
        """Let gradients flow from `out` to its inputs; `backward` gives one for each, or None."""
        if self.saving and any(one.requires_grad for one in inputs):
            self._sequence += 1
            shape = tuple((one.num_elements, one.itemsize) for one in inputs)
            out.node = Node(
                self._sequence, tuple(one.node for one in inputs), backward, shape, self.account.phase
            )
            if self._recorded is not None:
                out.node.is_computed_again = True
                self._recorded.append(out.node)
        return out

    def weight(self, name: str, num_elements: int, itemsize: int, *, is_trainable: bool) -> Weight:
        """Return the parameter of a name, the same one each time."""
        if name not in self.weights:
            self.weights[name] = Weight(name, num_elements, itemsize, is_trainable)
        return self.weights[name]

    def leaf(self, weight: Weight) -> Value:
        """Return a parameter as a value; its own bytes are counted elsewhere."""
        storage = Storage(self.account, 0)
        value = Value(storage, weight.num_elements, weight.itemsize)
        if weight.is_trainable and self.saving:

            def accumulate(gradient: Value) -> Gradients:
                self._accumulate(weight, gradient)
                return ()

            value.node = Node(2**62, (), accumulate, ())
        return value

    def require_gradient(self, value: Value) -> None:
        """Let gradients flow up to a value, and end there; the graph holds the value as long as it lives."""
        self._sequence += 1
        self._leaves.append(value.detached())
        value.node = Node(self._sequence, (), lambda g: (), (), self.account.phase)

    def _accumulate(self, weight: Weight, gradient: Value) -> None:
        """Take a weight's gradient; a second one, of a weight that is used twice, is added into a third.

        A device may add in place instead. Under a mode that sees all operations, as every trace is, torch
        never does, and it is a trace that these figures are held against.
        """
        if weight.gradient is not None:
            weight.gradient = self.new(gradient.num_elements, gradient.itemsize)
            weight.gradient.storage.become("gradients")
            return
        num_bytes = gradient.num_elements * gradient.itemsize
        if gradient.storage.num_values > 1 or gradient.storage.num_bytes > num_bytes:
            gradient = self.new(gradient.num_elements, gradient.itemsize)
        gradient.storage.become("gradients")
        weight.gradient = gradient
        self.account.num_passed += weight.num_elements

    # ---- autocast

    def half(self, value: Value) -> Value:
        """Return what a matrix product reads: under autocast, a copy in half precision."""
        return value if self.half_is(value) else cast(self, value, 2)

    def half_is(self, value: Value) -> bool:
        """Whether a matrix product reads the value itself."""
        return not self.autocast or value.itemsize == 2

    def half_weight(self, weight: Weight) -> Value:
        """Return a weight as a matrix product reads it; autocast keeps the copy of one that is trained."""
        leaf = self.leaf(weight)
        if not self.autocast or weight.itemsize == 2:
            return leaf
        if not weight.is_trainable:
            return cast(self, leaf, 2)
        if weight.cast is None:
            with self.counting("weight casts"):
                weight.cast = cast(self, leaf, 2)
            self._casts.append(weight)
        return weight.cast

    def leave_autocast(self) -> None:
        """Drop the copies that autocast keeps; those that a backward needs stay until then."""
        for weight in self._casts:
            weight.cast = None
        self._casts.clear()

    @contextmanager
    def counting(self, kind: str) -> Iterator[None]:
        """Count what is allocated inside as of this kind."""
        before, self.account.kind = self.account.kind, kind
        try:
            yield
        finally:
            self.account.kind = before

    # ---- the backward pass

    def run_backward(self, root: Value) -> None:
        """Play back from a loss."""
        assert root.node is not None
        buffers: Buffers = {}
        queue: Queue = []
        self._deliver(buffers, queue, root.node, self.new(root.num_elements, root.itemsize))
        del root
        while queue:
            _, _, key = heapq.heappop(queue)
            node, gradient = buffers.pop(key)
            node.keeps = None
            self.account.kind = "logits" if node.phase.startswith("loss") else "activations"
            if node.phase:
                self.account.phase = (
                    node.phase if node.phase.endswith("backward") else f"{node.phase} backward"
                )
            if node.again is not None:
                self._deliver(buffers, queue, self._rehearsed(node), gradient)
                del gradient
                continue
            if node.stands_for is not None:
                recomputation, _ = node.stands_for
                buffers[key] = (node, gradient)
                del gradient
                self._compute_again(recomputation)
                self._replace(buffers, queue, recomputation)
                del recomputation
                continue
            assert node.backward is not None
            results = list(node.backward(gradient))
            results += [None] * (len(node.inputs) - len(results))
            if node.is_computed_again:  # what was saved is handed out once
                node.backward = None
            self._fit(results, node)
            del gradient
            node.backward = None
            for place, target in enumerate(node.inputs):
                result, results[place] = results[place], None
                if target is not None and result is not None:
                    self._deliver(buffers, queue, target, result)
                del result
            node.inputs = ()

    def _fit(self, results: list[Value | None], node: Node) -> None:
        """Give gradients the sizes of what they are for: sums where that was broadcast, then casts.

        Source: torch 2.13, autograd/engine.cpp, `validate_outputs`: the node's gradient is still held.
        """
        for place, (target, (num_elements, itemsize)) in enumerate(zip(node.inputs, node.shape, strict=True)):
            result, results[place] = results[place], None
            if target is None or result is None:
                continue
            if result.num_elements != num_elements:
                result = self.new(num_elements, result.itemsize)
            if result.itemsize != itemsize:
                result = self.new(num_elements, itemsize)
            results[place] = result
            del result

    def checkpointed(self, value: Value, layer: Callable[[Value], Value]) -> Value:
        """Return a layer's output without what it would save; its backward computes the layer again.

        Source: torch 2.13, utils/checkpoint.py, `use_reentrant=False`.
        """
        if not self.saving:
            return layer(value)
        self.saving = False
        try:
            out = layer(value.detached())
        finally:
            self.saving = True
        self._sequence += 1
        saved = value.view()
        if value.node is not None:
            value.node.keeps = (saved, layer)
        out = Value(out.storage, out.num_elements, out.itemsize)
        out.node = Node(
            self._sequence, (value.node,), None, (), self.account.phase, again=lambda: layer(saved)
        )
        return out

    def _rehearsed(self, node: Node) -> Node:
        """Return a checkpointed layer's last node, from a rehearsal on an account of its own.

        The nodes behind the last one that saves something run as they are. Any other stands for that of the
        layer as it is computed again: only then, for torch waits until the first saved tensor is asked for.
        """
        again = node.again
        assert again is not None
        account, self.account = self.account, Account()
        self.account.phase = account.phase
        self._num_saves, self._last_save, self._recorded, self._last_saver = 0, 0, [], 0
        out = again()
        self.leave_autocast()
        nodes, self._recorded = self._recorded, None
        self.account = account
        recomputation = _Recomputation(again, self._num_saves)
        for index, one in enumerate(nodes[: self._last_saver + 1]):
            one.stands_for, one.backward = (recomputation, index), None
        node.again, node.inputs = None, ()
        assert out.node is not None
        return out.node

    def _compute_again(self, recomputation: _Recomputation) -> None:
        """Compute a layer again; torch stops as soon as the last tensor that the backward needs is there."""
        self._num_saves, self._last_save, self._recorded = 0, recomputation.num_saves, []
        recomputation.again()
        self._is_over, self._last_save = False, 0
        recomputation.nodes, self._recorded = self._recorded, None
        self.leave_autocast()

    def _replace(self, buffers: Buffers, queue: Queue, recomputation: _Recomputation) -> None:
        """Give what waits for nodes of a rehearsal to those that they stand for."""
        assert recomputation.nodes is not None
        waiting = [
            key
            for key, (node, _) in buffers.items()
            if node.stands_for is not None and node.stands_for[0] is recomputation
        ]
        queue[:] = [entry for entry in queue if entry[2] not in waiting]
        heapq.heapify(queue)
        for key in waiting:
            node, gradient = buffers.pop(key)
            assert node.stands_for is not None
            self._deliver(buffers, queue, recomputation.nodes[node.stands_for[1]], gradient)
            del gradient

    def _deliver(self, buffers: Buffers, queue: Queue, node: Node, gradient: Value) -> None:
        """Add a gradient to what a node has got already, out of place as `_accumulate` does."""
        key = id(node)
        if key not in buffers:
            buffers[key] = (node, gradient)
            self._num_delivered += 1
            heapq.heappush(queue, (-node.sequence, self._num_delivered, key))
            return
        before = buffers[key][1]
        buffers[key] = (node, self.new(gradient.num_elements, max(gradient.itemsize, before.itemsize)))


def cast(tape: Tape, value: Value, itemsize: int) -> Value:
    """Return the value in another precision; itself if it has that already."""
    if value.itemsize == itemsize:
        return value
    out, before = tape.new(value.num_elements, itemsize), value.itemsize
    return tape.attach(out, (value,), lambda g: (tape.new(g.num_elements, before),))
