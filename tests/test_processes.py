"""Processes end with their parent, and whole."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from process_watch import is_alive, is_gone_within

from rest_em.processes import LAUNCHER_VARIABLES, kill_group, usable_cores

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")

PARENT = """
import os, subprocess, sys
command = [sys.executable, "-c", sys.argv[1], str(os.getpid())]
child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
print(child.pid, child.stdout.readline().strip(), flush=True)
sys.stdin.read()
"""
CHILD = """
import signal, sys, time
from rest_em.processes import die_with_parent
die_with_parent(signal.SIGKILL, int(sys.argv[1]))
print("tied", flush=True)
time.sleep(60)
"""
LEAVING_PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
"""
STAYING_PARENT = LEAVING_PARENT + "time.sleep(60)"


def test_a_child_dies_with_a_parent_that_is_killed() -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    child, said = parent.stdout.readline().split()
    assert said == "tied"
    assert is_alive(int(child))
    parent.kill()
    parent.communicate()
    assert is_gone_within(int(child), 2.0)


def test_a_child_whose_parent_died_before_it_looked_dies_at_once() -> None:
    child = subprocess.run(
        [sys.executable, "-c", CHILD, "1"], stdout=subprocess.PIPE, timeout=30, check=False
    )
    assert child.returncode == -signal.SIGKILL
    assert child.stdout == b""


@pytest.mark.parametrize(
    ("variable", "stays"), [("ACCELERATE_MIXED_PRECISION", False), ("ACCELERATE_LOG_LEVEL", True)]
)
def test_only_a_launched_process_leaves_with_its_parent(variable: str, stays: bool, tmp_path: Path) -> None:
    unlaunched = {key: value for key, value in os.environ.items() if key not in LAUNCHER_VARIABLES}
    ended = tmp_path / "ended"
    child = (
        "import os, time; from rest_em.processes import die_with_launcher; parent = os.getppid()\n"
        "die_with_launcher(); print('tied', flush=True)\n"
        "while os.getppid() == parent: time.sleep(0.01)\n"
        f"time.sleep(0.2); open({str(ended)!r}, 'w')"
    )
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])",
            child,
        ],
        env=unlaunched | {variable: "no"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == "tied\n"
    parent.kill()
    parent.communicate()  # to the end of the child's output
    assert ended.exists() == stays


def test_a_group_is_killed_whole() -> None:
    leader = subprocess.Popen(
        [sys.executable, "-c", STAYING_PARENT], stdout=subprocess.PIPE, start_new_session=True, bufsize=0
    )
    assert leader.stdout is not None
    grandchild = int(leader.stdout.readline())
    assert is_alive(grandchild)
    kill_group(leader)
    leader.stdout.close()
    assert leader.returncode == -signal.SIGKILL
    assert is_gone_within(grandchild, 2.0)


def test_what_is_left_of_a_group_goes_after_its_leader_has_ended() -> None:
    leader = subprocess.Popen(
        [sys.executable, "-c", LEAVING_PARENT], stdout=subprocess.PIPE, start_new_session=True, bufsize=0
    )
    assert leader.stdout is not None
    grandchild = int(leader.stdout.readline())
    leader.stdout.close()
    assert leader.wait() == 0
    assert is_alive(grandchild)
    kill_group(leader)
    assert is_gone_within(grandchild, 2.0)


def test_usable_cores_are_those_that_this_process_may_use() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)
