"""The ground truth without a GPU: a real model class trained for a step on tensors that hold no data.

transformers' own code runs, peft's and the M-step's loss too, on fake CPU tensors; every storage that comes
and goes is counted to the byte. Imports torch and so takes seconds: `rest_em plan --verify` and the tests ask
it, planning does not. Left out: what DeepSpeed and DDP hold (`states`), and what a kernel uses inside of
itself, but for flash attention's buffers.
"""

# Shapes: B sequences, T tokens, H query heads, G key-value heads, D size of a head, K kept positions,
# S solution tokens, V vocabulary.

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rest_em.errors import PlanError
from rest_em.packs import Segment
from rest_em.planner.activations import StepSetup, instants_of
from rest_em.planner.layers import Packed
from rest_em.planner.shapes import ModelShape
from rest_em.planner.training import Comparison, TrainingSetup
from rest_em.recipe import ModelSection

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_DTYPES = {2: torch.bfloat16, 4: torch.float32}
ATTENTION = "rest_em_shape_only"
"""The attention's name in transformers; `flash` in it would make models unpad their input."""


@dataclass(slots=True)
class Meter:
    """Bytes of the storages that are alive, and their peaks by phase."""

    phase: str = "loading"
    current_bytes: int = 0
    static_bytes: int = 0
    """What a step begins with: weights and the optimiser's state."""
    peaks: dict[str, int] = field(default_factory=dict)
    log: list[tuple[str, int]] | None = None
    """What each operation left allocated, for finding out why two accounts differ."""
    _seen: set[int] = field(default_factory=set)

    def add(self, tensor: torch.Tensor) -> None:
        """Count a tensor's storage, once, until it is released."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._seen:
            return
        self._seen.add(key)
        num_bytes = storage.nbytes()
        self.current_bytes += num_bytes
        weakref.finalize(storage, self._release, key, num_bytes)
        self.peaks[self.phase] = max(self.peaks.get(self.phase, 0), self.current_bytes)

    def _release(self, key: int, num_bytes: int) -> None:
        self._seen.discard(key)
        self.current_bytes -= num_bytes


class _Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Shows a meter what every operation returns."""

    def __init__(self, meter: Meter) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._meter = meter

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._meter.add(leaf)
        if self._meter.log is not None:
            self._meter.log.append((str(func), self._meter.current_bytes))
        return result


class _FlashAttention(torch.autograd.Function):
    """Allocates and saves what CUDA's flash attention does. Source: torch 2.13, flash_attn/flash_api.cpp."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Return (B, T, H, D) for a query (B, H, T, D) and keys and values (B, G, T, D)."""
        out = query.new_empty(query.shape[0], query.shape[2], query.shape[1], query.shape[3])
        logsumexp = query.new_empty(query.shape[:3], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, out, logsumexp)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Return the gradients of query, keys and values."""
        query, key, value, _, _ = ctx.saved_tensors
        num_rows, num_heads, num_tokens, size = query.shape
        rounded = -(-num_tokens // 128) * 128
        softmax_d = query.new_empty((num_rows, num_heads, rounded), dtype=torch.float32)
        accumulated = query.new_empty(
            (num_rows, num_heads, rounded, flash_head_size(size)), dtype=torch.float32
        )
        found = [torch.empty_like(one) for one in (query, key, value)]
        of_heads = (num_rows, num_heads, key.shape[2], size)
        expanded = [query.new_empty(of_heads) for _ in range(2)] if key.shape[1] != num_heads else []
        del softmax_d, accumulated, expanded
        return tuple(found)


class _GroupedProduct(torch.autograd.Function):
    """Allocates and saves what a grouped product does, whose fake knows bfloat16 only."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
        """Return (rows, out) for rows (rows, in) and matrices (experts, in, out)."""
        is_wanted = ctx.needs_input_grad
        ctx.save_for_backward(rows if is_wanted[1] else None, matrices if is_wanted[0] else None)
        ctx.layouts = [(one.shape, one.stride()) for one in (rows, matrices)]
        return rows.new_empty(rows.shape[0], matrices.shape[2])

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Return the gradients of the rows and of the matrices, if they are wanted."""
        saved = ctx.saved_tensors
        found = tuple(
            gradients[0].new_empty_strided(*layout) if is_wanted else None
            for layout, is_wanted in zip(ctx.layouts, ctx.needs_input_grad, strict=True)
        )
        del saved
        return found


def flash_head_size(head_dim: int) -> int:
    """Return the size that flash attention pads a head to. Source: torch 2.13, flash_attn/flash_api.cpp."""
    return -(-head_dim // 32) * 32 if head_dim <= 192 else 256


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: object,
) -> tuple[torch.Tensor, None]:
    if torch.is_autocast_enabled("cpu"):  # as autocast does for the kernel
        query, key, value = (one.to(torch.bfloat16) for one in (query, key, value))
    return cast(torch.Tensor, _FlashAttention.apply(query, key, value)), None  # type: ignore[no-untyped-call]


def _no_mask(*arguments: object, **options: object) -> None:
    return None


def verify(model: ModelSection, shape: ModelShape, setup: TrainingSetup) -> list[Comparison]:
    """Trace a recipe's micro-step in the model's own class and hold the plan against it.

    One process's: the model's states are the strategy's, and are left out of both figures.

    Raises:
        PlanError: the model's configuration cannot be loaded.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(
            model.name_or_path, revision=model.revision, trust_remote_code=model.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise PlanError(f"model.name_or_path is {model.name_or_path}: {error}") from error
    meter = trace_step(config, setup.step)
    instants = instants_of(shape, setup.step)
    found = []
    for phase in ("forward", "backward"):
        planned = max(
            sum(one.components.values())
            for one in instants
            if ("backward" in one.name) == (phase == "backward")
        )
        found.append(Comparison(phase, planned, meter.peaks[phase] - meter.static_bytes))
    return found


def trace_step(
    config: PretrainedConfig,
    setup: StepSetup,
    log: list[tuple[str, int]] | None = None,
    *,
    is_later: bool = False,
) -> Meter:
    """Train a model of this configuration for an optimiser step and return its meter.

    The optimiser's state is there before. Peaks are by phase: `forward`, `backward`, `step`.

    Args:
        is_later: whether gradients of an earlier micro-step are there, too.
    """
    meter = Meter()
    model = _on_meta(config, setup)
    with FakeTensorMode(allow_non_fake_inputs=True), _Counting(meter), _as_on_cuda():
        _fill_with_fakes(model)
        for parameter in model.parameters():
            meter.add(parameter)
        for buffer in model.buffers():
            meter.add(buffer)
        optimizer = _optimizer_with_state(model)
        for parameter in model.parameters():
            if is_later and parameter.requires_grad:
                parameter.grad = torch.empty_like(parameter)
        meter.static_bytes = meter.current_bytes
        meter.peaks.clear()
        meter.log = log
        _step(model, setup, meter, optimizer)
        meter.log = None
    return meter


@contextlib.contextmanager
def _as_on_cuda() -> Iterator[None]:
    """Let the CPU save what CUDA does, where the two differ.

    Dropout's kernel saves a mask of a byte an element (the CPU: factors in the input's precision), autocast
    raises to a power in fp32 (the CPU: as it comes), and experts' products are not in bfloat16 only. Masks
    are those of rows that hold one sequence each, which fake positions cannot tell.
    """
    from transformers import masking_utils

    functional, find_packed = torch.nn.functional, masking_utils.find_packed_sequence_indices
    dropout, grouped, power = functional.dropout, functional.grouped_mm, torch.pow

    def masked(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
        return torch.native_dropout(input, p, training)[0] if training and p > 0 else input

    def wide(input: Any, exponent: Any) -> torch.Tensor:
        is_cast = isinstance(input, torch.Tensor) and torch.is_autocast_enabled("cpu")
        return power(input.float() if is_cast else input, exponent)

    def product(rows: torch.Tensor, matrices: torch.Tensor, offs: torch.Tensor) -> Any:
        return _GroupedProduct.apply(rows, matrices)  # type: ignore[no-untyped-call]

    functional.dropout, functional.grouped_mm, torch.pow = masked, product, wide  # type: ignore[assignment]
    masking_utils.find_packed_sequence_indices = _no_mask
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = find_packed
        functional.dropout, functional.grouped_mm, torch.pow = dropout, grouped, power


def _on_meta(config: PretrainedConfig, setup: StepSetup) -> PreTrainedModel:
    """Return the model without data, with adapters if the setup has some."""
    from transformers import AttentionInterface, AutoModelForCausalLM
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(ATTENTION, _attend)
    AttentionMaskInterface.register(ATTENTION, _no_mask)
    weight_dtype = _DTYPES[setup.itemsize]
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            config, dtype=weight_dtype, attn_implementation=ATTENTION
        )
    if not model._supports_sdpa:  # as transformers chooses where nothing is asked for
        model.set_attn_implementation("eager")
    if setup.is_checkpointed:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if setup.adapter is not None:
        from peft import LoraConfig, get_peft_model

        with torch.device("meta"):
            options = {"r": setup.adapter.rank, "target_modules": sorted(setup.adapter.targets)}
            model = get_peft_model(
                model, LoraConfig(task_type="CAUSAL_LM", lora_dropout=setup.adapter.dropout, **options)
            )
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.to(_DTYPES[setup.adapter.itemsize])
        if setup.is_checkpointed:
            model.enable_input_require_grads()
    model.config.use_cache = False
    return cast("PreTrainedModel", model.train())


def _fill_with_fakes(model: torch.nn.Module) -> None:
    """Put fake CPU tensors in the place of those on `meta`; what was tied stays so."""
    made: dict[int, torch.Tensor] = {}

    def fake(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in made:
            made[id(tensor)] = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
        return made[id(tensor)]

    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                value = fake(parameter)
                if not isinstance(value, torch.nn.Parameter):
                    value = torch.nn.Parameter(value, requires_grad=parameter.requires_grad)
                    made[id(parameter)] = value
                module._parameters[name] = value
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = fake(buffer)


def _optimizer_with_state(model: PreTrainedModel) -> torch.optim.Optimizer:
    """Return AdamW after a step on gradients out of nowhere."""
    trainable = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(trainable, foreach=True)
    for parameter in trainable:
        parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return optimizer


def _step(model: PreTrainedModel, setup: StepSetup, meter: Meter, optimizer: torch.optim.Optimizer) -> None:
    """Do an optimiser step of one micro-batch as the M-step does it."""
    meter.phase = "forward"
    loss = _loss(model, setup)
    meter.phase = "backward"
    loss.backward()  # type: ignore[no-untyped-call]
    del loss
    meter.phase = "step"
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _loss(model: PreTrainedModel, setup: StepSetup) -> torch.Tensor:
    from rest_em.training.loss import solution_loss

    if setup.packed is not None:
        return _packed_loss(model, setup, setup.packed)
    num_rows, length = setup.num_rows, setup.length
    input_ids_BT = torch.zeros(num_rows, length, dtype=torch.long)
    with _autocast(setup):
        if setup.loss == "model":
            return cast(torch.Tensor, model(input_ids=input_ids_BT, labels=input_ids_BT).loss)
        kept = setup.num_kept
        output = model(input_ids=input_ids_BT, logits_to_keep=kept)
    logits_BKV = output.logits
    if setup.precision == "autocast":
        logits_BKV = logits_BKV.float()
    del output
    size = num_rows * setup.num_solution_tokens
    positions_S, targets_S = torch.zeros(size, dtype=torch.long), torch.zeros(size, dtype=torch.long)
    return solution_loss(logits_BKV, positions_S, targets_S, torch.zeros(size))


def _packed_loss(model: Any, setup: StepSetup, packed: Packed) -> torch.Tensor:
    """Return the M-step's loss of examples in one row, which share what they begin with."""
    from rest_em.training.attention import PackedAttention
    from rest_em.training.loss import SolutionLoss

    inner = model if setup.adapter is None else model.get_base_model()
    attention = PackedAttention(_flash_kernel)
    attention.install(inner)
    SolutionLoss(inner)
    shared, own = packed.num_shared, packed.length - packed.num_shared
    head = [Segment(0, shared)] if shared else []
    starts = range(shared, packed.num_tokens, own)
    attention.segments = head + [Segment(one, one + own, (0,) if shared else ()) for one in starts]
    ids = torch.zeros(1, packed.num_tokens, dtype=torch.long)
    positions = torch.zeros(1, packed.num_tokens, dtype=torch.long)
    size = setup.num_rows * setup.num_solution_tokens
    places, targets = torch.zeros(size, dtype=torch.long), torch.zeros(size, dtype=torch.long)
    with _autocast(setup):
        return cast(torch.Tensor, model(
            input_ids=ids, position_ids=positions, predicting_S=places, targets_S=targets,
            weights_S=torch.zeros(size),
        ))  # fmt: skip


def _flash_kernel(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: object
) -> torch.Tensor:
    return cast(torch.Tensor, _FlashAttention.apply(query, key, value)).transpose(1, 2)  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def _autocast(setup: StepSetup) -> Iterator[None]:
    if setup.precision != "autocast":
        yield
        return
    with torch.autocast("cpu", dtype=torch.bfloat16):
        yield
