"""Files that are either whole or absent: JSON, JSON lines and Parquet, and the lock of a run folder.

Every write goes to a temporary neighbour, is flushed to disk and renamed, so a reader (another rank, the
next run after a crash) never sees half a file. What the files mean is left to `ledger` and the stages.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rest_em.errors import RunFolderError
from rest_em.types import (
    DrawRequest,
    GradedSolution,
    Problem,
    SamplingParams,
    Solution,
    TrainingExample,
    Verdict,
)

if TYPE_CHECKING:
    import pyarrow as pa


LEFTOVER = re.compile(r"\..+\.\d+")
"""What `replacing` calls a temporary neighbour: .name.host.process."""


@contextlib.contextmanager
def replacing(path: Path, *, is_durable: bool = True) -> Iterator[Path]:
    """Give a temporary neighbour of `path` to write to, which then takes its place; on failure it goes.

    Args:
        is_durable: wait until it is on disk; without, a crash of the machine may leave an empty file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
    try:
        yield temporary
        if is_durable:
            _flush_to_disk(temporary)
        temporary.replace(path)
        if is_durable:
            _flush_to_disk(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of writes that were killed; nobody may be writing now."""
    for path in list(folder.rglob(".*")):
        if LEFTOVER.fullmatch(path.name):
            path.unlink(missing_ok=True)


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Give an empty temporary folder beside `path`; on success it takes the place of what was at `path`.

    One process at a time: what another attempt left in the temporary folder is removed.
    """
    temporary = path.with_name(f".{path.name}")
    if temporary.exists():
        shutil.rmtree(temporary)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        flush_folder(temporary)
        if path.exists():
            shutil.rmtree(path)
        temporary.rename(path)
        _flush_to_disk(path.parent)
    finally:
        if temporary.exists():
            shutil.rmtree(temporary)


def flush_folder(folder: Path) -> None:
    """Wait until a folder is on disk, with all that is in it."""
    for path in sorted(folder.rglob("*"), reverse=True):
        _flush_to_disk(path)
    _flush_to_disk(folder)


def write_text(path: Path, text: str) -> None:
    """Write a whole text file, or nothing."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any, *, is_durable: bool = True) -> None:
    """Write one JSON value, or nothing; NaN is refused; `is_durable` is as in `replacing`."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with replacing(path, is_durable=is_durable) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read one JSON value."""
    return json.loads(path.read_text(encoding="utf-8"))


def append_line(path: Path, value: Any) -> None:
    """Append one line of JSON and flush it to disk; a torn last line of a crash is first cut off."""
    append_lines(path, [value])


def append_lines(path: Path, values: Iterable[Any], *, is_durable: bool = True) -> None:
    """Append lines of JSON, one for each value; a torn last line of a crash is first cut off.

    Args:
        is_durable: wait until they are on disk; without, a crash of the machine may lose them.
    """
    lines = "".join(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n" for value in values)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        end = file.seek(0, os.SEEK_END)
        if end:
            file.seek(end - 1)
            if file.read(1) != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        file.write(lines.encode())
        file.flush()
        if is_durable:
            os.fsync(file.fileno())


def read_lines(path: Path) -> list[Any]:
    """Read JSON lines; a missing file has none, and a torn last line does not count."""
    return read_new_lines(path, 0)[0]


def read_new_lines(path: Path, start_bytes: int) -> tuple[list[Any], int]:
    """Read the JSON lines from a byte of a growing file; return them, and the byte after the last whole one.

    Args:
        start_bytes: 0, or what an earlier call returned.
    """
    if not path.exists():
        return [], start_bytes
    with path.open("rb") as file:
        file.seek(start_bytes)
        content = file.read()
    whole = content[: content.rfind(b"\n") + 1]
    return [json.loads(line) for line in whole.splitlines() if line.strip()], start_bytes + len(whole)


def content_hash(value: Any) -> str:
    """Return 16 hex digits that depend on a JSON value's content, not on the order of its keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_hash(path: Path) -> str:
    """Return 16 hex digits that depend on a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def import_parquet() -> None:
    """Import now what the first Parquet file would: pyarrow and, with its first array, pandas; 72 MB."""
    import pyarrow as pa
    import pyarrow.parquet

    pa.array([0])


def _write_parquet(path: Path, rows: Iterable[dict[str, Any]], schema: pa.Schema) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with replacing(path) as temporary:
        pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), temporary)


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = pq.ParquetFile(path).read().to_pylist()
    return rows


def _solution_columns() -> list[tuple[str, pa.DataType]]:
    import pyarrow as pa

    return [
        ("problem_id", pa.string()),
        ("index", pa.int32()),
        ("iteration", pa.int32()),
        ("text", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("finish_reason", pa.string()),
    ]


def write_solutions(path: Path, solutions: Iterable[Solution], dtype: str | None = None) -> None:
    """Write solutions as Parquet, one row each, columns as the fields of `Solution`.

    Args:
        dtype: what their policy computed in, kept in the file's metadata.
    """
    import pyarrow as pa

    schema = pa.schema(_solution_columns(), metadata=None if dtype is None else {"dtype": dtype})
    _write_parquet(path, map(dataclasses.asdict, solutions), schema)


def dtype_of_solutions(path: Path) -> str | None:
    """Return what the policy of solutions computed in; None where the file does not say."""
    import pyarrow.parquet as pq

    found: bytes | None = (pq.read_schema(path).metadata or {}).get(b"dtype")
    return None if found is None else found.decode()


def _solution(row: dict[str, Any]) -> Solution:
    return Solution(
        problem_id=row["problem_id"],
        index=row["index"],
        iteration=row["iteration"],
        text=row["text"],
        token_ids=tuple(row["token_ids"]),
        finish_reason=row["finish_reason"],
    )


def read_solutions(path: Path) -> list[Solution]:
    """Read what `write_solutions` wrote, in its order."""
    return [_solution(row) for row in _read_parquet(path)]


def write_graded(path: Path, graded: Iterable[GradedSolution]) -> None:
    """Write verdicts as Parquet, one row each: problem_id, index, verdict, reward, answer, reason."""
    import pyarrow as pa

    schema = pa.schema(
        [
            ("problem_id", pa.string()),
            ("index", pa.int32()),
            ("verdict", pa.string()),
            ("reward", pa.float64()),
            ("answer", pa.string()),
            ("reason", pa.string()),
        ]
    )
    rows = (
        {
            "problem_id": one.solution.problem_id,
            "index": one.solution.index,
            "verdict": one.verdict.value,
            "reward": one.reward,
            "answer": one.answer,
            "reason": one.reason,
        }
        for one in graded
    )
    _write_parquet(path, rows, schema)


def read_graded(path: Path, solutions: Iterable[Solution]) -> list[GradedSolution]:
    """Join the verdicts in `path` to the solutions that they judge; one without a verdict is left out."""
    by_key = {(row["problem_id"], row["index"]): row for row in _read_parquet(path)}
    graded = []
    for solution in solutions:
        row = by_key.get((solution.problem_id, solution.index))
        if row is not None:
            graded.append(
                GradedSolution(
                    solution=solution,
                    verdict=Verdict(row["verdict"]),
                    reward=row["reward"],
                    answer=row["answer"],
                    reason=row["reason"],
                )
            )
    return graded


def write_examples(path: Path, examples: Iterable[TrainingExample]) -> None:
    """Write D_i as Parquet, one row an example; `prompt` is JSON (a string, or a list of messages)."""
    import pyarrow as pa

    schema = pa.schema(
        [
            ("problem_id", pa.string()),
            ("index", pa.int32()),
            ("prompt", pa.string()),
            ("token_ids", pa.list_(pa.int32())),
            ("finish_reason", pa.string()),
            ("weight", pa.float64()),
            ("text", pa.string()),
        ]
    )
    rows = (
        {**dataclasses.asdict(one), "prompt": json.dumps(one.prompt, ensure_ascii=False)} for one in examples
    )
    _write_parquet(path, rows, schema)


def read_examples(path: Path) -> list[TrainingExample]:
    """Read what `write_examples` wrote, in its order."""
    return [
        TrainingExample(
            problem_id=row["problem_id"],
            index=row["index"],
            prompt=_prompt(json.loads(row["prompt"])),
            token_ids=tuple(row["token_ids"]),
            finish_reason=row["finish_reason"],
            weight=row["weight"],
            text=row["text"],
        )
        for row in _read_parquet(path)
    ]


def _prompt(value: Any) -> Any:
    return value if isinstance(value, str) else tuple(value)


def request_to_json(request: DrawRequest) -> dict[str, Any]:
    """Return a draw request as a JSON value; references and metadata stay behind, a sampler needs neither."""
    value = dataclasses.asdict(dataclasses.replace(request, problems=()))
    value["params"]["stop_strings"] = list(request.params.stop_strings)
    value["problems"] = [
        {"id": one.id, "prompt": one.prompt if isinstance(one.prompt, str) else [*map(dict, one.prompt)]}
        for one in request.problems
    ]
    return value


def request_from_json(value: dict[str, Any]) -> DrawRequest:
    """Return the request that `request_to_json` wrote, its problems without references and metadata."""
    params = {**value["params"], "stop_strings": tuple(value["params"]["stop_strings"])}
    problems = tuple(
        Problem(id=one["id"], prompt=_prompt(one["prompt"]), reference=None) for one in value["problems"]
    )
    return DrawRequest(**{**value, "params": SamplingParams(**params), "problems": problems})


def is_locked(folder: Path) -> bool:
    """Say whether another process holds a run folder's lock.

    Not to be asked by the holder: a process that closes the lock's file gives the lock back.
    """
    try:
        with (folder / ".lock").open("rb") as file:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            raise
        return True
    return False


class FolderLock:
    """An exclusive lock of a run folder, held by an open file and so given back by any death."""

    def __init__(self, folder: Path) -> None:
        """Take the lock.

        Raises:
            RunFolderError: another run holds it, or the folder cannot be written.
        """
        path = folder / ".lock"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+", encoding="utf-8")
        except OSError as error:
            raise RunFolderError(
                f"{path}: cannot be written ({error.strerror}); runs/ lies in the working directory: start "
                "from a folder in which you may write"
            ) from error
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                self._file.close()
                raise RunFolderError(
                    f"{path}: cannot be locked ({error.strerror}), so two runs could not be kept apart; put "
                    "runs/ on a file system that has locks"
                ) from error
            self._file.seek(0)
            holder = self._file.read().strip() or "another process"
            self._file.close()
            raise RunFolderError(
                f"{folder}: {holder} is running here; wait for it, stop it with `touch {folder}/stop`, "
                "or give this run another folder with --set run_name=NAME"
            ) from error
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}")
        self._file.flush()

    def release(self) -> None:
        """Give the lock back."""
        self._file.close()
