"""How a reward is called: the signatures that a recipe can name, sync or async, one solution or several.

    rest_em    reward(problem, solution), or reward(problems, solutions): lists
    trl        reward(prompts, completions, **columns): lists; TRL 1.16, GRPOTrainer._calculate_rewards
    verl       compute_score(data_source, solution_str, ground_truth, extra_info), or plurals; verl 0.9
    openrlhf   reward_func(queries, prompts, labels): lists; OpenRLHF 0.11

An async function of one solution is called for several of them at a time. What a call gives is a raw value
for each solution, or the exception that stands for it; `worker` reads them.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import math
import numbers
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rest_em.errors import RewardError, UnscorableError
from rest_em.types import Messages, Outcome, Problem, Solution

Task = tuple[Problem, Solution]
Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional arguments and keywords."""

DEFAULT_BATCH_SIZE = 16
"""Solutions at once for a function that takes lists or is async, where the recipe does not say."""
ALWAYS_LISTS = ("trl", "openrlhf")


class MisfitError(ValueError):
    """Stands for a reward that wants what there is not, or that returns what is no reward."""


@dataclass(slots=True)
class Call:
    """A reward's function, ready to be called on some solutions.

    Example:
        Call("my.py:reward", reward, "trl", options={}, columns={"solution": "answer"}, batch_size=16)
    """

    name: str
    function: Callable[..., Any]
    signature: str
    options: Mapping[str, Any]
    """Keyword arguments of every call."""
    columns: Mapping[str, str]
    """Parameter -> the column of the problems that it gets."""
    batch_size: int
    """The most solutions at once."""
    takes_lists: bool
    """Whether one call judges several solutions."""
    _runner: asyncio.Runner | None = None

    def __call__(self, tasks: Sequence[Task], begin: Callable[[], None] = lambda: None) -> list[object]:
        """Return a raw reward for each solution, or the exception that the function raised for it.

        A call on several solutions that fails is made again for each alone, and for one whose reward in it is
        none, so that one bad solution costs only itself.

        Args:
            tasks: what to judge.
            begin: called before each call of the function, whose time begins then.
        """
        if not self.takes_lists and self.is_async:
            begin()
            return self._gathered(tasks)
        values: list[object] = [None] * len(tasks)
        if self.takes_lists and len(tasks) > 1:
            begin()
            with contextlib.suppress(BaseException):  # a user's code; what is wrong shows when each is alone
                values = self._listed(tasks)
        for place, task in enumerate(tasks):
            if not self._says_something(values[place]):
                begin()
                values[place] = self._alone(task)
        return values

    def _says_something(self, value: object) -> bool:
        is_told = isinstance(value, UnscorableError | Outcome)
        return is_told or finite(value) is not None

    @property
    def is_async(self) -> bool:
        """Whether a call has to be awaited."""
        function = inspect.unwrap(self.function)
        called = function if inspect.isroutine(function) else type(function).__call__
        return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(called)

    def _alone(self, task: Task) -> object:
        try:
            if not self.takes_lists:
                return self._read(self._finished(self._called([task])))
            return self._listed([task])[0]
        except BaseException as error:  # a user's code, which may raise anything
            return error

    def _gathered(self, tasks: Sequence[Task]) -> list[object]:
        async def one(task: Task) -> object:
            try:
                return self._read(await self._called([task]))
            except BaseException as error:  # SystemExit too, which would end the event loop under the others
                return error

        async def all_of_them() -> list[object]:
            return list(await asyncio.gather(*map(one, tasks)))

        return self._loop.run(all_of_them())

    def _listed(self, tasks: Sequence[Task]) -> list[object]:
        return [self._read(one) for one in _as_list(self._finished(self._called(tasks)), len(tasks))]

    def _read(self, value: object) -> object:
        """Return the reward of what was returned for one solution; verl's functions may return more.

        None is TRL's word for a reward that does not apply.
        """
        if self.signature == "trl" and value is None:
            return UnscorableError(f"the reward {self.name} does not apply: it returned None")
        if self.signature != "verl" or not isinstance(value, Mapping):
            return value
        if "score" not in value:
            raise MisfitError(f"returned a dictionary with {', '.join(map(str, value))}, without a score")
        return value["score"]

    def _called(self, tasks: Sequence[Task]) -> Any:
        positional, keywords = _ARGUMENTS[self.signature](self, tasks)
        return self.function(*positional, **keywords, **self.options)

    def _finished(self, value: Any) -> Any:
        if not inspect.isawaitable(value):
            return value

        async def awaited() -> Any:
            return await value

        return self._loop.run(awaited())

    @property
    def _loop(self) -> asyncio.Runner:
        """One event loop for all calls, so that what a reward keeps open between them stays usable."""
        if self._runner is None:
            self._runner = asyncio.Runner()
        return self._runner


def make_call(
    name: str,
    function: Callable[..., Any],
    signature: str = "rest_em",
    *,
    options: Mapping[str, Any] | None = None,
    columns: Mapping[str, str] | None = None,
    batch_size: int | None = None,
) -> Call:
    """Return a function as the signature has it called.

    Args:
        name: as in the recipe, for messages.
        function: sync or async.
        signature: a key of the table above.
        options: `reward.options`.
        columns: `reward.columns`.
        batch_size: `reward.batch_size`; None is 16 where the function takes lists or is async, else 1.

    Raises:
        RewardError: the function does not take what the signature gives, or these options.
    """
    call = Call(name, function, signature, options or {}, columns or {}, batch_size or 1, takes_lists=False)
    call.takes_lists = _takes_lists(call)
    if batch_size is None and (call.takes_lists or call.is_async):
        call.batch_size = DEFAULT_BATCH_SIZE
    if call.columns and signature != "trl":
        raise RewardError(
            f"reward.columns: {name} has the signature {signature}, which gets no columns; leave it out"
        )
    _check_parameters(call)
    return call


def _takes_lists(call: Call) -> bool:
    """Say whether a function judges several solutions a call: by its signature, or its parameters' names.

    Raises:
        RewardError: it judges one, and the recipe wants more.
    """
    if call.signature in ALWAYS_LISTS:
        return True
    try:
        names = list(inspect.signature(call.function).parameters)
    except ValueError:
        names = []  # code in C may not tell
    if set(_NAMES[call.signature, True][:2]) <= set(names):
        return True
    if call.batch_size > 1 and not call.is_async:
        if names[:2] == ["problem", "solution"] or "solution_str" in names:
            raise RewardError(
                f"reward.batch_size: is {call.batch_size}, and {call.name} judges one solution a call; "
                "leave it out, or make the function async, or one of lists"
            )
        return True
    return False


def _check_parameters(call: Call) -> None:
    """Refuse options that a function does not take, and functions that do not fit their signature."""
    try:
        signature = inspect.signature(call.function)
    except ValueError:
        return  # code in C may not tell
    given = _NAMES[call.signature, call.takes_lists]
    parameters = list(signature.parameters.values())
    takes_any = any(one.kind is one.VAR_KEYWORD for one in parameters)
    named = [one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
    own = [name for place, name in enumerate(named) if name not in given and not (
        call.signature == "rest_em" and place < 2
    )]  # fmt: skip
    called = f"{call.name} is called as {call.name}{signature}"
    for key in call.options:
        if key not in own and not takes_any:
            raise RewardError(f"reward.options: unknown name {key!r}; {called}")
    wanted = f"reward.signature {call.signature} calls it with {', '.join(given)}"
    if call.signature == "trl":  # gets the columns of the problems too, which are not known here
        if "completions" not in named and not takes_any:
            raise RewardError(f"reward.signature: {called}, and {wanted}: it does not take completions")
        return
    positional = (None,) * len(given) if call.signature != "verl" else ()
    keywords = dict.fromkeys(given) if call.signature == "verl" else {}
    try:
        signature.bind(*positional, **keywords, **call.options)
    except TypeError as error:
        raise RewardError(f"reward.options: {error}; {called}, and {wanted} and reward.options") from error


def _own(call: Call, tasks: Sequence[Task]) -> Arguments:
    if call.takes_lists:
        return ([problem for problem, _ in tasks], [solution for _, solution in tasks]), {}
    return tasks[0], {}


def _verl(call: Call, tasks: Sequence[Task]) -> Arguments:
    """Give verl's own rows, with columns `reward_model` and `extra_info`, as verl does."""
    each = [
        (
            problem.metadata.get("data_source"),
            solution.text,
            _ground_truth(problem.reference),
            problem.metadata.get("extra_info", dict(problem.metadata)),
        )
        for problem, solution in tasks
    ]
    columns = [list(column) for column in zip(*each, strict=True)]
    values = columns if call.takes_lists else [column[0] for column in columns]
    return (), dict(zip(_NAMES["verl", call.takes_lists], values, strict=True))


def _ground_truth(reference: object) -> object:
    """Return what a reference says; in verl's column `reward_model` it is one of several keys."""
    if isinstance(reference, Mapping) and "ground_truth" in reference:
        return reference["ground_truth"]
    return reference


def _openrlhf(call: Call, tasks: Sequence[Task]) -> Arguments:
    prompts = [_as_text(problem.prompt) for problem, _ in tasks]
    queries = [prompt + solution.text for prompt, (_, solution) in zip(prompts, tasks, strict=True)]
    return (queries, prompts, [problem.reference for problem, _ in tasks]), {}


def _trl(call: Call, tasks: Sequence[Task]) -> Arguments:
    names = list(dict.fromkeys(name for problem, _ in tasks for name in problem.metadata))
    keywords: dict[str, Any] = {
        name: [problem.metadata.get(name) for problem, _ in tasks]
        for name in names
        if name not in ("prompt", "completion", "completion_ids", *call.options)
    }
    for parameter, column in call.columns.items():
        if column not in names:
            there = ", ".join(names)
            raise MisfitError(f"wants a column {column!r} (reward.columns), and the problems have {there}")
        keywords[parameter] = [problem.metadata[column] for problem, _ in tasks]
    keywords |= {
        "prompts": [_as_messages(problem.prompt) for problem, _ in tasks],
        "completions": [
            solution.text
            if isinstance(problem.prompt, str)
            else [{"role": "assistant", "content": solution.text}]
            for problem, solution in tasks
        ],
        "completion_ids": [list(solution.token_ids) for _, solution in tasks],
        "trainer_state": None,
        "log_extra": _drop,
        "log_metric": _drop,
    }
    parameters = inspect.signature(call.function).parameters.values()
    missing = [
        one.name
        for one in parameters
        if one.default is one.empty
        and one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)
        and one.name not in keywords
        and one.name not in call.options
    ]
    if missing:
        raise MisfitError(
            f"wants a column {missing[0]!r}, and the problems have {', '.join(names)}; "
            f"reward.columns: {{{missing[0]}: COLUMN}} names another"
        )
    if not any(one.kind is one.VAR_KEYWORD for one in parameters):
        keywords = {one.name: keywords[one.name] for one in parameters if one.name in keywords}
    return (), keywords


def _drop(*_: object) -> None:
    """Take what TRL's trainer would log beside its completions."""


_ARGUMENTS: dict[str, Callable[[Call, Sequence[Task]], Arguments]] = {
    "rest_em": _own,
    "trl": _trl,
    "verl": _verl,
    "openrlhf": _openrlhf,
}
_NAMES: dict[tuple[str, bool], tuple[str, ...]] = {
    ("rest_em", False): ("problem", "solution"),
    ("rest_em", True): ("problems", "solutions"),
    ("trl", True): (
        "prompts",
        "completions",
        "completion_ids",
        "trainer_state",
        "log_extra",
        "log_metric",
    ),
    ("verl", False): ("data_source", "solution_str", "ground_truth", "extra_info"),
    ("verl", True): ("data_sources", "solution_strs", "ground_truths", "extra_infos"),
    ("openrlhf", True): ("queries", "prompts", "labels"),
}
"""What a signature's parameters are called, of one solution and of lists."""


_TENSORS = (("torch", "Tensor"),)
_ARRAYS = (("numpy", "ndarray"), *_TENSORS)
_SCALARS = (("numpy", "generic"), *_TENSORS)


def _as_messages(prompt: str | Messages) -> Any:
    return prompt if isinstance(prompt, str) else [dict(message) for message in prompt]


def _as_text(prompt: str | Messages) -> str:
    """Return a prompt as one text; of a chat, whose template is the sampler's, its messages' contents."""
    return prompt if isinstance(prompt, str) else "\n".join(message["content"] for message in prompt)


def _as_list(value: Any, size: int) -> list[object]:
    """Return what a function of lists returned, one a solution: a list, array, or OpenRLHF's dictionary."""
    if isinstance(value, Mapping):
        if "rewards" not in value:
            raise MisfitError(f"returned a dictionary with {', '.join(map(str, value))}, without rewards")
        value = value["rewards"]
    if _is_array(value):
        value = value.reshape(-1).tolist()
    if isinstance(value, list | tuple):
        if len(value) == size:
            return list(value)
        raise MisfitError(f"returned {len(value)} rewards for {size} solutions")
    raise MisfitError(f"returned a value of type {type(value).__name__}; a list of rewards is wanted")


def _is_array(value: object, kinds: Sequence[tuple[str, str]] = _ARRAYS) -> bool:
    """Say whether a value is an array of numpy's or a tensor of torch's, without importing either."""
    known = [
        vars(sys.modules[module])[name]
        for module, name in kinds
        if module in sys.modules and name in vars(sys.modules[module])
    ]
    return isinstance(value, tuple(known))


def plain_number(value: object) -> object:
    """Return a scalar of numpy's, or a tensor of one element, as Python's own; anything else as it is."""
    if type(value) in (bool, int, float, type(None)) or not _is_array(value, _SCALARS):
        return value
    scalar: Any = value
    if _is_array(value, _TENSORS) and scalar.numel() != 1:
        return value
    number: object = scalar.item()
    return number


def finite(value: object) -> float | None:
    """Return what is a finite number, perhaps of numpy's or torch's, as a float; None for all else."""
    value = plain_number(value)
    if not isinstance(value, numbers.Real):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def plain(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function in which a partial or wrapped one does its work."""
    while isinstance(function, functools.partial):
        function = function.func
    unwrapped: Callable[..., Any] = inspect.unwrap(function)
    return unwrapped
