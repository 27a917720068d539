"""Rewards written for other libraries, async ones, batches, several at once, and those of packages."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

from rest_em.errors import RewardError
from rest_em.recipe import RewardPart, RewardSection
from rest_em.rewards.graders import Graders, canary
from rest_em.rewards.registry import load_reward, reward_identity
from rest_em.types import GradedSolution, Problem, Solution, Verdict

COLUMNS = {"question": "2 + 2?", "answer": "4", "data_source": "sums", "level": 3}
PROBLEM = Problem("p1", prompt="2 + 2?\n", reference="4", metadata=COLUMNS)
CHAT = Problem("p2", prompt=({"role": "user", "content": "2 + 2?"},), reference="4", metadata=COLUMNS)
CORRECT, INCORRECT, UNSCORABLE = Verdict.CORRECT, Verdict.INCORRECT, Verdict.UNSCORABLE

Write = Callable[..., RewardSection]


@pytest.fixture
def written(tmp_path: Path) -> Write:
    """Write a reward into a file and return the recipe's section for it."""

    def write(source: str, **settings: Any) -> RewardSection:
        path = tmp_path / "mine.py"
        path.write_text("import asyncio, os, time\n" + source)
        return RewardSection(**{"function": f"{path}:reward", "num_workers": 1, **settings})

    return write


def judge(section: RewardSection, *texts: str, problem: Problem = PROBLEM) -> list[GradedSolution]:
    with Graders(section) as graders:
        for index, text in enumerate(texts):
            graders.submit(problem, Solution(problem.id, index, 1, text, (5, 6), "eos"))
        graded: list[GradedSolution] = []
        while graders.num_pending:
            graded += graders.collect(timeout_seconds=1.0)
    return sorted(graded, key=lambda one: one.solution.index)


def rewards(graded: list[GradedSolution]) -> list[float]:
    return [one.reward for one in graded]


def verdicts(graded: list[GradedSolution]) -> list[Verdict]:
    return [one.verdict for one in graded]


TRL = """
def reward(prompts, completions, answer, level, **kwargs):
    assert prompts == ["2 + 2?\\n"] * len(completions)
    assert level == [3] * len(completions)
    assert kwargs["completion_ids"] == [[5, 6]] * len(completions)
    kwargs.pop("log_extra")("graded", completions)
    kwargs.pop("log_metric")("share", 0.5)
    assert set(kwargs) == {"completion_ids", "trainer_state", "question", "data_source"}, kwargs
    return [1.0 if gold in text else 0.0 for text, gold in zip(completions, answer)]
"""
VERL = """
def reward(data_source, solution_str, ground_truth, extra_info=None):
    assert (data_source, extra_info["level"]) == ("sums", 3)
    return {"score": float(ground_truth in solution_str), "acc": True}
"""
VERL_LISTS = """
def reward(data_sources, solution_strs, ground_truths, extra_infos, scale):
    assert data_sources == ["sums"] * len(solution_strs)
    return [scale * (gold in text) for text, gold in zip(solution_strs, ground_truths)]
"""
OPENRLHF = """
import numpy as np
def reward(queries, prompts, labels, **kwargs):
    texts = [query.removeprefix(prompt) for query, prompt in zip(queries, prompts)]
    scores = np.array([float(label in text) for text, label in zip(texts, labels)])
    return {"rewards": scores, "scores": scores, "extra_logs": {}}
"""
OWN_LISTS = """
def reward(problems, solutions):
    return [problem.reference in solution.text for problem, solution in zip(problems, solutions)]
"""
ASYNC_LISTS = """
async def reward(problems, solutions):
    await asyncio.sleep(0.01)
    return [problem.reference in solution.text for problem, solution in zip(problems, solutions)]
"""
ASYNC = """
async def reward(problem, solution):
    await asyncio.sleep(0.2)
    return problem.reference in solution.text
"""
ASYNC_TRL = """
async def reward(completions, answer, **kwargs):
    await asyncio.sleep(0.01)
    return [float(gold in text) for text, gold in zip(completions, answer)]
"""
OBJECT = """
class Judge:
    async def __call__(self, problem, solution):
        return problem.reference in solution.text
reward = Judge()
"""


@pytest.mark.parametrize(
    ("source", "settings"),
    [
        (TRL, {"signature": "trl"}),
        (TRL, {"signature": "trl", "batch_size": 1}),
        (VERL, {"signature": "verl"}),
        (VERL_LISTS, {"signature": "verl", "batch_size": 4, "options": {"scale": 1.0}}),
        (VERL_LISTS, {"signature": "verl", "options": {"scale": 1.0}}),
        (OPENRLHF, {"signature": "openrlhf"}),
        (OWN_LISTS, {"batch_size": 3}),
        (OWN_LISTS, {}),
        (ASYNC_LISTS, {}),
        (ASYNC, {}),
        (ASYNC_TRL, {"signature": "trl"}),
        (OBJECT, {}),
    ],
)
def test_a_reward_is_called_as_its_library_calls_it(written: Write, source: str, settings: Any) -> None:
    graded = judge(written(source, **settings), "4", "5", "so 4", "", "four", "44", "x")
    assert rewards(graded) == [1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0]
    assert verdicts(graded)[:2] == [CORRECT, INCORRECT]


def test_a_chat_reaches_each_library_as_its_own_do(written: Write) -> None:
    trl = """
def reward(prompts, completions, **kwargs):
    assert prompts == [[{"role": "user", "content": "2 + 2?"}]] * len(prompts)
    return [float(completion == [{"role": "assistant", "content": "4"}]) for completion in completions]
"""
    assert rewards(judge(written(trl, signature="trl"), "4", "5", problem=CHAT)) == [1.0, 0.0]
    openrlhf = "def reward(queries, prompts, labels):\n    return [float(q == '2 + 2?4') for q in queries]\n"
    assert rewards(judge(written(openrlhf, signature="openrlhf"), "4", "5", problem=CHAT)) == [1.0, 0.0]


def test_a_row_of_verls_own_reaches_its_function_as_verl_gives_it(written: Write) -> None:
    reward_model = {"style": "rule", "ground_truth": "4"}
    columns = {"data_source": "sums", "reward_model": reward_model, "extra_info": {"index": 7}}
    source = """
def reward(data_source, solution_str, ground_truth, extra_info):
    assert (data_source, extra_info) == ("sums", {"index": 7})
    return float(solution_str == ground_truth)
"""
    problem = Problem("p3", prompt="2 + 2?", reference=reward_model, metadata=columns)
    assert rewards(judge(written(source, signature="verl"), "4", "5", problem=problem)) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("returned", "signature"),
    [
        ("[torch.tensor(0.5) for _ in texts]", "trl"),
        ("torch.full((len(texts), 1), 0.5)", "trl"),
        ("{'rewards': torch.full((len(texts),), 0.5), 'extra_logs': {}}", "openrlhf"),
    ],
)
def test_tensors_are_rewards(written: Write, returned: str, signature: str) -> None:
    parameters = {"trl": "completions, **columns", "openrlhf": "texts, prompts, labels"}[signature]
    first = "    texts = completions\n" if signature == "trl" else ""
    source = f"import torch\ndef reward({parameters}):\n{first}    return {returned}\n"
    section = written(source, signature=signature, threshold=0.5, timeout_seconds=60.0)
    assert verdicts(judge(section, "a", "b", "c")) == [CORRECT] * 3


def test_a_tensor_of_several_numbers_is_no_reward(written: Write) -> None:
    source = "import torch\ndef reward(problem, solution):\n    return torch.ones(2)\n"
    (lost,) = judge(written(source, timeout_seconds=60.0), "a")
    assert lost.verdict is UNSCORABLE
    assert "returned a value of type Tensor" in lost.reason


def test_none_of_a_trl_reward_says_that_it_does_not_apply_and_is_no_fault(written: Write) -> None:
    source = (
        "def reward(completions, **kwargs):\n    return [None if c == '' else 1.0 for c in completions]\n"
    )
    section = written(source, signature="trl")
    canary(section, PROBLEM)
    graded = judge(section, "a", "", "b")
    assert verdicts(graded) == [CORRECT, UNSCORABLE, CORRECT]
    assert graded[1].reason.endswith("does not apply: it returned None")


def test_a_column_of_another_name_is_given_by_the_recipe(written: Write) -> None:
    source = "def reward(completions, solution, **kwargs):\n    return [float(a == b) for a, b in zip(completions, solution)]\n"
    (lost,) = judge(written(source, signature="trl"), "4")
    assert lost.verdict is UNSCORABLE
    assert "wants a column 'solution', and the problems have question, answer" in lost.reason
    assert "reward.columns: {solution: COLUMN} names another" in lost.reason
    assert rewards(judge(written(source, signature="trl", columns={"solution": "answer"}), "4", "5")) == [
        1.0,
        0.0,
    ]
    (lost,) = judge(written(source, signature="trl", columns={"solution": "gold"}), "4")
    assert "wants a column 'gold' (reward.columns), and the problems have question, answer" in lost.reason
    assert "signatures.py" not in lost.reason, "the place of an error is in the user's own code"


def test_calls_of_an_async_reward_run_beside_one_another(written: Write) -> None:
    source = """
running = most = 0
async def reward(problem, solution):
    global running, most
    running += 1
    most = max(most, running)
    await asyncio.sleep(0.05)
    running -= 1
    return float(most)
"""
    graded = judge(written(source, batch_size=8, threshold=99.0), *"abcdefghijklmnopqrstuvwxyz" * 4)
    assert max(rewards(graded)) == 8.0


FAILS_ON_BAD = {
    "raises": "if 'bad' in completions: raise ValueError('no')",
    "returns too few": "if 'bad' in completions: return []",
    "returns no number": "if 'bad' in completions: return [None if c == 'bad' else 1.0 for c in completions]",
    "leaves": "if 'bad' in completions: os._exit(3)",
    "hangs": "if 'bad' in completions: time.sleep(99)",
    "cannot judge": "from rest_em.errors import UnscorableError\n    if 'bad' in completions: raise UnscorableError('no')",
}


@pytest.mark.parametrize("failure", FAILS_ON_BAD.values(), ids=FAILS_ON_BAD)
def test_one_bad_solution_of_a_batch_costs_only_itself(written: Write, failure: str) -> None:
    source = f"def reward(completions, **kwargs):\n    {failure}\n    return [1.0] * len(completions)\n"
    texts = ["good"] * 20
    texts[7] = "bad"
    graded = judge(written(source, signature="trl", timeout_seconds=0.5), *texts)
    assert [one.solution.index for one in graded] == list(range(20))
    assert [one.solution.index for one in graded if one.verdict is not CORRECT] == [7]
    assert graded[7].verdict is UNSCORABLE


def test_a_reward_that_is_none_in_a_batch_is_asked_for_again_alone(written: Write) -> None:
    source = "def reward(completions, **k):\n    return [1.0 if len(completions) == 1 else float('nan')] * len(completions)\n"
    assert verdicts(judge(written(source, signature="trl"), *"abcdefghijkl")) == [CORRECT] * 12


def test_the_limit_is_that_of_one_call_where_a_batch_is_tried_again_one_by_one(written: Write) -> None:
    source = """
def reward(completions, **kwargs):
    with open(__file__ + ".calls", "a") as file:
        file.write(".")
    time.sleep(0.2)
    if len(completions) > 1: raise ValueError
    return [1.0]
"""
    section = written(source, signature="trl", timeout_seconds=1.0, batch_size=8)
    assert verdicts(judge(section, *"abcdefgh")) == [CORRECT] * 8
    num_calls = Path(str(section.function).rpartition(":")[0] + ".calls").stat().st_size
    assert num_calls <= 8 + 3, "once alone each, and the batches: no process was killed and began again"


def test_a_slow_reward_of_one_solution_keeps_its_limit_beside_one_of_lists(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import os, time\n"
        "def slow(problem, solution):\n    time.sleep(0.2)\n    return 1.0 + os.getpid()\n"
        "def lists(completions, **columns):\n    return [0.0] * len(completions)\n"
    )
    parts = (
        RewardPart(function=f"{tmp_path}/mine.py:slow"),
        RewardPart(function=f"{tmp_path}/mine.py:lists", signature="trl"),
    )
    graded = judge(RewardSection(rewards=parts, num_workers=1, timeout_seconds=0.5), *"abcdefghijklmnop")
    assert verdicts(graded) == [CORRECT] * 16
    assert len(set(rewards(graded))) == 1, "one process judged them all"


def test_a_child_that_a_reward_forks_in_a_batch_does_not_answer(written: Write) -> None:
    source = "def reward(completions, **k):\n    os.fork()\n    return [1.0] * len(completions)\n"
    assert rewards(judge(written(source, signature="trl"), *"abcdef")) == [1.0] * 6


def test_an_async_call_that_leaves_does_not_end_the_others(written: Write) -> None:
    source = """
calls = {}
async def reward(problem, solution):
    calls[solution.index] = calls.get(solution.index, 0) + 1
    if solution.text == "leave": raise SystemExit
    await asyncio.sleep(0.05)
    return float(calls[solution.index])
"""
    graded = judge(written(source, batch_size=8), "a", "leave", "b", "c")
    assert rewards(graded) == [1.0, 0.0, 1.0, 1.0], "each was called once"
    assert "raised SystemExit" in graded[1].reason


def test_one_bad_solution_among_async_calls_costs_only_itself(written: Write) -> None:
    source = "async def reward(problem, solution):\n    return 1 / (solution.text != 'bad')\n"
    graded = judge(written(source), "a", "bad", "b", "c")
    assert verdicts(graded) == [CORRECT, UNSCORABLE, CORRECT, CORRECT]
    assert "ZeroDivisionError" in graded[1].reason


@pytest.mark.parametrize(
    ("source", "settings", "said"),
    [
        ("def reward(texts): pass", {"signature": "trl"}, "it does not take completions"),
        ("def reward(problem, solution): pass", {"signature": "verl"}, "calls it with data_source, solution_str"),
        ("def reward(queries): pass", {"signature": "openrlhf"}, "calls it with queries, prompts, labels"),
        ("def reward(problem, solution): pass", {"options": {"a": 1}}, "unknown name 'a'"),
        ("def reward(problem, solution): pass", {"columns": {"a": "b"}}, "rest_em, which gets no columns"),
        ("def reward(problem, solution): pass", {"batch_size": 8}, "batch_size: is 8.* judges one solution a call"),
        (VERL, {"signature": "verl", "batch_size": 8}, "batch_size: is 8.* judges one solution a call"),
    ],
)  # fmt: skip
def test_a_function_that_does_not_fit_its_signature_is_refused(
    written: Write, source: str, settings: Any, said: str
) -> None:
    with pytest.raises(RewardError, match=said):
        judge(written(source, **settings), "x")


@pytest.mark.parametrize(
    ("source", "signature", "said"),
    [
        ("def reward(queries, prompts, labels):\n    return {'scores': [1.0]}", "openrlhf", "without rewards"),
        ("def reward(queries, prompts, labels):\n    return 1.0", "openrlhf", "a list of rewards is wanted"),
        ("def reward(data_source, solution_str, ground_truth, extra_info):\n    return {'acc': 1}", "verl", "without a score"),
        ("def reward(completions, **k):\n    return [float('nan')]", "trl", "returned nan"),
        ("def reward(completions, **k):\n    return [1.0, 1.0]", "trl", "returned 2 rewards for 1 solution"),
    ],
)  # fmt: skip
def test_what_is_no_reward_is_unscorable_and_told(
    written: Write, source: str, signature: str, said: str
) -> None:
    (lost,) = judge(written(source, signature=signature), "x")
    assert lost.verdict is UNSCORABLE
    assert said in lost.reason


def several(tmp_path: Path, **settings: Any) -> RewardSection:
    (tmp_path / "form.py").write_text(
        "from rest_em.errors import UnscorableError\n"
        "def brief(problem, solution):\n"
        "    if solution.text == 'lost': raise UnscorableError('no')\n"
        "    return len(solution.text) <= 2\n"
        "def shares(completions, **columns):\n    return [0.5] * len(completions)\n"
    )
    parts = (
        RewardPart(name="number", weight=0.8),
        RewardPart(function=f"{tmp_path}/form.py:brief", weight=0.2),
        RewardPart(function=f"{tmp_path}/form.py:shares", signature="trl", weight=0.1, threshold=0.5),
    )
    return RewardSection(rewards=parts, num_workers=1, **settings)


def test_several_rewards_are_summed_by_weight(tmp_path: Path) -> None:
    graded = judge(several(tmp_path), "4", "long 4", "5", "lost")
    assert rewards(graded) == pytest.approx([1.05, 0.85, 0.25, 0.0])
    assert verdicts(graded) == [CORRECT, INCORRECT, INCORRECT, UNSCORABLE]
    assert graded[1].reason.startswith("reward 0.85 is below 1: number 1, ")
    assert graded[0].answer == "4", "of the first built-in reward"


def test_a_penalty_may_be_part_of_a_sum_that_is_not_negative(tmp_path: Path) -> None:
    (tmp_path / "form.py").write_text("def penalty(problem, solution):\n    return -0.5\n")
    parts = (RewardPart(name="number"), RewardPart(function=f"{tmp_path}/form.py:penalty"))
    graded = judge(RewardSection(rewards=parts, threshold=0.5, num_workers=1), "4", "5")
    assert rewards(graded) == [0.5, 0.0]
    assert verdicts(graded) == [CORRECT, UNSCORABLE]
    assert graded[1].reason.startswith("p1: the sum of the rewards is -0.5, and >= 0 is wanted: number 0, ")
    for section in (RewardSection(rewards=parts, combine="all"), RewardSection(rewards=parts[1:])):
        lost, _ = judge(section, "4", "5")
        assert "returned -0.5; wanted a bool or a finite number >= 0" in lost.reason


def test_a_mistake_in_one_of_several_is_told_with_its_key(tmp_path: Path) -> None:
    good = RewardPart(name="number")
    for wrong, said in (
        (RewardPart(name="numbers"), r"^reward\.rewards\[1\]\.name: unknown name 'numbers'"),
        (RewardPart(name="number", options={"a": 1}), r"^reward\.rewards\[1\]\.options: unknown name 'a'"),
        (RewardPart(function="no_such.rewards:f"), r"^reward\.rewards\[1\]\.function no_such\.rewards:f: "),
    ):
        with pytest.raises(RewardError, match=said):
            canary(RewardSection(rewards=(good, wrong)), PROBLEM)


def test_several_rewards_may_all_have_to_pass(tmp_path: Path) -> None:
    graded = judge(several(tmp_path, combine="all"), "4", "long 4", "5", "lost")
    assert rewards(graded) == [1.0, 0.0, 0.0, 0.0]
    assert verdicts(graded) == [CORRECT, INCORRECT, INCORRECT, UNSCORABLE]
    assert graded[1].reason.endswith("form.py:brief: wrong")
    assert graded[2].reason == "number: wrong"


def test_the_identity_of_several_rewards_is_that_of_each(tmp_path: Path) -> None:
    same = reward_identity(several(tmp_path))
    assert reward_identity(several(tmp_path)) == same
    assert reward_identity(several(tmp_path, combine="all")) != same
    assert [part["name"] for part in same["rewards"]] == ["number", "form.py:brief", "form.py:shares"]
    (tmp_path / "form.py").write_text("changed = True\n")
    section = RewardSection(rewards=(RewardPart(function=f"{tmp_path}/form.py:brief"),))
    assert reward_identity(section)["rewards"][0]["source"] != same["rewards"][1]["source"]


def test_the_canary_calls_each_kind_of_reward(tmp_path: Path, written: Write) -> None:
    canary(several(tmp_path), PROBLEM)
    canary(written(OPENRLHF, signature="openrlhf"), PROBLEM)
    with pytest.raises(RewardError, match=r"^reward\.function .*tried on problem p1.*wants a column 'gold'"):
        canary(written("def reward(completions, gold): return [1.0]", signature="trl"), PROBLEM)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Install a package that offers a reward, as far as imports and their data go."""

    def install(name: str, entry: str, distribution: str = "steps") -> None:
        (tmp_path / f"{distribution}_rewards.py").write_text(
            "def brief(problem, solution):\n    return len(solution.text) < 3\nlevel = 3\n"
        )
        info = tmp_path / f"{distribution}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[rest_em.rewards]\n{name} = {entry}\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setenv("PYTHONPATH", ":".join(filter(None, sys.path)))

    return install


def test_a_package_offers_a_reward_by_name(package: Callable[..., None], tmp_path: Path) -> None:
    package("brief", "steps_rewards:brief")
    section = RewardSection(name="brief", num_workers=1)
    assert rewards(judge(section, "ab", "abc")) == [1.0, 0.0]
    before = reward_identity(section)
    assert before["source"].startswith("steps 1.0 ")
    with (tmp_path / "steps_rewards.py").open("a") as file:
        file.write("# a package that is being worked on keeps its version\n")
    assert reward_identity(section)["source"] != before["source"]


def test_a_package_that_offers_what_cannot_be_is_refused_by_its_name(package: Callable[..., None]) -> None:
    package("number", "steps_rewards:brief")
    with pytest.raises(
        RewardError, match="package steps offers a reward 'number', which is the name of a built-in"
    ):
        load_reward(RewardSection(name="brief"))
    with pytest.raises(RewardError, match="the package steps offers a reward 'number'"):
        canary(RewardSection(name="number"), PROBLEM)


class EditableFinder:
    """Knows one package by a path of its own, as `pip install --editable` has it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return spec_from_file_location(name, self.path) if name == "mine_in_the_works" else None


def test_a_function_of_a_package_that_is_installed_editable_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere.py").write_text("def reward(problem, solution):\n    return True\n")
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, EditableFinder(tmp_path / "elsewhere.py")])
    section = RewardSection(function="mine_in_the_works:reward")
    assert len(reward_identity(section)["source"]) == 16


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("steps_rewards:none", "importing steps_rewards:none of steps raised AttributeError"),
        ("no_such_rewards:brief", "raised ModuleNotFoundError"),
        ("steps_rewards:level", "is of type int; wanted a function"),
    ],
)
def test_a_package_whose_reward_cannot_be_imported_is_told(
    package: Callable[..., None], entry: str, said: str
) -> None:
    package("brief", entry)
    with pytest.raises(RewardError, match=said):
        load_reward(RewardSection(name="brief"))


def test_two_packages_may_not_offer_one_name(package: Callable[..., None]) -> None:
    package("brief", "steps_rewards:brief")
    package("brief", "other_rewards:brief", distribution="other")
    with pytest.raises(RewardError, match=r"(steps and other|other and steps) both offer it"):
        load_reward(RewardSection(name="brief"))


def test_what_is_for_functions_is_refused_for_a_built_in_reward() -> None:
    with pytest.raises(RewardError, match=r"reward\.signature: is for functions of your own, and number"):
        load_reward(RewardSection(name="number", signature="trl"))


def test_programs_are_run_only_where_the_recipe_allows_it() -> None:
    with pytest.raises(RewardError, match=r"docs/sandbox\.md and allow it with reward\.allow_code_execution"):
        load_reward(RewardSection(name="unit_tests"))
    with pytest.raises(RewardError, match=r"reward\.options: unknown name 'programs'; did you mean program"):
        load_reward(RewardSection(name="unit_tests", allow_code_execution=True, options={"programs": "text"}))


def test_unit_tests_judge_in_graders_and_tell_their_isolation() -> None:
    tests = {"format": "function", "entry_point": "f", "cases": [{"args": [2], "expected": 4}]}
    told: list[str] = []
    section = RewardSection(name="unit_tests", allow_code_execution=True, num_workers=2, timeout_seconds=0.5)
    with Graders(section, tell=told.append) as graders:
        texts = ["def f(n):\n    return n * n", "def f(n):\n    return n", "import time\ntime.sleep(99)"] * 4
        for index, text in enumerate(texts):
            graders.submit(Problem("p", "", tests), Solution("p", index, 0, text, (), "eos"))
        graded: list[GradedSolution] = []
        while graders.num_pending:
            graded += graders.collect(1.0)
    graded.sort(key=lambda one: one.solution.index)
    assert verdicts(graded) == [CORRECT, INCORRECT, INCORRECT] * 4
    assert {one.reason.partition(":")[0] for one in graded[2::3]} == {"wall time"}
    assert {one.answer for one in graded} == {""}
    assert len(told) == 1
    assert told[0].startswith("isolation of programs: up: ")


def test_the_canary_of_unit_tests_wants_tests_that_refuse_an_empty_program() -> None:
    section = RewardSection(name="unit_tests", allow_code_execution=True)
    tests = {"format": "stdin", "cases": [{"stdin": "", "stdout": "1"}]}
    told: list[str] = []
    canary(section, Problem("p", "", tests), told.append)
    assert len(told) == 1
    with pytest.raises(RewardError, match="no test"):
        canary(section, Problem("p", "", {"format": "stdin", "cases": []}))
    with pytest.raises(RewardError, match="an empty solution is correct"):
        canary(section, Problem("p", "", {"format": "stdin", "cases": [{"stdin": "", "stdout": ""}]}))
