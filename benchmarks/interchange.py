"""Logs of the real lm-evaluation-harness and inspect_ai, made here and read by us, and ours read by them.

    pip install lm-eval==0.4.13 inspect-ai==0.3.285 && python benchmarks/interchange.py [FOLDER]

Their environment needs rest_em as well. No model is loaded and nothing is downloaded: the answers are canned.
What was seen is printed, and the exit status is 1 where something differs. The real logs are left in FOLDER;
those of tests/interchange were made so.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rest_em.errors import SamplesError
from rest_em.interchange import LogScores, inspect_ai, lm_eval, read_log
from rest_em.samples import Sample
from rest_em.types import Verdict

try:
    import inspect_ai as harness
    from inspect_ai.dataset import Sample as Question
    from inspect_ai.log import read_eval_log, read_eval_log_sample_summaries, write_eval_log
    from inspect_ai.model import ModelOutput, ModelUsage, get_model
    from inspect_ai.scorer import Score, Scorer, Target, accuracy, match, scorer
    from inspect_ai.solver import TaskState, generate
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.loggers import EvaluationTracker
except ImportError as error:
    sys.exit(f"{error}: pip install lm-eval==0.4.13 inspect-ai==0.3.285")

SUMS = [("What is 2 + 2?", "4"), ("What is 3 + 4?", "7")]
SAID = ["The answer is 4", "It is 5", "No idea", "7"]
READ = ("0/g0=c:4 1/g0=i:5", "sum-1/s0=c:4 sum-2/s0=i:5 sum-1/s1=u:None sum-2/s1=u:7")
"""What is read of the logs with two filters and two scorers, one of them named, where they say `SAID`."""
PROBLEM = Sample(
    "sum-1", "2+2=", {"cases": [4]}, "sampled", 0, " 4 \u2260 5", Verdict.CORRECT, 1.0, "4", "", "eos", 3,
    True, "sums", "page 7", "four",
)  # fmt: skip
OURS = [
    PROBLEM,
    Sample("sum-1", "2+2=", {"cases": [4]}, "sampled", 1, "5", Verdict.INCORRECT, 0.0, "5", "wrong",
           "stop_string", 1, False, "sums", "page 7"),
    Sample("a/b", ({"role": "system", "content": "Add."}, {"role": "user", "content": "1+1="}), "2",
           "sampled", 0, "...", Verdict.UNSCORABLE, 0.0, None, "timed out", "length", 9),
]  # fmt: skip


class Canned(LM):
    """Gives the answers of `SAID` in turn."""

    def generate_until(self, requests: list[Instance]) -> list[str]:
        return [SAID[number % len(SAID)] for number in range(len(requests))]

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        return [(-1.0 - number, number == 0) for number in range(len(requests))]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        return [-1.0 for _ in requests]


def lm_eval_tasks(data: Path) -> list[dict[str, Any]]:
    """Return tasks: one filter, two filters, two samples a document, and a multiple choice."""
    number = {"function": "regex", "group_select": -1, "regex_pattern": "(-?[0-9]+)"}
    first: dict[str, Any] = {"function": "take_first"}
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": "{{answer}}",
    }
    greedy = {"until": ["\n"], "do_sample": False}
    hot = {"until": ["\n"], "do_sample": True, "temperature": 0.7}
    sums = {**common, "output_type": "generate_until", "metric_list": [{"metric": "exact_match"}]}
    strict = {"name": "strict-match", "filter": [{**number, "regex_pattern": "is (-?[0-9]+)"}, first]}
    flexible = {"name": "flexible-extract", "filter": [number, first]}
    both = {"name": "all", "filter": [number, {"function": "take_first_k", "k": 2}]}
    choice = {
        "output_type": "multiple_choice",
        "doc_to_choice": ["4", "7"],
        "doc_to_target": "{{['4', '7'].index(answer)}}",
        "metric_list": [{"metric": "acc"}],
    }
    return [
        {**sums, "task": "one", "generation_kwargs": greedy},
        {**sums, "task": "filters", "generation_kwargs": greedy, "filter_list": [strict, flexible]},
        {**sums, "task": "repeats", "generation_kwargs": hot, "repeats": 2, "filter_list": [both]},
        {**common, **choice, "task": "choice"},
    ]


def make_lm_eval_logs(folder: Path) -> Iterator[Path]:
    """Yield a log of each task, written by the harness."""
    data = folder / "sums.jsonl"
    data.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in SUMS))
    for task in lm_eval_tasks(data):
        tracker = EvaluationTracker(output_path=str(folder / "out.json"))
        results = simple_evaluate(Canned(), tasks=[task], log_samples=True, bootstrap_iters=0)
        samples = results.pop("samples")
        tracker.save_results_aggregated(results, samples)
        tracker.save_results_samples(task["task"], samples[task["task"]])
        (written,) = folder.glob(f"samples_{task['task']}_*.jsonl")
        yield written.rename(folder / f"lm_eval_{task['task']}.jsonl")


@scorer(metrics=[accuracy()])
def lenient() -> Scorer:
    """Give a score of each kind: true, a number between 0 and 1, false, and none."""

    async def score(state: TaskState, target: Target) -> Score:
        said = state.output.completion
        if said == SAID[2]:
            return Score.unscored(explanation="cannot tell")
        return Score(value=0.5 if said == SAID[3] else target.text in said, answer=said[-1])

    return score


def make_inspect_logs(folder: Path) -> Iterator[Path]:
    """Yield logs written by inspect_ai, `.json` and `.eval`: one epoch, and two epochs with two scorers."""
    data = [Question(id=f"sum-{n}", input=q, target=a) for n, (q, a) in enumerate(SUMS, start=1)]
    for name, scorers, epochs in (("one", [match()], 1), ("epochs", [match(), lenient()], 2)):
        log = harness.eval(
            harness.Task(dataset=data, solver=[generate()], scorer=scorers, name=name),
            model=get_model("mockllm/model", custom_outputs=iter([_output(said) for said in SAID])),
            epochs=epochs,
            max_samples=1,
            log_dir=str(folder / "logs"),
            display="none",
        )[0]
        for sample in log.samples or []:
            sample.events = []  # for size: they hold each message again
            sample.events_data = None
        for suffix in (".json", ".eval"):
            path = folder / f"inspect_ai_{name}{suffix}"
            write_eval_log(log, str(path))
            yield path


def _output(said: str) -> ModelOutput:
    output = ModelOutput.from_content("mockllm/model", said, "max_tokens" if said == SAID[2] else "stop")
    output.usage = ModelUsage(
        input_tokens=5, output_tokens=len(said.split()), total_tokens=5 + len(said.split())
    )
    return output


def shown(path: Path, **named: str) -> str:
    """Return what we read of a log, a letter a sample, or the error."""
    try:
        return " ".join(
            f"{one.problem_id}/{one.decoding[0]}{one.index}={one.verdict.value[0]}:{one.answer}"
            for one in read_log(path, LogScores(**named))
        )
    except SamplesError as error:
        return f"error: {str(error).replace(str(path.parent) + '/', '')}"


def is_ours_read_by_inspect(folder: Path, suffix: str) -> bool:
    """Say whether inspect_ai reads what we write, with scores, and what it writes again is ours again."""
    path, again = folder / f"ours{suffix}", folder / f"again{suffix}"
    inspect_ai.write_log(path, OURS, "sums", "base")
    log = read_eval_log(str(path))
    summaries = read_eval_log_sample_summaries(str(path))
    write_eval_log(log, str(again))
    scores = {(one.id, one.epoch): one.scores["rest_em"] for one in log.samples or [] if one.scores}
    values = {key: score.as_str() for key, score in scores.items()}
    print(
        f"  {path.name}: {values}, {log.results.scores[0].metrics['accuracy'].value if log.results else None}"
    )
    key = lambda one: (one.problem_id, one.index)  # noqa: E731
    return (
        values == {("sum-1", 1): "C", ("sum-1", 2): "I", ("a/b", 1): "nan"}
        and {one.completion for one in (sample.output for sample in log.samples or [])}
        == {o.text for o in OURS}
        and len(summaries) == len(OURS)
        and list(read_log(path)) == OURS
        and sorted(read_log(again), key=key) == sorted(OURS, key=key)
    )


def has_keys_of_lm_eval(folder: Path, theirs: Path) -> bool:
    """Say whether our line has the keys, their order and the kinds of the harness's own, and one more."""
    path = folder / "ours.jsonl"
    lm_eval.write_log(path, OURS, "sums")
    own = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
    row = json.loads(theirs.read_text(encoding="utf-8").splitlines()[0])
    print(f"  theirs: {', '.join(row)}\n  ours:   {', '.join(own)}")
    return (
        [*row, "rest_em"] == [*own]
        and all(type(own[name]) is type(row[name]) for name in row)
        and own["filtered_resps"] == [["4", "5"]]
        and list(read_log(path)) == OURS
    )


def main() -> None:
    """Make, read and compare."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        logs = [*make_lm_eval_logs(folder), *make_inspect_logs(folder)]
        print("their logs, read by us:")
        for path in logs:
            print(f"  {path.name}: {shown(path)}")
        flexible = shown(folder / "lm_eval_filters.jsonl", filter="flexible-extract")
        lenient = shown(folder / "inspect_ai_epochs.eval", scorer="lenient")
        print(f"  flexible-extract: {flexible}\n  lenient: {lenient}")
        is_read = (flexible, lenient) == READ
        print("ours, read by inspect_ai:")
        checks = {
            f"inspect_ai{suffix}": is_ours_read_by_inspect(folder, suffix) for suffix in (".json", ".eval")
        }
        print("ours beside lm_eval's:")
        checks["lm_eval"] = has_keys_of_lm_eval(folder, folder / "lm_eval_repeats.jsonl")
        checks["their logs"] = is_read
        print(checks)
        for path in logs if len(sys.argv) > 1 else []:
            shutil.copy(path, sys.argv[1])
    sys.exit(0 if all(checks.values()) else 1)


if __name__ == "__main__":
    main()
