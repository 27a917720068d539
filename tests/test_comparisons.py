"""The paper's comparisons, as whole runs: human solutions alone, from the previous policy, distilled."""

from __future__ import annotations

import importlib
import io
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftConfig
from rich.console import Console
from safetensors.torch import load_file
from tiny_run import RUN
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rest_em.algorithm import rest_em, survey
from rest_em.cli import STAGES
from rest_em.evaluating import target_of_run
from rest_em.ledger import Ledger, Stage, write_status
from rest_em.problem_sets import ProblemSets
from rest_em.recipe import load_recipe
from rest_em.report.progress import Progress
from rest_em.report.table import summarize_run
from rest_em.run import Judges, Run, Workplace
from rest_em.storage import read_examples, read_json, write_text
from rest_em.training.retokenized import are_equal, with_own_tokens
from rest_em.types import TrainingExample

BRIEF = (
    "evaluation.num_samples=0", "evaluation.num_train_problems=0", "training.num_train_epochs=1",
    "prompt.base=[{name: bare}]",
)  # fmt: skip


class _Here:
    """Runs a stage in this process, which spares each its imports."""

    def __init__(self) -> None:
        self.specs: dict[str, Any] = {}
        """What each stage was asked to do, by its label."""

    def run(self, stage: str, spec: Mapping[str, Any], *, label: str, meanwhile: Callable[[], None]) -> None:
        self.specs[label] = spec
        importlib.import_module(STAGES[stage]).main(json.loads(json.dumps(spec)))
        meanwhile()


@pytest.fixture
def here(fresh: Path, own_environment: None, monkeypatch: pytest.MonkeyPatch) -> _Here:
    """Work in a folder with the tiny recipe."""
    monkeypatch.chdir(fresh)
    torch.set_num_threads(1)
    return _Here()


def run(
    here: _Here, *overrides: str, folder: Path = RUN, again: str | None = None, is_survey: bool = False
) -> tuple[str, Ledger]:
    """Run the tiny recipe to its end, a stage of it `again`; return what it said, and its ledger."""
    recipe, said, ledger = load_recipe(Path("tiny.yaml"), [*BRIEF, *overrides]), io.StringIO(), Ledger(folder)
    if again is not None:
        ledger.reset(again)
    supervisor: Any = here
    with Judges() as judges:
        ledger = Ledger(folder, is_survey=is_survey)
        place = Workplace(folder, ledger, supervisor, judges, Progress(Console(file=said)))
        (survey if is_survey else rest_em)(Run(recipe, place, ProblemSets(recipe)))
    write_status(folder, "finished")
    return said.getvalue(), ledger


def results(ledger: Ledger) -> dict[str, dict[str, Any]]:
    return {one["stage"]: one["result"] for one in ledger.records}


def test_human_solutions_alone_are_tuned_on_and_nothing_is_sampled_for_them(
    here: _Here, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    said, ledger = run(here, "selection.human_solutions=only", "problems.solution=' {{ question }}'")
    done = results(ledger)
    assert not [name for name in done if name.startswith(("iteration-01/samples", "iteration-01/verdicts"))]
    examples = read_examples(RUN / "iteration-01" / "dataset.parquet")
    assert [(one.index, one.text) for one in examples] == [(None, f" tr{k}") for k in range(16)]
    lengths = [len(tiny_tokenizer.encode(one.text, add_special_tokens=False)) + 1 for one in examples]
    assert done["iteration-01/training"]["num_tokens"] == sum(lengths), "each with its end"
    # Its reward wants an even length, and ` tr10` has five characters.
    assert "6 of 16 human solutions are not correct by the reward, which leaves none of them out" in said
    assert said.count("\n  train-1") == 3
    (_, first) = summarize_run(RUN).to_json()["iterations"]
    assert (first["num_sampled"], first["num_kept"], first["num_human"]) == (0, 16, 16)
    assert first["num_human_rejected"] == 6
    assert len(first["pass_at"]) == 1, "the policy is measured as any other"
    # Other human solutions are another D_1; a finished run knows it.
    _, seen = run(here, "selection.human_solutions=only", "problems.solution=question", is_survey=True)
    assert list(seen.conflicts) == ["iteration-01/dataset"]


def test_an_iteration_may_tune_the_policy_before_it_with_new_adapters(here: _Here) -> None:
    lora = "lora={r: 2, lora_alpha: 4, target_modules: [q_proj]}"
    _, ledger = run(here, "training.train_from=previous", "num_iterations=2", lora)
    first, second = (load_file(RUN / f"iteration-0{i}/policy/model.safetensors") for i in (1, 2))
    adapter = load_file(RUN / "iteration-02/policy/adapter/adapter_model.safetensors")
    config = PeftConfig.from_pretrained(str(RUN / "iteration-02/policy/adapter"))
    assert Path(str(config.base_model_name_or_path)) == RUN / "iteration-01/policy"
    for name, weight in first.items():
        layer = f"base_model.model.{name.removesuffix('.weight')}"
        change = torch.zeros_like(weight)
        if "q_proj" in name:
            change = 2 * adapter[f"{layer}.lora_B.weight"] @ adapter[f"{layer}.lora_A.weight"]
            assert change.abs().max() > 0
        torch.testing.assert_close(second[name], weight + change)
    # Step 0 of the choice is what was tuned, and it is not drawn on D_val again.
    done = results(ledger)
    scores = [done[f"iteration-0{i}/policy"]["validation"] for i in (1, 2)]
    assert scores[1][0] == scores[0][1]
    after = {one["stage"]: one["after"] for one in ledger.records}
    assert after["iteration-02/policy"] == ["iteration-01/policy", "iteration-02/validation/epoch-1/verdicts"]
    assert after["iteration-02/training"] == ["iteration-02/dataset", "iteration-01/policy"]
    # The other way is another M-step from the second iteration on.
    _, seen = run(here, "num_iterations=2", lora, is_survey=True)
    assert seen.conflicts == {"iteration-02/training": ["training.train_from: 'previous' -> 'base'"]}


def test_where_the_previous_policy_stays_the_policy_is_its_folder(tmp_path: Path, fresh: Path) -> None:
    """D_val chose nothing that iteration 2 trained."""
    text = (fresh / "tiny.yaml").read_text("utf-8")
    for kind, expected in (("previous", "iteration-01/policy"), ("base", "org/base")):
        folder = tmp_path / kind
        (folder / "iteration-01" / "policy").mkdir(parents=True)
        model = text.replace(str(text.split("name_or_path: ")[1].split(",")[0]), "org/base")
        write_text(folder / "recipe.yaml", model.replace("training: {", f"training: {{train_from: {kind}, "))
        for number, chosen in ((1, 1), (2, 0)):
            result = {"chosen": chosen, "validation": [0.5, 0.4]}
            Ledger(folder).append(Stage(f"iteration-0{number}/policy", {}), result, seconds=0.0)
        (policy,) = target_of_run(folder, "2").policies
        assert policy.policy.path.endswith(expected)
        assert policy.policy.iteration == 2


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    """The tiny model with a tokenizer that numbers the words the other way round, and has no merges."""
    folder = tmp_path_factory.mktemp("teacher") / "llama"
    shutil.copytree(tiny_model_folder, folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    words = [word for word in tokenizer["model"]["vocab"] if word not in ("<pad>", "<s>", "</s>")]
    bytes_alone = sorted((word for word in words if len(word) == 1), reverse=True)
    order = ["<pad>", "<s>", "</s>", *bytes_alone, *(word for word in words if len(word) > 1)]
    tokenizer["model"] |= {"vocab": {word: k for k, word in enumerate(order)}, "merges": []}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    return folder


def test_a_distilled_model_learns_the_teachers_texts_in_its_own_tokens(
    here: _Here, teacher: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    named = f"sampling.model={{name_or_path: {teacher}, dtype: float32}}"
    _, ledger = run(here, named, "prompt.teacher={examples: examples.jsonl}")
    policies = {
        label: {one["policy"] for one in spec["draws"]}
        for label, spec in here.specs.items()
        if label.endswith("-sample")
    }
    assert policies.pop("iteration-01-sample") == {str(teacher)}
    assert all(str(teacher) not in names for names in policies.values()), "the student is measured"
    request = read_json(RUN / "iteration-01" / "samples" / "request.json")
    assert request["problems"][0]["prompt"] == "a=bc\n\ntr0="
    examples = read_examples(RUN / "iteration-01" / "dataset.parquet")
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    sampled = [one for one in examples if one.finish_reason == "stop_string"]
    assert sampled
    texts = [tokenizer.decode(one.token_ids, skip_special_tokens=True) for one in sampled]
    assert texts == [one.text for one in sampled], "D_1 has what was sampled"
    lengths = [len(tiny_tokenizer.encode(one.text, add_special_tokens=False)) + 1 for one in examples]
    assert results(ledger)["iteration-01/training"]["num_tokens"] == sum(lengths)
    # Its copy trains on the human solutions of the problems that it solved, and draws no E-step again.
    copy, start = RUN.with_name("human"), "iteration-01/dataset"
    shutil.copytree(RUN, copy)
    here.specs.clear()
    solved = ("selection.human_solutions=solved", "problems.solution=question")
    run(here, named, "prompt.teacher={examples: examples.jsonl}", *solved, folder=copy, again=start)
    assert "iteration-01-train" in here.specs
    assert not [label for label in here.specs if label.startswith(("iteration-00", "iteration-01-sample"))]
    other = read_examples(copy / "iteration-01" / "dataset.parquet")
    assert [one.problem_id for one in other] == list(dict.fromkeys(one.problem_id for one in examples))
    assert {one.index for one in other} == {None}


def test_equal_tokenizers_share_token_ids_and_the_end_is_the_students(
    teacher: Path, tiny_model_folder: Path
) -> None:
    own, same = (AutoTokenizer.from_pretrained(tiny_model_folder) for _ in range(2))
    same.eos_token = "<pad>"  # as an instruction-tuned model of the same family ends otherwise
    foreign = AutoTokenizer.from_pretrained(teacher)
    assert are_equal(own, same)
    assert not are_equal(own, foreign)
    odd = tuple(own.encode("1", add_special_tokens=False) + own.encode("2", add_special_tokens=False))
    ended = TrainingExample("p", 0, "q=", (*odd, 0), "eos", 1.0, "12")
    stopped = TrainingExample("p", 1, "q=", odd, "stop_string", 1.0, "12")
    (one, two) = with_own_tokens([ended, stopped], own, same)
    assert (one.token_ids, one.finish_reason) == (odd, "stop_string")
    assert two == stopped, "what was sampled stays, although the text would be encoded otherwise"
    (anew,) = with_own_tokens([ended], own, foreign)
    assert anew.token_ids == tuple(own.encode("12", add_special_tokens=False)) != odd
    assert with_own_tokens([ended], own) == [ended]
