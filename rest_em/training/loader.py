"""What each forward pass of a rank sees: examples, packed or padded, and the weights of their tokens."""

# Shapes: B examples in the micro-batch, T tokens, S solution tokens.

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler
from transformers import TrainingArguments

from rest_em.batches import EncodedExample, global_batches, micro_batches, packed_micro_batches
from rest_em.packs import pack_examples


@dataclass(frozen=True, slots=True)
class Packing:
    """How examples share a forward pass.

    Example:
        Packing(is_packed=True, share_prefixes=False)
    """

    is_packed: bool
    """One after another in one sequence, not padded to the longest."""
    share_prefixes: bool
    """What their prompts begin with in common is computed once a pass; only where they are packed."""


class MicroBatches(Sampler[list[tuple[int, float]]]):
    """A rank's micro-batches of an epoch: indexes of examples, each with the scale of its tokens' weights.

    A token's scale is num_ranks / (the global batch's sum of weights over solution tokens). So micro-batches
    simply add up, and the mean over ranks that DDP and DeepSpeed take of the gradients gives the mean over
    the global batch's tokens.
    """

    def __init__(
        self,
        examples: Sequence[EncodedExample],
        arguments: TrainingArguments,
        order_seed: str,
        *,
        packing: Packing,
    ) -> None:
        self._examples = examples
        self._packing = packing
        self._lengths = [len(one.token_ids) for one in examples]
        self._token_weights = [one.weight * one.num_solution_tokens for one in examples]
        self._arguments = arguments
        self._order_seed = order_seed
        self._shortest = min(range(len(examples)), key=self._lengths.__getitem__)
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Take an epoch's order; where the Trainer skips batches, it asks this of the sampler itself."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Micro-batches a rank and epoch."""
        per_round = self._arguments.per_device_train_batch_size * self._arguments.world_size
        return sum(-(-len(batch) // per_round) for batch in self._global_batches())

    def __iter__(self) -> Iterator[list[tuple[int, float]]]:
        num_ranks = self._arguments.world_size
        for batch in self._global_batches():
            scale = num_ranks / sum(self._token_weights[i] for i in batch)
            per_device = self._arguments.per_device_train_batch_size
            if self._packing.is_packed:
                cuts = packed_micro_batches(
                    batch,
                    self._examples,
                    per_device=per_device,
                    num_ranks=num_ranks,
                    share_prefixes=self._packing.share_prefixes,
                )
            else:
                cuts = micro_batches(batch, self._lengths, per_device=per_device, num_ranks=num_ranks)
            for mine in cuts[self._arguments.process_index :: num_ranks]:
                # Ranks take equally many steps: one without an example computes another's, without weight.
                yield [(i, scale) for i in mine] or [(self._shortest, 0.0)]

    def _global_batches(self) -> list[list[int]]:
        return global_batches(
            self._lengths,
            self._arguments.per_device_train_batch_size
            * self._arguments.world_size
            * self._arguments.gradient_accumulation_steps,
            seed=f"{self._order_seed}/{self.epoch}",
            group_by_length=self._arguments.train_sampling_strategy == "group_by_length",
        )


class EpochLoader(DataLoader[Any]):
    """A DataLoader whose order the Trainer may ask to change with the epoch."""

    def set_epoch(self, epoch: int) -> None:
        assert isinstance(self.batch_sampler, MicroBatches)
        self.batch_sampler.set_epoch(epoch)


class WeighedExamples(torch.utils.data.Dataset[tuple[EncodedExample, float]]):
    """Examples beside the scale that the sampler asks for them with."""

    def __init__(self, examples: Sequence[EncodedExample]) -> None:
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, key: tuple[int, float]) -> tuple[EncodedExample, float]:
        index, scale = key
        return self._examples[index], scale


def pad(rows: Sequence[tuple[EncodedExample, float]]) -> dict[str, torch.Tensor]:
    """Pad on the right to the longest; `token_weights` is 0 wherever the loss does not look.

    No attention mask: attention is causal, so no token sees the padding behind it, and without a mask the
    kernel neither repeats keys and values for every query head nor holds a bias of the length squared.
    """
    shape = (len(rows), max(len(example.token_ids) for example, _ in rows))
    input_ids_BT = torch.zeros(shape, dtype=torch.long)
    token_weights_BT = torch.zeros(shape)
    for row, (example, scale) in enumerate(rows):
        length = len(example.token_ids)
        input_ids_BT[row, :length] = torch.tensor(example.token_ids)
        token_weights_BT[row, example.num_prompt_tokens : length] = example.weight * scale
    return {"input_ids": input_ids_BT, "token_weights": token_weights_BT}


def pack(rows: Sequence[tuple[EncodedExample, float]], *, share_prefixes: bool) -> dict[str, Any]:
    """Return a pack as `SolutionLoss` takes it, and its `segments` for `PackedAttention`."""
    packed = pack_examples([example for example, _ in rows], share_prefixes=share_prefixes)
    weights = [example.weight * scale for example, scale in rows]
    return {
        "input_ids": torch.tensor([packed.token_ids]),
        "position_ids": torch.tensor([packed.positions]),
        "predicting_S": torch.tensor(packed.predicting),
        "targets_S": torch.tensor(packed.targets),
        "weights_S": torch.tensor([weights[index] for index in packed.examples]),
        "segments": packed.segments,
    }
