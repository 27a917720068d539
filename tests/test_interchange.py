"""Logs of other harnesses, read and written."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from pathlib import Path

import pytest

from rest_em.errors import SamplesError
from rest_em.interchange import inspect_ai, lm_eval, read_log
from rest_em.samples import Sample
from rest_em.types import Verdict

SAMPLED = Sample(
    "p1", "2+2=", "4", "sampled", 0, " 4", Verdict.CORRECT, 1.0, "4", "", "eos", 3,
    True, "sums", "page 7", "x",
)  # fmt: skip
SAMPLES = [
    SAMPLED,
    dataclasses.replace(SAMPLED, index=1, text="5", verdict=Verdict.INCORRECT, reward=0.0, answer="5"),
    dataclasses.replace(
        SAMPLED, problem_id="p2", prompt=({"role": "user", "content": "?"},), reference={"cases": [1]},
        verdict=Verdict.UNSCORABLE, reward=0.0, answer=None, reason="broken", finish_reason="length",
    ),
]  # fmt: skip
THEIRS = {
    "doc_id": 0, "doc": {"question": "2+2=", "answer": "4"}, "target": "4",
    "arguments": {"gen_args_0": {"arg_0": "2+2=", "arg_1": {"until": ["\n"], "do_sample": False}}},
    "resps": [["4"]], "filtered_resps": ["4"], "filter": "none", "metrics": ["exact_match"],
    "doc_hash": "8ec2", "prompt_hash": "2024", "target_hash": "4b22", "exact_match": 1.0,
}  # fmt: skip


def lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_what_is_written_for_lm_eval_is_read_back_whole(tmp_path: Path) -> None:
    greedy = dataclasses.replace(SAMPLED, decoding="greedy")
    lm_eval.write_log(tmp_path / "samples.jsonl", [greedy, *SAMPLES])
    assert list(read_log(tmp_path / "samples.jsonl")) == [greedy, *SAMPLES]
    row = json.loads((tmp_path / "samples.jsonl").read_text().splitlines()[1])
    assert row.keys() - {"rest_em"} == THEIRS.keys()
    assert (row["resps"], row["exact_match"]) == ([[" 4", "5"]], 0.5)


def test_a_log_of_lm_eval_is_read(tmp_path: Path) -> None:
    wrong = THEIRS | {"doc_id": 1, "exact_match": 0.0, "filtered_resps": ["[invalid]"]}
    one, two = read_log(lines(tmp_path / "s.jsonl", THEIRS, wrong))
    assert (one.problem_id, one.decoding, one.verdict, one.answer) == ("0", "greedy", Verdict.CORRECT, "4")
    assert (two.problem_id, two.verdict, two.answer) == ("1", Verdict.INCORRECT, None)


def test_of_several_filters_the_first_is_taken_and_of_repeats_no_verdict(tmp_path: Path) -> None:
    other = THEIRS | {"filter": "flexible-extract", "exact_match": 0.0}
    repeated = THEIRS | {"doc_id": 1, "resps": [["4", "5"]], "filtered_resps": ["4", "5"]}
    found = list(read_log(lines(tmp_path / "s.jsonl", THEIRS, other, repeated)))
    assert [one.verdict for one in found] == [Verdict.CORRECT, Verdict.UNSCORABLE, Verdict.UNSCORABLE]
    assert [one.index for one in found] == [0, 0, 1]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"doc_id": 0', "s.jsonl:1: this line is not JSON"),
        ('{"doc_id": 0}', "s.jsonl:1: this is no line of a sample log"),
        ("[1]", "s.jsonl:1: this is no line of a sample log"),
        (json.dumps(THEIRS | {"arguments": {}}), "not as the harness writes it"),
        (json.dumps(THEIRS | {"resps": [[[-1.0, True]]]}), "a task that generates"),
    ],
)
def test_what_is_no_log_of_lm_eval_is_told_with_its_line(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "s.jsonl").write_text(text + "\n")
    with pytest.raises(SamplesError, match=told):
        list(read_log(tmp_path / "s.jsonl"))


def test_what_is_written_for_inspect_is_read_back_whole(tmp_path: Path) -> None:
    inspect_ai.write_log(tmp_path / "log.json", SAMPLES, "sums", "base")
    assert list(read_log(tmp_path / "log.json")) == SAMPLES
    with zipfile.ZipFile(tmp_path / "log.eval", "w") as archive:
        value = json.loads((tmp_path / "log.json").read_text())
        samples = value.pop("samples")
        archive.writestr("header.json", json.dumps(value))
        for one in samples:
            archive.writestr(f"samples/{one['id']}_epoch_{one['epoch']}.json", json.dumps(one))
    assert list(read_log(tmp_path / "log.eval")) == SAMPLES


def test_a_log_of_inspect_holds_one_decoding(tmp_path: Path) -> None:
    mixed = [SAMPLED, dataclasses.replace(SAMPLED, decoding="greedy")]
    with pytest.raises(SamplesError, match="samples of one decoding"):
        inspect_ai.write_log(tmp_path / "log.json", mixed, "sums", "base")


def test_several_scorers_are_not_guessed_at(tmp_path: Path) -> None:
    inspect_ai.write_log(tmp_path / "log.json", SAMPLES[:1], "sums", "base")
    value = json.loads((tmp_path / "log.json").read_text())
    value["samples"][0]["scores"]["other"] = {"value": "I"}
    (tmp_path / "log.json").write_text(json.dumps(value))
    with pytest.raises(SamplesError, match="sample 1: there are scores of rest_em, other"):
        list(inspect_ai.read_log(tmp_path / "log.json"))
    (found,) = inspect_ai.read_log(tmp_path / "log.json", "other")
    assert found.verdict is Verdict.INCORRECT


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("x.json", b"{", "not JSON"),
        ("x.json", b"[]", "no list `samples`"),
        ("x.json", b'{"samples": []}', "it has no `eval`"),
        ("x.json", b'{"eval": {}, "samples": [{"id": 1}]}', "sample 1: 'output'"),
        ("x.eval", b"PK", "no log of inspect_ai"),
        ("x.txt", b"", "is wanted"),
    ],
)
def test_what_is_no_log_of_inspect_is_told(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SamplesError, match=told):
        list(read_log(tmp_path / name))
