"""The `samples_<task>_<date>.jsonl` that lm-evaluation-harness writes (`--log_samples`), a line a document.

Of several samples of a document (`repeats`) the harness keeps one figure for all, so they come without
verdicts and are to be judged again; in our own logs each verdict stands beside, under the key `rest_em`.
Source: lm_eval 0.4.13.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rest_em.errors import SamplesError
from rest_em.samples import Decoding, Sample
from rest_em.storage import replacing
from rest_em.types import Verdict

OWN = ("verdict", "reward", "answer", "reason", "finish_reason", "num_tokens", "is_format_valid", "vote")
"""Of each sample, what the harness has no key for."""


def write_log(path: Path, samples: Iterable[Sample]) -> None:
    """Write samples as the harness does: a line for each problem and decoding, in their order."""
    lines: dict[tuple[str, str], list[Sample]] = {}
    for one in samples:
        lines.setdefault((one.problem_id, one.decoding), []).append(one)
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for number, own in enumerate(lines.values()):
            file.write(json.dumps(_line(number, own)) + "\n")


def _line(number: int, own: Sequence[Sample]) -> dict[str, Any]:
    first = own[0]
    prompt = first.prompt if isinstance(first.prompt, str) else json.dumps(first.prompt)
    target = first.reference if isinstance(first.reference, str) else json.dumps(first.reference)
    doc = {"problem_id": first.problem_id, "group": first.group, "cluster": first.cluster}
    judged = [one for one in own if one.verdict is not Verdict.UNSCORABLE]
    kept = [
        {name: getattr(one, name) for name in OWN} | {"verdict": one.verdict.value, "index": one.index}
        for one in own
    ]
    return {
        "doc_id": number,
        "doc": doc,
        "target": target,
        "arguments": {"gen_args_0": {"arg_0": prompt, "arg_1": {"do_sample": first.decoding == "sampled"}}},
        "resps": [[one.text for one in own]],
        "filtered_resps": [one.text for one in own],
        "filter": "none",
        "metrics": ["exact_match"],
        "doc_hash": _hash(json.dumps(doc)),
        "prompt_hash": _hash(prompt),
        "target_hash": _hash(target),
        "exact_match": (
            sum(one.verdict is Verdict.CORRECT for one in judged) / len(judged) if judged else None
        ),
        "rest_em": {"reference": first.reference, "prompt": first.prompt, "samples": kept},
    }


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def read_log(path: Path) -> Iterator[Sample]:
    """Yield the samples of a log of generations.

    The first metric of 0 or 1 is the verdict of a document's only sample. Of a log with several filters the
    first one of each document is taken.

    Raises:
        SamplesError: a line is none of such a log; it names file and line.
    """
    seen: dict[Any, str] = {}
    with path.open(encoding="utf-8") as file:
        try:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield from _samples(_row(line, f"{path}:{number}"), f"{path}:{number}", seen)
        except UnicodeDecodeError as error:
            raise SamplesError(f"{path}: a byte is not UTF-8; a log is text in UTF-8") from error


def _row(line: str, place: str) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise SamplesError(f"{place}: this line is not JSON: {error}") from error
    if not isinstance(row, dict) or not {"doc_id", "resps", "arguments"} <= row.keys():
        raise SamplesError(
            f"{place}: this is no line of a sample log of lm-evaluation-harness, which has doc_id, resps and "
            "arguments; nor has it problem_id and completion"
        )
    return row


def _samples(row: Mapping[str, Any], place: str, seen: dict[Any, str]) -> Iterator[Sample]:
    filtered = str(row.get("filter", "none"))
    if "rest_em" not in row and seen.setdefault(row["doc_id"], filtered) != filtered:
        return
    try:
        texts = [text for each in row["resps"] for text in each]
        call = row["arguments"]["gen_args_0"]
        options = call["arg_1"] if isinstance(call["arg_1"], dict) else {}
        if not all(isinstance(text, str) for text in texts):
            raise SamplesError(
                f"{place}: a response is no text; a task that generates (generate_until) is wanted"
            )
        if "rest_em" in row:
            yield from _own(row, texts, options)
            return
        is_greedy = len(texts) == 1 and not options.get("do_sample") and not options.get("temperature")
        decoding: Decoding = "greedy" if is_greedy else "sampled"
        verdict, reason = _verdict(row, len(texts))
        answers = row.get("filtered_resps") or []
        for index, text in enumerate(texts):
            answer = answers[index] if index < len(answers) and isinstance(answers[index], str) else None
            yield Sample(
                str(row["doc_id"]), str(call["arg_0"]), row.get("target"), decoding, index, text, verdict,
                float(verdict is Verdict.CORRECT), None if answer in (None, "[invalid]") else answer, reason,
            )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, SamplesError):
            raise
        raise SamplesError(
            f"{place}: this line of a sample log is not as the harness writes it: {error}"
        ) from error


def _verdict(row: Mapping[str, Any], num_samples: int) -> tuple[Verdict, str]:
    if num_samples > 1:
        return Verdict.UNSCORABLE, "the log has one figure for several samples; judge them again"
    for name in row.get("metrics") or ():
        value = row.get(name)
        if value in (0, 1):
            return (Verdict.CORRECT if value else Verdict.INCORRECT), ""
    return Verdict.UNSCORABLE, "the log has no metric of 0 or 1; judge it again"


def _own(row: Mapping[str, Any], texts: Sequence[str], options: Mapping[str, Any]) -> Iterator[Sample]:
    own, doc = row["rest_em"], row["doc"]
    prompt = own["prompt"]
    for text, kept in zip(texts, own["samples"], strict=True):
        yield Sample(
            problem_id=doc["problem_id"],
            prompt=prompt if isinstance(prompt, str) else tuple(prompt),
            reference=own["reference"],
            decoding="sampled" if options["do_sample"] else "greedy",
            text=text,
            group=doc["group"],
            cluster=doc["cluster"],
            **kept | {"verdict": Verdict(kept["verdict"])},
        )
