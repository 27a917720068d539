"""No program is rewarded without being right, and none spoils the judgement of those after it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rest_em.rewards.unit_tests import UnitTests
from rest_em.types import Problem, Solution
from tests.attacks import HONEST, TESTS, WRONG, Attack, read_attacks

ATTACKS = read_attacks()


@pytest.fixture(scope="module")
def reward() -> Iterator[UnitTests]:
    judge = UnitTests(cpu_seconds=2.0, program="text")
    yield judge
    judge.close()


@pytest.mark.parametrize("attack", ATTACKS, ids=[one.name for one in ATTACKS])
def test_an_attack_gets_what_it_deserves_and_so_do_those_after_it(reward: UnitTests, attack: Attack) -> None:
    problem = Problem("p", "", TESTS[attack.mode])
    programs = (attack.code, HONEST[attack.mode], WRONG[attack.mode])
    found = [reward(problem, Solution("p", 0, 0, code, (), "eos")) for code in programs]
    assert [one.reward for one in found] == [float(attack.is_right), 1.0, 0.0], found
