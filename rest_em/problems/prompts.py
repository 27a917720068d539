"""The prompt of a problem, plain text or chat messages, and the variants of it that a recipe names.

Left out: the tokenizer's chat template, which the sampler and the trainer apply.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jinja2
import jinja2.meta
import jinja2.nodes
import jinja2.sandbox

from rest_em.errors import ProblemError
from rest_em.problems.rows import Row, column_of, read_file, shown_path, those_there
from rest_em.recipe import PromptSection, PromptVariant
from rest_em.types import Messages

TEXT_OF = "text_of"
"""What a template calls to read a text that comes with the data."""


class Texts:
    """Renders templates over the columns of a row."""

    def __init__(self, folder: Path | None = None) -> None:
        """Compile nothing yet; `folder` is where a template's `text_of(path)` reads, None: it cannot."""
        self._environment = jinja2.sandbox.SandboxedEnvironment(
            undefined=jinja2.StrictUndefined, keep_trailing_newline=True, finalize=_refuse_null
        )
        self._environment.globals[TEXT_OF] = functools.cache(functools.partial(_text_of, folder))
        self._compiled = functools.cache(self._environment.from_string)

    def rendered(self, template: str, row: Row, what: str = "the prompt") -> str:
        """Return a template over a row's columns.

        Args:
            what: it is, for messages.

        Raises:
            ProblemError: it does not render, or to nothing.
        """
        try:
            text = self._compiled(template).render(row.columns)
        except jinja2.UndefinedError as error:
            wanted = jinja2.meta.find_undeclared_variables(self._environment.parse(template))
            missing = sorted(wanted - row.columns.keys() - self._environment.globals.keys())
            if missing:
                name = missing[0]
                told = f"the template uses {name!r}, and there is no such column"
                raise ProblemError(f"{row.place}: {told}{those_there(name, row.columns)}") from error
            raise ProblemError(f"{row.place}: {what} does not render: {error.message}") from error
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
            raise ProblemError(f"{row.place}: {what} does not render: {error}") from error
        if not text.strip():
            raise ProblemError(f"{row.place}: {what} renders to nothing")
        return text

    def solution(self, solution: str, row: Row, key: str) -> str:
        """Return a row's worked solution.

        Args:
            solution: the column that holds it, or a template.
            key: the recipe's, for messages.

        Raises:
            ProblemError: there is none.
        """
        if "{" in solution:
            return self.rendered(solution, row, f"the solution ({key})")
        text = column_of(row, solution, key)
        if not isinstance(text, str) or not text.strip():
            raise ProblemError(
                f"{row.place}: the solution in column {solution!r} is {text!r}; a text is wanted"
            )
        return text


class Prompt:
    """Renders one variant of the prompt for any row."""

    def __init__(
        self,
        section: PromptSection,
        variant: PromptVariant,
        examples: Sequence[Row] | None = None,
        folder: Path | None = None,
    ) -> None:
        """Read the examples.

        Args:
            section: what the variant belongs to.
            variant: resolved.
            examples: what is shown; None: what the variant names.
            folder: where the template's `text_of(path)` reads texts; None: it cannot.

        Raises:
            ProblemError: the examples cannot be read, or do not render.
        """
        assert variant.template is not None, "the variant is resolved"
        self._texts = Texts(folder)
        self._template = variant.template
        self._chat = bool(variant.chat_template)
        self._system = variant.system
        self._separator = section.example_separator
        rows = _examples(variant) if examples is None else examples
        self._examples = [
            (self._text(row), self._texts.solution(section.solution, row, "prompt.solution")) for row in rows
        ]

    def __call__(self, row: Row) -> str | Messages:
        """Return the prompt of a row."""
        text = self._text(row)
        if not self._chat:
            shots = (f"{problem}{solution}{self._separator}" for problem, solution in self._examples)
            return "".join(shots) + text
        messages = [_message("system", self._system)] if self._system else []
        for problem, solution in self._examples:
            messages += [_message("user", problem), _message("assistant", solution)]
        return (*messages, _message("user", text))

    def _text(self, row: Row) -> str:
        return self._texts.rendered(self._template, row)


def _text_of(folder: Path | None, name: str) -> str:
    """Return a text that comes with the data; for templates.

    Raises:
        ProblemError: there is no folder, or no such file in it.
    """
    if folder is None:
        raise ProblemError(
            f"the prompt reads {name!r}, which comes with the data: give --data FOLDER, in which it lies"
        )
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ProblemError(f"the prompt reads {name!r}, which lies outside of {shown_path(folder)}")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ProblemError(f"{shown_path(path)}: the prompt reads this text: {error}") from error


def _refuse_null(value: Any) -> Any:
    """Jinja's `finalize`: an empty column is no text `None`."""
    if value is None:
        raise jinja2.UndefinedError("it shows a column that is null here; `{{ column or '' }}` shows nothing")
    return value


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _examples(variant: PromptVariant) -> Sequence[Row]:
    if variant.examples is None or variant.num_examples == 0:
        return ()
    rows = read_file(Path(variant.examples))
    if variant.num_examples is not None and len(rows) < variant.num_examples:
        found = f"there are {len(rows)} examples, and prompt.num_examples is {variant.num_examples}"
        raise ProblemError(f"{shown_path(Path(variant.examples))}: {found}")
    return rows[: variant.num_examples]


def template_columns(template: str) -> tuple[str, ...]:
    """Return the columns that a template uses, in its order.

    Left out: what only says which text `text_of` reads, since such a text is how a problem is asked.

    >>> template_columns("{{ text_of(file) }} {% for one in tests %}{{ one }}{% endfor %} {{ question }}")
    ('tests', 'question')
    """
    tree = jinja2.sandbox.SandboxedEnvironment().parse(template)
    free = jinja2.meta.find_undeclared_variables(tree)
    return tuple(dict.fromkeys(name for name in _names(tree) if name in free and name != TEXT_OF))


def _names(node: jinja2.nodes.Node) -> Iterator[str]:
    if isinstance(node, jinja2.nodes.Name):
        yield node.name
    if isinstance(node, jinja2.nodes.Call) and getattr(node.node, "name", None) == TEXT_OF:
        return
    for child in node.iter_child_nodes():
        yield from _names(child)


def example_prompts(prompt: PromptSection, variant: PromptVariant) -> list[tuple[str | Messages, str]]:
    """Return what each worked example of a variant asks, as a problem without examples, and its place."""
    resolved = resolve_variant(prompt, variant)
    ask = Prompt(prompt, resolved.model_copy(update={"num_examples": 0}))
    return [(ask(row), row.place) for row in _examples(resolved)]


def resolve_variant(prompt: PromptSection, variant: PromptVariant) -> PromptVariant:
    """Return a variant with everything said: what it inherits, how many examples it shows, and its name.

    Raises:
        ProblemError: the examples cannot be read.
    """
    whole = prompt.resolved(variant)
    num_examples = len(_examples(whole))
    name = f"{num_examples}-shot chat" if whole.chat_template else f"{num_examples}-shot"
    return whole.model_copy(update={"num_examples": num_examples, "name": whole.name or name})


def base_variants(prompt: PromptSection) -> tuple[PromptVariant, ...]:
    """Return the candidates for the base model, at least one, under names of their own.

    A name that the recipe gives stays; one that is made up is numbered where it would be another's.
    """
    resolved: list[PromptVariant] = []
    taken = {written.name for written in prompt.base}
    for written in prompt.base or (PromptVariant(),):
        variant = resolve_variant(prompt, written)
        if written.name is None:
            numbered = (f"{variant.name} ({number})" for number in itertools.count(2))
            name = next(name for name in itertools.chain([variant.name], numbered) if name not in taken)
            variant = variant.model_copy(update={"name": name})
        taken.add(variant.name)
        resolved.append(variant)
    return tuple(resolved)


def tuned_variant(prompt: PromptSection) -> PromptVariant:
    """Return the prompt of the tuned policies."""
    return resolve_variant(prompt, prompt.tuned)


def training_variant(prompt: PromptSection) -> PromptVariant:
    """Return the prompt of the M-step."""
    return resolve_variant(prompt, prompt.tuned if prompt.training is None else prompt.training)


def teacher_variant(prompt: PromptSection) -> PromptVariant | None:
    """Return the prompt of the model that samples in the policy's place; None is the policy's own."""
    return None if prompt.teacher is None else resolve_variant(prompt, prompt.teacher)


def every_variant(prompt: PromptSection) -> tuple[PromptVariant, ...]:
    """Return all prompts that a run may need, the base's first."""
    teacher = teacher_variant(prompt)
    named = (tuned_variant(prompt), training_variant(prompt), *(() if teacher is None else (teacher,)))
    return (*base_variants(prompt), *named)
