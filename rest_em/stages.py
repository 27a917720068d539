"""A stage is a process: one child of every rank of the launch, joined in a group of its own, and it ends.

Rank 0 leads: it alone runs Algorithm 1 and starts stages. The other ranks follow its commands over the
launcher's TCPStore and report how their child ended. Supervisors never touch a device, so what a stage
held, host or GPU memory, the operating system takes back when its processes end. What a stage does is
left to `rest_em.sampling.stage` and `rest_em.training.stage`; this module knows a name and a JSON file.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from rest_em.errors import RunFolderError, RunInterruptedError, StageError
from rest_em.processes import die_with_parent, kill_group, usable_cores
from rest_em.storage import write_json, write_text

if TYPE_CHECKING:
    from torch.distributed import Store

POLL_SECONDS = 0.1
SHARED_FOLDER_SECONDS = 60.0
"""How long a node may take to see a file that rank 0 wrote into the run folder."""
BEAT_SECONDS = 5.0
"""How often a follower shows that it is alive."""
SILENCE_SECONDS = 60.0
"""How long a follower may be silent, e.g. because its node or the network has failed."""
START_SECONDS = 600.0
"""How long it may take until a follower is first heard of."""
LEAVING_SECONDS = 10.0
"""Leaving takes well under a second: so long another signal changes nothing, then it counts again."""
LOG_TAIL_LINES = 15
SPIN_COUNT = "5000"
"""How long OpenMP's threads spin at a barrier before they sleep (GNU's GOMP_SPINCOUNT; a few microseconds).

Not at all: sampling is at half its speed on quiet cores. For ever, the default: graders and other programs
on the same cores make it ten times slower. See docs/sampler.md.
"""
ALLOCATOR = "expandable_segments:True"
"""How torch takes a GPU's memory: in segments that grow, so that less is reserved beyond what is allocated.

A launch file of accelerate cannot carry it. On a processor torch does not look at it.
"""
ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""torch's name for it since 2.9, and the one before."""
EXTENSIONS_VARIABLE = "TORCH_EXTENSIONS_DIR"
"""Where torch puts operators that are compiled on the spot, and finds them again."""
FULL_DISK_BYTES = 2**20
"""So little space is none."""
RANK_VARIABLES = (
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
    "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK", "ROLE_NAME", "ROLE_WORLD_SIZE",
)  # fmt: skip
"""What torch's launcher tells a rank; a stage's own group gets its own."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """Where this process stands in the launch.

    Example:
        Ranks(rank=0, world_size=2, local_rank=0, local_world_size=2, master_addr="node-0", master_port=29500)
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    master_addr: str = "127.0.0.1"
    master_port: int = 0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Ranks:
        """Return what the launcher says; without a launcher, one rank."""
        world_size = int(environment.get("WORLD_SIZE", "1"))
        return cls(
            rank=int(environment.get("RANK", "0")),
            world_size=world_size,
            local_rank=int(environment.get("LOCAL_RANK", "0")),
            local_world_size=int(environment.get("LOCAL_WORLD_SIZE", str(world_size))),
            master_addr=environment.get("MASTER_ADDR", "127.0.0.1"),
            master_port=int(environment.get("MASTER_PORT", "0")),
        )

    @property
    def is_leader(self) -> bool:
        """Whether this rank runs Algorithm 1."""
        return self.rank == 0


@dataclass(frozen=True, slots=True)
class _Command:
    """What the leader tells every rank: start a stage, or, with no name, end the one that runs."""

    stage: str
    spec: str
    log: str
    port: int
    is_over: bool = False
    """Whether the run has ended and followers leave."""


def uses_deepspeed(environment: Mapping[str, str]) -> bool:
    """Say whether the launch file chooses DeepSpeed."""
    return environment.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"


def stage_environment(
    ranks: Ranks, port: int, environment: Mapping[str, str], *, is_training: bool
) -> dict[str, str]:
    """Return the environment of a rank's child.

    The child's group is its own (a fresh port, not the agent's store). DeepSpeed and the launch file's
    precision concern training only: the E-step never generates through a DeepSpeed engine; its choice of
    the CPU holds for both. With one rank and no DeepSpeed there is no group.
    """
    child = {key: value for key, value in environment.items() if not key.startswith("TORCHELASTIC_")}
    if not is_training:
        child = {
            key: value
            for key, value in child.items()
            if not key.startswith("ACCELERATE_") or key == "ACCELERATE_USE_CPU"
        }
    for key in RANK_VARIABLES:
        child.pop(key, None)
    if ranks.world_size > 1 or uses_deepspeed(child):
        child |= {
            "RANK": str(ranks.rank),
            "WORLD_SIZE": str(ranks.world_size),
            "LOCAL_RANK": str(ranks.local_rank),
            "LOCAL_WORLD_SIZE": str(ranks.local_world_size),
            "MASTER_ADDR": ranks.master_addr,
            "MASTER_PORT": str(port),
            "TORCHELASTIC_USE_AGENT_STORE": "False",
        }
    child["OMP_NUM_THREADS"] = str(max(1, usable_cores() // ranks.local_world_size))
    if "OMP_WAIT_POLICY" not in child:
        child.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    if not any(name in child for name in ALLOCATOR_VARIABLES):
        child[ALLOCATOR_VARIABLES[0]] = ALLOCATOR
    child[EXTENSIONS_VARIABLE] = str(extensions_folder(environment))
    child["TOKENIZERS_PARALLELISM"] = "false"
    child["PYTHONUNBUFFERED"] = "1"
    child["REST_EM_PARENT"] = str(os.getpid())
    return child


def extensions_folder(environment: Mapping[str, str]) -> Path:
    """Return where compiled operators of DeepSpeed are: in the Python environment, unless it is said."""
    return Path(environment.get(EXTENSIONS_VARIABLE) or Path(sys.prefix) / "torch_extensions")


def _start(command: _Command, ranks: Ranks) -> subprocess.Popen[bytes]:
    log = Path(f"{command.log}-rank{ranks.rank}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "rest_em", "_stage", command.stage, command.spec],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=stage_environment(ranks, command.port, os.environ, is_training=command.stage == "train"),
            start_new_session=True,
        )


def enter_stage() -> None:
    """Tie a stage's process to its supervisor; the first thing a stage does."""
    parent = os.environ.get("REST_EM_PARENT")
    die_with_parent(signal.SIGKILL, int(parent) if parent else None)


def leave_stage() -> NoReturn:
    """End a stage's process, whose work is done and on disk, without taking the interpreter down.

    gloo's threads may still hold tensors when the interpreter goes, and abort the process then: seen once on
    two DeepSpeed ranks after all was written, with torch 2.13 (pytorch/pytorch#179291).
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


class Supervisor:
    """Rank 0's side: starts a stage on every rank and watches over it.

    Used as a context: leaving it ends what still runs and lets the followers go.
    """

    def __init__(self, ranks: Ranks, folder: Path) -> None:
        """Meet the followers.

        Args:
            folder: the run folder, which every node must share.
        """
        self.ranks = ranks
        self._folder = folder
        self._store = _connect(ranks) if ranks.world_size > 1 else None
        self._num_commands = 0
        self._child: subprocess.Popen[bytes] | None = None
        self._signs = {rank: _Sign(b"", time.monotonic()) for rank in range(1, ranks.world_size)}
        if self._store is not None:
            _show_nonce(self._store, folder)

    def __enter__(self) -> Supervisor:
        """Return itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """End what runs and let the followers go."""
        self._end_stage(is_over=True)

    def run(self, stage: str, spec: Mapping[str, Any], *, label: str, meanwhile: Callable[[], None]) -> None:
        """Run a stage on every rank until all have finished.

        Args:
            stage: what `python -m rest_em _stage` resolves.
            spec: its JSON argument.
            label: names its log and its specification in `logs/`.
            meanwhile: called about ten times a second; what it raises ends the stage.

        Raises:
            StageError: a rank's child failed, or a rank is gone; the others have been killed.
            RunFolderError: a node does not see the run folder.
            RunInterruptedError: a rank was asked to leave.
        """
        log = self._folder / "logs" / label
        write_json(Path(f"{log}.json"), dict(spec))
        waiting = set(range(self.ranks.world_size))
        logs = {rank: _Log.now(Path(f"{log}-rank{rank}.log")) for rank in waiting}
        # Other nodes may have started elsewhere: what they are told is absolute.
        command = _Command(stage, f"{log.resolve()}.json", str(log.resolve()), _free_port(self.ranks))
        try:
            self._tell(command)
            self._child = _start(command, self.ranks)
            while waiting:
                for rank, code in list(self._exit_codes(waiting)):
                    if code != 0:
                        raise StageError(_failure(stage, rank, code, logs[rank]))
                    waiting.remove(rank)
                self._listen()
                meanwhile()
                if waiting:
                    time.sleep(POLL_SECONDS)
        except _store_error() as error:
            raise StageError(f"the launcher is gone, and its store with it ({error})") from error
        finally:
            self._end_stage()

    def _exit_codes(self, ranks: set[int]) -> Iterator[tuple[int, int]]:
        for rank in sorted(ranks):
            if rank == 0:
                code = self._child.poll() if self._child else None
                if code is not None:
                    yield rank, code
            elif self._store is not None:
                key = f"exit/{self._num_commands}/{rank}"
                if self._store.check([key]):
                    yield rank, int(self._store.get(key))

    def _listen(self) -> None:
        """Stop if a follower has said why it leaves, or says nothing any more."""
        for rank, sign in self._signs.items():
            if self._store is None or time.monotonic() - sign.looked < POLL_SECONDS * 10:
                continue
            sign.looked = time.monotonic()
            if self._store.check([f"leaves/{rank}"]):
                kind, message = json.loads(self._store.get(f"leaves/{rank}"))
                raise LEAVING[kind](message)
            beat = self._store.get(f"beat/{rank}") if self._store.check([f"beat/{rank}"]) else b""
            limit = SILENCE_SECONDS if beat else START_SECONDS
            if beat != sign.beat:
                sign.beat, sign.heard = beat, time.monotonic()
            elif time.monotonic() - sign.heard > limit:
                raise StageError(
                    f"rank {rank}: not heard of for {limit:.0f} s; its process or its node is gone. See the "
                    "launcher's output there; the same command goes on from here"
                )

    def _tell(self, command: _Command) -> None:
        self._num_commands += 1
        if self._store is not None:
            text = json.dumps([getattr(command, name) for name in _Command.__slots__])
            self._store.set(f"command/{self._num_commands}", text)

    def _end_stage(self, *, is_over: bool = False) -> None:
        """End what runs of a stage on any rank, and the followers too if the run is over."""
        if self._child is not None:
            kill_group(self._child)
            self._child = None
        try:
            self._tell(_Command("", "", "", 0, is_over=is_over))
        except _store_error():
            # The launcher has taken its store down first; the followers see the same and leave.
            return


def follow(ranks: Ranks) -> None:
    """Do what the leader says until the run is over; the whole life of every rank but 0.

    Raises:
        RunFolderError: this node does not see the leader's run folder.
        StageError: the leader is gone.
    """
    store = _connect(ranks)
    child: subprocess.Popen[bytes] | None = None
    number = 1
    beats = _Beats(store, ranks.rank)
    try:
        _check_nonce(store, beats)
        while True:
            beats.show()
            if store.check([f"command/{number}"]):
                command = _Command(*json.loads(store.get(f"command/{number}")))
                if child is not None:
                    kill_group(child)
                    child = None
                if command.is_over:
                    return
                if command.stage:
                    child = _start(command, ranks)
                number += 1
            if child is not None and child.poll() is not None:
                store.set(f"exit/{number - 1}/{ranks.rank}", str(child.returncode))
                kill_group(child)
                child = None
            time.sleep(POLL_SECONDS)
    except (RunFolderError, RunInterruptedError) as error:
        _say_why(store, ranks.rank, error)
        raise
    except _store_error() as error:
        raise StageError(f"rank {ranks.rank}: rank 0 is gone ({error}); see its output") from error
    finally:
        if child is not None:
            kill_group(child)


LEAVING: dict[str, type[RunFolderError | RunInterruptedError]] = {
    one.__name__: one for one in (RunFolderError, RunInterruptedError)
}
"""Why a follower leaves before the run is over."""


def _say_why(store: Store, rank: int, error: RunFolderError | RunInterruptedError) -> None:
    with suppress(*_store_error()):  # nobody is there to hear it
        store.set(f"leaves/{rank}", json.dumps([type(error).__name__, f"rank {rank}: {error}"]))


@dataclass(slots=True)
class _Sign:
    """A follower's last sign of life."""

    beat: bytes
    heard: float
    """When it changed, by this host's clock."""
    looked: float = 0.0
    """When it was last looked at."""


class _Beats:
    """A follower's signs of life."""

    def __init__(self, store: Store, rank: int) -> None:
        self._store, self._rank = store, rank
        self._shown = 0.0

    def show(self) -> None:
        """Give one if one is due."""
        now = time.monotonic()
        if now - self._shown >= BEAT_SECONDS:
            self._store.set(f"beat/{self._rank}", str(now))
            self._shown = now


def _store_error() -> tuple[type[Exception], ...]:
    """Return what a store raises when its host is gone; nothing where there is no store."""
    if "torch" not in sys.modules:
        return ()
    from torch.distributed import DistError

    return (DistError,)


def _connect(ranks: Ranks) -> Store:
    from torch.distributed import PrefixStore, TCPStore

    has_agent_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = TCPStore(
        ranks.master_addr,
        ranks.master_port,
        ranks.world_size,
        is_master=ranks.is_leader and not has_agent_store,
        wait_for_workers=False,
    )
    return PrefixStore("rest_em", store)


def _show_nonce(store: Store, folder: Path) -> None:
    nonce = secrets.token_hex(8)
    path = folder.resolve() / ".nonce"
    write_text(path, nonce)
    store.set("nonce", json.dumps([str(path), nonce]))


def _check_nonce(store: Store, beats: _Beats) -> None:
    while not store.check(["nonce"]):  # unlike get, this lets signals through
        beats.show()
        time.sleep(POLL_SECONDS)
    path, nonce = json.loads(store.get("nonce"))
    deadline = time.monotonic() + SHARED_FOLDER_SECONDS
    found = "something else is there"
    while True:
        try:
            if Path(path).read_text(encoding="utf-8") == nonce:
                return
        except OSError as error:  # a shared folder may show a new file late
            found = str(error.strerror)
        beats.show()
        if time.monotonic() > deadline:
            raise RunFolderError(
                f"{Path(path).parent}: not shared with the node {socket.gethostname()}, which did not see "
                f"rank 0's file {path} within {SHARED_FOLDER_SECONDS:.0f} s ({found}); put the run folder on "
                "a file system that all nodes mount at the same path"
            )
        time.sleep(POLL_SECONDS)


def _free_port(ranks: Ranks) -> int:
    if ranks.world_size == 1 and not uses_deepspeed(os.environ):
        return 0
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(frozen=True, slots=True)
class _Log:
    """What a process is about to append to a log that may hold earlier attempts."""

    path: Path
    start_bytes: int

    @classmethod
    def now(cls, path: Path) -> _Log:
        """Return what comes after all that is there."""
        return cls(path, path.stat().st_size if path.exists() else 0)

    def last_lines(self) -> list[str]:
        """Return at most `LOG_TAIL_LINES` lines of this attempt."""
        content = self.path.read_bytes()[self.start_bytes :] if self.path.exists() else b""
        return content.decode("utf-8", errors="replace").splitlines()[-LOG_TAIL_LINES:]


def _failure(stage: str, rank: int, code: int, log: _Log) -> str:
    ended = f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
    hint = "; out of memory?" if code == -signal.SIGKILL else ""
    if shutil.disk_usage(log.path.parent).free < FULL_DISK_BYTES:
        hint += "; the disk is full"
    tail = "\n".join(f"  | {line}" for line in log.last_lines()) or "  | (nothing)"
    return f"{log.path}: stage {stage} failed on rank {rank} ({ended}{hint}); the end of its log:\n{tail}"


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn SIGTERM, SIGINT and SIGHUP into `RunInterruptedError`; one ignored already (nohup) stays so."""
    left_at = -LEAVING_SECONDS

    def leave(number: int, _frame: FrameType | None) -> None:
        nonlocal left_at
        if time.monotonic() - left_at < LEAVING_SECONDS:
            os.write(2, b"leaving already\n")  # print is not safe here
            return
        left_at = time.monotonic()
        raise RunInterruptedError(
            f"interrupted by {signal.Signals(number).name}; the same command goes on from here"
        )

    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {
        one: signal.signal(one, leave) for one in signals if signal.getsignal(one) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
