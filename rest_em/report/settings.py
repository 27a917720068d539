"""What stands beside figures: which model solved which problems, and how its solutions were drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rest_em import __version__
from rest_em.problems.rows import shown_path


@dataclass(frozen=True, slots=True)
class Settings:
    """How the figures of one policy on one set of problems came to be.

    Example:
        Settings(data={"path": "/data/test.jsonl"}, limit=None, confidence=0.95, reward="number",
                 model="models/SmolLM2-135M", dtype="float32", seed=0, num_shots=5, chat_template=False,
                 greedy=True, num_samples=8, temperature=1.0, top_k=0, top_p=0.95, max_new_tokens=256,
                 stop_strings=("\\nQuestion:",))
    """

    data: Mapping[str, Any]
    """Where the problems come from, in the keys of a recipe's `problems`: `path`, `split`, `where`."""
    limit: int | None
    """Only so many of them; None is all."""
    confidence: float
    """Of the intervals."""
    reward: str | None
    """What judges; None is people."""
    solutions: str | None = None
    """The file of stored solutions that were judged: how they were drawn is not known, and None below."""
    model: str | None = None
    """The policy's folder or hub id."""
    revision: str | None = None
    dtype: str | None = None
    """What it computed in; `auto` where that is not known."""
    seed: int | None = None
    num_shots: int | None = None
    """Worked examples in a prompt; None also where the template reads them with `text_of`."""
    chat_template: bool | None = None
    greedy: bool | None = None
    """Whether greedy solutions were drawn."""
    num_samples: int | None = None
    """Samples a problem; what follows is None where it is 0."""
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    max_new_tokens: int | None = None
    stop_strings: Sequence[str] | None = None
    rest_em: str = __version__
    """The version that computed the figures."""

    def to_json(self) -> dict[str, Any]:
        """Return a JSON value."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Settings:
        """Return what `to_json` wrote."""
        return cls(**value)

    def line(self) -> str:
        """Return a line for people.

        >>> data = {"path": "test.jsonl"}
        >>> Settings(data, 50, 0.95, "number", solutions="theirs.jsonl", rest_em="1.0").line()
        'stored solutions of theirs.jsonl; data test.jsonl, limit 50; 95 % intervals; rest_em 1.0'
        """
        parts = [f"stored solutions of {self.solutions}"] if self.solutions else self._drawn()
        limit = "" if self.limit is None else f", limit {self.limit}"
        names = (self.data.get(key) for key in ("name", "split", "revision", "data_files"))
        data = " ".join([str(shown_path(Path(self.data["path"]))), *(name for name in names if name)])
        parts += [f"data {data}{limit}", f"{100 * self.confidence:g} % intervals", f"rest_em {self.rest_em}"]
        return "; ".join(parts)

    def _drawn(self) -> list[str]:
        parts = ["greedy"] if self.greedy else []
        if self.num_samples:
            top_p = "" if self.top_p == 1 else f", top-p {self.top_p}"
            top_k = f", top-k {self.top_k}" if self.top_k else ""
            how = f"T {self.temperature}{top_p}{top_k}, seed {self.seed}"
            parts.append(f"{_counted(self.num_samples, 'sample')} at {how}")
        shots = "shots of the data" if self.num_shots is None else _counted(self.num_shots, "shot")
        chat = ", chat template" if self.chat_template else ""
        return [*parts, f"at most {self.max_new_tokens} tokens", f"{shots}{chat}", str(self.dtype)]


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
