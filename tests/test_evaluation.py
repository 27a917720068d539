"""The figures of merit, against rationals and brute force."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from rest_em.errors import SamplesError
from rest_em.evaluation import (
    ColumnsBuilder,
    Estimate,
    Evaluation,
    Metrics,
    SignTest,
    VoteClass,
    best_at_k,
    by_difficulty,
    columns_of,
    columns_of_table,
    estimate,
    gain,
    is_shown,
    majority_at_k,
    paired_gain,
    pass_at_k,
    sign_test,
    summarize,
    unpaired_gain,
)
from rest_em.evaluation.intervals import student_quantile
from rest_em.samples import Decoding, Sample, write_samples
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


def test_majority_at_k_of_many_answers_is_a_probability_that_adds_up() -> None:
    # Every answer of the same problem in turn is the right one: somebody wins.
    sizes = [40, 21, 13, 8, 5, 3, 2, 1, 1, 1]
    for k in (2, 17, 64, 94):
        chances = [
            majority_at_k([VoteClass(n, n * (i == right)) for i, n in enumerate(sizes)], 0, k)
            for right in range(len(sizes))
        ]
        assert sum(chance or 0.0 for chance in chances) == pytest.approx(1.0, abs=1e-12)


def test_best_at_k_is_the_mean_over_all_subsets() -> None:
    draws = random.Random(2)
    rewards = [draws.random() for _ in range(8)]
    for k in range(1, 9):
        each = [max(subset) for subset in itertools.combinations(rewards, k)]
        assert best_at_k(np.array(rewards), k) == pytest.approx(sum(each) / len(each), abs=1e-12)
    assert best_at_k(np.array(rewards), 9) is None
    assert best_at_k(np.array([1.0, 0.0, 0.0, 1.0]), 2) == pytest.approx(pass_at_k(4, 2, 2))


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


def test_where_all_pairs_are_alike_the_interval_is_that_of_agresti_and_min() -> None:
    for n in (10, 200):
        found = paired_gain([1.0] * n, [1.0] * n)
        assert found is not None
        assert (found.value, found.standard_error) == (0.0, 0.0)
        assert found.high == -found.low == pytest.approx(1.959964 / (n + 2))
    every = paired_gain([1.0] * 6, [0.0] * 6)
    assert every is not None
    # (6 - 0) / 8, less 1.96 sqrt((6 + 0 + 1) - 6^2 / 8) / 8.
    assert (every.low, every.high) == (pytest.approx(0.75 - 1.959964 * math.sqrt(2.5) / 8), 1.0)


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
    return summary_of(greedy, sampled, pass_at=(1, 2, 3), majority_at=(3,))


def summary_of(
    greedy: list[GradedSolution],
    sampled: list[GradedSolution],
    pass_at: tuple[int, ...] = (1,),
    majority_at: tuple[int, ...] = (),
) -> Evaluation:
    ids = list(dict.fromkeys(one.solution.problem_id for one in (*greedy, *sampled)))
    return summarize(
        columns_of(greedy, ids) if greedy else None,
        columns_of(sampled, ids) if sampled else None,
        Metrics(pass_at, majority_at),
    )


def test_a_summary_takes_pass_at_1_from_greedy_and_the_others_from_samples() -> None:
    found = small_evaluation()
    assert found.num_problems == 3
    assert found.is_correct == {"a": True, "b": False, "c": None}
    first, second, third = (found.main.pass_at[k].estimate for k in (1, 2, 3))
    assert first is not None
    assert second is not None
    assert third is not None
    assert (first.value, first.num_problems, first.num_undefined) == (0.5, 2, 1)
    assert (second.value, second.num_undefined) == (0.5, 1)  # a: always one right among two; b: none
    assert (third.value, third.num_problems, third.num_undefined) == (1.0, 1, 2)  # b has two samples left
    majority = found.main.majority_at[3].estimate
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
    found = summary_of([graded("a", RIGHT, "1")], [], pass_at=(8,), majority_at=(8,))
    assert found.main.pass_at.keys() == {1}
    assert found.main.majority_at == {}
    assert found.sampled is None


def test_without_greedy_pass_at_1_is_the_samples() -> None:
    found = summary_of([], [graded("a", RIGHT, "1"), graded("a", WRONG, "2")])
    first = found.main.pass_at[1].estimate
    assert first is not None
    assert first.value == 0.5
    assert found.success_rate == {"a": 0.5}
    assert found.is_correct == {"a": None}


def test_an_evaluation_survives_json() -> None:
    found = small_evaluation()
    text = json.dumps(found.to_json(), allow_nan=False)
    assert Evaluation.from_json(json.loads(text)) == found
    lost = summary_of([], [graded("a", LOST)], pass_at=(1, 8), majority_at=(8,))
    assert lost.main.pass_at[8].why_undefined == (
        "1 of 1 problems have fewer than 8 solutions that could be judged"
    )
    assert Evaluation.from_json(json.loads(json.dumps(lost.to_json()))) == lost


def test_the_gain_over_the_base_is_joined_by_problem() -> None:
    base = summary_of([graded("a", WRONG), graded("b", RIGHT)], [])
    tuned = summary_of([graded("b", RIGHT), graded("a", RIGHT)], [])
    found = gain(tuned, base)
    assert found is not None
    assert (found.value, found.num_problems) == (0.5, 2)


def test_a_gain_over_other_problems_is_refused() -> None:
    one, other = (summary_of([graded(key, RIGHT)], []) for key in ("a", "b"))
    with pytest.raises(ValueError, match="same problems"):
        gain(one, other)


def test_students_quantile_is_that_of_the_tables() -> None:
    for degrees, wanted in [(1, 12.706), (2, 4.303), (4, 2.776), (9, 2.262), (29, 2.045), (120, 1.980)]:
        assert student_quantile(0.975, degrees) == pytest.approx(wanted, abs=6e-4)
    assert student_quantile(0.5, 5) == pytest.approx(0.0, abs=1e-12)
    assert student_quantile(0.025, 9) == pytest.approx(-student_quantile(0.975, 9))


def test_clusters_that_agree_count_as_one_problem_each() -> None:
    values = [1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 1.0, 1.0, 1.0]
    alone = estimate(values)
    tripled = estimate([value for value in values for _ in range(3)], clusters=[i // 3 for i in range(30)])
    assert alone is not None
    assert tripled is not None
    assert tripled.value == pytest.approx(alone.value)
    assert tripled.standard_error == pytest.approx(alone.standard_error)
    assert (tripled.num_problems, tripled.high > alone.high, tripled.low < alone.low) == (30, True, True)


def test_a_macro_average_weighs_groups_alike() -> None:
    found = estimate([1.0, 1.0, 1.0, 0.0, 0.0, 1.0], strata=["a", "a", "a", "a", "b", "b"])
    assert found is not None
    assert found.value == pytest.approx((0.75 + 0.5) / 2)
    # Each group's variance of its mean, over the square of the number of groups: (s_a^2 / 4 + s_b^2 / 2) / 4.
    # As of one problem more each has the variance about the mean, (s^2 = 0.25 and 0.26).
    about = ((3 * 0.375**2 + 0.625**2) / 4 + (0.375**2 + 0.625**2) / 2) / 2
    own = ((3 * 0.25 + about) / 4 / 4 + (1 * 0.5 + about) / 2 / 2) / 4
    assert found.standard_error == pytest.approx(math.sqrt(own))


def test_a_figure_beyond_1_has_a_plain_interval() -> None:
    found = estimate([3.0, 5.0, 4.0, 4.0], is_share=False)
    assert found is not None
    assert (found.value, found.high - found.value) == (4.0, pytest.approx(3.182446 * found.standard_error))
    assert estimate([3.0], is_share=False) is None


def test_figures_that_are_all_alike_do_not_make_it_sure() -> None:
    """0.7 and 0.9 are no sums of powers of 2: their deviations are rounding, and count for nothing."""
    for values in ([0.7] * 10, [0.9] * 100, [13 / 15] * 5):
        found = estimate(values)
        assert found is not None
        assert found.high - found.low > 0.1
    nearly = estimate([0.9] * 99 + [0.9001])
    assert nearly is not None
    assert nearly.high - nearly.low == pytest.approx(2 * 1.984 * 0.3 / math.sqrt(100 * 100), rel=0.01)


def test_of_a_single_cluster_nothing_is_known() -> None:
    found = estimate([1.0, 0.0, 1.0], clusters=["a"] * 3)
    assert found is not None
    assert (found.low, found.high) == (0.0, 1.0)
    two = estimate([1.0, 0.0, 0.0, 0.0, 0.0, 1.0], clusters=list("aaabbb"))
    assert two is not None
    assert two.high - two.low > 0.9
    assert paired_gain([1.0, 1.0], [0.0, 0.0], clusters=["a", "a"]) is None


def test_a_group_of_one_problem_varies_as_all_problems_do() -> None:
    # About the mean, 2/3, all vary by (1/9 + 4/9 + 1/9) / 3 = 2/9. Group c's own variance, 0, counts as much
    # as that: ((2 - 1) * 0 + 2/9) / 2 for the mean of its 2 problems; a and b have 2/9 each; all over 3^2.
    found = estimate([1.0, 0.0, 1.0, 1.0], strata=["a", "b", "c", "c"])
    assert found is not None
    assert found.value == pytest.approx(2 / 3)
    assert found.standard_error == pytest.approx(math.sqrt((2 / 9 + 2 / 9 + (2 / 9 / 2) / 2) / 9))


def test_where_a_few_problems_are_half_of_the_mean_the_interval_is_wide() -> None:
    every = estimate([1.0] * 101, strata=["small"] + ["large"] * 100)
    assert every is not None
    # Kish: as sure as 1 / ((1/2)^2 + 100 (1/200)^2) = 3.96 verdicts, of which Wilson's low end is 0.508.
    assert (every.low, every.high) == (pytest.approx(0.5076, abs=5e-5), 1.0)
    draws = np.random.default_rng(0)
    strata = ["small"] * 5 + ["large"] * 200
    found = [
        estimate((draws.random(205) < np.repeat([0.7, 0.3], [5, 200])).astype(float), strata=strata)
        for _ in range(300)
    ]
    assert coverage_of(found, 0.5) >= 0.92


def test_a_gain_of_groups_is_that_of_their_means() -> None:
    base, better = [0.0] * 100, [0.0] * 90 + [1.0] * 10
    groups = ["large"] * 90 + ["small"] * 10
    found = paired_gain(better, base, strata=groups)
    assert found is not None
    assert found.value == pytest.approx(0.5)
    # Ten of ten are won in one group, which is no more than 56.7 % for sure, and no problem of the other.
    assert 0.25 < found.low < 0.5 * 0.567


def test_an_evaluation_that_was_written_and_read_gains_as_before() -> None:
    def measured(verdicts: str) -> Evaluation:
        builder = ColumnsBuilder()
        for number, one in enumerate(verdicts):
            builder.add_problem(str(number), "xy"[number % 2], None if number == 5 else f"page {number // 3}")
            builder.add(str(number), RIGHT if one == "1" else WRONG, answer=None)
        return summarize(builder.build(), None, Metrics((1,)))

    base, tuned = measured("010010"), measured("110110")
    again = [Evaluation.from_json(json.loads(json.dumps(one.to_json()))) for one in (tuned, base)]
    assert gain(*again) == gain(tuned, base)
    assert gain(*again) is not None


def test_a_gain_needs_enough_problems_or_clusters_that_differ() -> None:
    one, base = [1.0] * 40, [0.0] * 20 + [1.0] * 20
    assert is_shown(paired_gain(one, base), sign_test(one, base), 0.95)
    two = [k // 20 for k in range(40)]
    sign = sign_test([1.0] * 40, [0.0] * 40, clusters=two)
    assert (sign.num_won, sign.p_value) == (2, 0.5)
    assert not is_shown(paired_gain([1.0] * 40, [0.0] * 40, clusters=two), sign, 0.95)


def test_a_gap_between_unlike_problems_is_wider_than_either_interval() -> None:
    train, test = estimate([1.0] * 30 + [0.0] * 10), estimate([1.0] * 10 + [0.0] * 10)
    assert train is not None
    assert test is not None
    gap = unpaired_gain(train, test)
    # Newcombe 1998, table II (a) has 56/70 and 48/80: 0.0524 to 0.3339.
    assert gap.value == 0.25
    assert gap.low < 0 < gap.high
    one, other = estimate([1.0] * 56 + [0.0] * 14), estimate([1.0] * 48 + [0.0] * 32)
    assert one is not None
    assert other is not None
    newcombe = unpaired_gain(one, other)
    assert (newcombe.low, newcombe.high) == (pytest.approx(0.0524, abs=5e-5), pytest.approx(0.3339, abs=5e-5))


def test_the_sign_test_is_the_binomials() -> None:
    assert sign_test([1] * 9 + [0], [0] * 9 + [1]) == SignTest(9, 1, 0, p_value=pytest.approx(22 / 1024))
    assert sign_test([0.5, None, 0.1 + 0.2], [0.5, 1, 0.3]) == SignTest(0, 0, 2, p_value=1.0)
    many = sign_test([1.0] * 3000 + [0.0] * 3000, [0.0] * 3000 + [1.0] * 3000)
    assert many.p_value == 1.0


def coverage_of(intervals: list[Estimate | None], truth: float) -> float:
    return sum(one is not None and one.low <= truth <= one.high for one in intervals) / len(intervals)


def test_clustered_and_paired_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    draws = np.random.default_rng(3)
    clustered, paired = [], []
    for _ in range(500):
        level = np.repeat(draws.beta(2, 2, size=25), 8)  # 25 sources of 8 problems that are alike
        clustered.append(
            estimate((draws.random(200) < level).astype(float), clusters=np.repeat(range(25), 8).tolist())
        )
        easy = draws.beta(1, 1, size=60)
        one, base = draws.random(60) < np.minimum(easy + 0.1, 1), draws.random(60) < easy
        paired.append(paired_gain(one.astype(float), base.astype(float)))
    assert 0.93 <= coverage_of(clustered, 0.5) <= 0.97
    assert 0.93 <= coverage_of(paired, 0.1 - 0.1**2 / 2) <= 0.97


def test_buckets_are_of_the_bases_success() -> None:
    rates = {"a": 4, "b": 3, "c": 2, "d": 1, "e": 0}
    sampled = [graded(key, RIGHT if i < num else WRONG, "1") for key, num in rates.items() for i in range(4)]
    base = summary_of([graded(key, WRONG) for key in rates], sampled)
    tuned = summary_of([graded(key, RIGHT if key in "ac" else WRONG) for key in rates], [])
    values = {name: one.estimate and one.estimate.value for name, one in by_difficulty(tuned, base).items()}
    assert values == {"75-100 %": 0.5, "50-75 %": 1.0, "25-50 %": 0.0, "< 25 %": 0.0}


def test_a_bucket_without_a_problem_says_so() -> None:
    base = summary_of([graded("a", WRONG)], [graded("a", WRONG)])
    found = by_difficulty(base, base)
    assert found["75-100 %"].estimate is None
    assert found["75-100 %"].why_undefined == "no problem is that difficult for the base model"


def row(key: str, index: int, verdict: Verdict, answer: str | None, decoding: Decoding = "sampled") -> Sample:
    return Sample(
        key, "x", "1", decoding, index, f"text {answer}", verdict, float(verdict is RIGHT), answer,
        finish_reason="eos", num_tokens=2, group=key[0], cluster=key,
    )  # fmt: skip


def test_a_table_gives_the_figures_of_its_rows(tmp_path: Path) -> None:
    rows = [
        *[row("a1", i, *each) for i, each in enumerate([(RIGHT, "1"), (WRONG, "2"), (RIGHT, "1")])],
        *[row("b1", i, *each) for i, each in enumerate([(WRONG, None), (LOST, "2"), (WRONG, "3")])],
        row("a1", 0, RIGHT, "1", "greedy"),
        row("b1", 0, WRONG, None, "greedy"),
    ]
    write_samples(tmp_path / "samples.parquet", rows)
    columns = columns_of_table(tmp_path / "samples.parquet")
    found = summarize(columns["greedy"], columns["sampled"], Metrics((1, 2), (2,)))
    values = {k: one.estimate and one.estimate.value for k, one in found.overall.pass_at.items()}
    assert values == {1: 0.5, 2: 0.5}
    majority = found.macro and found.macro.majority_at[2].estimate
    assert majority is not None
    assert majority.value == pytest.approx((2 / 3) / 2)  # a1: of 12, 11, 21: 1/2, 1, 1/2; b1: never
    assert found.groups.keys() == {"a", "b"}
    assert found.sampled is not None
    assert (found.sampled.distinct_solutions, found.sampled.distinct_answers) == (2.5, 1.5)
    assert found.overall.coverage is not None
    assert found.overall.coverage.estimate is not None
    assert found.overall.coverage.estimate.value == 0.5


def test_a_table_with_a_solution_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "samples.parquet"
    write_samples(path, [row("a", 3, RIGHT, "1"), row("a", 3, WRONG, "2")])
    with pytest.raises(SamplesError, match="first number 3 of problem 'a'"):
        columns_of_table(path)


def test_what_is_no_table_of_samples_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_text("text")
    with pytest.raises(SamplesError, match="no table of samples"):
        columns_of_table(tmp_path / "x.parquet")
