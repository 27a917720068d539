"""The programs of `attacks.toml`, and the tasks that they pretend to do."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHECK = (
    "def check(candidate):\n"
    "    for n in (0, 1, 3, 20):\n"
    "        assert candidate(n) == [i * i for i in range(n)]\n"
)
TESTS: dict[str, dict[str, Any]] = {
    "function": {
        "format": "function",
        "entry_point": "squares",
        "cases": [{"args": [n], "expected": [i * i for i in range(n)]} for n in (0, 1, 3, 20)],
    },
    "stdin": {
        "format": "stdin",
        "cases": [{"stdin": f"{a} {b}\n", "stdout": f"{a + b}\n"} for a, b in ((1, 2), (-5, 5), (10**20, 7))],
    },
    "assert": {"format": "assert", "entry_point": "squares", "test": CHECK},
}
_SQUARES = "def squares(n):\n    return [i * i for i in range(n)]\n"
_ZEROS = "def squares(n):\n    return [0] * n\n"
HONEST = {
    "function": _SQUARES,
    "stdin": "a, b = map(int, input().split())\nprint(a + b)\n",
    "assert": _SQUARES,
}
WRONG = {"function": _ZEROS, "stdin": "print(3)\n", "assert": _ZEROS}


ON_VALUES = ("leave_", "forge_", "lie_", "read_", "honest_")
"""How the names of attacks begin for which it matters how values are compared."""


@dataclass(frozen=True, slots=True)
class Attack:
    """A program, judged by the tests of one mode."""

    name: str
    mode: str
    is_right: bool
    code: str


def read_attacks() -> list[Attack]:
    """Return all; those on a function's values come twice, for tests that are data and one that is run."""
    found = tomllib.loads(Path(__file__).with_name("attacks.toml").read_text())["attack"]
    attacks = []
    for one in found:
        mode, is_right = one.get("mode", "function"), one.get("expect") == "correct"
        attacks.append(Attack(one["id"], mode, is_right, one["code"]))
        if mode == "function" and one["id"].startswith(ON_VALUES) and not one.get("not_in_assert"):
            attacks.append(Attack(f"{one['id']} (assert)", "assert", is_right, one["code"]))
    return attacks
