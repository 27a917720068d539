"""inspect_ai's eval logs: `.json`, and `.eval`, which is a zip of JSON files; a sample and epoch a solution.

Source: inspect_ai 0.3.285, log format 2.
"""

from __future__ import annotations

import json
import time
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rest_em.errors import SamplesError
from rest_em.samples import Decoding, Sample
from rest_em.storage import write_json
from rest_em.types import FinishReason, Verdict

SCORER = "rest_em"
OWN = ("reward", "finish_reason", "num_tokens", "is_format_valid", "group", "cluster", "vote", "reference")
"""Of each sample, what the log has no key for."""
_VALUES = {Verdict.CORRECT: "C", Verdict.INCORRECT: "I", Verdict.UNSCORABLE: "N"}
_STOPS: Mapping[str, FinishReason] = {"stop": "eos", "max_tokens": "length", "model_length": "length"}


def write_log(path: Path, samples: Iterable[Sample], task: str, model: str) -> None:
    """Write samples as a log in JSON; the epoch is the sample's index and 1.

    Args:
        path: a `.json` file.
        samples: of one decoding, for a problem's greedy solution and its first sample would be one epoch.
        task: the eval's name.
        model: the policy's name.

    Raises:
        SamplesError: there are samples of both decodings, or none.
    """
    every = list(samples)
    if len({one.decoding for one in every}) != 1:
        raise SamplesError(
            f"{path}: a log holds samples of one decoding; write greedy and sampled ones apart"
        )
    created = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())
    ids = list(dict.fromkeys(one.problem_id for one in every))
    epochs = max(one.index for one in every) + 1
    config = {"temperature": 0.0} if every[0].decoding == "greedy" else {}
    write_json(
        path,
        {
            "version": 2,
            "status": "success",
            "eval": {
                "created": created,
                "task": task,
                "dataset": {"samples": len(ids), "sample_ids": ids, "shuffled": False},
                "model": model,
                "model_generate_config": config,
                "config": {"epochs": epochs},
            },
            "plan": {"config": config},
            "results": {"total_samples": len(every), "completed_samples": len(every), "scores": []},
            "samples": [_sample(one, model) for one in every],
        },
    )


def _sample(one: Sample, model: str) -> dict[str, Any]:
    target = one.reference if isinstance(one.reference, str) else json.dumps(one.reference)
    stop = "max_tokens" if one.finish_reason == "length" else "stop"
    message = {"role": "assistant", "content": one.text}
    kept = {name: getattr(one, name) for name in OWN}
    return {
        "id": one.problem_id,
        "epoch": one.index + 1,
        "input": one.prompt if isinstance(one.prompt, str) else [*map(dict, one.prompt)],
        "target": target,
        "messages": [],
        "output": {"model": model, "choices": [{"message": message, "stop_reason": stop}]},
        "scores": {
            SCORER: {"value": _VALUES[one.verdict], "answer": one.answer, "explanation": one.reason or None}
        },
        "metadata": {"rest_em": kept},
    }


def read_log(path: Path, scorer: str | None = None) -> Iterator[Sample]:
    """Yield the samples of a log.

    Args:
        path: a `.json` or `.eval` file.
        scorer: whose scores are the verdicts, of several; None where there is one.

    Raises:
        SamplesError: it is no such log, a sample is not as inspect_ai writes it, or it has several scorers.
    """
    header, samples = _zipped(path) if path.suffix.lower() == ".eval" else _plain(path)
    try:
        config = header["eval"].get("model_generate_config") or {}
        is_repeated = (header["eval"].get("config") or {}).get("epochs", 1) not in (None, 1)
    except (KeyError, TypeError, AttributeError) as error:
        raise SamplesError(f"{path}: this is no log of inspect_ai: it has no `eval`") from error
    decoding: Decoding = "sampled" if is_repeated or config.get("temperature") else "greedy"
    for number, value in enumerate(samples, start=1):
        try:
            yield _read(value, decoding, scorer)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise SamplesError(f"{path}, sample {number}: {error}") from error


def _plain(path: Path) -> tuple[Mapping[str, Any], Sequence[Any]]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SamplesError(f"{path}: this is not JSON: {error}") from error
    if not isinstance(value, dict) or not isinstance(value.get("samples"), list):
        raise SamplesError(f"{path}: this is no log of inspect_ai with samples; it has no list `samples`")
    return value, value["samples"]


def _zipped(path: Path) -> tuple[Mapping[str, Any], Iterator[Any]]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.startswith("samples/")]
            if not names or "header.json" not in archive.namelist():
                raise SamplesError(
                    f"{path}: this is no log of inspect_ai with samples (header.json, samples/)"
                )
            return json.loads(archive.read("header.json")), _members(path, names)
    except (zipfile.BadZipFile, ValueError) as error:
        if isinstance(error, SamplesError):
            raise
        raise SamplesError(f"{path}: this is no log of inspect_ai: {error}") from error


def _members(path: Path, names: Sequence[str]) -> Iterator[Any]:
    with zipfile.ZipFile(path) as archive:
        for name in names:
            yield json.loads(archive.read(name))


def _read(value: Mapping[str, Any], decoding: Decoding, scorer: str | None) -> Sample:
    own = (value.get("metadata") or {}).get("rest_em") or {}
    score = _score(value.get("scores") or {}, scorer)
    verdict = _verdict(score.get("value"))
    choices = value["output"].get("choices") or []
    content = choices[0]["message"]["content"] if choices else ""
    text = content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
    asked = value["input"]
    stop = choices[0].get("stop_reason", "") if choices else ""
    return Sample(
        problem_id=str(value["id"]),
        prompt=asked if isinstance(asked, str) else tuple(asked),
        reference=own.get("reference", value.get("target")),
        decoding=decoding,
        index=int(value.get("epoch", 1)) - 1,
        text=text,
        verdict=verdict,
        reward=float(own.get("reward", verdict is Verdict.CORRECT)),
        answer=score.get("answer"),
        reason=score.get("explanation") or "",
        finish_reason=own["finish_reason"] if own else _STOPS.get(stop),
        num_tokens=own.get("num_tokens"),
        is_format_valid=own.get("is_format_valid"),
        group=own.get("group"),
        cluster=own.get("cluster"),
        vote=own.get("vote"),
    )


def _score(scores: Mapping[str, Any], scorer: str | None) -> Mapping[str, Any]:
    if scorer is None and len(scores) > 1:
        raise ValueError(f"there are scores of {', '.join(scores)}; one scorer is wanted")
    if scorer is not None and scorer not in scores:
        raise ValueError(f"there is no score of {scorer}; there are {', '.join(scores) or 'none'}")
    found: Mapping[str, Any] = next(iter(scores.values()), {}) if scorer is None else scores[scorer]
    return found


def _verdict(value: Any) -> Verdict:
    """Return a score of inspect_ai as a verdict; what is neither right nor wrong cannot be counted."""
    if value in ("C", 1, True):
        return Verdict.CORRECT
    return Verdict.INCORRECT if value in ("I", 0, False) else Verdict.UNSCORABLE
