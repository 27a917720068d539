"""Solutions drawn by a policy on all ranks, and judged as they arrive.

The sampling stage commits work units to the run folder; rank 0 sees them there and hands their solutions
to its graders while the stage goes on. A unit is drawn once and judged once, whatever was killed in
between. Which draws are wanted, and what becomes of them, is left to `rest_em.algorithm`.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rest_em.errors import StageError
from rest_em.ledger import Stage
from rest_em.points import METRICS
from rest_em.rewards.graders import check_unscorable
from rest_em.run import Asked, PromptedPolicy, Workplace
from rest_em.sampling.units import plan_units, unit_path
from rest_em.storage import (
    append_line,
    content_hash,
    read_graded,
    read_json,
    read_lines,
    read_solutions,
    request_to_json,
    write_graded,
    write_json,
)
from rest_em.types import DrawRequest, GradedSolution, Problem, SamplingParams, Solution, Verdict
from rest_em.usage import usage_entry

SCAN_SECONDS = 0.5
"""How often the run folder is looked at for new units."""
PROGRESS = Path("logs") / "progress"
"""Where the sampling stage's ranks say how far they are, below the run folder."""
LATE_SECONDS = 60.0
"""How long a unit that another node has written may take to show itself on a shared disk."""
QUIET_SECONDS = 2.0
"""Judging that takes no longer than this after the drawing is not shown as a stage of its own."""
MIN_PROBLEMS = 20
"""So many problems show, before a draw is complete, whether the reward is broken."""


@dataclass(frozen=True, slots=True)
class Draw:
    """Solutions wanted of one policy, and where they go in the folder.

    Example:
        Draw("iteration-01", "E-step 1", base, asked, request, samples, verdicts)
    """

    name: str
    """A folder below the run folder, which gets `samples` and `verdicts`."""
    title: str
    """How progress calls it."""
    prompted: PromptedPolicy
    asked: Asked
    request: DrawRequest
    samples: Stage
    verdicts: Stage


def plan_draw(
    place: Workplace,
    name: str,
    prompted: PromptedPolicy,
    problems: Sequence[Problem],
    params: SamplingParams,
    *,
    asked: Asked,
    title: str,
    iteration: int,
) -> Draw:
    """Return a draw with all that its samples and its verdicts depend on."""
    request = DrawRequest(
        name=f"{name}/samples",
        problems=tuple(problems),
        params=params,
        iteration=iteration,
        seed=asked.seed,
        unit_size=asked.unit_size,
        max_rows=asked.max_rows,
    )
    value = request_to_json(request)
    inputs = {
        "model": asked.model.model_dump(mode="json"),
        "seed": asked.seed,
        "prompt": asked.prompt_inputs,
        "problems": content_hash(value["problems"]),
        "sampling": value["params"] | {"unit_size": request.unit_size, "max_rows": request.max_rows},
    }
    samples = Stage(f"{name}/samples", inputs, after=prompted.made_by)
    references = content_hash([dataclasses.asdict(one) for one in problems])
    reward = place.judges.of(asked.reward).identity
    verdicts = Stage(f"{name}/verdicts", {"reward": reward, "references": references}, after=(samples,))
    return Draw(name, title, prompted, asked, request, samples, verdicts)


def draw_and_judge(place: Workplace, draws: Sequence[Draw]) -> list[list[GradedSolution]]:
    """Return each draw's judged solutions, by problem, then index; do only what is still to be done.

    All draws of one call share one sampling process a rank, in the order given. A survey, which does nothing,
    gets no solutions.

    Raises:
        RecipeChangedError: what is there was drawn or judged with other settings.
        RewardError: too many solutions cannot be judged.
        StageError: a sampling process failed.
        RunInterruptedError: the run was asked to leave.
    """
    unfinished = [draw for draw in draws if not _is_finished(place, draw)]
    if place.ledger.is_survey:
        return [[] for _ in draws]
    open_draws = [_OpenDraw(place, draw) for draw in unfinished]
    if open_draws:
        _work_through(place, open_draws)
    return [_read(place, draw) for draw in draws]


def _is_finished(place: Workplace, draw: Draw) -> bool:
    results = [place.ledger.result(draw.samples), place.ledger.result(draw.verdicts)]
    return None not in results


def _unit_sizes(draw: Draw) -> list[int]:
    """Return how many solutions each unit of a draw has."""
    request = draw.request
    plan = plan_units(len(request.problems), request.params.num_samples, request.unit_size)
    return [sum(len(indices) for _, indices in unit) for unit in plan]


def _unit_path(place: Workplace, draw: Draw, unit: int) -> Path:
    return unit_path(place.folder / draw.samples.name, unit)


def _verdict_path(place: Workplace, draw: Draw, unit: int) -> Path:
    return place.folder / draw.verdicts.name / draw.verdicts.fingerprint / f"{unit:05d}.parquet"


def _read(place: Workplace, draw: Draw) -> list[GradedSolution]:
    """Return a finished draw; every solution has its verdict."""
    judged: list[GradedSolution] = []
    for unit in range(len(_unit_sizes(draw))):
        path = _verdict_path(place, draw, unit)
        solutions = read_solutions(_unit_path(place, draw, unit))
        graded = read_graded(path, solutions)
        assert len(graded) == len(solutions), f"{path}: {len(graded)} verdicts on {len(solutions)} solutions"
        judged += graded
    return judged


class _OpenDraw:
    """A draw on its way: a unit is missing, then on disk, then with the graders, then judged."""

    def __init__(self, place: Workplace, draw: Draw) -> None:
        self.draw = draw
        self.sizes = _unit_sizes(draw)
        """Solutions of each unit."""
        self.unscorable: list[GradedSolution] = []
        self.num_judged = 0
        self.judged_problems: set[str] = set()
        self._place = place
        self.graders = place.judges.of(draw.asked.reward)
        place.ledger.begin(draw.samples)
        write_json(place.folder / draw.samples.name / "request.json", request_to_json(draw.request))
        _remove_void_verdicts(place, draw, len(self.sizes))
        units = range(len(self.sizes))
        self.missing = [unit for unit in units if not _unit_path(place, draw, unit).exists()]
        self.unread = [unit for unit in units if not _verdict_path(place, draw, unit).exists()]
        """Units that are not with the graders yet, and not judged."""
        self.num_to_judge = sum(self.sizes[unit] for unit in self.unread)
        self._with_graders: dict[int, dict[int, GradedSolution]] = {}
        """Unit -> the verdicts so far, by the solution's place in the unit."""
        self._problems = {problem.id: problem for problem in draw.request.problems}

    @property
    def num_solutions(self) -> int:
        """How many the draw is for."""
        return sum(self.sizes)

    def arrivals(self) -> Iterator[tuple[int, list[Solution]]]:
        """Give the units that have been committed since the last call and are not judged."""
        for unit in list(self.unread):
            path = _unit_path(self._place, self.draw, unit)
            if path.exists():
                self.unread.remove(unit)
                yield unit, read_solutions(path)

    def submit(self, unit: int, solutions: list[Solution]) -> None:
        """Hand a unit's solutions to the graders."""
        self._with_graders[unit] = {}
        for solution in solutions:
            self.graders.submit(self._problems[solution.problem_id], solution)

    def take(self, unit: int, place: int, graded: GradedSolution) -> None:
        """Take one verdict; with the last one of its unit, write the unit's verdicts."""
        self.num_judged += 1
        self.judged_problems.add(graded.solution.problem_id)
        if graded.verdict is Verdict.UNSCORABLE:
            self.unscorable.append(graded)
        verdicts = self._with_graders[unit]
        verdicts[place] = graded
        if len(verdicts) == self.sizes[unit]:
            path = _verdict_path(self._place, self.draw, unit)
            write_graded(path, [verdicts[place] for place in range(self.sizes[unit])])
            del self._with_graders[unit]

    @property
    def is_judged(self) -> bool:
        """Whether every unit is drawn and judged."""
        return not self.unread and not self._with_graders


def _remove_void_verdicts(place: Workplace, draw: Draw, num_units: int) -> None:
    """Remove the verdicts of another reward, on solutions that are gone, and of units with an unscorable one.

    What the reward could not judge is judged again, with its unit: what was wrong may have been mended since.
    """
    kept = place.folder / draw.verdicts.name / draw.verdicts.fingerprint
    for other in kept.parent.glob("*"):
        if other != kept:
            shutil.rmtree(other)
    for unit in range(num_units):
        solutions, verdicts = _unit_path(place, draw, unit), _verdict_path(place, draw, unit)
        if verdicts.exists() and not (solutions.exists() and _all_scored(verdicts, solutions)):
            verdicts.unlink()


def _all_scored(verdicts: Path, solutions: Path) -> bool:
    graded = read_graded(verdicts, read_solutions(solutions))
    return all(one.verdict is not Verdict.UNSCORABLE for one in graded)


class _Intake:
    """Rank 0's loop beside a sampling stage: units in, verdicts out, finished draws into the ledger."""

    def __init__(self, place: Workplace, open_draws: list[_OpenDraw]) -> None:
        self._place = place
        self._draws = tuple(open_draws)
        self._open = list(open_draws)
        self._owners: dict[int, tuple[_OpenDraw, int, int]] = {}
        """The draw, the unit and the place in it of a solution with the graders, by the object's identity."""
        self._graders = list({id(one.graders): one.graders for one in open_draws}.values())
        self._scanned = 0.0
        self._last_unit = time.monotonic()
        self._judging_since: float | None = None

    @property
    def is_done(self) -> bool:
        """Whether every draw is complete and in the ledger."""
        return not self._open

    def draw(self) -> None:
        """Do what can be done now, while the stage draws; show how far it is."""
        if self._step():
            waiting = self._num_pending
            note = f"{waiting} with the graders" if waiting else ""
            self._place.progress.advance_to(_done_by_ranks(self._place.folder), note)

    @property
    def _num_pending(self) -> int:
        return sum(graders.num_pending for graders in self._graders)

    def judge(self) -> None:
        """Judge what all ranks have drawn, to its end.

        Raises:
            StageError: a unit that a rank says it has drawn is not there.
        """
        started = self._judging_since = time.monotonic()
        self._step(is_due=True)
        while not self.is_done and time.monotonic() - started < QUIET_SECONDS:
            self._step(wait_seconds=SCAN_SECONDS)
        if self.is_done:
            return
        title = ", ".join(dict.fromkeys(f"{one.draw.title}: judge" for one in self._open))
        total = sum(one.num_to_judge for one in self._draws)
        with self._place.progress.stage(title, total, "solutions"):
            while not self.is_done:
                self._step(wait_seconds=SCAN_SECONDS)
                done = sum(one.num_judged for one in self._draws)
                self._place.progress.advance_to(done, self._unscorable_note())
                if time.monotonic() - started > LATE_SECONDS:
                    self._refuse_absent_units()

    def _step(self, wait_seconds: float = 0.0, *, is_due: bool = False) -> bool:
        """Take units and verdicts, and finish what is complete; say whether it was time to look for units.

        Args:
            wait_seconds: how long to wait for a verdict, or for a unit, where there is nothing else to do.
            is_due: look for units in any case.
        """
        self._place.leave_if_asked()
        is_due = is_due or time.monotonic() - self._scanned >= SCAN_SECONDS
        if is_due:
            self._scanned = time.monotonic()
            for one in self._open:
                for unit, solutions in one.arrivals():
                    self._owners |= {id(each): (one, unit, place) for place, each in enumerate(solutions)}
                    one.submit(unit, solutions)
                    self._record_unit(one, unit, solutions)
        if wait_seconds and self._open and not self._num_pending:
            time.sleep(wait_seconds)
        for graders in self._graders:
            for graded in graders.collect(timeout_seconds=wait_seconds / len(self._graders)):
                one, unit, place = self._owners.pop(id(graded.solution))
                one.take(unit, place, graded)
                self._watch_unscorable(one)
        for one in [one for one in self._open if one.is_judged]:
            self._finish(one)
        return is_due

    def _record_unit(self, one: _OpenDraw, unit: int, solutions: list[Solution]) -> None:
        """Keep what a unit took, so that a stage's time and tokens add up over interruptions."""
        if unit not in one.missing:
            return
        now = time.monotonic()
        point = {
            "stage": one.draw.samples.name,
            "unit": unit,
            "num_solutions": len(solutions),
            "num_tokens": sum(len(solution.token_ids) for solution in solutions),
            "seconds": round(now - self._last_unit, 3),
        }
        self._last_unit = now
        append_line(self._place.folder / METRICS, point)

    def _watch_unscorable(self, one: _OpenDraw) -> None:
        """Stop as soon as the draw cannot stay below the limit, or the reward fails on most problems.

        One problem with a broken reference is neither, wherever it stands.
        """
        section = one.draw.asked.reward
        is_certain = len(one.unscorable) > section.max_unscorable * one.num_solutions
        failing = {graded.solution.problem_id for graded in one.unscorable}
        num_problems = len(one.judged_problems)
        if is_certain or (num_problems >= MIN_PROBLEMS and len(failing) > num_problems / 2):
            reasons = [graded.reason for graded in one.unscorable]
            check_unscorable(reasons, one.num_judged, section, one.draw.name)

    def _unscorable_note(self) -> str:
        number = sum(len(one.unscorable) for one in self._draws)
        return f"{number} could not be judged" if number else ""

    def _refuse_absent_units(self) -> None:
        absent = [_unit_path(self._place, one.draw, unit) for one in self._open for unit in one.unread]
        if absent:
            raise StageError(
                f"{absent[0]}: drawn, and not there {LATE_SECONDS:.0f} s later; was it removed, or do not "
                "all nodes share the run folder? The same command draws it again"
            )

    def _finish(self, one: _OpenDraw) -> None:
        """Write a complete draw into the ledger."""
        self._open.remove(one)
        place, draw = self._place, one.draw
        graded = _read(place, draw)
        reasons = [each.reason for each in graded if each.verdict is Verdict.UNSCORABLE]
        check_unscorable(reasons, len(graded), draw.asked.reward, draw.name)
        if place.ledger.result(draw.samples) is None:
            seconds = _seconds_of(place.folder, draw)
            result = _count_samples(graded) | usage_entry(place.folder / draw.samples.name)
            place.ledger.append(draw.samples, result, seconds=seconds)
        place.ledger.append(draw.verdicts, _count_verdicts(graded), seconds=self._judged_seconds())

    def _judged_seconds(self) -> float:
        """Return how long judging has taken beyond the drawing, since the last draw was finished."""
        if self._judging_since is None:
            return 0.0
        since, self._judging_since = self._judging_since, time.monotonic()
        return self._judging_since - since


def _seconds_of(folder: Path, draw: Draw) -> float:
    """Return what the units of a draw took.

    Each counts as it was drawn last; an earlier draw of that name, reset since, may have had more of them.
    """
    num_units = len(_unit_sizes(draw))
    last = {
        point["unit"]: point["seconds"]
        for point in read_lines(folder / METRICS)
        if point.get("stage") == draw.samples.name and point.get("unit", num_units) < num_units
    }
    return float(sum(last.values()))


def _done_by_ranks(folder: Path) -> int:
    """Return how many solutions the sampling stage has finished."""
    return sum(int(read_json(path)["done"]) for path in (folder / PROGRESS).glob("[0-9]*.json"))


def _count_samples(graded: Sequence[GradedSolution]) -> dict[str, int]:
    return {
        "num_solutions": len(graded),
        "num_truncated": sum(one.solution.finish_reason == "length" for one in graded),
        "num_tokens": sum(len(one.solution.token_ids) for one in graded),
    }


def _count_verdicts(graded: Sequence[GradedSolution]) -> dict[str, int]:
    judged = [one for one in graded if one.verdict is not Verdict.UNSCORABLE]
    correct = [one.solution.problem_id for one in judged if one.verdict is Verdict.CORRECT]
    return {
        "num_problems": len({one.solution.problem_id for one in graded}),
        "num_solutions": len(graded),
        "num_correct": len(correct),
        "num_solved": len(set(correct)),
        "num_unscorable": len(graded) - len(judged),
        "num_without_answer": sum(one.answer is None for one in judged),
    }


def _work_through(place: Workplace, open_draws: list[_OpenDraw]) -> None:
    """Draw what is missing in one sampling process a rank, and judge it all."""
    intake = _Intake(place, open_draws)
    missing = [one for one in open_draws if one.missing]
    if missing:
        total = sum(one.sizes[unit] for one in missing for unit in one.missing)
        title = ", ".join(dict.fromkeys(one.draw.title for one in missing))
        progress = place.folder / PROGRESS
        shutil.rmtree(progress, ignore_errors=True)
        spec = {
            "model": missing[0].draw.asked.model.model_dump(mode="json", exclude={"name_or_path"}),
            "draws": [_work(place, one) for one in missing],
            "progress": str(progress.resolve()),
        }
        label = missing[0].draw.name.replace("/", "-") + "-sample"
        with place.progress.stage(title, total, "solutions"):
            place.supervisor.run("sample", spec, label=label, meanwhile=intake.draw)
    intake.judge()


def _work(place: Workplace, one: _OpenDraw) -> dict[str, Any]:
    return {
        "policy": one.draw.prompted.policy.path,
        "folder": str((place.folder / one.draw.samples.name).resolve()),
        "units": one.missing,
    }
