"""Measures what a training strategy keeps in memory: the real engine, two CPU ranks, every storage.

`measure` starts this file twice, as two ranks that gloo joins; each trains a small Llama for three steps
under every case, one after another, and rank 0 writes what it saw.

Left out: what torch does not allocate (NCCL, CUDA's context), and operators inside fused kernels.
"""

from __future__ import annotations

import gc
import json
import os
import socket
import subprocess
import sys
import time
import weakref
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "error")

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import LlamaConfig, LlamaForCausalLM

from rest_em.planner.states import model_states
from rest_em.planner.strategies import StateSetup, ZeroSettings
from rest_em.planner.weights import Weights

TIMEOUT_SECONDS = 280
COLLECTED_FROM_BYTES = 50_000
"""A new peak that is higher by this counts only if it is no garbage."""


class LiveBytes(TorchDispatchMode):
    """Bytes of the storages made while it is on, and the most there were since `reset_peak`."""

    def __init__(self) -> None:
        super().__init__()
        self.current = 0
        self.peak = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_iter(result):
            if isinstance(value, torch.Tensor) and value.device.type == "cpu":
                self._see(value.untyped_storage())
        return result

    def reset_peak(self) -> None:
        """Begin a new peak at what is live now."""
        self.peak = self.current

    def _see(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known and self._known[key]() is storage:
            return
        num_bytes = storage.nbytes()

        def forget(_: Any, key: int = key, num_bytes: int = num_bytes) -> None:
            self.current -= num_bytes
            self._known.pop(key, None)

        self._known[key] = weakref.ref(storage, forget)
        self.current += num_bytes
        if self.current > self.peak + COLLECTED_FROM_BYTES:
            # A cycle keeps its storages until Python looks, gloo's thread its last tensor for a moment.
            gc.collect()
            time.sleep(0.002)
        self.peak = max(self.peak, self.current)


def measure(cases: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """Return what rank 0 measured for each case, as `_run_case` describes it."""
    (folder / "cases.json").write_text(json.dumps(cases), encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(folder)]
    logs = [folder / f"rank_{rank}.log" for rank in range(2)]
    ranks = []
    for rank, log in enumerate(logs):
        environment = {**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        with log.open("wb") as output:
            ranks.append(subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT))
    try:
        codes = [rank.wait(timeout=TIMEOUT_SECONDS) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    if any(codes):
        output = "\n".join(log.read_text(encoding="utf-8")[-3000:] for log in logs)
        raise RuntimeError(f"the ranks ended with {codes}:\n{output}")
    return [json.loads(line) for line in (folder / "measured.jsonl").read_text(encoding="utf-8").splitlines()]


MODEL = {
    "hidden_size": 512,
    "intermediate_size": 1376,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 2048,
    "tie_word_embeddings": False,
}
"""8 million weights: with two tokens, activations are 0.2 % of the states."""
LORA = {"r": 64, "lora_alpha": 8, "target_modules": "all-linear"}


def case(strategy: str, precision: str = "bf16", **settings: Any) -> dict[str, Any]:
    """Return a case: its settings are `optimizer`, `accumulation`, `lora`, `model` and `zero`.

    ZeRO-3's come last in a list: its linear layer stays in a process that has once had it.
    """
    return {
        "strategy": strategy,
        "precision": precision,
        "optimizer": settings.get("optimizer", "fused"),
        "accumulation": settings.get("accumulation", 1),
        "lora": settings.get("lora"),
        "model": {**MODEL, **settings.get("model", {})},
        "zero": {"reduce_bucket_size": 1_000_000, **settings.get("zero", {})},
    }


def planned(found: dict[str, Any]) -> tuple[Weights, StateSetup]:
    """Return a measured case as the planner has it."""
    case = found["case"]
    zero = {name.removeprefix("stage3_"): value for name, value in case["zero"].items()}
    offload = zero.pop("offload_optimizer", {"device": "none"})
    weights = Weights.of(
        [tuple(one) for one in found["weights"]], is_tied=case["model"]["tie_word_embeddings"]
    )
    setup = StateSetup(
        strategy=case["strategy"],
        num_ranks=2,
        precision=case["precision"],
        optim={"fused": "adamw_torch_fused", "foreach": "adamw_torch"}[case["optimizer"]],
        frozen="fp32" if case["precision"] == "fp32" else "bf16",
        accumulation=case["accumulation"],
        offload_optimizer=offload["device"],
        zero=ZeroSettings(**zero),
    )
    return weights, setup


def compared(found: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Return measured and predicted bytes of each instant; device and host together, for a CPU is both."""
    states = model_states(*planned(found), rank=0)
    resident = sum(states.forward.values()) + sum(states.host.values())
    accumulated = sum(states.accumulated.values())
    gathered = states.autocast_casts_bytes + states.gathering.after_forward
    casts = states.autocast_casts_bytes + states.gathering.forward.peak
    rows = {
        "starting": (found["initialising"], sum(states.loading.values())),
        "before the step": (found["forward"], resident),
    }
    for number, (before, after_forward, peak, _) in enumerate(found["micro_steps"]):
        held = resident + (accumulated if number else 0)
        backward = states.backward_peak_bytes(is_later=number > 0) + sum(states.host.values())
        rows[f"before micro-step {number}"] = (before, held)
        rows[f"after forward {number}"] = (after_forward, held + gathered)
        rows[f"backward {number}"] = (peak, backward)
    rows["forward"] = (found["forward_peak"], held + casts)
    rows["after backward"] = (found["micro_steps"][-1][-1], resident + sum(states.after_backward.values()))
    rows["step"] = (found["step"], sum(states.step.values()) + sum(states.host.values()))
    rows["after the step"] = (found["after_step"], resident)
    return rows


def llama(case: dict[str, Any], partitioned: AbstractContextManager[Any] | None = None) -> Any:
    """Return the case's model as rest_em reads it: fp32, or frozen in bf16 with fp32 adapters."""
    config = LlamaConfig(**case["model"], attn_implementation="eager")
    with partitioned or nullcontext():
        model: Any = LlamaForCausalLM(config)
    if not case.get("lora"):
        return model
    from peft import LoraConfig, get_peft_model

    if case["precision"] != "fp32" and partitioned is None:
        model = model.bfloat16()
    return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **case["lora"]))


def weights_of(model: torch.nn.Module) -> list[tuple[str, int, bool]]:
    """Return each parameter's name, number of elements, and whether it is trained."""
    return [
        (name, int(getattr(p, "ds_numel", p.numel())), p.requires_grad)
        for name, p in model.named_parameters()
    ]


def _optimizer(case: dict[str, Any], model: torch.nn.Module) -> torch.optim.Optimizer:
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    plain = [p for name, p in named if "norm" in name]
    decayed = [p for name, p in named if "norm" not in name]
    groups = [{"params": part, "weight_decay": 0.0} for part in (decayed, plain)]
    if case["optimizer"] == "sgd":
        return torch.optim.SGD(groups, lr=1e-3)
    kind = case["optimizer"]
    return torch.optim.AdamW(groups, lr=1e-4, fused=kind == "fused", foreach=kind == "foreach")


class _Engine:
    """A model that trains, by DeepSpeed or by DDP, as rest_em has accelerate set them up."""

    def __init__(self, case: dict[str, Any]) -> None:
        self._case = case
        self._is_deepspeed = case["strategy"].startswith("zero")
        if self._is_deepspeed:
            self._model = self._deepspeed()
        else:
            self._model = llama(case)
            self._optimizer = _optimizer(case, self._model)
            self.weights = weights_of(self._model)
            if case["strategy"] == "ddp":
                self._model = DistributedDataParallel(self._model, broadcast_buffers=False)

    def _deepspeed(self) -> Any:
        import deepspeed
        from transformers.integrations import HfDeepSpeedConfig

        stage = int(self._case["strategy"][-1])
        zero = {"stage": stage, **self._case["zero"]}
        config = {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": self._case["accumulation"],
            "gradient_clipping": 1.0,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "bf16": {"enabled": self._case["precision"] == "bf16"},
            "zero_optimization": zero,
        }
        if stage == 3:
            kept = HfDeepSpeedConfig(config)
            model = llama(self._case, deepspeed.zero.Init(config_dict_or_path=config))
            del kept
        else:
            model = llama(self._case)
        self.weights = weights_of(model)
        engine, *_ = deepspeed.initialize(
            model=model, optimizer=_optimizer(self._case, model), config_params=config
        )
        return engine

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        if self._case["precision"] == "autocast":
            with torch.autocast("cpu", torch.bfloat16):
                return self._model(input_ids=ids, labels=ids, use_cache=False).loss
        return self._model(input_ids=ids, labels=ids, use_cache=False).loss

    def backward(self, loss: torch.Tensor, *, is_last: bool) -> None:
        if self._is_deepspeed:
            self._model.set_gradient_accumulation_boundary(is_last)
            self._model.backward(loss)
        elif self._case["strategy"] == "ddp" and not is_last:
            with self._model.no_sync():
                loss.backward()
        else:
            loss.backward()

    def step(self) -> None:
        if self._is_deepspeed:
            self._model.step()
            return
        torch.nn.utils.clip_grad_norm_([p for p in self._model.parameters() if p.requires_grad], 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()

    def close(self) -> None:
        if self._is_deepspeed:
            self._model.destroy()


def _run_case(case: dict[str, Any]) -> dict[str, Any]:
    """Return bytes by instant, those of the last step, with `weights` and the case itself.

    Instants: `initialised` and the `initialising` peak; `forward` (before it) and `forward_peak`; for each
    micro-step `gathered` (after the forward), `backward` (peak) and `after_backward`; `step` (peak) and
    `after_step`.
    """
    ids = torch.arange(2)[None]
    gc.collect()
    gc.freeze()
    with LiveBytes() as live:
        engine = _Engine(case)
        _settle()
        found: dict[str, Any] = {"initialising": live.peak, "initialised": live.current}
        # The optimiser's states come with the first step; ZeRO-3 records an order in the second.
        for _ in range(3 if case["strategy"] == "zero3" else 2):
            found["forward"] = live.current
            found["micro_steps"] = []
            for micro_step in range(case["accumulation"]):
                before = live.current
                live.reset_peak()
                loss = engine.forward(ids)
                gathered = live.current
                found["forward_peak"] = live.peak
                live.reset_peak()
                engine.backward(loss, is_last=micro_step == case["accumulation"] - 1)
                peak = live.peak
                del loss
                _settle()
                found["micro_steps"].append([before, gathered, peak, live.current])
            live.reset_peak()
            engine.step()
            found["step"] = live.peak
            _settle()
            found["after_step"] = live.current
        found["weights"] = engine.weights
        engine.close()
        del engine
    gc.collect()
    return {**found, "case": case}


def _settle() -> None:
    """Let go of what only garbage and gloo's threads hold; a thread keeps its last tensor for a moment."""
    torch.distributed.barrier()
    time.sleep(0.05)
    gc.collect()


def _rank(folder: Path) -> None:
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__ = {}
    import deepspeed

    deepspeed.init_distributed("gloo")
    for case in json.loads((folder / "cases.json").read_text(encoding="utf-8")):
        torch.manual_seed(0)
        found = _run_case(case)
        if torch.distributed.get_rank() == 0:
            with (folder / "measured.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(found) + "\n")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    _rank(Path(sys.argv[1]))
