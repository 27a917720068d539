"""`rest_em score`: stored solutions judged by a reward, a line of verdicts each, in their order.

The output grows line by line and holds whole lines only, so what is there says what is done: a command that
is killed goes on after it. Beside it lies what it belongs to. Left out: what a line of input may be
(`rest_em.problems.stored`), and what the verdicts say together (`rest_em.report.score`).
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from rest_em.errors import RunInterruptedError, ScoringError
from rest_em.problems.rows import shown_path
from rest_em.problems.stored import (
    BadLine,
    StoredProblems,
    StoredSolution,
    is_lines,
    read_problems,
    read_solutions,
)
from rest_em.recipe import RewardSection, difference
from rest_em.report.cells import printable
from rest_em.report.progress import Progress
from rest_em.report.score import Tally
from rest_em.rewards.graders import Graders
from rest_em.storage import file_hash
from rest_em.types import GradedSolution, Verdict

REFERENCES = {"unit_tests": "tests"}
"""The column that a reward checks against, where it is not `answer`."""
MAX_IN_FLIGHT = 4096
"""Solutions that are read and whose verdicts are not written yet: the most that a kill loses."""
MAX_IN_FLIGHT_BYTES = 2**25
"""Of their lines and their problems' lines; one is always let through."""
UNSCORABLE = b'"verdict": "unscorable"'
"""In a line of the output; inside a text the quotes would have backslashes."""
WAIT_SECONDS = 0.5
MAX_MESSAGE = 500
"""Characters of what is told of a bad line."""
ADVICE = "give --overwrite to judge all of them anew, or another --output"


@dataclass(frozen=True, slots=True)
class ScoreFiles:
    """What is judged, and where the verdicts go.

    Example:
        ScoreFiles(Path("p.jsonl"), Path("s.jsonl"), Path("verdicts.jsonl"), reference="answer")
    """

    problems: Path
    solutions: Path
    output: Path
    reference: str
    """The problems' column that the reward checks against."""

    @property
    def earlier(self) -> Path:
        """The verdicts of before, while those that were unscorable are judged again."""
        return Path(f"{self.output}.earlier")


def reference_column(section: RewardSection, column: str | None) -> str:
    """Return the problems' column that a reward checks against; `column` is what the user says."""
    return column or REFERENCES.get(section.title, "answer")


def judge_stored(
    files: ScoreFiles,
    section: RewardSection,
    progress: Progress,
    *,
    is_overwriting: bool = False,
    is_retrying: bool = False,
) -> Tally:
    """Judge what is not judged yet; return the verdicts on all.

    Args:
        is_overwriting: begin anew, whatever the output holds.
        is_retrying: judge again what could not be judged.

    Raises:
        ScoringError: a file cannot be used, or the output holds verdicts on something else.
        ProblemError: no problem can be used.
        RewardError: the reward cannot be imported.
        RunInterruptedError: it was asked to leave; the message says how far it is.
    """
    _refuse_wrong_paths(files)
    with ExitStack() as stack:
        log = Path(f"{files.output}.log")
        stack.callback(_remove_if_empty, log)
        graders = stack.enter_context(Graders(section, log, progress.say))
        before = _stamps(files)
        inputs = {
            "problems": _hash(files.problems),
            "solutions": _hash(files.solutions),
            "reference": files.reference,
            "reward": graders.identity,
        }
        problems = read_problems(files.problems, files.reference)
        output = stack.enter_context(_open_output(files, inputs, is_overwriting=is_overwriting))
        if is_retrying:
            output = stack.enter_context(_set_aside(files, output))
        for text in problems.bad_lines:
            progress.say(printable(text[:MAX_MESSAGE]))
        scoring = _Scoring(files, problems, graders, output, progress)
        try:
            with progress.stage("score", _num_lines(files.solutions), "lines"):
                scoring.work_through()
        except RunInterruptedError as error:
            # Counted in the file: a signal may come between the writing of verdicts and their counting.
            done = f"{_num_lines(files.output):,} verdicts are in {files.output}"
            raise RunInterruptedError(f"{error}; {done}") from error
        if _stamps(files) != before:
            raise ScoringError(
                f"{files.problems} or {files.solutions} has changed while it was read; {ADVICE}"
            )
        files.earlier.unlink(missing_ok=True)
        if not scoring.num_new:
            progress.say(f"{shown_path(files.output)}: finished already, nothing to judge")
    return scoring.tally


def _refuse_wrong_paths(files: ScoreFiles) -> None:
    for option, path in (("--problems", files.problems), ("--solutions", files.solutions)):
        if not path.is_file():
            found = "no file" if path.exists() else "not there"
            raise ScoringError(f"{option} {path}: it is {found}; a file that can be read again is wanted")
        if files.output.exists() and files.output.samefile(path):
            raise ScoringError(f"--output {files.output}: it is what {option} names; give a file of its own")
    if not is_lines(files.solutions):
        raise ScoringError(f"--solutions {files.solutions}: a .jsonl or .jsonl.gz file is wanted")
    if files.output.exists() and not files.output.is_file():
        raise ScoringError(f"--output {files.output}: it is no file; the path of a file to write is wanted")


def _hash(path: Path) -> str:
    try:
        return file_hash(path)
    except OSError as error:
        raise ScoringError(f"{path}: this file cannot be read: {error.strerror}") from error


def _stamps(files: ScoreFiles) -> list[tuple[int, int]]:
    """Return what shows that a file has been written to."""
    return [(one.st_size, one.st_mtime_ns) for one in (files.problems.stat(), files.solutions.stat())]


def _num_lines(path: Path) -> int:
    """Return how many lines there are; 0 where only reading would tell."""
    if path.suffix.lower() == ".gz":
        return 0
    with path.open("rb") as file:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(2**20), b""))


def _remove_if_empty(path: Path) -> None:
    if path.exists() and path.stat().st_size == 0:
        path.unlink()


@contextmanager
def _open_output(
    files: ScoreFiles, inputs: Mapping[str, Any], *, is_overwriting: bool
) -> Iterator[IO[bytes]]:
    """Give the output, whole lines only, at its end; nobody else writes it meanwhile.

    A file beside it says what its verdicts are on, and is the lock.

    Raises:
        ScoringError: it cannot be written, is being written, or holds verdicts on something else.
    """
    path = files.output
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            state = stack.enter_context(Path(f"{path}.state.json").open("a+", encoding="utf-8"))
            output = stack.enter_context(path.open("ab+", buffering=0))
        except OSError as error:
            raise ScoringError(f"--output {path}: it cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(state, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ScoringError(f"--output {path}: another command is writing it; wait for it") from error
        except OSError as error:
            raise ScoringError(
                f"--output {path}: no lock can be had ({error.strerror}); put it on a disk that has locks"
            ) from error
        if not is_overwriting and (path.stat().st_size or files.earlier.exists()):
            _refuse_other_inputs(files, _read_state(state), inputs)
            _cut_torn_line(output)
        else:
            output.truncate(0)
            files.earlier.unlink(missing_ok=True)
            state.truncate(0)
            json.dump(inputs, state, indent=2)
            state.flush()
            os.fsync(state.fileno())
        yield output
        os.fsync(output.fileno())


@contextmanager
def _set_aside(files: ScoreFiles, output: IO[bytes]) -> Iterator[IO[bytes]]:
    """Give an empty output where there are unscorable verdicts, keeping all beside it; else the same."""
    with files.output.open("rb") as lines:
        has_unscorable = any(UNSCORABLE in line for line in lines)
    if files.earlier.exists() or not has_unscorable:
        yield output
        return
    files.output.rename(files.earlier)
    with files.output.open("ab+", buffering=0) as anew:
        yield anew


def _read_state(state: IO[str]) -> Mapping[str, Any] | None:
    state.seek(0)
    try:
        value = json.load(state)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _refuse_other_inputs(
    files: ScoreFiles, before: Mapping[str, Any] | None, inputs: Mapping[str, Any]
) -> None:
    if before is None:
        raise ScoringError(
            f"--output {files.output}: it is there, and nothing beside it says what it judges; {ADVICE}"
        )
    if before == inputs:
        return
    changed = [
        f"  the content of --{name} {path}"
        for name, path in (("problems", files.problems), ("solutions", files.solutions))
        if before.get(name) != inputs[name]
    ]
    kept = ("reference", "reward")
    changed += [
        f"  {line}"
        for line in difference({key: before.get(key) for key in kept}, {key: inputs[key] for key in kept})
    ]
    told = "\n".join(changed)
    raise ScoringError(
        f"--output {files.output}: its verdicts are on something else; what has changed:\n{told}\n{ADVICE}"
    )


def _cut_torn_line(output: IO[bytes]) -> None:
    """Cut off what a kill has left behind the last whole line."""
    end = output.seek(0, os.SEEK_END)
    position = end
    while position:
        start = max(0, position - 2**20)
        output.seek(start)
        newline = output.read(position - start).rfind(b"\n")
        if newline >= 0:
            position = start + newline + 1
            break
        position = start
    if position < end:
        output.truncate(position)


class _Scoring:
    """Lines in, verdicts out in the same order; what is read and not written is bounded."""

    def __init__(
        self,
        files: ScoreFiles,
        problems: StoredProblems,
        graders: Graders,
        output: IO[bytes],
        progress: Progress,
    ) -> None:
        self.tally = Tally(problems.by_id)
        self.tally.num_bad_lines = len(problems.bad_lines)
        self.num_written = 0
        """Verdicts in the output."""
        self.num_new = 0
        """Of these, written by this command."""
        self._files, self._problems, self._graders = files, problems, graders
        self._output, self._progress = output, progress
        self._open: dict[int, StoredSolution] = {}
        """Read and not written, in their order, by the solution's identity."""
        self._rows: dict[int, dict[str, Any]] = {}
        """Verdicts that wait for one before them, by the solution's identity."""
        self._num_bytes = 0

    def work_through(self) -> None:
        """Judge every line that has no verdict yet."""
        there, earlier = _lines_of(self._files.output), _lines_of(self._files.earlier)
        for line in read_solutions(self._files.solutions, self._problems):
            if isinstance(line, BadLine):
                self.tally.num_bad_lines += 1
                self._progress.say(printable(line.text[:MAX_MESSAGE]))
                continue
            written, before = next(there, None), next(earlier, None)
            if written is not None:
                self._count(self._read(written, line))
                self._progress.advance_to(line.line)
            elif before is not None and UNSCORABLE not in before:
                self._admit(line)
                self._rows[id(line.solution)] = self._read(before, line)
            else:
                self._admit(line)
                problem = self._problems.by_id[line.solution.problem_id].problem
                self._graders.submit(problem, line.solution)
        if next(there, None) is not None:
            raise self._strange(self.num_written + 1, "there is no solution left for it")
        while self._open:
            self._collect()

    def _read(self, line: bytes, stored: StoredSolution) -> dict[str, Any]:
        """Return the verdict on a solution that an earlier command wrote."""
        solution, number = stored.solution, self.num_written + len(self._open) + 1
        try:
            row: dict[str, Any] = json.loads(line)
            Verdict(row["verdict"])
            identity = (row["problem_id"], row["index"])
        except (ValueError, KeyError, TypeError) as error:
            raise self._strange(number, "this is no verdict of rest_em score") from error
        if identity != (solution.problem_id, solution.index):
            wanted = f"{solution.problem_id!r}, {solution.index}"
            raise self._strange(
                number, f"it is on {identity[0]!r}, {identity[1]}, and the solution is {wanted}"
            )
        return row

    def _strange(self, number: int, what: str) -> ScoringError:
        return ScoringError(f"{shown_path(self._files.output)}:{number}: {what}; {ADVICE}")

    def _count(self, row: Mapping[str, Any]) -> None:
        self.tally.add(row["problem_id"], Verdict(row["verdict"]), row["answer"], row["reason"])
        self.num_written += 1

    def _admit(self, stored: StoredSolution) -> None:
        """Let a solution in once there is room for it."""
        weight = self._weight(stored)
        while self._open and (
            len(self._open) >= MAX_IN_FLIGHT or self._num_bytes + weight > MAX_IN_FLIGHT_BYTES
        ):
            self._collect()
        self._open[id(stored.solution)] = stored
        self._num_bytes += weight

    def _weight(self, stored: StoredSolution) -> int:
        return stored.num_bytes + self._problems.by_id[stored.solution.problem_id].num_bytes

    def _collect(self) -> None:
        """Wait for verdicts; write those that no earlier one is missing for."""
        for graded, seconds in self._graders.collect_timed(timeout_seconds=WAIT_SECONDS):
            self._rows[id(graded.solution)] = _row(graded, seconds)
        ready: list[StoredSolution] = []
        for key, stored in self._open.items():
            if key not in self._rows:
                break
            ready.append(stored)
        if not ready:
            return
        rows = [self._rows.pop(id(stored.solution)) for stored in ready]
        _write(self._output, "".join(json.dumps(row) + "\n" for row in rows).encode())
        for stored, row in zip(ready, rows, strict=True):
            del self._open[id(stored.solution)]
            self._num_bytes -= self._weight(stored)
            self._count(row)
        self.num_new += len(rows)
        unscorable = self.tally.num_unscorable
        self._progress.advance_to(ready[-1].line, f"{unscorable:,} unscorable" if unscorable else "")


def _lines_of(path: Path) -> Iterator[bytes]:
    """Yield the lines that a file has now; what is written meanwhile is not among them."""
    if not path.exists():
        return
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        while file.tell() < size:
            yield file.readline()


def _row(graded: GradedSolution, seconds: float) -> dict[str, Any]:
    return {
        "problem_id": graded.solution.problem_id,
        "index": graded.solution.index,
        "verdict": graded.verdict.value,
        "answer": graded.answer,
        "reason": graded.reason,
        "seconds": round(seconds, 6),
    }


def _write(output: IO[bytes], content: bytes) -> None:
    """Append to a file without a buffer, so that a signal leaves a beginning of `content` at worst."""
    rest = memoryview(content)
    while rest:
        rest = rest[output.write(rest) :]
