"""Makes data/train.jsonl and data/test.jsonl of APPS: introductory problems with tests, and a human solution.

    python recipes/apps/make_problems.py FOLDER

FOLDER has train.jsonl and test.jsonl of codeparrot/apps on the hub. The paper counts 2,342 for training.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main(folder: Path) -> None:
    """Write both files, and say how many problems each has and lacks."""
    (HERE / "data").mkdir(exist_ok=True)
    for name in ("train", "test"):
        with (folder / f"{name}.jsonl").open(encoding="utf-8") as lines:
            rows = [(number, json.loads(line)) for number, line in enumerate(lines)]
        wanted = [(number, row) for number, row in rows if row["difficulty"] == "introductory"]
        made = [problem_of(f"{name}-{number}", row) for number, row in wanted]
        kept = [row for row in made if row is not None]
        with (HERE / "data" / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in kept)
        print(f"{name}: {len(kept):,} problems; {len(wanted) - len(kept):,} have no test and are left out")


def problem_of(identity: str, row: dict[str, str]) -> dict[str, str | None] | None:
    """Return a row as the recipes read it; None where it has no test."""
    tests, solutions = _loaded(row["input_output"]), _loaded(row["solutions"])
    if not tests or not tests.get("inputs"):
        return None
    return {
        "id": identity,
        "question": row["question"],
        "starter_code": row.get("starter_code") or "",
        "input_output": row["input_output"],
        "solution": solutions[0] if solutions else None,
    }


def _loaded(text: str):
    """Return what a column holds as JSON; None where it is empty or has a number too large to read."""
    try:
        return json.loads(text) if text else None
    except ValueError:
        return None


if __name__ == "__main__":
    main(Path(sys.argv[1]))
