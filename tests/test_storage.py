"""Files are whole or absent, lines survive a crash, a folder has one run."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from rest_em.errors import RunFolderError
from rest_em.storage import (
    FolderLock,
    append_line,
    content_hash,
    dtype_of_solutions,
    file_hash,
    is_locked,
    read_examples,
    read_graded,
    read_json,
    read_lines,
    read_solutions,
    remove_leftovers,
    replacing,
    replacing_folder,
    request_from_json,
    request_to_json,
    write_examples,
    write_graded,
    write_json,
    write_solutions,
)
from rest_em.types import (
    DrawRequest,
    GradedSolution,
    Problem,
    SamplingParams,
    Solution,
    TrainingExample,
    Verdict,
)

HOLD = """
import sys, time
from pathlib import Path
from rest_em.storage import FolderLock
lock = FolderLock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def fail_within(context: AbstractContextManager[Path], name: str = "") -> None:
    """Write to what a context gives, and be interrupted before it is done."""
    with context as temporary:
        (temporary / name if name else temporary).write_text("half")
        raise KeyboardInterrupt


def solution(problem_id: str = "p", index: int = 0, text: str = "4") -> Solution:
    return Solution(problem_id, index, 1, text, token_ids=(5, 6), finish_reason="eos")


def test_a_file_that_could_not_be_finished_leaves_the_old_one_and_no_rest(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"kept": True})
    with pytest.raises(KeyboardInterrupt):
        fail_within(replacing(path))
    assert read_json(path) == {"kept": True}
    assert names_in(tmp_path) == ["a.json"]


def test_only_what_must_survive_a_crash_waits_for_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[int] = []
    monkeypatch.setattr(os, "fsync", flushed.append)
    write_json(tmp_path / "a.json", {"done": 1}, is_durable=False)
    assert (read_json(tmp_path / "a.json"), flushed) == ({"done": 1}, [])
    write_json(tmp_path / "a.json", {"done": 2})
    assert len(flushed) == 2


def test_not_a_number_is_no_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert names_in(tmp_path) == []


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "policy"
    with replacing_folder(path) as temporary:
        (temporary / "old").touch()
    with replacing_folder(path) as temporary:
        (temporary / "new").touch()
    assert names_in(path) == ["new"]
    with pytest.raises(KeyboardInterrupt):
        fail_within(replacing_folder(path), "half")
    assert names_in(path) == ["new"]
    assert names_in(tmp_path) == ["policy"]


def test_a_folder_that_a_killed_process_left_half_is_not_taken_over(tmp_path: Path) -> None:
    (tmp_path / ".policy").mkdir()
    (tmp_path / ".policy" / "half").touch()
    with replacing_folder(tmp_path / "policy") as temporary:
        (temporary / "whole").touch()
    assert names_in(tmp_path / "policy") == ["whole"]


def test_a_torn_last_line_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n{"a": 3')
    assert read_lines(path) == [{"a": 1}, {"a": 2}]


def test_a_line_appended_after_a_torn_one_takes_its_place(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"a": 1}\n{"a": 2')
    append_line(path, {"a": 3})
    assert path.read_text() == '{"a": 1}\n{"a": 3}\n'


def test_a_first_line_that_is_torn_is_replaced_too(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"a"')
    append_line(path, {"a": 3})
    assert path.read_text() == '{"a": 3}\n'


def test_a_missing_file_has_no_lines(tmp_path: Path) -> None:
    assert read_lines(tmp_path / "none.jsonl") == []


def test_line_separators_within_a_text_do_not_end_a_line(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    append_line(path, {"text": "a\u2028b\x85c\rd\ne"})
    append_line(path, {"text": "ü"})
    assert read_lines(path) == [{"text": "a\u2028b\x85c\rd\ne"}, {"text": "ü"}]


def test_a_hash_depends_on_the_content_and_not_on_the_order_of_keys(tmp_path: Path) -> None:
    assert content_hash({"a": 1, "b": [2]}) == content_hash({"b": [2], "a": 1})
    assert content_hash({"a": 1}) != content_hash({"a": 2})
    assert content_hash([1, 2]) != content_hash([2, 1])
    (tmp_path / "a").write_bytes(b"x")
    (tmp_path / "b").write_bytes(b"x")
    assert file_hash(tmp_path / "a") == file_hash(tmp_path / "b")


def test_solutions_come_back_as_they_were(tmp_path: Path) -> None:
    solutions = [
        solution(),
        Solution("q", 7, 2, "a\n\x00\ufffdü", token_ids=(), finish_reason="length"),
        Solution("q", 8, 2, "", token_ids=(2**20,), finish_reason="stop_string"),
    ]
    write_solutions(tmp_path / "a.parquet", solutions)
    assert read_solutions(tmp_path / "a.parquet") == solutions


def test_no_solutions_come_back_as_none(tmp_path: Path) -> None:
    write_solutions(tmp_path / "a.parquet", [])
    assert read_solutions(tmp_path / "a.parquet") == []


def test_solutions_know_what_their_policy_computed_in(tmp_path: Path) -> None:
    write_solutions(tmp_path / "a.parquet", [solution()], "float32")
    write_solutions(tmp_path / "b.parquet", [solution()])
    assert dtype_of_solutions(tmp_path / "a.parquet") == "float32"
    assert dtype_of_solutions(tmp_path / "b.parquet") is None


def test_verdicts_are_joined_to_their_solutions_and_the_unjudged_are_left_out(tmp_path: Path) -> None:
    judged = [
        GradedSolution(solution("p", 0), Verdict.CORRECT, 0.5, "4", ""),
        GradedSolution(solution("p", 1), Verdict.UNSCORABLE, 0.0, None, "p: timed out"),
    ]
    write_graded(tmp_path / "a.parquet", judged)
    offered = [solution("p", 1), solution("q", 0), solution("p", 0)]
    assert read_graded(tmp_path / "a.parquet", offered) == [judged[1], judged[0]]


def test_examples_come_back_as_they_were(tmp_path: Path) -> None:
    examples = [
        TrainingExample("p", 0, "2 + 2 =", (5, 6), "eos", 1.0),
        TrainingExample("q", 1, ({"role": "user", "content": "ü"},), (7,), "stop_string", 0.25),
    ]
    write_examples(tmp_path / "a.parquet", examples)
    assert read_examples(tmp_path / "a.parquet") == examples


@pytest.mark.parametrize("prompt", ["2 + 2 =", ({"role": "user", "content": "2 + 2"},)])
def test_a_request_survives_json_and_is_equal_to_what_the_file_holds(tmp_path: Path, prompt: str) -> None:
    params = SamplingParams(num_samples=2, max_new_tokens=8, temperature=1.0, stop_strings=("\n", "Q"))
    problem = Problem("p", prompt, reference=None)
    request = DrawRequest("iteration-01/samples", (problem,), params, 1, seed=3, unit_size=4, max_rows=2)
    value = request_to_json(request)
    write_json(tmp_path / "request.json", value)
    assert read_json(tmp_path / "request.json") == value
    assert request_from_json(value) == request


def test_a_sampler_is_not_told_the_reference() -> None:
    params = SamplingParams(num_samples=1, max_new_tokens=8, temperature=0.0)
    problem = Problem("p", "2 + 2 =", reference="secret", metadata={"kind": "secret"})
    request = DrawRequest("n", (problem,), params, 1, seed=3, unit_size=4, max_rows=2)
    assert "secret" not in json.dumps(request_to_json(request))


def test_a_second_run_in_a_folder_is_refused_and_told_who_is_there(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunFolderError, match=f"process {holder.pid} on .* is running here") as caught:
            FolderLock(tmp_path / "run")
        assert f"touch {tmp_path}/run/stop" in str(caught.value)
        assert "--set run_name=NAME" in str(caught.value)
        for _ in range(2):  # asking does not take it away
            assert is_locked(tmp_path / "run")
    finally:
        holder.kill()
        holder.communicate()
    assert not is_locked(tmp_path / "run")
    FolderLock(tmp_path / "run").release()


def test_a_folder_where_nothing_ran_is_not_locked_and_stays_as_it_is(tmp_path: Path) -> None:
    assert not is_locked(tmp_path)
    assert names_in(tmp_path) == []


def test_a_lock_that_was_given_back_can_be_taken(tmp_path: Path) -> None:
    FolderLock(tmp_path).release()
    FolderLock(tmp_path).release()
    assert (tmp_path / ".lock").read_text() == f"process {os.getpid()} on {os.uname().nodename}"


def test_a_folder_that_cannot_be_made_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file in the way")
    with pytest.raises(
        RunFolderError, match=r"runs/x/.lock: cannot be written \(Not a directory\)"
    ) as caught:
        FolderLock(tmp_path / "runs" / "x")
    assert "start from a folder in which you may write" in str(caught.value)
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOTDIR


def test_what_a_killed_write_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    left = tmp_path / "units" / ".00003.parquet.node-0.4711"
    kept = [tmp_path / "units" / "00002.parquet", tmp_path / ".lock", tmp_path / ".nonce"]
    for path in (left, *kept):
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    remove_leftovers(tmp_path)
    assert not left.exists()
    assert all(path.exists() for path in kept)
