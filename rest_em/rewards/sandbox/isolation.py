"""The layers between a program and the machine, put up by the process that is to become the sandbox's server.

    user, PID, mount, network, IPC and UTS namespaces, no capabilities     `enter`
    limits, no_new_privs, Landlock, seccomp     `Cell.make_ready`
    the address space     `Cell.lock`

The server is bound by nearly all of it itself; the process that it leaves outside keeps one capability, to
empty the folders that programs write to.

Nothing is downgraded in silence: a layer that the host refuses is named in `Cell.missing` with its reason,
and whether to go on is the user's decision. What the server does behind the layers is in `server`.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import sys
from collections.abc import Iterator
from typing import NamedTuple

from rest_em.rewards.sandbox import kernel

INSIDE = 1000
"""The user and group that programs have inside."""
NOBODY = 65534
"""The user outside whose rights programs have where the sandbox is started by root."""
USER_NAMESPACE = "user namespace"
NAMESPACES = "PID, mount, network, IPC and UTS namespaces"
SCRATCH_ROOT = "/scratch"
SCRATCH = {"/tmp": "/scratch/tmp", "/dev/shm": "/scratch/shm"}
"""What a program may write to, by the links that lead there: file systems in memory, emptied after it."""
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
LIBRARIES = ("/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/local/lib")
FILES = ("/etc/ld.so.cache", "/etc/localtime", "/usr/share/zoneinfo")
PACKAGES = "/packages"
"""Where packages that the user names are, inside."""
_OLD = "/.old"
_MAX_STACK = 256 * 2**20
MAX_DESCRIPTORS = 256
_MAX_PROCESSES = 64
_MAX_FILE = 2**28


class Limits(NamedTuple):
    """What one program may use.

    Example:
        Limits(cpu_seconds=10.0, wall_seconds=11.0, memory_bytes=2**30)
    """

    cpu_seconds: float
    """Of all its processes and threads together."""
    wall_seconds: float
    """From its start to its end."""
    memory_bytes: int
    """Of all its processes together, and the address space of each beyond the interpreter's own."""


class Cell:
    """Where programs run: the layers that are up, and how a program's process is locked in.

    With namespaces the server locks itself in once, and a program's process inherits all of it; the process
    outside empties the folders. Without, each program's process locks itself in.
    """

    def __init__(self) -> None:
        """Nothing is up yet."""
        self.missing: dict[str, str] = {}
        """Layer -> why it is not there."""
        self.has_namespaces = False
        self.folder = SCRATCH["/tmp"]
        """What programs start in; inside, unless there are no namespaces."""
        self.janitor: socket.socket | None = None
        """Leads to the process outside, which empties the folders."""
        self._filter: kernel.Filter | None = None
        self._landlock: kernel.Landlock | None = None
        self._clean: dict[str, tuple[int, int]] = {}
        self._memory_bytes = self._max_address_space = 0

    def make_ready(self) -> None:
        """Do once what all programs share: limits, the filter and the ruleset; bind this process to them.

        The server, this process, needs no more than they allow.
        """
        if not self.has_namespaces:
            self.folder = _folder_that_goes()
        for kind, value in _SHARED_LIMITS.items():
            _limit(kind, value)
        with contextlib.suppress(OSError):
            _write("/proc/self/oom_score_adj", "1000")
        kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
        try:
            self._filter = kernel.Filter(allows_processes=self.has_namespaces)
        except OSError as error:
            self.missing["seccomp"] = str(error)
        self._rule()
        if self.has_namespaces:
            _limit(resource.RLIMIT_NPROC, _MAX_PROCESSES)
            self._clean = {path: _touched(path) for path in SCRATCH.values()}
            self._bind()

    def _rule(self) -> None:
        if self._landlock is not None:
            self._landlock.close()
            self._landlock = None
        if "Landlock" in self.missing:
            return
        writable = [SCRATCH_ROOT] if self.has_namespaces else [self.folder]
        readable = ["/"] if self.has_namespaces else [*LIBRARIES, *FILES, sys.base_prefix, "/proc"]
        try:
            self._landlock = kernel.Landlock(readable, writable, DEVICES)
        except OSError as error:
            self.missing["Landlock"] = str(error)

    def _bind(self) -> None:
        if self._landlock is not None:
            self._landlock.set()
        if self._filter is not None:
            self._filter.set()

    def prepare(self, limits: Limits) -> None:
        """Compute what the next program's process needs, before it is there."""
        if limits.memory_bytes == self._memory_bytes:
            return
        self._memory_bytes = limits.memory_bytes
        used = int(read_file("/proc/self/statm").split()[0]) * resource.getpagesize()
        self._max_address_space = used + limits.memory_bytes

    def lock(self) -> None:
        """Give up everything that this process, a program's, does not need; there is no way back."""
        _limit(resource.RLIMIT_AS, self._max_address_space)
        if not self.has_namespaces and os.geteuid() == 0:
            _become(NOBODY)
            kernel.set_capabilities(())
        kernel.prctl(kernel.PR_SET_DUMPABLE, 1)  # so that /proc/self is the program's own, as everywhere
        if not self.has_namespaces:
            self._bind()

    def clean(self) -> None:
        """Empty what the last program wrote to; nothing is done where nothing was written."""
        if self.janitor is None:
            import shutil

            shutil.rmtree(self.folder)  # follows no link
            os.mkdir(self.folder, 0o700)
            if os.geteuid() == 0:
                os.chown(self.folder, NOBODY, NOBODY)
            self._rule()
            return
        if all(_touched(path) == clean for path, clean in self._clean.items()):
            return
        self.janitor.send(b"clean")
        if self.janitor.recv(16) != b"done":
            raise OSError("the folders of the last program could not be emptied")
        self._clean = {path: _touched(path) for path in SCRATCH.values()}


def _folder_that_goes() -> str:
    """Return a new folder; a process that is no child of this one, nor in its group, removes it."""
    import shutil
    import tempfile

    folder = tempfile.mkdtemp(prefix="rest_em-")
    here, end = os.pipe()
    if child := os.fork():
        os.close(here)
        os.waitpid(child, 0)
        return folder
    os.setsid()
    if os.fork():
        os._exit(0)
    os.close(end)
    os.closerange(3, here)
    os.closerange(here + 1, MAX_DESCRIPTORS)
    os.read(here, 1)  # ends with the last who has the other end: that process
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


def _mount_scratch() -> None:
    for path in SCRATCH.values():
        flags = kernel.MS_NOSUID | kernel.MS_NODEV
        kernel.mount(
            "tmpfs", path, "tmpfs", flags, f"mode=1777,size=64m,nr_inodes=16384,uid={INSIDE},gid={INSIDE}"
        )


def _touched(path: str) -> tuple[int, int]:
    """Return what changes with any change in the folder itself, its rights among them."""
    found = os.stat(path)
    return found.st_ino, found.st_ctime_ns


_SHARED_LIMITS = {
    resource.RLIMIT_CORE: 0,
    resource.RLIMIT_FSIZE: _MAX_FILE,
    resource.RLIMIT_NOFILE: MAX_DESCRIPTORS,
    resource.RLIMIT_MEMLOCK: 2**16,
    resource.RLIMIT_MSGQUEUE: 0,
    resource.RLIMIT_STACK: _MAX_STACK,
}


def _limit(kind: int, value: int) -> None:
    hard = resource.getrlimit(kind)[1]
    least = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (least, least))


def enter(cell: Cell, packages: dict[str, str]) -> bool:
    """Move this process into namespaces of its own and fork; return True in the process that is inside.

    The process outside has nothing left to do. Where the host refuses, there is one process, and it is not
    inside anything.

    Args:
        cell: gets what is missing.
        packages: folders or files of Python packages that programs may import, by their names inside.

    Raises:
        OSError: the namespaces are there and the new root cannot be built.
    """
    if not _leave(cell):
        return True
    _build(packages)
    user = NOBODY if USER_NAMESPACE in cell.missing else INSIDE
    is_root = os.geteuid() == 0
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    child = os.fork()
    if child:
        theirs.close()
        told = ours.recv(4096)
        if told != b"inside":
            os.waitpid(child, 0)
            raise OSError(told.decode() or "the sandbox's first process died while it set itself up")
        if is_root:
            _become(user)
        kernel.set_capabilities((kernel.CAP_SYS_ADMIN,))
        _keep_clean(ours)
        os.waitpid(child, 0)
        return False
    ours.close()
    try:
        _finish()
        if is_root:
            _become(user)
        kernel.set_capabilities((kernel.CAP_SETPCAP,))
        kernel.drop_bounding_set()
        kernel.set_capabilities(())
        kernel.prctl(kernel.PR_SET_DUMPABLE, 0)  # a program cannot look into this process
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    except OSError as error:
        theirs.send(str(error).encode()[:4096])
        os._exit(1)
    cell.has_namespaces, cell.janitor = True, theirs
    theirs.send(b"inside")
    return True


def _keep_clean(owner: socket.socket) -> None:
    """Empty the folders whenever that is asked for, until the process inside goes."""
    while owner.recv(16):
        for path in SCRATCH.values():
            kernel.detach(path)
        _mount_scratch()
        owner.send(b"done")


def _leave(cell: Cell) -> bool:
    """Leave this machine's namespaces; say whether that could be done. Root can keep its user namespace."""
    others = (
        kernel.CLONE_NEWNS | kernel.CLONE_NEWPID | kernel.CLONE_NEWNET
        | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS | kernel.CLONE_NEWCGROUP
    )  # fmt: skip
    try:
        with _mapped_by_helper():
            kernel.unshare(kernel.CLONE_NEWUSER | others)
    except OSError as error:
        cell.missing[USER_NAMESPACE] = f"{error}; {_ADVICE}"
    else:
        return True
    try:
        kernel.unshare(others)
    except OSError as error:
        cell.missing[NAMESPACES] = str(error)
        return False
    return True


_ADVICE = (
    "user namespaces may be turned off on this host: see user.max_user_namespaces, "
    "kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns, or the container's "
    "seccomp profile"
)


@contextlib.contextmanager
def _mapped_by_helper() -> Iterator[None]:
    """Have a child, which stays outside, map users once this process has left; root may map two.

    Root inside is root outside, for as long as the mounts are made: a Python in a private home can only be
    reached so. An ordinary user is mapped to `INSIDE` and to nothing else.
    """
    user, group, leader = os.geteuid(), os.getegid(), os.getpid()
    go, go_end = os.pipe()
    helper = os.fork()
    if helper == 0:
        os.close(go_end)
        status = 1
        with contextlib.suppress(OSError):
            if os.read(go, 1):
                both = f"0 {{}} 1\n{INSIDE} {NOBODY} 1\n" if user == 0 else f"{INSIDE} {{}} 1\n"
                if user:
                    _write(f"/proc/{leader}/setgroups", "deny")
                _write(f"/proc/{leader}/uid_map", both.format(user))
                _write(f"/proc/{leader}/gid_map", both.format(group))
                status = 0
        os._exit(status)
    os.close(go)
    try:
        yield
        os.write(go_end, b"1")
    finally:
        os.close(go_end)
        _, ended = os.waitpid(helper, 0)
    if ended:
        raise OSError("the users of the new namespace could not be mapped")


def read_file(path: str) -> bytes:
    """Return the begin of a file of /proc."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.read(descriptor, 4096)
    finally:
        os.close(descriptor)


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _become(user: int) -> None:
    """Become this user, from root; capabilities can be taken up again."""
    kernel.prctl(kernel.PR_SET_KEEPCAPS, 1)
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    kernel.prctl(kernel.PR_SET_KEEPCAPS, 0)


def _build(packages: dict[str, str]) -> None:
    """Make a root of read-only libraries and nothing else, and go there; `_finish` takes the old one away."""
    from pathlib import Path

    kernel.mount(None, "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    plain = kernel.MS_NOSUID | kernel.MS_NODEV
    kernel.mount("tmpfs", "/tmp", "tmpfs", plain, "mode=755,size=1m")
    Path(f"/tmp{_OLD}").mkdir()
    kernel.pivot_root("/tmp", f"/tmp{_OLD}")
    os.chdir("/")
    for path in ("/proc", "/dev", "/etc", PACKAGES, *SCRATCH.values()):
        Path(path).mkdir(0o755, parents=True, exist_ok=True)
    for path in (*LIBRARIES, *FILES, sys.base_prefix, sys.executable):
        if os.path.lexists(_OLD + path) and not os.path.lexists(path):
            _show(path)
    for folder in {*LIBRARIES, f"{sys.base_prefix}/lib"}:
        for hidden in Path(folder).glob("python3*/*-packages"):
            if not hidden.is_symlink():
                kernel.mount("tmpfs", str(hidden), "tmpfs", plain | kernel.MS_RDONLY, "mode=755,size=4k")
    for name, path in packages.items():
        _show(path, f"{PACKAGES}/{name}")
    for path in DEVICES:
        _show(path, attributes=kernel.MOUNT_ATTR_NOSUID)
    for name, target in {"fd": "", "stdin": "/0", "stdout": "/1", "stderr": "/2"}.items():
        Path(f"/dev/{name}").symlink_to(f"/proc/self/fd{target}")
    for link, target in SCRATCH.items():
        Path(link).symlink_to(target)
    Path("/etc/passwd").write_text(f"program:x:{INSIDE}:{INSIDE}::/tmp:/none\n")
    Path("/etc/group").write_text(f"program:x:{INSIDE}:\n")
    _mount_scratch()


def _finish() -> None:
    """Show the processes of the new namespace, and nothing of the old root."""
    flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
    try:
        kernel.mount("proc", "/proc", "proc", flags)
    except OSError as error:
        raise OSError(f"{error}: the host hides parts of its own /proc, as plain containers do") from error
    kernel.detach(_OLD)
    os.rmdir(_OLD)
    kernel.set_mount_attributes("/", _READ_ONLY, is_recursive=False)


_READ_ONLY = kernel.MOUNT_ATTR_RDONLY | kernel.MOUNT_ATTR_NOSUID | kernel.MOUNT_ATTR_NODEV


def _show(path: str, inside: str | None = None, attributes: int = _READ_ONLY) -> None:
    """Show a file or folder of the old root in the new one, or a link where it is one."""
    from pathlib import Path

    source, target = Path(_OLD + path), Path(inside or path)
    target.parent.mkdir(0o755, parents=True, exist_ok=True)
    if source.is_symlink():
        target.symlink_to(source.readlink())
        return
    if source.is_dir():
        target.mkdir(0o755, exist_ok=True)
    else:
        target.touch(0o644)
    kernel.mount(str(source), str(target), None, kernel.MS_BIND | kernel.MS_REC)
    kernel.set_mount_attributes(str(target), attributes)
