"""Which solutions are trained on."""

from __future__ import annotations

import random

import pytest

from rest_em.errors import SelectionError
from rest_em.recipe import SelectionSection
from rest_em.selection import most_diverse, select
from rest_em.types import FinishReason, GradedSolution, Problem, Solution, Verdict

PROMPTS = {key: Problem(key, prompt=f"Solve {key}", reference="4") for key in ("b", "a", "c")}


def graded(
    key: str,
    index: int,
    text: str,
    *,
    verdict: Verdict = Verdict.CORRECT,
    reward: float = 1.0,
    finish_reason: FinishReason = "eos",
    token_ids: tuple[int, ...] | None = None,
) -> GradedSolution:
    ids = tuple(map(ord, text)) if token_ids is None else token_ids
    return GradedSolution(Solution(key, index, 1, text, ids, finish_reason), verdict, reward, "4", "")


def test_only_correct_and_finished_solutions_are_kept_and_the_rest_is_counted() -> None:
    selection = select(
        [
            graded("a", 0, "right"),
            graded("a", 1, "wrong", verdict=Verdict.INCORRECT, reward=0.0),
            graded("a", 2, "nobody knows", verdict=Verdict.UNSCORABLE, reward=0.0),
            graded("a", 3, "cut off", finish_reason="length"),
            graded("a", 4, "stopped", finish_reason="stop_string"),
            graded("b", 0, "also right"),
        ],
        PROMPTS,
        SelectionSection(),
    )
    assert [(one.problem_id, one.index) for one in selection.examples] == [("b", 0), ("a", 0), ("a", 4)]
    assert selection.counts() == {
        "num_solutions": 6,
        "num_correct": 4,
        "num_finished": 3,
        "num_distinct": 3,
        "num_kept": 3,
        "num_human": 0,
        "num_problems_covered": 2,
        "num_problems": 3,
    }


def test_an_example_has_the_training_prompt_the_sampled_tokens_and_the_reward_as_weight() -> None:
    one = graded("a", 7, "right", reward=2.5, finish_reason="stop_string", token_ids=(5, 6))
    (example,) = select([one], PROMPTS, SelectionSection()).examples
    assert example.prompt == "Solve a"
    assert (example.index, example.token_ids, example.finish_reason) == (7, (5, 6), "stop_string")
    assert example.weight == 2.5


def test_solutions_that_differ_in_whitespace_or_unicode_form_are_one() -> None:
    twins = [
        graded("a", 3, "2 + 2\n= 4"),
        graded("a", 1, " 2 + 2 =  4"),
        graded("a", 2, "2\u00a0+ 2 = \uff14"),
    ]
    selection = select(twins, PROMPTS, SelectionSection())
    assert [one.index for one in selection.examples] == [1]
    assert (selection.num_finished, selection.num_distinct) == (3, 1)
    all_of_them = select(twins, PROMPTS, SelectionSection(deduplicate=False))
    assert [one.index for one in all_of_them.examples] == [1, 2, 3]


def test_at_most_k_solutions_a_problem_and_unlike_ones_first() -> None:
    likes = [graded("a", i, f"text {i}", token_ids=(1, 2, 3, 4, 5, 10 + i)) for i in range(5)]
    unlike = graded("a", 9, "another way", token_ids=(20, 21, 22))
    selection = select([*likes, unlike], PROMPTS, SelectionSection(max_solutions_per_problem=2))
    assert [one.index for one in selection.examples] == [0, 9]


def test_the_most_diverse_are_far_from_every_earlier_pick() -> None:
    # The first and the second share two of six pairs, so do the third and the fourth; others share none.
    sequences = [(1, 2, 3), (1, 2, 4), (5, 6, 7), (5, 6, 8)]
    assert most_diverse(sequences, 2) == [0, 2]
    assert most_diverse(sequences, 3) == [0, 2, 1]
    assert most_diverse(sequences, 9) == [0, 1, 2, 3]
    assert most_diverse([(), (), (1,)], 2) == [0, 2]


HUMAN = {"b": "as taught", "a": "text  3", "c": "by hand"}


def with_human(kind: str, **more: object) -> list[tuple[str, int | None, str]]:
    """Return D_i of six samples to `a` and one to `b`, of which K are kept, and of what people wrote."""
    pool = [graded("a", i, f"text {i}", token_ids=(1, 2, 10 + i)) for i in range(6)] + [graded("b", 0, "own")]
    values = {"human_solutions": kind, "max_solutions_per_problem": 4, **more}
    selection = select(pool, PROMPTS, SelectionSection.model_validate(values), HUMAN)
    assert selection.num_human == sum(one.index is None for one in selection.examples)
    assert {one.weight for one in selection.examples} == {1.0}
    return [(one.problem_id, one.index, one.text) for one in selection.examples]


def test_human_solutions_are_mixed_in_beyond_k_and_a_sample_that_reads_the_same_stays() -> None:
    sampled = [("b", 0, "own"), *(("a", i, f"text {i}") for i in range(4))]
    of_b, of_c = ("b", None, "as taught"), ("c", None, "by hand")
    assert with_human("mix") == [sampled[0], of_b, *sampled[1:], of_c]
    assert ("a", None, "text  3") in with_human("mix", deduplicate=False)
    assert ("a", None, "text  3") in with_human("mix", max_solutions_per_problem=1)


def test_human_solutions_take_the_place_of_the_samples_or_are_alone() -> None:
    assert with_human("solved") == [("b", None, "as taught"), ("a", None, "text  3")]
    section = SelectionSection.model_validate({"human_solutions": "only"})
    (first, *others) = select([], PROMPTS, section, HUMAN).examples
    assert [one.problem_id for one in (first, *others)] == list(PROMPTS)
    assert (first.prompt, first.token_ids, first.finish_reason) == ("Solve b", (), "eos")


def test_the_choice_does_not_depend_on_the_order_of_arrival() -> None:
    draws = random.Random(0)
    pool = [
        graded(key, i, str(i), token_ids=tuple(draws.randrange(9) for _ in range(12)))
        for key in PROMPTS
        for i in range(30)
    ]
    first = select(pool, PROMPTS, SelectionSection())
    draws.shuffle(pool)
    assert select(pool, PROMPTS, SelectionSection()) == first
    assert first.num_kept == 30


def test_a_reward_of_zero_weighs_nothing_and_is_left_out() -> None:
    selection = select(
        [graded("a", 0, "right", reward=0.0), graded("a", 1, "better", reward=0.1)],
        PROMPTS,
        SelectionSection(),
    )
    assert [one.index for one in selection.examples] == [1]


def test_no_correct_solution_stops_the_run_and_says_what_to_try() -> None:
    wrong = [graded("a", i, "5", verdict=Verdict.INCORRECT, reward=0.0) for i in range(4)]
    with pytest.raises(SelectionError, match=r"of 4 solutions to 3 problems 0 are correct.*prompt\.base"):
        select(wrong, PROMPTS, SelectionSection())


def test_correct_solutions_that_are_all_cut_off_stop_the_run_with_another_advice() -> None:
    with pytest.raises(SelectionError, match=r"1 are correct and 0 of these finished.*max_new_tokens"):
        select([graded("a", 0, "4 and so on", finish_reason="length")], PROMPTS, SelectionSection())


def test_no_solutions_at_all_stop_the_run() -> None:
    with pytest.raises(SelectionError, match="of 0 solutions"):
        select([], PROMPTS, SelectionSection())
