"""The recipes and evals that come with rest_em."""

from __future__ import annotations

from pathlib import Path

from rest_em.errors import RecipeError


def shipped(kind: str) -> Path:
    """Return where the shipped `recipes` or `evals` are: inside the installed package, or in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / kind
    return installed if installed.is_dir() else package.parent / kind


def find_eval(name: str) -> Path:
    """Return the file of an eval: a path, or the name of one that comes with rest_em.

    Raises:
        RecipeError: there is neither.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        return path
    folder = shipped("evals")
    if not (folder / f"{name}.yaml").is_file():
        names = ", ".join(sorted(one.stem for one in folder.glob("*.yaml")))
        raise RecipeError(f"{name}: no such eval; name a YAML file, or one of {names}")
    return folder / f"{name}.yaml"
