"""Logs of other harnesses; those in tests/interchange are real, made by benchmarks/interchange.py."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rest_em.errors import SamplesError
from rest_em.interchange import LogScores, inspect_ai, json_text, lm_eval, read_log
from rest_em.samples import Sample
from rest_em.types import Verdict

REAL = Path(__file__).parent / "interchange"
CORRECT, INCORRECT, UNSCORABLE = Verdict.CORRECT, Verdict.INCORRECT, Verdict.UNSCORABLE
SAMPLED = Sample(
    "p/1", "2+2=", "4", "sampled", 0, " 4 ≠ 5\n", CORRECT, 0.5, "4", "close", "eos", 3,
    True, "sums", "page 7", "x",
)  # fmt: skip
SAMPLES = [
    SAMPLED,
    dataclasses.replace(SAMPLED, index=1, text="", verdict=INCORRECT, reward=0.0, answer=None, vote=None),
    dataclasses.replace(
        SAMPLED, problem_id="7", prompt=({"role": "user", "content": "?"},), reference={"cases": [1]},
        verdict=UNSCORABLE, reward=0.0, answer=None, vote=None, reason="broken", finish_reason="length",
        num_tokens=None, is_format_valid=None, group=None, cluster=None,
    ),
    dataclasses.replace(
        SAMPLED, problem_id="8", reference=None, answer="[invalid]", finish_reason="stop_string"
    ),
    dataclasses.replace(SAMPLED, problem_id="9", reason="", finish_reason=None, is_format_valid=False),
]  # fmt: skip
GREEDY = dataclasses.replace(SAMPLED, decoding="greedy")
THEIRS = {
    "doc_id": 0, "doc": {"question": "2+2=", "answer": "4"}, "target": "4",
    "arguments": {"gen_args_0": {"arg_0": "2+2=", "arg_1": {"until": ["\n"], "do_sample": False}}},
    "resps": [["It is 4"]], "filtered_resps": ["4"], "filter": "none", "metrics": ["exact_match"],
    "doc_hash": "8ec2", "prompt_hash": "2024", "target_hash": "4b22", "exact_match": 1.0,
}  # fmt: skip
EVAL = {
    "created": "2026-01-01T00:00:00+00:00",
    "task": "t",
    "dataset": {},
    "model": "m",
    "config": {"epochs": 1},
}
SCORED = {
    "id": "p", "epoch": 1, "input": "2+2=", "target": "4", "metadata": {},
    "output": {"choices": [{"message": {"role": "assistant", "content": "It is 4"}, "stop_reason": "stop"}]},
    "scores": {"match": {"value": "C", "answer": "4", "explanation": "It is 4"}},
}  # fmt: skip


def lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def log_of(path: Path, *samples: object, spec: object = EVAL, **more: object) -> Path:
    path.write_text(json.dumps({"version": 2, "eval": spec, **more, "samples": samples}, indent=1))
    return path


def told(path: Path, **named: str) -> str:
    with pytest.raises(SamplesError) as caught:
        list(read_log(path, LogScores(**named)))
    return str(caught.value).replace(f"{path.parent}/", "")


# lm-evaluation-harness


def test_what_is_written_for_lm_eval_is_read_back_whole(tmp_path: Path) -> None:
    path = tmp_path / "samples_sums_2026.jsonl"
    lm_eval.write_log(path, [GREEDY, *SAMPLES], "sums")
    assert list(read_log(path)) == [GREEDY, *SAMPLES]


def test_a_line_of_ours_is_as_the_harness_writes_it(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    lm_eval.write_log(path, [GREEDY, *SAMPLES], "sums")
    greedy, sampled, chat, *_ = map(json.loads, path.read_text().splitlines())
    real = json.loads((REAL / "lm_eval_repeats.jsonl").read_text().splitlines()[0])
    assert [*sampled] == [*real, "rest_em"]
    assert [type(sampled[name]) for name in real] == [type(real[name]) for name in real]
    assert (greedy["doc_id"], sampled["doc_id"], chat["doc_id"]) == (0, 0, 1)
    assert (greedy["resps"], greedy["filtered_resps"]) == ([[" 4 ≠ 5\n"]], ["4"])
    assert (sampled["resps"], sampled["filtered_resps"]) == ([[" 4 ≠ 5\n", ""]], [["4", "[invalid]"]])
    assert (greedy["exact_match"], sampled["exact_match"], chat["exact_match"]) == (1.0, 0.5, None)
    assert chat["arguments"]["gen_args_0"]["arg_0"] == ['[{"role": "user", "content": "?"}]']
    assert sampled["prompt_hash"] == hashlib.sha256(b"2+2=").hexdigest()
    assert sampled["rest_em"]["task"] == "sums"


def test_the_hashes_are_those_of_the_harness() -> None:
    row = json.loads((REAL / "lm_eval_one.jsonl").read_text().splitlines()[0])
    doc = json.dumps(row["doc"], indent=2, ensure_ascii=False)
    prompt = row["arguments"]["gen_args_0"]["arg_0"]
    assert [row["doc_hash"], row["prompt_hash"], row["target_hash"]] == [
        *map(lm_eval._hash, (doc, prompt, row["target"]))
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": "3+3=", "index": 1}, "its samples have several values of prompt"),
        ({"group": None, "index": 1}, "its samples have several values of group"),
        ({"text": "5"}, "an index is there twice"),
    ],
)
def test_what_a_line_has_no_room_for_is_not_written(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(SamplesError, match=message):
        lm_eval.write_log(tmp_path / "s.jsonl", [SAMPLED, dataclasses.replace(SAMPLED, **change)], "sums")
    assert not list(tmp_path.iterdir())


def test_a_real_log_of_lm_eval_is_read() -> None:
    one, two = read_log(REAL / "lm_eval_one.jsonl")
    assert one == Sample(
        "0", "Question: What is 2 + 2?\nAnswer:", "4", "greedy", 0, "The answer is 4", INCORRECT, 0.0,
        "The answer is 4",
    )  # fmt: skip
    assert (two.problem_id, two.text, two.index) == ("1", "It is 5", 0)


def test_of_several_filters_one_is_to_be_named() -> None:
    path = REAL / "lm_eval_filters.jsonl"
    found = read_log(path, LogScores(filter="flexible-extract"))
    assert [(one.verdict, one.answer) for one in found] == [(CORRECT, "4"), (INCORRECT, "5")]
    strict = read_log(path, LogScores(filter="strict-match"))
    assert [(one.verdict, one.answer) for one in strict] == [(CORRECT, "4"), (INCORRECT, "5")]
    assert told(path) == (
        "lm_eval_filters.jsonl:3: the log has the filters strict-match, flexible-extract; one is to be named "
        "(--filter)"
    )
    assert told(path, filter="none") == (
        "lm_eval_filters.jsonl: there is no filter 'none' (--filter); there is strict-match, flexible-extract"
    )


def test_several_responses_with_one_figure_are_to_be_judged_again() -> None:
    found = list(read_log(REAL / "lm_eval_repeats.jsonl"))
    assert [(one.problem_id, one.index, one.decoding, one.answer) for one in found] == [
        ("0", 0, "sampled", "4"), ("0", 1, "sampled", "5"),
        ("1", 0, "sampled", None), ("1", 1, "sampled", "7"),
    ]  # fmt: skip
    assert {(one.verdict, one.reward) for one in found} == {(UNSCORABLE, 0.0)}
    assert found[0].reason == (
        "the log has one figure for 2 samples; judge again (rest_em evaluate --solutions)"
    )


def test_an_answer_that_a_vote_chose_is_of_no_single_response(tmp_path: Path) -> None:
    voted = THEIRS | {"resps": [["It is 4", "5"]], "filtered_resps": ["4"]}
    assert [one.answer for one in read_log(lines(tmp_path / "s.jsonl", voted))] == [None, None]


def test_a_multiple_choice_holds_no_solution() -> None:
    assert told(REAL / "lm_eval_choice.jsonl") == (
        "lm_eval_choice.jsonl:1: 2 requests and 2 lists of responses: this is no generation but a multiple "
        "choice; a task whose output_type is generate_until is wanted"
    )


@pytest.mark.parametrize(
    ("options", "decoding"),
    [
        ({}, "greedy"),
        ({"do_sample": False, "temperature": 0.7}, "greedy"),
        ({"do_sample": True, "temperature": 0.0}, "greedy"),
        ({"temperature": 0.7}, "sampled"),
        ({"do_sample": True}, "sampled"),
    ],
)
def test_a_response_is_sampled_where_the_request_says_so(
    tmp_path: Path, options: dict[str, Any], decoding: str
) -> None:
    row = THEIRS | {"arguments": {"gen_args_0": {"arg_0": "", "arg_1": options}}}
    (found,) = read_log(lines(tmp_path / "s.jsonl", row))
    assert found.decoding == decoding


@pytest.mark.parametrize(
    ("metrics", "verdict", "reason"),
    [
        ({"exact_match": 0.0, "f1": 1.0}, INCORRECT, ""),
        ({"f1": 0.5, "acc": True}, CORRECT, ""),
        ({"pass@1": 1}, CORRECT, ""),
        ({"mine": 1.0}, CORRECT, ""),
        ({"mine": 0.25}, UNSCORABLE, "mine is 0.25, neither 0 nor 1; judge again"),
        ({"exact_match": float("nan")}, UNSCORABLE, "exact_match is nan, neither 0 nor 1; judge again"),
        ({"f1": 1.0, "bleu": 1.0}, UNSCORABLE, "the metrics f1, bleu, none known as right or wrong; judge"),
        ({}, UNSCORABLE, "no metric; judge again"),
    ],
)
def test_a_metric_of_0_or_1_is_the_verdict(
    tmp_path: Path, metrics: dict[str, Any], verdict: Verdict, reason: str
) -> None:
    row = {key: value for key, value in THEIRS.items() if key != "exact_match"}
    (found,) = read_log(lines(tmp_path / "s.jsonl", row | metrics | {"metrics": [*metrics]}))
    assert found.verdict is verdict
    assert reason in found.reason
    (old,) = read_log(
        lines(tmp_path / "old.jsonl", {k: v for k, v in row.items() if k != "metrics"} | metrics)
    )
    assert old.verdict is verdict


def test_a_metric_can_be_named(tmp_path: Path) -> None:
    path = lines(tmp_path / "s.jsonl", THEIRS | {"metrics": ["exact_match", "strict"], "strict": 0})
    (found,) = read_log(path, LogScores(metric="strict"))
    assert found.verdict is INCORRECT
    assert (
        told(path, metric="bleu")
        == "s.jsonl:1: there is no metric 'bleu' (--metric); there is exact_match, strict"
    )


def test_a_chat_of_an_api_model_is_a_prompt_of_messages(tmp_path: Path) -> None:
    chat = json.dumps([{"role": "user", "content": [{"type": "text", "text": "2+2="}, {"type": "image"}]}])
    row = THEIRS | {"arguments": {"gen_args_0": {"arg_0": [chat], "arg_1": {}}}}
    (found,) = read_log(lines(tmp_path / "s.jsonl", row))
    assert found.prompt == ({"role": "user", "content": "2+2="},)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"doc_id": 0', "s.jsonl:1: this is not JSON: Expecting ',' delimiter, at character 12"),
        ('{"doc_id": ' + "[" * 100_000, "s.jsonl:1: this JSON cannot be read"),
        ('{"doc_id": "\\ud800"}', "s.jsonl:1: '\\ud800' is half a surrogate pair and no character"),
        ("[1]", "s.jsonl:1: this is no line of a sample log of lm-evaluation-harness: it has no doc_id"),
        ('{"doc_id": 0}', "s.jsonl:1: there is no arguments; an object is wanted"),
        ({"doc_id": None}, "s.jsonl:1: doc_id is null; a text or a whole number is wanted"),
        ({"doc_id": True}, "s.jsonl:1: doc_id is True; a text or a whole number is wanted"),
        ({"arguments": []}, "s.jsonl:1: arguments is a list; an object is wanted"),
        ({"arguments": {}}, "s.jsonl:1: 0 requests and 1 lists of responses"),
        ({"arguments": {"gen_args_0": {"arg_0": "x"}}}, "these are log-likelihoods"),
        ({"arguments": {"gen_args_0": {"arg_0": 1, "arg_1": {}}}}, "s.jsonl:1: arg_0 is 1; a prompt"),
        ({"arguments": {"gen_args_0": {"arg_0": ["{"], "arg_1": {}}}}, "s.jsonl:1: arg_0: this is not JSON"),
        (
            {"arguments": {"gen_args_0": {"arg_0": ["[1]"], "arg_1": {}}}},
            "a message of arg_0 is 1; an object",
        ),
        ({"resps": [[["-1.0", "True"]]]}, "these are log-likelihoods"),
        ({"resps": [[]]}, "s.jsonl:1: resps is empty; a response is wanted"),
        ({"resps": ["4"]}, "s.jsonl:1: resps is '4'; a list is wanted"),
        ({"filter": 1}, "s.jsonl:1: filter is 1; a text is wanted"),
        ({"metrics": "acc"}, "s.jsonl:1: metrics is 'acc'; a list is wanted"),
    ],
)
def test_what_is_no_line_of_lm_eval_is_told_with_its_number(
    tmp_path: Path, text: str | dict[str, Any], message: str
) -> None:
    path = tmp_path / "s.jsonl"
    path.write_text(text if isinstance(text, str) else json.dumps(THEIRS | text))
    assert message in told(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samples": []}, "s.jsonl:1: 1 responses and 0 samples; as many are wanted"),
        ({"decoding": "hot"}, "s.jsonl:1: decoding is 'hot'; greedy or sampled is wanted"),
        ({"verdict": "right"}, "verdict is 'right'; correct, incorrect, unscorable is wanted"),
        ({"reward": -1}, "reward is -1; a number >= 0 is wanted"),
        ({"reward": 10**400}, "a number >= 0 is wanted"),
        ({"reward": float("nan")}, "reward is nan; a number >= 0 is wanted"),
        ({"finish_reason": "stop"}, "finish_reason is 'stop'; eos, stop_string, length or null is wanted"),
        ({"num_tokens": 1.5}, "num_tokens is 1.5; a whole number from 0 to 2147483647 is wanted"),
        ({"is_format_valid": 1}, "is_format_valid is 1; true or false is wanted"),
        ({"num_tokens": 2**31}, "num_tokens is 2147483648; a whole number from 0"),
        ({"index": -1}, "index is -1; a whole number from 0"),
        ({"index": None}, "index is null; a whole number from 0"),
    ],
)
def test_what_was_changed_in_a_log_of_ours_is_told(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "s.jsonl"
    lm_eval.write_log(path, [SAMPLED], "sums")
    row = json.loads(path.read_text())
    place = row["rest_em"] if change.keys() & {"samples", "decoding"} else row["rest_em"]["samples"][0]
    place.update(change)
    assert message in told(lines(path, row))


def test_two_logs_in_one_file_are_not_mixed(tmp_path: Path) -> None:
    path = lines(tmp_path / "s.jsonl", THEIRS, THEIRS | {"target": "5"})
    assert told(path) == "s.jsonl:2: '0' comes a second time; the log of one task and run is wanted"


def test_a_line_is_given_before_the_next_is_read(tmp_path: Path) -> None:
    path = lines(tmp_path / "s.jsonl", THEIRS, {})
    samples = read_log(path)
    assert next(samples).text == "It is 4"
    with pytest.raises(SamplesError, match=r"s.jsonl:2: this is no line"):
        next(samples)


# inspect_ai


@pytest.mark.parametrize("suffix", [".json", ".eval"])
@pytest.mark.parametrize("samples", [SAMPLES, [GREEDY]])
def test_what_is_written_for_inspect_is_read_back_whole(
    tmp_path: Path, suffix: str, samples: list[Sample]
) -> None:
    path = tmp_path / f"log{suffix}"
    inspect_ai.write_log(path, samples, "sums", "base")
    assert list(read_log(path)) == samples


def test_a_log_of_ours_is_as_inspect_writes_it(tmp_path: Path) -> None:
    inspect_ai.write_log(tmp_path / "log.json", SAMPLES[:3], "sums", "base")
    log = json.loads((tmp_path / "log.json").read_text())
    real = json.loads((REAL / "inspect_ai_epochs.json").read_text())
    assert [name for name in real if name in log] == [*log], "the order is a part of the format"
    assert log["eval"]["config"]["epochs"] == 2
    assert log["eval"]["dataset"] == {"samples": 2, "sample_ids": ["p/1", "7"], "shuffled": False}
    assert log["results"]["scores"][0]["metrics"]["accuracy"]["value"] == 0.5
    assert log["results"]["scores"][0]["unscored_samples"] == 1
    right, wrong, none = log["samples"]
    assert right["scores"] == {"rest_em": {"value": "C", "answer": "4", "explanation": "close"}}
    assert (wrong["epoch"], wrong["scores"]["rest_em"]["value"]) == (2, "I")
    assert math.isnan(none["scores"]["rest_em"]["value"]), "as of Score.unscored"
    assert [one["output"]["choices"][0]["stop_reason"] for one in log["samples"]] == [
        "stop", "stop", "max_tokens",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "samples", "message"),
    [
        ("log.json", [SAMPLED, GREEDY], "samples of one decoding; take --decoding greedy or --decoding sam"),
        ("log.json", [], "samples of one decoding"),
        ("log.json", [SAMPLED, SAMPLED], "problem 'p/1': the index 0 is there twice"),
        ("log.txt", [SAMPLED], "end in .json or .eval"),
        (
            "log.json",
            [dataclasses.replace(SAMPLED, prompt=({"role": "developer", "content": ""},))],
            "the roles are developer; inspect_ai has system, user, assistant, tool",
        ),
    ],
)
def test_what_inspect_could_not_read_is_not_written(
    tmp_path: Path, name: str, samples: list[Sample], message: str
) -> None:
    with pytest.raises(SamplesError, match=message):
        inspect_ai.write_log(tmp_path / name, samples, "sums", "base")
    assert not list(tmp_path.iterdir())


def test_a_real_log_of_one_epoch_is_greedy() -> None:
    one, two = read_log(REAL / "inspect_ai_one.eval")
    assert one == Sample(
        "sum-1", "What is 2 + 2?", "4", "greedy", 0, "The answer is 4", CORRECT, 1.0, "The answer is 4",
        finish_reason="eos", num_tokens=4,
    )  # fmt: skip
    assert (two.problem_id, two.verdict, two.reward) == ("sum-2", INCORRECT, 0.0)


@pytest.mark.parametrize("suffix", [".json", ".eval"])
def test_real_logs_of_several_epochs_and_scorers_are_read(suffix: str) -> None:
    path = REAL / f"inspect_ai_epochs{suffix}"
    found = sorted(read_log(path, LogScores(scorer="lenient")), key=lambda one: (one.problem_id, one.index))
    assert [(one.problem_id, one.decoding, one.index, one.verdict, one.answer) for one in found] == [
        ("sum-1", "sampled", 0, CORRECT, "4"),
        ("sum-1", "sampled", 1, UNSCORABLE, None),
        ("sum-2", "sampled", 0, INCORRECT, "5"),
        ("sum-2", "sampled", 1, UNSCORABLE, "7"),
    ]
    assert found[1].reason == "cannot tell"
    assert found[3].reason == "the score of lenient is 0.5, neither right nor wrong"
    assert [one.finish_reason for one in found] == ["eos", "length", "eos", "eos"]
    assert sum(one.verdict is CORRECT for one in read_log(path, LogScores(scorer="match"))) == 2
    assert told(path).endswith("there are scores of match, lenient; one is to be named (--scorer)")
    assert told(path, scorer="mine").endswith("there is no score of mine (--scorer); there is match, lenient")


@pytest.mark.parametrize(
    ("value", "verdict"),
    [
        ("C", CORRECT), ("I", INCORRECT), ("N", INCORRECT), ("P", UNSCORABLE), (True, CORRECT),
        (False, INCORRECT), (1, CORRECT), (0.0, INCORRECT), (0.5, UNSCORABLE), ("yes", CORRECT),
        ("false", INCORRECT), (float("nan"), UNSCORABLE), ({"a": 1}, UNSCORABLE), ([1], UNSCORABLE),
        (None, UNSCORABLE), ("a good try", UNSCORABLE),
    ],
)  # fmt: skip
def test_a_score_is_a_verdict_where_it_is_right_or_wrong(
    tmp_path: Path, value: object, verdict: Verdict
) -> None:
    (found,) = read_log(log_of(tmp_path / "log.json", SCORED | {"scores": {"mine": {"value": value}}}))
    assert found.verdict is verdict
    assert (found.reason != "") == (verdict is UNSCORABLE)


def test_a_sample_without_a_score_is_unscorable(tmp_path: Path) -> None:
    failed = SCORED | {"id": 2, "scores": None, "output": {}, "error": {"message": "timed out\nat line 3"}}
    good, bad, none = read_log(log_of(tmp_path / "x.json", SCORED, failed, SCORED | {"id": 3, "scores": {}}))
    assert (good.verdict, good.reason) == (CORRECT, "")
    assert (bad.verdict, bad.text, bad.reason) == (
        UNSCORABLE,
        "",
        "the sample ended with an error: timed out",
    )
    assert (none.verdict, none.reason) == (UNSCORABLE, "the log has no score of it")


def test_the_second_scorer_of_a_log_is_told_where_it_comes(tmp_path: Path) -> None:
    other = SCORED | {"id": 2, "scores": {"mine": {"value": "I"}}}
    assert "there are scores of match, mine" in told(log_of(tmp_path / "x.json", SCORED, other))


@pytest.mark.parametrize(
    ("spec", "plan", "decoding"),
    [
        ({}, {}, "greedy"),
        ({"model_generate_config": {"temperature": 0.0}}, {}, "greedy"),
        ({"model_generate_config": {"temperature": 0.7}}, {}, "sampled"),
        ({}, {"config": {"temperature": 0.7}}, "sampled"),
        ({"config": {"epochs": 2}}, {}, "sampled"),
        ({"config": {}}, {"config": None}, "greedy"),
    ],
)
def test_decoding_is_what_epochs_and_temperature_say(
    tmp_path: Path, spec: dict[str, Any], plan: dict[str, Any], decoding: str
) -> None:
    (found,) = read_log(log_of(tmp_path / "x.json", SCORED, spec=EVAL | spec, plan=plan))
    assert found.decoding == decoding


def test_with_stop_strings_stop_may_be_either(tmp_path: Path) -> None:
    spec = EVAL | {"model_generate_config": {"stop_seqs": ["\n"]}}
    (found,) = read_log(log_of(tmp_path / "x.json", SCORED, spec=spec))
    assert found.finish_reason is None


def test_a_message_of_parts_is_its_text(tmp_path: Path) -> None:
    parts = [
        {"type": "reasoning", "reasoning": "hm"},
        {"type": "text", "text": "4"},
        {"type": "text", "text": "5"},
    ]
    output = {"choices": [{"message": {"content": parts}}]}
    chat = [{"role": "system", "content": "Add.", "id": "x"}, {"role": "user", "content": parts}]
    (found,) = read_log(log_of(tmp_path / "x.json", SCORED | {"output": output, "input": chat}))
    assert found.text == "4\n5"
    assert found.prompt == ({"role": "system", "content": "Add."}, {"role": "user", "content": "4\n5"})


def test_the_verdict_of_another_scorer_takes_the_place_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "log.json"
    inspect_ai.write_log(path, [SAMPLED], "sums", "base")
    log = json.loads(path.read_text())
    log["samples"][0]["scores"]["other"] = {"value": "I", "answer": "5"}
    path.write_text(json.dumps(log))
    (found,) = read_log(path, LogScores(scorer="other"))
    assert (found.verdict, found.reward, found.answer, found.vote) == (INCORRECT, 0.0, "5", None)
    assert (found.group, found.num_tokens) == ("sums", 3)
    assert list(read_log(path, LogScores(scorer="rest_em"))) == [SAMPLED]


@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_a_log_is_read_in_chunks_of_any_size(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    path = REAL / "inspect_ai_epochs.json"
    whole = list(read_log(path, LogScores(scorer="match")))
    monkeypatch.setattr(json_text, "_CHUNK", size)
    assert list(read_log(path, LogScores(scorer="match"))) == whole


def test_a_number_is_not_cut_by_a_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_text, "_CHUNK", 1)
    (tmp_path / "x.json").write_text(
        '{"a": 1234, "b": [12.5e3, -Infinity, "\\ud83d\\ude00"], "c": [1, 23, 4]}'
    )
    values = [(key, value) for key, value, _ in json_text.members(tmp_path / "x.json", "c")]
    assert values == [("a", 1234), ("b", [12500.0, float("-inf"), "😀"]), ("c", 1), ("c", 23), ("c", 4)]


def test_a_sample_is_given_before_the_next_is_read(tmp_path: Path) -> None:
    path = log_of(tmp_path / "x.json", SCORED, SCORED | {"id": 2})
    path.write_text(path.read_text()[:-200])
    samples = read_log(path)
    assert next(samples).text == "It is 4"
    with pytest.raises(SamplesError, match=r"x.json:\d+: this is not JSON"):
        next(samples)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": None}, "id is null; a text or a whole number is wanted"),
        ({"epoch": "1"}, "epoch is '1'; a whole number from 0"),
        ({"epoch": 2}, "sample 'p', epoch 2: the eval says it has 1 epochs"),
        ({"input": 5}, "sample 'p', epoch 1: input is 5; a list is wanted"),
        ({"input": [{"content": ""}]}, "there is no role; a text is wanted"),
        ({"output": []}, "output is a list; an object is wanted"),
        ({"output": {"choices": [1]}}, "choices is 1; an object is wanted"),
        ({"output": {"choices": [{}]}}, "there is no message; an object is wanted"),
        ({"output": {"choices": [{"message": {}}]}}, "content is null; a list is wanted"),
        ({"scores": []}, "scores is a list; an object is wanted"),
        ({"scores": {"match": "C"}}, "the score of match is 'C'; an object is wanted"),
        ({"scores": {"match": {}}}, "the score of match has no value; C or I, or a number, is wanted"),
        ({"metadata": {"rest_em": {}}}, "reward is null; a number >= 0 is wanted"),
    ],
)
def test_what_is_wrong_with_a_sample_is_told_with_its_line(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = log_of(tmp_path / "x.json", SCORED | {"id": 1}, SCORED | change)
    line = path.read_text().splitlines().index("  {", path.read_text().splitlines().index("  {") + 1) + 1
    text = told(path)
    assert message in text
    assert text.startswith(f"x.json:{line}:")


def test_one_epoch_does_not_come_twice(tmp_path: Path) -> None:
    assert "'p', epoch 1, comes twice; one eval is wanted" in told(
        log_of(tmp_path / "x.json", SCORED, SCORED)
    )


def packed(path: Path, **entries: object) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in entries.items():
            archive.writestr(name.replace("__", "/") + ".json", json.dumps(value))
    return path


def test_an_eval_that_is_not_finished_is_read(tmp_path: Path) -> None:
    path = packed(tmp_path / "x.eval", _journal__start={"eval": EVAL}, samples__p_epoch_1=SCORED)
    assert [one.verdict for one in read_log(path)] == [CORRECT]


def test_of_a_sample_that_was_run_again_the_last_counts(tmp_path: Path) -> None:
    path = packed(tmp_path / "x.eval", header={"eval": EVAL}, samples__p_epoch_1=SCORED)
    again = json.dumps(SCORED | {"scores": {"match": {"value": "I"}}})
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("samples/p_epoch_1.json", again)
    assert [one.verdict for one in read_log(path)] == [INCORRECT]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"samples__p_epoch_1": SCORED}, "x.eval: this zip is no log of inspect_ai: it has no header.json"),
        ({"header": {"eval": EVAL}}, "x.eval: this log of inspect_ai holds no sample"),
        ({"header": {}}, "x.eval: header.json: this is no log of inspect_ai: there is no eval"),
        ({"header": []}, "x.eval: header.json: the header is a list; an object is wanted"),
        (
            {"header": {"eval": EVAL}, "samples__p_epoch_1": [SCORED]},
            "x.eval: samples/p_epoch_1.json: a sample is a list; an object is wanted",
        ),
    ],
)
def test_what_is_missing_in_a_zip_is_told(tmp_path: Path, entries: dict[str, Any], message: str) -> None:
    assert message in told(packed(tmp_path / "x.eval", **entries))


def test_a_broken_zip_is_told_with_its_entry(tmp_path: Path) -> None:
    content = (REAL / "inspect_ai_one.eval").read_bytes()
    (tmp_path / "half.eval").write_bytes(content[:2000])
    assert told(tmp_path / "half.eval") == "half.eval: cannot be read: File is not a zip file"
    at = content.index(b"samples/") + 60
    (tmp_path / "torn.eval").write_bytes(content[:at] + b"\0\0\0\0" + content[at + 4 :])
    assert told(tmp_path / "torn.eval").startswith(
        "torn.eval: samples/sum-1_epoch_1.json: cannot be unpacked:"
    )


# Which of them it is


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", b"", "x.jsonl:1: the file is empty"),
        ("x.json", b" \n", "x.json:1: the file is empty"),
        ("x.json", b"{", "x.json:1: this is not JSON"),
        ("x.json", b"[]", "x.json:1: '[' is found where '{' is wanted: a JSON object is wanted"),
        ("x.json", b'{"eval": {}, "samples": []}', "x.json: this log of inspect_ai holds no sample"),
        ("x.json", b'{"eval": {}}', "x.json: this log of inspect_ai holds no sample"),
        (
            "x.json",
            b'{"samples": [{}], "eval": {}}',
            "x.json: this is no log of inspect_ai: there is no eval",
        ),
        ("x.json", b'{"a": 1}', "x.json: this is no log of inspect_ai: there is no eval"),
        ("x.json", b'{"eval": {"config": 1}, "samples": [1]}', "x.json: config is 1; an object is wanted"),
        ("x.json", b'{"eval": {}, "plan": {"config": 1}, "samples": [1]}', "x.json: config is 1; an object"),
        ("x.json", b'{"eval"\n 1}', "x.json:2: '1' is found where ':' is wanted"),
        ("x.json", b'{"eval": {},', "x.json:1: this is not JSON"),
        ("x.json", b'{"eval": {}', "x.json:1: the file ends where ',' is wanted"),
        ("x.json", b'{"eval": {"a":\n\n x}}', "x.json:3: this is not JSON: Expecting value"),
        ("x.json", b'{"eval": {"a": "\xff"}}', "x.json: a byte is not UTF-8"),
        ("x.json", b'{"eval": ' + b"[" * 100_000, "x.json:1: this JSON cannot be read"),
        ("x.json", b'{"eval": "\\ud800"}', "x.json:1: '\\ud800' is half a surrogate pair"),
        ("x.jsonl", b'{"doc_id": "\xff"}', "x.jsonl: a byte is not UTF-8"),
        ("x.eval", b"PK\x03\x04", "x.eval: cannot be read: File is not a zip file"),
        ("x.txt", b"Hello\nyou", "x.txt:1: this begins with 'Hello'; a samples.parquet, JSON lines with"),
    ],
)
def test_what_is_no_log_is_told(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert message in told(tmp_path / name)


def test_a_log_of_another_name_is_known_by_how_it_begins(tmp_path: Path) -> None:
    for real in ("lm_eval_one.jsonl", "inspect_ai_one.eval"):
        shutil.copy(REAL / real, tmp_path / "log.txt")
        assert list(read_log(tmp_path / "log.txt")) == list(read_log(REAL / real))
    log_of(tmp_path / "log.jsonl", SCORED)
    assert [one.problem_id for one in read_log(tmp_path / "log.jsonl")] == ["p"]


@pytest.mark.parametrize("read", [read_log, lm_eval.read_log, inspect_ai.read_log])
def test_a_file_that_is_not_there_is_told(tmp_path: Path, read: Callable[[Path], Any]) -> None:
    with pytest.raises(SamplesError, match=r"x.jsonl: cannot be read: No such file"):
        list(read(tmp_path / "x.jsonl"))


def test_an_empty_file_is_no_log_of_lm_eval(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text("\n")
    with pytest.raises(SamplesError, match="the file is empty; a line a document is wanted"):
        list(lm_eval.read_log(tmp_path / "x.jsonl"))


@pytest.mark.parametrize("name", ["lm_eval_filters.jsonl", "inspect_ai_epochs.eval"])
def test_what_is_judged_again_needs_no_name_of_its_scores(name: str) -> None:
    named = LogScores(filter="strict-match", scorer="match")
    texts = [(one.problem_id, one.index, one.text) for one in read_log(REAL / name, named)]
    assert [(one.problem_id, one.index, one.text) for one in read_log(REAL / name, None)] == texts
