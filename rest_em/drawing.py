"""Solutions drawn by a policy on all ranks, and judged as they arrive.

The sampling stage commits work units to the run folder; rank 0 sees them there and hands their solutions
to its graders while the stage goes on. A unit is drawn once and judged once, whatever was killed in
between. Which draws are wanted, and what becomes of them, is left to `rest_em.algorithm`.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rest_em.ledger import Stage
from rest_em.rewards.graders import check_unscorable
from rest_em.run import PromptedPolicy, Run
from rest_em.sampling.units import plan_units, unit_path
from rest_em.storage import (
    append_line,
    content_hash,
    problem_to_json,
    read_graded,
    read_json,
    read_lines,
    read_solutions,
    request_to_json,
    write_graded,
    write_json,
)
from rest_em.types import DrawRequest, GradedSolution, Problem, SamplingParams, Solution, Verdict

SCAN_SECONDS = 0.5
"""How often the run folder is looked at for new units."""
PROGRESS = Path("logs") / "progress"
"""Where the sampling stage's ranks say how far they are, below the run folder."""
MIN_JUDGED = 100
"""So many verdicts show, before a draw is complete, whether the reward is broken."""


@dataclass(frozen=True, slots=True)
class Draw:
    """Solutions wanted of one policy, and where they go in the run folder.

    Example:
        Draw("iteration-01", "E-step 1", base, request, samples, verdicts)
    """

    name: str
    """A folder below the run folder, which gets `samples` and `verdicts`."""
    title: str
    """How progress calls it."""
    prompted: PromptedPolicy
    request: DrawRequest
    samples: Stage
    verdicts: Stage


def plan_draw(
    run: Run,
    name: str,
    prompted: PromptedPolicy,
    problems: Sequence[Problem],
    params: SamplingParams,
    *,
    title: str,
    iteration: int,
) -> Draw:
    """Return a draw with all that its samples and its verdicts depend on."""
    recipe = run.recipe
    request = DrawRequest(
        name=f"{name}/samples",
        problems=tuple(problems),
        params=params,
        iteration=iteration,
        seed=recipe.seed,
        unit_size=recipe.sampling.unit_size,
        max_rows=recipe.sampling.max_rows,
    )
    asked = request_to_json(request)
    inputs = {
        "model": recipe.model.model_dump(mode="json"),
        "seed": recipe.seed,
        "prompt": run.prompt_inputs(prompted.prompt),
        "problems": content_hash(asked["problems"]),
        "sampling": asked["params"] | {"unit_size": request.unit_size, "max_rows": request.max_rows},
    }
    samples = Stage(f"{name}/samples", inputs, after=prompted.made_by)
    references = content_hash([problem_to_json(one) for one in problems])
    verdicts = Stage(
        f"{name}/verdicts", {"reward": run.reward_inputs, "references": references}, after=(samples,)
    )
    return Draw(name, title, prompted, request, samples, verdicts)


def draw_and_judge(run: Run, draws: Sequence[Draw]) -> list[list[GradedSolution]]:
    """Return each draw's judged solutions, by problem, then index; do only what is still to be done.

    All draws of one call share one sampling process a rank, in the order given.

    Raises:
        RunFolderError: what is there was drawn or judged with other settings.
        RewardError: too many solutions cannot be judged.
        StageError: a sampling process failed.
    """
    open_draws = [_OpenDraw(run, draw) for draw in draws if not _is_finished(run, draw)]
    if open_draws:
        _work_through(run, open_draws)
    return [_read(run, draw) for draw in draws]


def _is_finished(run: Run, draw: Draw) -> bool:
    results = [run.ledger.result(draw.samples), run.ledger.result(draw.verdicts)]
    return None not in results


def _num_units(draw: Draw) -> int:
    request = draw.request
    return len(plan_units(len(request.problems), request.params.num_samples, request.unit_size))


def _unit_path(run: Run, draw: Draw, unit: int) -> Path:
    return unit_path(run.folder / draw.samples.name, unit)


def _verdict_path(run: Run, draw: Draw, unit: int) -> Path:
    return run.folder / draw.verdicts.name / draw.verdicts.fingerprint / f"{unit:05d}.parquet"


def _read(run: Run, draw: Draw) -> list[GradedSolution]:
    """Return a finished draw; every solution has its verdict."""
    judged: list[GradedSolution] = []
    for unit in range(_num_units(draw)):
        path = _verdict_path(run, draw, unit)
        solutions = read_solutions(_unit_path(run, draw, unit))
        graded = read_graded(path, solutions)
        assert len(graded) == len(solutions), f"{path}: {len(graded)} verdicts on {len(solutions)} solutions"
        judged += graded
    return judged


class _OpenDraw:
    """A draw on its way: a unit is missing, then on disk, then with the graders, then judged."""

    def __init__(self, run: Run, draw: Draw) -> None:
        self.draw = draw
        self._run = run
        run.ledger.begin(draw.samples)
        write_json(run.folder / draw.samples.name / "request.json", request_to_json(draw.request))
        units = range(_num_units(draw))
        self.missing = [unit for unit in units if not _unit_path(run, draw, unit).exists()]
        for unit in self.missing:  # what was said of solutions that are gone is void
            _verdict_path(run, draw, unit).unlink(missing_ok=True)
        self.unjudged = [unit for unit in units if not _verdict_path(run, draw, unit).exists()]
        self._unread = list(self.unjudged)
        self._with_graders: dict[int, _Unit] = {}
        self._problems = {problem.id: problem for problem in draw.request.problems}

    def arrivals(self) -> Iterator[tuple[int, list[Solution]]]:
        """Give the units that have been committed since the last call and are not judged."""
        for unit in list(self._unread):
            path = _unit_path(self._run, self.draw, unit)
            if path.exists():
                self._unread.remove(unit)
                yield unit, read_solutions(path)

    def submit(self, unit: int, solutions: list[Solution]) -> None:
        """Hand a unit's solutions to the graders."""
        self._with_graders[unit] = _Unit({id(one): place for place, one in enumerate(solutions)})
        for solution in solutions:
            self._run.graders.submit(self._problems[solution.problem_id], solution)

    def take(self, unit: int, graded: GradedSolution) -> None:
        """Take one verdict; with the last one of its unit, write the unit's verdicts."""
        waiting = self._with_graders[unit]
        waiting.graded[waiting.places[id(graded.solution)]] = graded
        if len(waiting.graded) == len(waiting.places):
            verdicts = [waiting.graded[place] for place in range(len(waiting.places))]
            write_graded(_verdict_path(self._run, self.draw, unit), verdicts)
            del self._with_graders[unit]

    @property
    def is_judged(self) -> bool:
        """Whether every unit is drawn and judged."""
        return not self._unread and not self._with_graders


@dataclass(slots=True)
class _Unit:
    """A unit whose solutions are with the graders."""

    places: dict[int, int]
    """A solution's place in the unit, by the object's identity."""
    graded: dict[int, GradedSolution] = field(default_factory=dict)
    """The verdicts so far, by place."""


class _Intake:
    """Rank 0's loop beside a sampling stage: units in, verdicts out, finished draws into the ledger."""

    def __init__(self, run: Run, open_draws: list[_OpenDraw]) -> None:
        self._run = run
        self._open = open_draws
        self._is_drawing = any(one.missing for one in open_draws)
        self._owners: dict[int, tuple[_OpenDraw, int]] = {}
        """Which draw and unit a solution with the graders belongs to, by the object's identity."""
        self._scanned = 0.0
        self._last_unit = time.monotonic()
        self._unscorable: list[GradedSolution] = []
        self._num_judged = 0

    @property
    def is_done(self) -> bool:
        """Whether every draw is complete and in the ledger."""
        return not self._open

    def step(self, wait_seconds: float = 0.0) -> None:
        """Do what can be done now.

        Args:
            wait_seconds: how long to wait for a verdict where there is nothing else to do.
        """
        self._run.leave_if_asked()
        if time.monotonic() - self._scanned >= SCAN_SECONDS:
            self._scanned = time.monotonic()
            self._scan()
        for graded in self._run.graders.collect(timeout_seconds=wait_seconds):
            draw, unit = self._owners.pop(id(graded.solution))
            draw.take(unit, graded)
            self._watch_unscorable(graded, draw.draw.name)
        for one in [one for one in self._open if one.is_judged]:
            self._finish(one)

    def _scan(self) -> None:
        waiting = self._run.graders.num_pending
        note = f"{waiting} with the graders" if waiting else ""
        done = _done_by_ranks(self._run.folder) if self._is_drawing else self._num_judged
        self._run.progress.advance_to(done, note)
        for one in self._open:
            for unit, solutions in one.arrivals():
                self._owners |= {id(solution): (one, unit) for solution in solutions}
                one.submit(unit, solutions)
                self._record_unit(one, unit, solutions)

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
        append_line(self._run.folder / "metrics.jsonl", point)

    def _watch_unscorable(self, graded: GradedSolution, where: str) -> None:
        """Stop early if the reward is broken, rather than after hours of sampling."""
        self._num_judged += 1
        if graded.verdict is Verdict.UNSCORABLE:
            self._unscorable.append(graded)
            if self._num_judged >= MIN_JUDGED:
                check_unscorable(self._unscorable, self._num_judged, self._run.recipe.reward, where)

    def _finish(self, one: _OpenDraw) -> None:
        """Write a complete draw into the ledger."""
        self._open.remove(one)
        run, draw = self._run, one.draw
        graded = _read(run, draw)
        unscorable = [each for each in graded if each.verdict is Verdict.UNSCORABLE]
        check_unscorable(unscorable, len(graded), run.recipe.reward, draw.name)
        if run.ledger.result(draw.samples) is None:
            seconds = _seconds_of(run.folder, draw)
            run.ledger.append(draw.samples, _count_samples(graded), seconds=seconds)
        run.ledger.append(draw.verdicts, _count_verdicts(graded), seconds=0.0)


def _seconds_of(folder: Path, draw: Draw) -> float:
    """Return what the units of a draw took.

    Each counts as it was drawn last; an earlier draw of that name, reset since, may have had more of them.
    """
    last = {
        point["unit"]: point["seconds"]
        for point in read_lines(folder / "metrics.jsonl")
        if point.get("stage") == draw.samples.name and point["unit"] < _num_units(draw)
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


def _work_through(run: Run, open_draws: list[_OpenDraw]) -> None:
    """Draw what is missing in one sampling process a rank, and judge it all."""
    missing = [one for one in open_draws if one.missing]
    intake = _Intake(run, open_draws)
    total = sum(_num_solutions(one.draw, one.missing or one.unjudged) for one in missing or open_draws)
    title = ", ".join(dict.fromkeys(one.draw.title for one in open_draws))
    with run.progress.stage(title, total, "solutions"):
        if missing:
            progress = run.folder / PROGRESS
            shutil.rmtree(progress, ignore_errors=True)
            spec = {
                "model": run.recipe.model.model_dump(mode="json", exclude={"name_or_path"}),
                "draws": [_work(run, one) for one in missing],
                "progress": str(progress.resolve()),
            }
            label = missing[0].draw.name.replace("/", "-") + "-sample"
            run.supervisor.run("sample", spec, label=label, meanwhile=intake.step)
        while not intake.is_done:
            intake.step(wait_seconds=SCAN_SECONDS)


def _work(run: Run, one: _OpenDraw) -> dict[str, Any]:
    return {
        "policy": one.draw.prompted.policy.path,
        "folder": str((run.folder / one.draw.samples.name).resolve()),
        "units": one.missing,
    }


def _num_solutions(draw: Draw, units: Sequence[int]) -> int:
    request = draw.request
    plan = plan_units(len(request.problems), request.params.num_samples, request.unit_size)
    return sum(len(indices) for unit in units for _, indices in plan[unit])
