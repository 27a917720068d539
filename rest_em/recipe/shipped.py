"""The recipes and evals that come with rest_em."""

from __future__ import annotations

from pathlib import Path

from rest_em.errors import RecipeError
from rest_em.recipe.loading import files_named


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
    return find_shipped("evals", name, "name a YAML file, or one of")


def find_shipped(kind: str, name: str, wanted: str = "there are:") -> Path:
    """Return the file of one of the shipped `recipes` or `evals`.

    Args:
        kind: `recipes` or `evals`.
        name: its path below their folder, without the suffix.
        wanted: what is told before the names that there are.

    Raises:
        RecipeError: there is none of the name.
    """
    folder = shipped(kind)
    path = folder / f"{name}.yaml"
    if not path.is_file():
        names = sorted(str(one.relative_to(folder).with_suffix("")) for one in folder.rglob("*.yaml"))
        raise RecipeError(f"{name}: no such {kind.removesuffix('s')}; {wanted} {', '.join(names)}")
    return path


def copy_eval(name: str, target: Path) -> Path:
    """Copy a shipped eval, and beside it the files that it names, into a folder; return its own path.

    Raises:
        RecipeError: there is none of the name, or the folder has another file where one is to be.
    """
    source = find_shipped("evals", name)
    text = source.read_text(encoding="utf-8")
    contents: dict[Path, bytes] = {}
    for written, file in files_named(source).items():
        # From elsewhere, as of a recipe, comes a name like test.jsonl, which several may have.
        own = file.name if file.parent == source.parent else f"{name}_{file.name}"
        text = text.replace(written, own)
        contents[target / own] = file.read_bytes()
    copied = target / source.name
    try:
        for path, content in {**contents, copied: text.encode()}.items():
            if path.exists() and (path == copied or path.read_bytes() != content):
                raise RecipeError(f"{path}: exists already; name another folder, or move it away")
        target.mkdir(parents=True, exist_ok=True)
        for path, content in {**contents, copied: text.encode()}.items():
            path.write_bytes(content)
    except OSError as error:
        raise RecipeError(f"{target}: cannot be made: {error.strerror or error}") from error
    return copied
