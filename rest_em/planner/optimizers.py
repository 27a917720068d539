"""Bytes of an optimiser, by the name in `training.optim`: its state, and what a step needs besides.

The optimisers that transformers' Trainer makes and whose memory is known; another name is an error. Sources:
torch 2.13 `torch/optim`, transformers 5.23 `trainer_optimizer.py` and `Trainer.create_optimizer`,
bitsandbytes' `optim/optimizer.py` (read, not measured).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rest_em.errors import PlanError
from rest_em.planner.weights import Weight
from rest_em.recipe import nearest


@dataclass(frozen=True, slots=True)
class Optimizer:
    """What an optimiser costs.

    Example:
        Optimizer("adamw_torch_fused", num_moments=2)
    """

    name: str
    num_moments: int
    """Numbers it keeps for each element: Adam 2, Lion 1, SGD without momentum none."""
    step: Literal["in place", "one tensor", "group"] = "in place"
    """What a step's temporaries are as large as: nothing, the largest weight, or a group of weights."""
    step_element_bytes: int = 0
    """Temporaries of an element of that."""
    is_8bit: bool = False
    """bitsandbytes: a byte an element, an fp32 scale for 256 of them; below 4096 elements fp32."""
    is_paged: bool = False
    """In CUDA's managed memory, which is paged out to the host when the device is full."""
    is_factored: bool = False
    """Adafactor: rows and columns of a matrix instead of an element each."""

    def state_bytes(self, num_elements: int, *, is_embedding: bool = False, is_matrix: bool = False) -> int:
        """Return the state's bytes for one tensor.

        Args:
            is_embedding: transformers keeps an embedding's state in 32 bits.
            is_matrix: whether it has rows and columns, as no tensor has that DeepSpeed has flattened.
        """
        if self.is_factored and is_matrix:
            return 8 * math.isqrt(num_elements)
        if self.is_8bit and num_elements >= 4096 and not is_embedding:
            return self.num_moments * (num_elements + 4 * math.ceil(num_elements / 256) + 4 * 256)
        return 4 * self.num_moments * num_elements

    def states_bytes(self, weights: Sequence[Weight]) -> int:
        """Return the state's bytes for weights that are stepped one by one."""
        return sum(
            one.count
            * self.state_bytes(one.num_elements, is_embedding=one.is_embedding, is_matrix=one.is_decayed)
            for one in weights
        )

    def step_bytes(self, sizes: Sequence[int]) -> int:
        """Return a step's temporaries for the tensors of one group."""
        if self.step == "in place" or not sizes:
            return 0
        return self.step_element_bytes * (sum(sizes) if self.step == "group" else max(sizes))


_KNOWN = {
    one.name: one
    for one in (
        Optimizer("adamw_torch_fused", 2),
        # foreach, torch's choice on a GPU: `_foreach_sqrt` makes one copy of a moment.
        Optimizer("adamw_torch", 2, "group", 4),
        Optimizer("adamw_8bit", 2, is_8bit=True),
        Optimizer("adamw_bnb_8bit", 2, is_8bit=True),
        Optimizer("paged_adamw_32bit", 2, is_paged=True),
        Optimizer("paged_adamw_8bit", 2, is_8bit=True, is_paged=True),
        Optimizer("lion_32bit", 1),
        Optimizer("lion_8bit", 1, is_8bit=True),
        Optimizer("paged_lion_32bit", 1, is_paged=True),
        Optimizer("paged_lion_8bit", 1, is_8bit=True, is_paged=True),
        Optimizer("adagrad", 1, "group", 4),
        Optimizer("rmsprop", 1, "group", 4),
        Optimizer("sgd", 0),
        # transformers' own: the squared gradient and the update of one weight at a time.
        Optimizer("adafactor", 1, "one tensor", 8, is_factored=True),
    )
}
OPTIMIZERS = frozenset(_KNOWN)
"""Names that the planner knows."""


def optimizer(name: str) -> Optimizer:
    """Return what an optimiser costs.

    Raises:
        PlanError: the planner does not know it.
    """
    if name not in _KNOWN:
        near = nearest(name, OPTIMIZERS)
        meant = f"; did you mean {near}?" if near else ""
        raise PlanError(
            f"training.optim is {name!r}, whose memory the planner does not know (it knows "
            f"{', '.join(sorted(OPTIMIZERS))}){meant}; name one of these"
        )
    return _KNOWN[name]
