"""Which weights a model has, from what its layers do. What is held of them, and where, is `states`'."""

from __future__ import annotations

import functools

from rest_em.planner.layers import (
    Adapter,
    Pass,
    embed_tokens,
    layer_of,
    norm,
    positions_of,
    project_to_logits,
)
from rest_em.planner.shapes import ModelShape
from rest_em.planner.tape import Account, Tape
from rest_em.planner.weights import Weight, Weights


@functools.lru_cache(maxsize=256)
def weights_of(shape: ModelShape, adapter: Adapter | None = None) -> Weights:
    """Return a model's weights, those of an adapter among them, in the order that a forward reads them."""
    played = shape.with_layers(1) if shape.has_equal_layers else shape
    tape = Tape(Account())
    model = Pass(tape, played, 1, 1, 2, adapter)
    value, _ = embed_tokens(model, needs_gradient=False)
    positions = positions_of(model, 2)
    for layer in range(played.num_layers):
        value = layer_of(shape)(model, f"layers.{layer}", value, positions)
    project_to_logits(model, norm(model, "norm", value, shape.hidden_size), 1)
    items = []
    for name, weight in tape.weights.items():
        count = shape.num_layers // played.num_layers if name.startswith("layers.") else 1
        uses = 2 if shape.is_tied and name == "embed_tokens.weight" else 1
        plain = name.replace("layers.0.", "layers.") if shape.has_equal_layers else name
        items.append(Weight(plain, weight.num_elements, count, weight.is_trainable, uses))
    return Weights(tuple(items))


@functools.lru_cache(maxsize=256)
def active_parameters(shape: ModelShape) -> int:
    """Return the parameters that one token is multiplied with.

    The embedding's table only if it is tied; of experts those that a token goes through.
    """
    weights = weights_of(shape)
    total = weights.num_elements
    if shape.experts is not None:
        inside = sum(one.num_elements * one.count for one in weights.items if ".experts." in one.name)
        total -= inside - inside * shape.experts.num_active // shape.experts.num_experts
    return total if shape.is_tied else total - shape.vocab_size * shape.hidden_size
