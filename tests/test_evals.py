"""Evals: the shipped files, and how a benchmark's problems are read."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from rest_em.errors import ProblemError, RecipeError
from rest_em.problems.benchmark import load_benchmark
from rest_em.recipe import load_eval, shipped

EVALS = sorted(shipped("evals").glob("*.yaml"))
NEED_DATA = {"math", "math500", "bbh", "bbh_direct"}


def jsonl(path: Path, *rows: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("path", EVALS, ids=lambda path: path.stem)
def test_every_shipped_eval_loads_and_says_what_it_is(path: Path) -> None:
    if path.stem in NEED_DATA:
        with pytest.raises(RecipeError, match="give --data FILE, FOLDER or HUB-ID"):
            load_eval(path)
    spec = load_eval(path, data="somebody/some-data" if path.stem in NEED_DATA else None, overrides=(
        ["problems.split=test"] if path.stem in NEED_DATA else []))  # fmt: skip
    header = path.read_text().split("title:")[0]
    for word in ("source:", "licence:", "problems:", "settings:", "rest_em evaluate MODEL_OR_RUN"):
        assert word in header, word
    assert spec.title


def test_there_is_one_for_each_benchmark_of_the_paper() -> None:
    names = {path.stem for path in EVALS}
    assert names == {
        "apps", "arithmetic", "bbh", "bbh_direct", "gsm8k", "hungarian", "humaneval", "math", "math500", "mbpp",
    }  # fmt: skip


def test_gsm8k_shows_training_problems_and_asks_test_problems(tmp_path: Path) -> None:
    jsonl(tmp_path / "train.jsonl", *[{"question": f"q{k}", "answer": f"a #### {k}"} for k in range(6)])
    jsonl(tmp_path / "test.jsonl", *[{"question": f"t{k}", "answer": f"so #### {k}"} for k in range(3)])
    found = load_benchmark(load_eval(shipped("evals") / "gsm8k.yaml", data=str(tmp_path)), limit=2)
    assert [one.id for one in found.problems] == ["0", "1"]
    assert found.problems[0].prompt == (
        "".join(f"Question: q{k}\nAnswer: a #### {k}\n\n" for k in range(5)) + "Question: t0\nAnswer:"
    )
    assert found.bare[0].prompt == "Question: t0\nAnswer:"
    assert found.num_examples == 5


def test_a_problem_that_is_shown_solved_is_refused(tmp_path: Path) -> None:
    jsonl(tmp_path / "train.jsonl", *[{"question": f"q{k}", "answer": f"a #### {k}"} for k in range(5)])
    jsonl(tmp_path / "test.jsonl", {"question": "q3", "answer": "so #### 3"})
    with pytest.raises(ProblemError, match="also a worked example of the prompt"):
        load_benchmark(load_eval(shipped("evals") / "gsm8k.yaml", data=str(tmp_path)))


def bbh(folder: Path) -> Path:
    for task in ("snarks", "navigate"):
        rows = [{"input": f"{task} {k}", "target": "(A)"} for k in range(4)]
        (folder / f"{task}.json").write_text(json.dumps({"canary": "x", "examples": rows}))
        (folder / "cot-prompts").mkdir(exist_ok=True)
        (folder / "cot-prompts" / f"{task}.txt").write_text(
            "canary\n-----\nDo it.\n\nQ: one\nA: Let's think step by step.\nHm. So the answer is (B)."
        )
    return folder


def test_bbh_reads_its_prompts_from_the_data_and_limits_each_task(tmp_path: Path) -> None:
    spec = load_eval(shipped("evals") / "bbh.yaml", data=str(bbh(tmp_path)))
    found = load_benchmark(spec, limit=3)
    assert [one.id for one in found.problems] == ["navigate-0", "navigate-1", "snarks-0"]
    assert found.groups == {"navigate-0": "navigate", "navigate-1": "navigate", "snarks-0": "snarks"}
    assert found.problems[0].prompt == (
        "Do it.\n\nQ: one\nA: Let's think step by step.\nHm. So the answer is (B).\n\n"
        "Q: navigate 0\nA: Let's think step by step."
    )
    direct = load_benchmark(load_eval(shipped("evals") / "bbh_direct.yaml", data=str(tmp_path)))
    assert direct.problems[0].prompt == "Do it.\n\nQ: one\nA: (B)\n\nQ: navigate 0\nA:"


def test_a_text_outside_of_the_data_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    bbh(tmp_path / "data")
    (tmp_path / "secret.txt").write_text("s")
    option = """prompt.template="{{ text_of('../secret.txt') }}\""""
    spec = load_eval(shipped("evals") / "bbh.yaml", [option], str(tmp_path / "data"))
    with pytest.raises(ProblemError, match="lies outside of"):
        load_benchmark(spec)


def test_mbpp_and_humaneval_take_the_rows_that_they_name(tmp_path: Path) -> None:
    rows = [
        {"task_id": k, "text": f"do {k}", "code": f"def f{k}(): pass", "test_list": [f"assert f{k}() == {k}"]}
        for k in (2, 3, 4, 11, 12, 511)
    ]
    jsonl(tmp_path / "mbpp.jsonl", *rows)
    found = load_benchmark(load_eval(shipped("evals") / "mbpp.yaml", data=str(tmp_path)))
    assert [one.id for one in found.problems] == ["11", "12"]
    assert str(found.problems[0].prompt).count("[DONE]") == 3
    row = {
        "task_id": "HumanEval/0",
        "prompt": "def f():\n",
        "test": "def check(c): assert c() == 1",
        "entry_point": "f",
    }
    with gzip.open(tmp_path / "HumanEval.jsonl.gz", "wt") as file:
        file.write(json.dumps(row) + "\n")
    (one,) = load_benchmark(load_eval(shipped("evals") / "humaneval.yaml", data=str(tmp_path))).problems
    assert (one.id, one.prompt) == ("HumanEval/0", "def f():\n")


def test_apps_is_read_as_the_hub_has_it_in_groups_of_difficulty(tmp_path: Path) -> None:
    tests = [
        {"inputs": ["1\n"], "outputs": ["2\n"]},
        {"fn_name": "f", "inputs": [[1]], "outputs": [[2]]},
    ]
    rows = [
        {"id": k, "question": f"q{k}", "solutions": "[]", "input_output": json.dumps(each), "url": "",
         "difficulty": kind, "starter_code": "def f(n):" if k == 1 else ""}
        for k, (each, kind) in enumerate(zip(tests, ("introductory", "competition"), strict=True))
    ]  # fmt: skip
    jsonl(tmp_path / "test.jsonl", *rows)
    found = load_benchmark(load_eval(shipped("evals") / "apps.yaml", data=str(tmp_path)))
    assert found.groups == {"0": "introductory", "1": "competition"}
    assert "It reads standard input and prints to standard output." in str(found.problems[0].prompt)
    assert "It begins with:\n```python\ndef f(n):\n```" in str(found.problems[1].prompt)
    one = ["problems.where.difficulty=competition"]
    (hard,) = load_benchmark(load_eval(shipped("evals") / "apps.yaml", one, str(tmp_path))).problems
    assert hard.id == "1"


def test_math_is_read_from_its_authors_folders_and_a_file(tmp_path: Path) -> None:
    row = {"problem": "1+1?", "solution": r"It is $\\boxed{2}$.", "level": "Level 1", "type": "Algebra"}
    for subject in ("algebra", "geometry"):
        (tmp_path / "MATH" / "test" / subject).mkdir(parents=True)
        (tmp_path / "MATH" / "test" / subject / "7.json").write_text(json.dumps(row | {"problem": subject}))
    found = load_benchmark(load_eval(shipped("evals") / "math.yaml", data=str(tmp_path)))
    assert [str(one.prompt).splitlines()[-2] for one in found.problems] == [
        "Problem: algebra",
        "Problem: geometry",
    ]
    jsonl(tmp_path / "test.jsonl", row | {"answer": "2"})
    (one,) = load_benchmark(load_eval(shipped("evals") / "math500.yaml", data=str(tmp_path))).problems
    assert (one.id, one.reference) == ("0", "2")


def test_the_hungarian_exam_has_no_reward(tmp_path: Path) -> None:
    (tmp_path / "test.csv").write_text("Question,Answer\nHow many?,3\n")
    spec = load_eval(shipped("evals") / "hungarian.yaml", data=str(tmp_path))
    (one,) = load_benchmark(spec).problems
    assert str(one.prompt).endswith("Problem: How many?\nSolution:")
    assert (spec.reward, one.reference) == (None, None)


def test_no_row_that_is_wanted_is_told(tmp_path: Path) -> None:
    jsonl(tmp_path / "mbpp.jsonl", {"task_id": 1, "text": "x", "code": "y", "test_list": []})
    spec = load_eval(shipped("evals") / "mbpp.yaml", data=str(tmp_path))
    with pytest.raises(ProblemError, match="none of 1 rows is as `where` says"):
        load_benchmark(spec)


def test_an_eval_has_one_prompt_and_draws_something(tmp_path: Path) -> None:
    path = shipped("evals") / "arithmetic.yaml"
    with pytest.raises(RecipeError, match=r"has k = 9 and sampling\.num_samples is 8"):
        load_eval(path, ["metrics.pass_at=[9]"])
    with pytest.raises(RecipeError, match="an eval asks all policies alike"):
        load_eval(path, ["prompt.base=[{name: x}]"])
    with pytest.raises(RecipeError, match="is no regular expression"):
        load_eval(path, ["metrics.format='('"])
