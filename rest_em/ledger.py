"""What has been done in a run folder, and what may be reused.

`ledger.jsonl` is the truth: one line a finished stage, append-only. A stage is done if and only if it
stands there with the same inputs, and the same stages before it, as the recipe asks for now. Running the
stages is left to `rest_em.algorithm`.
"""

from __future__ import annotations

import fnmatch
import re
import shlex
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rest_em.errors import RecipeChangedError, RunFolderError
from rest_em.recipe import difference
from rest_em.storage import append_line, content_hash, read_json, read_lines, write_json


@dataclass(frozen=True, slots=True)
class Stage:
    """A step of the run as a value: the same inputs after the same stages give the same result.

    Example:
        Stage("iteration-01/dataset", inputs={"selection": {...}}, after=(verdicts,))
    """

    name: str
    """Its folder below the run folder, without a file's suffix."""
    inputs: Mapping[str, Any]
    """The recipe's keys, and hashes of files, that the result depends on; no others."""
    after: tuple[Stage, ...] = ()
    """The stages whose results it uses."""
    fingerprint: str = field(init=False)
    """A hash of the inputs of this stage and of all before it."""

    def __post_init__(self) -> None:
        upstream = [stage.fingerprint for stage in self.after]
        object.__setattr__(self, "fingerprint", content_hash([self.name, self.inputs, upstream]))


class NotDoneError(Exception):
    """Raised by a survey at the first stage that is not finished."""


class Ledger:
    """The finished stages of one run folder.

    As a survey it lets the same algorithm walk over what is done and do nothing: it notes what was finished
    with other inputs and goes on with its result, and raises `NotDoneError` where work would begin.
    """

    def __init__(
        self,
        folder: Path,
        *,
        is_survey: bool = False,
        advice: str | None = None,
        tell: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> None:
        """Read `ledger.jsonl` of `folder`; a missing one is empty.

        Args:
            folder: of a run, or of evaluations.
            is_survey: do nothing.
            advice: what to do about changes, in the place of a run's options.
            tell: is given the record of each stage that is finished from now on.
        """
        self._advice = advice
        self._tell = tell
        self.folder = folder
        self.is_survey = is_survey
        self.conflicts: dict[str, list[str]] = {}
        """What a survey has found: a stage's name -> the changes of its own inputs."""
        self._path = folder / "ledger.jsonl"
        self._records: dict[str, dict[str, Any]] = {}
        self._unremoved: list[str] = []
        """What a reset has still to remove, below the run folder."""
        for line in read_lines(self._path):
            if "reset" in line:
                for name in line["reset"]:
                    self._records.pop(name, None)
                self._unremoved = line["remove"]
            elif "removed" in line:
                self._unremoved = []
            else:
                self._records[line["stage"]] = line

    @property
    def records(self) -> list[dict[str, Any]]:
        """The finished stages, oldest first: stage, result, seconds, and what they depended on."""
        return list(self._records.values())

    def result(self, stage: Stage) -> dict[str, Any] | None:
        """Return what a finished stage gave; None if it is still to be done.

        Raises:
            RecipeChangedError: it was finished with other inputs, which are named.
        """
        record = self._records.get(stage.name)
        if record is None:
            if self.is_survey:
                raise NotDoneError(stage.name)
            return None
        if record["fingerprint"] != stage.fingerprint:
            changes = difference(record["inputs"], stage.inputs)
            if not self.is_survey:
                raise RecipeChangedError(self._refusal("finished", {stage.name: changes}), [stage.name])
            if changes:  # else it only follows from another one
                self.conflicts[stage.name] = changes
        result: dict[str, Any] = record["result"]
        return result

    def refuse_conflicts(self, *patterns: str) -> None:
        """Refuse what a survey has found, but for what these patterns would do again.

        Raises:
            RecipeChangedError: it names all changes, and the options that do again what depends on them.
        """
        forgotten = self.meant_by(*patterns)
        left = {name: changes for name, changes in self.conflicts.items() if name not in forgotten}
        if left:
            raise RecipeChangedError(self._refusal("finished", left), list(left))

    def stage(self, name: str) -> Stage:
        """Return a finished stage as it was asked for."""
        record = self._records[name]
        return Stage(name, record["inputs"], after=tuple(self.stage(before) for before in record["after"]))

    def append(self, stage: Stage, result: Mapping[str, Any], *, seconds: float) -> dict[str, Any]:
        """Record that a stage is done; return its result."""
        record = {
            "stage": stage.name,
            "fingerprint": stage.fingerprint,
            "inputs": dict(stage.inputs),
            "after": [before.name for before in stage.after],
            "result": dict(result),
            "seconds": round(seconds, 3),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        append_line(self._path, record)
        self._records[stage.name] = record
        if self._tell is not None:
            self._tell(record)
        return dict(result)

    def is_done(self, stage: str) -> bool:
        """Say whether a stage of this name is finished, whatever its inputs were."""
        return stage in self._records

    def meant_by(self, *patterns: str) -> list[str]:
        """Return the finished stages that `reset` would forget, oldest first.

        Args:
            patterns: each a stage's name, the folder of several (`iteration-01`), or a pattern (`*/evals/*`).

        Raises:
            RunFolderError: nothing in the run folder matches one of them.
        """
        matches: set[str] = set()
        for pattern in patterns:
            found = {name for name in self._records if _matches(name, pattern)}
            if not found and not self._unfinished(pattern):
                known = ", ".join(self._records) or "none yet"
                raise RunFolderError(f"{self.folder}: no stage matches {pattern!r}; finished are: {known}")
            matches |= found
        return [name for name in self._records if name in matches or self._comes_of(name, matches)]

    def reset(self, *patterns: str) -> list[str]:
        """Forget stages and all that came of them, and remove their files.

        Args:
            patterns: as for `meant_by`.

        Returns:
            The names of the stages forgotten, which may be none if only unfinished work matched.

        Raises:
            RunFolderError: nothing in the run folder matches one of them; nothing has been removed.
        """
        forgotten = self.meant_by(*patterns)
        unfinished = [path for pattern in patterns for path in self._unfinished(pattern)]
        unfinished += self._begun_after(set(forgotten))
        remove = [*forgotten, *(path.relative_to(self.folder).as_posix() for path in unfinished)]
        append_line(self._path, {"reset": forgotten, "remove": remove})
        for name in forgotten:
            del self._records[name]
        self._unremoved = remove
        self.finish_reset()
        return forgotten

    def finish_reset(self) -> None:
        """Remove what a reset that was killed has left; nothing, mostly. Only for the holder of the lock."""
        if self._unremoved:
            for name in self._unremoved:
                _remove(self.folder / name)
            append_line(self._path, {"removed": len(self._unremoved)})
            self._unremoved = []

    def _unfinished(self, pattern: str) -> list[Path]:
        return [
            path
            for path in self.folder.glob("iteration-*/**")
            if path.is_dir() and _matches(path.relative_to(self.folder).as_posix(), pattern)
        ]

    def _begun_after(self, forgotten: set[str]) -> list[Path]:
        """Return the folders of unfinished stages that use the results of forgotten ones."""
        begun = [path.parent for path in self.folder.glob("iteration-*/**/stage.json")]
        return [
            path
            for path in begun
            if not self.is_done(path.relative_to(self.folder).as_posix())
            and not forgotten.isdisjoint(read_json(path / "stage.json")["after"])
        ]

    def begin(self, stage: Stage) -> None:
        """Make a folder for a stage that works in steps, and keep there only what is of this very stage.

        What an unfinished attempt left after other stages, which have been done again since, is removed.

        Raises:
            RecipeChangedError: an unfinished attempt had other inputs, which are named.
        """
        path = self.folder / stage.name / "stage.json"
        begun = read_json(path) if path.exists() else None
        if begun is not None and begun["fingerprint"] != stage.fingerprint:
            changes = difference(begun["inputs"], stage.inputs)
            if changes:
                raise RecipeChangedError(self._refusal("begun", {stage.name: changes}), [stage.name])
            _remove(path.parent)
        self._write_begun(stage)

    def begin_anew(self, stage: Stage) -> list[str]:
        """As `begin`, but an attempt with other inputs gives way: what it left is removed.

        Returns:
            The changes of its inputs since; none where there was no such attempt.
        """
        path = self.folder / stage.name / "stage.json"
        begun = read_json(path) if path.exists() else None
        if begun is None or begun["fingerprint"] != stage.fingerprint:
            _remove(path.parent)
        self._write_begun(stage)
        return [] if begun is None else difference(begun["inputs"], stage.inputs)

    def _write_begun(self, stage: Stage) -> None:
        after = [before.name for before in stage.after]
        value = {"fingerprint": stage.fingerprint, "inputs": dict(stage.inputs), "after": after}
        write_json(self.folder / stage.name / "stage.json", value)

    def _comes_of(self, name: str, sources: set[str]) -> bool:
        record = self._records.get(name)
        return record is not None and any(
            before in sources or self._comes_of(before, sources) for before in record["after"]
        )

    def _refusal(self, done: str, conflicts: Mapping[str, Sequence[str]]) -> str:
        concerned: dict[str, list[str]] = {}
        for name, changes in conflicts.items():
            for change in changes or ["(an earlier stage has been done again)"]:
                concerned.setdefault(change, []).append(name)
        lines = []
        for change, names in concerned.items():
            others = f" and {len(names) - 1} more stages depend" if len(names) > 1 else " depends"
            lines.append(f"  {change}, on which {names[0]}{others}\n")
        head = f"{self.folder}: what was {done} had other settings:\n{''.join(lines)}"
        if self._advice is not None:
            return f"{head}{self._advice}"
        options = " ".join(f"--from-stage {shlex.quote(one)}" for one in self._patterns_for(list(conflicts)))
        return (
            f"{head}Undo the change, or do what depends on it, and all that follows, again with {options}, "
            "or keep both with --set run_name=NAME."
        )

    def _patterns_for(self, names: Sequence[str]) -> list[str]:
        """Return few patterns that mean these stages, and none that means one which does not come of them."""
        affected = set(names) | {name for name in self._records if self._comes_of(name, set(names))}
        patterns: list[str] = []
        covered: set[str] = set()
        for name in names:
            if name not in covered:
                like = {one for one in self._records if _matches(one, _like(name))}
                patterns.append(_like(name) if like <= affected else name)
                covered |= {name} | set(self.meant_by(patterns[-1]) if self.is_done(name) else ())
        return patterns


def _matches(name: str, pattern: str) -> bool:
    """Say whether a stage, or a folder around it, is meant by a pattern."""
    return any(fnmatch.fnmatchcase(name, one) for one in (pattern, f"{pattern}/*"))


def _like(name: str) -> str:
    """Return a pattern for the stages that a change is likely to concern which concerns this one.

    >>> _like("iteration-00/validation/bare/verdicts"), _like("iteration-01/samples")
    ('*/verdicts', 'iteration-01/samples')
    """
    kind, step = name.split("/")[1], name.rsplit("/", 1)[1]
    if kind == "validation":
        return "*/verdicts" if step == "verdicts" else f"*/validation/*/{step}"
    if kind == "evals":
        return f"*/evals/*/{step}" if step == "verdicts" else f"*/{name.split('/', 1)[1]}"
    return name


def _remove(path: Path) -> None:
    """Remove what a stage of this name left: a folder or a Parquet file."""
    if path.is_dir():
        shutil.rmtree(path)
    path.with_name(path.name + ".parquet").unlink(missing_ok=True)


def best_iteration(records: Iterable[Mapping[str, Any]]) -> int:
    """Return the iteration whose policy is best on D_val, by greedy pass@1; the first of equals.

    0 is the base model, and what is best while nothing is chosen yet.
    """
    results = {record["stage"]: record["result"] for record in records}
    scores = {}
    for name, result in results.items():
        found = re.fullmatch(r"iteration-(\d+)/(prompt|policy)", name)
        if found:
            scores[int(found[1])] = result["validation"][result["chosen"]]
    return max(sorted(scores), key=lambda number: float(scores[number]), default=0)


def policy_iterations(records: Iterable[Mapping[str, Any]]) -> list[int]:
    """Return the iterations of which there is a policy, in their order, the base model's 0 first."""
    found = (re.fullmatch(r"iteration-(\d+)/policy", record["stage"]) for record in records)
    return [0, *sorted(int(one[1]) for one in found if one)]


def write_status(folder: Path, state: str, message: str = "") -> None:
    """Write `status.json`: state is `running`, `finished`, `interrupted` or `failed`."""
    changed = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    write_json(folder / "status.json", {"state": state, "message": message, "changed": changed})


def as_killed(status: Mapping[str, str]) -> dict[str, str]:
    """Return the state and message of a run whose status says running, and which is not."""
    message = f"{status['message'] or 'its process'} was killed; the same command goes on from here"
    return {"state": "interrupted", "message": message}


def read_status(folder: Path) -> dict[str, str]:
    """Read `status.json`.

    Raises:
        RunFolderError: there is none, so `folder` is no run folder.
    """
    path = folder / "status.json"
    if not path.exists():
        raise RunFolderError(
            f"{folder}: no run here (no status.json); name a folder that `rest_em run` has made"
        )
    status: dict[str, str] = read_json(path)
    return status
