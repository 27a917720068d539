"""Evals: the shipped files, and how a benchmark's problems are read."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from rest_em.errors import ProblemError, RecipeError
from rest_em.problems.benchmark import load_benchmark
from rest_em.recipe import Eval, copy_eval, load_eval, shipped

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


def test_a_limit_takes_problems_of_each_subject_of_math(tmp_path: Path) -> None:
    for subject, number in (("algebra", 5), ("geometry", 1), ("prealgebra", 4)):
        for k in range(number):
            path = tmp_path / "test" / subject / f"{k}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"problem": f"{subject} {k}", "solution": "$\\boxed{2}$"}))
    spec = load_eval(shipped("evals") / "math.yaml", data=str(tmp_path))
    found = [one.id for one in load_benchmark(spec, limit=6).problems]
    assert found == [
        "algebra/0-0",
        "algebra/1-0",
        "algebra/2-0",
        "geometry/0-0",
        "prealgebra/0-0",
        "prealgebra/1-0",
    ]
    assert load_benchmark(spec, limit=99).problems == load_benchmark(spec).problems


def own(folder: Path, problems: str, *rows: dict[str, object]) -> Eval:
    jsonl(folder / "p.jsonl", *[{"q": f"q{k}", "answer": "1"} | row for k, row in enumerate(rows)])
    (folder / "own.yaml").write_text(
        f"title: own\nproblems: {{path: p.jsonl, {problems}}}\nprompt: {{template: '{{{{ q }}}}'}}\n"
        "reward: number\nsampling: {max_new_tokens: 4}\n"
    )
    return load_eval(folder / "own.yaml")


def test_a_problem_without_a_cluster_is_its_own(tmp_path: Path) -> None:
    spec = own(tmp_path, "cluster: page", {"page": 1}, {"page": 1}, {"page": None}, {"page": None})
    assert load_benchmark(spec).clusters == {"0": "1", "1": "1"}


def test_a_problem_without_a_group_is_told(tmp_path: Path) -> None:
    spec = own(tmp_path, "group: task", {"task": "sums"}, {"task": None})
    told = r"p\.jsonl:2: the group, column 'task' \(problems\.group\), is null; each problem is of one"
    for limit in (None, 1):
        with pytest.raises(ProblemError, match=told):
            load_benchmark(spec, limit)


def test_a_column_called_file_of_a_single_file_is_the_benchmarks_own(tmp_path: Path) -> None:
    spec = own(tmp_path, "reference: answer", {"file": ["a.py"]}, {"file": "b.py"}, {"file": None})
    assert [one.id for one in load_benchmark(spec, limit=2).problems] == ["0", "1"]


@pytest.mark.parametrize("path", EVALS, ids=lambda path: path.stem)
def test_a_copy_of_a_shipped_eval_loads_where_it_lies(path: Path, tmp_path: Path) -> None:
    for other in ("math500", path.stem):  # beside what was copied before, which may name the same file
        if not (tmp_path / f"{other}.yaml").exists():
            assert copy_eval(other, tmp_path) == tmp_path / f"{other}.yaml"
    data = "somebody/some-data" if path.stem in NEED_DATA else None
    options = ["problems.split=test"] if data else []
    one, its_copy = (load_eval(each, options, data) for each in (path, tmp_path / path.name))
    assert its_copy.model_dump(exclude={"problems": {"path"}, "prompt": {"examples"}}) == one.model_dump(
        exclude={"problems": {"path"}, "prompt": {"examples"}}
    )
    named = [text for text in (its_copy.problems.path, its_copy.prompt.examples) if text and text[0] == "/"]
    assert all(Path(text).parent == tmp_path and Path(text).is_file() for text in named)
    assert len(list(tmp_path.iterdir())) <= 5, "the two evals and what they name"
    if path.stem == "arithmetic":
        assert load_benchmark(its_copy).problems == load_benchmark(one).problems


def test_a_copy_replaces_nothing(tmp_path: Path) -> None:
    copy_eval("math", tmp_path)
    with pytest.raises(RecipeError, match=r"math\.yaml: exists already; name another folder"):
        copy_eval("math", tmp_path)
    (tmp_path / "math_examples.jsonl").write_text("mine")
    with pytest.raises(RecipeError, match=r"math_examples\.jsonl: exists already; name another folder"):
        copy_eval("math500", tmp_path)
    assert {one.name for one in tmp_path.iterdir()} == {"math.yaml", "math_examples.jsonl"}
    with pytest.raises(RecipeError, match=r"maths: no such eval; there are: apps, arithmetic, "):
        copy_eval("maths", tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(RecipeError, match="cannot be made"):
        copy_eval("gsm8k", tmp_path / "file")


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
