"""Make the quickstart's problems: integer arithmetic, seeded, the three sets disjoint.

    python recipes/quickstart/make_problems.py

Half are `a + b` and a quarter `a - b` with two-digit numbers, a quarter `(a + b) * c` with smaller ones.
The files that it writes beside itself are shipped; the same seed writes the same files.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

SEED = 2312_06585
NUM_TRAIN, NUM_VALIDATION, NUM_TEST = 800, 100, 200


def draw_problem(rng: random.Random, kind: int) -> tuple[str, str, int]:
    """Return an expression, the same with its summands swapped, and its value.

    Kind 0 and 1 are sums, 2 a difference (which has no swapped form), 3 a product of a sum.
    """
    if kind == 2:
        smaller, larger = sorted((rng.randint(10, 99), rng.randint(10, 99)))
        return f"{larger} - {smaller}", f"{larger} - {smaller}", larger - smaller
    if kind == 3:
        a, b, c = rng.randint(2, 12), rng.randint(2, 12), rng.randint(2, 9)
        return f"({a} + {b}) * {c}", f"({b} + {a}) * {c}", (a + b) * c
    a, b = rng.randint(10, 99), rng.randint(10, 99)
    return f"{a} + {b}", f"{b} + {a}", a + b


def distinct_problems(rng: random.Random) -> Iterator[dict[str, str]]:
    """Give problems without end, the kinds in turn, none twice or with its summands swapped."""
    seen: set[str] = set()
    while True:
        for kind in range(4):
            expression, swapped, value = draw_problem(rng, kind)
            while expression in seen:
                expression, swapped, value = draw_problem(rng, kind)
            seen |= {expression, swapped}
            yield {"expression": expression, "answer": str(value)}


def main() -> None:
    """Write train.jsonl, validation.jsonl and test.jsonl."""
    folder = Path(__file__).parent
    problems = distinct_problems(random.Random(SEED))
    for name, size in (("train", NUM_TRAIN), ("validation", NUM_VALIDATION), ("test", NUM_TEST)):
        rows = [json.dumps({"id": f"{name}-{k}"} | next(problems)) for k in range(size)]
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
