"""`rest_em score`: every line judged or told, in order, once, whatever was killed in between."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import typer
from process_watch import is_gone_within, processes_in

from rest_em.cli import app
from rest_em.cli_evaluate import whole_numbers
from rest_em.problems.stored import read_problems
from rest_em.report.score import MAX_REASONS, OTHER_REASONS, Tally, summarize_score
from rest_em.types import Verdict

SLOW = """
import time

def reward(problem, solution):
    time.sleep(0.02)
    return problem.reference in solution.text
"""


@dataclass
class Desk:
    """A folder with problems, solutions and a reward of one's own, and the command over them."""

    folder: Path
    options: list[str] = field(default_factory=list)

    def write(self, name: str, rows: Sequence[Any]) -> Path:
        """Write a file of JSON lines; a row that is a text is a line as it is."""
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path = self.folder / name
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return path

    def command(self, *options: str, reward: str = "number", output: str = "verdicts.jsonl") -> list[str]:
        """Return the command line."""
        files = ("--problems", "problems.jsonl", "--solutions", "solutions.jsonl")
        return tiny_run.launch("score", *files, "--reward", reward, "--output", output, *options)

    def score(self, *options: str, **names: str) -> subprocess.CompletedProcess[str]:
        """Run the command to its end."""
        return tiny_run.finish(self.command("--workers", "2", *options, **names), self.folder, timeout=120)

    def verdicts(self, output: str = "verdicts.jsonl") -> list[dict[str, Any]]:
        """Return the rows of the output, without the seconds, which no two calls share."""
        rows = [json.loads(line) for line in (self.folder / output).read_text().splitlines()]
        return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """Three problems with four solutions each, of which 1, 2 and 4 are correct; a slow reward."""
    made = Desk(tmp_path)
    made.write("problems.jsonl", [{"id": f"p{k}", "answer": str(k), "kind": "sum"} for k in range(3)])
    made.write("solutions.jsonl", solutions({"p0": "0555", "p1": "1155", "p2": "2222"}))
    (tmp_path / "slow.py").write_text(SLOW)
    return made


def solutions(answers: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return solutions, an answer of one digit each, the problems taking turns."""
    return [
        {"problem_id": key, "completion": f"The answer is {each}"}
        for row in zip(*[[(key, one) for one in text] for key, text in answers.items()], strict=True)
        for key, each in row
    ]


def summary_of(done: subprocess.CompletedProcess[str], code: int = 0) -> dict[str, Any]:
    """Return what `--json` printed."""
    assert done.returncode == code, done.stderr
    value: dict[str, Any] = json.loads(done.stdout)
    return value


def test_each_solution_gets_a_line_in_the_order_of_the_file(desk: Desk) -> None:
    summary = summary_of(desk.score("--json"))
    rows = [json.loads(line) for line in (desk.folder / "verdicts.jsonl").read_text().splitlines()]
    assert [(row["problem_id"], row["index"]) for row in rows] == [
        (f"p{problem}", index) for index in range(4) for problem in range(3)
    ]
    assert list(rows[0]) == ["problem_id", "index", "verdict", "answer", "reason", "seconds"]
    assert [row["verdict"] for row in rows[:4]] == ["correct", "correct", "correct", "incorrect"]
    assert (rows[3]["answer"], rows[3]["reason"]) == ("5", "wrong")
    assert all(0 < row["seconds"] < 5 for row in rows)
    assert summary["counts"] == {"correct": 7, "incorrect": 5, "unscorable": 0}
    assert (summary["num_problems"], summary["num_solutions"], summary["num_bad_lines"]) == (3, 12, 0)
    assert summary["reasons"] == {"incorrect": {"wrong": 5}, "unscorable": {}}
    assert list(summary["pass_at"]) == list(summary["majority_at"]) == ["1", "4"], "all have four"
    assert summary["pass_at"]["1"]["value"] == pytest.approx((1 / 4 + 2 / 4 + 4 / 4) / 3)
    assert summary["pass_at"]["4"]["value"] == 1.0
    # 0: one vote of four; 1: two of two ties; 2: all.
    assert summary["majority_at"]["4"]["value"] == pytest.approx((0 + 1 / 2 + 1) / 3)
    assert summary["pass_at"]["1"]["standard_error"] == pytest.approx(0.2204793)
    assert 0 < summary["pass_at"]["1"]["low"] < 7 / 12 < summary["pass_at"]["1"]["high"] < 1


def test_the_order_and_the_verdicts_do_not_depend_on_the_workers(desk: Desk) -> None:
    (desk.folder / "slow.py").write_text(
        "import time\n\ndef reward(problem, solution):\n"
        "    time.sleep(0.3 if solution.index == 0 else 0)\n    return solution.index % 2 == 0\n"
    )
    for count in ("1", "4"):
        desk.score("--workers", count, reward="slow.py:reward", output=f"{count}.jsonl")
    assert desk.verdicts("1.jsonl") == desk.verdicts("4.jsonl")
    assert [row["index"] for row in desk.verdicts("4.jsonl")] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    rows = [json.loads(line) for line in (desk.folder / "4.jsonl").read_text().splitlines()]
    assert min(row["seconds"] for row in rows[:3]) >= 0.3
    assert max(row["seconds"] for row in rows[3:]) < 0.3, "waiting behind a slow one is not counted"


def many(desk: Desk, count: int = 200) -> None:
    """Give the first problem so many solutions, some with surrogates and some on bad lines."""
    rows: list[Any] = [
        {"problem_id": "p0", "completion": f"{k % 7 + 1}" + ("0" if k % 3 else "\udc80")}
        for k in range(count)
    ]
    rows[50] = "no JSON"
    desk.write("solutions.jsonl", rows)


def num_lines(path: Path) -> int:
    """Return how many lines are there; of a file that is being replaced, none."""
    with contextlib.suppress(FileNotFoundError):
        return path.read_bytes().count(b"\n")
    return 0


def test_killed_in_mid_run_and_started_again_it_ends_with_the_same_output(desk: Desk) -> None:
    many(desk)
    whole = desk.score(reward="slow.py:reward", output="whole.jsonl")
    output = desk.folder / "verdicts.jsonl"
    for at_least in (20, 90):
        command = desk.command("--workers", "2", reward="slow.py:reward")
        with tiny_run.started(command, desk.folder) as process:
            tiny_run.wait_until(lambda least=at_least: num_lines(output) >= least, process)
            graders = [number for number in processes_in(desk.folder) if number != process.pid]
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert all(is_gone_within(number, 5) for number in graders)
        assert at_least <= len(desk.verdicts()) < 199
    begun = output.read_bytes()
    last = desk.score(reward="slow.py:reward")
    assert desk.verdicts() == desk.verdicts("whole.jsonl")
    assert output.read_bytes().startswith(begun), "what was there is not judged again"
    assert len(desk.verdicts()) == 199
    assert last.stdout == whole.stdout
    assert last.returncode == whole.returncode == 1


def test_interrupted_it_says_that_the_same_command_goes_on(desk: Desk) -> None:
    many(desk)
    output = desk.folder / "verdicts.jsonl"
    for number in (signal.SIGINT, signal.SIGTERM):
        with tiny_run.started(
            desk.command("--workers", "2", reward="slow.py:reward"), desk.folder
        ) as process:
            before = output.stat().st_size if output.exists() else 0
            tiny_run.wait_until(lambda size=before: output.exists() and output.stat().st_size > size, process)
            process.send_signal(number)
            said = process.communicate(timeout=30)[0]
            assert process.returncode == 75, said
            assert f"interrupted by {number.name}; the same command goes on from here; " in said
            assert re.search(r"[1-9][0-9]* verdicts are in verdicts.jsonl", said)
            assert "Traceback" not in said
    assert output.read_bytes().endswith(b"}\n")


def test_a_torn_last_line_is_judged_again(desk: Desk) -> None:
    desk.score()
    output, whole = desk.folder / "verdicts.jsonl", desk.verdicts()
    lines = output.read_bytes().splitlines(keepends=True)
    for left in (lines[0][:-1], lines[0][:9], b"".join(lines[:7]) + b'{"problem', b"".join(lines)[:-1]):
        output.write_bytes(left)
        desk.score()
        assert desk.verdicts() == whole
        assert output.read_bytes().startswith(left[: left.rfind(b"\n") + 1])


def test_finished_already_it_prints_the_summary_and_judges_nothing(desk: Desk) -> None:
    first = desk.score("--json", reward="slow.py:reward")
    before = (desk.folder / "verdicts.jsonl").read_bytes()
    again = desk.score("--json", reward="slow.py:reward")
    assert again.stdout == first.stdout
    assert "verdicts.jsonl: finished already, nothing to judge" in again.stderr
    assert (desk.folder / "verdicts.jsonl").read_bytes() == before


def change_problems(desk: Desk) -> tuple[str, ...]:
    path = desk.folder / "problems.jsonl"
    path.write_text(path.read_text().replace("sum", "difference"))
    return ()


def change_solutions(desk: Desk) -> tuple[str, ...]:
    path = desk.folder / "solutions.jsonl"
    path.write_text(path.read_text() + '{"problem_id": "p0", "completion": "0"}\n')
    return ()


def change_reward(desk: Desk) -> tuple[str, ...]:
    path = desk.folder / "slow.py"
    path.write_text(path.read_text() + "# changed\n")
    return ()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (change_problems, "  the content of --problems problems.jsonl\n"),
        (change_solutions, "  the content of --solutions solutions.jsonl\n"),
        (change_reward, "  reward.source: "),
        (lambda _: ("--set", "reward.threshold=0.5"), "  reward.threshold: 1.0 -> 0.5\n"),
        (lambda _: ("--reference", "kind"), "  reference: 'answer' -> 'kind'\n"),
    ],
)
def test_changed_inputs_are_refused_with_what_has_changed_unless_overwritten(
    desk: Desk, change: Callable[[Desk], tuple[str, ...]], told: str
) -> None:
    desk.score(reward="slow.py:reward")
    before = (desk.folder / "verdicts.jsonl").read_bytes()
    options = change(desk)
    done = desk.score(*options, reward="slow.py:reward")
    assert done.returncode == 1
    assert told in done.stderr
    assert len(re.findall("^  ", done.stderr, re.MULTILINE)) == 1, "nothing else has changed"
    assert "give --overwrite" in done.stderr
    assert (desk.folder / "verdicts.jsonl").read_bytes() == before
    assert desk.score("--overwrite", *options, reward="slow.py:reward").returncode == 0


def test_workers_and_timeout_may_change_on_the_way(desk: Desk) -> None:
    desk.score()
    done = desk.score("--workers", "1", "--timeout", "3")
    assert (done.returncode, "finished already" in done.stderr) == (0, True)


def test_an_output_that_is_not_ours_is_left_alone(desk: Desk) -> None:
    (desk.folder / "verdicts.jsonl").write_text("precious\n")
    done = desk.score()
    assert (done.returncode, "nothing beside it says what it judges" in done.stderr) == (1, True)
    assert (desk.folder / "verdicts.jsonl").read_text() == "precious\n"
    desk.score(output="mine.jsonl")
    for content in ("precious\n", '{"problem_id": "p1", "index": 0, "verdict": "correct"}\n', "[]\n"):
        (desk.folder / "mine.jsonl").write_text(content)
        done = desk.score(output="mine.jsonl")
        assert done.returncode == 1
        assert "error: mine.jsonl:1: " in done.stderr
        assert (desk.folder / "mine.jsonl").read_text() == content
    for option, name in (("--solutions", "solutions.jsonl"), ("--problems", "problems.jsonl")):
        done = desk.score("--overwrite", output=name)
        assert f"error: --output {name}: it is what {option} names" in done.stderr


def test_two_commands_do_not_write_one_output(desk: Desk) -> None:
    many(desk, 2000)  # the first is at work until it is told to leave
    output = desk.folder / "verdicts.jsonl"
    with tiny_run.started(desk.command(reward="slow.py:reward"), desk.folder) as process:
        tiny_run.wait_until(lambda: output.exists() and output.stat().st_size, process)
        done = desk.score("--overwrite", reward="slow.py:reward")
        assert done.returncode == 1
        assert "another command is writing it" in done.stderr
        assert output.stat().st_size
        process.terminate()
        process.communicate(timeout=30)


BAD_SOLUTIONS: list[tuple[Any, str]] = [
    ("no JSON", "this line is not JSON: Expecting value"),
    ("[1]", "this is a list; an object with the columns is wanted"),
    ('{"problem_id": "p0", "completion": "torn', "this line is not JSON"),
    ({"problem_id": "p9", "completion": ""}, "unknown problem_id 'p9'"),
    ({"problem_id": "", "completion": ""}, "the id in column 'problem_id' is ''"),
    ({"problem_id": "p0", "completions": ""}, "there is no column 'completion' (of solutions); did you mean"),
    (
        {"problem_id": "p0", "\x1b[2J": ""},
        r"there is no column 'completion' (of solutions); the columns are problem_id, \x1b[2J",
    ),
    ({"problem_id": "p0", "completion": None}, "the completion is of type NoneType; a text is wanted"),
    ({"problem_id": "p0", "completion": "", "index": -1}, "the index is -1; a whole number >= 0 is wanted"),
    ({"problem_id": "p0", "completion": "", "index": "1"}, "the index is '1'; a whole number >= 0"),
    ({"problem_id": "p0", "completion": "", "index": 0}, "index 0 of problem 'p0' is given twice"),
    ("[" * 100_000, "this line is nested too deeply"),
    (
        {"problem_id": "twice", "completion": ""},
        "unknown problem_id 'twice'; the line of this problem is bad",
    ),
]


def test_bad_lines_are_told_by_number_and_the_others_judged(desk: Desk) -> None:
    desk.write(
        "problems.jsonl",
        [
            {"id": "p0", "answer": "0"},
            {"id": "twice"},
            {"id": "p0", "answer": "1"},
            "",
            {"id": "p1", "answer": ""},
            {"id": "p1", "answer": "1"},
            {"id": "p2", "answer": "1", "prompt": 3},
        ],
    )
    good = {"problem_id": "p0", "completion": "0"}
    desk.write("solutions.jsonl", [good, *(row for row, _ in BAD_SOLUTIONS), good])
    with (desk.folder / "solutions.jsonl").open("ab") as file:
        file.write(b'{"problem_id": "p1", "completion": "\xff"}\n\n' + json.dumps(good).encode())
    done = desk.score("--json")
    summary = summary_of(done, code=1)
    for number, (_, told) in enumerate(BAD_SOLUTIONS, start=2):
        assert f"\nsolutions.jsonl:{number}: {told}" in done.stderr
    assert f"\nsolutions.jsonl:{len(BAD_SOLUTIONS) + 3}: a byte is not UTF-8" in done.stderr
    for line in (
        "problems.jsonl:2: there is no column 'answer' (--reference); the columns are id",
        "problems.jsonl:3: the id 'p0' is given twice, first at problems.jsonl:1",
        "problems.jsonl:5: the reference in column 'answer' is empty",
        "problems.jsonl:7: the prompt is neither a text nor a list of messages",
    ):
        assert line in done.stderr
    assert summary["num_bad_lines"] == len(BAD_SOLUTIONS) + 1 + 4
    assert (summary["num_problems"], summary["num_problems_without_solutions"]) == (2, 1)
    assert [row["index"] for row in desk.verdicts()] == [0, 1, 2]


def test_where_no_problem_can_be_used_nothing_is_begun(desk: Desk) -> None:
    done = desk.score("--reference", "answers")
    assert done.returncode == 1
    assert (
        "problems.jsonl: none of 3 problems can be used; the first: problems.jsonl:1: there is no column"
        in (done.stderr)
    )
    assert "did you mean 'answer'? the columns are id, answer, kind" in done.stderr
    assert not (desk.folder / "verdicts.jsonl").exists()


def test_completions_may_hold_anything_that_json_can(desk: Desk) -> None:
    texts = ["\udc80", "\0", "\ufeff0", "", "\u2028\r\n\x85", "x" * 3_000_000, "\ud83d\ude00", "\udfff 0"]
    desk.write("solutions.jsonl", [{"problem_id": "p0", "completion": text} for text in texts])
    with_mark = b"\xef\xbb\xbf" + (desk.folder / "solutions.jsonl").read_bytes()
    (desk.folder / "solutions.jsonl").write_bytes(with_mark)
    for name in ("exact_match", "number", "boxed"):
        done = desk.score("--set", "reward.answer=text", reward=name, output=f"{name}.jsonl")
        assert done.returncode == 0, done.stderr
        assert [row["answer"] for row in desk.verdicts(f"{name}.jsonl")][5] == texts[5]
        assert (desk.folder / f"{name}.jsonl").read_bytes().isascii()
    (desk.folder / "slow.py").write_text(
        "def reward(problem, solution):\n    raise ValueError(solution.text[:9] + problem.id)\n"
    )
    done = desk.score(reward="slow.py:reward", output="raised.jsonl")
    assert done.returncode == 0, done.stderr
    assert {row["verdict"] for row in desk.verdicts("raised.jsonl")} == {"unscorable"}


def test_compressed_files_are_read_and_a_broken_one_is_told_with_its_line(desk: Desk) -> None:
    rows = [{"problem_id": "p0", "completion": os.urandom(50).hex()} for _ in range(200)]
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    compressed = gzip.compress(content)
    problems = gzip.compress((desk.folder / "problems.jsonl").read_bytes())
    (desk.folder / "p.jsonl.gz").write_bytes(problems)
    files = ("--problems", "p.jsonl.gz", "--solutions", "s.jsonl.gz")
    (desk.folder / "s.jsonl.gz").write_bytes(compressed)
    assert summary_of(desk.score(*files, "--json"))["num_solutions"] == 200
    (desk.folder / "s.jsonl.gz").write_bytes(compressed[: len(compressed) // 2])
    done = desk.score(*files, "--json", "--overwrite")
    summary = summary_of(done, code=1)
    assert summary["num_bad_lines"] == 1
    assert 0 < summary["num_solutions"] < 200
    assert f"s.jsonl.gz:{summary['num_solutions'] + 1}: the compressed file is broken here" in done.stderr


def test_a_reward_sees_the_problem_and_the_solution_as_they_are_stored(desk: Desk) -> None:
    (desk.folder / "slow.py").write_text(
        "import json\n\ndef reward(problem, solution, *, path):\n"
        "    seen = [problem.prompt, problem.reference, problem.metadata]\n"
        "    seen += [solution.index, solution.iteration, solution.token_ids, solution.finish_reason]\n"
        "    with open(path, 'a') as file:\n        file.write(json.dumps(seen) + '\\n')\n    return 0.5\n"
    )
    chat = [{"role": "user", "content": "0?"}]
    desk.write("problems.jsonl", [{"id": 7, "gold": [1], "prompt": chat, "kind": {"a": 1}}])
    extra = {"index": 3, "iteration": 2, "token_ids": [1, 2], "finish_reason": "length"}
    wrong = {"token_ids": "ids", "finish_reason": "stop", "iteration": None}
    desk.write(
        "solutions.jsonl",
        [
            {"problem_id": "7", "completion": "", **extra},
            {"problem_id": 7, "completion": "", **wrong},
        ],
    )
    done = desk.score(
        *("--reference", "gold", "--workers", "1", "--set", "reward.options={path: seen}"),
        *("--set", "reward.threshold=0.5"),
        reward="slow.py:reward",
    )
    assert done.returncode == 0, done.stderr
    assert [row["verdict"] for row in desk.verdicts()] == ["correct", "correct"]
    row = {"id": 7, "gold": [1], "prompt": chat, "kind": {"a": 1}}
    assert [json.loads(line) for line in (desk.folder / "seen").read_text().splitlines()] == [
        [chat, [1], row, 3, 2, [1, 2], "length"],
        [chat, [1], row, 1, 0, [], "eos"],
    ]


def test_unscorable_ones_are_counted_and_judged_again_when_asked(desk: Desk) -> None:
    (desk.folder / "slow.py").write_text(
        "import pathlib, time\n\nfrom rest_em.errors import UnscorableError\n\n"
        "def reward(problem, solution):\n"
        "    if solution.index % 2 and not pathlib.Path('up').exists():\n"
        "        raise UnscorableError('the service is down')\n"
        "    if solution.index == 2 and problem.id == 'p1':\n        time.sleep(60)\n"
        "    return solution.index < 2\n"
    )
    first = desk.score("--json", "--timeout", "0.5", reward="slow.py:reward")
    summary = summary_of(first)
    assert summary["counts"] == {"correct": 3, "incorrect": 2, "unscorable": 7}
    reasons = summary["reasons"]["unscorable"]
    assert reasons["the service is down"] == 6
    assert sum(reasons.values()) == 7
    slow = [json.loads(line) for line in (desk.folder / "verdicts.jsonl").read_text().splitlines()][7]
    assert 0.5 <= slow["seconds"] < 10
    assert summary["pass_at"]["4"] == {
        **dict.fromkeys(("value", "standard_error", "low", "high")),
        "num_problems": 0,
        "num_undefined": 3,
        "why_undefined": "3 of 3 problems have fewer than 4 solutions that could be judged",
    }
    assert desk.score("--json", reward="slow.py:reward").stdout == first.stdout, "they stay"
    (desk.folder / "up").touch()
    before = (desk.folder / "verdicts.jsonl").read_text().splitlines()
    again = desk.score("--json", "--timeout", "0.5", "--retry-unscorable", reward="slow.py:reward")
    assert summary_of(again)["counts"] == {"correct": 6, "incorrect": 5, "unscorable": 1}
    after = (desk.folder / "verdicts.jsonl").read_text().splitlines()
    kept = [number for number, line in enumerate(before) if "unscorable" not in line]
    assert [before[number] for number in kept] == [after[number] for number in kept]
    assert not (desk.folder / "verdicts.jsonl.earlier").exists()


def test_judging_again_may_be_killed_as_well(desk: Desk) -> None:
    many(desk, 120)
    (desk.folder / "slow.py").write_text(
        "import pathlib, time\n\ndef reward(problem, solution):\n"
        "    assert solution.index < 20 or pathlib.Path('up').exists()\n"
        "    time.sleep(0.02)\n    return True\n"
    )
    desk.score(reward="slow.py:reward")
    (desk.folder / "up").touch()
    output = desk.folder / "verdicts.jsonl"
    command = desk.command("--workers", "1", "--retry-unscorable", reward="slow.py:reward")
    with tiny_run.started(command, desk.folder) as process:
        tiny_run.wait_until(lambda: 25 <= num_lines(output) < 100, process)
        process.kill()
        process.wait()
    summary = summary_of(desk.score("--json", reward="slow.py:reward"), code=1)
    unscorable = summary["counts"]["unscorable"]
    assert (summary["num_solutions"], unscorable) == (119, 0), "it goes on without being told again"


def test_a_reward_that_cannot_be_imported_stops_at_once(desk: Desk) -> None:
    (desk.folder / "slow.py").write_text("import nothing_of_this_name\n")
    done = desk.score(reward="slow.py:reward")
    assert done.returncode == 1
    assert "reward.function" in done.stderr
    assert "No module named 'nothing_of_this_name'" in done.stderr
    assert done.stdout == ""
    assert (desk.folder / "verdicts.jsonl").read_text() == ""
    (desk.folder / "slow.py").write_text(SLOW)
    assert desk.score(reward="slow.py:reward").returncode == 0, "mended, it begins"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--reward", "numbers"), "did you mean number?"),
        (("--set", "reward.thresholds=1"), "unknown key reward.thresholds; did you mean threshold?"),
        (("--set", "sampling.seed=1"), "sampling.seed is no key of the reward; one as reward.threshold"),
        (("--set", "reward.name=boxed"), "--reward number gives reward.name already; leave one out"),
        (("--set", "reward"), "KEY=VALUE is wanted"),
        (("--set", "reward.options={base: 8}"), "reward.options: unknown name 'base'"),
        (("--workers", "0"), "--workers 0: reward.num_workers is 0; a whole number > 0 or null is wanted"),
        (("--timeout", "0"), "--timeout 0.0: reward.timeout_seconds is 0.0; a number > 0 is wanted"),
        (("--solutions", "none.jsonl"), "--solutions none.jsonl: it is not there"),
        (("--solutions", "slow.py"), "a .jsonl or .jsonl.gz file is wanted"),
        (("--problems", "slow.py"), "files can be read, not '.py'"),
        (("--problems", "."), "--problems .: it is no file"),
        (("--output", "."), "--output ."),
    ],
)
def test_a_wrong_argument_is_told_in_one_line(
    desk: Desk,
    options: tuple[str, ...],
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from rest_em import cli

    monkeypatch.chdir(desk.folder)
    monkeypatch.setattr("sys.argv", ["rest_em", *desk.command(*options)[3:]])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    said = capsys.readouterr()
    assert (caught.value.code, said.out) == (1, "")
    assert told in said.err
    assert "Traceback" not in said.err


@pytest.mark.parametrize(
    "options",
    [
        ("--k", "1", "8", "64"),
        ("--k", "1", "--k", "8", "--k", "64"),
        ("--k", "1,8,64"),
        ("--k=1", "8", "64", "--json"),
        ("--k", "1,8", "64", "--k", "8"),
        ("--json", "--k", "64", "8", "1"),
    ],
)
def test_k_is_given_in_any_form(
    options: tuple[str, ...], desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    seen: list[Any] = []

    def see(tally: Any, reward: str, ks: Sequence[int], **settings: Any) -> Any:
        seen.append(summarize_score(tally, reward, ks, **settings))
        return seen[-1]

    monkeypatch.chdir(desk.folder)
    monkeypatch.setattr("rest_em.report.score.summarize_score", see)
    desk.write("solutions.jsonl", [])
    done = CliRunner().invoke(app, [*desk.command()[3:], *options])
    assert done.exit_code == 0, done.output
    assert [list(one.pass_at) for one in seen] == [[1, 8, 64]]


@pytest.mark.parametrize("text", ["0", "-1", "x", "1,", "1.5", "9" * 99])
def test_a_k_that_is_no_whole_number_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match=r"no whole number > 0; --k 1 8 64 is wanted"):
        whole_numbers(["1", text])


def test_what_follows_k_and_is_no_number_is_not_taken_for_one(desk: Desk) -> None:
    done = desk.score("--k", "1", "many")
    assert (done.returncode, "unexpected extra argument" in done.stderr) == (2, True)


def test_a_problem_without_solutions_is_undefined_and_told(desk: Desk) -> None:
    desk.write("solutions.jsonl", solutions({"p0": "00", "p1": "15"}))
    summary = summary_of(desk.score("--json", "--k", "1", "2"))
    one = summary["pass_at"]["1"]
    assert (one["value"], one["num_problems"], one["num_undefined"]) == (0.75, 2, 1)
    assert one["why_undefined"] == "1 of 3 problems have fewer than 1 solution that could be judged"
    assert summary["num_problems_without_solutions"] == 1
    assert "not defined: 1 of 3 problems have fewer than 1 solution" in desk.score().stdout


def test_people_get_a_table_on_stdout_and_progress_on_stderr(desk: Desk) -> None:
    done = desk.score()
    assert done.stdout.splitlines()[0] == "12 solutions to 3 problems, judged by number"
    assert re.search(r"correct +7 +58\.3", done.stdout)
    assert re.search(r"pass@1 +58\.3 +22\.0 +\[", done.stdout)
    assert "score: started, 12 lines" in done.stderr
    assert "score" not in done.stdout


def test_reasons_that_differ_for_each_solution_are_bounded_and_all_counted() -> None:
    tally = Tally(["p0"])
    for k in range(3 * MAX_REASONS):
        tally.add("p0", Verdict.UNSCORABLE, None, f"p0: the reward r raised ValueError: {k // 2}")
    assert len(tally.reasons[Verdict.UNSCORABLE]) <= MAX_REASONS + 1
    shown = summarize_score(tally, "r").reasons[Verdict.UNSCORABLE]
    assert shown["the reward r raised ValueError: 0"] == 2
    assert sum(shown.values()) == 3 * MAX_REASONS
    assert OTHER_REASONS in shown


def test_long_answers_are_told_apart_and_not_kept() -> None:
    tally = Tally(["p0"])
    for end in "aab":
        tally.add("p0", Verdict.CORRECT, "x" * 100_000 + end, "")
    columns = tally.columns()
    (ballot,) = columns.ballots()
    assert sorted(one.num_votes for one in ballot.classes) == [1, 2]
    assert all(len(answer) < 1000 for answer in columns.answers)


def test_memory_does_not_grow_with_the_solutions(desk: Desk) -> None:
    """Many solutions to few problems, of 100 MB together, are judged in what the tool takes by itself.

    getrusage would tell of the test's own memory, which a child inherits.
    """
    (desk.folder / "slow.py").write_text("def reward(problem, solution):\n    return True\n")
    text = "step\n" * 1000 + "0"
    with (desk.folder / "solutions.jsonl").open("w") as file:
        for _ in range(20_000):
            file.write(json.dumps({"problem_id": "p0", "completion": text}) + "\n")
    program = (
        "import sys\nfrom pathlib import Path\nfrom rest_em.cli import main\nsys.argv = sys.argv[1:]\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)\n"
        "print(Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0])\n"
    )
    command = desk.command("--set", "reward.answer=last_line", reward="slow.py:reward")
    done = tiny_run.finish([command[0], "-c", program, *command[2:]], desk.folder, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) < 130_000, "kilobytes; 170,000 without a bound"


def test_other_files_of_problems_are_read_as_recipes_read_them(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("id,answer\n1,2\n")
    stored = read_problems(tmp_path / "p.csv", "answer")
    assert [one.problem.reference for one in stored.by_id.values()] == ["2"]


def test_the_clock_of_a_solution_starts_when_it_is_judged(desk: Desk) -> None:
    started = time.monotonic()
    desk.score(reward="slow.py:reward")
    took = time.monotonic() - started
    rows = [json.loads(line) for line in (desk.folder / "verdicts.jsonl").read_text().splitlines()]
    assert all(row["seconds"] >= 0.02 for row in rows)
    assert sum(row["seconds"] for row in rows) < 2 * took
