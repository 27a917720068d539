"""What optimisers keep, by hand."""

from __future__ import annotations

import pytest
from transformers.training_args import OptimizerNames, TrainingArguments

from rest_em.errors import PlanError
from rest_em.planner.optimizers import OPTIMIZERS, optimizer
from rest_em.planner.strategies import StateSetup
from rest_em.planner.weights import Weight


def test_the_default_is_the_one_of_transformers() -> None:
    assert TrainingArguments.__dataclass_fields__["optim"].default == StateSetup().optim


def test_every_known_name_is_one_of_transformers() -> None:
    assert {one.value for one in OptimizerNames} >= OPTIMIZERS


def test_an_unknown_optimiser_is_refused_with_the_known_ones() -> None:
    with pytest.raises(PlanError, match=r"'adamw_torch_fuse'.*adafactor.*did you mean adamw_torch_fused\?"):
        optimizer("adamw_torch_fuse")


@pytest.mark.parametrize(
    ("name", "num_bytes"),
    [("adamw_torch", 8.0), ("lion_32bit", 4.0), ("sgd", 0.0), ("adamw_8bit", 2.03), ("lion_8bit", 1.02)],
)
def test_states_bytes_an_element(name: str, num_bytes: float) -> None:
    assert optimizer(name).state_bytes(2**20) / 2**20 == pytest.approx(num_bytes, abs=0.01)


def test_8_bits_leave_small_tensors_and_embeddings_in_32() -> None:
    kind = optimizer("adamw_8bit")
    assert kind.state_bytes(4095) == 8 * 4095
    assert kind.states_bytes([Weight("model.embed_tokens.weight", 2**20, count=2)]) == 2 * 8 * 2**20


def test_adafactor_keeps_rows_and_columns_unless_weights_are_flattened() -> None:
    kind = optimizer("adafactor")
    assert kind.states_bytes([Weight("mlp.weight", 10_000)]) == 4 * (100 + 100)
    assert kind.state_bytes(10_000) == 40_000


def test_a_steps_temporaries_are_of_a_group_or_of_one_weight() -> None:
    assert optimizer("adamw_torch_fused").step_bytes([100, 50]) == 0
    assert optimizer("adamw_torch").step_bytes([100, 50]) == 600
    assert optimizer("adafactor").step_bytes([100, 50]) == 800
