"""Training problems that overlap with a benchmark's."""

from __future__ import annotations

import json
from pathlib import Path

import tiny_run

from rest_em.problems.overlap import Overlap, find_overlaps, overlap_report
from rest_em.recipe import PromptVariant, load_recipe
from rest_em.run import ProblemSets
from rest_em.types import Messages, Problem

LONG = "A farmer has seventeen sheep and all but nine of them run away so how many are left"


def problem(key: str, prompt: str | Messages) -> Problem:
    return Problem(key, prompt, "9")


def test_the_same_words_overlap_whatever_their_case_and_layout() -> None:
    train = [problem("a", "What is  2 + 2?\n"), problem("b", "What is 2 + 3?")]
    found = find_overlaps(train, {"test": [problem("t", "what is 2+2?")]}, 13)
    assert found == [Overlap("a", "test", "t", "exact", "")]


def test_a_long_run_of_words_overlaps_and_a_short_one_does_not() -> None:
    train = [
        problem("a", f"Listen. {LONG}? Tell me."),
        problem("b", "A farmer has seventeen sheep and a cow"),
    ]
    (found,) = find_overlaps(train, {"bench": [problem("t", f"{LONG}, my friend?")]}, 13)
    assert (found.problem_id, found.benchmark_id, found.kind) == ("a", "t", "n-gram")
    assert found.text == "a farmer has seventeen sheep and all but nine of them run away"


def test_wording_that_many_training_problems_share_is_no_overlap() -> None:
    train = [problem(f"p{k}", f"{LONG} after day {k}?") for k in range(11)]
    benchmark = {"bench": [problem("t", f"{LONG} after day 99?")]}
    assert find_overlaps(train, benchmark, 13) == []
    assert len(find_overlaps(train[:10], benchmark, 13)) == 10


def test_a_chat_is_looked_at_by_what_it_says() -> None:
    chat: Messages = ({"role": "user", "content": "What is 2 + 2?"},)
    (found,) = find_overlaps([problem("a", chat)], {"test": [problem("t", "What is 2 + 2?")]}, 13)
    assert found.kind == "exact"


def test_the_report_counts_and_names_the_first() -> None:
    overlaps = [
        Overlap("a", "gsm8k", "7", "exact", ""),
        Overlap("b", "gsm8k", "9", "n-gram", "so many words"),
    ]
    assert overlap_report(overlaps, 1200, ["gsm8k", "math"]) == [
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
