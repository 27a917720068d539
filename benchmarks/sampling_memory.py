"""The planner's memory of the E-step beside the storages of real draws, on small random models on a CPU.

Each case draws with one of rest_em's engines, no solution ending before the cap, under a mode that notes
every storage's allocation and release. What an operation takes inside itself is not seen, but for
`logsumexp`, which is computed in its parts. A CPU's attention is fused, and the planner is told so; that it
copies what a softmax widens, as no GPU does, is not counted.

    python benchmarks/sampling_memory.py [--model llama ...] [--dtype float32] [--json FILE]

Errors are of the whole peak, and of what lies above the weights, which hides nothing.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rest_em.planner.sampling import sampling_memory
from rest_em.planner.sampling_setup import Components, Engine, SamplingSetup
from rest_em.planner.shapes import shape_of
from rest_em.sampling.policy import LoadedPolicy, in_memory
from rest_em.sampling.shared_prefix import SharedPrefixSampler
from rest_em.sampling.stock import StockSampler
from rest_em.types import DrawRequest, Problem, SamplingParams

VOCABULARY = 8000
_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "max_position_embeddings": 2048,
}
_GROUPED = {**_SIZES, "num_key_value_heads": 2}
_GPT2 = {"vocab_size": VOCABULARY, "n_embd": 96, "n_layer": 3, "n_head": 6, "n_positions": 2048}
MODELS: Mapping[str, Callable[[], Any]] = {
    "llama": lambda: hf.LlamaConfig(**_GROUPED),
    "llama, heads not grouped": lambda: hf.LlamaConfig(**_SIZES),
    "qwen3": lambda: hf.Qwen3Config(**_GROUPED, head_dim=64),
    "gpt2": lambda: hf.GPT2Config(**_GPT2),
    "gpt_neox": lambda: hf.GPTNeoXConfig(**_SIZES),
    "phi3": lambda: hf.Phi3Config(**_GROUPED, pad_token_id=0),
    "phi": lambda: hf.PhiConfig(**_GROUPED),
    "qwen3_moe": lambda: hf.Qwen3MoeConfig(
        **_GROUPED, head_dim=32, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=128
    ),
    "mistral, window 64": lambda: hf.MistralConfig(**_GROUPED, sliding_window=64),
    "gemma2, window 64": lambda: hf.Gemma2Config(**_GROUPED, head_dim=32, sliding_window=64),
    "gemma3, window 64": lambda: hf.Gemma3TextConfig(**_GROUPED, head_dim=32, sliding_window=64),
}
STOCK_ONLY = ("mistral, window 64", "gemma2, window 64", "gemma3, window 64")


@dataclass(frozen=True, slots=True)
class Case:
    """A draw: problems with prompts of one length, of which the first tokens are all the same."""

    num_problems: int
    prompt: int
    head: int
    num_samples: int
    max_rows: int
    max_new_tokens: int
    draw: Mapping[str, float]


TOP_K, TOP_P, WHOLE, GREEDY = {"top_k": 40}, {"top_p": 0.9}, {}, {"temperature": 0.0}
CASES = (
    Case(4, 60, 20, 8, 32, 40, TOP_K),
    Case(2, 9, 3, 4, 8, 12, WHOLE),
    Case(4, 300, 200, 4, 8, 8, TOP_P),
    Case(1, 100, 0, 16, 16, 50, WHOLE),
    Case(16, 300, 10, 2, 16, 12, TOP_K),
    Case(32, 40, 5, 1, 32, 80, GREEDY),
    Case(20, 260, 2, 2, 24, 20, TOP_K),
    Case(2, 20, 6, 32, 64, 128, TOP_K),
)


@dataclass(frozen=True, slots=True)
class Result:
    """A case's peak as predicted and as it was."""

    model: str
    engine: Engine
    case: Case
    predicted: Components
    measured_bytes: int

    @property
    def error(self) -> float:
        """Of the peak."""
        return self.predicted.total_bytes / self.measured_bytes - 1

    @property
    def error_above_weights(self) -> float:
        """Of the peak less the weights."""
        weights = self.predicted.weights
        return (self.predicted.total_bytes - weights) / (self.measured_bytes - weights) - 1


class Storages(TorchDispatchMode):
    """Counts the bytes of all storages made inside it, and those of a model from the start."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.live: dict[int, int] = {}
        self.now = self.peak = 0
        for tensor in (*model.parameters(), *model.buffers()):
            self._note(tensor)
        self.weights = self.now

    def _note(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.live:
            self.live[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self.live.pop(key)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten.logsumexp.default:
            with self:
                return _logsumexp(*args, **kwargs)
        composite = "CompositeImplicitAutograd"
        # A softmax that also widens is one kernel on a GPU; a CPU's first copies what it is given.
        if func is not torch.ops.aten.softmax.int and torch._C._dispatch_has_kernel_for_dispatch_key(
            func.name(), composite
        ):
            # Inference mode shows such operations whole; their parts allocate.
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        out = func(*args, **kwargs)
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self._note(leaf)
        return out


def _logsumexp(tensor: torch.Tensor, dim: Sequence[int], keepdim: bool = False) -> torch.Tensor:
    largest = tensor.amax(dim, keepdim=True)
    total = (tensor - largest).exp_().sum(dim, keepdim=True).log_().add_(largest)
    return total if keepdim else total.squeeze(list(dim))


class NumberTokenizer:
    """Takes a text of numbers for their ids; no id ends a solution."""

    eos_token_id = bos_token_id = eos_token = chat_template = None
    name_or_path = "numbers"

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        """Return the numbers."""
        return {"input_ids": [int(word) for word in text.split()]}

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """Return an id for any text."""
        return [1]

    def decode(self, token_ids: Sequence[int], **options: bool) -> str:
        """Return the ids as text."""
        return " ".join(map(str, token_ids))


def make_policy(name: str, dtype: torch.dtype) -> LoadedPolicy:
    """Return a random model that does not end."""
    torch.manual_seed(0)
    config = MODELS[name]()
    config.bos_token_id = config.eos_token_id = None
    model = hf.AutoModelForCausalLM.from_config(config).eval().to(dtype)
    model.generation_config = hf.GenerationConfig()
    return in_memory(model, NumberTokenizer())  # type: ignore[arg-type]


def measure(
    policy: LoadedPolicy, engine: Engine, case: Case, name: str = "", *, is_fused: bool = True
) -> Result:
    """Draw a case and predict it; say whether torch may fuse its attention."""
    generator = random.Random(0)
    head = [generator.randrange(VOCABULARY) for _ in range(case.head)]
    prompts = [
        [*head, number, *(generator.randrange(VOCABULARY) for _ in range(case.prompt - case.head - 1))]
        for number in range(case.num_problems)
    ]
    problems = tuple(
        Problem(id=str(number), prompt=" ".join(map(str, prompt)), reference=None)
        for number, prompt in enumerate(prompts)
    )
    draw: dict[str, Any] = {"temperature": 0.7, **case.draw}
    params = SamplingParams(num_samples=case.num_samples, max_new_tokens=case.max_new_tokens, **draw)
    size = case.num_problems * case.num_samples
    request = DrawRequest("memory", problems, params, 1, 0, unit_size=size, max_rows=case.max_rows)
    sampler = (SharedPrefixSampler if engine == "shared_prefix" else StockSampler)(policy, lambda *_: None)
    storages = Storages(policy.model)
    with storages:
        sampler(request, [(problem, range(case.num_samples)) for problem in problems])
    setup = SamplingSetup(
        weight_bytes=storages.weights,
        active_weight_bytes=storages.weights,
        dtype_bytes=policy.model.dtype.itemsize,
        num_samples=case.num_samples,
        max_rows=case.max_rows,
        unit_size=size,
        longest_prompt=case.prompt,
        mean_prompt=float(case.prompt),
        common_head=case.head,
        max_new_tokens=case.max_new_tokens,
        mean_new_tokens=float(case.max_new_tokens),
        engine=engine,
        has_fused_attention=is_fused,
        **draw,
    )
    shape = shape_of(policy.model.config.to_dict())
    return Result(name, engine, case, sampling_memory(shape, setup).peak, storages.peak)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--model", action="append", choices=tuple(MODELS))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--case", type=int, action="append", help="only this case, from 0; may be repeated")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    options = parser.parse_args(arguments)
    results = []
    print("| model | engine | case | instant | predicted | measured | error | above the weights |")
    print("|---|---|---|---|---|---|---|---|")
    for name in options.model or MODELS:
        policy = make_policy(name, getattr(torch, options.dtype))
        engines: tuple[Engine, ...] = ("stock",) if name in STOCK_ONLY else ("shared_prefix", "stock")
        for engine in engines:
            for number in options.case or range(len(CASES)):
                result = measure(policy, engine, CASES[number], name)
                results.append(result)
                peak = result.predicted
                print(
                    f"| {name} | {engine} | {number} | {peak.instant} | {peak.total_bytes:,} | "
                    f"{result.measured_bytes:,} | {result.error:+.2%} | {result.error_above_weights:+.2%} |",
                    flush=True,
                )
    for what in ("error", "error_above_weights"):
        errors = [abs(getattr(result, what)) for result in results]
        print(f"{what}: median {statistics.median(errors):.3%}, worst {max(errors):.2%} of {len(errors)}")
    if options.json:
        options.json.write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")


if __name__ == "__main__":
    main()
