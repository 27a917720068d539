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
from typing import Literal

from rest_em.types import Messages, Problem

MAX_PROBLEMS = 10
"""A run of words in more training problems than this is wording that many share, and no sign of a copy."""
_WORD = re.compile(r"\w+|[^\w\s]")


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


def words_of(prompt: str | Messages) -> tuple[str, ...]:
    """Return the words of a prompt in lower case; marks and digits count, blanks and layout do not.

    >>> words_of("What is  2+2?")
    ('what', 'is', '2', '+', '2', '?')
    """
    text = prompt if isinstance(prompt, str) else "\n".join(one["content"] for one in prompt)
    return tuple(_WORD.findall(unicodedata.normalize("NFKC", text).lower()))


def find_overlaps(
    train: Sequence[Problem], benchmarks: Mapping[str, Sequence[Problem]], num_words: int
) -> list[Overlap]:
    """Return the training problems that overlap with a benchmark's, one overlap each and benchmark.

    Two problems overlap if they have the same words, or a run of `num_words` words in common that few
    training problems have. Problems of fewer words overlap if they are the same only.

    Args:
        train: rendered without worked examples.
        benchmarks: by name, rendered without worked examples.
        num_words: n of the n-grams; 13 is usual.

    Source: Brown et al. 2020, arXiv 2005.14165, appendix C: 13-grams, and those of more than 10 training
        documents left out.
    """
    words = {problem.id: words_of(problem.prompt) for problem in train}
    shared = Counter(gram for each in words.values() for gram in set(_ngrams(each, num_words)))
    overlaps = []
    for name, problems in benchmarks.items():
        wholes: dict[tuple[str, ...], str] = {}
        grams: dict[tuple[str, ...], str] = {}
        for problem in problems:
            own = words_of(problem.prompt)
            wholes.setdefault(own, problem.id)
            for gram in _ngrams(own, num_words):
                if 0 < shared[gram] <= MAX_PROBLEMS:
                    grams.setdefault(gram, problem.id)
        for identity, own in words.items():
            if own in wholes:
                overlaps.append(Overlap(identity, name, wholes[own], "exact", ""))
                continue
            common = next((gram for gram in _ngrams(own, num_words) if gram in grams), None)
            if common is not None:
                overlaps.append(Overlap(identity, name, grams[common], "n-gram", " ".join(common)))
    return overlaps


def _ngrams(words: tuple[str, ...], num_words: int) -> Iterable[tuple[str, ...]]:
    return (words[start : start + num_words] for start in range(len(words) - num_words + 1))


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
