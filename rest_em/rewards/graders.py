"""Solutions judged in processes that can be killed, without ever blocking the loop that asks.

A grader that takes too long over a solution, or dies of it, is replaced, and the solution is unscorable.
The rewards themselves are in `answers` and in files of the users' own.
"""

from __future__ import annotations

import os
import select
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING

from rest_em.errors import RewardError
from rest_em.processes import usable_cores
from rest_em.rewards.grader_process import GraderProcess
from rest_em.rewards.registry import call_limit_seconds, is_built_in, reward_identity
from rest_em.rewards.signatures import Task
from rest_em.rewards.worker import TimedReply
from rest_em.types import GradedSolution, Problem, Solution, Verdict

if TYPE_CHECKING:
    from rest_em.recipe import RewardSection

MAX_DEFAULT_WORKERS = 8
START_SECONDS = 300.0
"""How long the import of a reward may take."""
LULL_SECONDS = 0.005
"""How long the supervisor waits for more replies when one has come: each look costs the graders a little."""
SLICE_SECONDS = 0.05
"""How often clocks and deaths are looked at while waiting for a reply."""
MAX_LOG_BYTES = 2**26
"""A log of what rewards print is emptied when it is larger."""
WANTED = "it must return a bool or a finite number >= 0, or raise rest_em.errors.UnscorableError"


class Graders:
    """A pool of grader processes; a context that leaves no process behind.

    Processes start with the first solution. Used from one thread: they die with the thread that started them.

    Example:
        with Graders(recipe.reward, Path("graders.log")) as graders:
            graders.submit(problem, solution)
            graded = graders.collect(timeout_seconds=1.0)
    """

    def __init__(
        self, section: RewardSection, log: Path | None = None, tell: Callable[[str], None] | None = None
    ) -> None:
        """Look at the reward's file; start nothing yet.

        Args:
            section: the recipe's `reward`.
            log: gets what rewards print; None drops it.
            tell: is called once with what people are to know of the reward, as the isolation of programs.

        Raises:
            RewardError: there is no such reward.
        """
        self._section = section
        self.identity = reward_identity(section)
        """What verdicts depend on; a grader that finds a changed file later judges nothing."""
        self._num_workers = section.num_workers or min(usable_cores(), MAX_DEFAULT_WORKERS)
        self._limit_seconds = call_limit_seconds(section)
        self._log_path = log
        self._tell = tell
        self._log: IO[bytes] | None = None
        self._queue: deque[Task] = deque()
        self._processes: list[GraderProcess] = []
        self._alone: set[int] = set()
        """Solutions of a batch that hung or killed its process, which are judged one by one, by identity."""
        self._done: list[tuple[GradedSolution, bool, float]] = []
        self._num_pending = 0

    def __enter__(self) -> Graders:
        """Return itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """End the processes; what has not been collected is lost."""
        for process in self._processes:
            process.dismiss()
        while self._processes:
            self._processes.pop().end()
        if self._log is not None:
            self._log.close()
            self._log = None

    @property
    def num_pending(self) -> int:
        """Solutions submitted and not collected."""
        return self._num_pending

    def submit(self, problem: Problem, solution: Solution) -> None:
        """Hand a solution over; `collect` moves it on."""
        self._queue.append((problem, solution))
        self._num_pending += 1

    def collect(self, timeout_seconds: float = 0.0) -> list[GradedSolution]:
        """Return what has been judged since the last call, in any order.

        Args:
            timeout_seconds: how long to wait for a first verdict where none is there and some are pending.

        Raises:
            RewardError: the reward cannot be imported, or its file has changed.
        """
        return [graded for graded, _, _ in self._collect(timeout_seconds)]

    def collect_timed(self, timeout_seconds: float = 0.0) -> list[tuple[GradedSolution, float]]:
        """Return as `collect` does, each with the wall seconds that its judging took, waiting left out."""
        return [(graded, seconds) for graded, _, seconds in self._collect(timeout_seconds)]

    def judge_one(self, problem: Problem, solution: Solution) -> tuple[GradedSolution, bool]:
        """Judge one solution while nothing else is pending; say also whether the reward failed on it."""
        assert not self._num_pending
        self.submit(problem, solution)
        while not (done := self._collect(SLICE_SECONDS)):
            pass
        graded, has_failed, _ = done[0]
        return graded, has_failed

    def _collect(self, timeout_seconds: float) -> list[tuple[GradedSolution, bool, float]]:
        deadline = time.monotonic() + timeout_seconds
        self._step()
        while not self._done and self._num_pending and (left := deadline - time.monotonic()) > 0:
            self._wait(min(left, SLICE_SECONDS))
            self._step()
        done, self._done = self._done, []
        self._num_pending -= len(done)
        return done

    def _step(self) -> None:
        """Take replies, see to the hung and the dead, and hand out work."""
        for process in list(self._processes):
            self._watch(process)
        num_open = len(self._queue) + sum(len(process.tasks) for process in self._processes)
        while len(self._processes) < min(self._num_workers, num_open):
            self._processes.append(GraderProcess(self._section, self.identity, self._open_log()))
        for process in self._processes:
            process.fill(self._queue, -(-num_open // len(self._processes)), self._alone)
        if self._log is not None and os.fstat(self._log.fileno()).st_size > MAX_LOG_BYTES:
            os.ftruncate(self._log.fileno(), 0)

    def _watch(self, process: GraderProcess) -> None:
        is_gone = process.is_gone  # asked before receiving: what it sent before it died counts
        for reply in process.receive():
            self._take(process, reply)
        if not process.is_ready:
            if is_gone or process.silent_seconds > START_SECONDS:
                self._processes.remove(process)
                ended = process.end()
                how = ended if is_gone else f"was not ready within {START_SECONDS:g} s"
                name = f"reward.{self._section.key} {self._section.title}"
                raise RewardError(f"{name}: importing it, the grader process {how}{self._see_log()}")
        elif is_gone:
            self._replace(process, "its grader process {how}")
        elif process.tasks and process.silent_seconds > self._limit_seconds:
            what = f"took longer than {self._limit_seconds:g} s (reward.timeout_seconds) and was killed"
            self._replace(process, what)

    def _take(self, process: GraderProcess, reply: TimedReply) -> None:
        kind, reward, answer, reason, seconds = reply
        if kind == "ready":
            process.is_ready, process.batch_size = True, int(reward)
            if reason and self._tell is not None:
                self._tell(reason)
                self._tell = None
        elif kind == "error":
            raise RewardError(reason)
        elif kind == "begun":
            return  # its sign of life was what counts
        else:
            _, solution = process.answered()
            self._alone.discard(id(solution))
            verdict = Verdict.UNSCORABLE if kind == "failed" else Verdict(kind)
            graded = GradedSolution(solution, verdict, reward, answer, reason)
            self._done.append((graded, kind == "failed", seconds))

    def _replace(self, process: GraderProcess, what: str) -> None:
        """End a grader; the solution that it was judging is unscorable, the others go to the next grader.

        Where it was judging several, which of them is at fault is found by judging each alone.
        """
        self._processes.remove(process)
        seconds = process.silent_seconds
        how = process.end()
        if process.begun > 1:
            self._alone |= {id(solution) for _, solution in islice(process.tasks, process.begun)}
        elif process.tasks:
            problem, solution = process.tasks.popleft()
            reason = f"{problem.id}: the reward {self._section.title} {what.format(how=how)}{self._see_log()}"
            self._done.append(
                (GradedSolution(solution, Verdict.UNSCORABLE, 0.0, None, reason), True, seconds)
            )
        self._queue.extendleft(reversed(process.tasks))

    def _wait(self, seconds: float) -> None:
        poll = select.poll()
        for process in self._processes:
            for descriptor, mask in process.events.items():
                poll.register(descriptor, mask)
        if poll.poll(1000 * seconds):
            time.sleep(LULL_SECONDS)

    def _open_log(self) -> IO[bytes] | None:
        if self._log is None and self._log_path is not None:
            self._log_path.parent.mkdir(parents=True, exist_ok=True)
            self._log = self._log_path.open("ab")
        return self._log

    def _see_log(self) -> str:
        return f"; see {self._log_path}" if self._log_path is not None else ""


def canary(section: RewardSection, problem: Problem, tell: Callable[[str], None] | None = None) -> None:
    """Call a reward once on a real problem, so that a broken one shows before anything is sampled.

    A built-in reward must find a solution that is nothing but the reference correct, and an empty one not;
    `unit_tests`, which has no solution at hand, must refuse an empty one. A plug-in must be able to judge an
    empty solution, or say that it cannot.

    Args:
        section: the recipe's `reward`.
        problem: any.
        tell: as that of `Graders`.

    Raises:
        RewardError: it does not; the message says what happened.
    """
    where = f"reward.{section.key} {section.title}, tried on problem {problem.id}"
    gold = None
    with Graders(section.model_copy(update={"num_workers": 1}), tell=tell) as graders:
        empty, has_failed = graders.judge_one(problem, _solution(problem, ""))
        if has_failed:
            raise RewardError(f"{where} with an empty solution: {empty.reason}; {WANTED}")
        if not is_built_in(section):
            return
        text = str(problem.reference)
        if section.name == "boxed" and "\\boxed" not in text:
            text = f"\\boxed{{{text}}}"
        if section.name is not None and section.name != "unit_tests":
            gold, _ = graders.judge_one(problem, _solution(problem, text))
    advice = "choose another reward, or the column with the gold answer or the tests: problems.reference"
    for judged in (empty, gold):
        if judged is not None and judged.verdict is Verdict.UNSCORABLE:
            raise RewardError(f"{where}: {judged.reason}; {advice}")
    if gold is not None and gold.verdict is not Verdict.CORRECT:
        raise RewardError(
            f"{where}: its own reference {text[:80]!r} as the solution is not correct; {advice}"
        )
    if empty.verdict is Verdict.CORRECT:
        raise RewardError(f"{where}: an empty solution is correct; {advice}")


def _solution(problem: Problem, text: str) -> Solution:
    return Solution(problem.id, index=0, iteration=0, text=text, token_ids=(), finish_reason="eos")


def check_unscorable(reasons: Sequence[str], num_judged: int, section: RewardSection, where: str) -> None:
    """Stop a run whose reward cannot judge.

    Args:
        reasons: why, of each that could not be judged.
        num_judged: of so many.
        section: the recipe's `reward`.
        where: the stage, for the message.

    Raises:
        RewardError: they are more than `reward.max_unscorable` of them; up to three reasons are given.
    """
    if not reasons or len(reasons) / num_judged <= section.max_unscorable:
        return
    shown = "\n".join(f"  - {reason}" for reason in list(dict.fromkeys(reasons))[:3])
    raise RewardError(
        f"{where}: {len(reasons):,} of {num_judged:,} solutions could not be judged "
        f"({len(reasons) / num_judged:.1%}, allowed are {section.max_unscorable:.1%}); mend the reward "
        f"{section.title} or its references, or raise reward.max_unscorable. Reasons:\n{shown}"
    )
