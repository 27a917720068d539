"""From the name of a reward in a recipe to its function, its options bound and its answers' extractor.

A plug-in's code runs on import: only grader processes load rewards, never the process that leads a run.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.machinery
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from rest_em.errors import RewardError
from rest_em.recipe import nearest
from rest_em.rewards.answers import EXTRACTORS, boxed_match, exact_match, number_match
from rest_em.rewards.unit_tests import UnitTests
from rest_em.storage import file_hash
from rest_em.types import Problem, RewardFunction, Solution

if TYPE_CHECKING:
    from rest_em.recipe import RewardSection

RawReward = Callable[[Problem, Solution], object]
"""A `RewardFunction`, perhaps: a plug-in before anything is known of what it returns."""

BUILT_IN: dict[str, tuple[RewardFunction, str]] = {
    "exact_match": (exact_match, "final_answer"),
    "number": (number_match, "number"),
    "boxed": (boxed_match, "boxed"),
}
"""The built-in rewards by name, each with the extractor of its answers."""

_WANTED = "a reward is package.module:function, file.py:function, or one of the built-in ones: " + ", ".join(
    [*BUILT_IN, "unit_tests"]
)


@dataclass(frozen=True, slots=True)
class LoadedReward:
    """A reward that can be called.

    Example:
        LoadedReward("number", number_match, EXTRACTORS["number"], threshold=1.0)
    """

    name: str
    """As in the recipe."""
    function: RawReward
    """Its options are bound."""
    extract_answer: Callable[[str], str | None]
    """Finds the answer that votes in maj@k."""
    threshold: float
    """A float reward is correct if it is at least this."""
    note: str = ""
    """What people are told before it judges."""


def load_reward(section: RewardSection) -> LoadedReward:
    """Import a reward and bind its options.

    Raises:
        RewardError: there is no such reward, its code cannot be imported, or it does not take these options.
    """
    if section.name == "unit_tests":
        judge = _unit_tests(section)
        note = f"isolation of programs: {judge.isolation}"
        return LoadedReward(section.name, judge, EXTRACTORS["none"], section.threshold, note)
    function = BUILT_IN[section.name][0] if is_built_in(section) else _find_function(section.name)
    _check_call(section.name, function, section.options)
    bound = functools.partial(function, **section.options) if section.options else function
    return LoadedReward(section.name, bound, EXTRACTORS[answer_name(section)], section.threshold)


def _unit_tests(section: RewardSection) -> UnitTests:
    """Start a sandbox and return the reward that runs programs in it.

    Raises:
        RewardError: that is not allowed, or the options are wrong, or the host refuses a layer.
    """
    if not section.allow_code_execution:
        raise RewardError(
            "reward.name unit_tests: it runs programs that the model wrote; read docs/sandbox.md and allow it "
            "with reward.allow_code_execution: true"
        )
    own = ("self", "cpu_seconds", "allow_weaker_isolation")
    taken = [name for name in inspect.signature(UnitTests.__init__).parameters if name not in own]
    for key in section.options:
        if key not in taken:
            raise RewardError(f"reward.options: {_unknown(key, taken)}; unit_tests takes {', '.join(taken)}")
    return UnitTests(
        cpu_seconds=section.timeout_seconds,
        allow_weaker_isolation=section.allow_weaker_isolation,
        **section.options,
    )


def call_limit_seconds(section: RewardSection) -> float:
    """Return how long one call may take before its process is killed.

    A plug-in's is `reward.timeout_seconds`. That is a program's own limit in `unit_tests`, which ends it, runs
    it again alone where the machine was busy, and tells why: its process is killed only if that fails.
    """
    return 60 + 12 * section.timeout_seconds if section.name == "unit_tests" else section.timeout_seconds


def is_built_in(section: RewardSection) -> bool:
    """Say whether a recipe's reward is one of ours."""
    return section.name in BUILT_IN or section.name == "unit_tests"


def answer_name(section: RewardSection) -> str:
    """Return the name of the extractor whose answers vote.

    Raises:
        RewardError: there is no such extractor.
    """
    if section.answer is None:
        if section.name == "unit_tests":
            return "none"
        return BUILT_IN[section.name][1] if is_built_in(section) else "final_answer"
    if section.answer not in EXTRACTORS:
        raise RewardError(f"reward.answer: {_unknown(section.answer, EXTRACTORS)}")
    return section.answer


def reward_identity(section: RewardSection) -> dict[str, Any]:
    """Return what verdicts depend on, as a JSON value.

    A plug-in is known by the content of its file, not by where it lies; what that file imports is not looked
    at. How many graders judge, and how long they may take, does not matter.

    Raises:
        RewardError: there is no such reward.
    """
    value: dict[str, Any] = section.model_dump(mode="json", include={"options", "threshold"})
    value["answer"] = answer_name(section)
    if is_built_in(section):
        return value | {"name": section.name, "source": None}
    target, function = _split(section.name)
    source = _source_of(target, section.name)
    name = f"{source.name if _is_file(target) else target}:{function}"
    return value | {"name": name, "source": file_hash(source)}


def _split(name: str) -> tuple[str, str]:
    target, colon, function = name.rpartition(":")
    if not (colon and target and function):
        raise RewardError(f"reward.name: {_unknown(name, BUILT_IN)}; {_WANTED}")
    return target, function


def _is_file(target: str) -> bool:
    return target.endswith(".py")


def _source_of(target: str, name: str) -> Path:
    """Return the file of a plug-in, without running any of its code."""
    if _is_file(target):
        if not Path(target).is_file():
            raise RewardError(
                f"reward.name {name}: there is no file {target}; a path is taken from the recipe's folder"
            )
        return Path(target)
    search = [str(Path.cwd()), *sys.path]  # graders start with `python -m`, which imports from there
    spec = None
    parts = target.split(".")
    for depth in range(len(parts)):
        spec = importlib.machinery.PathFinder.find_spec(".".join(parts[: depth + 1]), search)
        if spec is None:
            raise _no_module(target, name)
        search = list(spec.submodule_search_locations or [])
    if spec is None or spec.origin is None:
        raise _no_module(target, name)
    return Path(spec.origin)


def _no_module(target: str, name: str) -> RewardError:
    return RewardError(
        f"reward.name {name}: there is no module {target}; install its package, or give the path of a file: "
        "file.py:function"
    )


def _find_function(name: str) -> RawReward:
    target, function_name = _split(name)
    source = _source_of(target, name)
    try:
        module = _import_file(source) if _is_file(target) else importlib.import_module(target)
    except (Exception, SystemExit) as error:  # a user's code, which may raise anything
        where = error_place(error, source)
        raise RewardError(f"reward.name {name}: importing it raised {describe(error)} ({where})") from error
    function = vars(module).get(function_name)
    if function is None:
        own = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        raise RewardError(f"reward.name {name}: {_unknown(function_name, own)} in {source}")
    if not callable(function):
        raise RewardError(
            f"reward.name {name}: {function_name} is of type {type(function).__name__}; wanted a function"
        )
    checked: RawReward = function
    return checked


def _import_file(path: Path) -> ModuleType:
    """Import a file as Python runs a script: its folder comes first where it imports from."""
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    name = f"_reward_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def _check_call(name: str, function: RawReward, options: Mapping[str, Any]) -> None:
    """Refuse options that the function does not take, and functions that need more than they get."""
    try:
        signature = inspect.signature(function)
    except ValueError:
        return  # code in C may not tell
    taken = [
        key
        for key, parameter in list(signature.parameters.items())[2:]
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values())
    for key in options:
        if key not in taken and not takes_any:
            raise RewardError(
                f"reward.options: {_unknown(key, taken)}; {name} is called as {name}{signature}"
            )
    try:
        signature.bind(None, None, **options)
    except TypeError as error:
        raise RewardError(
            f"reward.options: {error}; {name}{signature} gets a problem, a solution and reward.options"
        ) from error


def _unknown(found: str, known: Iterable[str]) -> str:
    names = list(known)
    near = nearest(found, names)
    hint = f"there is {', '.join(names) or 'none'}" if near is None else f"did you mean {near}?"
    return f"unknown name {found!r}; {hint}"


def describe(error: BaseException) -> str:
    """Return an error's type and message, at most 500 characters."""
    message = str(error)
    return f"{type(error).__name__}: {message}"[:500] if message else type(error).__name__


def error_place(error: BaseException, source: Path | None) -> str:
    """Return file and line of the innermost call in `source`; of the innermost call where none is there."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    own = [place for place in frames if source is not None and place[0] == str(source)]
    file, line = (own or frames or [("unknown", 0)])[-1]
    return f"{file}:{line}"
