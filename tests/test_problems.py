"""Problems and prompts: what is read and rendered, and the line that each mistake is told with."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rest_em.errors import ProblemError
from rest_em.problems import (
    base_variants,
    check_disjoint,
    check_not_shown,
    example_prompts,
    human_solutions_of,
    load_problems,
    read_rows,
    resolve_variant,
    split_validation,
    training_variant,
    tuned_variant,
)
from rest_em.recipe import ProblemSource, ProblemsSection, PromptSection, PromptVariant
from rest_em.types import Problem

ROWS = [
    {"question": "1 + 1", "answer": "2", "level": 1},
    {"question": "2 + 3", "answer": "5", "level": 2},
]
SHOTS = [
    {"question": "4 + 4", "solution": "4 + 4 = 8"},
    {"question": "6 + 1", "solution": "6 + 1 = 7"},
]
PLAIN = PromptSection(template="Q: {{ question }}\nA: ")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(name: str, content: str | bytes) -> str:
    path = Path.cwd() / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def jsonl(name: str, rows: Sequence[Any]) -> str:
    return write(name, "".join(json.dumps(row) + "\n" for row in rows))


def load(
    path: str,
    prompt: PromptSection = PLAIN,
    *,
    variant: PromptVariant | None = None,
    id_column: str | None = None,
    reference: str = "answer",
    max_problems: int | None = None,
    split: str | None = None,
) -> tuple[Problem, ...]:
    source = ProblemSource(path=path, max_problems=max_problems, split=split)
    section = ProblemsSection(train=source, test=source, id=id_column, reference=reference)
    return load_problems(read_rows(source), section, prompt, variant or PromptVariant())


def told(call: Callable[[], object]) -> str:
    with pytest.raises(ProblemError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


# Files


def test_a_row_becomes_a_problem() -> None:
    first, second = load(jsonl("a.jsonl", ROWS))
    assert first.prompt == "Q: 1 + 1\nA: "
    assert first.reference == "2"
    assert first.metadata == {"question": "1 + 1", "answer": "2", "level": 1}
    assert second.prompt == "Q: 2 + 3\nA: "


def test_every_kind_of_file_gives_the_same_problems() -> None:
    rows = [{"question": "1 + 1", "answer": "2"}, {"question": 'two\nlines, "quoted"', "answer": "é"}]
    expected = load(jsonl("a.jsonl", rows))
    pq.write_table(pa.Table.from_pylist(rows), "a.parquet")
    assert load(write("a.json", json.dumps(rows, indent=2))) == expected
    csv_text = 'question,answer\r\n1 + 1,2\r\n"two\nlines, ""quoted""",é\r\n'
    assert load(write("a.csv", csv_text)) == expected
    assert load(write("b.CSV", b"\xef\xbb\xbf" + csv_text.encode())) == expected
    assert load(str(Path.cwd() / "a.parquet")) == expected


def test_empty_lines_are_no_rows() -> None:
    assert len(load(write("a.jsonl", '\n{"question": "1", "answer": "2"}\n\n  \n'))) == 1
    assert len(load(write("a.csv", "question,answer\n\n1,2\n\n"))) == 1
    assert load(write("a.json", ' [ {"question": "\\u2028", "answer": "2"} ]\n'))[0].reference == "2"


def test_only_the_first_problems_are_taken() -> None:
    assert [problem.reference for problem in load(jsonl("a.jsonl", ROWS), max_problems=1)] == ["2"]


def test_dates_and_decimals_of_parquet_are_text() -> None:
    import datetime
    import decimal

    day, price = datetime.date(2024, 1, 2), decimal.Decimal("1.50")
    row = {"question": "q", "answer": ["4"], "on": day, "price": price, "in": {"at": None, "x": 0.5}}
    pq.write_table(pa.Table.from_pylist([row]), "a.parquet")
    (problem,) = load(str(Path.cwd() / "a.parquet"))
    assert problem.reference == ["4"]
    assert problem.metadata == {
        "question": "q",
        "answer": ["4"],
        "on": "2024-01-02",
        "price": "1.50",
        "in": {"at": None, "x": 0.5},
    }


def test_a_file_that_is_not_there_is_named() -> None:
    assert told(lambda: load(str(Path.cwd() / "no.jsonl"))) == (
        "no.jsonl: this file cannot be read: No such file or directory"
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.jsonl", ""), ("a.jsonl", "\n\n"), ("a.json", "[]"), ("a.csv", ""), ("a.csv", "question,answer\n")],
)
def test_a_file_without_a_row_is_refused(name: str, content: str) -> None:
    assert told(lambda: load(write(name, content))) == f"{name}: there is no row; one a problem is wanted"


def test_nan_in_parquet_is_no_value() -> None:
    row = {"question": "q", "answer": "a", "level": float("nan"), "all": [1.5, float("nan")]}
    pq.write_table(pa.Table.from_pylist([row]), "a.parquet")
    (problem,) = load(str(Path.cwd() / "a.parquet"))
    assert (problem.metadata["level"], problem.metadata["all"]) == (None, [1.5, None])


def test_an_infinite_number_is_told_with_its_row() -> None:
    rows = [{"question": "q", "answer": "a", "level": level} for level in (1.0, float("-inf"))]
    pq.write_table(pa.Table.from_pylist(rows), "a.parquet")
    assert told(lambda: load(str(Path.cwd() / "a.parquet"))) == (
        "a.parquet, row 2: column 'level' holds -inf, or a number too large; finite is wanted"
    )
    assert told(lambda: load(write("a.jsonl", '{"question": "q", "answer": "a", "all": [1e999]}\n'))) == (
        "a.jsonl:1: column 'all' holds inf, or a number too large; finite is wanted"
    )


def test_a_parquet_file_without_a_row_is_refused() -> None:
    pq.write_table(pa.table({"question": pa.array([], pa.string())}), "a.parquet")
    message = told(lambda: load(str(Path.cwd() / "a.parquet")))
    assert message == "a.parquet: there is no row; one a problem is wanted"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.jsonl",
            '{"question": "1", "answer": "2"}\n{"question": \n',
            "a.jsonl:2: this line is not JSON: Expecting value: line 1 column 14 (char 13)",
        ),
        ("a.jsonl", "\n[1, 2]\n", "a.jsonl:2: this is a list; an object with the columns is wanted"),
        ("a.jsonl", '{"a": NaN}\n', "a.jsonl:1: this line is not JSON: NaN is no JSON value"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', "a.jsonl:2: a byte is not UTF-8; text in UTF-8 is wanted"),
        (
            "a.jsonl",
            '{"question": "\\ud83d", "answer": "2"}\n',
            "a.jsonl:1: column 'question' holds half a surrogate pair, which is no text",
        ),
        (
            "a.json",
            '{"a": 1',
            "a.json:1: this file is not JSON: Expecting ',' delimiter: line 1 column 8 (char 7)",
        ),
        ("a.json", "", "a.json:1: this is not JSON: a list of objects is wanted"),
        ("a.json", '[\n{"a": 1},\n{"a": }]', "a.json:3: this is not JSON: Expecting value"),
        ("a.json", '[\n{"a": 1}\n{"a": 2}]', "a.json:3: this is not JSON: ',' or ']' is wanted"),
        ("a.json", '[\n{"a": 1},\n', "a.json:3: this is not JSON: Expecting value"),
        ("a.json", '[{"a": 1}] x', "a.json:1: this is not JSON: nothing is wanted after the list"),
        ("a.json", '[\n"a"]', "a.json:2: this is a str; an object with the columns is wanted"),
        ("a.json", '[\n{"a": Infinity}]', "a.json:2: this is not JSON: Infinity is no JSON value"),
        (
            "a.csv",
            'question,answer\n"1\n1",2\n3\n',
            "a.csv:4: there are 1 cells, and the first line names 2 columns",
        ),
        ("a.csv", "a,b,a\n1,2,3\n", "a.csv:1: the column names are 'a', 'b', 'a'; each once is wanted"),
        ("a.csv", "a,,b\n1,2,3\n", "a.csv:1: the column names are 'a', '', 'b'; each once is wanted"),
        ("a.csv", 'a,b\n1,2\n3,"4\n', "a.csv:3: this is not CSV: unexpected end of data"),
        ("a.csv", b"a,b\n1,\xff\n", "a.csv:2: a byte is not UTF-8; text in UTF-8 is wanted"),
    ],
)
def test_an_unreadable_line_is_told_with_its_number(name: str, content: str | bytes, message: str) -> None:
    assert told(lambda: load(write(name, content))) == message


def test_a_file_that_is_not_parquet_is_told() -> None:
    assert told(lambda: load(write("a.parquet", "no"))).startswith("a.parquet: this is not Parquet: ")


def test_a_column_that_json_does_not_know_is_told() -> None:
    pq.write_table(pa.table({"question": ["q"], "answer": ["a"], "image": [b"\x00"]}), "a.parquet")
    assert told(lambda: load(str(Path.cwd() / "a.parquet"))) == (
        "a.parquet, row 1: column 'image' holds bytes; text, numbers, lists or objects are wanted"
    )


def test_a_file_of_another_kind_is_refused() -> None:
    prompt = PromptSection(template="{{ question }}", examples="shots.txt")
    assert told(lambda: load(jsonl("a.jsonl", ROWS), prompt)) == (
        "shots.txt: .jsonl, .jsonl.gz, .json, .csv, .parquet files can be read, not '.txt'"
    )


# Hub data sets


@pytest.fixture
def data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A data set in a folder, which `datasets` reads like one of the hub."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "test"):
        jsonl(f"data/{split}.jsonl", [{**row, "split": split} for row in ROWS])
    return str(folder)


def test_a_split_of_a_data_set_is_read(data_set: str) -> None:
    problems = load(data_set, split="test")
    assert [problem.prompt for problem in problems] == ["Q: 1 + 1\nA: ", "Q: 2 + 3\nA: "]
    assert problems[0].metadata["split"] == "test"


def test_a_data_set_that_cannot_be_read_is_named(data_set: str) -> None:
    message = told(lambda: load(data_set, split="dev"))
    assert message.startswith(f"{data_set} (dev): this data set cannot be read: ")
    assert '"dev"' in message


def test_a_row_of_a_data_set_is_told_with_its_number(data_set: str) -> None:
    message = told(lambda: load(data_set, split="test", reference="gold"))
    assert message.startswith(f"{data_set} (test), row 1: there is no column 'gold' (problems.reference); ")


def test_an_empty_split_is_refused(data_set: str) -> None:
    folder = Path(data_set).with_name("empty")
    folder.mkdir()
    pq.write_table(pa.table({"question": pa.array([], pa.string())}), folder / "test.parquet")
    message = told(lambda: load(str(folder), split="test"))
    assert message.startswith(f"{folder} (test): this data set cannot be read: ")
    message = told(lambda: load(data_set, split="test[:0]"))
    assert message.startswith(f"{data_set} (test[:0]): this data set cannot be read: ")
    assert message.endswith("corresponds to no data!")


# Columns and ids


def test_a_missing_column_is_told_with_those_there_and_the_nearest() -> None:
    path = jsonl("a.jsonl", [ROWS[0], {"question": "1", "answers": "2"}])
    assert told(lambda: load(path)) == (
        "a.jsonl:2: there is no column 'answer' (problems.reference); did you mean 'answers'? "
        "the columns are question, answers"
    )
    assert told(lambda: load(path, id_column="key")) == (
        "a.jsonl:1: there is no column 'key' (problems.id); the columns are question, answer, level"
    )


@pytest.mark.parametrize("value", [None, ""])
def test_an_empty_reference_is_refused(value: str | None) -> None:
    path = jsonl("a.jsonl", [{"question": "1", "answer": value}])
    assert told(lambda: load(path)) == "a.jsonl:1: the reference in column 'answer' is empty"


def test_ids_come_from_a_column() -> None:
    path = jsonl("a.jsonl", [{**row, "key": key} for row, key in zip(ROWS, (7, "b"), strict=True)])
    problems = load(path, id_column="key")
    assert [problem.id for problem in problems] == ["7", "b"]
    assert problems[0].metadata["key"] == 7


@pytest.mark.parametrize("key", [None, True, 1.5, "", [1]])
def test_an_id_is_a_text_or_a_whole_number(key: Any) -> None:
    path = jsonl("a.jsonl", [{**ROWS[0], "key": key}])
    assert told(lambda: load(path, id_column="key")) == (
        f"a.jsonl:1: the id in column 'key' is {key!r}; a text or whole number is wanted"
    )


def test_an_id_that_is_given_twice_is_told_with_both_lines() -> None:
    path = jsonl("a.jsonl", [{**ROWS[0], "key": 1}, {**ROWS[1], "key": 2}, {**ROWS[1], "key": "1"}])
    assert told(lambda: load(path, id_column="key")) == (
        "a.jsonl:3: the id '1' is given twice, first at a.jsonl:1; ids must be unique"
    )


def test_equal_rows_are_told_with_both_lines() -> None:
    path = jsonl("a.jsonl", [*ROWS, dict(reversed(ROWS[0].items()))])
    assert told(lambda: load(path)) == "a.jsonl:3: the same row as a.jsonl:1; leave one out"


def test_ids_depend_on_the_rows_content_alone() -> None:
    forwards = load(jsonl("a.jsonl", ROWS))
    backwards = load(jsonl("b.jsonl", [dict(reversed(row.items())) for row in reversed(ROWS)]))
    assert {problem.id for problem in forwards} == {problem.id for problem in backwards}
    assert len({problem.id for problem in forwards}) == 2
    assert load(jsonl("c.jsonl", [{**ROWS[0], "level": 3}]))[0].id not in {one.id for one in forwards}


def test_ids_stay_from_version_to_version() -> None:
    assert load(jsonl("a.jsonl", ROWS))[0].id == "38d6b146190f8b46"


# Prompts


def shots(**more: Any) -> PromptSection:
    return PromptSection(template="Q: {{ question }}\nA: ", examples=jsonl("shots.jsonl", SHOTS), **more)


def test_worked_examples_stand_before_the_problem() -> None:
    (problem, _) = load(jsonl("a.jsonl", ROWS), shots())
    assert problem.prompt == "Q: 4 + 4\nA: 4 + 4 = 8\n\nQ: 6 + 1\nA: 6 + 1 = 7\n\nQ: 1 + 1\nA: "


def test_the_separator_of_examples_is_the_recipes() -> None:
    (problem, _) = load(jsonl("a.jsonl", ROWS), shots(example_separator="\n#\n", num_examples=1))
    assert problem.prompt == "Q: 4 + 4\nA: 4 + 4 = 8\n#\nQ: 1 + 1\nA: "


def test_a_chat_has_its_examples_as_earlier_turns() -> None:
    (problem, _) = load(jsonl("a.jsonl", ROWS), shots(num_examples=1, chat_template=True, system="Add."))
    assert problem.prompt == (
        {"role": "system", "content": "Add."},
        {"role": "user", "content": "Q: 4 + 4\nA: "},
        {"role": "assistant", "content": "4 + 4 = 8"},
        {"role": "user", "content": "Q: 1 + 1\nA: "},
    )


def test_a_chat_without_a_system_message_has_none() -> None:
    prompt = shots(num_examples=0, chat_template=True, system="Add.")
    (problem, _) = load(jsonl("a.jsonl", ROWS), prompt, variant=PromptVariant(system=""))
    assert problem.prompt == ({"role": "user", "content": "Q: 1 + 1\nA: "},)


def test_the_ids_do_not_depend_on_the_prompt() -> None:
    path = jsonl("a.jsonl", ROWS)
    assert [one.id for one in load(path)] == [one.id for one in load(path, shots(chat_template=True))]


def test_a_variant_inherits_what_it_does_not_say() -> None:
    prompt = shots(num_examples=1, chat_template=True, system="Add.")
    whole = resolve_variant(prompt, PromptVariant(num_examples=2, template="{{ question }}"))
    assert whole == PromptVariant(
        name="2-shot chat",
        template="{{ question }}",
        examples=prompt.examples,
        num_examples=2,
        system="Add.",
        chat_template=True,
    )
    assert resolve_variant(prompt, whole) == whole


def test_variants_are_named_by_their_number_of_examples() -> None:
    prompt = shots(
        base=(PromptVariant(), PromptVariant(num_examples=1), PromptVariant(template="{{ question }}=")),
        tuned=PromptVariant(num_examples=0),
    )
    assert [variant.name for variant in base_variants(prompt)] == ["2-shot", "1-shot", "2-shot (2)"]
    assert tuned_variant(prompt).name == "0-shot"


def test_a_made_up_name_gives_way_to_one_that_the_recipe_gives() -> None:
    prompt = shots(base=(PromptVariant(), PromptVariant(name="2-shot", num_examples=1)))
    assert [variant.name for variant in base_variants(prompt)] == ["2-shot (2)", "2-shot"]


def test_the_base_prompt_is_the_sections_where_no_candidate_is_named() -> None:
    (variant,) = base_variants(shots(name="plain"))
    assert (variant.name, variant.num_examples) == ("plain", 2)


def test_the_sections_name_is_not_that_of_a_variant_that_differs() -> None:
    prompt = shots(name="two", tuned=PromptVariant(num_examples=0))
    assert tuned_variant(prompt).name == "0-shot"


def test_the_training_prompt_is_the_tuned_one_unless_it_is_named() -> None:
    tuned = PromptVariant(num_examples=0)
    assert training_variant(shots(tuned=tuned)) == tuned_variant(shots(tuned=tuned))
    own = shots(tuned=tuned, training=PromptVariant(num_examples=1))
    assert training_variant(own).num_examples == 1


def test_an_unknown_column_in_the_template_is_told_with_those_there() -> None:
    prompt = PromptSection(template="{{ questions }}")
    assert told(lambda: load(jsonl("a.jsonl", ROWS), prompt)) == (
        "a.jsonl:1: the template uses 'questions', and there is no such column; did you mean 'question'? "
        "the columns are question, answer, level"
    )


def test_a_column_that_a_condition_asks_for_may_be_absent() -> None:
    prompt = PromptSection(template="{{ question }}{% if hint is defined %} ({{ hint }}){% endif %}")
    rows = [ROWS[0], {**ROWS[1], "hint": "count"}]
    assert [one.prompt for one in load(jsonl("a.jsonl", rows), prompt)] == ["1 + 1", "2 + 3 (count)"]


def test_an_unknown_part_of_a_column_is_told() -> None:
    prompt = PromptSection(template="{{ question }}{{ meta.level }}")
    path = jsonl("a.jsonl", [{**ROWS[0], "meta": {"lvel": 1}}])
    message = told(lambda: load(path, prompt))
    assert message == "a.jsonl:1: the prompt does not render: 'dict object' has no attribute 'level'"


def test_a_null_is_not_shown_as_none() -> None:
    path = jsonl("a.jsonl", [{**ROWS[0], "hint": None}])
    message = told(lambda: load(path, PromptSection(template="{{ hint }}{{ question }}")))
    assert message == (
        "a.jsonl:1: the prompt does not render: it shows a column that is null here; "
        "`{{ column or '' }}` shows nothing"
    )
    assert load(path, PromptSection(template="{{ hint or '' }}{{ question }}"))[0].prompt == "1 + 1"


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{{ question / 2 }}", "unsupported operand type(s) for /: 'str' and 'int'"),
        ("{{ level / 0 }}", "division by zero"),
        ("{{ question.__class__.__mro__ }}", "access to attribute '__class__' of 'str' object is unsafe."),
    ],
)
def test_a_template_that_fails_is_told_with_the_row(template: str, why: str) -> None:
    message = told(lambda: load(jsonl("a.jsonl", ROWS), PromptSection(template=template)))
    assert message == f"a.jsonl:1: the prompt does not render: {why}"


def test_an_empty_prompt_is_refused() -> None:
    path = jsonl("a.jsonl", [{**ROWS[0], "question": " "}])
    message = told(lambda: load(path, PromptSection(template="{{ question }}\n")))
    assert message == "a.jsonl:1: the prompt renders to nothing"


def test_the_end_of_a_template_is_kept() -> None:
    assert load(jsonl("a.jsonl", ROWS), PromptSection(template="{{ question }}\n\n"))[0].prompt == "1 + 1\n\n"


def test_nothing_is_escaped() -> None:
    path = jsonl("a.jsonl", [{"question": "a < b & 'c'", "answer": "x"}])
    assert load(path, PromptSection(template="{{ question }}"))[0].prompt == "a < b & 'c'"


def test_too_few_examples_are_told() -> None:
    message = told(lambda: load(jsonl("a.jsonl", ROWS), shots(num_examples=3)))
    assert message == "shots.jsonl: there are 2 examples, and prompt.num_examples is 3"


def test_an_example_without_a_solution_is_told_with_its_line() -> None:
    prompt = PromptSection(
        template="{{ question }}", examples=jsonl("s.jsonl", [{"question": "1", "x": "2"}])
    )
    message = told(lambda: load(jsonl("a.jsonl", ROWS), prompt))
    assert (
        message == "s.jsonl:1: there is no column 'solution' (prompt.solution); "
        "did you mean 'question'? the columns are question, x"
    )


def test_an_example_whose_solution_is_no_text_is_told_with_its_line() -> None:
    prompt = PromptSection(
        template="{{ question }}", examples=jsonl("s.jsonl", [{"question": "1", "solution": 2}])
    )
    message = told(lambda: load(jsonl("a.jsonl", ROWS), prompt))
    assert message == "s.jsonl:1: the solution in column 'solution' is 2; a text is wanted"


def test_an_example_that_does_not_render_is_told_with_its_line() -> None:
    prompt = PromptSection(
        template="{{ question }}", examples=jsonl("s.jsonl", [{"q": "1", "solution": "2"}])
    )
    message = told(lambda: load(jsonl("a.jsonl", ROWS), prompt))
    assert message.startswith("s.jsonl:1: the template uses 'question', and there is no such column; ")


# Sets


def problems(*ids: str) -> tuple[Problem, ...]:
    return tuple(Problem(id=one, prompt=f"prompt of {one}", reference="") for one in ids)


def ids(several: Sequence[Problem]) -> list[str]:
    return [one.id for one in several]


def test_validation_is_split_off_by_the_id_in_order() -> None:
    everything = problems(*(f"p{number}" for number in range(1000)))
    train, validation = split_validation(everything, 0.1)
    assert 70 <= len(validation) <= 130
    assert sorted(ids(train) + ids(validation)) == sorted(ids(everything))
    assert ids(train) == [one for one in ids(everything) if one in set(ids(train))]


def test_a_problem_keeps_its_side_when_others_come_or_go() -> None:
    everything = problems(*(f"p{number}" for number in range(200)))
    _, validation = split_validation(everything, 0.2)
    _, of_half = split_validation(everything[::2], 0.2)
    assert ids(of_half) == [one for one in ids(validation) if one in set(ids(everything[::2]))]


@pytest.mark.parametrize("fraction", [0.0001, 0.9999])
def test_both_sides_have_a_problem(fraction: float) -> None:
    for size in (2, 3, 10):
        train, validation = split_validation(problems(*(f"p{number}" for number in range(size))), fraction)
        assert min(len(train), len(validation)) == 1


def test_a_single_problem_is_trained_on() -> None:
    assert split_validation(problems("a"), 0.5) == (problems("a"), ())


def test_disjoint_sets_pass() -> None:
    check_disjoint(problems("a", "b"), problems("c"), problems("d"))


def test_a_prompt_in_two_sets_is_told_with_the_first_and_the_number() -> None:
    copies = (Problem("x", "prompt of b", ""), *problems("d"), Problem("y", "prompt of a", ""))
    assert told(lambda: check_disjoint(problems("a", "b"), problems("c"), copies)) == (
        "problems.test: 2 of 3 problems are also in train, first 'x', which has the prompt of train 'b'; "
        "the sets must be disjoint"
    )


def test_a_chat_in_two_sets_is_told() -> None:
    one = Problem("x", ({"role": "user", "content": "1 + 1"},), "")
    other = Problem("y", ({"content": "1 + 1", "role": "user"},), "")
    message = told(lambda: check_disjoint([], [one], [other]))
    assert message.startswith("problems.test: 1 of 1 problems are also in validation, first 'y'")


def test_an_id_in_two_sets_is_told() -> None:
    other = (Problem("a", "another prompt", ""),)
    assert told(lambda: check_disjoint(problems("a"), other, [])) == (
        "problems.validation: 1 of 1 problems are also in train, first 'a', "
        "which has the id of one of train; the sets must be disjoint"
    )


@pytest.mark.parametrize("chat_template", [False, True])
def test_a_problem_that_the_prompt_shows_solved_is_told_with_its_place(chat_template: bool) -> None:
    prompt = shots(chat_template=chat_template)
    asked = jsonl("test.jsonl", [*ROWS, {"question": "6 + 1", "answer": "7"}])
    bare = load(asked, prompt, variant=PromptVariant(num_examples=0))
    examples = example_prompts(prompt, PromptVariant())
    assert told(lambda: check_not_shown(examples, (), bare)) == (
        f"problems.test: 1 of 3 problems are also worked examples of the prompt, first {bare[2].id!r} at "
        "shots.jsonl:2; what is shown solved measures nothing: take it out of one of them"
    )
    assert told(lambda: check_not_shown(examples, bare, ())).startswith("problems.validation: 1 of 3")


def test_examples_that_are_not_shown_may_be_problems() -> None:
    prompt = shots(num_examples=1)
    bare = load(jsonl("test.jsonl", [{"question": "6 + 1", "answer": "7"}]), prompt)
    check_not_shown(example_prompts(prompt, PromptVariant()), bare, bare)
    check_not_shown(example_prompts(PLAIN, PromptVariant()), bare, bare)


# Solutions that people wrote


def human(rows: Sequence[Any], prompt: PromptSection = PLAIN, **section: Any) -> dict[str, str]:
    source = ProblemSource(path=jsonl("p.jsonl", rows))
    whole = ProblemsSection(train=source, test=source, id="question", **section)
    return human_solutions_of(read_rows(source), whole, prompt, {str(row["question"]) for row in rows[:2]})


def test_human_solutions_are_made_as_those_of_the_worked_examples() -> None:
    as_shown = PLAIN.model_copy(update={"solution": " {{ answer }}"})
    assert human(ROWS, as_shown) == {"1 + 1": " 2", "2 + 3": " 5"}
    assert human(ROWS, as_shown, solution="answer") == {"1 + 1": "2", "2 + 3": "5"}
    unwanted = {"question": "7 + 7", "answer": None}
    assert len(human([*ROWS, unwanted], as_shown)) == 2


@pytest.mark.parametrize(
    ("row", "solution", "told"),
    [
        ({"answer": None}, "answer", "the solution in column 'answer' is None; a text is wanted"),
        ({"answer": " "}, "answer", "the solution in column 'answer' is ' '; a text is wanted"),
        ({"answer": None}, " {{ answer }}", "the solution (problems.solution) does not render: it shows a"),
        ({}, "answers", "there is no column 'answers' (problems.solution)"),
        ({}, " {{ worked }}", "the template uses 'worked', and there is no such column"),
    ],
)
def test_a_problem_without_a_human_solution_is_told_with_its_row(
    row: dict[str, Any], solution: str, told: str
) -> None:
    with pytest.raises(ProblemError) as caught:
        human([{"question": "1", "answer": "1", **row}], solution=solution)
    assert str(caught.value).startswith(f"p.jsonl:1: {told}")
    assert "selection.human_solutions wants one of every training problem: write it there" in str(
        caught.value
    )
