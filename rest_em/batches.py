"""The order in which the M-step sees its examples: global batches, and every rank's share of them.

Pure functions of the recipe, the seed and the examples' lengths. The global batches and their order do not
depend on the number of ranks, no example is dropped and none counts twice. Tensors, the loss and the model
are left to `rest_em.training`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from rest_em.errors import TrainingError

MAX_PER_DEVICE = 8
"""Examples a forward pass where the recipe does not say."""
LENGTH_WINDOW = 8
"""Global batches within which examples of like length are brought together."""


@dataclass(frozen=True, slots=True)
class EncodedExample:
    """A prompt and its solution as the model reads them.

    Example:
        EncodedExample(token_ids=(1, 450, 338, 29871, 34, 2), num_prompt_tokens=4, weight=1.0)
    """

    token_ids: tuple[int, ...]
    """Prompt, then solution with its end token."""
    num_prompt_tokens: int
    """Where the solution begins, > 0."""
    weight: float
    """r(x, y) > 0, the weight of each of the solution's tokens in the loss."""

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """The prompt's tokens."""
        return self.token_ids[: self.num_prompt_tokens]

    @property
    def num_solution_tokens(self) -> int:
        """How many tokens the loss counts."""
        return len(self.token_ids) - self.num_prompt_tokens


def divide_global_batch(
    global_batch_size: int, num_ranks: int, per_device_train_batch_size: int | None
) -> tuple[int, int]:
    """Return the examples a forward pass and rank, and the number of such passes an optimiser step.

    A rank's whole share is the most: a larger `per_device_train_batch_size` comes down to it, so that a
    recipe for one rank runs on more.

    >>> divide_global_batch(16, 2, None)
    (8, 1)
    >>> divide_global_batch(16, 2, 16)
    (8, 1)
    >>> divide_global_batch(20, 1, None)
    (5, 4)

    Raises:
        TrainingError: the global batch cannot be shared out evenly.
    """
    if global_batch_size % num_ranks:
        wanted = _nearest_multiples(global_batch_size, num_ranks)
        raise TrainingError(
            f"training.global_batch_size: {global_batch_size} examples cannot be shared out evenly over "
            f"{num_ranks} ranks; set it to {wanted}, or launch a number of ranks that divides it"
        )
    share = global_batch_size // num_ranks
    divisors = [size for size in range(1, share + 1) if share % size == 0]
    if per_device_train_batch_size is None:
        per_device = max(size for size in divisors if size <= MAX_PER_DEVICE)
    elif min(per_device_train_batch_size, share) in divisors:
        per_device = min(per_device_train_batch_size, share)
    else:
        nearest = sorted(divisors, key=lambda size: abs(size - per_device_train_batch_size))[:2]
        wanted = " or ".join(map(str, sorted(nearest)))
        multiples = _nearest_multiples(global_batch_size, per_device_train_batch_size * num_ranks)
        raise TrainingError(
            f"training.per_device_train_batch_size: {per_device_train_batch_size} does not divide the "
            f"{share} examples of each of {num_ranks} ranks (global_batch_size {global_batch_size}); "
            f"set it to {wanted}, or training.global_batch_size to {multiples}"
        )
    return per_device, share // per_device


def _nearest_multiples(number: int, factor: int) -> str:
    below = number // factor * factor
    return " or ".join(str(one) for one in (below, below + factor) if one)


def global_batches(
    lengths: Sequence[int], global_batch_size: int, *, seed: str, group_by_length: bool
) -> list[list[int]]:
    """Return an epoch's global batches, each a list of indexes into `lengths`; only the last may be short.

    A random order; with `group_by_length`, examples are then sorted by length within windows of
    `LENGTH_WINDOW` batches and the batches shuffled, so that a batch needs little padding. The short batch
    is drawn before the sorting: it is of no particular length. The order depends on `seed`, e.g. `0/1/2` for
    seed, iteration and epoch.
    """
    generator = random.Random(seed)
    order = list(range(len(lengths)))
    generator.shuffle(order)
    num_full = len(order) // global_batch_size * global_batch_size
    full, rest = order[:num_full], order[num_full:]
    if group_by_length:
        window = global_batch_size * LENGTH_WINDOW
        windows = [sorted(full[i : i + window], key=lengths.__getitem__) for i in range(0, num_full, window)]
        full = [index for one in windows for index in one]
    batches = [full[i : i + global_batch_size] for i in range(0, num_full, global_batch_size)]
    generator.shuffle(batches)
    return [*batches, rest] if rest else batches


def micro_batches(
    batch: Sequence[int], lengths: Sequence[int], *, per_device: int, num_ranks: int
) -> list[list[int]]:
    """Cut a global batch into as many micro-batches for every rank, of like length and nearly equal size.

    Micro-batch i is rank `i % num_ranks`'s. In a short global batch some may be empty.

    >>> micro_batches([0, 1, 2], [9, 5, 7], per_device=2, num_ranks=2)
    [[1, 2], [0]]
    """
    num_rounds = -(-len(batch) // (per_device * num_ranks))
    by_length = sorted(batch, key=lengths.__getitem__)
    num_cuts = num_rounds * num_ranks
    size, num_larger = divmod(len(by_length), num_cuts)
    cuts, start = [], 0
    for i in range(num_cuts):
        end = start + size + (i < num_larger)
        cuts.append(by_length[start:end])
        start = end
    return cuts


def packed_micro_batches(
    batch: Sequence[int],
    examples: Sequence[EncodedExample],
    *,
    per_device: int,
    num_ranks: int,
    share_prefixes: bool,
) -> list[list[int]]:
    """Cut a global batch into as many micro-batches for every rank, with about equally many tokens each.

    As `micro_batches`, but for examples that need not be alike in length: the longest are given out first,
    each to the micro-batch with the fewest tokens.

    Args:
        share_prefixes: whether those of one prompt stay together as far as there is room.

    >>> rows = [EncodedExample((token,) * length, 1, 1.0) for token, length in enumerate((9, 5, 7, 3))]
    >>> packed_micro_batches([0, 1, 2, 3], rows, per_device=2, num_ranks=2, share_prefixes=False)
    [[0, 3], [2, 1]]
    """
    num_cuts = -(-len(batch) // (per_device * num_ranks)) * num_ranks
    cuts: list[list[int]] = [[] for _ in range(num_cuts)]
    loads = [0] * num_cuts
    groups: dict[object, list[int]] = {}
    for index in batch:
        groups.setdefault(examples[index].prompt_ids if share_prefixes else index, []).append(index)

    def num_tokens(group: Sequence[int]) -> int:
        return sum(len(examples[index].token_ids) for index in group)

    for group in sorted(groups.values(), key=num_tokens, reverse=True):
        start = 0
        while start < len(group):
            cut = min((k for k in range(num_cuts) if len(cuts[k]) < per_device), key=loads.__getitem__)
            taken = group[start : start + per_device - len(cuts[cut])]
            cuts[cut] += taken
            loads[cut] += num_tokens(taken)
            start += len(taken)
    return cuts
