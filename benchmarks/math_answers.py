"""Samples a second of `math_answer`, beside math-verify alone on a part of the same samples, in one run.

    python benchmarks/math_answers.py [--problems 7500] [--samples 32]

The problems are made up: references of the kinds that MATH has, most of them numbers, and for each a few wrong
answers that models repeat and one that is spelt in another way. Which of them a sample gives follows a law in
which the likeliest answers take most of the samples; how often the right one comes differs by problem.
"""

from __future__ import annotations

import argparse
import logging
import random
import time

from rest_em.errors import UnscorableError
from rest_em.rewards.math_answer import JUDGE, math_answer
from rest_em.types import Problem, Solution

NUM_PLAIN = 2_000
"""Samples that math-verify alone is timed on."""


def make_problem(rng: random.Random) -> tuple[str, list[str]]:
    """Return a reference, and the answers that samples give: the right one, its other spelling, wrong ones."""
    a, b, c = rng.randint(2, 400), rng.randint(2, 60), rng.randint(2, 9)
    kind = rng.choices(
        ["whole", "fraction", "decimal", "surd", "expression", "pair", "roots", "interval", "text"],
        [58, 14, 6, 6, 6, 4, 2, 2, 2],
    )[0]
    made: dict[str, tuple[str, str, list[str]]] = {
        "whole": (f"{a}", f"{a}.0", [f"{a + 1}", f"{a - 1}", f"{2 * a}", f"-{a}", f"\\frac{{{a}}}{{2}}"]),
        "fraction": (f"\\frac{{{a}}}{{{b}}}", f"{a}/{b}", [f"\\frac{{{b}}}{{{a}}}", f"\\frac{{{a + 1}}}{{{b}}}", f"{a}"]),
        "decimal": (f"{a}.{c}5", f"{a}.{c}50", [f"{a}.{c}", f"{a}.5", f"{a + 1}.{c}5"]),
        "surd": (f"{b}\\sqrt{{{c}}}", f"\\sqrt{{{b * b * c}}}", [f"{c}\\sqrt{{{b}}}", f"\\sqrt{{{c}}}", f"{b}"]),
        "expression": (f"{b}x^2+{c}x", f"x({b}x+{c})", [f"{b}x^2-{c}x", f"{b}x+{c}", f"{c}x^2+{b}x"]),
        "pair": (f"({a},{b})", f"\\left({a}, {b}\\right)", [f"({b},{a})", f"({a},-{b})", f"{a},{b}"]),
        "roots": (f"{a},{b}", f"{b}, {a}", [f"{a}", f"{b}", f"{a},{b + 1}"]),
        "interval": (f"[{b},{a + 60})", f"\\left[{b},{a + 60}\\right)", [f"({b},{a + 60})", f"[{b},{a + 60}]"]),
        "text": ("\\text{Monday}", "Monday", ["Tuesday", "\\text{Friday}", "Sunday"]),
    }  # fmt: skip
    gold, spelt, wrong = made[kind]
    return gold, [gold, spelt, *wrong]


def make_samples(num_problems: int, num_samples: int) -> list[tuple[Problem, Solution]]:
    """Return samples in the order in which a run judges them: problem by problem."""
    rng = random.Random(0)
    samples = []
    for number in range(num_problems):
        gold, answers = make_problem(rng)
        problem = Problem(str(number), "", gold)
        right = rng.betavariate(0.8, 0.8)
        shares = [0.85 * right, 0.15 * right] + [
            (1 - right) / (place + 1) ** 1.5 for place in range(len(answers) - 2)
        ]
        for index, answer in enumerate(rng.choices(answers, shares, k=num_samples)):
            text = f"We compute step by step. Therefore the result is $\\boxed{{{answer}}}$."
            samples.append((problem, Solution(str(number), index, 0, text, (), "eos")))
    return samples


def plain_rate(samples: list[tuple[Problem, Solution]]) -> float:
    """Return samples a second of math-verify alone, in this process, as its README has it."""
    from math_verify import parse, verify

    logging.disable(logging.CRITICAL)
    parse("\\boxed{1}", parsing_timeout=None)
    started = time.perf_counter()
    for problem, solution in samples:
        gold = parse(f"\\boxed{{{problem.reference}}}", parsing_timeout=None)
        verify(gold, parse(solution.text, parsing_timeout=None), timeout_seconds=None)
    return len(samples) / (time.perf_counter() - started)


def main() -> None:
    """Print both rates and their ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--problems", type=int, default=7_500)
    parser.add_argument("--samples", type=int, default=32)
    arguments = parser.parse_args()
    samples = make_samples(arguments.problems, arguments.samples)
    JUDGE.start()
    started, num_correct, num_unscorable = time.perf_counter(), 0, 0
    for problem, solution in samples:
        try:
            num_correct += math_answer(problem, solution).reward == 1.0
        except UnscorableError:
            num_unscorable += 1
    rate = len(samples) / (time.perf_counter() - started)
    print(
        f"rest_em: {len(samples):,} samples, {rate:,.0f}/s, {num_correct:,} correct, {num_unscorable} unscorable"
    )
    plain = plain_rate(random.Random(1).sample(samples, min(NUM_PLAIN, len(samples))))
    print(f"math-verify alone: {plain:,.0f}/s; {rate / plain:.1f} times")


if __name__ == "__main__":
    main()
