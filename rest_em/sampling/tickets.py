"""The next piece of work for whichever rank is free, without a process group: a counter in a TCP store."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import timedelta

PATIENCE = timedelta(days=7)
"""Ranks wait for each other as long as the supervisor lets them; it ends all if one dies."""


def tickets(num_tickets: int) -> Iterator[int]:
    """Yield numbers below `num_tickets`, each on one rank only, ascending on every rank.

    Reads RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT. Rank 0 holds the counter and leaves last.
    """
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield from range(num_tickets)
        return
    from torch.distributed import TCPStore

    store = TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        world_size=world_size,
        is_master=rank == 0,
        timeout=PATIENCE,
        wait_for_workers=False,
    )
    while (ticket := store.add("next", 1) - 1) < num_tickets:
        yield ticket
    store.set(f"left/{rank}", "")
    if rank == 0:
        store.wait([f"left/{other}" for other in range(world_size)])
