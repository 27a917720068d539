"""The figures of merit, against rationals and brute force."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections import Counter
from fractions import Fraction

import pytest

from rest_em.evaluation import (
    Evaluation,
    VoteClass,
    estimate,
    gain,
    majority_at_k,
    paired_gain,
    pass_at_k,
    summarize,
)
from rest_em.types import FinishReason, GradedSolution, Solution, Verdict


def test_pass_at_k_is_exact_against_rationals() -> None:
    for n, c, k in [
        (8, 1, 8),
        (8, 1, 1),
        (64, 3, 10),
        (200, 1, 100),
        (1000, 17, 64),
        (10, 10, 3),
        (10, 0, 3),
    ]:
        miss = Fraction(math.comb(n - c, k), math.comb(n, k))
        assert pass_at_k(n, c, k) == pytest.approx(float(1 - miss), abs=1e-12, rel=1e-12)


def test_pass_at_k_is_not_defined_for_more_samples_than_there_are() -> None:
    assert pass_at_k(4, 0, 5) is None
    assert pass_at_k(4, 4, 5) is None


@pytest.mark.parametrize(("n", "c", "k"), [(0, 0, 1), (4, 5, 1), (4, -1, 1), (4, 1, 0)])
def test_pass_at_k_refuses_what_cannot_be(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match="not defined"):
        pass_at_k(n, c, k)


def by_brute_force(answers: list[str | None], is_correct: list[bool], k: int) -> float:
    total, num_subsets = 0.0, 0
    for subset in itertools.combinations(range(len(answers)), k):
        num_subsets += 1
        votes = Counter(answers[i] for i in subset if answers[i] is not None)
        winners = [answer for answer in votes if votes[answer] == max(votes.values())]
        for winner in winners:
            own = [good for answer, good in zip(answers, is_correct, strict=True) if answer == winner]
            total += sum(own) / len(own) / len(winners)
    return total / num_subsets


def vote_classes(answers: list[str | None], is_correct: list[bool]) -> list[VoteClass]:
    return [
        VoteClass(
            answers.count(answer),
            sum(good for one, good in zip(answers, is_correct, strict=True) if one == answer),
        )
        for answer in sorted({one for one in answers if one is not None})
    ]


def test_majority_at_k_equals_the_mean_over_all_subsets() -> None:
    draws = random.Random(0)
    for _ in range(60):
        n = draws.randint(1, 9)
        answers = [draws.choice(["a", "b", "c", "d", None]) for _ in range(n)]
        is_correct = [answer is not None and draws.random() < 0.5 for answer in answers]
        classes = vote_classes(answers, is_correct)
        for k in range(1, n + 1):
            found = majority_at_k(classes, answers.count(None), k)
            assert found == pytest.approx(by_brute_force(answers, is_correct, k), abs=1e-12)


def test_majority_at_1_is_pass_at_1() -> None:
    assert majority_at_k([VoteClass(3, 3), VoteClass(5, 0)], 2, k=1) == pytest.approx(pass_at_k(10, 3, 1))


def test_majority_breaks_ties_evenly_and_does_not_let_silence_vote() -> None:
    assert majority_at_k([VoteClass(1, 1), VoteClass(1, 0)], 0, k=2) == pytest.approx(0.5)
    assert majority_at_k([VoteClass(1, 1)], 3, k=4) == pytest.approx(1.0)  # three abstain, one decides
    assert majority_at_k([], 4, k=2) == 0.0
    assert majority_at_k([VoteClass(2, 2)], 0, k=3) is None


def test_majority_at_k_of_many_samples_stays_exact() -> None:
    # 2 classes and odd k: the larger one wins if it has more than half of the k, a hypergeometric tail.
    n, m, k = 1000, 520, 101
    tail = sum(Fraction(math.comb(m, x) * math.comb(n - m, k - x), math.comb(n, k)) for x in range(51, k + 1))
    assert majority_at_k([VoteClass(m, m), VoteClass(n - m, 0)], 0, k) == pytest.approx(
        float(tail), abs=1e-10
    )


def test_an_estimate_of_one_verdict_a_problem_has_wilsons_interval() -> None:
    # Wilson's score interval of 8 in 10 at 95 %: 0.4902 to 0.9433 (Newcombe 1998 has the formula).
    found = estimate([1.0] * 8 + [0.0] * 2)
    assert found is not None
    assert (found.value, found.num_problems) == (0.8, 10)
    assert found.low == pytest.approx(0.4902, abs=5e-5)
    assert found.high == pytest.approx(0.9433, abs=5e-5)
    assert found.standard_error == pytest.approx(math.sqrt(0.16 / 9))


def test_an_estimate_at_0_and_at_1_keeps_an_interval() -> None:
    none, every = estimate([0.0] * 20), estimate([1.0] * 20)
    assert none is not None
    assert every is not None
    assert (none.value, none.low) == (0.0, 0.0)
    assert none.high == pytest.approx(0.1611, abs=5e-5)
    assert every.low == pytest.approx(1 - none.high)
    assert every.high == 1.0


def test_an_estimate_of_shares_is_narrower_than_of_verdicts() -> None:
    shares, verdicts = estimate([0.4, 0.6] * 10), estimate([0.0, 1.0] * 10)
    assert shares is not None
    assert verdicts is not None
    assert shares.value == verdicts.value
    assert verdicts.low < shares.low < 0.5 < shares.high < verdicts.high


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    draws = random.Random(1)
    covered = 0
    for _ in range(400):
        found = estimate([sum(draws.random() < 0.1 for _ in range(4)) / 4 for _ in range(50)])
        assert found is not None
        covered += found.low <= 0.1 <= found.high
    assert 0.92 <= covered / 400 <= 0.98


def test_an_estimate_counts_what_is_undefined_and_is_none_without_anything() -> None:
    found = estimate([1.0, None, 0.0])
    assert found is not None
    assert (found.value, found.num_problems, found.num_undefined) == (0.5, 2, 1)
    assert estimate([None, None]) is None
    assert estimate([]) is None


def test_a_paired_gain_uses_the_pairing() -> None:
    base = [0.0, 1.0] * 100
    better = [1.0 if i % 10 == 0 else value for i, value in enumerate(base)]  # 20 of 200 become right
    found = paired_gain(better, base)
    assert found is not None
    assert found.value == pytest.approx(0.1)
    assert 0.05 < found.low < 0.1 < found.high < 0.15
    assert paired_gain(better, base) == found
    assert paired_gain(base, base, confidence=0.9) == paired_gain(better, better)


def test_a_paired_gain_leaves_out_half_pairs_and_counts_them() -> None:
    found = paired_gain([True, None, False, True], [False, True, None, True])
    assert found is not None
    assert (found.value, found.num_problems, found.num_undefined) == (0.5, 2, 2)
    assert paired_gain([None], [1.0]) is None


def graded(
    key: str, verdict: Verdict, answer: str | None = None, finish_reason: FinishReason = "eos"
) -> GradedSolution:
    return GradedSolution(Solution(key, 0, 1, "", (1, 2), finish_reason), verdict, 0.0, answer, "")


RIGHT, WRONG, LOST = Verdict.CORRECT, Verdict.INCORRECT, Verdict.UNSCORABLE


def small_evaluation() -> Evaluation:
    greedy = [graded("a", RIGHT, "1"), graded("b", WRONG, None, "length"), graded("c", LOST)]
    sampled = [
        *[graded("a", RIGHT, "1"), graded("a", RIGHT, "1"), graded("a", WRONG, "2")],
        *[graded("b", WRONG, "3"), graded("b", WRONG), graded("b", LOST)],
        *[graded("c", LOST)] * 3,
    ]
    return summarize(greedy, sampled, pass_at=(1, 2, 3), majority_at=(3,))


def test_a_summary_takes_pass_at_1_from_greedy_and_the_others_from_samples() -> None:
    found = small_evaluation()
    assert found.num_problems == 3
    assert found.is_correct == {"a": True, "b": False, "c": None}
    first, second, third = found.pass_at[1], found.pass_at[2], found.pass_at[3]
    assert first is not None
    assert second is not None
    assert third is not None
    assert (first.value, first.num_problems, first.num_undefined) == (0.5, 2, 1)
    assert (second.value, second.num_undefined) == (0.5, 1)  # a: always one right among two; b: none
    assert (third.value, third.num_problems, third.num_undefined) == (1.0, 1, 2)  # b has two samples left
    majority = found.majority_at[3]
    assert majority is not None
    assert (majority.value, majority.num_undefined) == (pytest.approx(1.0), 2)


def test_a_summary_says_what_became_of_the_solutions() -> None:
    found = small_evaluation()
    assert found.greedy is not None
    assert found.sampled is not None
    assert (found.greedy.no_answer, found.greedy.truncated) == (0.5, pytest.approx(1 / 3))
    assert found.greedy.unscorable == pytest.approx(1 / 3)
    assert (found.sampled.num_solutions, found.sampled.mean_tokens) == (9, 2.0)
    assert found.sampled.unscorable == pytest.approx(4 / 9)
    assert found.sampled.no_answer == pytest.approx(1 / 5)


def test_without_samples_there_is_greedy_pass_at_1_alone() -> None:
    found = summarize([graded("a", RIGHT, "1")], [], pass_at=(8,), majority_at=(8,))
    assert found.pass_at[1] is not None
    assert found.pass_at[8] is None
    assert found.majority_at[8] is None
    assert found.sampled is None


def test_without_greedy_pass_at_1_is_the_samples() -> None:
    found = summarize([], [graded("a", RIGHT, "1"), graded("a", WRONG, "2")], pass_at=(1,), majority_at=())
    assert found.pass_at[1] is not None
    assert found.pass_at[1].value == 0.5
    assert found.is_correct == {"a": None}


def test_an_evaluation_survives_json() -> None:
    found = small_evaluation()
    text = json.dumps(found.to_json(), allow_nan=False)
    assert Evaluation.from_json(json.loads(text)) == found
    empty = summarize([], [], pass_at=(1, 8), majority_at=(8,))
    assert Evaluation.from_json(json.loads(json.dumps(empty.to_json()))) == empty


def test_the_gain_over_the_base_is_joined_by_problem() -> None:
    base = summarize([graded("a", WRONG), graded("b", RIGHT)], [], pass_at=(), majority_at=())
    tuned = summarize([graded("b", RIGHT), graded("a", RIGHT)], [], pass_at=(), majority_at=())
    found = gain(tuned, base)
    assert found is not None
    assert (found.value, found.num_problems) == (0.5, 2)


def test_a_gain_over_other_problems_is_refused() -> None:
    one, other = (summarize([graded(key, RIGHT)], [], pass_at=(), majority_at=()) for key in ("a", "b"))
    with pytest.raises(ValueError, match="same problems"):
        gain(one, other)
