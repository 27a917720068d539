"""Calls to Linux that Python's `os` does not have: namespaces, mounts, capabilities, seccomp, Landlock.

Each function is one system call (or the few that belong together) and raises OSError with the call's name.
What they are used for is in `isolation`.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterable

LIBC = ctypes.CDLL(None, use_errno=True)
_PRCTL = LIBC.prctl
_PRCTL.argtypes = [ctypes.c_int, *4 * [ctypes.c_ulong]]
_CAPABILITY_HEADER = ctypes.create_string_buffer(struct.pack("=Ii", 0x20080522, 0), 8)

CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x02000000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
"""Source: linux/sched.h."""

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
MNT_DETACH = 2
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV = 1, 2, 4
AT_FDCWD, AT_RECURSIVE = -100, 0x8000
"""Source: linux/mount.h, linux/fcntl.h."""

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_KEEPCAPS, PR_SET_SECCOMP = 1, 4, 8, 22
PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 24, 38
SECCOMP_MODE_FILTER = 2
CAP_SETPCAP, CAP_SYS_ADMIN = 8, 21
"""Source: linux/prctl.h, linux/seccomp.h, linux/capability.h."""

_MACHINES: dict[str, tuple[int, int]] = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
"""The audit number of an architecture (linux/audit.h), and its column in `SYSCALLS`."""

SYSCALLS: dict[str, tuple[int | None, int | None]] = {
    "fork": (57, None),
    "vfork": (58, None),
    "clone": (56, 220),
    "clone3": (435, 435),
    "execve": (59, 221),
    "execveat": (322, 281),
    "socket": (41, 198),
    "socketpair": (53, 199),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264),
    "fanotify_init": (300, 262),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "reboot": (169, 142),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "acct": (163, 89),
    "syslog": (103, 116),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "adjtimex": (159, 171),
    "clock_adjtime": (305, 266),
    "iopl": (172, None),
    "ioperm": (173, None),
    "modify_ldt": (154, None),
    "personality": (135, 92),
    "lookup_dcookie": (212, 18),
    "vhangup": (153, 58),
    "move_pages": (279, 239),
    "migrate_pages": (256, 238),
    "mbind": (237, 235),
    "set_mempolicy": (238, 237),
    "sched_setaffinity": (203, 122),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "sched_setattr": (314, 274),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "prlimit64": (302, 261),
    "landlock_create_ruleset": (444, 444),
    "landlock_add_rule": (445, 445),
    "landlock_restrict_self": (446, 446),
}
"""Numbers on x86_64 and aarch64, None where there is no such call. Source: asm/unistd_64.h, asm-generic."""


def call(name: str, result: int) -> int:
    """Return a system call's result; a negative one is an OSError that names the call."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def syscall(name: str, *arguments: object) -> int:
    """Make a system call that libc may not wrap."""
    number = SYSCALLS[name][_machine()[1]]
    if number is None:
        raise OSError(errno.ENOSYS, f"{name}: not on this machine")
    return call(name, LIBC.syscall(ctypes.c_long(number), *arguments))


def prctl(option: int, *arguments: int) -> None:
    """Make a prctl call."""
    call("prctl", _PRCTL(option, *(*arguments, 0, 0, 0, 0)[:4]))


def unshare(flags: int) -> None:
    """Leave the namespaces that the flags name, for new ones."""
    call("unshare", LIBC.unshare(flags))


def mount(
    source: str | None, target: str, kind: str | None = None, flags: int = 0, options: str | None = None
) -> None:
    """Mount; see mount(2)."""
    encoded = [None if one is None else os.fsencode(one) for one in (source, target, kind, options)]
    result = LIBC.mount(encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3])
    call(f"mount {target}", result)


def detach(target: str) -> None:
    """Take a mount away, also while it is in use."""
    call(f"umount {target}", LIBC.umount2(os.fsencode(target), MNT_DETACH))


def pivot_root(new: str, old: str) -> None:
    """Make `new` the root and put the old one at `old`."""
    syscall("pivot_root", os.fsencode(new), os.fsencode(old))


def set_mount_attributes(target: str, attributes: int, *, is_recursive: bool = True) -> None:
    """Set attributes of a mount, and of all below it; Linux 5.12."""
    value = ctypes.create_string_buffer(struct.pack("=QQQQ", attributes, 0, 0, 0), 32)
    flags = AT_RECURSIVE if is_recursive else 0
    syscall("mount_setattr", AT_FDCWD, os.fsencode(target), ctypes.c_uint(flags), value, ctypes.c_size_t(32))


def drop_bounding_set() -> None:
    """Make sure that no program executed later can gain a capability."""
    last = int(open("/proc/sys/kernel/cap_last_cap").read())  # noqa: PTH123, SIM115
    for capability in range(last + 1):
        prctl(PR_CAPBSET_DROP, capability)


def set_capabilities(capabilities: Iterable[int]) -> None:
    """Have these capabilities, effective and permitted, and no others."""
    mask = 0
    for one in capabilities:
        mask |= 1 << one
    low, high = mask & 0xFFFFFFFF, mask >> 32
    data = ctypes.create_string_buffer(struct.pack("=6I", low, low, 0, high, high, 0), 24)
    call("capset", LIBC.capset(_CAPABILITY_HEADER, data))


def _machine() -> tuple[int, int]:
    machine = os.uname().machine
    if machine not in _MACHINES:
        raise OSError(errno.ENOSYS, f"no system-call table for {machine}")
    return _MACHINES[machine]


# seccomp: a program of classic BPF over `struct seccomp_data` (nr at 0, arch at 4, arguments from 16).
_LOAD, _EQUAL, _GREATER, _MASKED, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_AF_UNIX = 1
_X32 = 0x40000000
_CLONE_VM_THREAD = 0x00010100
_NEW_NAMESPACES = 0x7E020080
"""Every CLONE_NEW flag, CLONE_NEWTIME among them."""

DENIED = tuple(
    sorted(
        SYSCALLS.keys()
        - {"fork", "vfork", "clone", "clone3", "execve", "execveat", "socket", "socketpair", "prlimit64"}
        - {"landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"}
    )
)
"""Calls that no honest solution makes: other processes' memory, mounts, keys, kernel interfaces, memory and
queues that outlive a process, memory that resource limits do not see, and other processes' priorities."""


class Filter:
    """A seccomp filter, ready to be set."""

    def __init__(self, *, allows_processes: bool, denied: Iterable[str] = DENIED) -> None:
        """Build it.

        Args:
            allows_processes: whether the program may fork and execute; threads it may start in any case.
            denied: calls that fail with EPERM.
        """
        audit, column = _machine()
        code: list[tuple[int, int, int, int]] = [
            (_LOAD, 0, 0, 4),
            (_EQUAL, 1, 0, audit),
            (_RETURN, 0, 0, _KILL),
            (_LOAD, 0, 0, 0),
        ]
        if column == 0:
            code += [(_GREATER, 0, 1, _X32), (_RETURN, 0, 0, _KILL)]

        def refuse(name: str, number: int = errno.EPERM) -> None:
            found = SYSCALLS[name][column]
            if found is not None:
                code.extend([(_EQUAL, 0, 1, found), (_RETURN, 0, 0, _ERRNO | number)])

        for name in denied:
            refuse(name)
        refuse("clone3", errno.ENOSYS)  # its flags are out of a filter's sight; libc then takes clone
        if not allows_processes:
            for name in ("fork", "vfork", "execve", "execveat"):
                refuse(name)
        only_threads = [
            (_AND, 0, 0, _CLONE_VM_THREAD),
            (_EQUAL, 1, 0, _CLONE_VM_THREAD),
            (_RETURN, 0, 0, _ERRNO | errno.EPERM),
        ]
        first_argument = (_LOAD, 0, 0, 16)
        only_unix = [first_argument, (_EQUAL, 1, 0, _AF_UNIX), (_RETURN, 0, 0, _ERRNO | errno.EACCES)]
        look_closer = {
            "clone": [
                first_argument,
                (_MASKED, 0, 1, _NEW_NAMESPACES),
                (_RETURN, 0, 0, _ERRNO | errno.EPERM),
                *([] if allows_processes else only_threads),
            ],
            # Limits of its own only: those of the server would be the next program's.
            "prlimit64": [first_argument, (_EQUAL, 1, 0, 0), (_RETURN, 0, 0, _ERRNO | errno.EPERM)],
            "socket": only_unix,
            "socketpair": only_unix,
        }
        for name, block in look_closer.items():
            found = SYSCALLS[name][column]
            assert found is not None
            code += [(_EQUAL, 0, len(block) + 1, found), *block, (_RETURN, 0, 0, _ALLOW)]
        code.append((_RETURN, 0, 0, _ALLOW))
        packed = b"".join(struct.pack("=HBBI", *line) for line in code)
        self._code = ctypes.create_string_buffer(packed, len(packed))
        address = ctypes.addressof(self._code)
        program = struct.pack("@HP", len(code), address)
        self._program = ctypes.create_string_buffer(program, len(program))
        self._address = ctypes.addressof(self._program)

    def set(self) -> None:
        """Filter this process's calls from now on, and those of all that it starts."""
        call("seccomp", _PRCTL(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, self._address, 0, 0))


_READ = 0b1101
"""Landlock: execute, read a file, read a folder."""
_OF_FILES = 0b1100000000000111
"""Landlock: the rights over what is no folder: execute, write, read, truncate, device control."""
_NUM_RIGHTS = (13, 14, 15, 15, 16, 16)
"""How many rights over files each version of Landlock's interface knows, from version 1 on."""


class Landlock:
    """A Landlock ruleset: read everywhere that is named, write only where that is named, no TCP."""

    def __init__(self, readable: Iterable[str], writable: Iterable[str], devices: Iterable[str]) -> None:
        """Make the ruleset.

        Raises:
            OSError: the kernel has no Landlock, or has it turned off.
        """
        abi = syscall("landlock_create_ruleset", None, ctypes.c_size_t(0), ctypes.c_uint(1))
        rights = (1 << _NUM_RIGHTS[min(abi, len(_NUM_RIGHTS)) - 1]) - 1
        tcp = 0b11 if abi >= 4 else 0
        scopes = 0b11 if abi >= 6 else 0  # abstract sockets and signals stay inside
        size = 24 if abi >= 6 else 16 if abi >= 4 else 8
        value = struct.pack("=QQQ", rights, tcp, scopes)[:size]
        attributes = ctypes.create_string_buffer(value, size)
        flags = ctypes.c_uint(0)
        self.descriptor = syscall("landlock_create_ruleset", attributes, ctypes.c_size_t(size), flags)
        for path in readable:
            self._allow(path, rights & _READ)
        for path in writable:
            self._allow(path, rights)
        for path in devices:
            self._allow(path, rights & 0b110)

    def _allow(self, path: str, rights: int) -> None:
        try:
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            is_folder = os.path.isdir(path)  # noqa: PTH112
            rule = struct.pack("=Qi", rights if is_folder else rights & _OF_FILES, descriptor)
            value = ctypes.create_string_buffer(rule, len(rule))
            syscall("landlock_add_rule", self.descriptor, 1, value, ctypes.c_uint(0))
        finally:
            os.close(descriptor)

    def set(self) -> None:
        """Bind this process, and all that it starts, to the ruleset."""
        syscall("landlock_restrict_self", self.descriptor, ctypes.c_uint(0))

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self.descriptor)
