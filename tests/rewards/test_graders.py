"""Rewards loaded by name or file, and judged in processes that hang, die, print and lie."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from process_watch import is_alive, is_gone_within

from rest_em.errors import RewardError
from rest_em.recipe import RewardSection
from rest_em.rewards.graders import Graders, canary, check_unscorable
from rest_em.rewards.registry import load_reward, reward_identity
from rest_em.types import GradedSolution, Problem, Solution, Verdict

PROBLEM = Problem("p1", prompt="2 + 2?", reference="4", metadata={"kind": "sum"})
CORRECT, INCORRECT, UNSCORABLE = Verdict.CORRECT, Verdict.INCORRECT, Verdict.UNSCORABLE

Plugin = Callable[..., RewardSection]


@pytest.fixture
def plugin(tmp_path: Path) -> Plugin:
    """Write a file with a reward of this body and return the recipe's section for it."""

    def write(body: str, *, before: str = "", **settings: Any) -> RewardSection:
        lines = "".join(f"    {line}\n" for line in body.splitlines())
        source = f"import os, signal, sys, time\n{before}\ndef reward(problem, solution):\n{lines}"
        path = tmp_path / "mine.py"
        path.write_text(source)
        return RewardSection(**{"function": f"{path}:reward", "num_workers": 1, **settings})

    return write


def solution(text: str, index: int = 0) -> Solution:
    return Solution("p1", index, 1, text, (1, 2), "eos")


def judge(section: RewardSection, *texts: str) -> list[GradedSolution]:
    """Return the verdicts on these texts, in their order."""
    with Graders(section) as graders:
        return collect(graders, *texts)


def collect(graders: Graders, *texts: str) -> list[GradedSolution]:
    for index, text in enumerate(texts):
        graders.submit(PROBLEM, solution(text, index))
    graded: list[GradedSolution] = []
    while graders.num_pending:
        graded += graders.collect(timeout_seconds=1.0)
    return sorted(graded, key=lambda one: one.solution.index)


def verdicts(graded: list[GradedSolution]) -> list[Verdict]:
    return [one.verdict for one in graded]


def children() -> set[int]:
    """Return the process ids of this process's children, zombies included."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if int(path.read_text().rpartition(")")[2].split()[1]) == os.getpid():
                found.add(int(path.parent.name))
    return found


def descriptors_now() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_a_built_in_reward_judges_and_extracts_answers() -> None:
    graded = judge(RewardSection(name="number", num_workers=2), "The answer is 4.0", "5", "", "so 8/2")
    assert verdicts(graded) == [CORRECT, INCORRECT, INCORRECT, CORRECT]
    assert [one.answer for one in graded] == ["4", "5", None, "4"]
    assert [one.reward for one in graded] == [1.0, 0.0, 0.0, 1.0]
    assert [one.reason for one in graded] == ["", "wrong", "no answer", ""]


def test_every_solution_is_judged_once_by_several_graders(plugin: Plugin) -> None:
    section = plugin("return int(solution.text) % 3 == 0", num_workers=2)
    graded = judge(section, *map(str, range(1000)))
    assert [one.solution.index for one in graded] == list(range(1000))
    assert [one.verdict is CORRECT for one in graded] == [index % 3 == 0 for index in range(1000)]


def test_a_reward_sees_the_whole_problem_and_solution(plugin: Plugin) -> None:
    section = plugin(
        "return (problem.metadata['kind'], problem.reference, solution.token_ids) == ('sum', '4', (1, 2))"
    )
    assert verdicts(judge(section, "x")) == [CORRECT]


def test_a_float_reward_is_correct_from_the_threshold_and_weighs_what_it_is(plugin: Plugin) -> None:
    graded = judge(plugin("return float(solution.text)", threshold=0.5), "0.5", "0.4", "2.5", "0")
    assert verdicts(graded) == [CORRECT, INCORRECT, CORRECT, INCORRECT]
    assert [one.reward for one in graded] == [0.5, 0.4, 2.5, 0.0]
    assert graded[1].reason == "reward 0.4 is below 0.5"


@pytest.mark.parametrize("value", ["np.float32(1)", "np.int64(1)", "np.bool_(True)", "1", "Fraction(3, 3)"])
def test_numbers_of_other_libraries_are_numbers(plugin: Plugin, value: str) -> None:
    section = plugin(f"return {value}", before="import numpy as np\nfrom fractions import Fraction")
    assert verdicts(judge(section, "x")) == [CORRECT]


FAILURES = {
    "value = None": "returned a value of type NoneType; wanted a bool or a finite number >= 0",
    "value = 'yes'": "returned a value of type str",
    "value = 1j": "returned a value of type complex",
    "value = float('nan')": "returned nan",
    "value = float('inf')": "returned inf",
    "value = -0.5": "returned -0.5",
    "value = 10 ** 400": "returned a value of type int",
    "raise ValueError('bad gold')": r"raised ValueError: bad gold \(.*mine\.py:5\)",
    "raise ValueError('\\udc80' * 9999)": r"raised ValueError: \\udc80",
    "assert False": "raised AssertionError",
    "sys.exit(0)": "raised SystemExit: 0",
    "raise KeyboardInterrupt": "raised KeyboardInterrupt",
    "value = reward(problem, solution)": "raised RecursionError",
    "value = input()": "raised EOFError",
    "os._exit(0)": "its grader process left with exit status 0",
    "os.kill(os.getpid(), signal.SIGSEGV)": "its grader process was killed by signal 11, Segmentation fault",
    "os.closerange(3, 100); value = True": "its grader process ",
    "import builtins; del builtins.isinstance, builtins.len; value = []": "its grader process ",
}
"""What a reward does, and what is said of it."""


def test_a_reward_that_fails_is_unscorable_with_the_problem_and_the_cause(plugin: Plugin) -> None:
    section = plugin(
        "scope = {'problem': problem, 'solution': solution}\n"
        "exec(solution.text, globals(), scope)\n"
        "return scope['value']"
    )
    texts = [text for failure in FAILURES for text in (failure, "value = True")]
    graded = judge(section, *texts)
    assert verdicts(graded) == [UNSCORABLE, CORRECT] * len(FAILURES)
    for one, reason in zip(graded[::2], FAILURES.values(), strict=True):
        assert one.reward == 0.0
        assert one.reason.startswith(f"p1: the reward {section.function} ")
        assert re.search(reason, one.reason)
        assert len(one.reason.encode()) < 5000


def test_a_reward_may_say_that_it_cannot_judge(plugin: Plugin) -> None:
    section = plugin("raise UnscorableError('no gold')", before="from rest_em.errors import UnscorableError")
    (graded,) = judge(section, "x")
    assert (graded.verdict, graded.reason) == (UNSCORABLE, "p1: no gold")


@pytest.mark.parametrize(
    "hang",
    [
        "time.sleep(1000)",
        "[signal.signal(n, signal.SIG_IGN) for n in range(1, 32) if n not in (9, 19)]; time.sleep(1000)",
        "import re; re.match('(a+)+$', 'a' * 60 + 'b')",
        "os.kill(os.getpid(), signal.SIGSTOP)",
    ],
)
def test_a_hang_ends_at_the_limit_and_only_the_hung_solution_pays_for_it(plugin: Plugin, hang: str) -> None:
    section = plugin(f"if solution.text == 'hang': {hang}\nreturn True", timeout_seconds=1.0)
    graded = judge(section, *["fine"] * 20, "hang", *["fine"] * 20)
    assert [one.solution.index for one in graded if one.verdict is not CORRECT] == [20]
    assert graded[20].verdict is UNSCORABLE
    assert "took longer than 1 s (reward.timeout_seconds)" in graded[20].reason


def test_a_caller_that_is_away_does_not_make_a_reward_late(plugin: Plugin) -> None:
    section = plugin("time.sleep(0.05)\nreturn True", timeout_seconds=1.0)
    with Graders(section) as graders:
        for index in range(20):
            graders.submit(PROBLEM, solution("x", index))
        graded = graders.collect()
        while graders.num_pending:
            time.sleep(1.5)
            graded += graders.collect()
    assert verdicts(graded) == [CORRECT] * 20


def test_what_a_reward_prints_goes_to_the_log_and_not_into_the_verdicts(
    plugin: Plugin, tmp_path: Path
) -> None:
    body = (
        'print(\'["correct", 1.0, null, ""]\' * 1000, flush=True)\n'
        'os.write(1, b\'\\n["correct", 1.0, null, ""]\\n\')\n'
        "os.system('echo from a child')\n"
        "return False"
    )
    with Graders(plugin(body), tmp_path / "logs" / "graders.log") as graders:
        graded = collect(graders, *["x"] * 10)
    assert verdicts(graded) == [INCORRECT] * 10
    assert (tmp_path / "logs" / "graders.log").read_text().count("from a child") == 10


def test_a_child_that_a_reward_forks_neither_answers_nor_survives(plugin: Plugin, tmp_path: Path) -> None:
    body = (
        "if solution.text == 'twice': os.fork()\n"
        "elif os.fork() == 0:\n"
        f"    open({str(tmp_path / 'child')!r}, 'w').write(str(os.getpid()) + '.')\n"
        "    time.sleep(1000)\n"
        f"else:\n    while not open({str(tmp_path / 'child')!r}, 'a').tell(): time.sleep(0.01)\n"
        "return True"
    )
    graded = judge(plugin(body), "twice", "twice", "child", "twice")
    assert verdicts(graded) == [CORRECT] * 4
    (child,) = map(int, read_pids(tmp_path / "child"))
    assert eventually(lambda: not is_alive(child))


def test_a_reward_may_use_alarms_and_one_left_set_does_not_go_off(plugin: Plugin) -> None:
    before = "def late(*_): raise TimeoutError\nsignal.signal(signal.SIGALRM, late)"
    body = (
        "signal.setitimer(signal.ITIMER_REAL, 0.1)\n"
        "if solution.text == 'leave': return True\n"
        "if solution.text == 'plain': signal.setitimer(signal.ITIMER_REAL, 0)\n"
        "try: time.sleep(0.3)\n"
        "except TimeoutError: return False\n"
        "return True"
    )
    assert verdicts(judge(plugin(body, before=before), "slow", "leave", "plain")) == [
        INCORRECT,
        CORRECT,
        CORRECT,
    ]


def test_no_device_is_visible_to_a_reward(plugin: Plugin) -> None:
    assert verdicts(judge(plugin("return os.environ['CUDA_VISIBLE_DEVICES'] == ''"), "x")) == [CORRECT]


def test_a_problem_larger_than_a_pipe_arrives() -> None:
    problem = Problem("p1", prompt="?", reference="4", metadata={"long": "x" * 3_000_000})
    with Graders(RewardSection(name="number", num_workers=1)) as graders:
        for index in range(5):
            graders.submit(problem, solution("4", index))
        graded: list[GradedSolution] = []
        while graders.num_pending:
            graded += graders.collect(1.0)
    assert verdicts(graded) == [CORRECT] * 5


def test_nothing_is_left_behind(plugin: Plugin, tmp_path: Path) -> None:
    section = plugin("if solution.text == 'hang': time.sleep(1000)\nos._exit(1)", timeout_seconds=0.3)
    processes, descriptors = children(), descriptors_now()

    def fail_while_some_are_pending() -> None:
        with Graders(section.model_copy(update={"num_workers": 2}), tmp_path / "log") as graders:
            collect(graders, "die", "hang")
            graders.submit(PROBLEM, solution("hang"))
            graders.collect()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_while_some_are_pending()
    assert children() == processes
    assert descriptors_now() == descriptors


def test_graders_and_what_rewards_start_die_with_their_supervisor_however_it_dies(
    plugin: Plugin, tmp_path: Path
) -> None:
    section = plugin(
        "child = subprocess.Popen(['sleep', '1000'])\n"
        f"open({str(tmp_path / 'pids')!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}.')\n"
        "time.sleep(1000)",
        before="import subprocess",
    )
    script = tmp_path / "supervisor.py"
    script.write_text(
        "from rest_em.recipe import RewardSection\n"
        "from rest_em.rewards.graders import Graders\n"
        "from rest_em.types import Problem, Solution\n"
        f"graders = Graders(RewardSection(function={section.function!r}, timeout_seconds=1000.0))\n"
        "graders.submit(Problem('p1', '?', '4'), Solution('p1', 0, 1, '', (), 'eos'))\n"
        "while True: graders.collect(1.0)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    supervisor = subprocess.Popen([sys.executable, str(script)], env=environment)
    try:
        pids = [int(pid) for pid in eventually(lambda: read_pids(tmp_path / "pids"))]
        assert all(is_alive(pid) for pid in pids)
        supervisor.send_signal(signal.SIGKILL)
    finally:
        supervisor.kill()
        supervisor.wait()
    assert all(is_gone_within(pid, 2.0) for pid in pids)


def test_a_reward_may_wait_for_any_child_of_its_own(plugin: Plugin) -> None:
    """What watches over a grader's group is no child of the grader."""
    section = plugin("try:\n    os.wait()\nexcept ChildProcessError:\n    return True\nreturn False")
    (graded,) = judge(section, "")
    assert graded.verdict is Verdict.CORRECT


def test_a_reward_whose_file_changes_judges_nothing_more(plugin: Plugin) -> None:
    section = plugin("time.sleep(60 if solution.text == 'hang' else 0)\nreturn True", timeout_seconds=1.0)
    with Graders(section) as graders:
        assert [one.verdict for one in collect(graders, "a")] == [Verdict.CORRECT]
        plugin("return True")
        with pytest.raises(
            RewardError, match=r"its file has changed while the run goes on.*same command again"
        ):
            collect(graders, "hang", "b")
    assert [one.verdict for one in judge(section, "b")] == [Verdict.CORRECT]


def read_pids(path: Path) -> list[str]:
    text = path.read_text() if path.exists() else ""
    return text.removesuffix(".").split() if text.endswith(".") else []


def eventually(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 60
    while not (found := condition()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert found
    return found


@pytest.fixture
def clean_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo what loading a plug-in in this process does."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))


@pytest.mark.usefixtures("clean_imports")
@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import no_such_thing_at_all", r"importing it raised ModuleNotFoundError.*mine\.py:1"),
        ("def reward(:\n    pass", r"importing it raised SyntaxError.*mine\.py:1"),
        ("import sys\nsys.exit('use me as a script')", "importing it raised SystemExit: use me as a script"),
        ("def rewards(problem, solution): return True", "unknown name 'reward'; did you mean rewards?"),
        ("x = 1", "unknown name 'reward'; there is none"),
        ("reward = 3", "reward is of type int; wanted a function"),
        ("def reward(problem): return True", "too many positional arguments"),
        ("def reward(problem, solution, level): return True", "missing a required argument: 'level'"),
    ],
)
def test_a_plugin_that_cannot_be_loaded_is_refused_with_place_and_advice(
    tmp_path: Path, source: str, message: str
) -> None:
    (tmp_path / "mine.py").write_text(source)
    with pytest.raises(RewardError, match=message):
        load_reward(RewardSection(function=f"{tmp_path}/mine.py:reward"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "numbers"}, "unknown name 'numbers'; did you mean number[?].*file.py:function"),
        ({"name": "rm"}, "unknown name 'rm'; there is exact_match, number, boxed, math_answer"),
        ({"function": "/nowhere/mine.py:reward"}, "there is no file /nowhere/mine.py"),
        ({"function": "no_such_package.rewards:reward"}, "there is no module no_such_package.rewards"),
        ({"function": "rest_em.rewards.answers:exact_mach"}, "did you mean exact_match[?]"),
        ({"name": "number", "answer": "boxd"}, "reward.answer: unknown name 'boxd'; did you mean boxed[?]"),
        ({"name": "number", "options": {"tolerance": 1}}, "reward.options: unknown name 'tolerance'"),
    ],
)
def test_a_wrong_name_is_refused_with_the_nearest_right_one(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RewardError, match=message):
        load_reward(RewardSection(**settings))


@pytest.mark.usefixtures("clean_imports")
def test_options_become_keyword_arguments(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def reward(problem, solution, *, level, scale=1.0): return level * scale"
    )
    name = f"{tmp_path}/mine.py:reward"
    loaded = load_reward(RewardSection(function=name, options={"level": 3}))
    assert loaded.parts[0].call([(PROBLEM, solution("x"))]) == [3.0]
    with pytest.raises(RewardError, match=r"unknown name 'levels'.*level, scale"):
        load_reward(RewardSection(function=name, options={"levels": 3}))


@pytest.mark.usefixtures("clean_imports")
def test_a_file_may_hold_dataclasses_and_import_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "my_neighbour.py").write_text("LEVEL = 2")
    (tmp_path / "mine.py").write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "from my_neighbour import LEVEL\n"
        "@dataclass\nclass Part:\n    weight: float\n"
        "def reward(problem, solution): return Part(LEVEL).weight\n"
    )
    loaded = load_reward(RewardSection(function=f"{tmp_path}/mine.py:reward"))
    assert loaded.parts[0].call([(PROBLEM, solution(""))]) == [2]


def test_an_import_that_fails_stops_the_run_and_is_not_tried_for_ever(
    plugin: Plugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = children()
    with pytest.raises(RewardError, match=r"importing it raised RuntimeError: no licence .*mine\.py:2"):
        judge(plugin("return True", before="raise RuntimeError('no licence')"), "x")
    with pytest.raises(RewardError, match="importing it, the grader process left with exit status 5"):
        judge(plugin("return True", before="os._exit(5)"), "x")
    monkeypatch.setattr("rest_em.rewards.graders.START_SECONDS", 0.5)
    with pytest.raises(RewardError, match=r"the grader process was not ready within 0\.5 s"):
        judge(plugin("return True", before="time.sleep(1000)"), "x")
    assert children() == before


def test_the_identity_of_a_reward_is_what_verdicts_depend_on(tmp_path: Path) -> None:
    def identity(source: str = "raise RuntimeError", folder: str = "one", **settings: Any) -> dict[str, Any]:
        path = tmp_path / folder / "mine.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(source)
        return reward_identity(RewardSection(function=f"{path}:reward", **settings))

    same = identity()  # the file is not run
    assert identity(folder="two") == same
    assert identity(timeout_seconds=3.0, num_workers=2, max_unscorable=0.5) == same
    assert identity("raise ValueError") != same
    assert identity(threshold=0.5) != same
    assert identity(options={"level": 1}) != same
    assert identity(answer="number") != same
    assert identity(answer="final_answer") == same


def test_the_identity_of_a_module_is_its_file_and_of_a_built_in_its_name() -> None:
    own = reward_identity(RewardSection(function="rest_em.rewards.answers:exact_match"))
    assert own["name"] == "rest_em.rewards.answers:exact_match"
    assert len(own["source"]) == 16
    assert reward_identity(RewardSection(name="number")) == {
        "name": "number",
        "options": {},
        "threshold": 1.0,
        "answer": "number",
        "source": None,
    }


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("number", "She has 2 + 2\n#### 4"),
        ("exact_match", "Paris"),
        ("boxed", r"\frac{1}{2}"),
        ("boxed", r"so \boxed{3}"),
    ],
)
def test_the_canary_passes_a_reward_that_fits_the_problems(name: str, reference: str) -> None:
    canary(RewardSection(name=name), Problem("p1", "?", reference))


def test_the_canary_stops_a_built_in_reward_that_does_not_fit_the_problems() -> None:
    with pytest.raises(
        RewardError, match=r"^reward\.name number.*p1: the reference is 'Paris'.*problems\.reference"
    ):
        canary(RewardSection(name="number"), Problem("p1", "?", "Paris"))


def test_the_canary_stops_a_plugin_that_cannot_judge_an_empty_solution(plugin: Plugin) -> None:
    with pytest.raises(RewardError, match=r"mine\.py:reward, tried on problem p1.*IndexError.*mine\.py:4"):
        canary(plugin("return solution.text.split()[-1] == problem.reference"), PROBLEM)
    with pytest.raises(RewardError, match=r"returned a value of type NoneType.*it must return a bool"):
        canary(plugin("pass"), PROBLEM)
    with pytest.raises(RewardError, match=r"took longer than 0\.3 s"):
        canary(plugin("time.sleep(1000)", timeout_seconds=0.3), PROBLEM)


def test_the_canary_tells_of_a_reward_that_is_not_there() -> None:
    with pytest.raises(RewardError, match=r"^reward\.name: unknown name 'number_'; did you mean number"):
        canary(RewardSection(name="number_"), PROBLEM)


def test_the_canary_lets_a_plugin_say_that_it_cannot_judge(plugin: Plugin) -> None:
    canary(
        plugin("raise UnscorableError('?')", before="from rest_em.errors import UnscorableError"),
        PROBLEM,
    )
    canary(plugin("return 0.5"), PROBLEM)


def test_a_reward_that_can_be_closed_is_closed_in_good_order(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "class Reward:\n"
        "    def __call__(self, problem, solution):\n"
        "        return True\n"
        "    def close(self):\n"
        f"        open({str(tmp_path / 'closed')!r}, 'w').close()\n"
        "reward = Reward()\n"
    )
    judge(RewardSection(function=f"{tmp_path}/mine.py:reward", num_workers=1), "x")
    assert (tmp_path / "closed").exists()


def test_one_that_cannot_be_closed_is_told_in_the_log_and_the_next_is_closed(tmp_path: Path) -> None:
    for name, body in (("bad", "1 / 0"), ("good", f"open({str(tmp_path / 'closed')!r}, 'w').close()")):
        (tmp_path / f"{name}.py").write_text(
            "class Reward:\n"
            "    def __call__(self, problem, solution):\n"
            "        return True\n"
            f"    def close(self):\n        {body}\n"
            "reward = Reward()\n"
        )
    parts = tuple({"function": f"{tmp_path / name}.py:reward"} for name in ("bad", "good"))
    section = RewardSection.model_validate({"rewards": parts, "num_workers": 1})
    log = tmp_path / "graders.log"
    with Graders(section, log) as graders:
        collect(graders, "x")
    told = log.read_text()
    assert "bad.py:reward: close() failed; what it started may go on:" in told
    assert "ZeroDivisionError" in told
    assert (tmp_path / "closed").exists()


def test_one_that_hangs_while_it_is_closed_is_killed(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import os, time\n"
        "class Reward:\n"
        "    def __call__(self, problem, solution):\n"
        f"        open({str(tmp_path / 'process')!r}, 'w').write(str(os.getpid()))\n"
        "        return True\n"
        "    def close(self):\n"
        "        time.sleep(1000)\n"
        "reward = Reward()\n"
    )
    judge(RewardSection(function=f"{tmp_path}/mine.py:reward", num_workers=1), "x")
    assert not is_alive(int((tmp_path / "process").read_text()))


def test_too_many_unscorable_solutions_stop_the_run_with_reasons() -> None:
    section = RewardSection(name="number", max_unscorable=0.05)
    lost = [GradedSolution(solution("x", i), UNSCORABLE, 0.0, None, f"p{i % 5}: bad gold") for i in range(6)]
    check_unscorable(lost[:5], 100, section, "iteration-01")
    check_unscorable([], 0, section, "iteration-01")
    with pytest.raises(
        RewardError, match=r"iteration-01: 6 of 100 solutions could not be judged \(6\.0%"
    ) as error:
        check_unscorable(lost, 100, section, "iteration-01")
    assert "p0: bad gold" in str(error.value)
    assert "p2: bad gold" in str(error.value)
    assert "p3: bad gold" not in str(error.value)
