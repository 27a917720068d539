"""What a test's process runs: the source of a test, with a proxy in the place of the program that it calls.

It is isolated as a program is, because a test's source is a third party's; but it is another process, in
another sandbox, and what it says of the verdict is believed. The program can send it values and errors, exact
builtin ones, and nothing else.
"""

from __future__ import annotations

import builtins
import json
import os
import socket
import traceback
from typing import Any, NoReturn

from rest_em.rewards.sandbox.candidate import (
    ERRORS,
    MAX_REPLY_BYTES,
    describe,
    new_module,
    read_payload,
    receive,
    send,
)
from rest_em.rewards.sandbox.values import CannotCrossError, decode, encode


class _ProgramFailedError(BaseException):
    """The program has ended, or gave what is no answer; no test can catch this as an Exception."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class _Proxy:
    """Stands for the program's entry point."""

    def __init__(self, stream: socket.socket, name: str) -> None:
        self._stream = stream
        self.__name__ = self.__qualname__ = name
        self.num_calls = 0
        self.raised: BaseException | None = None
        self._is_ready = False

    def __call__(self, *positional: Any, **keywords: Any) -> Any:
        if not self._is_ready:
            self._ask()  # whether it could be loaded
            self._is_ready = True
        try:
            request = encode((positional, keywords), max_bytes=MAX_REPLY_BYTES)
        except CannotCrossError as error:
            raise _ProgramFailedError("needs", f"its tests pass an argument {error}") from None
        self.num_calls += 1
        try:
            send(self._stream, request)
        except OSError:
            raise _ProgramFailedError("gone", "the program has ended") from None
        return self._ask()

    def _ask(self) -> Any:
        try:
            message = receive(self._stream)
            if message is None:
                raise _ProgramFailedError("gone", "the program has ended")
            found = decode_reply(message)
        except OSError:
            raise _ProgramFailedError("gone", "the program has ended") from None
        except CannotCrossError as error:
            raise _ProgramFailedError("value", f"the program's answer is {error}") from None
        if "error" not in found:
            return found.get("value")
        kind, told = found["error"], found["message"]  # of `ERRORS`: no verdict can be forged so
        error_type = vars(builtins).get(found["raised"])
        if kind != "exception" or not (isinstance(error_type, type) and issubclass(error_type, Exception)):
            raise _ProgramFailedError(kind, told)
        try:
            self.raised = error_type(told)
        except TypeError:  # as UnicodeDecodeError, which wants more than a message
            self.raised = ValueError(told)
        raise self.raised


def decode_reply(message: bytes) -> dict[str, Any]:
    """Return a program's reply: a value, or an error's kind, message and builtin type.

    Raises:
        CannotCrossError: it is none.
    """
    if message.startswith(b'{"value":') and message.endswith(b"}"):
        return {"value": decode(message[len(b'{"value":') : -1])}
    try:
        found = json.loads(message)
    except (ValueError, RecursionError):
        raise CannotCrossError("no reply") from None
    if found == {"ready": True}:
        return found  # type: ignore[no-any-return]
    if (
        isinstance(found, dict)
        and all(type(found.get(key)) is str for key in ("error", "message", "raised"))
        and found["error"] in ERRORS
    ):
        return found
    raise CannotCrossError("no reply")


def run_test(payload: int, channel: int, results: int) -> NoReturn:
    """Run a test and write the verdict: [kind, message].

    The kind is `passed`, `failed` (the test says so), `exception` (the program raised what the test does not
    expect), `untested` (the program was never called), `broken` (the test cannot be run), or as the program's
    own end was.

    Args:
        payload: {"setup", "test", "entry_point"}.
        channel: leads to the program.
        results: where the verdict goes.
    """
    request = read_payload(payload)
    proxy = _Proxy(socket.socket(fileno=channel), request["entry_point"])
    kind, message = _verdict(request, proxy)
    os.write(results, json.dumps([kind, message[:500]]).encode())
    os._exit(0)


def run_together(payload: int, results: int) -> NoReturn:
    """Run a program and then its test, in one process and one namespace: the weaker mode.

    What proves that the test ended well is a word that the payload brings; a program that looks for it can
    find it.

    Args:
        payload: {"source", "setup", "test", "entry_point", "word"}.
        results: where the verdict goes, `word` in the place of `passed`.
    """
    request = read_payload(payload)
    module = new_module("__main__", request["source"])
    kind, message = request["word"], ""
    for part in ("source", "setup", "test", "check"):
        try:
            if part == "check":
                if request["entry_point"] != "check" and "check" in vars(module):
                    vars(module)["check"](vars(module)[request["entry_point"]])
            else:
                code = compile(request[part], f"<{part}>", "exec", dont_inherit=True)
                exec(code, vars(module))
        except AssertionError as error:
            kind, message = "failed", describe(error)
        except BaseException as error:
            kind, message = "exception", describe(error)
        if message:
            break
    os.write(results, json.dumps([kind, message[:500]]).encode())
    os._exit(0)


def _verdict(request: dict[str, str], proxy: _Proxy) -> tuple[str, str]:
    name = request["entry_point"]
    module = new_module("test", request["test"])
    try:
        codes = [compile(request[part], f"<{part}>", "exec", dont_inherit=True) for part in ("setup", "test")]
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        return "broken", f"the test cannot be compiled: {describe(error)}"
    try:
        exec(codes[0], vars(module))
        vars(module)[name] = proxy
        vars(module).setdefault("candidate", proxy)
        exec(codes[1], vars(module))
        if name != "check" and "check" in vars(module):
            vars(module)["check"](proxy)
    except _ProgramFailedError as error:
        return error.kind, str(error)
    except BaseException as error:
        return "exception" if proxy.raised is error else _kind_of(error), describe(error)
    if not proxy.num_calls:
        return "untested", f"the test ended without a call of {name}"
    return "passed", ""


def _kind_of(error: BaseException) -> str:
    """Return what a test's end says of the program, or of the test where a name in it is not there.

    What the test evaluates of the program's may lack a name too, and says so of the program.
    """
    if not isinstance(error, NameError | ImportError):
        return "failed"
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return "broken" if frame.f_code.co_filename in ("<setup>", "<test>") else "failed"
