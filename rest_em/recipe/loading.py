"""A recipe file and the `--set` options over it -> a `Recipe`, or one line for each mistake in them.

Left out: the keys that only transformers and peft know, and the files that a recipe names (`libraries`).
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from rest_em.errors import RecipeError
from rest_em.recipe.document import (
    Document,
    KeyPath,
    Mistake,
    Place,
    apply_options,
    dotted,
    dump,
    leaves,
    read_document,
    shown,
)
from rest_em.recipe.evals import Eval
from rest_em.recipe.owned import OWNED_LORA_KEYS, OWNED_TRAINING_KEYS
from rest_em.recipe.sections import LOCAL_SUFFIXES, ModelSection, Places, Recipe, RewardSection
from rest_em.recipe.wanted import alternatives, wanted

_DATA_KEY = re.compile(r"problems\.((train|validation|test|examples)\.)?path|evaluation\.evals\[\d+\]\.data")
"""Keys of files, folders or hub data sets."""
_FILE_KEY = re.compile(r"prompt\.(base\[\d+\]\.|tuned\.|training\.|teacher\.)?examples")
"""Keys of files."""
_EVAL_KEY = re.compile(r"evaluation\.evals\[\d+\]\.path")
"""Keys of evals: files, or names of those that come with rest_em."""
MODEL_KEYS = ("model.name_or_path", "sampling.model.name_or_path")
"""Keys of models: folders, or hub ids."""
HUB_KEYS = ("name", "split", "revision", "data_files")
"""What of a source of problems is for data sets of the hub."""

Model = TypeVar("Model", bound=BaseModel)


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Paths in the file resolve against its folder, paths in an option against the working directory.

    Args:
        path: a YAML file.
        overrides: `KEY=VALUE` with a dotted key and a YAML value, as `sampling.num_samples=8`; the last wins.

    Raises:
        RecipeError: one line for each mistake: where, what was found and what is wanted.
    """
    document = _read(path, overrides)
    document.mistakes += _owned_keys(document)
    recipe = _validate(document, Recipe)
    places = {key: place.text for key, place in document.places.items()}
    recipe.remember_places(Places({(): document.name, **places}))
    return recipe


def load_eval(path: Path, overrides: Sequence[str] = (), data: str | None = None) -> Eval:
    """Read an eval: a benchmark's problems, prompt, reward, sampling and metrics.

    Paths resolve as those of a recipe.

    Args:
        path: a YAML file.
        overrides: as those of `load_recipe`.
        data: in the place of the eval's hub id: a file with its problems, a folder in which they lie as
            `problems.local` says, or a hub id.

    Raises:
        RecipeError: one line for each mistake.
    """
    document = _read(path, overrides, data)
    problems = document.values.get("problems")
    if isinstance(problems, dict) and not problems.get("path"):
        raise RecipeError(
            f"{document.place(('problems',))}: problems.path is for you to say: give --data FILE, FOLDER or "
            "HUB-ID; the header says of what"
        )
    return _validate(document, Eval)


def _read(path: Path, overrides: Sequence[str], data: str | None = None) -> Document:
    document = read_document(path)
    _spell_out_reward(document)
    apply_options(document, overrides)
    _spell_out_reward(document)
    _resolve_paths(document, path.parent)
    if isinstance(document.values.get("problems"), dict):
        _find_data(document, data)
    return document


def _validate(document: Document, kind: type[Model]) -> Model:
    """Return what a document says, or refuse it with all its mistakes."""
    found: Model | None = None
    try:
        found = kind.model_validate_json(json.dumps(document.values))
    except ValidationError as error:
        told = {mistake.key for mistake in document.mistakes}
        document.mistakes += [one for one in _mistakes(document, error, kind) if one.key not in told]
    refuse(document.mistakes)
    assert found is not None, "pydantic either returns a value or says why not"
    return found


def _find_data(document: Document, data: str | None) -> None:
    """Put what `--data` names in the place of an eval's hub data set."""
    problems = document.values["problems"]
    if data is None:
        return
    place = Place(f"--data {data}", 1)
    path = Path(data).expanduser()
    if is_there(path):
        folder = path.resolve() if path.is_dir() else path.resolve().parent
        problems["folder"] = str(folder)
        problems["path"] = str(_below(folder, problems, place) if path.is_dir() else path.resolve())
        examples = problems.get("examples")
        if isinstance(examples, dict):
            examples["path"] = str(_below(folder, examples, place))
        for section in (problems, examples if isinstance(examples, dict) else {}):
            for key in HUB_KEYS:
                section.pop(key, None)
    else:
        problems["path"] = data
        problems.pop("field", None)
    document.places["problems", "path"] = place


def _below(folder: Path, section: Mapping[str, Any], place: Place) -> Path:
    """Return what of a section's `local` lies in the folder."""
    local = section.get("local")
    names = [one for one in local if isinstance(one, str)] if isinstance(local, list) else []
    for name in names:
        if next(folder.glob(name), None) is not None:
            return folder / name
    lacks = f"there is no {' or '.join(names)} in it" if names else "the eval has no problems.local"
    raise RecipeError(f"{place}: this is a folder, and {lacks}; name the file with the problems")


def _spell_out_reward(document: Document) -> None:
    """Read `reward: number` as `reward: {name: number}`."""
    reward = document.values.get("reward")
    if isinstance(reward, str):
        document.values["reward"] = {"name": reward}
        document.places["reward", "name"] = document.place(("reward",))


class _RewardOnly(BaseModel):
    model_config = ConfigDict(extra="forbid")

    reward: RewardSection


def load_reward_section(
    reward: str, overrides: Sequence[str] = (), given: Mapping[str, tuple[str, Any]] | None = None
) -> RewardSection:
    """Return the section `reward` of a recipe that is not there.

    Args:
        reward: its name, as after `--reward`; a path resolves against the working directory.
        overrides: as those of `load_recipe`, with keys below `reward`.
        given: key of the section -> the option that gives it, for messages, and its value.

    Raises:
        RecipeError: one line for each mistake.
    """
    key = "function" if ":" in reward else "name"
    values: dict[str, tuple[str, Any]] = {key: (f"--reward {reward}", reward), **(given or {})}
    if reward == "unit_tests":  # a recipe says so with a key; who names it on a command line has said it
        values["allow_code_execution"] = f"--reward {reward}", True
    document = Document("--reward", {"reward": {key: value for key, (_, value) in values.items()}})
    for key, (option, _) in values.items():
        document.places["reward", key] = Place(option, 0)
    for option in overrides:
        key = option.partition("=")[0].strip()
        if "=" in option and not key.startswith("reward."):
            raise RecipeError(
                f"--set {option}: {key} is no key of the reward; one as reward.threshold is wanted"
            )
        name = key.removeprefix("reward.")
        if name in values:
            raise RecipeError(f"--set {option}: {values[name][0]} gives {key} already; leave one out")
    apply_options(document, overrides)
    _resolve_paths(document, Path())
    return _validate(document, _RewardOnly).reward


class _ModelOnly(BaseModel):
    model_config = ConfigDict(extra="forbid")

    model: ModelSection


def load_model_section(name_or_path: str, overrides: Sequence[str] = ()) -> ModelSection:
    """Return the section `model` of a recipe that is not there.

    Args:
        name_or_path: a hub id or an absolute path.
        overrides: as those of `load_recipe`, with keys below `model`.

    Raises:
        RecipeError: one line for each mistake.
    """
    document = Document("--set", {"model": {"name_or_path": name_or_path}})
    for option in overrides:
        if option.partition("=")[0].strip() == "model.name_or_path":
            raise RecipeError(f"--set {option}: the model is named already, {name_or_path}; leave one out")
    apply_options(document, overrides)
    return _validate(document, _ModelOnly).model


def _owned_keys(document: Document) -> list[Mistake]:
    mistakes = []
    for section, owned in (("training", OWNED_TRAINING_KEYS), ("lora", OWNED_LORA_KEYS)):
        values = document.values.get(section)
        for key in values if isinstance(values, dict) else ():
            if key in owned:
                place = document.place((section, key))
                text = f"{section}.{key} is rest_em's own; {owned[key]}"
                mistakes.append(Mistake(place, (section, key), text))
    return mistakes


def refuse(mistakes: Iterable[Mistake]) -> None:
    """Raise a `RecipeError` of the mistakes, one line each in the order of the file, if there are any."""
    lines = [str(one) for one in sorted(mistakes, key=lambda one: one.place.order)]
    if lines:
        raise RecipeError("\n".join(dict.fromkeys(lines)))


def nearest(name: str, names: Iterable[str]) -> str | None:
    """Return the name that was probably meant.

    >>> nearest("num_sample", ["num_samples", "seed"])
    'num_samples'
    """
    return next(iter(difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)), None)


def _mistakes(document: Document, error: ValidationError, root: type[BaseModel]) -> list[Mistake]:
    mistakes = []
    for one in error.errors(include_url=False):
        path: KeyPath = one["loc"]
        if one["type"] == "contradiction":
            for below, text in one["ctx"]["all"]:
                key = (*path, *below)
                mistakes.append(Mistake(document.place(key), key, f"{dotted(key)} {text}"))
        elif one["type"] == "default_factory_not_called":
            continue  # the default follows from a key that is wrong, and that is told
        elif one["type"] == "extra_forbidden":
            mistakes.append(Mistake(document.place(path), path, _unknown_key(path, root)))
        else:
            path, want = _field(path, root)
            if one["type"] == "missing":
                text = f"{dotted(path)} is missing; {want} is wanted"
            else:
                text = f"{dotted(path)} is {shown(document.value(path))}; {want} is wanted"
            mistakes.append(Mistake(document.place(path), path, text))
    return mistakes


def _section(path: KeyPath, root: type[BaseModel]) -> type[BaseModel]:
    """Return the model that holds the key at the end of a path."""
    model = root
    for key in path[:-1]:
        if isinstance(key, str):
            model = _model_in(model.model_fields[key].annotation) or model
    return model


def _model_in(annotation: Any) -> type[BaseModel] | None:
    for member in alternatives(annotation):
        if isinstance(member, type) and issubclass(member, BaseModel):
            return member
        for inner in get_args(member):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                return inner
    return None


def _unknown_key(path: KeyPath, root: type[BaseModel]) -> str:
    fields, name = _section(path, root).model_fields, str(path[-1])
    elsewhere = [
        f"{section}.{name}"
        for section, field in root.model_fields.items()
        if (model := _model_in(field.annotation)) is not None and name in model.model_fields
    ]
    near = nearest(name, fields) or next(iter(elsewhere), None)
    if near is None:
        return f"unknown key {dotted(path)}; the keys here are {', '.join(fields)}"
    return f"unknown key {dotted(path)}; did you mean {near}?"


def _field(path: KeyPath, root: type[BaseModel]) -> tuple[KeyPath, str]:
    """Return what is wanted at a path, and the path without pydantic's tags for the members of a union."""
    model = root
    for depth, key in enumerate(path, start=1):
        if isinstance(key, int):
            continue
        field = model.model_fields[key]
        inner = _model_in(field.annotation)
        if inner is None or depth == len(path):
            return path[:depth], wanted(field.annotation, field.metadata)
        model = inner
    return path, wanted(model)


def _resolve_paths(document: Document, folder: Path) -> None:
    """Make the paths of files absolute in place; hub ids and built-in names stay."""
    for holder, key, path in _texts(document.values):
        is_option = document.place(path).text.startswith("--set ")
        holder[key] = _resolved(dotted(path), holder[key], Path() if is_option else folder)


def _texts(values: Any, path: KeyPath = ()) -> Iterator[tuple[Any, Any, KeyPath]]:
    """Yield each text in nested sections and lists as what holds it, its key there, and its path."""
    pairs: Iterable[tuple[Any, Any]] = ()
    if isinstance(values, dict):
        pairs = values.items()
    elif isinstance(values, list):
        pairs = enumerate(values)
    for key, value in pairs:
        if isinstance(value, str):
            yield values, key, (*path, key)
        else:
            yield from _texts(value, (*path, key))


def _resolved(key: str, value: str, folder: Path) -> str:
    file, colon, function = value, "", ""
    if re.fullmatch(r"reward\.(rewards\[\d+\]\.)?function", key):
        file, colon, function = value.rpartition(":")
        is_path = file.endswith(".py")
    elif _FILE_KEY.fullmatch(key):
        is_path = value != ""
    elif _EVAL_KEY.fullmatch(key):
        is_path = value.endswith((".yaml", ".yml"))
    elif key in MODEL_KEYS or _DATA_KEY.fullmatch(key):
        is_data = key.startswith("problems") and value.lower().endswith(LOCAL_SUFFIXES)
        is_path = is_data or value.startswith((".", "/", "~/")) or (value != "" and is_there(folder / value))
    else:
        return value
    if not is_path:
        return value
    try:
        return f"{(folder / Path(file).expanduser()).resolve()}{colon}{function}"
    except (OSError, RuntimeError, ValueError):  # no such user, or no possible name: told as not there
        return value


def files_named(path: Path) -> Mapping[str, Path]:
    """Return the files of problems and worked examples that a recipe or an eval names, as it names them.

    Raises:
        RecipeError: it is no YAML file.
    """
    texts = ((dotted(key), holder[name]) for holder, name, key in _texts(read_document(path).values))
    named = [text for key, text in texts if _DATA_KEY.fullmatch(key) or _FILE_KEY.fullmatch(key)]
    return {text: path.parent / text for text in named if is_there(path.parent / text)}


def is_there(path: Path) -> bool:
    """Say whether a file or folder exists; what cannot be a name of one does not."""
    try:
        return path.exists()
    except (OSError, ValueError):  # too long, or with a character that no name has
        return False


def dump_recipe(recipe: Recipe) -> str:
    """Return the YAML of a recipe with every key spelt out; `load_recipe` reads it back equal."""
    return dump(recipe.model_dump(mode="json"))


def run_name_of(path: Path, recipe: Recipe) -> str:
    """Return the name of the run's folder: `run_name`, or the recipe's path joined by dashes.

    The path counts below the last folder called `recipes`; where there is none, it is the file's name.
    """
    if recipe.run_name is not None:
        return recipe.run_name
    parts = path.absolute().with_suffix("").parts
    below = parts[len(parts) - parts[::-1].index("recipes") :] if "recipes" in parts[:-1] else parts[-1:]
    return "-".join(below)


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return what differs between two recipes as mappings, a line a key, in the new one's order.

    >>> difference({"sampling": {"temperature": 0.7}}, {"sampling": {"temperature": 1.0}})
    ['sampling.temperature: 0.7 -> 1.0']
    """
    before, after = dict(leaves(old)), dict(leaves(new))
    absent = object()
    return [
        f"{key}: {_or_absent(before, key)} -> {_or_absent(after, key)}"
        for key in [*after, *(key for key in before if key not in after)]
        if before.get(key, absent) != after.get(key, absent)
    ]


def _or_absent(values: Mapping[str, Any], key: str) -> str:
    return shown(values[key]) if key in values else "absent"
