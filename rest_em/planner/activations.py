"""What a micro-step holds beside the model's states, at each instant of its forward and backward pass.

The layers of `layers` are played on a tape with three and with four layers, where all are alike, and with two
and three rows where X
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from rest_em.packs import num_chunks
from rest_em.planner.layers import (
    Adapter,
    Packed,
    Pass,
    Positions,
    embed_tokens,
    layer_of,
    logits_of,
    masks_of,
    norm,
    positions_of,
    project_to_logits,
)
from rest_em.planner.operations import gather, join, negative_log_likelihood
from rest_em.planner.shapes import ModelShape
from rest_em.planner.tape import KINDS, Account, Event, Tape, Value, cast


@dataclass(frozen=True, slots=True)
class StepSetup:
    """One device's micro-step.

    Example:
        StepSetup(num_rows=4, length=1024, num_kept=513, num_solution_tokens=512, precision="bf16")
    """

    num_rows: int
    length: int
    """Tokens of each row, padding among them."""
    num_kept: int
    """Last positions of each row whose logits are computed."""
    num_solution_tokens: int
    """Of each row: those that the loss counts."""
    precision: Literal["fp32", "autocast", "bf16"] = "autocast"
    is_checkpointed: bool = False
    adapter: Adapter | None = None
    loss: Literal["packed", "solution", "model"] = "solution"
    """`packed` is the M-step's on examples in one row, `solution` that on padded ones; `model` is
    transformers' own over all tokens, as with labels."""
    num_shared: int = 0
    """Tokens that all examples begin with and that are computed once; only where they are packed."""

    @property
    def packed(self) -> Packed | None:
        """What the one row consists of; None where examples have rows of their own."""
        return Packed(self.num_rows, self.length, self.num_shared) if self.loss == "packed" else None

    @property
    def itemsize(self) -> int:
        """Bytes of an element of the model's own weights."""
        if self.adapter is not None:
            return 4 if self.precision == "fp32" else 2
        return 2 if self.precision == "bf16" else 4


@dataclass(frozen=True, slots=True)
class Instant:
    """What is allocated at the peak of a phase."""

    name: str
    components: Mapping[str, int]
    """Kind -> bytes: activations, logits, weight casts, and gradients as one process has them."""
    num_passed: int
    """Elements of weights that the backward pass has left behind."""


@functools.lru_cache(maxsize=4096)
def instants_of(shape: ModelShape, setup: StepSetup) -> tuple[Instant, ...]:
    """Return the peaks of a micro-step's phases, for a model of the shape's number of layers.

    Phases: `forward`, `loss forward`, `loss backward`, `last layer backward`, `first layer backward` and
    `embedding backward`. Each has its peak with whole gradients, as one process has them, and where that is
    another moment its peak without any, for strategies that share them out. Where layers are of several
    kinds, `layer 1 backward` and so on stand between the last and the first; `layer 1 backward` also where
    layers share masks.
    """
    if setup.num_rows > 3 and setup.loss != "packed":
        two, three = (_of_all_layers(shape, replace(setup, num_rows=number)) for number in (2, 3))
        phases = _extended(two, three, setup.num_rows - 2)
    else:
        phases = _of_all_layers(shape, setup)
    found = []
    for name, events in phases.items():
        moments = {
            max(events, key=lambda one: one[0] + one[1] + one[2] + one[3]): None,
            max(events, key=lambda one: one[0] + one[1] + one[2]): None,
        }
        found += [Instant(name, dict(zip(KINDS, one[:4], strict=True)), one[4]) for one in moments]
    return tuple(found)


@functools.lru_cache(maxsize=256)
def _of_all_layers(shape: ModelShape, setup: StepSetup) -> Mapping[str, Sequence[Event]]:
    """Return the events of the phases, from three and four layers where all layers are alike."""
    if not shape.has_equal_layers:
        return _play(shape, setup)
    few, more = (_play(shape.with_layers(number), setup) for number in (3, 4))
    return _extended(few, more, shape.num_layers - 3)


def _extended(
    few: Mapping[str, Sequence[Event]], more: Mapping[str, Sequence[Event]], number: int
) -> Mapping[str, Sequence[Event]]:
    """Return the events where there are so many more of what the second play has one more of."""
    found = {}
    for name, events in more.items():
        assert len(events) == len(few[name]), f"{name}: other operations with more layers or rows"
        found[name] = [
            tuple([x + (y - x) * number for x, y in zip(one, other, strict=True)])
            for one, other in zip(few[name], events, strict=True)
        ]
    return found


def _play(shape: ModelShape, setup: StepSetup) -> dict[str, list[Event]]:
    """Play a whole micro-step; return the events of its phases by their names."""
    tape = Tape(Account(), autocast=setup.precision == "autocast")
    packed = setup.packed
    num_rows, length = (1, packed.num_tokens) if packed else (setup.num_rows, setup.length)
    model = Pass(tape, shape, num_rows, length, setup.itemsize, setup.adapter, packed)
    ids = tape.new(model.num_tokens * (2 if packed else 1), 8)  # and their positions
    held = [_through_layers(model, setup)]
    loss = _LOSSES[setup.loss](model, held, setup)
    tape.run_backward(loss)
    assert ids.num_elements
    return _named(tape.account.events, shape)


def _through_layers(model: Pass, setup: StepSetup) -> Value:
    """Return the last norm's output."""
    tape, shape = model.tape, model.shape
    tape.account.phase = "embedding"
    value, held = embed_tokens(model, needs_gradient=setup.adapter is not None and setup.is_checkpointed)
    masks, shared = masks_of(model, value.itemsize), positions_of(model, value.itemsize)
    layer = layer_of(shape)
    for number in range(shape.num_layers):
        tape.account.phase = f"layer {number}"
        name, positions = f"layers.{number}", replace(shared, mask=masks.get(shape.has_window(number)))
        if setup.is_checkpointed:
            value = tape.checkpointed(value, functools.partial(_layer, layer, model, name, positions))
        else:
            value = layer(model, name, value, positions)
    tape.account.phase = "loss"
    value = norm(model, "norm", value, shape.hidden_size)
    held.clear()
    return value


def _layer(layer: Any, model: Pass, name: str, positions: Positions, value: Value) -> Value:
    found: Value = layer(model, name, value, positions)
    return found


def _model_loss(model: Pass, held: list[Value], setup: StepSetup) -> Value:
    """Source: transformers 5.23, loss/loss_utils.py, ForCausalLMLoss."""
    tape = model.tape
    logits = project_to_logits(model, held[0], model.length)
    with tape.counting("logits"):
        loss = negative_log_likelihood(tape, cast(tape, logits, 4), model.num_tokens)
    tape.leave_autocast()
    held.clear()
    return loss


def _solution_loss(model: Pass, held: list[Value], setup: StepSetup) -> Value:
    """Source: rest_em.training.loss."""
    tape = model.tape
    logits = project_to_logits(model, held[0], setup.num_kept)
    held.clear()
    tape.leave_autocast()
    num_solution = model.num_rows * setup.num_solution_tokens
    with tape.counting("logits"):
        if tape.autocast:  # accelerate converts what a model returns
            logits = cast(tape, logits, 4)
        chosen = cast(tape, gather(tape, logits, num_solution * model.shape.vocab_size), 4)
        return negative_log_likelihood(tape, chosen, num_solution)


def _packed_loss(model: Pass, held: list[Value], setup: StepSetup) -> Value:
    """Source: rest_em.training.loss, `SolutionLoss`. Parts of the logits after the third are as that."""
    tape, width, vocabulary = model.tape, model.shape.hidden_size, model.shape.vocab_size
    num_solution = setup.num_rows * setup.num_solution_tokens
    number = num_chunks(num_solution, vocabulary)
    size = math.ceil(num_solution / number)

    def loss_of(hidden: Value) -> Value:
        logits = [logits_of(model, gather(tape, hidden, size * width, tape.new(size, 8)), size)]
        with tape.counting("logits"):
            return negative_log_likelihood(tape, cast(tape, logits.pop(), 4), size)

    if number == 1:
        loss = loss_of(held.pop())
    else:
        hidden = held.pop()
        losses = [tape.checkpointed(hidden, loss_of) for _ in range(min(number, 3))]
        loss = join(tape, losses)
        del hidden
    tape.leave_autocast()
    return loss


_LOSSES = {"packed": _packed_loss, "solution": _solution_loss, "model": _model_loss}


def _named(events: Mapping[str, list[Event]], shape: ModelShape) -> dict[str, list[Event]]:
    """Return phases by the names of `instants_of`; equal layers between first and last are left out."""
    num_layers = shape.num_layers
    between = range(1, num_layers - 1)
    if shape.has_equal_layers:  # with layer 1 the first one without a window gives its mask back
        between = range(1, 2 if shape.has_eager_attention else 1)
    names = {f"layer {number} backward": f"layer {number} backward" for number in between}
    names |= {f"layer {number}": f"layer {number} forward" for number in between}
    names |= {
        f"layer {num_layers - 1}": "forward",
        "loss": "loss forward",
        "loss backward": "loss backward",
        f"layer {num_layers - 1} backward": "last layer backward",
        "layer 0 backward": "first layer backward",
        "embedding backward": "embedding backward",
    }
    return {name: events[phase] for phase, name in names.items() if phase in events}
