"""A stage runs on every rank, ends whole, and says why it failed."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from process_watch import is_gone_within

from rest_em import stages
from rest_em.errors import RunFolderError, RunInterruptedError, StageError
from rest_em.processes import usable_cores
from rest_em.stages import Ranks, Supervisor, interruptible, stage_environment

REPOSITORY = Path(__file__).parents[1]
LAUNCHED = {
    "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0",
    "ROLE_NAME": "default", "ROLE_RANK": "1", "ROLE_WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "1",
    "MASTER_ADDR": "node-0", "MASTER_PORT": "29500",
    "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RUN_ID": "none",
    "ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_MIXED_PRECISION": "bf16",
    "OMP_NUM_THREADS": "1", "PATH": "/bin",
}  # fmt: skip
"""What `accelerate launch` gives rank 1 of 2."""

FOLLOWER = """
import os, sys
from rest_em import stages
from rest_em.errors import RestEMError, RunInterruptedError
stages.SHARED_FOLDER_SECONDS = stages.BEAT_SECONDS = 0.2
os.chdir(sys.argv[2])
try:
    with stages.interruptible():
        stages.follow(stages.Ranks(1, 2, 1, 2, "127.0.0.1", int(sys.argv[1])))
except (RestEMError, RunInterruptedError) as error:
    print(type(error).__name__, error)
"""


def do_nothing() -> None:
    """Wait for a stage without doing anything else."""


def ranks_of_two() -> Ranks:
    """Return rank 0 of two on this host, with a port of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return Ranks(0, 2, 0, 2, "127.0.0.1", probe.getsockname()[1])


@contextlib.contextmanager
def follower(ranks: Ranks, cwd: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    """Run rank 1 in a directory, None being the working directory; it prints why it leaves."""
    process = subprocess.Popen(
        [sys.executable, "-c", FOLLOWER, str(ranks.master_port), str(cwd or Path.cwd())],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def fake_stage(folder: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    """Have `python -m rest_em`, started in the working directory, be this program."""
    package = folder / "fake" / "rest_em"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(f"import json, os, sys, time\n{source}")
    monkeypatch.chdir(package.parent)


def test_ranks_are_what_the_launcher_says() -> None:
    assert Ranks.from_environment(LAUNCHED) == Ranks(1, 2, 1, 2, "node-0", 29500)
    assert Ranks.from_environment({}) == Ranks()
    assert Ranks().is_leader


def test_a_sampling_stage_gets_a_group_of_its_own_and_nothing_of_accelerate() -> None:
    child = stage_environment(Ranks.from_environment(LAUNCHED), 4711, LAUNCHED, is_training=False)
    assert child == {
        "PATH": "/bin", "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "node-0", "MASTER_PORT": "4711", "TORCHELASTIC_USE_AGENT_STORE": "False",
        "OMP_NUM_THREADS": str(max(1, usable_cores() // 2)), "TOKENIZERS_PARALLELISM": "false",
        "GOMP_SPINCOUNT": "5000", "PYTHONUNBUFFERED": "1", "REST_EM_PARENT": str(os.getpid()),
        "PYTORCH_ALLOC_CONF": "expandable_segments:True",
        "TORCH_EXTENSIONS_DIR": f"{sys.prefix}/torch_extensions",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_a_stage_keeps_the_users_allocator(name: str) -> None:
    child = stage_environment(Ranks(), 0, {name: "backend:cudaMallocAsync"}, is_training=True)
    assert {key: value for key, value in child.items() if key.endswith("ALLOC_CONF")} == {
        name: "backend:cudaMallocAsync"
    }


def test_a_sampling_stage_keeps_the_launch_files_choice_of_the_cpu() -> None:
    launched = {"ACCELERATE_USE_CPU": "true", "ACCELERATE_MIXED_PRECISION": "bf16"}
    child = stage_environment(Ranks(), 0, launched, is_training=False)
    assert child["ACCELERATE_USE_CPU"] == "true"
    assert "ACCELERATE_MIXED_PRECISION" not in child


def test_a_training_stage_keeps_the_launch_files_choice_of_deepspeed() -> None:
    child = stage_environment(Ranks.from_environment(LAUNCHED), 4711, LAUNCHED, is_training=True)
    assert child["ACCELERATE_USE_DEEPSPEED"] == "true"
    assert not [key for key in child if key.startswith("TORCHELASTIC_") and child[key] != "False"]


def test_one_rank_has_no_group_unless_deepspeed_wants_one() -> None:
    alone = stage_environment(Ranks(), 0, {"RANK": "0", "WORLD_SIZE": "1"}, is_training=True)
    assert "RANK" not in alone
    assert "MASTER_PORT" not in alone
    zero = stage_environment(Ranks(), 4711, {"ACCELERATE_USE_DEEPSPEED": "true"}, is_training=True)
    assert (zero["RANK"], zero["WORLD_SIZE"], zero["MASTER_PORT"]) == ("0", "1", "4711")


def test_a_stage_gets_its_specification_and_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_stage(tmp_path, monkeypatch, "print(sys.argv[1:], json.load(open(sys.argv[3])))")
    with Supervisor(Ranks(), tmp_path) as supervisor:
        supervisor.run("sample", {"a": 1}, label="iteration-01-sample", meanwhile=do_nothing)
    spec = tmp_path / "logs" / "iteration-01-sample.json"
    log = tmp_path / "logs" / "iteration-01-sample-rank0.log"
    assert log.read_text() == f"['_stage', 'sample', '{spec}'] {{'a': 1}}\n"


def test_a_stage_that_fails_is_told_with_the_end_of_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_stage(tmp_path, monkeypatch, "print(*range(40), sep='\\n'); sys.exit(3)")
    with (
        Supervisor(Ranks(), tmp_path) as supervisor,
        pytest.raises(StageError) as caught,
    ):
        supervisor.run("train", {}, label="t", meanwhile=do_nothing)
    first, *tail = str(caught.value).splitlines()
    log = tmp_path / "logs" / "t-rank0.log"
    assert first == f"{log}: stage train failed on rank 0 (exit code 3); the end of its log:"
    assert tail == [f"  | {line}" for line in range(25, 40)]


def test_a_stage_that_is_killed_is_told_with_the_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_stage(tmp_path, monkeypatch, "os.kill(os.getpid(), 9)")
    with (
        Supervisor(Ranks(), tmp_path) as supervisor,
        pytest.raises(StageError, match=r"failed on rank 0 \(killed by SIGKILL; out of memory\?\)"),
    ):
        supervisor.run("train", {}, label="t", meanwhile=do_nothing)


def test_what_meanwhile_raises_ends_the_stage_and_all_that_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = """
import subprocess
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open(sys.argv[3] + ".pids", "w").write(f"{os.getpid()} {child.pid}\\n")
time.sleep(60)
"""
    fake_stage(tmp_path, monkeypatch, source)
    pids = tmp_path / "logs" / "t.json.pids"

    def leave() -> None:
        if pids.exists() and pids.read_text().endswith("\n"):
            raise RunInterruptedError("enough")

    with Supervisor(Ranks(), tmp_path) as supervisor, pytest.raises(RunInterruptedError):
        supervisor.run("train", {}, label="t", meanwhile=leave)
    assert all(is_gone_within(int(number), 2.0) for number in pids.read_text().split())


def test_a_stage_whose_supervisor_is_gone_before_it_starts_ends() -> None:
    program = "from rest_em.stages import enter_stage; enter_stage(); print('still here')"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "REST_EM_PARENT": "1"},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    assert done.stdout == b""


def signal_self(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)
    time.sleep(10)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_becomes_an_error_that_says_so(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    message = f"interrupted by {number.name}; the same command"
    with pytest.raises(RunInterruptedError, match=message), interruptible():
        signal_self(number)
    assert signal.getsignal(number) is before


def test_no_library_swallows_a_signal_on_its_way() -> None:
    with pytest.raises(RunInterruptedError), interruptible(), contextlib.suppress(Exception):
        signal_self(signal.SIGTERM)


def test_a_second_signal_does_not_disturb_the_leaving_and_a_later_one_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with interruptible():
        with pytest.raises(RunInterruptedError):
            signal_self(signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGHUP)
        monkeypatch.setattr(stages, "LEAVING_SECONDS", 0.0)
        with pytest.raises(RunInterruptedError):
            signal_self(signal.SIGTERM)


def test_a_signal_that_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptible():
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.01)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_end_of_a_log_is_that_of_the_last_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_stage(tmp_path, monkeypatch, "")
    with Supervisor(Ranks(), tmp_path) as supervisor:
        for source in ("print('first'); sys.exit(3)", "os.kill(os.getpid(), 9)"):
            (Path.cwd() / "rest_em" / "__main__.py").write_text(f"import os, sys\n{source}")
            with pytest.raises(StageError) as caught:
                supervisor.run("train", {}, label="t", meanwhile=do_nothing)
    assert str(caught.value).endswith("the end of its log:\n  | (nothing)")


def test_a_rank_may_have_been_started_in_another_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_stage(tmp_path, monkeypatch, "open(json.load(open(sys.argv[3]))['mark'] + os.environ['RANK'], 'w')")
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree("rest_em", elsewhere / "rest_em")
    ranks = ranks_of_two()
    with Supervisor(ranks, Path("runs/name")) as supervisor, follower(ranks, cwd=elsewhere):
        supervisor.run("sample", {"mark": str(tmp_path / "mark")}, label="a", meanwhile=do_nothing)
    assert sorted(path.name for path in tmp_path.glob("mark*")) == ["mark0", "mark1"]
    assert sorted(path.name for path in Path("runs/name/logs").glob("*.log")) == [
        "a-rank0.log",
        "a-rank1.log",
    ]


def test_every_rank_runs_the_stage_and_a_failure_on_one_ends_it_on_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = """
spec = json.load(open(sys.argv[3]))
rank = os.environ["RANK"]
open(spec["marks"] + rank, "a").write(os.environ["MASTER_PORT"] + " ")
if spec["fails"] and rank == "1":
    sys.exit("no luck")
time.sleep(60 * spec["fails"])
"""
    fake_stage(tmp_path, monkeypatch, source)
    ranks = ranks_of_two()
    marks = tmp_path / "mark"
    with Supervisor(ranks, tmp_path) as supervisor, follower(ranks) as process:
        supervisor.run("sample", {"marks": str(marks), "fails": 0}, label="a", meanwhile=do_nothing)
        with pytest.raises(StageError) as caught:
            supervisor.run("sample", {"marks": str(marks), "fails": 1}, label="b", meanwhile=do_nothing)
        assert "b-rank1.log: stage sample failed on rank 1 (exit code 1)" in str(caught.value)
        assert str(caught.value).endswith("  | no luck")
        supervisor.run("sample", {"marks": str(marks), "fails": 0}, label="c", meanwhile=do_nothing)
        ports = [Path(f"{marks}{rank}").read_text().split() for rank in (0, 1)]
        assert ports[0] == ports[1]
        assert len(set(ports[0])) == 3
        process.send_signal(signal.SIGTERM)
        with pytest.raises(RunInterruptedError, match="rank 1: interrupted by SIGTERM"):
            supervisor.run("sample", {"marks": str(marks), "fails": 1}, label="d", meanwhile=do_nothing)
        assert process.communicate(timeout=10)[0].startswith("RunInterruptedError")


def test_a_node_that_does_not_see_the_run_folder_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_stage(tmp_path, monkeypatch, "time.sleep(60)")
    ranks = ranks_of_two()
    with Supervisor(ranks, tmp_path) as supervisor:
        (tmp_path / ".nonce").unlink()  # as on a node that has a folder of its own there
        with follower(ranks) as process:
            with pytest.raises(RunFolderError) as caught:
                supervisor.run("sample", {}, label="a", meanwhile=do_nothing)
            said = process.communicate(timeout=10)[0]
    assert f"{tmp_path}: not shared with the node {socket.gethostname()}" in str(caught.value)
    assert "file system that all nodes mount at the same path" in str(caught.value)
    assert said.startswith("RunFolderError")


def test_a_rank_that_is_silent_ends_the_run_and_one_whose_leader_is_gone_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_stage(tmp_path, monkeypatch, "time.sleep(60)")
    monkeypatch.setattr(stages, "SILENCE_SECONDS", 2.0)
    ranks = ranks_of_two()
    supervisor = Supervisor(ranks, tmp_path)
    with follower(ranks) as process:
        log = tmp_path / "logs" / "a-rank1.log"

        def stop_it() -> None:
            if log.exists():
                process.send_signal(signal.SIGSTOP)

        with pytest.raises(StageError, match="rank 1: not heard of for 2 s"):
            supervisor.run("sample", {}, label="a", meanwhile=stop_it)
        supervisor._store = None  # the store goes with it, as when the leader's host dies
        process.send_signal(signal.SIGCONT)
        said = process.communicate(timeout=20)[0]
    assert said.startswith("StageError rank 1: rank 0 is gone")
