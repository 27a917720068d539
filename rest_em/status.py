"""What becomes of a run, in `status.json`, and what people are told of an error.

Left out: the ledger, which is the truth of what is done.
"""

from __future__ import annotations

import errno
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from rest_em.errors import RecipeChangedError, RestEMError, RunInterruptedError
from rest_em.ledger import Ledger, as_killed, read_status, write_status
from rest_em.storage import write_text

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def message_of(error: BaseException) -> str | None:
    """Return what a user is told of an error; None for a bug of ours, which keeps its traceback."""
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return f"{error}; make room on the disk of the run's folder, and the same command goes on from here"
    return str(error) if isinstance(error, RestEMError | RunInterruptedError) else None


@dataclass(slots=True)
class Work:
    """What a run does in its folder."""

    has_begun: bool = False


@contextmanager
def status_of(folder: Path) -> Iterator[Work]:
    """Keep `status.json` true to what becomes of the run.

    Where a recipe is refused before anything is done, it goes on to tell of the run that is there.
    """
    paths = [folder / "status.json", folder / "recipe.yaml"]
    if paths[0].exists() and read_status(folder)["state"] == "running":  # by a process that is gone
        write_status(folder, **as_killed(read_status(folder)))
    before = {path: path.read_text(encoding="utf-8") for path in paths if path.exists()}
    records = Ledger(folder).records
    write_status(folder, "running", f"process {os.getpid()}")
    work = Work()
    try:
        yield work
    except BaseException as error:
        state = "interrupted" if isinstance(error, RunInterruptedError) else "failed"
        is_refused = not work.has_begun or (
            isinstance(error, RecipeChangedError) and records == Ledger(folder).records
        )
        with suppress(OSError):  # what has happened is told before that there is no room to write it down
            if not (before and is_refused):
                write_status(folder, state, message_of(error) or traceback.format_exc())
            else:
                for path, text in before.items():
                    write_text(path, text)
        raise
    write_status(folder, "finished")
