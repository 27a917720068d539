"""A grader process: calls the reward, one solution at a time, on its main thread.

Standard input brings pickles: the recipe's section, then (problem, solution) pairs. Replies leave as lines of
JSON on a private copy of standard output, while what the reward prints goes to the log. Started by `graders`,
which kills it when a call takes too long. Not a sandbox: the reward can do what its user can.
"""

from __future__ import annotations

import functools
import inspect
import json
import math
import numbers
import os
import pickle
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from rest_em.errors import RewardError, UnscorableError
from rest_em.processes import die_with_parent
from rest_em.rewards.registry import (
    LoadedReward,
    describe,
    error_place,
    load_reward,
    reward_identity,
)
from rest_em.types import Outcome, Problem, Solution

if TYPE_CHECKING:
    from rest_em.recipe import RewardSection

Reply = tuple[str, float, str | None, str]
"""(`correct`, `incorrect`, `unscorable` or `failed`; reward; answer; reason).

`unscorable` the reward said itself; `failed` is unscorable through a fault of the reward."""
TimedReply = tuple[str, float, str | None, str, float]
"""A reply as it is sent, its last field the wall seconds that the call took."""

MAX_REASON = 600
"""Characters of a reason."""


def judge(loaded: LoadedReward, problem: Problem, solution: Solution) -> Reply:
    """Return what a reward says of a solution."""
    answer = loaded.extract_answer(solution.text)
    try:
        returned = loaded.function(problem, solution)
        told = returned.reason if isinstance(returned, Outcome) else ""
        value = _plain_number(returned.reward if isinstance(returned, Outcome) else returned)
    except UnscorableError as error:
        kind, reward, reason = "unscorable", 0.0, str(error)
    except BaseException as error:  # a user's code, which may raise anything, SystemExit included
        said = f"raised {describe(error)} ({error_place(error, _source_file(loaded))})"
        kind, reward, reason = "failed", 0.0, f"the reward {loaded.name} {said}"
    else:
        kind, reward, reason = _read(value, loaded, has_answer=answer is not None)
        reason = told or reason
    if kind in {"unscorable", "failed"}:
        reason = f"{problem.id}: {reason}"[:MAX_REASON]
    return kind, reward, answer, reason.encode("utf-8", "backslashreplace").decode()


def _read(value: object, loaded: LoadedReward, *, has_answer: bool) -> tuple[str, float, str]:
    """Return kind, reward and reason of what a reward returned."""
    if value is True:
        return "correct", 1.0, ""
    if value is False:
        return "incorrect", 0.0, "wrong" if has_answer else "no answer"
    reward = _weight(value)
    if reward is None:
        found = repr(value) if isinstance(value, float) else f"a value of type {type(value).__name__}"
        said = f"returned {found}; wanted a bool or a finite number >= 0"
        return "failed", 0.0, f"the reward {loaded.name} {said}"
    if reward >= loaded.threshold:
        return "correct", reward, ""
    return "incorrect", reward, f"reward {reward:g} is below {loaded.threshold:g}"


def _plain_number(value: object) -> object:
    """Return numpy's scalars as Python's own; anything else as it is."""
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.generic):
        plain: object = value.item()
        return plain
    return value


def _weight(value: object) -> float | None:
    """Return a reward as a float; None if it is none."""
    if not isinstance(value, numbers.Real):
        return None
    try:
        reward = float(value)
    except OverflowError:
        return None
    return reward if math.isfinite(reward) and reward >= 0 else None


def _source_file(loaded: LoadedReward) -> Path | None:
    function = loaded.function.func if isinstance(loaded.function, functools.partial) else loaded.function
    function = inspect.unwrap(function)
    return Path(function.__code__.co_filename) if inspect.isfunction(function) else None


def _private_pipes() -> tuple[BinaryIO, int]:
    """Keep the pipes to the supervisor for ourselves; a reward reads an empty input and prints to the log."""
    requests = os.fdopen(os.dup(0), "rb")
    replies = os.dup(1)
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    os.dup2(2, 1)
    return requests, replies


def _send(replies: int, value: Any) -> None:
    line = json.dumps(value).encode() + b"\n"
    while line:
        line = line[os.write(replies, line) :]


def _watch_supervisor(lifeline: int) -> None:
    """Have a process of its own kill this group, with all that rewards start in it, when the supervisor dies.

    Orphaned at once, so that a reward never waits for it as for a child of its own.

    Args:
        lifeline: a pipe that ends when the supervisor does.
    """
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        os.close(lifeline)
        return
    if os.fork():
        os._exit(0)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):  # the supervisor's pipes end with the grader, not with this process
        os.dup2(null, descriptor)
    os.read(lifeline, 1)
    os.killpg(0, signal.SIGKILL)


def _load(section: RewardSection, identity: Mapping[str, Any]) -> LoadedReward:
    found = reward_identity(section)
    if found != identity:
        raise RewardError(
            f"reward {section.name}: its file has changed while the run goes on, and the verdicts of two "
            "rewards must not be mixed; give the same command again to go on with the new one"
        )
    return load_reward(section)


def main() -> None:
    """Judge until standard input ends."""
    die_with_parent(signal.SIGKILL, int(sys.argv[1]))
    _watch_supervisor(int(sys.argv[2]))
    process_id = os.getpid()
    requests, replies = _private_pipes()
    try:
        loaded = _load(*pickle.load(requests))
    except RewardError as error:
        _send(replies, ["error", 0.0, None, str(error), 0.0])
        return
    _send(replies, ["ready", 0.0, None, loaded.note, 0.0])
    while True:
        try:
            problem, solution = pickle.load(requests)
        except EOFError:
            os._exit(0)  # without waiting for threads that a reward may have left behind
        started = time.perf_counter()
        reply = (*judge(loaded, problem, solution), time.perf_counter() - started)
        if os.getpid() != process_id:
            os._exit(0)  # a child that the reward forked and let return
        signal.setitimer(signal.ITIMER_REAL, 0)  # an alarm left set would hit the next solution
        _send(replies, reply)


if __name__ == "__main__":
    main()
