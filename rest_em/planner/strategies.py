"""How a training is set up, as far as memory depends on it: strategy, ranks, precision, ZeRO's settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from rest_em.errors import PlanError

Strategy = Literal["single", "ddp", "zero1", "zero2", "zero3"]
Offload = Literal["none", "cpu", "nvme"]
Placement = Literal["none", "optimizer", "all", "nvme"]
"""What of an M-step is offloaded, as `--offload` says it."""
DEVICES_OF: Mapping[Placement, tuple[Offload, Offload]] = {
    "none": ("none", "none"), "optimizer": ("cpu", "none"), "all": ("cpu", "cpu"), "nvme": ("nvme", "nvme"),
}  # fmt: skip
"""Where the optimiser's states are, and the weights."""
SMALLEST_BUCKET = 2**24
"""Elements: 32 MiB in bf16. Smaller messages do not fill a link; not measured."""


@dataclass(frozen=True, slots=True)
class ZeroSettings:
    """DeepSpeed's `zero_optimization`, in elements; its own defaults.

    These are also what rest_em trains with: accelerate writes them into DeepSpeed's configuration only from a
    JSON file, and where a launch file says `deepspeed_config` they stay DeepSpeed's.
    Source: accelerate 1.x `DeepSpeedPlugin.__post_init__`, deepspeed 0.19.8 `runtime/zero/config.py`.
    """

    reduce_bucket_size: int = 500_000_000
    allgather_bucket_size: int = 500_000_000
    """Without effect: torch gathers a group in place (`all_gather_into_tensor`)."""
    overlap_comm: bool | None = None
    """Two buckets instead of one in ZeRO-1 and 2; None is DeepSpeed's choice, ZeRO-3 only."""
    contiguous_gradients: bool = True
    prefetch_bucket_size: int = 50_000_000
    max_live_parameters: int = 1_000_000_000
    max_reuse_distance: int = 1_000_000_000
    param_persistence_threshold: int = 100_000
    sub_group_size: int = 1_000_000_000
    pin_memory: bool = True
    """Whether offloaded buffers are page-locked. Source: `runtime/zero/offload_config.py`."""
    nvme_buffer_count: int = 5
    """Of offloaded parameters."""
    nvme_buffer_size: int = 100_000_000
    nvme_optimizer_buffer_count: int = 4
    max_in_cpu: int = 1_000_000_000
    """Parameters that stay in host memory before the rest goes to NVMe."""

    def auto(self, hidden_size: int) -> ZeroSettings:
        """Return these with what transformers fills in where a JSON file says "auto".

        >>> ZeroSettings().auto(4096).param_persistence_threshold
        40960

        Source: transformers 5.23 `HfTrainerDeepSpeedConfig.trainer_config_finalize`.
        """
        return replace(
            self,
            reduce_bucket_size=hidden_size * hidden_size,
            prefetch_bucket_size=int(0.9 * hidden_size * hidden_size),
            param_persistence_threshold=10 * hidden_size,
        )

    def sized(self, hidden_size: int, num_elements: int) -> ZeroSettings:
        """Return these with buckets for a model of so many weights, as `--emit` writes them.

        As transformers' "auto" does, but no smaller than `SMALLEST_BUCKET` nor larger than the model.

        >>> ZeroSettings().sized(64, 100_000).reduce_bucket_size
        100000
        """
        bucket = min(max(hidden_size * hidden_size, SMALLEST_BUCKET), self.reduce_bucket_size, num_elements)
        return replace(
            self.auto(hidden_size),
            reduce_bucket_size=bucket,
            allgather_bucket_size=bucket,
            prefetch_bucket_size=int(0.9 * bucket),
        )


@dataclass(frozen=True, slots=True)
class StateSetup:
    """How a model is trained.

    Example:
        StateSetup(strategy="zero2", num_ranks=8, local_ranks=8, precision="bf16")
    """

    strategy: Strategy = "single"
    num_ranks: int = 1
    local_ranks: int = 1
    """On one node."""
    precision: Literal["fp32", "autocast", "bf16"] = "autocast"
    """autocast: fp32 weights, computed with in bf16. bf16: DeepSpeed's, bf16 weights with fp32 masters."""
    optim: str = "adamw_torch_fused"
    """transformers' name of the optimiser."""
    frozen: Literal["bf16", "fp32", "nf4"] = "bf16"
    """What weights that are not trained are held in; DeepSpeed's bf16 casts fp32 to bf16."""
    is_checkpointed: bool = False
    """Gradient checkpointing: a layer is computed again in the backward."""
    accumulation: int = 1
    """Micro-steps of an optimiser step."""
    offload_optimizer: Offload = "none"
    offload_param: Offload = "none"
    zero: ZeroSettings = ZeroSettings()
    checkpoint_element_bytes: int = 2
    """Of the checkpoints that are written, and of the base model's."""

    def __post_init__(self) -> None:
        for problem, is_there in (
            ("num_ranks {0.num_ranks}; at least 1 is wanted", self.num_ranks < 1),
            (
                "local_ranks {0.local_ranks} of num_ranks {0.num_ranks}; 1 to all of them are wanted",
                not 1 <= self.local_ranks <= max(1, self.num_ranks),
            ),
            ("accumulation {0.accumulation}; at least 1 is wanted", self.accumulation < 1),
            (
                "strategy single on {0.num_ranks} ranks; ddp or a ZeRO stage shares them out",
                self.strategy == "single" and self.num_ranks > 1,
            ),
            (
                "precision {0.precision} under {0.strategy}; DeepSpeed takes fp32 or bf16, "
                "without it fp32 or autocast",
                self.precision == ("autocast" if self.is_deepspeed else "bf16"),
            ),
            (
                "an offload under {0.strategy}; only DeepSpeed offloads",
                not self.is_deepspeed and (self.offload_optimizer, self.offload_param) != ("none", "none"),
            ),
            (
                "offload_param {0.offload_param} under {0.strategy}; only zero3 offloads parameters",
                self.offload_param != "none" and self.strategy != "zero3",
            ),
            (
                "offload_optimizer nvme under {0.strategy}; only zero3 swaps to NVMe",
                self.offload_optimizer == "nvme" and self.strategy != "zero3",
            ),
        ):
            if is_there:
                raise PlanError(f"the strategy cannot be planned for: {problem.format(self)}")

    @property
    def is_deepspeed(self) -> bool:
        """Whether DeepSpeed's engine trains."""
        return self.strategy.startswith("zero")

    @property
    def passes(self) -> StateSetup:
        """What gradients and gathering depend on alone: setups that differ elsewhere share these."""
        return StateSetup(
            strategy=self.strategy,
            num_ranks=self.num_ranks,
            precision=self.precision,
            is_checkpointed=self.is_checkpointed and self.precision == "autocast",
            offload_optimizer="none" if self.strategy == "zero3" else self.offload_optimizer,
            offload_param="none" if self.offload_param == "none" else "cpu",
            zero=self.zero,
        )

    @property
    def weight_element_bytes(self) -> int:
        """Of a weight that is trained, as the forward reads it, and of its gradient."""
        return 2 if self.precision == "bf16" else 4

    @property
    def num_buckets(self) -> int:
        """Buckets that ZeRO reduces gradients in."""
        overlaps = self.strategy == "zero3" if self.zero.overlap_comm is None else self.zero.overlap_comm
        return 2 if overlaps and self.strategy != "zero3" else 1
