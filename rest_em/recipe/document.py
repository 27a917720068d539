"""A YAML file as plain values that remember where each key was written, and the `--set` options over it.

The values are those of YAML 1.2's core schema: `1e-5` is a number; `yes`, `on` and dates are text. Keys are
names and are given once. What the keys mean is left to `sections`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from rest_em.errors import RecipeError

KeyPath = tuple[str | int, ...]
"""The names, and the indices in lists, that lead to a value."""

MAX_DIGITS = 4000
"""Of a whole number; Python reads no more than 4300."""
_INT = r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"
_FLOAT = r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
_NOT_FINITE = r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
_SURROGATE = re.compile("[\ud800-\udfff]")
_CORE_SCHEMA = (
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|"),
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE"),
    ("tag:yaml.org,2002:int", _INT),
    ("tag:yaml.org,2002:float", f"{_FLOAT}|{_NOT_FINITE}"),
)


class _CoreLoader(yaml.SafeLoader):
    """Resolves plain scalars by YAML 1.2's core schema; PyYAML's own is that of YAML 1.1."""


class _Dumper(yaml.SafeDumper):
    """Quotes what YAML 1.1 or 1.2 would read as something else than text."""


def _block_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_CoreLoader.yaml_implicit_resolvers = {}
for _tag, _pattern in _CORE_SCHEMA:
    _CoreLoader.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), None)
    _Dumper.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), None)
_Dumper.add_representer(str, _block_text)


@dataclass(frozen=True, slots=True)
class Place:
    """Where something was written: `recipes/x.yaml:12`, or `--set sampling.top_k=5`."""

    text: str
    order: int
    """Mistakes are told in this order: lines of the file, then options."""

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Mistake:
    """One mistake of the user, one line."""

    place: Place
    key: KeyPath
    text: str

    def __str__(self) -> str:
        return f"{self.place}: {self.text}"


@dataclass(slots=True)
class Document:
    """The values of a file and of the options over it."""

    name: str
    """The file as the user named it."""
    values: dict[str, Any] = field(default_factory=dict)
    places: dict[KeyPath, Place] = field(default_factory=dict)
    """Of each key and list item."""
    mistakes: list[Mistake] = field(default_factory=list)

    def place(self, path: KeyPath) -> Place:
        """Return where the key, or else the nearest section around it, was written."""
        while path not in self.places and path:
            path = path[:-1]
        return self.places.get(path, Place(f"{self.name}:1", 1))

    def value(self, path: KeyPath) -> Any:
        """Return the value that was written at the path."""
        found: Any = self.values
        for key in path:
            found = found[key]
        return found


def dotted(path: KeyPath) -> str:
    """Return a path as recipes and options spell it.

    >>> dotted(("prompt", "base", 0, "template"))
    'prompt.base[0].template'
    """
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).removeprefix(".")


def shown(value: Any) -> str:
    """Return a value in at most 60 characters of one line, as an error message shows it.

    >>> shown("hot"), shown(None), shown([1, True])
    ("'hot'", 'null', '[1, true]')
    """
    if isinstance(value, str):
        text = repr(value)
    elif value is None or isinstance(value, bool):
        text = {None: "null", True: "true", False: "false"}[value]
    elif isinstance(value, Mapping):
        text = f"{{{', '.join(f'{key}: {shown(one)}' for key, one in value.items())}}}"
    elif isinstance(value, Sequence):
        text = f"[{', '.join(map(shown, value))}]"
    else:
        text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def read_document(
    path: Path, kind: str = "a recipe", keys: str = "the sections model, problems, prompt, ..."
) -> Document:
    """Read a YAML file.

    Args:
        kind: what the file is, for messages.
        keys: what it begins with, for messages.

    Raises:
        RecipeError: there is no such file, or it is not YAML, or it is empty or no mapping.
    """
    try:
        content = path.read_bytes()
        text = content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise RecipeError(f"{path}:{line}: a byte is not UTF-8; {kind} is text in UTF-8") from error
    except OSError as error:
        raise RecipeError(f"{path}: {error.strerror}; {kind} (a YAML file) is wanted") from error
    document = Document(str(path))
    node = _compose(text, str(path))
    if not isinstance(node, yaml.MappingNode):
        found = "nothing" if node is None else "no section"
        raise RecipeError(f"{path}:1: {found} is here; {keys} are wanted")
    document.values = _Reader(document).value(node, ())
    return document


def _compose(text: str, place: str) -> yaml.Node | None:
    try:
        node: yaml.Node | None = yaml.compose(text, Loader=_CoreLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = "" if mark is None or place.startswith("--set") else f":{mark.line + 1}"
        raise RecipeError(f"{place}{line}: this is not YAML: {error.problem or error.context}") from error
    except yaml.reader.ReaderError as error:
        line = "" if place.startswith("--set") else f":{text.count(chr(10), 0, error.position) + 1}"
        raise RecipeError(f"{place}{line}: this is not YAML: {error.reason}") from error
    return node


class _Reader:
    """Turns composed nodes into plain values, and notes their places and the mistakes met."""

    def __init__(self, document: Document, option: Place | None = None) -> None:
        self._document = document
        self._option = option
        self._open: list[yaml.Node] = []

    def value(self, node: yaml.Node, path: KeyPath) -> Any:
        """Return the node's value; note the places of what it holds."""
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        if any(node is one for one in self._open):
            self._note(node, path, f"{dotted(path)} holds itself by its alias; write it out")
            return None
        self._open.append(node)
        if isinstance(node, yaml.MappingNode):
            value: Any = self._mapping(node, path)
        else:
            value = [self._item(one, (*path, index)) for index, one in enumerate(node.value)]
        self._open.pop()
        return value

    def _item(self, node: yaml.Node, path: KeyPath) -> Any:
        self._document.places[path] = self._place(node)
        return self.value(node, path)

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != "tag:yaml.org,2002:str":
                shown_key = key_node.value if isinstance(key_node, yaml.ScalarNode) else "a list or section"
                where = f" of {dotted(path)}" if path else ""
                braces = '; a text with braces stands in quotes: "{{ question }}"'
                advice = braces if isinstance(key_node, yaml.MappingNode) else ""
                self._note(key_node, path, f"a key{where} is {shown_key}; a name is wanted{advice}")
                continue
            key = (*path, key_node.value)
            if key_node.value in values:
                first = self._document.places[key]
                self._note(key_node, path, f"{dotted(key)} is given twice, first at {first}; leave one out")
                continue
            self._document.places[key] = self._place(key_node)
            values[key_node.value] = self.value(value_node, key)
        return values

    def _scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Any:
        text: str = node.value
        match node.tag.removeprefix("tag:yaml.org,2002:"):
            case "str" if not _SURROGATE.search(text):
                return text
            case "null":
                return None
            case "bool" if text.lower() in ("true", "false"):
                return text.lower() == "true"
            case "int" if re.fullmatch(_INT, text) and len(text) <= MAX_DIGITS:
                return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
            case "float" if re.fullmatch(_FLOAT, text) and math.isfinite(float(text)):
                return float(text)
        tag = (
            ""
            if node.tag.endswith((":str", ":float"))
            else f"{node.tag.replace('tag:yaml.org,2002:', '!!')} "
        )
        found = f"{dotted(path)} is {tag}{shown(text)}"
        self._note(node, path, f"{found}; a text, a finite number, true, false or null is wanted")
        return None

    def _place(self, node: yaml.Node) -> Place:
        line = node.start_mark.line + 1
        return self._option or Place(f"{self._document.name}:{line}", line)

    def _note(self, node: yaml.Node, key: KeyPath, text: str) -> None:
        self._document.mistakes.append(Mistake(self._place(node), key, text))


def apply_options(document: Document, options: Sequence[str]) -> None:
    """Put the values of options `a.b=c` into a document, in their order; the values are YAML.

    Raises:
        RecipeError: an option has no `=`, its value is not YAML, or its path leads through a plain value.
    """
    for number, option in enumerate(options):
        place = Place(f"--set {option}", 1_000_000_000 + number)
        name, equals, text = option.partition("=")
        path: KeyPath = tuple(name.strip().split("."))
        if not equals or not all(path):
            raise RecipeError(f"{place}: KEY=VALUE is wanted, as in --set sampling.num_samples=8")
        if any("[" in str(key) for key in path):
            listed = name.partition("[")[0].strip()
            raise RecipeError(f"{place}: {listed} is a list; set it whole, as in --set '{listed}=[...]'")
        section = _section_of(document, path, place)
        for old in [one for one in document.places if one[: len(path)] == path]:
            del document.places[old]
        document.places[path] = place
        node = _compose(text, str(place))
        section[str(path[-1])] = None if node is None else _Reader(document, place).value(node, path)


def _section_of(document: Document, path: KeyPath, place: Place) -> dict[str, Any]:
    section = document.values
    for depth, key in enumerate(path[:-1], start=1):
        inner = section.get(str(key))
        if inner is None:
            inner = section[str(key)] = {}
            document.places[path[:depth]] = place
        if not isinstance(inner, dict):
            found = "a list; set it whole" if isinstance(inner, list) else f"{shown(inner)}, not a section"
            raise RecipeError(f"{place}: {dotted(path[:depth])} is {found}")
        section = inner
    return section


def dump(values: Mapping[str, Any]) -> str:
    """Return values as YAML that `read_document` reads back equal."""
    text: str = yaml.dump(
        dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100, default_flow_style=False
    )
    return text


def leaves(values: Mapping[str, Any], prefix: KeyPath = ()) -> Iterator[tuple[str, Any]]:
    """Yield each value that is no section, with its dotted path."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, (*prefix, key))
        else:
            yield dotted((*prefix, key)), value
