"""Tokens a second of the sampler beside `model.generate(num_return_sequences=N)`, alternating in one run.

Both get the same model, prompts and settings. Each is tried at several batch sizes in the first round and
keeps its best one in the others; the table shows the median of the rounds. `generate` ends rows by a stopping
criterion that looks at the last token's id, which is faster than its own `stop_strings`. A token counts if it
belongs to a solution: what `generate` computes for rows that have ended does not.

    python benchmarks/sampling.py models/SmolLM2-135M-Instruct [--rounds 3] [--json FILE]

Other processes spoil the figures; the cores that they took are printed. On a machine that is shared,
`OMP_WAIT_POLICY=PASSIVE` and `--processor-time` give ratios that still mean something.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import GenerationConfig, StoppingCriteria

from rest_em.sampling.engine import make_sampler
from rest_em.sampling.policy import LoadedPolicy, load_policy
from rest_em.types import DrawRequest, Problem, SamplingParams

NUM_NEW_TOKENS = 48
NUM_PROBLEMS, NUM_SAMPLES = 16, 8
TEMPERATURE, TOP_K = 0.7, 40
QUESTIONS = [
    f"{10 + 3 * n} {'+-'[n % 2]} {7 + 5 * n}" if n % 3 else f"({n} + {2 * n + 1}) * {n + 2}"
    for n in range(NUM_PROBLEMS)
]
SHOTS = [
    "12 + 34 = 46",
    "57 - 21 = 36",
    "(3 + 4) * 5 = 35",
    "81 + 9 = 90",
    "44 - 40 = 4",
    "(10 + 2) * 3 = 36",
]


@dataclass(frozen=True, slots=True)
class Case:
    """What both are asked for."""

    name: str
    prompts: tuple[str, ...]
    num_samples: int
    """Solutions a prompt; 0 makes it the batch size."""
    ends_at_newline: bool
    batch_sizes: tuple[int, ...]
    """Rows of the sampler; rows of one call of `generate`."""
    target: float
    """The ratio that the project wants at least."""


@dataclass(frozen=True, slots=True)
class Rate:
    """Tokens a second of one engine in one case."""

    batch_size: int
    median: float
    rounds: tuple[float, ...]


def cases() -> list[Case]:
    """Return the cases: fixed length, early endings, early endings behind a long few-shot head."""
    few = "".join(f"{shot}\n" for shot in SHOTS[:2])
    many = "Work out the value of each expression.\n\n" + "".join(f"{shot}\n" for shot in SHOTS * 2)
    sizes = (32, 64, 128)
    return [
        Case("1 prompt, 48 tokens each", (f"{few}{QUESTIONS[1]} =",), 0, False, sizes, 3.0),
        Case("16 x 8, to the newline", tuple(f"{few}{one} =" for one in QUESTIONS), 8, True, sizes, 4.0),
        Case("the same, 12 shots", tuple(f"{many}{one} =" for one in QUESTIONS), 8, True, sizes[:2], 4.0),
    ]


def run_sampler(policy: LoadedPolicy, case: Case, batch_size: int, seed: int) -> int:
    """Draw all solutions of a case and return how many tokens they have."""
    num_tokens = 0

    def observe(new_tokens: int, num_solutions: int) -> None:
        nonlocal num_tokens
        num_tokens += new_tokens

    params = SamplingParams(
        num_samples=case.num_samples or batch_size,
        max_new_tokens=NUM_NEW_TOKENS,
        temperature=TEMPERATURE,
        top_k=TOP_K,
        stop_strings=("\n",) if case.ends_at_newline else (),
    )
    problems = tuple(
        Problem(id=str(n), prompt=prompt, reference=None) for n, prompt in enumerate(case.prompts)
    )
    request = DrawRequest("benchmark", problems, params, 1, seed, unit_size=1024, max_rows=batch_size)
    if not case.ends_at_newline:
        policy = dataclasses.replace(policy, eos_token_ids=frozenset())
    sampler = make_sampler(policy, "auto", observe)
    sampler(request, [(problem, range(params.num_samples)) for problem in problems])
    return num_tokens


class _EndsWith(StoppingCriteria):
    """Ends the rows whose last token is one of some ids."""

    def __init__(self, token_ids: torch.Tensor) -> None:
        self._token_ids = token_ids

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: object) -> torch.Tensor:
        return torch.isin(input_ids[:, -1], self._token_ids)


class Generate:
    """`model.generate` at its best: left padding, sampling on top-k logits, rows ended by token id."""

    def __init__(self, policy: LoadedPolicy) -> None:
        self._model, self._tokenizer = policy.model, policy.tokenizer
        self._tokenizer.padding_side = "left"
        pieces = self._tokenizer.batch_decode([[token] for token in range(len(self._tokenizer))])
        ends = [token for token, piece in enumerate(pieces) if "\n" in piece]
        self._newlines = torch.tensor(ends, device=policy.model.device)
        self._ends = torch.tensor([*ends, *policy.eos_token_ids])

    def __call__(self, case: Case, batch_size: int, seed: int) -> int:
        """Draw all solutions of a case and return how many tokens they have."""
        torch.manual_seed(seed)
        num_samples = case.num_samples or batch_size
        step = max(1, batch_size // num_samples)
        return sum(
            self._generate(case, case.prompts[start : start + step], num_samples)
            for start in range(0, len(case.prompts), step)
        )

    def _generate(self, case: Case, prompts: Sequence[str], num_samples: int) -> int:
        batch = self._tokenizer(list(prompts), return_tensors="pt", padding=True).to(self._model.device)
        own = self._model.generation_config
        self._model.generation_config = GenerationConfig(
            eos_token_id=own.eos_token_id if case.ends_at_newline else None,
            pad_token_id=self._tokenizer.pad_token_id,
        )
        out = self._model.generate(
            **batch,
            do_sample=True,
            temperature=TEMPERATURE,
            top_k=TOP_K,
            num_return_sequences=num_samples,
            max_new_tokens=NUM_NEW_TOKENS,
            stopping_criteria=[_EndsWith(self._newlines)] if case.ends_at_newline else None,
        )
        self._model.generation_config = own
        new = out[:, batch["input_ids"].shape[1] :].cpu()
        if not case.ends_at_newline:
            return new.numel()
        return self.count(new)

    def count(self, new: torch.Tensor) -> int:
        """Return how many tokens come up to the first end of each row, the end itself included."""
        ends = torch.isin(new, self._ends)
        return int((ends.cumsum(dim=1) - ends.int() == 0).sum())


def measure(
    case: Case,
    engines: dict[str, Callable[[Case, int, int], int]],
    num_rounds: int,
    clock: Callable[[], float],
) -> dict[str, Rate]:
    """Return the rate of each engine at its best batch size."""
    first: dict[tuple[str, int], float] = {}
    for size in case.batch_sizes:
        for name, engine in engines.items():
            first[name, size] = _rate(case, engine, size, seed=0, clock=clock)
    best = {name: max(case.batch_sizes, key=lambda size: first[name, size]) for name in engines}
    rounds = {name: [first[name, best[name]]] for name in engines}
    for number in range(1, num_rounds):
        for name, engine in engines.items():
            rounds[name].append(_rate(case, engine, best[name], seed=number, clock=clock))
    return {name: Rate(best[name], statistics.median(rates), tuple(rates)) for name, rates in rounds.items()}


def _rate(
    case: Case, engine: Callable[[Case, int, int], int], size: int, *, seed: int, clock: Callable[[], float]
) -> float:
    start = clock()
    num_tokens = engine(case, size, seed)
    rate = num_tokens / (clock() - start)
    print(f"  {case.name}: {size} rows: {rate:.0f} tokens/s", file=sys.stderr)
    return rate


def _processor_seconds() -> tuple[float, float]:
    """Return the busy seconds of the whole machine and of this process."""
    fields = Path("/proc/stat").read_text(encoding="utf-8").split("\n", 1)[0].split()[1:]
    busy = sum(map(int, fields)) - int(fields[3]) - int(fields[4])
    return busy / os.sysconf("SC_CLK_TCK"), time.process_time()


def machine(policy: LoadedPolicy) -> dict[str, Any]:
    """Return what the figures depend on."""
    device = policy.model.device
    return {
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else platform.processor() or "cpu",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "dtype": str(policy.model.dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument(
        "model", nargs="?", default="models/SmolLM2-135M-Instruct", help="a checkpoint's folder"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, help="torch's threads; default is torch's own choice")
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="per second of this process's processor time, not of the wall",
    )
    parser.add_argument("--case", type=int, action="append", help="only this case, from 0; may be repeated")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    options = parser.parse_args(arguments)
    clock = time.process_time if options.processor_time else time.perf_counter
    if options.threads:
        torch.set_num_threads(options.threads)
    policy = load_policy(options.model, dtype=options.dtype)
    generate = Generate(policy)

    def sampler(case: Case, size: int, seed: int) -> int:
        return run_sampler(policy, case, size, seed)

    started, busy_before = time.time(), _processor_seconds()
    results = []
    for case in [cases()[number] for number in options.case or range(len(cases()))]:
        rates = measure(case, {"generate": generate, "sampler": sampler}, options.rounds, clock)
        results.append(
            {
                "case": case.name,
                "target": case.target,
                "ratio": rates["sampler"].median / rates["generate"].median,
            }
            | {name: dataclasses.asdict(rate) for name, rate in rates.items()}
        )
    seconds = time.time() - started
    busy, own = (after - before for after, before in zip(_processor_seconds(), busy_before, strict=True))
    facts = machine(policy) | {"seconds": seconds, "foreign_cores": max(0.0, busy - own) / seconds}
    _print_table(results, facts)
    if options.json:
        options.json.write_text(
            json.dumps({"machine": facts, "cases": results}, indent=2) + "\n", encoding="utf-8"
        )


def _print_table(results: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    print("| case | generate tokens/s (rows) | sampler tokens/s (rows) | ratio | wanted |")
    print("|---|---|---|---|---|")
    for one in results:
        cells = [f"{one[name]['median']:.0f} ({one[name]['batch_size']})" for name in ("generate", "sampler")]
        print(f"| {one['case']} | {cells[0]} | {cells[1]} | {one['ratio']:.1f} | {one['target']:.0f} |")
    print(
        ", ".join(
            f"{name} {value:.2g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in facts.items()
        )
    )


if __name__ == "__main__":
    main()
