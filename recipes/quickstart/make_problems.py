"""Make the quickstart's problems: sums of two-digit numbers, seeded; no sum is in two of the files.

    python recipes/quickstart/make_problems.py

The files that it writes beside itself are shipped; the same seed writes the same files.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

SEED = 2312_06585
NUM_EXAMPLES, NUM_TRAIN, NUM_VALIDATION, NUM_TEST = 2, 400, 100, 200
NUM_SEEN = 702
"""So many sums of the sequence were scored while the recipe was made; the test problems are the next ones."""


def distinct_sums(rng: random.Random) -> Iterator[tuple[str, int]]:
    """Give up to 4,095 expressions and their values, none twice or with its summands swapped."""
    seen: set[tuple[int, int]] = set()
    while True:
        a, b = rng.randint(10, 99), rng.randint(10, 99)
        if (a, b) not in seen:
            seen |= {(a, b), (b, a)}
            yield f"{a} + {b}", a + b


def write_rows(name: str, rows: list[dict[str, str]]) -> None:
    """Write a JSONL file beside this script."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (Path(__file__).parent / f"{name}.jsonl").write_text(text, encoding="utf-8")


def write_problems(name: str, problems: Iterable[tuple[str, int]]) -> None:
    """Write a set of problems beside this script."""
    rows = [
        {"id": f"{name}-{k}", "expression": e, "answer": str(value)} for k, (e, value) in enumerate(problems)
    ]
    write_rows(name, rows)


def main() -> None:
    """Write the worked examples and the three sets of problems."""
    sums = distinct_sums(random.Random(SEED))
    seen = iter(list(islice(sums, NUM_SEEN)))
    shots = islice(seen, NUM_EXAMPLES)
    write_rows("examples", [{"expression": e, "solution": f" {value}"} for e, value in shots])
    write_problems("train", islice(seen, NUM_TRAIN))
    write_problems("validation", islice(seen, NUM_VALIDATION))
    write_problems("test", islice(sums, NUM_TEST))


if __name__ == "__main__":
    main()
