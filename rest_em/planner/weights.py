"""An inventory of a model's weights: how many elements each has, and which are trained.

What a family's weights are is left to `families`; what they cost in memory to `states`.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby


@dataclass(frozen=True, slots=True)
class Weight:
    """One weight, or one in each of several layers.

    Example:
        Weight("layers.mlp.up_proj.weight", num_elements=11008 * 4096, count=32)
    """

    name: str
    """As `named_parameters` has it, without the layer's number."""
    num_elements: int
    """Of one."""
    count: int = 1
    """Layers that have one like it."""
    is_trainable: bool = True
    num_uses: int = 1
    """Times that one forward reads it: 2 if the embedding is the output projection, too."""

    @property
    def is_decayed(self) -> bool:
        """Whether transformers puts it into the optimiser's group with weight decay.

        Source: transformers 5.23, `Trainer.get_decay_parameter_names`; `ln_` stands for GPT-2's nn.LayerNorm.
        """
        return _is_decayed(self.name)

    @property
    def is_embedding(self) -> bool:
        """Whether it is looked up by token or position rather than multiplied with."""
        return _is_embedding(self.name)

    @property
    def reads_input(self) -> bool:
        """Whether it is an attention's first projection, which needs no backward if its input needs none."""
        return bool(_FIRST_PROJECTION.search(self.name))

    @property
    def is_in_matmul(self) -> bool:
        """Whether autocast casts it: a projection, not a norm, a bias or a lookup."""
        return self.is_decayed and (not self.is_embedding or self.num_uses > 1)

    @property
    def is_quantisable(self) -> bool:
        """Whether bitsandbytes holds it in nf4: a linear layer of the body, not the output projection."""
        return self.is_decayed and not self.is_embedding and not _OUTPUT.search(self.name)


@functools.lru_cache(maxsize=4096)
def _is_decayed(name: str) -> bool:
    return not _UNDECAYED.search(name)


@functools.lru_cache(maxsize=4096)
def _is_embedding(name: str) -> bool:
    return bool(_EMBEDDING.search(name)) and "embed_out" not in name


_UNDECAYED = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)|(?:^|\.)ln_")
_EMBEDDING = re.compile(r"embed|(?:^|\.)wte(?:$|\.)|(?:^|\.)wpe(?:$|\.)")
_FIRST_PROJECTION = re.compile(r"[qkv]_proj|qkv_proj|query_key_value|c_attn")
_OUTPUT = re.compile(r"lm_head|embed_out")


@dataclass(frozen=True)
class Weights:
    """A model's weights in the order of `named_parameters`.

    Neighbours with the same `count` above 1 are one layer's weights, repeated as a block. Without slots, for
    its sums are kept.
    """

    items: tuple[Weight, ...]

    def __hash__(self) -> int:
        return self._hash

    @functools.cached_property
    def _hash(self) -> int:
        return hash(self.items)

    @classmethod
    def of(cls, named: Sequence[tuple[str, int, bool]], *, is_tied: bool = False) -> Weights:
        """Return the inventory of named parameters: name, elements, whether trained.

        >>> Weights.of([("embed_tokens.weight", 8, True), ("norm.weight", 2, False)]).num_trainable
        8
        """
        return cls(
            tuple(
                Weight(name, size, 1, is_trained, 2 if is_tied and "embed_tokens" in name else 1)
                for name, size, is_trained in named
            )
        )

    @functools.cached_property
    def num_elements(self) -> int:
        """Of all weights."""
        return sum(one.num_elements * one.count for one in self.items)

    @functools.cached_property
    def num_trainable(self) -> int:
        """Elements that are trained."""
        return sum(one.num_elements * one.count for one in self.items if one.is_trainable)

    @functools.cached_property
    def num_frozen(self) -> int:
        """Elements that are not trained."""
        return self.num_elements - self.num_trainable

    @functools.cached_property
    def largest(self) -> int:
        """Elements of the largest weight."""
        return max((one.num_elements for one in self.items), default=0)

    @functools.cached_property
    def largest_trainable(self) -> int:
        """Elements of the largest weight that is trained."""
        return max((one.num_elements for one in self.items if one.is_trainable), default=0)

    @functools.cached_property
    def num_in_matmul(self) -> int:
        """Elements that are trained and that autocast casts."""
        return sum(
            one.num_elements * one.count for one in self.items if one.is_trainable and one.is_in_matmul
        )

    def num_below(self, threshold: int) -> int:
        """Return the elements in weights of at most `threshold` elements, which ZeRO-3 keeps whole."""
        return sum(one.num_elements * one.count for one in self.items if one.num_elements <= threshold)

    def num_padded(self, num_ranks: int, *, is_trainable: bool) -> int:
        """Return the elements a rank holds of weights that are shared out one by one, each rounded up."""
        return sum(
            math.ceil(one.num_elements / num_ranks) * one.count
            for one in self.items
            if one.is_trainable == is_trainable
        )

    def is_divisible(self, num_ranks: int) -> bool:
        """Whether every weight can be cut into equal parts."""
        return all(one.num_elements % num_ranks == 0 for one in self.items)

    def quantised_frozen_bytes(self) -> int:
        """Return the bytes of the frozen weights in nf4 of bitsandbytes; low confidence.

        Half a byte an element and an fp32 constant for 64 of them; embeddings, output projection, norms and
        biases stay as they are and are counted in fp32, to which peft casts them.
        """
        total = 0.0
        for one in self.items:
            if not one.is_trainable:
                total += one.num_elements * one.count * (0.5 + 4 / 64 if one.is_quantisable else 4)
        return math.ceil(total)

    @property
    def largest_quantised(self) -> int:
        """Elements of the largest weight that nf4 holds: each is dequantised where it is computed with."""
        frozen = (one for one in self.items if not one.is_trainable and one.is_quantisable)
        return max((one.num_elements for one in frozen), default=0)

    def expanded(self) -> tuple[Weight, ...]:
        """Return every weight by itself, layer after layer, as the optimiser has them."""
        return tuple(weight for weight, _ in _with_layers(self))

    def group_sizes(self) -> tuple[tuple[int, ...], ...]:
        """Return the elements of each trained weight, by the optimiser's groups: with decay, and without."""
        return _group_sizes(self)

    def execution_order(self) -> tuple[int, ...]:
        """Return the indexes into `expanded` in the order that a forward reads the weights.

        A layer's modules are not registered in the order that they run in: its norms come last.

        >>> names = ["layers.0.mlp.up.weight", "layers.0.input_layernorm.weight"]
        >>> Weights.of([(name, 1, True) for name in names]).execution_order()
        (1, 0)
        """
        return _execution_order(self)

    def modules(self) -> tuple[tuple[int, ...], ...]:
        """Return the same indexes by the module that they are in: a norm, an attention, an MLP."""
        return _modules(self)

    def layers(self) -> tuple[tuple[int, str], ...]:
        """Return for each weight of `expanded` what it shares with the other weights of its layer only."""
        return tuple(layer for _, layer in _with_layers(self))


@functools.lru_cache(maxsize=64)
def _with_layers(weights: Weights) -> tuple[tuple[Weight, tuple[int, str]], ...]:
    """Return every weight and what tells its layer from the next."""
    found = []
    for block, (count, neighbours) in enumerate(groupby(weights.items, key=lambda one: one.count)):
        layer = tuple(replace(one, count=1) for one in neighbours)
        for repetition in range(count):
            for weight in layer:
                number = _NUMBER.search(weight.name) if count == 1 else None
                found.append((weight, (block, number[1] if number else f"-{repetition}")))
    return tuple(found)


@functools.lru_cache(maxsize=64)
def _group_sizes(weights: Weights) -> tuple[tuple[int, ...], ...]:
    trained = [one for one in weights.expanded() if one.is_trainable]
    groups = (
        tuple(one.num_elements for one in trained if one.is_decayed == is_decayed)
        for is_decayed in (True, False)
    )
    return tuple(group for group in groups if group)


@functools.lru_cache(maxsize=64)
def _modules(weights: Weights) -> tuple[tuple[int, ...], ...]:
    modules: list[tuple[int, ...]] = []
    for _, layer in groupby(enumerate(_with_layers(weights)), key=lambda one: one[1][1]):
        placed = sorted((_position(weight.name), index) for index, (weight, _) in layer)
        for _, module in groupby(placed, key=lambda one: one[0]):
            modules.append(tuple(index for _, index in module))
    return tuple(modules)


@functools.lru_cache(maxsize=64)
def _execution_order(weights: Weights) -> tuple[int, ...]:
    return tuple(index for module in _modules(weights) for index in module)


_NUMBER = re.compile(r"(?:^|\.)(\d+)\.")
_POSITIONS = (
    re.compile(r"input_layernorm|(?:^|\.)ln_1\."),
    re.compile(r"attn|attention\."),
    re.compile(r"post_attention_layernorm|pre_feedforward_layernorm|(?:^|\.)ln_2\."),
    re.compile(r"mlp"),
    re.compile(r"post_feedforward_layernorm"),
)


@functools.lru_cache(maxsize=4096)
def _position(name: str) -> int:
    """Return where in a layer a weight is read; last, if it is none of those that are told apart."""
    return next((i for i, part in enumerate(_POSITIONS) if part.search(name)), len(_POSITIONS))
