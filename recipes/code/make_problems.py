"""Make the problems of recipes/code: one-line functions with unit tests, seeded; none is in two of the files.

    python recipes/code/make_problems.py

The files that it writes beside itself are shipped; the same seed writes the same files.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

SEED = 2312_06585
NUM_EXAMPLES, NUM_TRAIN, NUM_VALIDATION, NUM_TEST = 2, 240, 60, 120
NUMBERS = ([0], [1], [7], [-4], [23])
PAIRS = ([0, 0], [3, 5], [-2, 9], [40, 7])
WORDS = (["a"], ["hello"], ["Tree"], ["model tune"])
LISTS = ([[3]], [[1, 2, 3]], [[5, -1, 4, 0]], [[10, 10]])

Kind = tuple[str, str, str, Callable[..., Any], tuple[list[Any], ...]]
"""Name, parameters, what it says it returns, what it returns, and arguments to test it with."""


def kinds(number: int, word: str) -> list[Kind]:
    """Return one problem of each kind, with a number or a word in it where the kind has one."""
    n, w, letter = number, word, word[0]
    return [
        (f"add_{n}", "x", f"x plus {n}", lambda x: x + n, NUMBERS),
        (f"subtract_{n}", "x", f"x minus {n}", lambda x: x - n, NUMBERS),
        (f"times_{n}", "x", f"x times {n}", lambda x: x * n, NUMBERS),
        (f"is_above_{n}", "x", f"True if x is greater than {n}, else False", lambda x: x > n, NUMBERS),
        (f"remainder_{n}", "x", f"the remainder of x divided by {n}", lambda x: x % n, NUMBERS),
        (f"sum_plus_{n}", "a, b", f"the sum of a and b, plus {n}", lambda a, b: a + b + n, PAIRS),
        (f"largest_or_{n}", "a, b", f"the largest of a, b and {n}", lambda a, b: max(a, b, n), PAIRS),
        (f"append_{w}", "text", f"text followed by '{w}'", lambda text: text + w, WORDS),
        (f"starts_with_{w}", "text", f"True if text starts with '{w}'", lambda t: t.startswith(w), WORDS),
        (f"count_{letter}", "text", f"how often '{letter}' is in text", lambda t: t.count(letter), WORDS),
        (f"sum_times_{n}", "values", f"the sum of values, times {n}", lambda v: sum(v) * n, LISTS),
        (f"each_plus_{n}", "values", f"a list with {n} added to each of values",
         lambda v: [x + n for x in v], LISTS),
    ]  # fmt: skip


def begin(name: str, parameters: str, says: str) -> str:
    """Return the begin of a function, which a solution goes on with."""
    return f'def {name}({parameters}):\n    """Return {says}."""\n    return'


def row(kind: Kind) -> dict[str, Any]:
    """Return a problem: the begin of a function, which a solution goes on with, and its tests."""
    name, parameters, says, function, arguments = kind
    prompt = begin(name, parameters, says)
    cases = [{"args": args, "expected": function(*args)} for args in arguments]
    tests = {"format": "function", "entry_point": name, "cases": cases, "prompt": prompt}
    return {"id": name, "prompt": prompt, "tests": tests}


def main() -> None:
    """Write the worked examples and the three sets of problems."""
    rng = random.Random(SEED)
    words = "ing ed s er ly able x ness ful less un re dis out over up".split()  # noqa: SIM905
    rows = {
        each["id"]: each for number in range(2, 100) for each in map(row, kinds(number, rng.choice(words)))
    }
    order = sorted(rows)
    rng.shuffle(order)
    sets = {"examples": NUM_EXAMPLES, "train": NUM_TRAIN, "validation": NUM_VALIDATION, "test": NUM_TEST}
    shown = [
        {"prompt": begin("double", "x", "x times 2"), "solution": " x * 2"},
        {"prompt": begin("last", "values", "the last of values"), "solution": " values[-1]"},
    ]
    for name, size in sets.items():
        chosen = shown if name == "examples" else [rows[order.pop()] for _ in range(size)]
        text = "".join(json.dumps(one) + "\n" for one in chosen)
        (Path(__file__).parent / f"{name}.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
