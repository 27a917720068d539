"""The tables of docs/recipes.md; `.venv/bin/python tests/recipe_reference.py` writes them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from rest_em.recipe import EvalChoice, ProblemSource, PromptVariant, Recipe
from rest_em.recipe.wanted import alternatives, wanted

PAGE = Path(__file__).parent.parent / "docs" / "recipes.md"
BEGIN, END = "<!-- begin of the tables -->\n", "<!-- end of the tables -->\n"


def render() -> str:
    """Return a table for the top of a recipe and for each section."""
    sections = {
        name: field.annotation
        for name, field in Recipe.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    }
    tables = [_table("The top of a recipe", Recipe)]
    for name, section in sections.items():
        tables.append(_table(f"`{name}`", section))
        if name == "problems":
            tables.append(_table("`problems.train`, `problems.validation`, `problems.test`", ProblemSource))
        if name == "prompt":
            tables.append(_table("`prompt.base[...]`, `prompt.tuned`, `prompt.training`", PromptVariant))
        if name == "evaluation":
            tables.append(_table("`evaluation.evals[...]`", EvalChoice))
    return "\n".join(tables)


def _table(title: str, section: type[BaseModel]) -> str:
    rows = [_row(name, field) for name, field in section.model_fields.items()]
    text = re.sub(r"\bNone\b", "null", " ".join((section.__doc__ or "").split()))
    return "\n".join(
        [f"### {title}", "", text, "", "| key | value | default | |", "|---|---|---|---|", *rows, ""]
    )


def _row(name: str, field: FieldInfo) -> str:
    about = re.sub(r"\bNone\b", "null", " ".join((field.description or "").split()))
    return f"| `{name}` | {_value(field)} | {_default(field)} | {about} |"


def _value(field: FieldInfo) -> str:
    members = [*alternatives(field.annotation), *get_args(field.annotation)]
    if any(isinstance(one, type) and issubclass(one, BaseModel) for one in members):
        return "a list of sections" if "tuple" in str(field.annotation) else "a section"
    return wanted(field.annotation, field.metadata).replace("|", "\\|")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default_factory is not None:
        return "from `num_samples`"
    return _shown(field.default)


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, BaseModel):
        return "its defaults"
    if isinstance(value, tuple):
        return f"[{', '.join(map(_shown, value))}]"
    return f"`{value!r}`".replace("'", '"') if isinstance(value, str) else str(value)


def page_with_tables(page: str) -> str:
    """Return the page with the tables as they are now."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{render()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(page_with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
