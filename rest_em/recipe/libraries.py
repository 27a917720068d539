"""What of a recipe only the libraries and the disk can tell: keys of transformers and peft, and files.

`rest_em check` and `rest_em run` ask it; reading a recipe does not, because importing the libraries takes
seconds. Left out: what is in the files (`rest_em.problems`, `rest_em.rewards`).
"""

from __future__ import annotations

import dataclasses
import enum
import types
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any, Literal, get_args, get_origin

from rest_em.errors import RecipeError
from rest_em.recipe.document import shown
from rest_em.recipe.loading import nearest
from rest_em.recipe.owned import OWNED_LORA_KEYS, OWNED_TRAINING_KEYS
from rest_em.recipe.sections import Recipe, TrainingSection
from rest_em.recipe.wanted import alternatives, wanted


def check_library_keys(recipe: Recipe) -> None:
    """Check `training` against the installed transformers' TrainingArguments and `lora` against peft's LoraConfig.

    Imports them, and with them torch, only where the recipe has such keys.

    Raises:
        RecipeError: one line for each unknown key or value of a wrong type.
    """
    lines: list[str] = []
    if recipe.training.model_extra:
        from transformers import TrainingArguments

        theirs = _annotations(TrainingArguments, OWNED_TRAINING_KEYS)
        known = {**theirs, **dict.fromkeys(TrainingSection.model_fields, Any)}
        lines += _wrong_keys(recipe, "training", recipe.training.model_extra, known)
    if recipe.lora:
        from peft import LoraConfig

        lines += _wrong_keys(recipe, "lora", recipe.lora, _annotations(LoraConfig, OWNED_LORA_KEYS))
    if lines:
        raise RecipeError("\n".join(lines))


def _annotations(library_class: Any, owned: Mapping[str, str]) -> dict[str, Any]:
    fields = dataclasses.fields(library_class)
    return {field.name: field.type for field in fields if field.init and field.name not in owned}


def _wrong_keys(
    recipe: Recipe, section: str, values: Mapping[str, Any], known: Mapping[str, Any]
) -> list[str]:
    lines = []
    for key, value in values.items():
        place, name = recipe.place(f"{section}.{key}"), f"{section}.{key}"
        if key not in known:
            near = nearest(key, known)
            hint = "" if near is None else f"; did you mean {near}?"
            lines.append(f"{place}: unknown key {name}{hint}")
        elif not _fits(value, known[key]):
            lines.append(f"{place}: {name} is {shown(value)}; {_wanted(known[key])} is wanted")
    return lines


def _fits(value: Any, annotation: Any) -> bool:
    """Return whether a YAML value can be what a library's annotation says; True where that is hard to say."""
    members = alternatives(annotation)
    choices = [one for one in members if isinstance(one, type) and issubclass(one, enum.Enum)]
    if isinstance(value, str) and choices:
        return any(value in [member.value for member in one] for one in choices)
    return any(_fits_one(value, member) for member in members)


def _fits_one(value: Any, annotation: Any) -> bool:
    origin = get_origin(annotation)
    if origin is Literal:
        # A literal among others stands for a pattern in peft: "pissa_niter_[number of iters]".
        return value in get_args(annotation) or (isinstance(value, str) and "[" in str(annotation))
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if origin is list and isinstance(value, list) and get_args(annotation):
        return all(_fits(one, get_args(annotation)[0]) for one in value)
    if origin is tuple and isinstance(value, list):
        return True
    kind = origin or annotation
    if kind in (bool, str, type(None), list, dict):
        return isinstance(value, kind)
    return annotation is Any


def _wanted(annotation: Any) -> str:
    """As `wanted`, without what a recipe cannot give: objects of Python classes."""
    members = [one for one in alternatives(annotation) if not _is_object(one)]
    return " or ".join(wanted(one) for one in members)


def _is_object(annotation: Any) -> bool:
    plain = (bool, int, float, str, list, dict, tuple, types.NoneType)
    return isinstance(annotation, type) and not issubclass(annotation, (*plain, enum.Enum))


def check_files(recipe: Recipe) -> None:
    """Check that the files and folders that a recipe names are there; hub ids are not looked up.

    Raises:
        RecipeError: one line for each that is missing.
    """
    named = {f"problems.{key}.path": source for key, source in recipe.problems.sources().items()}
    paths = {key: source.path for key, source in named.items() if source.is_file or _is_path(source.path)}
    for where, variant in recipe.prompt.variants().items():
        if variant.examples is not None:
            paths[".".join(map(str, ("prompt", *where, "examples")))] = variant.examples
    reward_file = recipe.reward.name.rpartition(":")[0]
    if reward_file.endswith(".py"):
        paths["reward.name"] = reward_file
    if _is_path(recipe.model.name_or_path):
        paths["model.name_or_path"] = recipe.model.name_or_path
    missing = [
        f"{recipe.place(key)}: {key} is {path}, and there is nothing"
        for key, path in paths.items()
        if not Path(path).exists()
    ]
    if missing:
        raise RecipeError("\n".join(missing))


def _is_path(name: str) -> bool:
    return name.startswith(".") or PurePath(name).is_absolute()
