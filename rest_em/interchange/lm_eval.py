"""The `samples_<task>_<date>.jsonl` that lm-evaluation-harness writes (`--log_samples`), a line a document.

Of several samples of a document (`repeats`) the harness keeps one figure for all, so they come without
verdicts and are to be judged again; in a log of ours each verdict stands beside, under the key `rest_em`.
Left out: logs of log-likelihoods, which hold no solution. Source: lm_eval 0.4.13, `evaluator.py` and
`loggers/evaluation_tracker.py`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

from rest_em.errors import SamplesError
from rest_em.interchange.json_text import (
    KEY,
    as_object,
    decoding_of,
    field,
    found,
    id_of,
    kept_of,
    messages_of,
    optional_field,
    parsed,
    with_kept,
)
from rest_em.samples import Decoding, Sample
from rest_em.storage import replacing
from rest_em.types import Messages, Verdict

METRICS = ("exact_match", "acc", "pass@1", "pass_at_1", "em", "math_verify", "prompt_level_strict_acc")
"""Metrics of the harness's tasks that are 0 or 1 of one response; the first that a log has is the verdict."""
NO_ANSWER = "[invalid]"
"""What the harness's filter `regex` gives where nothing matches."""
AGAIN = "judge again (rest_em evaluate --solutions)"

_KEYS = (
    "doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics", "doc_hash",
    "prompt_hash", "target_hash",
)  # fmt: skip


def write_log(path: Path, samples: Iterable[Sample], task: str = KEY) -> None:
    """Write samples as the harness does: a line for each problem and decoding, in their order.

    The metric is `exact_match`: the mean over the samples that can be judged, null where none can.

    Args:
        path: the harness calls it `samples_<task>_<date>.jsonl`.
        samples: several of a problem are the several responses of its line, as with `repeats`.
        task: the eval's name, which the harness has in the file's name alone.

    Raises:
        SamplesError: one index is there twice, or a problem's prompt, reference, group or cluster varies.
    """
    lines: dict[tuple[str, Decoding], list[Sample]] = {}
    for one in samples:
        lines.setdefault((one.problem_id, one.decoding), []).append(one)
    numbers: dict[str, int] = {}
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for (problem, decoding), own in lines.items():
            _check(own, f"{path}: problem {problem!r}, {decoding}")
            row = _row(numbers.setdefault(problem, len(numbers)), own, task)
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _check(own: Sequence[Sample], place: str) -> None:
    if len({one.index for one in own}) < len(own):
        raise SamplesError(f"{place}: an index is there twice; the samples of one policy and eval are wanted")
    for name in ("prompt", "reference", "group", "cluster"):
        if any(getattr(one, name) != getattr(own[0], name) for one in own):
            raise SamplesError(f"{place}: its samples have several values of {name}; a line has room for one")


def _row(number: int, own: Sequence[Sample], task: str) -> dict[str, Any]:
    first = own[0]
    target = first.reference if isinstance(first.reference, str) else json.dumps(first.reference)
    doc = {
        "problem_id": first.problem_id,
        "reference": first.reference,
        "group": first.group,
        "cluster": first.cluster,
    }
    # A chat is one text of JSON in a list, as of `JsonChatStr` in lm_eval/models/api_models.py.
    chat = (
        None if isinstance(first.prompt, str) else json.dumps([*map(dict, first.prompt)], ensure_ascii=False)
    )
    options = (
        {"until": [], "do_sample": True} if first.decoding == "sampled" else {"until": [], "do_sample": False}
    )
    answers = [NO_ANSWER if one.answer is None else one.answer for one in own]
    judged = [one for one in own if one.verdict is not Verdict.UNSCORABLE]
    num_correct = sum(one.verdict is Verdict.CORRECT for one in judged)
    return {
        "doc_id": number,
        "doc": doc,
        "target": target,
        "arguments": {"gen_args_0": {"arg_0": first.prompt if chat is None else [chat], "arg_1": options}},
        "resps": [[one.text for one in own]],
        "filtered_resps": answers if len(answers) == 1 else [answers],
        "filter": "none",
        "metrics": ["exact_match"],
        "doc_hash": _hash(json.dumps(doc, indent=2, ensure_ascii=False)),
        "prompt_hash": _hash(str(first.prompt) if chat is None else chat),
        "target_hash": _hash(target),
        "exact_match": num_correct / len(judged) if judged else None,
        KEY: {"task": task, "decoding": first.decoding, "samples": [*map(_kept, own)]},
    }


def _kept(one: Sample) -> dict[str, Any]:
    judged = {"verdict": one.verdict.value, "answer": one.answer, "reason": one.reason}
    return {"index": one.index, **judged, **kept_of(one)}


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def read_log(
    path: Path, filter: str | None = None, metric: str | None = None, *, is_scored: bool = True
) -> Iterator[Sample]:
    """Yield the samples of a log of generations, the harness's or ours; one line is in memory.

    A document's only response is correct where its metric is 1 and incorrect where it is 0. It is greedy
    unless the request says `do_sample` or a temperature > 0; several responses are sampled.

    Args:
        path: JSON lines.
        filter: whose answers and metrics, where the harness applied several filters; None where it was one.
        metric: which metric is the verdict; None is the first of `METRICS` that is there, or the only one.
        is_scored: whether the verdicts are wanted; else any filter will do, for the responses are the same.

    Raises:
        SamplesError: a line is none of such a log, a document comes twice, there is no such filter or
            metric, or several filters and none is named.
    """
    filters: dict[str, None] = {}
    seen: set[tuple[str, str]] = set()
    for row, place in _rows(path):
        name = optional_field(row, "filter", str, place) or "none"
        filters.setdefault(name)
        if filter is None and not is_scored:
            filter = name
        if filter is None and len(filters) > 1:
            names = ", ".join(dict.fromkeys(_filter(other) for other, _ in _rows(path)))
            raise SamplesError(f"{place}: the log has the filters {names}; one is to be named (--filter)")
        if filter not in (None, name):
            continue
        samples = _own(row, place) if KEY in row else _theirs(row, metric, place)
        problem = (samples[0].problem_id, samples[0].decoding if KEY in row else "")
        if problem in seen:
            raise SamplesError(
                f"{place}: {problem[0]!r} comes a second time; the log of one task and run is wanted"
            )
        seen.add(problem)
        yield from samples
    if not filters:
        raise SamplesError(f"{path}: the file is empty; a line a document is wanted")
    if filter is not None and filter not in filters:
        raise SamplesError(f"{path}: there is no filter {filter!r} (--filter); there is {', '.join(filters)}")


def is_ours(path: Path) -> bool:
    """Say whether `write_log` wrote a log.

    Raises:
        SamplesError: its first line is none of such a log.
    """
    with closing(_rows(path)) as rows:
        return any(KEY in row for row, _ in islice(rows, 1))


def _filter(row: Mapping[str, Any]) -> str:
    return str(row.get("filter") or "none")


def _rows(path: Path) -> Generator[tuple[dict[str, Any], str], None, None]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    place = f"{path}:{number}"
                    row = parsed(line, place)
                    if not isinstance(row, dict) or "doc_id" not in row:
                        raise SamplesError(
                            f"{place}: this is no line of a sample log of lm-evaluation-harness: it has no "
                            "doc_id; nor has it problem_id and completion"
                        )
                    yield row, place
    except UnicodeDecodeError as error:
        raise SamplesError(f"{path}: a byte is not UTF-8; a log is text in UTF-8") from error
    except OSError as error:
        raise SamplesError(f"{path}: cannot be read: {error.strerror or error}") from error


def _request(row: Mapping[str, Any], place: str) -> tuple[str | Messages, dict[str, Any], list[str]]:
    """Return the prompt, the options and the responses of a document's only request."""
    requests = list(field(row, "arguments", dict, place).values())
    responses = field(row, "resps", list, place)
    if len(requests) != 1 or len(responses) != 1:
        raise SamplesError(
            f"{place}: {len(requests)} requests and {len(responses)} lists of responses: this is no "
            "generation but a multiple choice; a task whose output_type is generate_until is wanted"
        )
    request = as_object(requests[0], "gen_args_0", place)
    options = request.get("arg_1")
    texts = field({"resps": responses[0]}, "resps", list, place)
    if not isinstance(options, dict) or not all(isinstance(text, str) for text in texts):
        raise SamplesError(
            f"{place}: the request has no options, or a response is no text: these are log-likelihoods; a "
            "task whose output_type is generate_until is wanted"
        )
    if not texts:
        raise SamplesError(f"{place}: resps is empty; a response is wanted")
    return _prompt(request.get("arg_0"), place), options, texts


def _prompt(value: Any, place: str) -> str | Messages:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
        return messages_of(parsed(value[0], f"{place}: arg_0"), "arg_0", place)
    raise SamplesError(f"{place}: arg_0 is {found(value)}; a prompt, or a list with a chat's JSON, is wanted")


def _theirs(row: Mapping[str, Any], metric: str | None, place: str) -> list[Sample]:
    prompt, options, texts = _request(row, place)
    is_drawn = options.get("do_sample") if options.get("temperature") is None else options["temperature"]
    is_greedy = len(texts) == 1 and (not is_drawn or options.get("do_sample") is False)
    verdict, reason = _verdict(row, len(texts), metric, place)
    return [
        Sample(
            problem_id=id_of(row, "doc_id", place),
            prompt=prompt,
            reference=row.get("target"),
            decoding="greedy" if is_greedy else "sampled",
            index=index,
            text=text,
            verdict=verdict,
            reward=float(verdict is Verdict.CORRECT),
            answer=answer if answer != NO_ANSWER else None,
            reason=reason,
        )
        for index, (text, answer) in enumerate(zip(texts, _answers(row, len(texts), place), strict=True))
    ]


def _answers(row: Mapping[str, Any], number: int, place: str) -> list[str | None]:
    """Return what the filter left of each response; None of each where it chose among them."""
    left = optional_field(row, "filtered_resps", list, place) or [None]
    own = left[0] if isinstance(left[0], list) else [left[0]]
    if len(own) != number:
        return [None] * number
    return [one if isinstance(one, str) else None for one in own]


def _verdict(row: Mapping[str, Any], number: int, metric: str | None, place: str) -> tuple[Verdict, str]:
    listed = optional_field(row, "metrics", list, place)
    names = [str(name) for name in ([key for key in row if key not in _KEYS] if listed is None else listed)]
    if metric is not None and metric not in names:
        raise SamplesError(
            f"{place}: there is no metric {metric!r} (--metric); there is {', '.join(names) or 'none'}"
        )
    if number > 1:
        return Verdict.UNSCORABLE, f"the log has one figure for {number} samples; {AGAIN}"
    verdicts = [name for name in METRICS if name in names] or (names if len(names) == 1 else [])
    if metric is None and not verdicts:
        told = (
            f"the log has the metrics {', '.join(names)}, none known as right or wrong"
            if names
            else "no metric"
        )
        return Verdict.UNSCORABLE, f"{told}; {AGAIN}"
    name = verdicts[0] if metric is None else metric
    value = row.get(name)
    if isinstance(value, int | float) and value in (0, 1):
        return (Verdict.CORRECT if value else Verdict.INCORRECT), ""
    return Verdict.UNSCORABLE, f"{name} is {found(value)}, neither 0 nor 1; {AGAIN}"


def _own(row: Mapping[str, Any], place: str) -> list[Sample]:
    prompt, _, texts = _request(row, place)
    own, doc = field(row, KEY, dict, place), field(row, "doc", dict, place)
    kept = [as_object(one, f"a sample of {KEY}", place) for one in field(own, "samples", list, place)]
    if len(kept) != len(texts):
        raise SamplesError(f"{place}: {len(texts)} responses and {len(kept)} samples; as many are wanted")
    return [
        with_kept(
            Sample(
                problem_id=field(doc, "problem_id", str, place),
                prompt=prompt,
                reference=doc.get("reference"),
                decoding=decoding_of(own, place),
                index=field(one, "index", int, place),
                text=text,
                verdict=_own_verdict(one, place),
                reward=0.0,
                answer=optional_field(one, "answer", str, place),
                reason=field(one, "reason", str, place),
                group=optional_field(doc, "group", str, place),
                cluster=optional_field(doc, "cluster", str, place),
            ),
            one,
            place,
        )
        for text, one in zip(texts, kept, strict=True)
    ]


def _own_verdict(kept: Mapping[str, Any], place: str) -> Verdict:
    try:
        return Verdict(kept.get("verdict"))
    except ValueError as error:
        wanted = ", ".join(one.value for one in Verdict)
        raise SamplesError(f"{place}: verdict is {found(kept.get('verdict'))}; {wanted} is wanted") from error
