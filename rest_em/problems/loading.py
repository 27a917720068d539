"""Rows -> `Problem`s with rendered prompts, and the sets of them that are kept apart."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from typing import Any, NoReturn

from rest_em.errors import ProblemError
from rest_em.problems.prompts import Prompt, Texts, resolve_variant
from rest_em.problems.rows import Row, column_of, row_hash
from rest_em.recipe import ProblemsSection, PromptSection, PromptVariant
from rest_em.types import Messages, Problem


def load_problems(
    rows: Sequence[Row], section: ProblemsSection, prompt: PromptSection, variant: PromptVariant
) -> tuple[Problem, ...]:
    """Return rows as problems, in their order, their prompts rendered with one variant of the prompt.

    Raises:
        ProblemError: a column is missing, an id comes twice, or the prompt does not render.
    """
    render = Prompt(prompt, resolve_variant(prompt, variant))
    places: dict[str, str] = {}
    problems = []
    for row in rows:
        identity = _id(row, section)
        if identity in places:
            _refuse_twice(row, places[identity], section)
        places[identity] = row.place
        problems.append(
            Problem(
                id=identity,
                prompt=render(row),
                reference=reference_of(row, section.reference, "problems.reference"),
                metadata=row.columns,
            )
        )
    return tuple(problems)


def human_solutions_of(
    rows: Sequence[Row], section: ProblemsSection, prompt: PromptSection, ids: Collection[str]
) -> dict[str, str]:
    """Return by id the solutions that people wrote, as the prompt's worked examples show theirs.

    Args:
        ids: of the problems that need one; other rows are passed over.

    Raises:
        ProblemError: a row has none.
    """
    texts, solution = Texts(), section.solution or prompt.solution
    key = "prompt.solution" if section.solution is None else "problems.solution"
    found = {}
    for row in rows:
        identity = _id(row, section)
        if identity in ids:
            try:
                found[identity] = texts.solution(solution, row, key)
            except ProblemError as error:
                raise ProblemError(
                    f"{error}; selection.human_solutions wants one of every training problem: write it "
                    "there, leave the row out, or say with problems.solution how the columns make one"
                ) from error
    return found


def _id(row: Row, section: ProblemsSection) -> str:
    if section.id is None:
        return row_hash(row.columns)
    return id_of(row, section.id, "problems.id")


def id_of(row: Row, column: str, key: str) -> str:
    """Return a problem's id.

    Args:
        key: what names the column, for messages.

    Raises:
        ProblemError: there is no such column, or it holds no id.
    """
    value = column_of(row, column, key)
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise ProblemError(
            f"{row.place}: the id in column {column!r} is {value!r}; a text or whole number is wanted"
        )
    return str(value)


def _refuse_twice(row: Row, first: str, section: ProblemsSection) -> NoReturn:
    if section.id is None:
        raise ProblemError(f"{row.place}: the same row as {first}; leave one out")
    shown = row.columns[section.id]
    raise ProblemError(f"{row.place}: the id {shown!r} is given twice, first at {first}; ids must be unique")


def reference_of(row: Row, column: str, key: str) -> Any:
    """Return a problem's reference; `key` is what names the column, for messages.

    Raises:
        ProblemError: there is no such column, or it is empty.
    """
    value = column_of(row, column, key)
    if value is None or value == "":
        raise ProblemError(f"{row.place}: the reference in column {column!r} is empty")
    return value


def split_validation(
    problems: Sequence[Problem], fraction: float
) -> tuple[tuple[Problem, ...], tuple[Problem, ...]]:
    """Return (train, validation), in order; a problem's side depends on its id alone, whatever the others.

    Only where a side would be empty, the nearest problem changes over; a single problem is train's.
    """
    if len(problems) < 2:
        return tuple(problems), ()
    positions = {problem.id: _position(problem.id) for problem in problems}
    lowest, highest = min(positions.values()), max(positions.values())
    chosen = {key for key, at in positions.items() if (at < fraction or at == lowest) and at != highest}
    train = tuple(problem for problem in problems if problem.id not in chosen)
    return train, tuple(problem for problem in problems if problem.id in chosen)


def _position(identity: str) -> float:
    """Return a number in [0, 1) that is spread evenly over ids."""
    digest = hashlib.sha256(f"validation:{identity}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def check_disjoint(train: Sequence[Problem], validation: Sequence[Problem], test: Sequence[Problem]) -> None:
    """Check that no problem is in two of the sets, by id and by prompt.

    Raises:
        ProblemError: some are; it names the first and how many there are.
    """
    sets = {"train": train, "validation": validation, "test": test}
    for one, other in (("train", "test"), ("validation", "test"), ("train", "validation")):
        ids = {problem.id for problem in sets[one]}
        prompts = {_text_of(problem.prompt): problem.id for problem in sets[one]}
        shared = [
            problem for problem in sets[other] if problem.id in ids or _text_of(problem.prompt) in prompts
        ]
        if shared:
            first = shared[0]
            same = prompts.get(_text_of(first.prompt))
            what = f"has the prompt of {one} {same!r}" if same is not None else f"has the id of one of {one}"
            raise ProblemError(
                f"problems.{other}: {len(shared)} of {len(sets[other])} problems are also in {one}, "
                f"first {first.id!r}, which {what}; the sets must be disjoint"
            )


def check_not_shown(
    examples: Sequence[tuple[str | Messages, str]], validation: Sequence[Problem], test: Sequence[Problem]
) -> None:
    """Check that no problem to decide on or to measure on is a worked example of the prompt.

    Args:
        examples: as `example_prompts` returns them.
        validation: rendered without examples, as `test` is.

    Raises:
        ProblemError: some are; it names the first and how many there are.
    """
    places = {_text_of(prompt): place for prompt, place in examples}
    for name, problems in (("test", test), ("validation", validation)):
        shown = [problem for problem in problems if _text_of(problem.prompt) in places]
        if shown:
            raise ProblemError(
                f"problems.{name}: {len(shown)} of {len(problems)} problems are also worked examples of the "
                f"prompt, first {shown[0].id!r} at {places[_text_of(shown[0].prompt)]}; what is shown solved "
                "measures nothing: take it out of one of them"
            )


def _text_of(prompt: str | Messages) -> str:
    return prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True)
