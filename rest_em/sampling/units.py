"""Work units: which solutions are decoded and committed together.

Fixed by the request alone, never by the number of ranks or free memory. bfloat16 results change with the
shape of a batch, so it is the unit, not the single solution, that comes out the same when drawn again.
"""

from __future__ import annotations

import math
from pathlib import Path

Unit = tuple[tuple[int, range], ...]
"""Problem positions in the request, each with the indices of its samples in this unit."""


def plan_units(num_problems: int, num_samples: int, unit_size: int) -> list[Unit]:
    """Return contiguous units of at most `unit_size` solutions, in order.

    A problem's samples stay together where they fit into a unit; else they are split evenly.

    >>> plan_units(num_problems=3, num_samples=2, unit_size=4)
    [((0, range(0, 2)), (1, range(0, 2))), ((2, range(0, 2)),)]
    >>> plan_units(num_problems=1, num_samples=5, unit_size=3)
    [((0, range(0, 3)),), ((0, range(3, 5)),)]
    """
    if num_samples <= unit_size:
        step = unit_size // num_samples
        return [
            tuple(
                (position, range(num_samples)) for position in range(start, min(start + step, num_problems))
            )
            for start in range(0, num_problems, step)
        ]
    step = math.ceil(num_samples / math.ceil(num_samples / unit_size))
    return [
        ((position, range(start, min(start + step, num_samples))),)
        for position in range(num_problems)
        for start in range(0, num_samples, step)
    ]


def unit_path(folder: Path, number: int) -> Path:
    """Return where the solutions of a draw's unit lie, below the folder of its samples."""
    return folder / "units" / f"{number:05d}.parquet"
