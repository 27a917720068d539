"""Training problems that overlap with a benchmark's."""

from __future__ import annotations

import json
from pathlib import Path

import tiny_run

from rest_em.problem_sets import ProblemSets
from rest_em.problems.overlap import Overlap, Questions, find_overlaps, overlap_report
from rest_em.recipe import PromptVariant, load_recipe, shipped
from rest_em.types import Messages, Problem

LONG = "A farmer has seventeen sheep and all but nine of them run away so how many are left"


def problem(key: str, prompt: str | Messages, **columns: object) -> Problem:
    return Problem(key, prompt, "9", columns)


def overlaps(train: list[Problem], test: list[Problem], *columns: str) -> list[Overlap]:
    return find_overlaps(Questions(train, columns), {"test": Questions(test, columns)}, 13)


def test_the_same_words_overlap_whatever_their_case_and_layout() -> None:
    train = [problem("a", "What is  2 + 2?\n"), problem("b", "What is 2 + 3?")]
    found = overlaps(train, [problem("t", "what is 2+2?")])
    assert found == [Overlap("a", "test", "t", "exact", "")]


def test_the_same_columns_overlap_however_they_are_asked() -> None:
    asked = problem("a", "Compute 31 + 4. Answer:", expression="31 + 4", hint="none")
    train = Questions([asked, problem("b", "Compute 31 + 5. Answer:", expression="31 + 5")], ("expression",))
    test = problem("t", "Q: What is 31 + 4?\nA: 31 + 4 =", sum="31+4")
    (found,) = find_overlaps(train, {"test": Questions([test], ("sum",))}, 13)
    assert (found.problem_id, found.benchmark_id, found.kind) == ("a", "t", "exact")


def test_a_column_that_holds_the_whole_question_overlaps_with_it() -> None:
    train = Questions([problem("a", "User: What is 2 + 2?", text="What is 2 + 2?")], ("text",))
    test = Questions([problem("t", "What is 2 + 2?", sum="2 + 2")], ("sum",))
    (found,) = find_overlaps(train, {"test": test}, 13)
    assert found.kind == "exact"


def test_lists_objects_and_empty_columns_are_looked_at_by_what_they_say() -> None:
    train = [problem("a", "A", tests=["f(1) == 2", "f(2) == 3"], more=None)]
    test = [problem("t", "B", tests={"first": "f(1) == 2", "second": "f(2) == 3"}, more="")]
    (found,) = overlaps(train, test, "tests", "more")
    assert found.kind == "exact"


def test_problems_whose_columns_say_nothing_are_looked_at_by_their_prompts() -> None:
    assert overlaps([problem("a", "one", x=None)], [problem("t", "two", x=None)], "x") == []


def test_a_long_run_of_words_overlaps_and_a_short_one_does_not() -> None:
    train = [
        problem("a", f"Listen. {LONG}? Tell me."),
        problem("b", "A farmer has seventeen sheep and a cow"),
    ]
    (found,) = overlaps(train, [problem("t", f"{LONG}, my friend?")])
    assert (found.problem_id, found.benchmark_id, found.kind) == ("a", "t", "n-gram")
    assert found.text == "a farmer has seventeen sheep and all but nine of them run away"


def test_marks_are_no_words_of_a_run() -> None:
    train = [problem("a", "Find the largest of [1, 2, 3, 4, 5, 6]")]
    assert overlaps(train, [problem("t", "Sort the list [1, 2, 3, 4, 5, 6]")]) == []


def test_a_benchmark_problem_in_many_training_problems_overlaps_with_each() -> None:
    train = [problem(f"p{k}", f"{LONG} after day {k}?") for k in range(11)]
    assert len(overlaps(train, [problem("t", f"{LONG} after day 99?")])) == 11


def test_wording_that_many_benchmark_problems_share_is_no_overlap() -> None:
    train = [problem("a", f"{LONG} after day 99?")]
    shared = [problem(f"t{k}", f"{LONG} after day {k}?") for k in range(11)]
    others = [problem(f"o{k}", f"other {k}") for k in range(20)]
    assert overlaps(train, [*shared[:10], *others]) != []
    assert overlaps(train, [*shared, *others]) == []


def test_wording_that_most_problems_of_a_small_benchmark_share_is_no_overlap() -> None:
    train = [problem("a", f"{LONG} after day 99?")]
    shared = [problem(f"t{k}", f"{LONG} after day {k}?") for k in range(3)]
    assert overlaps(train, [*shared, problem("o", "other")]) == []
    assert overlaps(train, [*shared[:2], problem("o", "other"), problem("u", "another")]) != []


def test_a_benchmark_problem_that_comes_again_is_no_shared_wording() -> None:
    train = [problem("a", f"He says: {LONG}?")]
    assert len(overlaps(train, [problem(f"t{k}", f"{LONG}?") for k in range(11)])) == 1


def test_a_chat_is_looked_at_by_what_it_says() -> None:
    chat: Messages = ({"role": "user", "content": "What is 2 + 2?"},)
    (found,) = overlaps([problem("a", chat)], [problem("t", "What is 2 + 2?")])
    assert found.kind == "exact"


def test_the_report_counts_and_names_the_first() -> None:
    found = [
        Overlap("a", "gsm8k", "7", "exact", ""),
        Overlap("b", "gsm8k", "9", "n-gram", "so many words"),
    ]
    assert overlap_report(found, 1200, ["gsm8k", "math"]) == [
        "of 1,200 training problems 1 are problems of gsm8k too, 1 more share a run of words with one; first "
        "'a' and gsm8k's '7'",
        "none of 1,200 training problems overlaps with one of math",
    ]


def sets_of(folder: Path, contamination: str) -> ProblemSets:
    path = tiny_run.write_recipe(folder, folder / "model")
    rows = [{"id": "copied", "question": f"{LONG}, he asks", "answer": "9"}]
    rows += [{"id": f"t{k}", "question": f"own {k}", "answer": "1"} for k in range(3)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    test = {"id": "x", "question": f"he says {LONG}", "answer": "9"}
    (folder / "test.jsonl").write_text(json.dumps(test) + "\n")
    return ProblemSets(load_recipe(path, [f"evaluation.contamination={contamination}"]))


def test_training_problems_that_overlap_are_told_or_left_out_or_ignored(tmp_path: Path) -> None:
    variant = PromptVariant(template="{{ question }}=", num_examples=0, name="bare", chat_template=False)
    numbers = {}
    for contamination in ("report", "exclude", "ignore"):
        sets = sets_of(tmp_path / contamination, contamination)
        kept = [one.id for one in sets.rendered("train", variant)]
        numbers[contamination] = (len(sets.overlaps), "copied" in kept, len(kept))
    assert numbers == {"report": (1, True, 4), "exclude": (1, False, 3), "ignore": (0, True, 4)}


def test_problems_of_an_eval_are_found_through_another_template(tmp_path: Path) -> None:
    path = tiny_run.write_recipe(tmp_path, tmp_path / "model")
    (first, *_) = (shipped("recipes") / "quickstart" / "test.jsonl").read_text().splitlines()
    own = {"id": "own", "expression": "123456 + 1", "answer": "123457"}
    (tmp_path / "train.jsonl").write_text(
        f"{json.dumps(json.loads(first) | {'id': 'copied'})}\n{json.dumps(own)}\n"
    )
    for name in ("validation", "test"):
        row = {"id": name, "expression": f"{name} + 1", "answer": "7"}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    template = "prompt.template='Compute {{ expression }}. Answer:'"
    sets = ProblemSets(load_recipe(path, [template, "evaluation.evals=[{path: arithmetic}]"]))
    (found,) = sets.overlaps
    assert (found.problem_id, found.benchmark, found.kind) == ("copied", "arithmetic", "exact")
