"""One adversarial test a promise of docs/sandbox.md, in the order of that page's table."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rest_em.rewards.sandbox.client import Finished, Sandbox
from rest_em.rewards.sandbox.isolation import Limits
from rest_em.rewards.sandbox.probe import layers, probe
from rest_em.rewards.unit_tests import UnitTests
from rest_em.types import Outcome, Problem, Solution
from tests.process_watch import is_gone_within

LIMITS = Limits(cpu_seconds=2.0, wall_seconds=3.0, memory_bytes=2**29)
SECRET = "only-the-tests-know-7f3a91"


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as started:
        yield started


@pytest.fixture(scope="module")
def reward() -> Iterator[UnitTests]:
    judge = UnitTests(cpu_seconds=2.0, program="text")
    yield judge
    judge.close()


def _script(sandbox: Sandbox, program: str, limits: Limits = LIMITS, given: bytes = b"") -> Finished:
    source = {"source": textwrap.dedent(program)}
    return sandbox.run("script", source, limits, max_results=2**20, standard_input=given)


def _said(sandbox: Sandbox, program: str) -> str:
    finished = _script(sandbox, program)
    assert finished.ending.how == "exit"
    assert finished.ending.code == 0, finished.results
    return finished.results.decode()


def _judge(reward: UnitTests, tests: Any, program: str) -> Outcome:
    solution = Solution("p", 0, 0, textwrap.dedent(program), (), "eos")
    return reward(Problem("p", prompt="", reference=tests), solution)


def test_every_layer_is_up_here_and_holds_when_a_program_looks(sandbox: Sandbox) -> None:
    assert sandbox.missing == {}
    assert probe(sandbox) == []
    assert layers(sandbox).endswith("missing: nothing")


@pytest.mark.parametrize("format_", ["calls", "literal assertions", "a test"])
def test_what_is_expected_is_nowhere_in_the_programs_memory(reward: UnitTests, format_: str) -> None:
    program = """
    import re
    def f(n):
        found = set()
        for line in open("/proc/self/maps"):
            begin, end = (int(one, 16) for one in line.split()[0].split("-"))
            if "r" in line.split()[1] and "[v" not in line:
                with open("/proc/self/mem", "rb", 0) as memory:
                    memory.seek(begin)
                    found |= set(re.findall(rb"only-the-tests-[k]now-[0-9a-f]+", memory.read(end - begin)))
        return max(found, default=b"none").decode()
    """
    tests = {
        "calls": {"format": "function", "entry_point": "f", "cases": [{"args": [1], "expected": SECRET}]},
        "literal assertions": {"format": "assert", "entry_point": "f", "test": f"assert f(1) == {SECRET!r}"},
        "a test": {"format": "assert", "entry_point": "f", "test": f"x = {SECRET!r}\nassert f(1) == x"},
    }[format_]
    outcome = _judge(reward, tests, program)
    assert outcome.reward == 0.0
    assert "wrong answer" in outcome.reason
    assert "returned 'only" not in outcome.reason


def test_nothing_of_one_program_is_in_the_memory_or_the_folders_of_the_next(sandbox: Sandbox) -> None:
    _script(
        sandbox,
        """
        import os, builtins, sys, json
        trace = "left-by-" + "the-first"
        for folder in ("/tmp", "/dev/shm"):
            open(f"{folder}/json.py", "w").write(trace)
            os.symlink("/etc", f"{folder}/link")
        os.chmod("/tmp", 0)
        builtins.len = lambda x: 0
        json.dumps = None
        sys.path.insert(0, "/tmp")
        """,
    )
    found = _said(
        sandbox,
        """
        import os, json, re
        print(os.listdir("/tmp"), os.listdir("/dev/shm"), len("four"), json.dumps([]))
        for line in open("/proc/self/maps"):
            begin, end = (int(one, 16) for one in line.split()[0].split("-"))
            if "r" in line.split()[1] and "[v" not in line:
                with open("/proc/self/mem", "rb", 0) as memory:
                    memory.seek(begin)
                    if re.search(rb"left-by-[t]he-first", memory.read(end - begin)):
                        print("found", line)
        """,
    )
    assert found == "[] [] 4 []\n"


@pytest.mark.parametrize(
    ("program", "how"),
    [
        ("while True: pass", "cpu"),
        ("sum(range(10**12))", "cpu"),
        ("import signal\nfor n in range(1, 64):\n    try: signal.signal(n, signal.SIG_IGN)\n    except (OSError, ValueError): pass\nwhile True: pass", "cpu"),
        ("import os\nfor _ in range(8):\n    if os.fork() == 0:\n        while True: pass\nimport time\ntime.sleep(99)", "cpu"),
        ("import signal, time\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 64))\ntime.sleep(99)", "wall"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)", "wall"),
        ("import atexit, time\natexit.register(time.sleep, 99)", "wall"),
        ("import threading, time\nthreading.Thread(target=time.sleep, args=(99,)).start()", "wall"),
        ("import time\ntime.time = time.monotonic = lambda: 0\ntime.sleep(99)", "wall"),
    ],
)  # fmt: skip
def test_no_program_outlasts_its_limits_on_time(sandbox: Sandbox, program: str, how: str) -> None:
    started = time.monotonic()
    wall_seconds = {"cpu": 4.0, "wall": 1.0}[how]  # a core that others use as well gives 0.5 s late
    limits = Limits(cpu_seconds=0.5, wall_seconds=wall_seconds, memory_bytes=2**29)
    assert _script(sandbox, program, limits).ending.how == how
    assert time.monotonic() - started < wall_seconds + 1.0


def test_processes_of_a_program_end_with_it(sandbox: Sandbox) -> None:
    daemons = """
    import os, time
    for _ in range(5):
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                time.sleep(99)
            os._exit(0)
    print("done")
    """
    assert _said(sandbox, daemons) == "done\n"
    assert _said(sandbox, "import os; print(sorted(n for n in os.listdir('/proc') if n.isdigit())[0:1], "
                          "len([n for n in os.listdir('/proc') if n.isdigit()]))") == "['1'] 2\n"  # fmt: skip
    bomb = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    # Where others use the cores, the time on the wall is over before that of the processor.
    assert _script(sandbox, bomb).ending.how in ("cpu", "memory", "wall")
    assert _said(sandbox, "print(1)") == "1\n"


def test_a_program_cannot_stop_or_kill_its_server_or_change_its_limits(sandbox: Sandbox) -> None:
    program = """
    import os, resource, signal
    for change in (
        lambda: resource.prlimit(1, resource.RLIMIT_AS, (1 << 24, 1 << 24)),
        lambda: resource.prlimit(1, resource.RLIMIT_NPROC, (1, 1)),
        lambda: os.setpriority(os.PRIO_PROCESS, 1, 19),
        lambda: os.sched_setaffinity(1, {0}),
    ):
        try: change()
        except OSError: pass
        else: print("changed")
    for target in (1, os.getppid(), -1):
        for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGHUP):
            try: os.kill(target, number)
            except (PermissionError, ProcessLookupError): pass
    """
    assert b"changed" not in _script(sandbox, program).results
    honest = "import os\nif os.fork(): print(len(bytearray(1 << 27)))"
    assert _said(sandbox, honest) == "134217728\n"


@pytest.mark.parametrize(
    "program",
    [
        "x = bytearray(1 << 33)",
        "x = [bytearray(b'1') * (1 << 20) for _ in range(1 << 14)]",
        "import mmap\nx = mmap.mmap(-1, 1 << 33)\nx.write(b'1' * (1 << 33))",
        "import os, time\nfor _ in range(20):\n    if os.fork() == 0:\n        x = bytearray(b'1') * (300 << 20)\n        time.sleep(99)\ntime.sleep(99)",
        "import os\nf = os.memfd_create('x')\nwhile True: os.write(f, b'1' * (1 << 20))",
        "while True: open('/dev/shm/x', 'ab').write(b'1' * (1 << 20))",
        "import itertools\nfor n in itertools.count(): open(f'/tmp/{n}', 'w').close()",
        "import socket\nx = []\nwhile True:\n    x.append(socket.socketpair())",
        "import ctypes\nlibc = ctypes.CDLL(None)\nn = libc.shmget(0, 1 << 30, 0o1600)\nassert n >= 0",
    ],
)  # fmt: skip
def test_no_program_takes_more_memory_or_disk_than_it_may(sandbox: Sandbox, program: str) -> None:
    before = _available_bytes()
    smallest = [before]
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.01):
            smallest[0] = min(smallest[0], _available_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    finished = _script(sandbox, program)
    stop.set()
    watcher.join()
    ending = finished.ending
    assert ending.how in ("memory", "cpu") or ending.code == 1
    assert before - smallest[0] < 3 * 2**30
    assert _said(sandbox, "open('/tmp/x', 'w').write('1')\nprint(len(bytearray(300 << 20)))") == "314572800\n"


def _available_bytes() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def test_output_is_bounded_and_what_is_written_to_the_error_stream_is_dropped(sandbox: Sandbox) -> None:
    finished = _script(sandbox, "import os\nwhile True: os.write(1, b'x' * 65536)")
    assert finished.ending.how == "stopped"
    assert not finished.is_whole
    assert _said(sandbox, "import sys\nsys.stderr.write('x' * (32 << 20))\nprint(1)") == "1\n"


def test_trees_and_links_that_a_program_leaves_are_gone_and_nothing_else_is(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    (tmp_path / "kept").write_text("kept")
    program = f"""
    import os
    os.symlink({str(tmp_path)!r}, "link")
    os.symlink("..", "up")
    for _ in range(3000):
        os.mkdir("d"); os.chdir("d")
    os.chmod(".", 0)
    """
    assert _script(sandbox, program).ending.code == 0
    assert (tmp_path / "kept").read_text() == "kept"
    assert _said(sandbox, "import os; print(os.listdir('/tmp'))") == "[]\n"


def test_no_secret_is_in_reach(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REST_EM_SECRET", SECRET)
    (tmp_path / "secret").write_text(SECRET)
    homes = ["/home", *{pwd.getpwuid(user).pw_dir for user in (0, os.getuid())}]
    with Sandbox() as sandbox:
        found = json.loads(
            _said(
                sandbox,
                f"""
                import os, json, glob
                found = [key for key in os.environ if key != "LC_CTYPE"]
                for path in ({str(tmp_path / "secret")!r}, "/etc/shadow", "/run", "/var", "/sys",
                             *(f"/proc/1/{{name}}" for name in ("environ", "mem", "cwd", "root/etc/passwd")),
                             *(path for home in {homes!r} for path in (home + "/.ssh", *glob.glob(home + "/[!.]*")))):
                    try:
                        found.append((path, os.listdir(path) if os.path.isdir(path) else open(path).read(9)))
                    except OSError:
                        pass
                print(json.dumps(found))
                """,
            )
        )  # fmt: skip
    assert found == []


def test_there_is_no_network() -> None:
    name = f"\0rest_em-{os.getpid()}"
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        socket.socket(socket.AF_UNIX) as abstract,
        Sandbox() as sandbox,
    ):
        udp.bind(("127.0.0.1", 0))
        udp.settimeout(0.2)
        abstract.bind(name)
        abstract.listen()
        program = f"""
        import socket
        def reached(action):
            try: action()
            except OSError: return False
            return True
        print(
            reached(lambda: socket.create_connection(("127.0.0.1", {tcp.getsockname()[1]}), 0.2)),
            reached(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", {udp.getsockname()[1]}))),
            reached(lambda: socket.socket(socket.AF_UNIX).connect({name!r})),
            reached(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)),
            reached(lambda: socket.socket(socket.AF_VSOCK)),
        )
        """
        assert _said(sandbox, program) == "False False False False False\n"
        with pytest.raises(TimeoutError):
            udp.recv(1)


def test_a_program_cannot_make_namespaces_mounts_or_look_into_processes(sandbox: Sandbox) -> None:
    program = """
    import ctypes, os
    libc = ctypes.CDLL(None, use_errno=True)
    def call(*arguments): return libc.syscall(*arguments) >= 0
    child = os.fork()
    if child == 0:
        import time
        time.sleep(1)
        os._exit(0)
    print(
        call(272, 0x10000000), call(56, 0x10000000 | 17, 0, 0, 0, 0), call(165, b"none", b"/tmp", b"tmpfs", 0, 0),
        call(101, 16, child, 0, 0), call(319, b"x", 0), call(425, 8, 0), call(321, 0, 0, 0), call(250, 0, 0, 0),
        libc.setuid(0) == 0, libc.prctl(38, 0, 0, 0, 0) == 0,
    )
    os.kill(child, 9)
    """
    assert set(_said(sandbox, program).split()) == {"False"}


REFUSING = """
import os, sys
from rest_em.rewards.sandbox import kernel
kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
kernel.Filter(allows_processes=True, denied=["unshare"]).set()  # as a container that refuses namespaces
from rest_em.errors import RewardError
from rest_em.rewards.unit_tests import UnitTests
from rest_em.types import Problem, Solution
tests = {"format": "function", "entry_point": "f", "cases": [{"args": [2], "expected": 4}]}
def judge(reward, text):
    outcome = reward(Problem("p", "", tests), Solution("p", 0, 0, text, (), "eos"))
    return outcome.reward
try:
    UnitTests(cpu_seconds=2.0)
except RewardError as error:
    print(error)
reward = UnitTests(cpu_seconds=2.0, program="text", allow_weaker_isolation=True)
print(reward.isolation)
print(judge(reward, "def f(n):\\n    return n * n"), judge(reward, "def f(n):\\n    return n"))
print(judge(reward, "import os\\ndef f(n):\\n    os.fork()\\n    return n * n"), "a process is refused")
print(judge(reward, "import os\\nos.mkdir('x')\\nos.symlink('/', 'link')\\ndef f(n):\\n    return n * n"))
print(judge(reward, "import os\\ndef f(n):\\n    return n * n if os.listdir('.') else 0"), "nothing is left")
print(judge(reward, "def f(n):\\n    open(%r)\\n    return n * n" % sys.argv[1]), "files are out of reach", flush=True)
os.killpg(0, 9)
"""


def test_a_missing_layer_is_told_and_nothing_runs_unless_that_is_allowed(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    before = set(Path("/tmp").glob("rest_em-*"))
    done = subprocess.run(
        [sys.executable, "-c", REFUSING, str(secret)], capture_output=True, text=True, timeout=60,
        start_new_session=True, check=False,
    )  # fmt: skip
    refusal, isolation, *judged = done.stdout.splitlines()
    assert "this host lacks the user namespace" in refusal
    assert "reward.allow_weaker_isolation" in refusal
    assert "nothing that a model wrote was run" in refusal
    assert "missing: user namespace" in isolation
    assert judged == [
        "1.0 0.0", "0.0 a process is refused", "1.0", "0.0 nothing is left", "0.0 files are out of reach",
    ]  # fmt: skip
    deadline = time.monotonic() + 2  # it was killed, with its whole group
    while set(Path("/tmp").glob("rest_em-*")) != before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert set(Path("/tmp").glob("rest_em-*")) == before


OWNER = """
import sys
from rest_em.rewards.sandbox.client import Sandbox
from rest_em.rewards.sandbox.isolation import Limits
program = "import os, time\\nfor _ in range(4):\\n    if os.fork() == 0:\\n        os.setsid()\\n        break\\ntime.sleep(999)"
sandbox = Sandbox()
print(sandbox._process.pid, flush=True)
sandbox.run("script", {"source": program}, Limits(99.0, 99.0, 2**29), max_results=9, standard_input=b"")
"""


def test_a_killed_owner_leaves_no_process() -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE)
    assert owner.stdout is not None
    server = int(owner.stdout.readline())
    deadline = time.monotonic() + 20
    while (
        len(_below(server)) < 6 and time.monotonic() < deadline
    ):  # the server inside, and the program's five
        time.sleep(0.01)
    inside = [server, *_below(server)]
    assert len(inside) >= 7
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    owner.stdout.close()
    assert all(is_gone_within(one, 2.0) for one in inside)


def _below(process: int) -> list[int]:
    found = []
    for path in Path(f"/proc/{process}/task").glob("*/children"):
        for child in map(int, path.read_text().split()):
            found += [child, *_below(child)]
    return found


def test_a_closed_sandbox_leaves_no_process_descriptor_or_file() -> None:
    def state() -> tuple[Any, ...]:
        return (
            len(_below(os.getpid())),
            len(list(Path("/proc/self/fd").iterdir())),
            sorted(Path("/tmp").glob("rest_em-*")),
        )

    before = state()
    with Sandbox() as sandbox:
        for _ in range(50):
            _script(sandbox, "open('/tmp/x', 'w').write('1')")
    assert state() == before


def test_many_callers_get_the_verdicts_that_one_gets() -> None:
    right, wrong = "def f(n):\n    return n * n", "def f(n):\n    return n"
    tests = {"format": "function", "entry_point": "f", "cases": [{"args": [3], "expected": 9}]}
    found: list[tuple[float, float]] = []

    def call() -> None:
        judge = UnitTests(cpu_seconds=5.0, program="text")
        found.extend(
            (_judge(judge, tests, right).reward, _judge(judge, tests, wrong).reward) for _ in range(25)
        )
        judge.close()

    callers = [threading.Thread(target=call) for _ in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert found == [(1.0, 0.0)] * 200


AS_ANOTHER = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
from rest_em.rewards.sandbox.client import Sandbox
from rest_em.rewards.sandbox.probe import probe
with Sandbox() as sandbox:
    print(json.dumps([os.getuid(), sandbox.missing, probe(sandbox)]))
"""


def _public_python() -> str | None:
    """Return a Python that any user can start."""
    return next((one for one in ("/usr/bin/python3", "/usr/local/bin/python3") if Path(one).exists()), None)


@pytest.mark.skipif(os.getuid() != 0, reason="the tests run as an ordinary user already")
@pytest.mark.skipif(_public_python() is None, reason="no Python that an ordinary user can start")
def test_all_holds_for_an_ordinary_user_too() -> None:
    user = pwd.getpwnam("nobody")
    folder = Path(tempfile.mkdtemp(prefix="rest_em_test-"))
    try:
        source = Path(__file__).parents[1] / "rest_em"
        shutil.copytree(source, folder / "rest_em", ignore=shutil.ignore_patterns("__pycache__"))
        folder.chmod(0o755)
        done = subprocess.run(
            [str(_public_python()), "-c", AS_ANOTHER, str(folder)], user=user.pw_uid, group=user.pw_gid,
            extra_groups=[], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, cwd="/",
            check=False,
        )  # fmt: skip
    finally:
        shutil.rmtree(folder)
    assert done.stderr == ""
    assert json.loads(done.stdout) == [user.pw_uid, {}, []]


def test_a_signal_to_its_own_group_reaches_only_the_program(sandbox: Sandbox) -> None:
    ending = _script(sandbox, "import os\nos.killpg(0, 9)").ending
    assert (ending.how, ending.code) == ("signal", 9)
    assert _said(sandbox, "print(1)") == "1\n"
