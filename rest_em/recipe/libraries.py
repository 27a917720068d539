"""What of a recipe only the libraries and the disk can tell: keys of transformers and peft, and files.

`rest_em check` and `rest_em run` ask it; reading a recipe does not, because importing the libraries takes
seconds. Left out: what is in the files (`rest_em.problems`, `rest_em.rewards`).
"""

from __future__ import annotations

import enum
import functools
import importlib.util
import inspect
import json
import operator
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from rest_em.errors import RecipeError
from rest_em.recipe.document import dotted, shown
from rest_em.recipe.loading import is_there, nearest
from rest_em.recipe.owned import OWNED_LORA_KEYS, OWNED_TRAINING_KEYS
from rest_em.recipe.sections import ModelSection, Recipe, TrainingSection
from rest_em.recipe.wanted import alternatives, wanted

_PLAIN = (bool, int, float, str, list, dict, tuple, Literal, types.NoneType)

_ORDERS = ("group_by_length", "random")
"""Of transformers' `train_sampling_strategy`, those that do not depend on the number of ranks."""
_NEED_EVALUATION = ("reduce_lr_on_plateau", "greedy")
"""Of transformers' `lr_scheduler_type`, those that ask for an evaluation within the training."""


def check_library_keys(recipe: Recipe) -> None:
    """Check `training`, `lora` and `quantization` against the library's class that each is for.

    Imports the installed ones, and with them torch, only where the recipe has such keys.

    Raises:
        RecipeError: one line for each unknown key, value of a wrong type or setting that no M-step can use.
    """
    lines: list[str] = []
    if recipe.training.model_extra:
        from transformers import TrainingArguments

        theirs = _annotations(TrainingArguments, OWNED_TRAINING_KEYS)
        known = {**theirs, **dict.fromkeys(TrainingSection.model_fields, Any)}
        lines += _wrong_keys(recipe, "training", recipe.training.model_extra, known)
        lines += _unusable_settings(recipe, recipe.training.model_extra)
        if not lines:
            lines += _unusable_optimizer(recipe, recipe.training.model_extra)
            lines += _unusable_schedule(recipe, recipe.training.model_extra)
    if recipe.lora:
        from peft import LoraConfig

        wrong = [*_wrong_keys(recipe, "lora", recipe.lora, _annotations(LoraConfig, OWNED_LORA_KEYS))]
        lines += wrong or _unusable_adapter(recipe, recipe.lora)
    if recipe.quantization:
        lines += _wrong_quantization(recipe, recipe.quantization)
    if lines:
        raise RecipeError("\n".join(lines))


def _wrong_quantization(recipe: Recipe, values: Mapping[str, Any]) -> Iterator[str]:
    """Hold `quantization` against transformers' BitsAndBytesConfig, which takes any key, and make one."""
    from transformers import BitsAndBytesConfig

    if importlib.util.find_spec("bitsandbytes") is None:
        yield (
            f"{recipe.place('quantization')}: quantization takes bitsandbytes, which is not installed; "
            "pip install 'rest_em[qlora]'"
        )
    known = dict.fromkeys(set(inspect.signature(BitsAndBytesConfig).parameters) - {"kwargs"})
    unknown = [key for key in values if key not in known]
    for key in unknown:
        near = nearest(key, known)
        advice = f"did you mean {near}?" if near else "transformers' BitsAndBytesConfig has none of that name"
        name = f"quantization.{key}"
        yield f"{recipe.place(name)}: unknown key {name}; {advice}"
    if not unknown:
        try:
            BitsAndBytesConfig(**values)  # type: ignore[no-untyped-call]
        except (TypeError, ValueError, AttributeError) as error:
            yield f"{recipe.place('quantization')}: quantization: {' '.join(str(error).split())}"


def _annotations(library_class: type, owned: Mapping[str, str]) -> dict[str, Any]:
    return {name: kind for name, kind in get_type_hints(library_class).items() if name not in owned}


def _wrong_keys(
    recipe: Recipe, section: str, values: Mapping[str, Any], known: Mapping[str, Any]
) -> Iterator[str]:
    library = {"training": "transformers' TrainingArguments", "lora": "peft's LoraConfig"}[section]
    for key, value in values.items():
        name = f"{section}.{key}"
        if key not in known:
            near = nearest(key, known)
            advice = f"{library} has none of that name" if near is None else f"did you mean {near}?"
            yield f"{recipe.place(name)}: unknown key {name}; {advice}"
        else:
            want = _writable(known[key])
            try:
                TypeAdapter(want).validate_json(json.dumps(value), strict=True)
            except ValidationError:
                yield f"{recipe.place(name)}: {name} is {shown(value)}; {wanted(want)} is wanted"


def _unusable_settings(recipe: Recipe, values: Mapping[str, Any]) -> Iterator[str]:
    """Say what transformers takes, or refuses only once the M-step starts, and an M-step cannot use."""
    order, schedule = values.get("train_sampling_strategy"), values.get("lr_scheduler_type")
    warmup = values.get("warmup_steps")
    unusable: dict[str, str] = {}
    if isinstance(order, str) and order not in _ORDERS:
        orders = " or ".join(_ORDERS)
        unusable["train_sampling_strategy"] = f"{orders} is wanted: the same order on any number of ranks"
    if schedule in _NEED_EVALUATION:
        unusable["lr_scheduler_type"] = (
            "it needs evaluations within the training, and policies are evaluated by sampling after it; give "
            "one that needs none, such as cosine"
        )
    if isinstance(warmup, int | float) and warmup < 0:
        unusable["warmup_steps"] = "a number >= 0 is wanted"
    for key, text in unusable.items():
        yield f"{recipe.place(f'training.{key}')}: training.{key} is {shown(values[key])}; {text}"


def _unusable_optimizer(recipe: Recipe, values: Mapping[str, Any]) -> Iterator[str]:
    """Make an AdamW with the settings that are given; every optimiser of the Trainer takes them alike."""
    import torch

    options: dict[str, Callable[[Any], dict[str, Any]]] = {
        "adam_beta1": lambda value: {"betas": (value, 0.999)},
        "adam_beta2": lambda value: {"betas": (0.9, value)},
        "adam_epsilon": lambda value: {"eps": value},
        "weight_decay": lambda value: {"weight_decay": value},
    }
    for key in options.keys() & values.keys():
        try:
            torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], **options[key](values[key]))
        except ValueError as error:
            yield f"{recipe.place(f'training.{key}')}: training.{key} is {shown(values[key])}: {error}"


def _unusable_adapter(recipe: Recipe, values: Mapping[str, Any]) -> Iterator[str]:
    """Make peft's configuration, which refuses some combinations, but not every rank."""
    from peft import LoraConfig

    if values.get("r", 1) < 1:
        yield f"{recipe.place('lora.r')}: lora.r is {shown(values['r'])}; a whole number > 0 is wanted"
    try:
        LoraConfig(task_type="CAUSAL_LM", **values)
    except (TypeError, ValueError) as error:
        yield f"{recipe.place('lora')}: lora: {' '.join(str(error).split())}"


def _unusable_schedule(recipe: Recipe, values: Mapping[str, Any]) -> Iterator[str]:
    """Make the schedule of the learning rate as the Trainer will; some want `lr_scheduler_kwargs`."""
    import torch
    from transformers import get_scheduler

    options = values.get("lr_scheduler_kwargs")
    if "lr_scheduler_type" not in values or not isinstance(options, dict | None):
        return
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=recipe.training.learning_rate)
    try:
        get_scheduler(values["lr_scheduler_type"], optimizer, 0, 10, scheduler_specific_kwargs=options)
    except (TypeError, ValueError) as error:
        name = "training.lr_scheduler_type"
        found = f"{name} is {shown(values['lr_scheduler_type'])}"
        yield f"{recipe.place(name)}: {found}; with these training.lr_scheduler_kwargs it fails: {error}"


def _writable(annotation: Any) -> Any:
    """Return what of a library's annotation YAML can say: plain values and the names in an enumeration."""
    members: list[Any] = []
    has_names = False
    for member in alternatives(annotation):
        if isinstance(member, type) and issubclass(member, enum.Enum):
            members.append(Literal[tuple(one.value for one in member)])
            has_names = True
        elif get_origin(member) is Literal and "[" in "".join(map(str, get_args(member))):
            members.append(str)  # peft: "pissa_niter_[number of iters]" stands for a pattern
        elif member is Any or (get_origin(member) or member) in _PLAIN:
            members.append(member)
    if has_names and str in members:
        members.remove(str)
    members.sort(key=_rank)  # typing caches unions: members come in the order of the first equal one
    return functools.reduce(operator.or_, members) if members else None


def _rank(member: Any) -> int:
    plain = get_origin(member) or member
    return _PLAIN.index(plain) if plain in _PLAIN else len(_PLAIN)


def check_trackers(recipe: Recipe) -> None:
    """Check that the trackers of `tracking.report_to` are installed; nothing is imported.

    Raises:
        RecipeError: one line for each that is not.
    """
    lines = [
        f"{recipe.place(f'tracking.report_to[{number}]')}: tracking.report_to names {name}, which is not "
        f"installed; pip install {name}, or leave it out: metrics.jsonl is written all the same"
        for number, name in enumerate(recipe.tracking.report_to)
        if not _is_installed(name)
    ]
    if lines:
        raise RecipeError("\n".join(lines))


def _is_installed(package: str) -> bool:
    """Say whether a package is there; a folder of its name, as wandb makes them, is none."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def check_files(recipe: Recipe) -> None:
    """Check that the files and folders that a recipe names are there; hub ids are not looked up.

    What a pattern of files matches is found, or missed, where they are read.

    Raises:
        RecipeError: one line for each that is missing.
    """
    named = {f"problems.{key}.path": source for key, source in recipe.problems.sources().items()}
    paths = {
        key: source.path
        for key, source in named.items()
        if (source.is_file or _is_path(source.path)) and not source.is_pattern
    }
    for where, variant in recipe.prompt.variants().items():
        if variant.examples is not None:
            paths[dotted(("prompt", *where, "examples"))] = variant.examples
    for number, part in enumerate(recipe.reward.parts):
        reward_file = (part.function or "").rpartition(":")[0]
        if reward_file.endswith(".py"):
            place = f"reward.rewards[{number}]" if recipe.reward.rewards else "reward"
            paths[f"{place}.function"] = reward_file
    wrong = [
        f"{recipe.place(key)}: {key} is {_on_one_line(path)}, and there is no such file or folder"
        for key, path in paths.items()
        if not is_there(Path(path))
    ]
    wrong += _wrong_model(recipe, "model", recipe.model)
    if recipe.sampling.model is not None:
        wrong += _wrong_model(recipe, "sampling.model", recipe.sampling.model)
    if wrong:
        raise RecipeError("\n".join(wrong))


def _wrong_model(recipe: Recipe, where: str, model: ModelSection) -> Iterator[str]:
    """Say what is wrong with a model, as far as it is a folder."""
    key, name = f"{where}.name_or_path", model.name_or_path
    told = f"{recipe.place(key)}: {key} is {_on_one_line(name)}"
    if is_there(Path(name)):
        if not (Path(name) / "config.json").is_file():
            yield f"{told}, and there is no config.json in it; a Hugging Face checkpoint is wanted"
        if model.revision is not None:
            yield (
                f"{recipe.place(f'{where}.revision')}: {where}.revision is for models of the hub, and "
                f"{key} is a folder; leave it out"
            )
    elif _is_path(name):
        advice = "paths in a recipe begin at its folder, those of --set at the working directory"
        yield (
            f"{told}, and there is no such file or folder ({advice}); "
            f"--set {key}=FOLDER-OR-HUB-ID names another"
        )


def _is_path(name: str) -> bool:
    """Say whether a name cannot be a hub id, which is `name` or `owner/name`."""
    return name.startswith((".", "~")) or PurePath(name).is_absolute() or name.count("/") > 1


def _on_one_line(path: str) -> str:
    """Return a path as a message shows it; some users write a text where a path is wanted."""
    line = " ".join(path.split())
    return line if len(line) <= 200 else f"{line[:197]}..."
