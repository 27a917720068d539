"""Whether a sandbox holds what it says: a program of ours looks around inside, as one that attacks would."""

from __future__ import annotations

import json

from rest_em.rewards.sandbox.client import Sandbox, SandboxError
from rest_em.rewards.sandbox.isolation import NAMESPACES, Limits

_PROGRAM = r"""
import json, os, socket

def works(action):
    try:
        action()
    except OSError:
        return False
    return True

def write(path):
    with open(path, "w") as file:
        file.write("x")

status = dict(line.split(":", 1) for line in open("/proc/self/status"))
found = {
    "it has capabilities": int(status["CapEff"], 16) or int(status["CapBnd"], 16),
    "it can gain rights": status["NoNewPrivs"].strip() != "1",
    "no seccomp filter binds it": status["Seccomp"].strip() != "2",
    "it runs as root": os.getuid() == 0,
    "it has an environment": bool({*os.environ} - {"LC_CTYPE"}),
    "it sees processes of others": len([one for one in os.listdir("/proc") if one.isdigit()]) > 2,
    "it sees home folders": os.path.exists("/home") or works(lambda: os.listdir("/var")),
    "it can write to the system": any(works(lambda: write(f"{at}/x")) for at in ("", "/usr/lib", "/etc")),
    "it can read its server's memory": works(lambda: open("/proc/1/mem", "rb").close()),
    "it can open internet sockets": works(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close()),
}
print(json.dumps([name for name, is_so in found.items() if is_so]))
"""


def probe(sandbox: Sandbox) -> list[str]:
    """Return what a program can do inside that it must not be able to; empty where all layers hold.

    Raises:
        SandboxError: the program cannot be run.
    """
    limits = Limits(cpu_seconds=10.0, wall_seconds=60.0, memory_bytes=2**30)
    finished = sandbox.run("script", {"source": _PROGRAM}, limits, max_results=2**16, standard_input=b"")
    try:
        found: list[str] = json.loads(finished.results)
    except ValueError as error:
        raise SandboxError(f"the program that probes the sandbox failed: {finished.ending}") from error
    return found


def layers(sandbox: Sandbox) -> str:
    """Return the layers that are up and those that are missing, for people."""
    up = ["limits on time, memory, processes and files", "no capabilities"]
    up += [
        name for name in ("user namespace", NAMESPACES, "seccomp", "Landlock") if name not in sandbox.missing
    ]
    missing = "; ".join(f"{name} ({why})" for name, why in sandbox.missing.items())
    return f"up: {', '.join(up)}; missing: {missing or 'nothing'}"
