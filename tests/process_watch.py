"""Which processes are alive, for tests that kill some; Linux only."""

from __future__ import annotations

import time
from pathlib import Path


def is_alive(process_id: int) -> bool:
    """Say whether a process runs; one that is dead and not yet waited for does not."""
    try:
        stat = Path(f"/proc/{process_id}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def is_gone_within(process_id: int, seconds: float) -> bool:
    """Wait for a process to end, at most so long; say whether it has."""
    deadline = time.monotonic() + seconds
    while is_alive(process_id) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not is_alive(process_id)


def processes_in(folder: Path) -> dict[int, str]:
    """Return the live processes whose working directory is `folder`: number -> command line.

    All processes of a launch have the launcher's working directory.
    """
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "cwd").readlink() == folder and is_alive(int(entry.name)):
                found[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
        except (FileNotFoundError, PermissionError, ProcessLookupError):
            continue  # it has ended meanwhile, or is another user's
    return found
