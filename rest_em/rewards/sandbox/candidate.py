"""What a program's process runs: the program itself, and the answers to the calls of its entry point.

Everything here shares a process with a program that may try to deceive. Nothing it says is believed: it can
only send data, through `values`, which those who judge compare on their side.
"""

from __future__ import annotations

import atexit
import builtins
import contextlib
import gc
import io
import json
import marshal
import os
import socket
import struct
import sys
from types import CodeType, ModuleType
from typing import Any, NoReturn

from rest_em.rewards.sandbox.values import CannotCrossError, decode, encode

ERRORS = ("exception", "exit", "memory", "value")
"""What a reply can say in the place of a value: nothing that is a verdict."""
MAX_REPLY_BYTES = 2**24
"""Of one value that is returned."""
_HEADER = struct.Struct(">I")


def answer_calls(payload: int, results: int) -> NoReturn:
    """Call the entry point for each case and write one line a call: what came of it.

    Args:
        payload: {"source", "entry_point", "calls", "max_bytes"}: each call is (args, kwargs) marshalled; an
            encoded value of more bytes is told to be too large.
        results: where the lines go.
    """
    request, process = read_payload(payload), os.getpid()
    entry = _load(request, lambda reply: _write(results, reply + b"\n"))
    if entry is not None:
        _leave_if_forked(process)
        for call in request["calls"]:
            reply = _reply(entry, marshal.loads(call), request["max_bytes"])
            _leave_if_forked(process)
            _write(results, reply + b"\n")
    os._exit(0)


def serve_calls(payload: int, channel: int) -> NoReturn:
    """Answer the calls that come over a socket, until it ends.

    Args:
        payload: {"source", "entry_point"}.
        channel: a stream socket; requests and replies have a length of four bytes before them.
    """
    request, process = read_payload(payload), os.getpid()
    stream = socket.socket(fileno=channel)
    entry = _load(request, lambda reply: send(stream, reply))
    if entry is not None:
        _leave_if_forked(process)
        send(stream, b'{"ready":true}')
        while (asked := receive(stream)) is not None:
            reply = _reply(entry, decode(asked), MAX_REPLY_BYTES)
            _leave_if_forked(process)
            send(stream, reply)
    os._exit(0)


def run_script(payload: int, standard_input: int, standard_output: int) -> NoReturn:
    """Run a program as Python runs a script.

    Args:
        payload: {"source"}.
        standard_input: what it reads.
        standard_output: what it prints.
    """
    source = read_payload(payload)["source"]
    os.dup2(standard_input, 0)
    os.dup2(standard_output, 1)
    os.closerange(3, 256)
    printed = _text(1, "w")
    for name, file in (("stdin", _text(0, "r")), ("stdout", printed)):
        vars(sys)[name] = vars(sys)[f"__{name}__"] = file
    module = new_module("__main__", source)
    code = 1
    try:
        exec(_compiled(source), vars(module))
        code = 0
    except SystemExit as left:
        code = _exit_code(left.code)
    except BaseException:  # whatever a program raises: told as Python tells it, and the status is 1
        sys.excepthook(*sys.exc_info())
    # What Python does at its end, but for tearing itself down.
    if "threading" in sys.modules:
        sys.modules["threading"]._shutdown()
    atexit._run_exitfuncs()
    try:
        if sys.stdout is not None and not getattr(sys.stdout, "closed", False):
            sys.stdout.flush()
    except BaseException:  # of a file of the program's own; Python's status for that
        code = code or 120
    vars(module).clear()  # files that it left open are written out
    gc.collect()
    with contextlib.suppress(OSError, ValueError):  # it may have been closed, or detached
        printed.flush()
    os._exit(code)


def _leave_if_forked(process: int) -> None:
    """End a child that the program forked and let go on: whether it replies first would be chance."""
    if os.getpid() != process:
        os._exit(0)


def _compiled(source: str) -> CodeType:
    return compile(source, "/tmp/program.py", "exec", dont_inherit=True)


def _exit_code(code: object) -> int:
    """Return the exit status that Python gives to a SystemExit."""
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 255
    return 1


def _text(descriptor: int, mode: str) -> io.TextIOWrapper:
    file = open(descriptor, f"{mode}b", closefd=False)  # noqa: SIM115
    return io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape")


class _Loader:
    """Tells a program's text to those who ask for it, as `inspect` does."""

    def __init__(self, source: str) -> None:
        self._source = source

    def get_source(self, name: str) -> str:
        return self._source


def new_module(name: str, source: str) -> ModuleType:
    """Return an empty module under this name, where dataclasses and the like look it up."""
    module = ModuleType(name)
    vars(module).update(__builtins__=builtins, __file__="/tmp/program.py", __loader__=_Loader(source))
    sys.modules[name] = module
    sys.argv = ["/tmp/program.py"]
    return module


def _load(request: dict[str, Any], tell: Any) -> Any:
    """Run the program's text, as an import would, and return its entry point; without one tell why."""
    module = new_module("solution", request["source"])
    try:
        exec(_compiled(request["source"]), vars(module))
    except SystemExit as left:
        if _exit_code(left.code):
            tell(_error("exit", f"exit status {_exit_code(left.code)} while it was loaded"))
            return None
    except BaseException as error:
        tell(_error(_kind_of(error), f"loading it raised {describe(error)}"))
        return None
    name = request["entry_point"]
    entry = vars(module).get(name)
    try:
        if entry is None and hasattr(vars(module).get("Solution"), name):
            entry = getattr(vars(module)["Solution"](), name)  # as some sites want it
    except BaseException as error:
        tell(_error(_kind_of(error), f"Solution() raised {describe(error)}"))
        return None
    if not callable(entry):
        what = "does not define" if entry is None else "does not define as a function"
        tell(_error("exception", f"the program {what} {name}"))
        return None
    return entry


def _reply(entry: Any, call: tuple[tuple[Any, ...], dict[str, Any]], max_bytes: int) -> bytes:
    positional, keywords = call
    try:
        value = entry(*positional, **keywords)
        return b'{"value":' + encode(value, max_bytes=max_bytes) + b"}"
    except CannotCrossError as error:
        return _error("value", f"it returned what is {error}")
    except SystemExit as left:
        return _error("exit", f"exit status {_exit_code(left.code)} in a call")
    except BaseException as error:
        return _error(_kind_of(error), describe(error), builtin_name(error))


def _error(kind: str, message: str, raised: str = "") -> bytes:
    return json.dumps({"error": kind, "message": message[:500], "raised": raised}).encode()


def _kind_of(error: BaseException) -> str:
    return "memory" if isinstance(error, MemoryError) else "exception"


def describe(error: BaseException) -> str:
    """Return an error's type and the begin of its message, whatever its own methods do."""
    try:
        message = str(error)[:300]
    except BaseException:  # its __str__ is the program's, and what it was is told in place of the message
        message = "(its message could not be made)"
    return f"{type(error).__name__[:80]}: {message}" if message else type(error).__name__[:80]


def builtin_name(error: BaseException) -> str:
    """Return the nearest of an error's types that Python itself has."""
    names = [kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins"]
    return names[0]


def read_payload(descriptor: int) -> dict[str, Any]:
    """Return what the client gave to this process."""
    found: dict[str, Any] = marshal.loads(os.read(descriptor, os.fstat(descriptor).st_size))
    os.close(descriptor)
    return found


def _write(descriptor: int, text: bytes) -> None:
    while text:
        text = text[os.write(descriptor, text) :]


def send(stream: socket.socket, message: bytes) -> None:
    """Send a message with its length before it."""
    stream.sendall(_HEADER.pack(len(message)) + message)


def receive(stream: socket.socket) -> bytes | None:
    """Return the next message; None at the end.

    Raises:
        CannotCrossError: it is too long.
    """
    header = _receive_exactly(stream, _HEADER.size)
    if header is None:
        return None
    (size,) = _HEADER.unpack(header)
    if size > MAX_REPLY_BYTES + 1000:
        raise CannotCrossError("a message is too long")
    return _receive_exactly(stream, size)


def _receive_exactly(stream: socket.socket, size: int) -> bytes | None:
    first = stream.recv(size)
    if len(first) == size:
        return first
    parts, left = [first], size - len(first)
    while left and parts[-1]:
        parts.append(stream.recv(min(left, 2**20)))
        left -= len(parts[-1])
    return None if left else b"".join(parts)
