"""Contamination: training problems that are also problems of a benchmark, word for word or in a long part.

What is measured on problems that were trained on is not what a benchmark means to measure. Left out: problems
that say the same in other words, and what the base model has seen before.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rest_em.types import Messages, Problem

MAX_PROBLEMS = 10
"""A run of words in more of a benchmark's problems than this is wording they share, and no sign of a copy."""
_WORD = re.compile(r"\w+|[^\w\s]")
_PROPER = re.compile(r"\w")


@dataclass(frozen=True, slots=True)
class Overlap:
    """A training problem that overlaps with a problem of a benchmark.

    Example:
        Overlap("train-17", "gsm8k", "42", kind="exact", text="")
    """

    problem_id: str
    """Of the training problem."""
    benchmark: str
    benchmark_id: str
    """Of the benchmark's problem, the first of several."""
    kind: Literal["exact", "n-gram"]
    text: str
    """The first run of words that both have; empty where the whole is the same."""


@dataclass(frozen=True, slots=True)
class Questions:
    """Problems, and what of their rows says what is asked, however it is asked.

    Example:
        Questions(problems, columns=("question",))
    """

    problems: Sequence[Problem]
    """Rendered without worked examples."""
    columns: Sequence[str] = ()
    """Those that the prompt's template uses, in its order."""

    def values(self, problem: Problem) -> tuple[str, ...]:
        """Return the words of a problem's columns; of its prompt where the template uses none of them."""
        texts = [_text_of(problem.metadata[name]) for name in self.columns if name in problem.metadata]
        return words_of("\n".join(texts)) or words_of(problem.prompt)


def words_of(prompt: str | Messages) -> tuple[str, ...]:
    """Return the words of a prompt in lower case; marks and digits count, blanks and layout do not.

    >>> words_of("What is  2+2?")
    ('what', 'is', '2', '+', '2', '?')
    """
    text = prompt if isinstance(prompt, str) else "\n".join(one["content"] for one in prompt)
    return tuple(_WORD.findall(unicodedata.normalize("NFKC", text).lower()))


def _text_of(value: Any) -> str:
    """Return what a column says, that of lists and objects without their marks."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        return "\n".join(map(_text_of, value))
    return "" if value is None else str(value)


def find_overlaps(train: Questions, benchmarks: Mapping[str, Questions], num_words: int) -> list[Overlap]:
    """Return the training problems that overlap with a benchmark's, one overlap each and benchmark.

    Two problems overlap if their columns have the same words, or their prompts do, or their columns have a
    run of `num_words` words, marks left out, in common. A run that more than `MAX_PROBLEMS` unlike problems
    of the benchmark have, or more than half of them, is its own wording and does not count. How many training
    problems have it does not matter: one problem of the benchmark may stand in many of them.

    Args:
        train: what is trained on.
        benchmarks: by name, what is measured on.
        num_words: n of the n-grams; 13 is usual.

    Source: Brown et al. 2020, arXiv 2005.14165, appendix C: 13-grams. They leave out those of more than 10
        training documents.
    """
    said = {problem.id: train.values(problem) for problem in train.problems}
    asked = {problem.id: words_of(problem.prompt) for problem in train.problems}
    overlaps = []
    for name, questions in benchmarks.items():
        wholes, grams = _wholes(questions), _grams(questions, num_words)
        for identity, words in said.items():
            same = wholes.get(words) or wholes.get(asked[identity])
            if same is not None:
                overlaps.append(Overlap(identity, name, same, "exact", ""))
                continue
            common = next((gram for gram in _ngrams(words, num_words) if gram in grams), None)
            if common is not None:
                overlaps.append(Overlap(identity, name, grams[common], "n-gram", " ".join(common)))
    return overlaps


def _wholes(questions: Questions) -> dict[tuple[str, ...], str]:
    """Return a benchmark's problems by the words of their columns, and by those of their prompts."""
    wholes: dict[tuple[str, ...], str] = {}
    for problem in questions.problems:
        wholes.setdefault(questions.values(problem), problem.id)
        wholes.setdefault(words_of(problem.prompt), problem.id)
    return wholes


def _grams(questions: Questions, num_words: int) -> dict[tuple[str, ...], str]:
    """Return the runs of words that few of a benchmark's problems have, each with the first that has it."""
    unlike: dict[tuple[str, ...], str] = {}
    for problem in questions.problems:
        unlike.setdefault(questions.values(problem), problem.id)
    most = max(1, min(MAX_PROBLEMS, len(unlike) // 2))
    grams: dict[tuple[str, ...], str] = {}
    counts: Counter[tuple[str, ...]] = Counter()
    for words, identity in unlike.items():
        for gram in set(_ngrams(words, num_words)):
            counts[gram] += 1
            grams.setdefault(gram, identity)
    return {gram: identity for gram, identity in grams.items() if counts[gram] <= most}


def _ngrams(words: tuple[str, ...], num_words: int) -> Iterable[tuple[str, ...]]:
    """Return the runs of words; were marks words, `[1, 2, 3, 4, 5, 6]` would be thirteen."""
    proper = tuple(word for word in words if _PROPER.match(word))
    return (proper[start : start + num_words] for start in range(len(proper) - num_words + 1))


def overlap_report(overlaps: Sequence[Overlap], num_train: int, names: Iterable[str]) -> list[str]:
    """Return a line for each benchmark, for people.

    Args:
        overlaps: as `find_overlaps` returns them.
        num_train: training problems that were looked at.
        names: of the benchmarks.
    """
    lines = []
    for name in names:
        own = [one for one in overlaps if one.benchmark == name]
        exact = [one for one in own if one.kind == "exact"]
        if not own:
            lines.append(f"none of {num_train:,} training problems overlaps with one of {name}")
            continue
        first = own[0]
        told = f", which share {first.text!r}" if first.text else ""
        lines.append(
            f"of {num_train:,} training problems {len(exact):,} are problems of {name} too, "
            f"{len(own) - len(exact):,} more share a run of words with one; first {first.problem_id!r} and "
            f"{name}'s {first.benchmark_id!r}{told}"
        )
    return lines
