"""From the name of a reward in a recipe to its function, its options bound and its answers' extractor.

A plug-in's code runs on import: only grader processes load rewards, never the process that leads a run.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from rest_em.errors import RewardError, UnscorableError
from rest_em.recipe import nearest
from rest_em.rewards.answers import (
    EXTRACTORS,
    boxed_match,
    by_hand,
    check_line,
    check_notation,
    check_number,
    check_option,
    exact_match,
    number_match,
    option_match,
)
from rest_em.rewards.math_answer import JUDGE, check_gold, math_answer, normalized
from rest_em.rewards.signatures import Call, make_call, plain
from rest_em.rewards.unit_tests import UnitTests, tests_of
from rest_em.storage import file_hash
from rest_em.types import Problem, RewardFunction

if TYPE_CHECKING:
    from rest_em.recipe import RewardPart, RewardSection

GROUP = "rest_em.rewards"
"""The group of entry points in which packages offer rewards by name."""

BUILT_IN: dict[str, tuple[RewardFunction, str]] = {
    "exact_match": (exact_match, "final_answer"),
    "number": (number_match, "number"),
    "boxed": (boxed_match, "boxed"),
    "math_answer": (math_answer, "math"),
    "multiple_choice": (option_match, "option"),
    "by_hand": (by_hand, "none"),
}
"""The built-in rewards by name, each with the extractor of its answers."""
GOLD_CHECKS: dict[str, Callable[[Problem], object]] = {
    "exact_match": check_line,
    "number": check_number,
    "boxed": check_notation,
    "math_answer": check_gold,
    "multiple_choice": check_option,
}
"""What raises UnscorableError for a reference that the reward cannot judge by."""
ALL_EXTRACTORS = {**EXTRACTORS, "math": normalized}
BUILT_IN_NAMES = (*BUILT_IN, "unit_tests")

_WANTED = "a function of your own is reward.function: file.py:function, or package.module:function"


@dataclass(frozen=True, slots=True)
class LoadedPart:
    """One reward that can be called.

    Example:
        LoadedPart("number", make_call("number", number_match), weight=1.0, threshold=1.0)
    """

    name: str
    """As in the recipe."""
    call: Call
    weight: float
    threshold: float
    """A float reward is correct if it is at least this."""
    source: Path | None = None
    """The file of the user's own code, to tell of errors in it."""
    may_be_negative: bool = False
    """Whether it is one of a sum, which as a whole must not be."""


@dataclass(frozen=True, slots=True)
class LoadedReward:
    """The rewards of a recipe that can be called, and how they are combined."""

    parts: tuple[LoadedPart, ...]
    combine: str
    """`sum` or `all`, as in the recipe."""
    threshold: float
    """What a sum must be at least to be correct."""
    extract_answer: Callable[[str], str | None]
    """Finds the answer that votes in maj@k."""
    note: str = ""
    """What people are told before it judges."""


def load_reward(section: RewardSection) -> LoadedReward:
    """Import a recipe's rewards and bind their options.

    Raises:
        RewardError: there is no such reward, its code cannot be imported, or it does not take these options.
    """
    parts, notes = [], []
    for index, part in enumerate(section.parts):
        with _told_with_key(section, index):
            loaded, note = _load_part(part, section)
        parts.append(loaded)
        notes += [note] if note else []
    extractor = ALL_EXTRACTORS[answer_name(section)]
    return LoadedReward(tuple(parts), section.combine, section.threshold, extractor, "; ".join(notes))


@contextlib.contextmanager
def _told_with_key(section: RewardSection, index: int) -> Iterator[None]:
    """Have an error about one of several rewards begin with its own key."""
    try:
        yield
    except RewardError as error:
        if not section.rewards:
            raise
        raise RewardError(str(error).replace("reward.", f"reward.rewards[{index}].", 1)) from error


def _load_part(part: RewardPart, section: RewardSection) -> tuple[LoadedPart, str]:
    """Return a reward that can be called, and what people are told before it is."""
    function, source, options, note = _function_of(part, section), None, part.options, ""
    if isinstance(function, UnitTests):
        options, note = {}, f"isolation of programs: {function.isolation}"
    elif part.name not in BUILT_IN:
        source = _source_file(function)
    call = make_call(
        part.called, function, part.signature, options=options, columns=part.columns,
        batch_size=part.batch_size,
    )  # fmt: skip
    if part.name == "math_answer":
        JUDGE.start()  # so that no solution waits for it
    is_summand = len(section.rewards) > 1 and section.combine == "sum"
    return LoadedPart(part.called, call, part.weight, part.threshold, source, is_summand), note


def _function_of(part: RewardPart, section: RewardSection) -> Callable[..., Any]:
    if part.name not in BUILT_IN_NAMES:
        return _installed(part.name) if part.name else _find_function(part.called)
    for key in ("signature", "batch_size", "columns"):
        if getattr(part, key) != type(part).model_fields[key].default:
            raise RewardError(f"reward.{key}: is for functions of your own, and {part.name} is built in")
    return _unit_tests(part, section) if part.name == "unit_tests" else BUILT_IN[part.name][0]


def _unit_tests(part: RewardPart, section: RewardSection) -> UnitTests:
    """Start a sandbox and return the reward that runs programs in it.

    Raises:
        RewardError: that is not allowed, or the options are wrong, or the host refuses a layer.
    """
    if not section.allow_code_execution:
        raise RewardError(
            "reward.name unit_tests: it runs programs that the model wrote; read docs/sandbox.md and allow "
            "it with reward.allow_code_execution: true"
        )
    own = ("self", "cpu_seconds", "allow_weaker_isolation")
    taken = [name for name in inspect.signature(UnitTests.__init__).parameters if name not in own]
    for key in part.options:
        if key not in taken:
            raise RewardError(f"reward.options: {_unknown(key, taken)}; unit_tests takes {', '.join(taken)}")
    return UnitTests(
        cpu_seconds=section.timeout_seconds,
        allow_weaker_isolation=section.allow_weaker_isolation,
        **part.options,
    )


def call_limit_seconds(section: RewardSection) -> float:
    """Return how long one call may take before its process is killed.

    A function's is `reward.timeout_seconds`, of several rewards their sum. That is a program's own limit in
    `unit_tests`, which ends it, runs it again alone where the machine was busy, and tells why: its process is
    killed only if that fails.
    """
    own = section.timeout_seconds
    return sum(60 + 12 * own if part.name == "unit_tests" else own for part in section.parts)


def is_built_in(section: RewardSection) -> bool:
    """Say whether all of a recipe's rewards are ours."""
    return all(part.name in BUILT_IN_NAMES for part in section.parts)


def answer_name(section: RewardSection) -> str:
    """Return the name of the extractor whose answers vote: the recipe's, or the first built-in reward's.

    Raises:
        RewardError: there is no such extractor.
    """
    if section.answer is not None:
        if section.answer not in ALL_EXTRACTORS:
            raise RewardError(f"reward.answer: {_unknown(section.answer, ALL_EXTRACTORS)}")
        return section.answer
    names = [part.name for part in section.parts if part.name in BUILT_IN]
    if names:
        return BUILT_IN[str(names[0])][1]
    return "none" if any(part.name == "unit_tests" for part in section.parts) else "final_answer"


def same_answer_of(section: RewardSection) -> Callable[[str, str], bool] | None:
    """Return what says whether two answers are one in a vote; None: whether they are written alike."""
    return JUDGE.is_same if answer_name(section) == "math" else None


def refuse_gold(section: RewardSection, problem: Problem) -> str:
    """Say why a problem's reference cannot be judged by, as far as built-in rewards know; else empty."""
    for part in section.parts:
        try:
            if part.name == "unit_tests":
                tests_of(problem, part.options.get("data_set"))
            elif part.name in GOLD_CHECKS:
                GOLD_CHECKS[part.name](problem)
        except UnscorableError as error:
            return str(error)
    return ""


def reward_identity(section: RewardSection) -> dict[str, Any]:
    """Return what verdicts depend on, as a JSON value.

    A function is known by the content of its file, not by where it lies, and one of a package by its version
    too; what that file imports is not looked at. How many graders judge, how many solutions at once, and how
    long they may take, does not matter; but for `unit_tests` a program's time is part of the verdict.

    Raises:
        RewardError: there is no such reward.
    """
    parts = []
    for index, part in enumerate(section.parts):
        with _told_with_key(section, index):
            parts.append(_part_identity(part, section))
    value: dict[str, Any] = {"threshold": section.threshold, "answer": answer_name(section)}
    if not section.rewards:
        return parts[0] | value
    return value | {"combine": section.combine, "rewards": parts}


def _part_identity(part: RewardPart, section: RewardSection) -> dict[str, Any]:
    value: dict[str, Any] = {"name": part.called, "source": None, "options": part.options}
    if part.name in BUILT_IN_NAMES:
        _refuse_namesakes(part.name)
    if section.rewards:
        value |= {"weight": part.weight, "threshold": part.threshold}
    if part.name == "unit_tests":
        return value | {"timeout_seconds": section.timeout_seconds}
    if part.name in BUILT_IN:
        return value
    value |= {"signature": part.signature, "columns": part.columns}
    if part.name is not None:
        entry = _entry_point(part.name)
        version = entry.dist.version if entry.dist else "of no version"
        told = f"reward.name {part.name} (of the package {_package_of(entry)})"
        content = file_hash(_source_of(entry.module, told))
        return value | {"source": f"{_package_of(entry)} {version} {content}"}
    target, function = _split(part.called)
    source = _source_of(target, f"reward.function {part.called}")
    name = f"{source.name if _is_file(target) else target}:{function}"
    return value | {"name": name, "source": file_hash(source)}


def _entry_point(name: str) -> importlib.metadata.EntryPoint:
    """Return the entry point of a package's reward.

    Raises:
        RewardError: there is none, or two, or a package offers one with the name of a built-in reward.
    """
    offered = importlib.metadata.entry_points(group=GROUP)
    _refuse_namesakes(name)
    found = [each for each in offered if each.name == name]
    if len(found) > 1:
        packages = " and ".join(map(_package_of, found))
        raise RewardError(f"reward.name {name}: {packages} both offer it; take one of them out")
    if not found:
        known = [*BUILT_IN_NAMES, *(each.name for each in offered)]
        raise RewardError(f"reward.name: {_unknown(name, known)}; {_WANTED}")
    return found[0]


def _refuse_namesakes(name: str) -> None:
    """Refuse packages that offer a reward with the name of a built-in one, of which one cannot be meant."""
    for each in importlib.metadata.entry_points(group=GROUP):
        if each.name in BUILT_IN_NAMES:
            raise RewardError(
                f"reward.name {name}: the package {_package_of(each)} offers a reward {each.name!r}, which "
                "is the name of a built-in one; take that package out, or have it choose another name"
            )


def _package_of(entry: importlib.metadata.EntryPoint) -> str:
    return entry.dist.name if entry.dist else entry.value


def _installed(name: str) -> Callable[..., Any]:
    """Import a package's reward."""
    entry = _entry_point(name)
    try:
        function = entry.load()
    except (Exception, SystemExit) as error:  # a package's code, which may raise anything
        raise RewardError(
            f"reward.name {name}: importing {entry.value} of {_package_of(entry)} raised {describe(error)}"
        ) from error
    if not callable(function):
        raise RewardError(
            f"reward.name {name}: {entry.value} of {_package_of(entry)} is of type "
            f"{type(function).__name__}; wanted a function"
        )
    checked: Callable[..., Any] = function
    return checked


def _split(name: str) -> tuple[str, str]:
    target, colon, function = name.rpartition(":")
    if not (colon and target and function):
        raise RewardError(f"reward.function {name}: {_WANTED}")
    return target, function


def _is_file(target: str) -> bool:
    return target.endswith(".py")


def _source_of(target: str, told: str) -> Path:
    """Return the file of a plug-in, without running any of its code.

    Args:
        target: a file, or a module.
        told: how messages begin.
    """
    if _is_file(target):
        if not Path(target).is_file():
            raise RewardError(f"{told}: there is no file {target}; a path is taken from the recipe's folder")
        return Path(target)
    search = [str(Path.cwd()), *sys.path]  # graders start with `python -m`, which imports from there
    spec = None
    parts = target.split(".")
    for depth in range(len(parts)):
        spec = importlib.machinery.PathFinder.find_spec(".".join(parts[: depth + 1]), search)
        if spec is None and depth == 0:
            spec = _spec_of_editable(parts[0])
        if spec is None:
            raise _no_module(target, told)
        search = list(spec.submodule_search_locations or [])
    if spec is None or spec.origin is None:
        raise _no_module(target, told)
    return Path(spec.origin)


def _spec_of_editable(package: str) -> importlib.machinery.ModuleSpec | None:
    """Find a package that only a finder of its own knows, as after `pip install --editable`."""
    try:
        return importlib.util.find_spec(package)
    except ValueError:  # a module without a specification, as `__main__`
        return None


def _no_module(target: str, told: str) -> RewardError:
    return RewardError(
        f"{told}: there is no module {target}; install its package, or give the path of a file: "
        "file.py:function"
    )


def _find_function(name: str) -> Callable[..., Any]:
    target, function_name = _split(name)
    source = _source_of(target, f"reward.function {name}")
    try:
        module = _import_file(source) if _is_file(target) else importlib.import_module(target)
    except (Exception, SystemExit) as error:  # a user's code, which may raise anything
        where = error_place(error, source)
        raise RewardError(
            f"reward.function {name}: importing it raised {describe(error)} ({where})"
        ) from error
    function = vars(module).get(function_name)
    if function is None:
        own = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        raise RewardError(f"reward.function {name}: {_unknown(function_name, own)} in {source}")
    if not callable(function):
        raise RewardError(
            f"reward.function {name}: {function_name} is of type {type(function).__name__}; wanted a function"
        )
    checked: Callable[..., Any] = function
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


def _unknown(found: str, known: Iterable[str]) -> str:
    names = list(known)
    near = nearest(found, names)
    hint = f"there is {', '.join(names) or 'none'}" if near is None else f"did you mean {near}?"
    return f"unknown name {found!r}; {hint}"


def _source_file(function: Callable[..., Any]) -> Path | None:
    function = plain(function)
    return Path(function.__code__.co_filename) if inspect.isfunction(function) else None


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
