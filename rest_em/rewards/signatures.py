"""How a reward is called: the signatures that a recipe can name, sync or async, one solution or several.

    rest_em    reward(problem, solution), or lists of both where the recipe gives a batch_size
    trl        reward(prompts, completions, **columns): lists; TRL 0.26, GRPOTrainer
    verl       compute_score(data_source, solution_str, ground_truth, extra_info), or plurals; verl 0.9
    openrlhf   reward_func(queries, prompts, labels): lists; OpenRLHF 0.11

An async function of rest_em's or verl's signature judges one solution a call, several of them at a time. What
a call gives is a raw value for each solution, or the exception that stands for it; `worker` reads them.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rest_em.errors import RewardError
from rest_em.types import Messages, Problem, Solution

Task = tuple[Problem, Solution]
Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional arguments and keywords."""

DEFAULT_BATCH_SIZE = 16
"""Solutions at once for a function that takes lists or is async, where the recipe does not say."""
ALWAYS_LISTS = ("trl", "openrlhf")


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

    def __call__(self, tasks: Sequence[Task]) -> list[object]:
        """Return a raw reward for each solution, or the exception that the function raised for it.

        A call on several solutions that fails, in whole or for one of them, is made again for each alone, so
        that one bad solution costs only itself.
        """
        if not self.takes_lists and self.is_async:
            return self._gathered(tasks)
        if self.takes_lists and len(tasks) > 1:
            try:
                values = self._listed(tasks)
            except BaseException:  # a user's code; what is wrong shows when each is alone
                values = []
            if len(values) == len(tasks):
                return values
        return [self._alone(task) for task in tasks]

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
            values = self._listed([task])
            if len(values) == 1:
                return values[0]
            raise ValueError(f"returned {len(values)} rewards for 1 solution")
        except BaseException as error:  # a user's code, which may raise anything
            return error

    def _gathered(self, tasks: Sequence[Task]) -> list[object]:
        async def one(task: Task) -> object:
            return self._read(await self._called([task]))

        async def all_of_them() -> list[object]:
            return await asyncio.gather(*map(one, tasks), return_exceptions=True)

        try:
            found: list[object] = self._loop.run(all_of_them())
        except BaseException as error:
            if len(tasks) == 1:
                return [error]
            return [value for task in tasks for value in self._gathered([task])]
        return found

    def _listed(self, tasks: Sequence[Task]) -> list[object]:
        return [self._read(one) for one in _as_list(self._finished(self._called(tasks)), len(tasks))]

    def _read(self, value: object) -> object:
        """Return the reward of what was returned for one solution; verl's functions may return more."""
        if self.signature != "verl" or not isinstance(value, Mapping):
            return value
        if "score" not in value:
            raise ValueError(f"returned a dictionary with {', '.join(map(str, value))}, without a score")
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
    call.takes_lists = signature in ALWAYS_LISTS or (call.batch_size > 1 and not call.is_async)
    if batch_size is None and (call.takes_lists or call.is_async):
        call.batch_size = DEFAULT_BATCH_SIZE
    if call.columns and signature != "trl":
        raise RewardError(
            f"reward.columns: {name} has the signature {signature}, which gets no columns; leave it out"
        )
    _check_parameters(call)
    return call


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
            raise RewardError(f"{called}, and {wanted}: it does not take completions")
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
    each = [
        (problem.metadata.get("data_source"), solution.text, problem.reference, dict(problem.metadata))
        for problem, solution in tasks
    ]
    columns = [list(column) for column in zip(*each, strict=True)]
    values = columns if call.takes_lists else [column[0] for column in columns]
    return (), dict(zip(_NAMES["verl", call.takes_lists], values, strict=True))


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
            raise LookupError(f"reward.columns: the problems have no column {column!r}; they have {names}")
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
        raise LookupError(
            f"wants a column {missing[0]!r}, and the problems have {', '.join(names)}; "
            f"reward.columns: {{{missing[0]}: COLUMN}} names another"
        )
    if not any(one.kind is one.VAR_KEYWORD for one in parameters):
        keywords = {one.name: keywords[one.name] for one in parameters if one.name in keywords}
    return (), keywords


_ARGUMENTS: dict[str, Callable[[Call, Sequence[Task]], Arguments]] = {
    "rest_em": _own,
    "trl": _trl,
    "verl": _verl,
    "openrlhf": _openrlhf,
}
_NAMES: dict[tuple[str, bool], tuple[str, ...]] = {
    ("rest_em", False): ("problem", "solution"),
    ("rest_em", True): ("problems", "solutions"),
    ("trl", True): ("prompts", "completions", "completion_ids", "trainer_state"),
    ("verl", False): ("data_source", "solution_str", "ground_truth", "extra_info"),
    ("verl", True): ("data_sources", "solution_strs", "ground_truths", "extra_infos"),
    ("openrlhf", True): ("queries", "prompts", "labels"),
}
"""What a signature's parameters are called, of one solution and of lists."""


def _as_messages(prompt: str | Messages) -> Any:
    return prompt if isinstance(prompt, str) else [dict(message) for message in prompt]


def _as_text(prompt: str | Messages) -> str:
    """Return a prompt as one text; of a chat, whose template is the sampler's, its messages' contents."""
    return prompt if isinstance(prompt, str) else "\n".join(message["content"] for message in prompt)


def _as_list(value: Any, size: int) -> list[object]:
    """Return what a function of lists returned, one a solution: a list, array, or OpenRLHF's dictionary."""
    if isinstance(value, Mapping):
        if "rewards" not in value:
            raise ValueError(f"returned a dictionary with {', '.join(map(str, value))}, without rewards")
        value = value["rewards"]
    if _is_array(value):
        value = value.reshape(-1).tolist()
    if isinstance(value, list | tuple):
        if len(value) == size:
            return list(value)
        raise ValueError(f"returned {len(value)} rewards for {size} solutions")
    raise TypeError(f"returned a value of type {type(value).__name__}; a list of rewards is wanted")


def _is_array(value: object) -> bool:
    """Say whether a value is an array of numpy's or a tensor of torch's, without importing either."""
    kinds = [
        vars(sys.modules[module])[name]
        for module, name in (("numpy", "ndarray"), ("torch", "Tensor"))
        if module in sys.modules and name in vars(sys.modules[module])
    ]
    return isinstance(value, tuple(kinds))


def plain(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function in which a partial or wrapped one does its work."""
    while isinstance(function, functools.partial):
        function = function.func
    unwrapped: Callable[..., Any] = inspect.unwrap(function)
    return unwrapped
