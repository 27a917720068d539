"""What a key of the recipe may hold, in words, from the annotation of its field."""

from __future__ import annotations

import types
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo

_BOUNDS = (
    (annotated_types.Gt, "gt", ">"),
    (annotated_types.Ge, "ge", ">="),
    (annotated_types.Lt, "lt", "<"),
    (annotated_types.Le, "le", "<="),
)
_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    type(None): "null",
    dict: "a section",
    list: "a list",
}


def alternatives(annotation: Any) -> Sequence[Any]:
    """Return the members of a union, or the annotation alone."""
    if get_origin(annotation) in (Union, types.UnionType):
        return get_args(annotation)
    return (annotation,)


def wanted(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """Return what an annotated value may be.

    >>> wanted(Annotated[float, annotated_types.Ge(0)])
    'a number >= 0'
    >>> wanted(tuple[str, ...] | None)
    'a list (each a text) or null'
    """
    *others, last = [_one(member, metadata) for member in alternatives(annotation)]
    return f"{', '.join(others)} or {last}" if others else last


def _one(annotation: Any, metadata: Iterable[Any]) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return wanted(arguments[0], arguments[1:])
    if origin is Literal:
        return _choice([str(one) for one in arguments])
    if origin in (tuple, list):
        return f"a list (each {wanted(arguments[0])})"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"a section ({', '.join(annotation.model_fields)})"
    return f"{_WORDS.get(origin or annotation, 'a value')}{_limits(metadata)}"


def _choice(names: list[str]) -> str:
    return repr(names[0]) if len(names) == 1 else f"one of {', '.join(names)}"


def _limits(metadata: Iterable[Any]) -> str:
    limits = []
    for one in metadata:
        if isinstance(one, FieldInfo):
            return _limits(one.metadata)
        if isinstance(one, annotated_types.MinLen):
            return " that is not empty"
        limits += [f"{sign} {getattr(one, name)}" for kind, name, sign in _BOUNDS if isinstance(one, kind)]
    return f" {' and '.join(limits)}" if limits else ""
