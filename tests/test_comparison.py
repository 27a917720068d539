"""Two policies on the same problems, and what may be said of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import typer

from rest_em import cli_evaluate
from rest_em.comparing import compare_stored, export_samples, find_tables
from rest_em.errors import SamplesError
from rest_em.evaluation import ColumnsBuilder, Comparison, Metrics, Side, compare, summarize
from rest_em.interchange import LogScores
from rest_em.report.comparison import band_lines
from rest_em.samples import Decoding, Sample, write_samples
from rest_em.stored_samples import read_stored
from rest_em.types import Verdict

FORMS = [("jsonl", "s.jsonl"), ("lm_eval", "l.jsonl"), ("inspect_ai", "i.json")]


def side(name: str, correct: Mapping[str, int], num_samples: int = 1) -> Side:
    """Return so many correct samples of each problem."""
    builder = ColumnsBuilder()
    for key, number in correct.items():
        for index in range(num_samples):
            verdict = Verdict.CORRECT if index < number else Verdict.INCORRECT
            builder.add(key, verdict, answer="1" if index < number else f"w{index}")
    return Side(name, None, builder.build())


def verdict_of(comparison: Comparison, figure: str) -> str:
    return next(one.verdict for one in comparison.differences if one.figure == figure)


def test_a_clear_difference_is_called_one_with_its_interval() -> None:
    a = side("base", {f"p{k}": int(k < 40) for k in range(100)})
    b = side("tuned", {f"p{k}": int(k < 60) for k in range(100)})
    found = compare(a, b)
    (first,) = [one for one in found.differences if one.figure == "pass@1"]
    assert (first.sign.num_won, first.sign.num_lost, first.sign.num_tied) == (20, 0, 80)
    assert first.gain is not None
    assert first.gain.value == pytest.approx(0.2)
    assert first.verdict.startswith("B is better at pass@1 by 20.0 ± 8.")
    assert found.won == [f"p{k}" for k in range(40, 60)]
    assert found.lost == []


def test_the_worse_one_is_named_worse_whichever_comes_first() -> None:
    a = side("base", {f"p{k}": int(k < 60) for k in range(100)})
    b = side("tuned", {f"p{k}": int(k < 40) for k in range(100)})
    assert verdict_of(compare(a, b), "pass@1").startswith("A is better at pass@1 by 20.0 ± ")


def test_no_difference_is_claimed_that_the_interval_does_not_carry() -> None:
    a = side("base", {f"p{k}": int(k % 2) for k in range(100)})
    b = side("tuned", {f"p{k}": int(k % 2 or k < 4) for k in range(100)})  # two of a hundred
    assert verdict_of(compare(a, b), "pass@1").startswith("no difference is shown at pass@1")


def test_a_handful_of_problems_that_all_differ_one_way_carries_nothing() -> None:
    a, b = side("a", dict.fromkeys("pqrst", 0)), side("b", dict.fromkeys("pqrst", 1))
    assert verdict_of(compare(a, b), "pass@1") == "no difference is shown at pass@1: only 5 problems differ"
    a, b = side("a", dict.fromkeys("pqrstu", 0)), side("b", dict.fromkeys("pqrstu", 1))
    assert verdict_of(compare(a, b), "pass@1").startswith("B is better at pass@1 by 100.0")


def grouped(name: str, correct: Mapping[str, int], labels: Mapping[str, tuple[str, str]]) -> Side:
    """Return one sample of each problem, which has a group and a cluster."""
    builder = ColumnsBuilder()
    for key, number in correct.items():
        builder.add_problem(key, *labels[key])
        builder.add(key, Verdict.CORRECT if number else Verdict.INCORRECT, answer=None)
    return Side(name, None, builder.build())


def test_groups_and_clusters_are_those_of_each_policys_own_figures() -> None:
    labels = {f"p{k}": ("large" if k < 90 else "small", f"source {k // 5}") for k in range(100)}
    a, b = (
        {key: int(k % 3 == 0 or (is_b and k >= 90)) for k, key in enumerate(labels)} for is_b in (False, True)
    )
    one, other = grouped("a", a, labels), grouped("b", b, labels)
    found = compare(one, other)
    (first,) = [each for each in found.differences if each.figure == "pass@1"]
    for side_of, figure in ((one, first.a), (other, first.b)):
        main = summarize(None, side_of.sampled, Metrics((1,))).main
        assert figure.estimate == main.pass_at[1].estimate
    assert first.gain is not None
    assert first.gain.value == pytest.approx((0 + 0.6) / 2)
    assert (found.num_groups, found.num_clusters) == (2, 20)
    assert (first.sign.num_won, first.sign.num_tied) == (2, 18)
    assert first.verdict.startswith("no difference is shown at pass@1 (95 % interval -")


def test_equal_policies_are_seldom_called_different() -> None:
    import numpy as np

    draws = np.random.default_rng(5)
    claims = 0
    for _ in range(200):
        level = draws.beta(1, 1, size=80)
        a = side("a", {f"p{k}": int(draws.random() < x) for k, x in enumerate(level)})
        b = side("b", {f"p{k}": int(draws.random() < x) for k, x in enumerate(level)})
        claims += "is better" in verdict_of(compare(a, b), "pass@1")
    assert claims <= 20, "of 200 about 10 are expected"


def test_the_curve_goes_over_the_ks_that_both_have() -> None:
    a = side("a", {f"p{k}": k % 9 for k in range(30)}, num_samples=8)
    b = side("b", {f"p{k}": k % 9 for k in range(30)}, num_samples=6)
    figures = [one.figure for one in compare(a, b).differences]
    assert figures == ["pass@1", "pass@2", "pass@4", "pass@6", "maj@2", "maj@4", "maj@6"]


def test_programs_have_no_majority_vote() -> None:
    builder = ColumnsBuilder()
    for index in range(4):
        builder.add("p", Verdict.CORRECT, answer=None)
        builder.add("q", Verdict.CORRECT if index else Verdict.INCORRECT, answer=None)
    one = Side("a", None, builder.build())
    assert [each.figure for each in compare(one, one).differences] == ["pass@1", "pass@2", "pass@4"]


def test_the_curves_are_drawn_with_their_bands() -> None:
    a = side("a", {f"p{k}": k % 9 for k in range(30)}, num_samples=8)
    ends, *lines = band_lines(compare(a, a, ks=[1, 8]))
    assert (ends.split()[0], ends.split()[-2:]) == ("30", ["95", "%"])
    assert [line.split("  ")[0].strip() for line in lines] == [
        "pass@1 A", "pass@1 B", "pass@8 A", "pass@8 B", "maj@8 A", "maj@8 B",
    ]  # fmt: skip
    assert [line.index("●") for line in lines[::2]] == [line.index("●") for line in lines[1::2]]
    assert lines[0].index("├") < lines[0].index("●") < lines[0].index("┤") < lines[2].index("●")
    assert band_lines(compare(a, a, ks=[1])) == []


def test_problems_of_one_side_are_left_out_and_counted() -> None:
    a, b = side("a", {"p": 1, "q": 0, "r": 1}), side("b", {"q": 1, "r": 0, "s": 1, "t": 1})
    found = compare(a, b)
    assert (found.num_problems, found.num_only_a, found.num_only_b) == (2, 1, 2)
    assert (found.won, found.lost) == (["q"], ["r"])


def test_sides_without_a_common_problem_are_refused() -> None:
    with pytest.raises(ValueError, match="no problem in common"):
        compare(side("a", {"p": 1}), side("b", {"q": 1}))


def table(path: Path, correct: int, decoding: Decoding = "greedy") -> Path:
    rows = [
        Sample(
            f"p{k}", "x", "1", decoding, 0, "t", Verdict.CORRECT if k < correct else Verdict.INCORRECT,
            float(k < correct), "1",
        )
        for k in range(50)
    ]  # fmt: skip
    write_samples(path, rows)
    return path


def test_tables_and_verdicts_of_score_are_compared(tmp_path: Path) -> None:
    one = table(tmp_path / "one.parquet", 10, "sampled")
    lines = tmp_path / "two.jsonl"
    rows = [
        {"problem_id": f"p{k}", "index": 0, "verdict": "correct" if k < 30 else "incorrect", "answer": "1",
         "reason": "", "seconds": 0.1}
        for k in range(50)
    ]  # fmt: skip
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = compare_stored(str(one), str(lines))["file"]
    assert found.differences[0].gain is not None
    assert found.differences[0].gain.value == pytest.approx(0.4)
    json.dumps(found.to_json(), allow_nan=False)


@pytest.mark.parametrize(("form", "name"), FORMS)
def test_answers_that_mean_the_same_are_one_vote_in_every_form(tmp_path: Path, form: str, name: str) -> None:
    answers = (("1/2", None), ("7", None), ("7", None), ("0.5", "1/2"), ("2/4", "1/2"))
    rows = [
        Sample(
            f"p{k}", "x", "1/2", "sampled", index, f"t{index}",
            Verdict.INCORRECT if answer == "7" else Verdict.CORRECT, float(answer != "7"), answer,
            group="ab"[k % 2], cluster=f"c{k // 2}", vote=vote,
        )
        for k in range(8)
        for index, (answer, vote) in enumerate(answers)
    ]  # fmt: skip
    table = tmp_path / "s.parquet"
    write_samples(table, rows)
    export_samples(str(table), tmp_path / name, form)
    found = compare_stored(str(table), str(tmp_path / name))["file"]
    (vote,) = [one for one in found.differences if one.figure == "maj@5"]
    assert vote.a.estimate is not None
    assert vote.a.estimate.value == 1.0, "three of five mean a half"
    assert [one.b for one in found.differences] == [one.a for one in found.differences]


def test_of_a_log_with_several_filters_one_is_named(tmp_path: Path) -> None:
    log = str(Path(__file__).parent / "interchange" / "lm_eval_filters.jsonl")
    with pytest.raises(SamplesError, match=r"one is to be named \(--filter\)"):
        compare_stored(log, log)
    found = compare_stored(log, log, scores=LogScores(filter="strict-match"))["file"]
    assert found.differences[0].gain is not None
    assert found.differences[0].gain.value == 0.0


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([{"index": 3}, {"index": 3}], "s.jsonl:2: index 3 of problem 'p' is given twice"),
        ([{"decoding": "greedy"}, {}, {"decoding": "greedy"}], "s.jsonl:3: problem 'p' has a second greedy"),
    ],
)
def test_a_solution_of_json_lines_is_counted_once(
    tmp_path: Path, rows: list[dict[str, object]], told: str
) -> None:
    lines = tmp_path / "s.jsonl"
    whole = [{"problem_id": "p", "completion": "x", "verdict": "correct"} | row for row in rows]
    lines.write_text("".join(json.dumps(row) + "\n" for row in whole))
    with pytest.raises(SamplesError, match=told):
        compare_stored(str(lines), str(lines))


def test_lines_without_an_index_are_numbered_in_their_order(tmp_path: Path) -> None:
    lines = tmp_path / "s.jsonl"
    lines.write_text("".join(json.dumps({"problem_id": key, "completion": "x"}) + "\n" for key in "pqp"))
    assert [(one.problem_id, one.index) for one in read_stored(lines, None)] == [("p", 0), ("q", 0), ("p", 1)]


def test_a_group_and_a_cluster_may_be_numbers_as_in_an_eval(tmp_path: Path) -> None:
    lines = tmp_path / "s.jsonl"
    row = {"problem_id": 7, "completion": "x", "verdict": "correct"}
    lines.write_text(json.dumps(row | {"group": 0, "cluster": 3}))
    assert [(one.group, one.cluster) for one in read_stored(lines, LogScores())] == [("0", "3")]
    for value in (True, 0.5, [3]):
        lines.write_text(json.dumps(row | {"cluster": value}))
        with pytest.raises(
            SamplesError, match=r"s\.jsonl:1: cluster is .*; a text, a whole number or null is"
        ):
            list(read_stored(lines, LogScores()))


def test_greedy_solutions_are_not_compared_with_samples(tmp_path: Path) -> None:
    one, two = table(tmp_path / "a.parquet", 10), table(tmp_path / "b.parquet", 10, "sampled")
    with pytest.raises(SamplesError, match="one has greedy solutions and the other samples only"):
        compare_stored(str(one), str(two))


def test_folders_are_compared_on_the_evals_that_both_have(tmp_path: Path) -> None:
    for name, evals in (("m1", ("gsm8k", "math")), ("m2", ("math", "bbh"))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "ledger.jsonl").touch()
        for each in evals:
            table(tmp_path / name / "iteration-00" / "evals" / each / "samples.parquet", 20)
    found = compare_stored(str(tmp_path / "m1"), str(tmp_path / "m2"))
    assert list(found) == ["math"]
    with pytest.raises(SamplesError, match=r"m1 has gsm8k, math and .*m2 has bbh, math"):
        compare_stored(str(tmp_path / "m1"), str(tmp_path / "m2"), names=["gsm8k"])
    assert list(find_tables(f"{tmp_path / 'm1'}:0")) == ["gsm8k", "math"]
    with pytest.raises(SamplesError, match="no samples of iteration 3 are there"):
        find_tables(f"{tmp_path / 'm1'}:3")


def numbered(path: Path, references: list[object], first: int = 0) -> str:
    """Write a table of problems 0, 1, 2, ..., all solved."""
    rows = [
        Sample(str(k), "x", one, "greedy", 0, "t", Verdict.CORRECT, 1.0, "1")
        for k, one in enumerate(references, start=first)
    ]
    write_samples(path, rows)
    return str(path)


def test_unlike_problems_of_the_same_ids_are_not_compared(tmp_path: Path) -> None:
    one = numbered(tmp_path / "one.parquet", [4, "5", "six", [7], 8.0, "nine " * 30])
    other = numbered(tmp_path / "other.parquet", [4, "1", "2", "3", "4", "nine " * 31])
    told = (
        "of 6 ids that both have 5 have unlike references, first '1': 5 and 1; samples of the same problems"
    )
    for form, name in FORMS:
        export_samples(other, tmp_path / name, form)
        for side in (other, str(tmp_path / name)):
            with pytest.raises(SamplesError, match=told):
                compare_stored(one, side)


def test_references_of_another_type_or_none_are_of_the_same_problems(tmp_path: Path) -> None:
    one = numbered(tmp_path / "one.parquet", [4, "5", {"b": 1, "a": 2}, "7", "8"])
    same = numbered(tmp_path / "same.parquet", ["4", 5.0, {"a": 2, "b": 1}, "mended", None])
    assert compare_stored(one, same)["file"].num_problems == 5
    assert compare_stored(one, numbered(tmp_path / "none.parquet", [None] * 5))["file"].num_problems == 5


def test_the_targets_of_another_harness_are_compared_with_its_own_alone(tmp_path: Path) -> None:
    log = Path(__file__).parent / "interchange" / "lm_eval_one.jsonl"
    ours = numbered(tmp_path / "ours.parquet", ["#### 4", "#### 5"])
    assert compare_stored(ours, str(log))["file"].num_problems == 2
    (tmp_path / "other.jsonl").write_text(log.read_text().replace('"target": "', '"target": "1'))
    with pytest.raises(SamplesError, match="these are other problems"):
        compare_stored(str(log), str(tmp_path / "other.jsonl"))


def test_what_is_not_judged_is_not_compared(tmp_path: Path) -> None:
    lines = tmp_path / "s.jsonl"
    lines.write_text("".join(json.dumps({"problem_id": key, "completion": "x"}) + "\n" for key in "pq"))
    with pytest.raises(SamplesError, match=r"none of its 2 solutions has a verdict.* --solutions .*s\.jsonl"):
        compare_stored(str(lines), str(lines))


def test_a_table_with_two_greedy_solutions_of_a_problem_is_refused(tmp_path: Path) -> None:
    rows = [
        Sample(key, "x", "1", "greedy", index, "t", Verdict.CORRECT, 1.0, "1")
        for key, index in (("p", 0), ("q", 0), ("q", 1))
    ]
    write_samples(tmp_path / "s.parquet", rows)
    with pytest.raises(SamplesError, match=r"s\.parquet: problem 'q' has a second greedy solution"):
        compare_stored(str(tmp_path / "s.parquet"), str(tmp_path / "s.parquet"))


def test_a_confidence_that_no_interval_can_have_is_refused() -> None:
    for confidence in (0.0, 0.4, 0.9999999999999999, 1.0, float("nan")):
        told = rf"--confidence {confidence}: a number from 0\.5 to 0\.9999 is wanted"
        with pytest.raises(typer.BadParameter, match=told):
            cli_evaluate.compare("a", "b", confidence=confidence)


def test_an_empty_file_is_not_compared(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(SamplesError, match=r"empty\.jsonl:1: .* samples, verdicts or a log are wanted"):
        compare_stored(str(tmp_path / "empty.jsonl"), str(tmp_path / "empty.jsonl"))


def test_a_decoding_is_greedy_or_sampled_and_in_the_samples(tmp_path: Path) -> None:
    one = str(table(tmp_path / "a.parquet", 10))
    for decoding, told in (("foo", "--decoding foo: greedy or sampled"), ("sampled", "is no sampled sample")):
        with pytest.raises(SamplesError, match=told):
            export_samples(one, tmp_path / "o.jsonl", "jsonl", decoding=decoding)


def test_of_files_no_eval_is_named(tmp_path: Path) -> None:
    one = str(table(tmp_path / "a.parquet", 10))
    with pytest.raises(SamplesError, match=r"--eval math: .* are files, each of one eval; leave it out"):
        compare_stored(one, one, names=["math"])
    with pytest.raises(SamplesError, match=r"--eval math: .* is a file, of one eval; leave it out"):
        export_samples(one, tmp_path / "o.jsonl", "jsonl", name="math")


def test_a_policy_is_named_as_it_is_measured(tmp_path: Path) -> None:
    for iteration in (0, 1, 2):
        table(tmp_path / f"iteration-{iteration:02d}" / "evals" / "math" / "samples.parquet", 20)
    stages = [
        {"stage": f"iteration-{number:02d}/policy", "result": {"chosen": "x", "validation": {"x": score}}}
        for number, score in ((1, 0.5), (2, 0.4))
    ]
    (tmp_path / "ledger.jsonl").write_text("".join(json.dumps(one) + "\n" for one in stages))
    found = {
        which: find_tables(f"{tmp_path}{which}")["math"] for which in ("", ":best", ":last", ":base", ":2")
    }
    assert [path.parts[-4][-1] for path in found.values()] == ["1", "1", "2", "0", "2"]
    with pytest.raises(
        SamplesError, match="there is no policy 'first'; best, last, base or a number is wanted"
    ):
        find_tables(f"{tmp_path}:first")


def test_a_folder_of_judged_solutions_has_tables(tmp_path: Path) -> None:
    path = table(tmp_path / "theirs" / "iteration-00" / "evals" / "math" / "samples.parquet", 20)
    assert find_tables(str(tmp_path / "theirs")) == {"math": path}


def test_a_table_is_not_exported_over_itself(tmp_path: Path) -> None:
    path = table(tmp_path / "s.parquet", 20)
    before = path.read_bytes()
    with pytest.raises(SamplesError, match="these are the samples themselves; name another file to write"):
        export_samples(str(path), tmp_path / "." / "s.parquet", "jsonl")
    assert path.read_bytes() == before


def test_json_lines_keep_how_a_solution_ended(tmp_path: Path) -> None:
    verdict = Verdict.CORRECT
    cut = Sample("p", "x", "1", "sampled", 0, "t", verdict, 0.5, "1", finish_reason="length", num_tokens=7)
    write_samples(tmp_path / "s.parquet", [cut])
    export_samples(str(tmp_path / "s.parquet"), tmp_path / "s.jsonl", "jsonl")
    (back,) = read_stored(tmp_path / "s.jsonl", None)
    assert (back.finish_reason, back.num_tokens) == ("length", 7)
    assert json.loads((tmp_path / "s.jsonl").read_text())["reward"] == 0.5


@pytest.mark.parametrize(("form", "name"), FORMS)
def test_where_no_file_can_be_written_is_told(tmp_path: Path, form: str, name: str) -> None:
    path = table(tmp_path / "s.parquet", 20)
    for folder in (tmp_path, Path()):
        with pytest.raises(SamplesError, match=r"^.*: this is a folder; name a file to write$"):
            export_samples(str(path), folder, form)
    below = path / name
    with pytest.raises(SamplesError, match=f"s.parquet/{name}: this file cannot be written: "):
        export_samples(str(path), below, form)
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(SamplesError, match="there is no file or folder with samples"):
        find_tables(str(tmp_path / "nothing"))
