"""Sequences of hostile and honest programs through `rest_em score`: verdicts, and what is left behind.

    python benchmarks/sequences_sandbox.py [--attacks FILE] [--runs 5] [--hogs 24] [--only NAME]

The attacks are those of tests/attacks.toml, or of a FILE of lines {"id", "mode", "expect", "code"} for the
same tasks: mode `F` (function) or `S` (stdin); expect `pass` or `fail`. What each sequence asks is in its
docstring. Root runs it, and an ordinary user; exit status 1 where one does not hold.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.attacks import HONEST, TESTS, WRONG, Attack, read_attacks

HOGS = (
    "import threading\ndef spin():\n    while True:\n        pass\n"
    "for _ in range(64):\n    threading.Thread(target=spin).start()\n",
    "held = []\nwhile True:\n    held.append(bytearray(10**7))\n",
    "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass\n",
    "import os\nwhile True:\n    os.write(1, b'x' * 10**6)\n",
    "while True:\n    pass\n",
)
TIMEOUT = "3"
Rows = Sequence[tuple[str, str]]
"""Solutions: a mode and a program."""


def command(folder: Path, name: str, workers: int, *more: str) -> list[str]:
    """Return the command that judges a folder's solutions."""
    return [
        sys.executable, "-m", "rest_em", "score", "--problems", f"{folder}/problems.jsonl",
        "--solutions", f"{folder}/{name}.jsonl", "--output", f"{folder}/{name}.out.jsonl",
        "--reward", "unit_tests", "--set", "reward.options.program=text", "--timeout", TIMEOUT,
        "--workers", str(workers), "--json", *more,
    ]  # fmt: skip


def write(folder: Path, name: str, rows: Rows) -> None:
    """Write problems and solutions."""
    problems = [json.dumps({"id": mode, "tests": tests}) for mode, tests in TESTS.items()]
    (folder / "problems.jsonl").write_text("\n".join(problems) + "\n")
    lines = [json.dumps({"problem_id": mode, "completion": code}) for mode, code in rows]
    (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


def read(folder: Path, name: str) -> list[dict[str, Any]]:
    """Return the verdicts' lines."""
    return [json.loads(line) for line in (folder / f"{name}.out.jsonl").read_text().splitlines()]


def judge(rows: Rows, workers: int = 2) -> list[dict[str, Any]]:
    """Judge solutions in a folder of their own."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        write(folder, "one", rows)
        with (folder / "errors").open("w") as errors:
            running = subprocess.Popen(
                command(folder, "one", workers), stdout=subprocess.DEVNULL, stderr=errors
            )
            while running.poll() is None:
                note_memory()
                time.sleep(0.1)
        if running.returncode:
            raise SystemExit(
                f"rest_em score left with {running.returncode}: {(folder / 'errors').read_text()[-2000:]}"
            )
        return read(folder, "one")


peaks: dict[str, int] = {}
"""The peak resident megabytes of each process of the command and its graders, by process id."""


def note_memory() -> None:
    """Look at the processes of rest_em that are on the trusted side."""
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            told = (path / "cmdline").read_bytes().split(b"\0")
            if b"rest_em.rewards.worker" in told or (b"rest_em" in told and b"score" in told):
                fields = dict(line.split(":", 1) for line in (path / "status").read_text().splitlines())
                if "VmHWM" in fields:
                    peaks[path.name] = int(fields["VmHWM"].split()[0]) // 1024


class Failures:
    """What did not hold."""

    def __init__(self) -> None:
        """None yet."""
        self.told: list[str] = []

    def check(self, holds: bool, what: str) -> None:
        """Keep and print what does not hold."""
        if not holds:
            self.told.append(what)
            print(f"    FAILED: {what}", flush=True)


def state() -> dict[str, Any]:
    """Return what the machine holds."""
    processes = {path.name for path in Path("/proc").glob("[0-9]*")}
    namespaces = set()
    for process in processes:
        for kind in ("user", "pid", "mnt", "net", "ipc"):
            with contextlib.suppress(OSError):
                namespaces.add(Path(f"/proc/{process}/ns/{kind}").readlink())
    return {
        "processes of sandboxes": sum(map(is_of_a_sandbox, processes)),
        "namespaces": len(namespaces),
        "/tmp": sorted(one.name for one in Path("/tmp").iterdir()),
        "/dev/shm": sorted(one.name for one in Path("/dev/shm").iterdir()),
        "shared memory": len(Path("/proc/sysvipc/shm").read_text().splitlines()),
    }


def is_of_a_sandbox(process: str) -> bool:
    """Say whether a process is one of a sandbox's servers or programs."""
    try:
        return b"rest_em.rewards.sandbox.server" in Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return False


def poisoners(attacks: list[Attack], failures: Failures) -> None:
    """After each attack, in its sandbox, an honest program passes, a wrong one does not; nothing is left."""
    rows = [
        (attack.mode, code)
        for attack in attacks
        for code in (attack.code, HONEST[attack.mode], WRONG[attack.mode])
    ]
    before = state()
    found = judge(rows, 1)
    time.sleep(0.5)
    after = state()
    for place, attack in enumerate(attacks):
        three = found[3 * place : 3 * place + 3]
        wanted = [verdict_of(attack), "correct", "incorrect"]
        told = [one["verdict"] for one in three]
        failures.check(told == wanted, f"{attack.name}: {told}, {[one['reason'] for one in three]}")
        seconds = [one["seconds"] for one in three]
        failures.check(seconds[0] < float(TIMEOUT) + 3, f"{attack.name}: {seconds[0]:.1f} s")
    failures.check(before == after, f"left behind: {before} -> {after}")
    peak = max(peaks.values())
    failures.check(peak < 200, f"a process of rest_em's had {peak} MB")
    slowest = max(found, key=lambda one: one["seconds"])
    print(f"    {len(found)} programs; the slowest {slowest['seconds']:.1f} s; peak memory {peak} MB")


def many_callers(failures: Failures) -> None:
    """1,000 honest programs from 16 callers are 1,000 times correct."""
    found = judge([(mode, HONEST[mode]) for mode in ("function", "stdin")] * 500, 16)
    num_correct = sum(one["verdict"] == "correct" for one in found)
    failures.check(num_correct == 1000, f"{num_correct} of 1000")


def beside_hogs(failures: Failures) -> None:
    """Honest programs pass, and wrong ones do not, while others take all that they can get."""
    rows = [row for hog in HOGS for row in (("function", hog), *[("function", HONEST["function"])] * 5)]
    rows += [("function", WRONG["function"])] * 5
    found = judge(rows, 4)
    for (_, code), one in zip(rows, found, strict=True):
        wanted = "correct" if code == HONEST["function"] else "incorrect"
        failures.check(one["verdict"] == wanted, f"{code[:40]!r}: {one}")


def killed(failures: Failures) -> None:
    """SIGKILL of the command in mid-batch leaves no process 2 s later; started again, it judges the rest."""
    rows = [
        ("function", HONEST["function"]),
        ("function", "import time\ntime.sleep(1)\n" + HONEST["function"]),
    ] * 20
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        write(folder, "one", rows)
        started = subprocess.Popen(
            command(folder, "one", 4), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while not any(is_of_a_sandbox(path.name) for path in Path("/proc").glob("[0-9]*")):
            time.sleep(0.01)
        time.sleep(3)
        started.send_signal(signal.SIGKILL)
        started.wait()
        time.sleep(2)
        left = state()["processes of sandboxes"]
        failures.check(left == 0, f"{left} processes are left 2 s after the kill")
        done = subprocess.run(command(folder, "one", 4), capture_output=True, text=True, check=False)
        failures.check(done.returncode == 0, f"started again it left with {done.returncode}")
        verdicts = [one["verdict"] for one in read(folder, "one")]
        failures.check(verdicts == ["correct"] * 40, f"started again: {verdicts}")


WITHOUT_NAMESPACES = """
import os, sys
from rest_em.rewards.sandbox import kernel
kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
kernel.Filter(allows_processes=True, denied=["unshare"]).set()
os.execv(sys.argv[1], sys.argv[1:])
"""


def missing_layer(failures: Failures) -> None:
    """Where the host refuses namespaces nothing runs, and that is told; allowed, verdicts are right."""
    rows = [("function", HONEST["function"]), ("function", WRONG["function"]), ("stdin", HONEST["stdin"])]
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        write(folder, "one", rows)
        for more in ((), ("--set", "reward.allow_weaker_isolation=true")):
            done = subprocess.run(
                [sys.executable, "-c", WITHOUT_NAMESPACES, *command(folder, "one", 1, *more)],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            told = "namespace" in done.stderr
            failures.check(told, f"the missing layer is not told: {done.stderr[-500:]}")
            if not more:
                failures.check(done.returncode != 0, "it ran without being allowed to")
        verdicts = [one["verdict"] for one in read(folder, "one")]
        failures.check(verdicts == ["correct", "incorrect", "correct"], f"allowed: {verdicts}")


def zero_tests(failures: Failures) -> None:
    """A problem without a test is never passed."""
    empty: list[dict[str, Any]] = [
        {"format": "function", "entry_point": "squares", "cases": []},
        {"format": "stdin", "cases": []},
        {"format": "assert", "entry_point": "squares", "test": ""},
        {"format": "assert", "entry_point": "squares", "test": "def check(candidate):\n    pass\n"},
        {"format": "assert", "entry_point": "squares", "test": "for n in []:\n    assert squares(n)\n"},
        {},
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        write(folder, "one", [("function", HONEST["function"])])
        problems = [{"id": str(place), "tests": tests} for place, tests in enumerate(empty)]
        problems.append({"id": "good", "tests": TESTS["function"]})
        (folder / "problems.jsonl").write_text("".join(json.dumps(one) + "\n" for one in problems))
        lines = [{"problem_id": one["id"], "completion": HONEST["function"]} for one in problems]
        (folder / "one.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
        subprocess.run(command(folder, "one", 1), capture_output=True, check=False)
        verdicts = [one["verdict"] for one in read(folder, "one")]
        failures.check(verdicts == ["unscorable"] * len(empty) + ["correct"], f"without tests: {verdicts}")


@contextlib.contextmanager
def hogs(number: int) -> Iterator[None]:
    """Have this many processes take the processors meanwhile."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for one in running:
            one.kill()
            one.wait()


def again(attacks: list[Attack], runs: int, num_hogs: int, failures: Failures) -> None:
    """Verdicts are the same in run after run, and beside processes of others that take the processors."""
    rows = [(attack.mode, attack.code) for attack in attacks]
    wanted = [verdict_of(attack) for attack in attacks]
    for number in range(runs):
        verdicts = [one["verdict"] for one in judge(rows)]
        failures.check(verdicts == wanted, f"run {number + 1}: {differing(attacks, verdicts)}")
    with hogs(num_hogs):
        verdicts = [one["verdict"] for one in judge(rows)]
    failures.check(verdicts == wanted, f"beside {num_hogs} hogs: {differing(attacks, verdicts)}")


def differing(attacks: list[Attack], verdicts: list[str]) -> list[tuple[str, str]]:
    """Return the attacks whose verdict is not the expected one."""
    return [
        (attack.name, found)
        for attack, found in zip(attacks, verdicts, strict=True)
        if found != verdict_of(attack)
    ]


def verdict_of(attack: Attack) -> str:
    """Return the verdict that an attack deserves."""
    return "correct" if attack.is_right else "incorrect"


def read_lines(path: Path) -> list[Attack]:
    """Return the attacks of a file of JSON lines."""
    modes = {"F": "function", "S": "stdin"}
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [Attack(one["id"], modes[one["mode"]], one["expect"] == "pass", one["code"]) for one in found]


def main() -> None:
    """Run the sequences and print what does not hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--attacks", type=Path, metavar="FILE")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--hogs", type=int, default=24)
    parser.add_argument("--only", help="the name of one sequence")
    arguments = parser.parse_args()
    attacks = read_lines(arguments.attacks) if arguments.attacks else read_attacks()
    sequences: list[tuple[Callable[..., None], tuple[Any, ...]]] = [
        (poisoners, (attacks,)), (many_callers, ()), (beside_hogs, ()), (killed, ()), (missing_layer, ()),
        (zero_tests, ()), (again, (attacks, arguments.runs, arguments.hogs)),
    ]  # fmt: skip
    failures = Failures()
    print(f"{len(attacks)} attacks, as user {os.getuid()}")
    for sequence, inputs in sequences:
        if arguments.only in (None, sequence.__name__):
            started = time.monotonic()
            print(f"{sequence.__name__}: {sequence.__doc__}", flush=True)
            sequence(*inputs, failures)
            print(f"    {time.monotonic() - started:.0f} s", flush=True)
    print(f"{len(failures.told)} failures")
    sys.exit(bool(failures.told))


if __name__ == "__main__":
    main()
