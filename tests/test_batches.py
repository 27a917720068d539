"""The M-step's order of examples: every example once an epoch, the same global batches whatever the ranks."""

from __future__ import annotations

import re

import pytest

from rest_em.batches import divide_global_batch, global_batches, micro_batches
from rest_em.errors import TrainingError

LENGTHS = [5, 9, 3, 12, 7, 3, 8, 20, 4, 6, 11]


@pytest.mark.parametrize(
    ("global_batch_size", "num_ranks", "per_device", "divided"),
    [
        (16, 1, None, (8, 2)),
        (16, 2, None, (8, 1)),
        (16, 1, 16, (16, 1)),
        (14, 1, None, (7, 2)),
        (11, 1, None, (1, 11)),
        (12, 3, 2, (2, 2)),
        (16, 2, 16, (8, 1)),
        (12, 3, 6, (4, 1)),
    ],
)
def test_accumulation_follows_from_the_global_batch(
    global_batch_size: int, num_ranks: int, per_device: int | None, divided: tuple[int, int]
) -> None:
    assert divide_global_batch(global_batch_size, num_ranks, per_device) == divided


def test_a_global_batch_that_the_ranks_cannot_share_names_the_nearest_that_they_can() -> None:
    message = "global_batch_size: 16 examples cannot be shared out evenly over 3 ranks; set it to 15 or 18"
    with pytest.raises(TrainingError, match=re.escape(message)):
        divide_global_batch(16, 3, None)


def test_more_ranks_than_examples_names_only_a_possible_size() -> None:
    with pytest.raises(TrainingError, match="over 4 ranks; set it to 4, or launch"):
        divide_global_batch(3, 4, None)


def test_a_micro_batch_that_does_not_divide_the_share_names_the_nearest_that_do() -> None:
    with pytest.raises(
        TrainingError, match=r"6 does not divide the 16 .* set it to 4 or 8, .*global_batch_size to 24 or 36"
    ):
        divide_global_batch(32, 2, 6)


@pytest.mark.parametrize("group_by_length", [True, False])
def test_an_epoch_sees_every_example_once_and_only_the_last_batch_is_short(group_by_length: bool) -> None:
    batches = global_batches(LENGTHS, 4, seed="0/1/0", group_by_length=group_by_length)
    assert [len(batch) for batch in batches] == [4, 4, 3]
    assert sorted(index for batch in batches for index in batch) == list(range(11))


def test_the_order_is_the_seeds_and_another_epochs_differs() -> None:
    def order(seed: str) -> list[list[int]]:
        return global_batches(LENGTHS, 4, seed=seed, group_by_length=True)

    assert order("0/1/0") == order("0/1/0")
    assert order("0/1/0") != order("0/1/1")


def test_batches_of_like_length_need_less_padding() -> None:
    lengths = [1 + 37 * i % 101 for i in range(96)]

    def num_padded(group_by_length: bool) -> int:
        batches = global_batches(lengths, 8, seed="0", group_by_length=group_by_length)
        return sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)

    assert num_padded(group_by_length=True) < 1.25 * sum(lengths) < num_padded(group_by_length=False)


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_ranks_share_a_short_batch_without_losing_or_repeating_an_example(num_ranks: int) -> None:
    cuts = micro_batches([7, 0, 3, 9], LENGTHS, per_device=2, num_ranks=num_ranks)
    assert len(cuts) % num_ranks == 0
    assert sorted(index for cut in cuts for index in cut) == [0, 3, 7, 9]
    assert max(map(len, cuts)) <= 2


def test_a_rank_without_an_example_gets_an_empty_micro_batch() -> None:
    assert micro_batches([7], LENGTHS, per_device=2, num_ranks=2) == [[7], []]


def test_micro_batches_hold_examples_of_like_length() -> None:
    assert micro_batches([0, 7, 2, 3], LENGTHS, per_device=2, num_ranks=1) == [[2, 0], [3, 7]]
