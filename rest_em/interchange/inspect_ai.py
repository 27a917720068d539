"""inspect_ai's eval logs: `.json`, and `.eval`, which is a zip of JSON files; a sample and epoch a solution.

A log of ours has no events, and of the metrics the accuracy alone. Left out: scores of several values.
Source: inspect_ai 0.3.285, log format 2, `log/_log.py` and `log/_recorders/`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import struct
import time
import zipfile
import zlib
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from rest_em.errors import SamplesError
from rest_em.interchange.json_text import (
    KEY,
    as_object,
    decoding_of,
    field,
    found,
    id_of,
    kept_of,
    members,
    messages_of,
    optional_field,
    parsed,
    text_of,
    with_kept,
)
from rest_em.samples import Decoding, Sample
from rest_em.storage import replacing
from rest_em.types import FinishReason, Verdict

SCORER = KEY
"""Whose scores are the verdicts in a log of ours."""
ROLES = ("system", "user", "assistant", "tool")
SUFFIXES = (".json", ".eval")

_VALUES = {Verdict.CORRECT: "C", Verdict.INCORRECT: "I", Verdict.UNSCORABLE: math.nan}
"""NaN is `Score.unscored`, which no metric counts; N would be an answer that was not given, and wrong."""
_CORRECT = ("c", "yes", "true", "1", "1.0")
_INCORRECT = ("i", "n", "no", "false", "0", "0.0")
"""As `value_to_float` of inspect_ai/scorer/_metric.py, in lower case."""
_ZIP = b"PK\x03\x04"
_ZSTANDARD = 93
"""The zip method that inspect_ai writes with, which `zipfile` reads from Python 3.14 on."""


@dataclass(frozen=True, slots=True)
class _Header:
    """What a log says of all its samples."""

    epochs: int
    is_hot: bool
    """Whether the temperature is > 0."""
    has_stops: bool
    """Whether there were stop strings, so that `stop` may be one or the end token."""


def write_log(path: Path, samples: Iterable[Sample], task: str, model: str) -> None:
    """Write samples as a log; the epoch is the sample's index and 1.

    Args:
        path: `.json`, or `.eval`, which is smaller.
        samples: of one decoding, for a problem's greedy solution and its first sample would be one epoch.
        task: the eval's name.
        model: the policy's name.

    Raises:
        SamplesError: there are samples of both decodings, none, or one index twice, a message has a role
            that inspect_ai does not know, or the path has another suffix.
    """
    every = list(samples)
    _check(path, every)
    header = _header_json(every, task, model)
    if path.suffix.lower() == ".eval":
        _write_zip(path, header, every, model)
        return
    text = json.dumps(header, indent=2, ensure_ascii=False)
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(f'{text[:-2]},\n  "samples": [\n')
        for number, one in enumerate(every, start=1):
            file.write(json.dumps(_sample_json(one, model), ensure_ascii=False))
            file.write("\n" if number == len(every) else ",\n")
        file.write("  ]\n}\n")


def _check(path: Path, every: Sequence[Sample]) -> None:
    if path.suffix.lower() not in SUFFIXES:
        raise SamplesError(f"{path}: inspect_ai's logs end in {' or '.join(SUFFIXES)}; take one of them")
    if len({one.decoding for one in every}) != 1:
        raise SamplesError(
            f"{path}: a log holds samples of one decoding; take --decoding greedy or --decoding sampled"
        )
    seen: set[tuple[str, int]] = set()
    for one in every:
        place = f"{path}: problem {one.problem_id!r}"
        if (one.problem_id, one.index) in seen:
            raise SamplesError(f"{place}: the index {one.index} is there twice; one policy's are wanted")
        seen.add((one.problem_id, one.index))
        roles = [] if isinstance(one.prompt, str) else [message["role"] for message in one.prompt]
        if not set(roles) <= set(ROLES):
            raise SamplesError(
                f"{place}: the roles are {', '.join(roles)}; inspect_ai has {', '.join(ROLES)}"
            )


def _header_json(every: Sequence[Sample], task: str, model: str) -> dict[str, Any]:
    ids = list(dict.fromkeys(one.problem_id for one in every))
    created = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())
    identity = hashlib.sha256(f"{task}\0{model}\0{created}".encode()).hexdigest()[:22]
    config = {"temperature": 0.0} if every[0].decoding == "greedy" else {}
    return {
        "version": 2,
        "status": "success",
        "eval": {
            "eval_id": identity,
            "run_id": identity,
            "created": created,
            "task": task,
            "task_id": identity,
            "dataset": {"samples": len(ids), "sample_ids": ids, "shuffled": False},
            "model": model,
            "model_generate_config": config,
            "config": {"epochs": max(one.index for one in every) + 1},
        },
        "plan": {"config": config},
        "results": {
            "total_samples": len(every),
            "completed_samples": len(every),
            "scores": [_score_json(every)],
        },
    }


def _score_json(every: Sequence[Sample]) -> dict[str, Any]:
    """Return the accuracy: over problems, the mean of the mean over the epochs that have a score."""
    of_problem: dict[str, list[bool]] = {one.problem_id: [] for one in every}
    for one in every:
        if one.verdict is not Verdict.UNSCORABLE:
            of_problem[one.problem_id].append(one.verdict is Verdict.CORRECT)
    rates = [sum(each) / len(each) for each in of_problem.values() if each]
    accuracy = sum(rates) / len(rates) if rates else math.nan
    return {
        "name": SCORER,
        "scorer": SCORER,
        "scored_samples": len(rates),
        "unscored_samples": len(of_problem) - len(rates),
        "metrics": {"accuracy": {"name": "accuracy", "value": accuracy}},
    }


def _sample_json(one: Sample, model: str) -> dict[str, Any]:
    stops = {"eos": "stop", "stop_string": "stop", "length": "max_tokens", None: "unknown"}
    message = {"role": "assistant", "content": one.text}
    asked: Any = one.prompt if isinstance(one.prompt, str) else [*map(dict, one.prompt)]
    chat = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
    of_problem = {"reference": one.reference, "group": one.group, "cluster": one.cluster}
    return {
        "id": one.problem_id,
        "epoch": one.index + 1,
        "input": asked,
        "target": one.reference if isinstance(one.reference, str) else json.dumps(one.reference),
        "messages": [*chat, message],
        "output": {
            "model": model,
            "choices": [{"message": message, "stop_reason": stops[one.finish_reason]}],
        },
        "scores": {
            SCORER: {"value": _VALUES[one.verdict], "answer": one.answer, "explanation": one.reason or None}
        },
        "metadata": {KEY: {"decoding": one.decoding, **of_problem, **kept_of(one)}},
    }


def _write_zip(path: Path, header: Mapping[str, Any], every: Sequence[Sample], model: str) -> None:
    start = {name: header[name] for name in ("version", "eval", "plan")}
    summaries = []
    with (
        replacing(path) as temporary,
        zipfile.ZipFile(temporary, "w", compression=zipfile.ZIP_DEFLATED) as archive,
    ):
        archive.writestr("_journal/start.json", json.dumps(start))
        for one in every:
            value = _sample_json(one, model)
            archive.writestr(f"samples/{one.problem_id}_epoch_{one.index + 1}.json", json.dumps(value))
            names = ("id", "epoch", "input", "target", "scores", "metadata")
            summaries.append({name: value[name] for name in names} | {"completed": True})
        archive.writestr("summaries.json", json.dumps(summaries))
        archive.writestr("header.json", json.dumps(header))


def read_log(path: Path, scorer: str | None = None, *, is_scored: bool = True) -> Iterator[Sample]:
    """Yield the samples of a log, in its order; one sample is in memory.

    They are sampled where the eval has several epochs or a temperature > 0, else greedy; a log of ours says
    it of each. C, true and 1 are correct; I, N (no answer), false and 0 are incorrect; what is between, such
    as P, and what was not scored is unscorable.

    Args:
        path: JSON, or a zip of JSON files.
        scorer: whose scores are the verdicts; None where there is one.
        is_scored: whether the verdicts are wanted; else no score is looked at.

    Raises:
        SamplesError: it is no such log, a sample is not as inspect_ai writes it or comes twice, there is no
            such scorer, or several and none is named.
    """
    used = scorer
    seen: set[tuple[str, int]] = set()
    for header, value, place in _parts(path):
        scores = (optional_field(value, "scores", dict, place) or {}) if is_scored else {}
        if scorer is None and len({used or "", *scores} - {""}) > 1:
            names = ", ".join(dict.fromkeys([*([used] if used else []), *scores]))
            raise SamplesError(f"{place}: there are scores of {names}; one is to be named (--scorer)")
        if scorer is not None and scores and scorer not in scores:
            raise SamplesError(
                f"{place}: there is no score of {scorer} (--scorer); there is {', '.join(scores)}"
            )
        used = used or next(iter(scores), None)
        sample = _sample(value, header, used, place)
        if (sample.problem_id, sample.index) in seen:
            raise SamplesError(
                f"{place}: {sample.problem_id!r}, epoch {sample.index + 1}, comes twice; one eval is wanted"
            )
        seen.add((sample.problem_id, sample.index))
        yield sample
    if not seen:
        raise SamplesError(
            f"{path}: this log of inspect_ai holds no sample; was it written with log_samples?"
        )


def is_ours(path: Path) -> bool:
    """Say whether `write_log` wrote a log.

    Raises:
        SamplesError: it is no such log.
    """
    with closing(_parts(path)) as parts:
        return any(KEY in (value.get("metadata") or {}) for _, value, _ in islice(parts, 1))


def _parts(path: Path) -> Generator[tuple[_Header, dict[str, Any], str], None, None]:
    """Yield the header with each sample and its place."""
    yield from _zip_parts(path) if is_zip(path) else _json_parts(path)


def is_zip(path: Path) -> bool:
    """Say whether a file begins as a zip; half of one does, too.

    Raises:
        SamplesError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(len(_ZIP)) == _ZIP
    except OSError as error:
        raise SamplesError(f"{path}: cannot be read: {error.strerror or error}") from error


def _json_parts(path: Path) -> Iterator[tuple[_Header, dict[str, Any], str]]:
    """Yield the header with each sample and its place, of a JSON file.

    The header comes first in the file: inspect_ai's `EvalLog` makes its order a part of the format.
    """
    values: dict[str, Any] = {}
    header: _Header | None = None
    for key, value, place in members(path, "samples"):
        if key != "samples":
            values[key] = value
            continue
        header = header or _header(values, str(path))
        if value is not None:
            yield header, as_object(value, "a sample", place), place
    if header is None:
        _header(values, str(path))


def _zip_parts(path: Path) -> Iterator[tuple[_Header, dict[str, Any], str]]:
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            # The last of a name is the one that counts, for a sample that was run again is appended.
            entries = {entry.filename: entry for entry in archive.infolist()}
            # Without header.json the eval is not finished.
            start = entries.get("header.json") or entries.get("_journal/start.json")
            if start is None:
                raise SamplesError(f"{path}: this zip is no log of inspect_ai: it has no header.json")
            place = f"{path}: {start.filename}"
            header = _header(as_object(_entry(file, archive, start, place), "the header", place), place)
            for name, entry in entries.items():
                if name.startswith("samples/") and name.endswith(".json"):
                    place = f"{path}: {name}"
                    yield header, as_object(_entry(file, archive, entry, place), "a sample", place), place
    except (zipfile.BadZipFile, NotImplementedError, OSError) as error:
        raise SamplesError(f"{path}: cannot be read: {error}") from error


def _entry(file: BinaryIO, archive: zipfile.ZipFile, entry: zipfile.ZipInfo, place: str) -> Any:
    """Return the JSON value of a zip's entry."""
    try:
        packed = entry.compress_type == _ZSTANDARD
        content = _unpacked(file, entry) if packed else archive.read(entry)
        return parsed(content.decode(), place)
    except UnicodeDecodeError as error:
        raise SamplesError(f"{place}: a byte is not UTF-8; a log is text in UTF-8") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, struct.error) as error:
        # RuntimeError: a password is wanted; NotImplementedError, its child: another compression.
        raise SamplesError(f"{place}: cannot be unpacked: {error}") from error


def _unpacked(file: BinaryIO, entry: zipfile.ZipInfo) -> bytes:
    """Return an entry that is packed with Zstandard, by pyarrow, which rest_em has anyway."""
    import pyarrow as pa

    file.seek(entry.header_offset)
    # The local header has 30 bytes, the last four of them the lengths of the name and of what else follows.
    file.seek(sum(struct.unpack("<26xHH", file.read(30))), os.SEEK_CUR)
    packed = pa.BufferReader(file.read(entry.compress_size))
    with pa.CompressedInputStream(packed, "zstd") as stream:
        content: bytes = stream.read()
    if zlib.crc32(content) != entry.CRC:
        raise zipfile.BadZipFile("the checksum is another one")
    return content


def _header(values: Mapping[str, Any], place: str) -> _Header:
    if not isinstance(values.get("eval"), dict):
        raise SamplesError(f"{place}: this is no log of inspect_ai: there is no eval before the samples")
    spec = values["eval"]
    plan = optional_field(values, "plan", dict, place) or {}
    overrides = optional_field(plan, "config", dict, place) or {}
    config = {
        **(optional_field(spec, "model_generate_config", dict, place) or {}),
        **{key: value for key, value in overrides.items() if value is not None},
    }
    epochs = optional_field(optional_field(spec, "config", dict, place) or {}, "epochs", int, place)
    return _Header(
        epochs=epochs or 1,
        is_hot=bool(config.get("temperature")),
        has_stops=bool(config.get("stop_seqs")),
    )


def _sample(value: Mapping[str, Any], header: _Header, scorer: str | None, place: str) -> Sample:
    number = id_of(value, "id", place)
    epoch = field(value, "epoch", int, place)
    place = f"{place}: sample {number!r}, epoch {epoch}"
    if not 1 <= epoch <= header.epochs:
        raise SamplesError(f"{place}: the eval says it has {header.epochs} epochs (eval.config.epochs)")
    asked = value.get("input")
    text, stop, num_tokens = _output(value, header, place)
    verdict, answer, reason = _judged(value, scorer, place)
    decoding: Decoding = "sampled" if header.epochs > 1 or header.is_hot else "greedy"
    sample = Sample(
        problem_id=number,
        prompt=asked if isinstance(asked, str) else messages_of(asked, "input", place),
        reference=value.get("target"),
        decoding=decoding,
        index=epoch - 1,
        text=text,
        verdict=verdict,
        reward=float(verdict is Verdict.CORRECT),
        answer=answer,
        reason="" if reason == text else reason,  # the scorers `match` and `includes` explain it by the text
        finish_reason=stop,
        num_tokens=num_tokens,
    )
    metadata = optional_field(value, "metadata", dict, place) or {}
    kept = optional_field(metadata, KEY, dict, place)
    return sample if kept is None else _own(sample, kept, scorer, reason, place)


def _own(sample: Sample, kept: Mapping[str, Any], scorer: str | None, reason: str, place: str) -> Sample:
    """Return a sample of ours; where another scorer judged it since, with that one's verdict."""
    own = dataclasses.replace(
        with_kept(sample, kept, place),
        reference=kept.get("reference"),
        decoding=decoding_of(kept, place),
        group=optional_field(kept, "group", str, place),
        cluster=optional_field(kept, "cluster", str, place),
    )
    if scorer == SCORER:
        return dataclasses.replace(own, reason=reason)
    return dataclasses.replace(own, reward=sample.reward, vote=None)


def _output(
    value: Mapping[str, Any], header: _Header, place: str
) -> tuple[str, FinishReason | None, int | None]:
    """Return the solution's text, why it ends, and its number of tokens."""
    output = optional_field(value, "output", dict, place) or {}
    usage = optional_field(output, "usage", dict, place) or {}
    num_tokens = optional_field(usage, "output_tokens", int, place)
    choices = optional_field(output, "choices", list, place)
    if not choices:
        return "", None, num_tokens
    first = as_object(choices[0], "choices", place)
    message = field(first, "message", dict, place)
    stop: FinishReason | None = None
    match first.get("stop_reason"):
        case "stop":
            stop = None if header.has_stops else "eos"
        case "max_tokens" | "model_length":
            stop = "length"
    return text_of(message.get("content"), "content", place), stop, num_tokens


def _judged(value: Mapping[str, Any], scorer: str | None, place: str) -> tuple[Verdict, str | None, str]:
    """Return the verdict, the answer and the reason of a sample's score."""
    scores = optional_field(value, "scores", dict, place) or {}
    if scorer not in scores:
        error = optional_field(value, "error", dict, place) or {}
        told = str(error.get("message", "")).partition("\n")[0]
        reason = f"the sample ended with an error: {told}" if error else "the log has no score of it"
        return Verdict.UNSCORABLE, None, reason
    score = as_object(scores[scorer], f"the score of {scorer}", place)
    if "value" not in score:
        raise SamplesError(f"{place}: the score of {scorer} has no value; C or I, or a number, is wanted")
    verdict = _verdict(score["value"])
    told = optional_field(score, "explanation", str, place) or ""
    is_told = verdict is not Verdict.UNSCORABLE or told or scorer == SCORER
    reason = told if is_told else f"the score of {scorer} is {found(score['value'])}, neither right nor wrong"
    return verdict, optional_field(score, "answer", str, place), reason


def _verdict(value: Any) -> Verdict:
    """Return a score as a verdict.

    >>> [_verdict(value).value for value in ("C", 1.0, True, "N", 0, "P", 0.5)]
    ['correct', 'correct', 'correct', 'incorrect', 'incorrect', 'unscorable', 'unscorable']
    """
    if not isinstance(value, str | int | float):
        return Verdict.UNSCORABLE
    if value in (0, 1):
        return Verdict.CORRECT if value else Verdict.INCORRECT
    if isinstance(value, str) and value.lower() in _CORRECT:
        return Verdict.CORRECT
    is_wrong = isinstance(value, str) and value.lower() in _INCORRECT
    return Verdict.INCORRECT if is_wrong else Verdict.UNSCORABLE
