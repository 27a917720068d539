"""A grader process: calls the rewards, on its main thread, and makes one verdict of what they say.

Standard input brings pickles: the recipe's section, then lists of (problem, solution) pairs. Replies leave as
lines of JSON on a private copy of standard output, while what the reward prints goes to the log. Started by
`graders`, which kills it when a call takes too long. Not a sandbox: the reward can do what its user can.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from rest_em.errors import RewardError, UnscorableError
from rest_em.processes import die_with_parent
from rest_em.rewards.registry import (
    LoadedPart,
    LoadedReward,
    describe,
    error_place,
    load_reward,
    reward_identity,
)
from rest_em.rewards.signatures import MisfitError, Task, finite, plain_number
from rest_em.types import Outcome, Problem, Solution

if TYPE_CHECKING:
    from rest_em.recipe import RewardSection

Reply = tuple[str, float, str | None, str]
"""(`correct`, `incorrect`, `unscorable` or `failed`; reward; answer; reason).

`unscorable` the reward said itself; `failed` is unscorable through a fault of the reward."""
TimedReply = tuple[str, float, str | None, str, float]
"""A reply as it is sent, its last field the wall seconds that the call took.

The kind `begun` is no reply: of several solutions judged together it says that another call begins."""

MAX_REASON = 600
"""Characters of a reason."""


@dataclass(frozen=True, slots=True)
class _Said:
    """What one reward said of one solution."""

    kind: str
    """`judged`, `unscorable` or `failed`."""
    reward: float
    reason: str
    """Empty where there is nothing to say beyond the number."""


def judge(
    loaded: LoadedReward, tasks: Sequence[Task], begin: Callable[[], None] = lambda: None
) -> list[Reply]:
    """Return what a recipe's rewards say of each solution.

    Args:
        loaded: the rewards.
        tasks: the solutions.
        begin: called before each call of a reward.
    """
    by_part = [[_heard(part, value) for value in part.call(tasks, begin)] for part in loaded.parts]
    return [
        _reply(loaded, problem, solution, [said[place] for said in by_part])
        for place, (problem, solution) in enumerate(tasks)
    ]


def _heard(part: LoadedPart, value: object) -> _Said:
    """Read what a reward returned, or raised."""
    if isinstance(value, UnscorableError):
        return _Said("unscorable", 0.0, str(value))
    if isinstance(value, MisfitError):
        return _Said("failed", 0.0, f"the reward {part.name} {value}")
    if isinstance(value, BaseException):
        place = error_place(value, part.source)
        return _Said("failed", 0.0, f"the reward {part.name} raised {describe(value)} ({place})")
    told = value.reason if isinstance(value, Outcome) else ""
    value = plain_number(value.reward if isinstance(value, Outcome) else value)
    reward = finite(value)
    if reward is None or (reward < 0 and not part.may_be_negative):
        found = repr(value) if isinstance(value, float) else f"a value of type {type(value).__name__}"
        said = f"returned {found}; wanted a bool or a finite number >= 0"
        return _Said("failed", 0.0, f"the reward {part.name} {said}")
    return _Said("judged", reward, told or ("wrong" if value is False else ""))


def _reply(loaded: LoadedReward, problem: Problem, solution: Solution, said: Sequence[_Said]) -> Reply:
    """Make one verdict of what each reward said; one that cannot judge leaves all of it unscorable."""
    answer = loaded.extract_answer(solution.text)
    broken = [one for one in said if one.kind != "judged"]
    if broken:
        kind, reward, reason = broken[0].kind, 0.0, f"{problem.id}: {broken[0].reason}"
    elif loaded.combine == "all":
        kind, reward, reason = _all_must_pass(loaded, said)
    else:
        kind, reward, reason = _sum(loaded, said, has_answer=answer is not None)
        reason = f"{problem.id}: {reason}" if kind == "failed" else reason
    return kind, reward, answer, reason[:MAX_REASON].encode("utf-8", "backslashreplace").decode()


def _all_must_pass(loaded: LoadedReward, said: Sequence[_Said]) -> tuple[str, float, str]:
    for part, one in zip(loaded.parts, said, strict=True):
        if one.reward < part.threshold:
            why = one.reason or f"reward {one.reward:g} is below {part.threshold:g}"
            return "incorrect", 0.0, f"{part.name}: {why}"
    return "correct", 1.0, "; ".join(one.reason for one in said if one.reason)


def _sum(loaded: LoadedReward, said: Sequence[_Said], *, has_answer: bool) -> tuple[str, float, str]:
    reward = sum(part.weight * one.reward for part, one in zip(loaded.parts, said, strict=True))
    below = f"reward {reward:g} is below {loaded.threshold:g}"
    if len(said) > 1:
        told = ", ".join(f"{part.name} {one.reward:g}" for part, one in zip(loaded.parts, said, strict=True))
        if reward < 0:
            return "failed", 0.0, f"the sum of the rewards is {reward:g}, and >= 0 is wanted: {told}"
        below, reason = f"{below}: {told}", ""
    else:
        reason = said[0].reason
    if reward >= loaded.threshold:
        return "correct", reward, "" if reason == "wrong" else reason
    return "incorrect", reward, "no answer" if reason == "wrong" and not has_answer else reason or below


def _private_pipes() -> tuple[BinaryIO, int]:
    """Keep the pipes to the supervisor for ourselves; a reward reads an empty input and prints to the log."""
    requests = os.fdopen(os.dup(0), "rb")
    replies = os.dup(1)
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    os.dup2(2, 1)
    return requests, replies


def _send(replies: int, *values: Any) -> None:
    lines = b"".join(json.dumps(value).encode() + b"\n" for value in values)
    while lines:
        lines = lines[os.write(replies, lines) :]


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
            f"reward {section.title}: its file has changed while the run goes on, and the verdicts of two "
            "rewards must not be mixed; give the same command again to go on with the new one"
        )
    return load_reward(section)


def _close(loaded: LoadedReward) -> None:
    """Have the rewards that can be closed end what they have started.

    A reward is anybody's code and may raise anything: the log tells it, and the others are closed all the
    same.
    """
    for part in loaded.parts:
        close = getattr(part.call.function, "close", None)
        if callable(close):
            try:
                close()
            except Exception:  # not swallowed: the log has its name and traceback, and the next one is closed
                print(f"reward {part.call.name}: close() failed; what it started may go on:", file=sys.stderr)
                traceback.print_exc()


def _leave_if_forked(process_id: int) -> None:
    """End a child that the reward forked and let return."""
    if os.getpid() != process_id:
        os._exit(0)


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
    batch_size = max(part.call.batch_size for part in loaded.parts)
    _send(replies, ["ready", float(batch_size), None, loaded.note, 0.0])

    def begin() -> None:
        _leave_if_forked(process_id)
        signal.setitimer(signal.ITIMER_REAL, 0)  # an alarm left set would hit the next call
        if len(tasks) > 1:
            _send(replies, ["begun", 0.0, None, "", 0.0])

    while True:
        try:
            tasks = pickle.load(requests)
        except EOFError:
            _close(loaded)
            os._exit(0)  # without waiting for threads that a reward may have left behind
        started = time.perf_counter()
        judged = judge(loaded, tasks, begin)
        seconds = (time.perf_counter() - started) / len(tasks)
        _leave_if_forked(process_id)
        signal.setitimer(signal.ITIMER_REAL, 0)  # an alarm left set would hit the next solution
        _send(replies, *((*reply, seconds) for reply in judged))


if __name__ == "__main__":
    main()
