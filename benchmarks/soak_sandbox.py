"""100,000 programs in a row through the sandbox: what they leave behind, and whether every verdict is right.

    python benchmarks/soak_sandbox.py [--programs 100000]

Right, wrong, leaving, forking and littering programs in turn. Printed in tenths: programs a second, this
process's memory and descriptors, and the machine's processes and what lies in /tmp and /dev/shm.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

from rest_em.recipe import RewardSection
from rest_em.rewards.graders import Graders
from rest_em.types import Problem, Solution, Verdict

TESTS = {
    "format": "function",
    "entry_point": "squares",
    "cases": [{"args": [n], "expected": [i * i for i in range(n)]} for n in (0, 1, 3, 20)],
}
RIGHT = "def squares(n):\n    return [i * i for i in range(n)]\n"
PROGRAMS = (
    (RIGHT, True),
    ("def squares(n):\n    return list(range(n))\n", False),
    ("import os\nos._exit(0)\n", False),
    ("import os\nfor _ in range(3):\n    if os.fork() == 0:\n        os.setsid()\n        import time\n        time.sleep(99)\n" + RIGHT, True),
    ("open('/tmp/x', 'w').write('x' * 100000)\nopen('/dev/shm/y', 'w').write('y')\n" + RIGHT, True),
)  # fmt: skip


def state() -> str:
    """Return what this process and the machine hold."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    processes = sum(1 for _ in Path("/proc").glob("[0-9]*"))
    left = sum(1 for folder in ("/tmp", "/dev/shm") for _ in Path(folder).iterdir())
    descriptors = sum(1 for _ in Path("/proc/self/fd").iterdir())
    memory = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    return f"{memory:.0f} MB, {descriptors} descriptors, {processes} processes, {left} entries in /tmp and /dev/shm"


def main() -> None:
    """Judge, and print how it goes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--programs", type=int, default=100_000)
    total = parser.parse_args().programs
    print(f"before: {state()}")
    section = RewardSection(name="unit_tests", allow_code_execution=True, options={"program": "text"})
    problem, num_wrong, started = Problem("p", "", TESTS), 0, time.monotonic()
    with Graders(section, tell=print) as graders:
        submitted = judged = 0
        while judged < total:
            while submitted < total and graders.num_pending < 1_000:
                text = PROGRAMS[submitted % len(PROGRAMS)][0]
                graders.submit(problem, Solution("p", submitted, 0, text, (), "eos"))
                submitted += 1
            for graded in graders.collect(timeout_seconds=1.0):
                is_right = PROGRAMS[graded.solution.index % len(PROGRAMS)][1]
                num_wrong += (graded.verdict is Verdict.CORRECT) != is_right
                judged += 1
                if judged % max(total // 10, 1) == 0:
                    rate = judged / (time.monotonic() - started)
                    print(f"{judged:,}: {rate:.0f}/s, {num_wrong} wrong verdicts; {state()}", flush=True)
    print(f"after: {state()}")


if __name__ == "__main__":
    main()
