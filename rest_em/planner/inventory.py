"""Which weights a model has, from what its layers do."""

from __future__ import annotations

import functools
from dataclasses import replace

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
    tape = Tape(Account())
    model = Pass(tape, replace(shape, num_layers=1), 1, 1, 2, adapter)
    value, _ = embed_tokens(model, needs_gradient=False)
    positions = positions_of(model, 2)
    value = layer_of(shape)(model, "layers.0", value, positions)
    project_to_logits(model, [norm(model, "norm", value, shape.hidden_size)], 1)
    items = []
    for name, weight in tape.weights.items():
        is_in_layer = name.startswith("layers.0.")
        uses = 2 if shape.is_tied and name == "embed_tokens.weight" else 1
        items.append(
            Weight(
                name.replace("layers.0.", "layers."),
                weight.num_elements,
                shape.num_layers if is_in_layer else 1,
                weight.is_trainable,
                uses,
            )
        )
    return Weights(tuple(items))


def active_parameters(shape: ModelShape) -> int:
    """Return the parameters that one token is multiplied with; the embedding's table only if it is tied."""
    total = weights_of(shape).num_elements
    return total if shape.is_tied else total - shape.vocab_size * shape.hidden_size
