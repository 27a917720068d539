"""An eval's problems: rows of the benchmark -> `Problem`s, and what macro average and clusters go over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from rest_em.errors import ProblemError
from rest_em.problems.loading import id_of, reference_of
from rest_em.problems.prompts import Prompt, resolve_variant
from rest_em.problems.rows import Row, all_rows, column_of, read_rows, wanted_rows
from rest_em.recipe import Eval, EvalProblems, ProblemSource, is_pattern
from rest_em.types import Problem


@dataclass(frozen=True, slots=True)
class Benchmark:
    """The problems of an eval, with its prompt."""

    problems: tuple[Problem, ...]
    groups: Mapping[str, str]
    """By problem id; empty where there are no groups."""
    clusters: Mapping[str, str]
    """By problem id; empty where each problem is its own."""
    bare: tuple[Problem, ...]
    """The problems with a prompt that shows no worked example: what is looked for in training problems."""
    num_examples: int
    """Worked examples that a prompt shows."""


def load_benchmark(spec: Eval, limit: int | None = None) -> Benchmark:
    """Return an eval's problems.

    Args:
        spec: the eval.
        limit: only so many problems; where there are groups, or else several folders of files, or several
            files, as many of each as can be.

    Raises:
        ProblemError: a file cannot be used, a column is missing, a group is null, an id comes twice, a prompt
            does not render, or a problem is one of its own worked examples.
    """
    section = spec.problems
    every = all_rows(section)
    named = _with_ids(every, section)  # all, so that a row's number does not depend on which are wanted
    rows: Sequence[tuple[str, Row]] = [named[number] for number in wanted_rows(every, section)]
    if limit is not None:
        rows = _spread(rows, section, limit)
    examples = _examples(spec)
    folder = None if section.folder is None else Path(section.folder)
    variant = resolve_variant(spec.prompt, spec.prompt)
    render = Prompt(spec.prompt, variant, examples, folder)
    ask = Prompt(spec.prompt, variant, (), folder)
    shown = {ask(row): row.place for row in examples or ()}
    problems: dict[str, Problem] = {}
    bare: list[Problem] = []
    groups: dict[str, str] = {}
    clusters: dict[str, str] = {}
    for identity, row in rows:
        if identity in problems:
            raise ProblemError(f"{row.place}: the id {identity!r} is given twice; ids must be unique")
        reference = (
            None if section.reference is None else reference_of(row, section.reference, "problems.reference")
        )
        question = ask(row)
        if question in shown:
            raise ProblemError(
                f"{row.place}: this problem is also a worked example of the prompt, {shown[question]}; what "
                "is shown solved measures nothing"
            )
        problems[identity] = Problem(identity, render(row), reference, row.columns)
        bare.append(Problem(identity, question, reference, row.columns))
        if section.group is not None:
            groups[identity] = _group_of(row, section.group)
        if section.cluster is not None:
            cluster = column_of(row, section.cluster, "problems.cluster")
            if cluster is not None:  # else the problem is its own
                clusters[identity] = str(cluster)
    num_examples = (variant.num_examples or 0) if examples is None else len(examples)
    return Benchmark(tuple(problems.values()), groups, clusters, tuple(bare), num_examples)


def _with_ids(rows: Sequence[Row], section: EvalProblems) -> Sequence[tuple[str, Row]]:
    """Return each row with its problem's id: what a column says, or its number in its file, from 0."""
    if section.id is not None:
        return [(id_of(row, section.id, "problems.id"), row) for row in rows]
    has_files = is_pattern(section.path)  # else a column of that name is the benchmark's own
    counts: dict[str | None, int] = {}
    found = []
    for row in rows:
        file = row.columns["file"] if has_files else None
        counts[file] = counts.get(file, -1) + 1
        found.append((str(counts[file]) if file is None else f"{file}-{counts[file]}", row))
    return found


def _group_of(row: Row, column: str) -> str:
    group = column_of(row, column, "problems.group")
    if group is None:
        raise ProblemError(
            f"{row.place}: the group, column {column!r} (problems.group), is null; each problem is of one"
        )
    return str(group)


def _source_of(row: Row, section: EvalProblems) -> str:
    """Return which of several folders a row comes from, or else which of several files."""
    if not is_pattern(section.path):
        return ""
    file = PurePosixPath(row.columns["file"])
    return str(file.parent if file.parent.name else file)


def _spread(rows: Sequence[tuple[str, Row]], section: EvalProblems, limit: int) -> Sequence[tuple[str, Row]]:
    """Return the first rows, in their order; of each group or source its first ones, as evenly as can be."""
    ranks: dict[str, int] = {}
    order = []
    for place, (_, row) in enumerate(rows):
        name = _source_of(row, section) if section.group is None else _group_of(row, section.group)
        ranks[name] = ranks.get(name, -1) + 1
        order.append((ranks[name], place))
    return [rows[place] for place in sorted(place for _, place in sorted(order)[:limit])]


def _examples(spec: Eval) -> Sequence[Row] | None:
    """Return the worked examples of the benchmark's own; None where the prompt names its file, or none."""
    own = spec.problems.examples
    if own is None:
        return None
    said = own.model_dump(exclude={"local", "num_examples"}, exclude_none=True, exclude_defaults=True)
    inherited = spec.problems.model_dump(include=set(ProblemSource.model_fields) - {"where", "max_problems"})
    if "path" in said:  # files of their own
        inherited = {"field": inherited["field"] if said["path"].endswith(".json") else None}
    rows = read_rows(ProblemSource(**inherited | said))
    if own.num_examples is not None and len(rows) < own.num_examples:
        raise ProblemError(
            f"problems.examples: there are {len(rows)}, and num_examples is {own.num_examples}"
        )
    return rows[: own.num_examples]
