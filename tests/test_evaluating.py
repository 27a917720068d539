"""A model measured on an eval, end to end with a tiny random model, and stored solutions judged."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_run import finish, launch

from rest_em import __version__
from rest_em.cli import main
from rest_em.ledger import Ledger, Stage
from rest_em.recipe import find_eval
from rest_em.samples import read_samples
from rest_em.types import Verdict

pytestmark = pytest.mark.timeout(600)

EVAL = """
title: Sums
problems: {path: sums.jsonl, id: id, group: kind}
prompt: {template: "{{ question }}="}
reward: number
sampling: {max_new_tokens: 6, num_samples: 2, unit_size: 4, max_rows: 4}
metrics: {format: '[0-9]'}
"""


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A folder with an eval of four problems of two kinds."""
    rows = [
        {"id": f"p{k}", "question": f"1+{k}", "answer": str(1 + k), "kind": "ab"[k % 2]} for k in range(4)
    ]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "sums.yaml").write_text(EVAL)
    return tmp_path


@pytest.fixture
def refused(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Return what `rest_em evaluate` says of arguments that it refuses."""
    monkeypatch.chdir(desk)

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["rest_em", "evaluate", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        assert caught.value.code == 1
        return capsys.readouterr().err

    return run


def evaluate(cwd: Path, *arguments: str, config: str | None = None) -> Any:
    done = finish(launch("evaluate", *arguments, config=config), cwd)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout[done.stdout.index("[") :]) if "--json" in arguments else done.stdout


def test_a_model_is_measured_once_and_again_only_when_asked(desk: Path, tiny_model_folder: Path) -> None:
    model = str(tiny_model_folder)
    (first,) = evaluate(desk, model, "sums.yaml", "--json")
    assert (first["overall"]["num_problems"], first["greedy"]["num_solutions"]) == (4, 4)
    assert first["sampled"]["num_solutions"] == 8
    assert first["groups"].keys() == {"a", "b"}
    rows = list(read_samples(desk / first["samples"]))
    assert len(rows) == 12
    assert {one.group for one in rows} == {"a", "b"}
    settings = first["settings"]
    assert (settings["model"], settings["seed"], settings["num_shots"]) == (model, 0, 0)
    assert settings["dtype"] in ("float32", "bfloat16")  # what auto came to
    assert (settings["greedy"], settings["num_samples"], settings["temperature"]) == (True, 2, 1.0)
    assert (settings["data"], settings["limit"]) == ({"path": str(desk / "sums.jsonl")}, None)
    assert json.loads((desk / first["samples"]).with_name("settings.json").read_text()) == settings
    ledger = desk / "evaluations" / tiny_model_folder.name / "ledger.jsonl"
    before = ledger.read_text()
    assert evaluate(desk, model, "sums.yaml", "--json") == [first]
    assert ledger.read_text() == before
    refused = finish(launch("evaluate", model, "sums.yaml", "--set", "sampling.num_samples=3"), desk)
    assert refused.returncode == 1
    assert "sampling.num_samples: 2 -> 3" in refused.stderr
    assert "--overwrite measures it again" in refused.stderr
    (more,) = evaluate(desk, model, "sums.yaml", "--set", "sampling.num_samples=3", "--overwrite", "--json")
    assert more["sampled"]["num_solutions"] == 12
    assert more["is_correct"] == first["is_correct"]
    assert more["settings"] == settings | {"num_samples": 3}
    (few,) = evaluate(
        desk, model, "sums.yaml", "--limit", "2", "--seed", "5", "--set", "model.dtype=float32",
        "--set", "sampling.num_samples=0", "--output", "few", "--json",
    )  # fmt: skip
    settings = few["settings"]
    assert (settings["limit"], settings["seed"], settings["dtype"]) == (2, 5, "float32")
    assert (settings["num_samples"], settings["temperature"], settings["top_p"]) == (0, None, None)


def test_the_settings_stand_below_the_table(desk: Path, tiny_model_folder: Path) -> None:
    shown = evaluate(desk, str(tiny_model_folder), "sums.yaml", "--set", "model.dtype=float32")
    assert (
        "greedy; 2 samples at T 1.0, top-p 0.95, seed 0; at most 6 tokens; 0 shots; float32; data sums.jsonl; "
        f"95 % intervals; rest_em {__version__}\nsamples and scores: "
    ) in shown


def test_two_ranks_draw_what_one_draws(desk: Path, tiny_model_folder: Path) -> None:
    model = str(tiny_model_folder)
    evaluate(desk, model, "sums.yaml", "--output", "one")
    evaluate(desk, model, "sums.yaml", "--output", "two", config="ddp_cpu.yaml")
    one, two = (
        list(read_samples(desk / name / "iteration-00/evals/sums/samples.parquet")) for name in ("one", "two")
    )
    assert one == two


def test_stored_solutions_are_judged_without_a_model(desk: Path) -> None:
    solutions = [
        {"problem_id": f"p{k}", "completion": f"The answer is {1 + k if index else 9}."}
        for k in range(4)
        for index in range(2)
    ]
    (desk / "solutions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in solutions))
    for _ in range(2):
        (found,) = evaluate(desk, "theirs", "sums.yaml", "--solutions", "solutions.jsonl", "--json")
        figures = {k: one["value"] for k, one in found["overall"]["pass_at"].items()}
        assert figures == {"1": 0.5, "2": 1.0}
        assert found["overall"]["majority_at"]["2"]["value"] == 0.5
        assert found["sampled"]["format_valid"] == 1.0
        settings = found["settings"]
        assert (settings["solutions"], settings["reward"]) == ("solutions.jsonl", "number")
        assert {settings[key] for key in ("model", "seed", "temperature", "num_shots")} == {None}
    assert json.loads((desk / found["samples"]).with_name("settings.json").read_text()) == settings
    again = evaluate(desk, "again", "sums.yaml", "--solutions", found["samples"], "--json")
    assert again[0]["overall"] == found["overall"]
    for form in ("lm_eval", "jsonl"):
        done = finish(launch("export", found["samples"], f"log.{form}.jsonl", "--format", form), desk)
        assert done.returncode == 0, done.stderr
    back = evaluate(desk, "back", "sums.yaml", "--solutions", "log.lm_eval.jsonl", "--json")
    assert back[0]["overall"] == found["overall"]
    assert all(one.verdict is not Verdict.UNSCORABLE for one in read_samples(desk / back[0]["samples"]))


def test_a_vote_that_another_reward_gave_is_forgotten(desk: Path) -> None:
    rows = [
        {"problem_id": "p1", "completion": text, "answer": "x", "vote": "x"} for text in ("It is 2.", "Hm.")
    ]
    (desk / "voted.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (found,) = evaluate(desk, "theirs", "sums.yaml", "--solutions", "voted.jsonl", "--json")
    assert [(one.answer, one.vote) for one in read_samples(desk / found["samples"])] == [
        ("2", None),
        (None, None),
    ]


def test_solutions_do_not_replace_what_a_policy_drew_nor_it_them(
    desk: Path, refused: Callable[..., str]
) -> None:
    (desk / "s.jsonl").write_text(json.dumps({"problem_id": "p1", "completion": "2"}) + "\n")
    folder = desk / "evaluations" / "drawn"
    table = folder / "iteration-00" / "evals" / "sums" / "samples.parquet"
    table.parent.mkdir(parents=True)
    table.write_text("what was drawn")
    Ledger(folder).append(Stage("iteration-00/evals/sums/metrics", {}), {}, seconds=1.0)
    for option in ((), ("--overwrite",)):
        told = refused("drawn", "sums.yaml", "--solutions", "s.jsonl", *option)
        assert (
            "a policy was measured on sums there, and its table would be replaced; give the solutions" in told
        )
    assert [path.name for path in table.parent.iterdir()] == ["samples.parquet"]
    assert table.read_text() == "what was drawn"
    begun = desk / "evaluations" / "begun" / "iteration-00" / "evals" / "sums" / "greedy" / "stage.json"
    begun.parent.mkdir(parents=True)
    begun.touch()
    assert "a policy was measured on sums there" in refused("begun", "sums.yaml", "--solutions", "s.jsonl")
    evaluate(desk, "judged", "sums.yaml", "--solutions", "s.jsonl")
    (desk / "config.json").write_text("{}")
    told = refused(str(desk), "sums.yaml", "--output", "evaluations/judged")
    assert "judged/iteration-00/evals/sums/verdicts.jsonl: stored solutions were judged here" in told


def test_solutions_are_judged_by_one_command_at_a_time(desk: Path, refused: Callable[..., str]) -> None:
    (desk / "s.jsonl").write_text(json.dumps({"problem_id": "p1", "completion": "2"}) + "\n")
    program = """
from pathlib import Path
from rest_em.storage import FolderLock
lock = FolderLock(Path("evaluations/theirs"))
print(flush=True)
input()
"""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert "is running here; wait for it" in refused("theirs", "sums.yaml", "--solutions", "s.jsonl")
        other.communicate("\n")


def test_the_k_of_stored_solutions_are_what_is_said_or_what_most_problems_have(desk: Path) -> None:
    counts = {"p0": 3, "p1": 3, "p2": 4, "p3": 6}
    rows = [{"problem_id": key, "completion": "1"} for key, number in counts.items() for _ in range(number)]
    (desk / "s.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    whole = ("sums.yaml", "--solutions", "s.jsonl", "--json", "--set", "sampling.num_samples=8")
    (found,) = evaluate(desk, "default", *whole)
    assert [*found["overall"]["pass_at"]] == ["1", "2", "3"]
    assert [*found["overall"]["majority_at"]] == ["3"]
    said = ("--set", "metrics.pass_at=[1,4]", "--set", "metrics.majority_at=[2,4]")
    (found,) = evaluate(desk, "said", *whole, *said)
    assert [*found["overall"]["pass_at"]] == ["1", "4"]
    assert [*found["overall"]["majority_at"]] == ["2", "4"]
    assert found["overall"]["majority_at"]["4"]["num_undefined"] == 2


def test_a_name_of_solutions_may_be_that_of_a_folder_and_an_eval_too(desk: Path) -> None:
    (desk / "s.jsonl").write_text(json.dumps({"problem_id": "p1", "completion": "2"}) + "\n")
    for name in ("theirs", "gsm8k"):
        (desk / name).mkdir()
    (found,) = evaluate(desk, "theirs", "sums.yaml", "--solutions", "s.jsonl", "--json")
    assert found["samples"].startswith("evaluations/theirs/")
    assert find_eval("gsm8k").name == "gsm8k.yaml"


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (
            {"problem_id": "p9", "completion": "2"},
            "2 solutions are to problems that sums does not have, first 'p9'",
        ),
        ({"problem_id": "p1", "completion": 2}, "bad.jsonl:1: completion is 2; a text is wanted"),
        (
            {"problem_id": "p1", "completions": "2"},
            "bad.jsonl:1: there is no column 'completion' (of solutions); did you mean 'completions'?",
        ),
        (
            {"problem_id": "p1", "completion": "\ud800 18"},
            "bad.jsonl:1: column 'completion' holds half a surrogate pair, which is no text",
        ),
        ({"problem_id": "p1", "completion": "2", "decoding": "beam"}, "greedy or sampled is wanted"),
        (
            {"problem_id": "p1", "completion": "2", "decoding": "greedy"},
            "bad.jsonl:2: problem 'p1' has a second",
        ),
    ],
)
def test_solutions_that_cannot_be_used_are_told(
    desk: Path, refused: Callable[..., str], row: dict[str, Any], told: str
) -> None:
    (desk / "bad.jsonl").write_text(2 * (json.dumps(row) + "\n"))
    assert told in refused("x", "sums.yaml", "--solutions", "bad.jsonl")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("m", "nothing"), "nothing: no such eval; name a YAML file, or one of apps, arithmetic, bbh"),
        (("m", "math"), "problems.path is for you to say: give --data FILE, FOLDER or HUB-ID"),
        (("m", "sums.yaml", "--set", "sampling.num_sample=1"), "did you mean num_samples?"),
        (("m", "gsm8k", "--data", "."), "this is a folder, and there is no test.jsonl"),
        (("m", "sums.yaml", "--set", "sampling.greedy=false", "--set", "sampling.num_samples=0"), "nothing"),
        ((".", "sums.yaml"), "neither a ledger.jsonl of a run in it nor a config.json of a model"),
        (("/no/model", "sums.yaml"), "/no/model: there is no such folder; the folder of a model or a run"),
        (("/no/model", "sums.yaml", "--output", "out"), "/no/model: there is no such folder; "),
        (("models/of/mine", "sums.yaml"), "models/of/mine: there is no such folder; "),
        (("~nobody-here/m", "sums.yaml"), "~nobody-here/m: there is no such folder; "),
        (("./m", "sums.yaml", "--solutions", "sums.jsonl"), "./m: there is no such folder; "),
        (("m", "sums.yaml", "--set", "model.dtyp=x"), "unknown key model.dtyp; did you mean dtype?\n"),
        (("m", "sums.yaml", "--set", "model.dtype=x"), "--set model.dtype=x: model.dtype is 'x'; "),
        (("m", "sums.yaml", "--set", "model.name_or_path=x"), "the model is named already, m; leave one out"),
        (
            ("m", "sums.yaml", "--policy", "last"),
            "--policy: m is no run; a model is one policy; leave it out",
        ),
        (
            ("m", "sums.yaml", "--solutions", "sums.jsonl", "--policy", "last"),
            "--policy: with --solutions nothing is drawn; leave it out",
        ),
        (
            ("m", "sums.yaml", "--solutions", "sums.jsonl", "--seed", "1"),
            "--seed: with --solutions nothing is drawn; leave it out",
        ),
    ],
)
def test_what_cannot_be_measured_is_told_in_one_line(
    desk: Path, refused: Callable[..., str], arguments: tuple[str, ...], told: str
) -> None:
    said = refused(*arguments)
    assert told in said
    assert said.count("\n") == 1
    assert {path.name for path in desk.iterdir()} == {"sums.jsonl", "sums.yaml"}
