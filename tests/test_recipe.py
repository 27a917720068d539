"""Recipes: what is read, and the line that each mistake is told with."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import transformers
import yaml
from recipe_reference import PAGE, page_with_tables

import rest_em
from rest_em.errors import RecipeError
from rest_em.recipe import (
    OWNED_LORA_KEYS,
    OWNED_TRAINING_KEYS,
    Recipe,
    TrainingSection,
    check_files,
    check_library_keys,
    difference,
    dump_recipe,
    load_recipe,
    run_name_of,
)

SHIPPED = sorted((Path(__file__).parent.parent / "recipes").rglob("*.yaml"))

MINIMAL = """\
model: {name_or_path: org/base}
problems:
  train: {path: train.jsonl}
  test: {path: test.jsonl}
prompt:
  template: "{{ question }}"
reward: {name: number}
sampling:
  max_new_tokens: 32
"""

Load = Callable[..., Recipe]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Load MINIMAL with lines added (or another text), as `x.yaml` of the working directory."""
    monkeypatch.chdir(tmp_path)

    def load_text(added: str = "", *overrides: str, text: str = MINIMAL) -> Recipe:
        Path("x.yaml").write_text(text + added, encoding="utf-8")
        return load_recipe(Path("x.yaml"), overrides)

    return load_text


def lines_of(call: Callable[[], object]) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        call()
    return str(caught.value).splitlines()


# What is read


def test_the_defaults_are_the_papers_where_the_recipe_is_silent(load: Load) -> None:
    recipe = load()
    assert (recipe.sampling.num_samples, recipe.sampling.temperature, recipe.sampling.top_k) == (32, 0.7, 40)
    assert recipe.selection.max_solutions_per_problem == 10


def test_numbers_are_those_of_yaml_1_2(load: Load) -> None:
    training = load("training: {learning_rate: 1e-5, weight_decay: .5, warmup_steps: 010}\n").training
    assert training.learning_rate == 1e-5
    assert training.model_extra == {"weight_decay": 0.5, "warmup_steps": 10}


def test_yes_no_and_dates_are_text_and_true_is_not(load: Load) -> None:
    options = load(
        "", "reward.options={a: yes, b: off, c: 2024-01-01, d: true, e: ~, f: 0x1F}"
    ).reward.options
    assert options == {"a": "yes", "b": "off", "c": "2024-01-01", "d": True, "e": None, "f": 31}


def test_a_whole_number_does_where_a_number_is_wanted_and_a_list_where_a_tuple_is(load: Load) -> None:
    recipe = load("", "sampling.temperature=1", 'sampling.stop_strings=["\\n", Q]')
    assert recipe.sampling.temperature == 1.0
    assert recipe.sampling.stop_strings == ("\n", "Q")


def test_an_option_wins_over_the_file_and_the_last_over_the_first(load: Load) -> None:
    recipe = load("", "sampling.max_new_tokens=5", "sampling.max_new_tokens=6", "lora.r=4", "run_name=a")
    assert recipe.sampling.max_new_tokens == 6
    assert recipe.lora == {"r": 4}
    assert recipe.run_name == "a"


def test_an_option_may_set_a_whole_section_or_take_it_away(load: Load) -> None:
    text = MINIMAL + "lora: {r: 4}\n"
    assert load("", "lora=null", text=text).lora is None
    assert load("", "lora={lora_alpha: 2}", text=text).lora == {"lora_alpha": 2}


def test_an_alias_is_the_value_of_its_anchor(load: Load) -> None:
    recipe = load("run_name: &name demo\nlora: {target_modules: [*name]}\n")
    assert recipe.lora == {"target_modules": ["demo"]}


def test_a_tracker_that_is_not_known_or_named_twice_is_refused(load: Load) -> None:
    (line,) = lines_of(lambda: load("tracking: {report_to: [aim]}\n"))
    assert line == (
        "x.yaml:10: tracking.report_to is ['aim']; "
        "a list (each one of tensorboard, wandb, trackio, mlflow) is wanted"
    )
    (line,) = lines_of(lambda: load("tracking: {report_to: [wandb, wandb]}\n"))
    assert line == "x.yaml:10: tracking.report_to names wandb twice; once will do"


def test_pass_and_majority_are_measured_at_all_samples_unless_said_otherwise(load: Load) -> None:
    four = load("", "evaluation.num_samples=4").evaluation
    assert (four.pass_at, four.majority_at) == ((1, 4), (4,))
    none = load("", "evaluation.num_samples=0").evaluation
    assert (none.pass_at, none.majority_at) == ((1,), ())


def test_pass_at_1_needs_no_samples(load: Load) -> None:
    assert load("", "evaluation={num_samples: 0, pass_at: [1]}").evaluation.pass_at == (1,)


def test_reading_a_recipe_does_not_import_torch(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(MINIMAL)
    program = (
        "import sys; from pathlib import Path; from rest_em.recipe import load_recipe, check_files;"
        f"load_recipe(Path({str(tmp_path / 'x.yaml')!r}));"
        "print([name for name in ('torch', 'transformers', 'datasets', 'peft') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# Mistakes in the YAML


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    (line,) = lines_of(lambda: load_recipe(tmp_path / "no.yaml"))
    assert line == f"{tmp_path}/no.yaml: No such file or directory; a recipe (a YAML file) is wanted"


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    (line,) = lines_of(lambda: load_recipe(tmp_path))
    assert line == f"{tmp_path}: Is a directory; a recipe (a YAML file) is wanted"


def test_bytes_that_are_not_utf_8_are_told_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"seed: 1\nrun_name: \xff\n")
    (line,) = lines_of(lambda: load_recipe(path))
    assert line == f"{path}:2: a byte is not UTF-8; a recipe is text in UTF-8"


def test_a_control_character_is_told(load: Load) -> None:
    (line,) = lines_of(lambda: load("run_name: a\x07\n"))
    assert line.startswith("x.yaml:10: this is not YAML: ")


def test_yaml_that_does_not_parse_is_told_with_its_line(load: Load) -> None:
    (line,) = lines_of(lambda: load("training: {learning_rate: 1\nlora: 3\n"))
    assert line == "x.yaml:11: this is not YAML: expected ',' or '}', but got ':'"


@pytest.mark.parametrize("text", ["", "# nothing\n"])
def test_an_empty_file_says_what_is_wanted(load: Load, text: str) -> None:
    (line,) = lines_of(lambda: load(text=text))
    assert line == "x.yaml:1: nothing is here; the sections model, problems, prompt, ... are wanted"


def test_a_list_is_no_recipe(load: Load) -> None:
    (line,) = lines_of(lambda: load(text="- 1\n"))
    assert line == "x.yaml:1: no section is here; the sections model, problems, prompt, ... are wanted"


def test_a_key_that_is_given_twice_is_told_with_both_lines(load: Load) -> None:
    (line,) = lines_of(lambda: load("seed: 1\nnum_iterations: 2\nseed: 2\n"))
    assert line == "x.yaml:12: seed is given twice, first at x.yaml:10; leave one out"


def test_a_key_that_is_no_name_is_told(load: Load) -> None:
    lines = lines_of(lambda: load("lora:\n  1: 2\n  [a]: 3\n"))
    assert lines == [
        "x.yaml:11: a key of lora is 1; a name is wanted",
        "x.yaml:12: a key of lora is a list or section; a name is wanted",
    ]


def test_a_number_that_is_not_finite_is_told_once(load: Load) -> None:
    lines = lines_of(lambda: load("training: {learning_rate: .nan}\nreward_: 1e999\n"))
    assert lines[0] == (
        "x.yaml:10: training.learning_rate is '.nan'; a text, a finite number, true, false or null is wanted"
    )
    assert lines[1].startswith("x.yaml:11: reward_ is '1e999'; a text, a finite number")
    assert len(lines) == 2


def test_a_tag_of_another_language_is_refused(load: Load) -> None:
    (line,) = lines_of(lambda: load("run_name: !!python/name:os.system x\n"))
    assert line.startswith("x.yaml:10: run_name is !!python/name:os.system 'x'; a text, a finite number")


def test_half_a_surrogate_pair_is_no_text(load: Load) -> None:
    (line,) = lines_of(lambda: load('run_name: "\\ud83d"\n'))
    assert line.startswith("x.yaml:10: run_name is '\\ud83d'; a text, a finite number")


def test_an_alias_within_its_own_anchor_is_refused(load: Load) -> None:
    (line,) = lines_of(lambda: load("lora: &l {rank_pattern: *l}\n"))
    assert line == "x.yaml:10: lora.rank_pattern holds itself by its alias; write it out"


# Mistakes in keys and values


def test_an_unknown_key_is_told_with_the_nearest_right_one(load: Load) -> None:
    (line,) = lines_of(lambda: load("  num_sample: 3\n"))
    assert line == "x.yaml:10: unknown key sampling.num_sample; did you mean num_samples?"


def test_an_unknown_key_that_belongs_elsewhere_is_told_with_its_section(load: Load) -> None:
    (line,) = lines_of(lambda: load("stop_strings: [Q]\n"))
    assert line == "x.yaml:10: unknown key stop_strings; did you mean sampling.stop_strings?"


def test_an_unknown_key_that_resembles_none_is_told_with_those_there(load: Load) -> None:
    (line,) = lines_of(lambda: load("tracking: {xyz: 1}\n"))
    assert line == "x.yaml:10: unknown key tracking.xyz; the keys here are report_to, project"


def test_an_unknown_key_in_a_list_is_told_with_its_index(load: Load) -> None:
    (line,) = lines_of(lambda: load("", "prompt.base=[{}, {num_example: 2}]"))
    assert line == (
        "--set prompt.base=[{}, {num_example: 2}]: unknown key prompt.base[1].num_example; "
        "did you mean num_examples?"
    )


@pytest.mark.parametrize(
    ("added", "told"),
    [
        ("  temperature: hot", "sampling.temperature is 'hot'; a number >= 0 is wanted"),
        ("  temperature: -1", "sampling.temperature is -1; a number >= 0 is wanted"),
        ("  temperature: true", "sampling.temperature is true; a number >= 0 is wanted"),
        ("  num_samples: 2.5", "sampling.num_samples is 2.5; a whole number > 0 is wanted"),
        ("  num_samples: true", "sampling.num_samples is true; a whole number > 0 is wanted"),
        ("  num_samples: '3'", "sampling.num_samples is '3'; a whole number > 0 is wanted"),
        ("  top_p: 1.5", "sampling.top_p is 1.5; a number > 0 and <= 1 is wanted"),
        ("  top_p: 0", "sampling.top_p is 0; a number > 0 and <= 1 is wanted"),
        (
            "  stop_strings: Q",
            "sampling.stop_strings is 'Q'; a list (each a text that is not empty) is wanted",
        ),
        (
            "  stop_strings: [Q, '']",
            "sampling.stop_strings is ['Q', '']; a list (each a text that is not empty) is wanted",
        ),
        ("seed: 4294967296", "seed is 4294967296; a whole number >= 0 and < 4294967296 is wanted"),
        ("seed:", "seed is null; a whole number >= 0 and < 4294967296 is wanted"),
        ("training: {bf16: 3}", "training.bf16 is 3; true or false or 'auto' is wanted"),
        (
            "training: {checkpoint_choice: worst}",
            "training.checkpoint_choice is 'worst'; one of first_drop, best, last is wanted",
        ),
        ("training: {max_length: 0}", "training.max_length is 0; a whole number > 0 or null is wanted"),
        ("evaluation: {num_samples: -1}", "evaluation.num_samples is -1; a whole number >= 0 is wanted"),
        (
            "evaluation: {pass_at: [1, 0]}",
            "evaluation.pass_at is [1, 0]; a list (each a whole number > 0) is wanted",
        ),
        (
            "evaluation: {majority_at: [0]}",
            "evaluation.majority_at is [0]; a list (each a whole number > 0) is wanted",
        ),
        ("lora: 3", "lora is 3; a section or null is wanted"),
        (
            "selection: [a]",
            "selection is ['a']; a section (max_solutions_per_problem, deduplicate, human_solutions) is "
            "wanted",
        ),
    ],
)
def test_a_wrong_value_is_told_with_what_is_wanted(load: Load, added: str, told: str) -> None:
    (line,) = lines_of(lambda: load(f"{added}\n"))
    assert line == f"x.yaml:10: {told}"


def test_a_list_where_a_section_is_wanted_is_told(load: Load) -> None:
    text = MINIMAL.replace('prompt:\n  template: "{{ question }}"\n', "prompt: [a]\n")
    (line,) = lines_of(lambda: load(text=text))
    assert line.startswith("x.yaml:5: prompt is ['a']; a section (name, template, examples, ")


def test_max_new_tokens_below_1_is_refused(load: Load) -> None:
    (line,) = lines_of(lambda: load("", "sampling.max_new_tokens=0"))
    assert line == (
        "--set sampling.max_new_tokens=0: sampling.max_new_tokens is 0; a whole number > 0 is wanted"
    )


def test_a_long_value_is_shown_in_part(load: Load) -> None:
    (line,) = lines_of(lambda: load(f"seed: {'x' * 500}\n"))
    assert line == f"x.yaml:10: seed is '{'x' * 56}...; a whole number >= 0 and < 4294967296 is wanted"


def test_a_missing_section_is_told_at_the_top_and_a_missing_key_at_its_section(load: Load) -> None:
    text = MINIMAL.replace("reward: {name: number}\n", "").replace("  test: {path: test.jsonl}\n", "")
    assert lines_of(lambda: load(text=text)) == [
        "x.yaml:1: reward is missing; a section (name, function, signature, batch_size, columns, options, "
        "threshold, rewards, combine, answer, timeout_seconds, num_workers, max_unscorable, "
        "allow_code_execution, allow_weaker_isolation) is wanted",
        "x.yaml:2: problems.test is missing; a section (path, name, split, revision, "
        "data_files, field, where, max_problems) is wanted",
    ]


def test_all_mistakes_are_told_at_once_in_the_order_of_the_file(load: Load) -> None:
    added = "  num_sample: 3\n  temperature: hot\ntraining: {output_dir: x}\nseed: -1\nseed: 3\n"
    places = [line.split(": ")[0] for line in lines_of(lambda: load(added, "lora=3"))]
    assert places == ["x.yaml:10", "x.yaml:11", "x.yaml:12", "x.yaml:13", "x.yaml:14", "--set lora=3"]


# Combinations that cannot be


def test_greedy_sampling_draws_one_sample(load: Load) -> None:
    (line,) = lines_of(lambda: load("  temperature: 0\n  num_samples: 4\n"))
    assert line == (
        "x.yaml:10: sampling.temperature is 0 (greedy) and num_samples is 4: the samples would be equal; "
        "give a temperature > 0, or num_samples: 1"
    )
    assert load("  temperature: 0\n  num_samples: 1\n").sampling.temperature == 0


def test_k_is_at_most_the_number_of_samples(load: Load) -> None:
    lines = lines_of(
        lambda: load("evaluation:\n  num_samples: 4\n  pass_at: [1, 8]\n  majority_at: [2, 6]\n")
    )
    assert lines == [
        "x.yaml:12: evaluation.pass_at has k = 8 and evaluation.num_samples is 4; "
        "give num_samples: 8, or a smaller k",
        "x.yaml:13: evaluation.majority_at has k = 6 and evaluation.num_samples is 4; "
        "give num_samples: 6, or a smaller k",
    ]


def test_a_system_message_needs_the_chat_template(load: Load) -> None:
    (line,) = lines_of(lambda: load("", "prompt.system=be kind"))
    told = "cannot be: there is a system message and chat_template is false"
    advice = "set chat_template: true, or system: '' to have none"
    assert line == f"--set prompt.system=be kind: prompt.system {told}; {advice}"
    chat = ("prompt.system=a", "prompt.chat_template=true")
    (line,) = lines_of(lambda: load("", *chat, "prompt.base=[{chat_template: false}]"))
    assert line.endswith(f": prompt.base[0].chat_template {told}; {advice}")
    load("", *chat, "prompt.tuned={chat_template: false, system: ''}")


def test_a_share_of_train_is_not_split_off_beside_a_file_for_validation(load: Load) -> None:
    fraction = "problems.validation_fraction=0.2"
    (line,) = lines_of(lambda: load("", "problems.validation={path: v.jsonl}", fraction))
    assert line == (
        f"--set {fraction}: problems.validation_fraction is 0.2 and problems.validation is named, so nothing "
        "is split off; leave one out"
    )


def test_a_template_without_quotes_is_told_how_to_write_it(load: Load) -> None:
    bare = MINIMAL.replace('"{{ question }}"', "{{ question }}")
    line, *_ = lines_of(lambda: load(text=bare))
    assert line.endswith('a name is wanted; a text with braces stands in quotes: "{{ question }}"')


def test_an_item_of_a_list_cannot_be_set_alone(load: Load) -> None:
    (line,) = lines_of(lambda: load("", "prompt.base[0].name=x"))
    assert line.endswith("prompt.base is a list; set it whole, as in --set 'prompt.base=[...]'")


def test_a_number_that_python_does_not_read_is_told(load: Load) -> None:
    (line,) = lines_of(lambda: load(f"seed: {'9' * 5000}\n"))
    assert line.startswith("x.yaml:10: seed is ")


def test_shots_need_examples(load: Load) -> None:
    (line,) = lines_of(lambda: load("", "prompt.tuned.num_examples=2"))
    assert line.endswith("prompt.tuned.num_examples is 2 and no examples are named")


def test_two_candidates_do_not_share_a_name(load: Load) -> None:
    (line,) = lines_of(lambda: load("", "prompt.base=[{name: a}, {name: a}]"))
    assert line.endswith(": prompt.base[1].name is 'a', as prompt.base[0].name is already")


@pytest.mark.parametrize("name", ["../x", "a/b", ".x", "epoch-1", "Epoch-12", "a[1]", "x" * 101, "a\\n"])
def test_a_prompts_name_is_the_name_of_a_folder_that_no_checkpoint_has(load: Load, name: str) -> None:
    (line,) = lines_of(lambda: load("", f'prompt.base=[{{name: "{name}"}}]'))
    assert ": prompt.base[0].name is " in line
    assert "letters, digits, spaces, dots, dashes, underscores and parentheses are wanted" in line


def test_a_prompts_name_may_have_spaces_and_parentheses(load: Load) -> None:
    names = ("2-shot chat (2)", "epoch-like", "a.b_c")
    recipe = load("", "prompt.base=[" + ", ".join(f"{{name: {name}}}" for name in names) + "]")
    assert tuple(variant.name for variant in recipe.prompt.base) == names


def test_a_template_that_does_not_parse_is_told_with_its_line(load: Load) -> None:
    text = MINIMAL.replace('template: "{{ question }}"', "template: |\n    Q\n    {{ question }")
    (line,) = lines_of(lambda: load(text=text))
    assert line == "x.yaml:6: prompt.template is no Jinja template: line 2 of it: unexpected '}'"


def test_a_hub_data_set_needs_a_split(load: Load) -> None:
    (line,) = lines_of(lambda: load(text=MINIMAL.replace("train.jsonl", "openai/gsm8k")))
    assert line == (
        "x.yaml:3: problems.train.split is missing and the path 'openai/gsm8k' is no .jsonl, "
        ".jsonl.gz, .json, .csv, .parquet file; name the hub data set's split"
    )


def test_a_file_has_no_split(load: Load) -> None:
    (line,) = lines_of(lambda: load("", "problems.test.split=train"))
    assert line.startswith(
        "--set problems.test.split=train: problems.test.split is for data sets of the hub, "
    )
    assert line.endswith("test.jsonl is a file; leave it out")


def test_the_batch_divides(load: Load) -> None:
    (line,) = lines_of(lambda: load("training: {global_batch_size: 16, per_device_train_batch_size: 3}\n"))
    assert line == (
        "x.yaml:10: training.per_device_train_batch_size is 3 and global_batch_size 16 is no multiple of it"
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["selection.human_solutions=only"],
            "x.yaml:1: num_iterations is 3 and selection.human_solutions is only, so each would train on the "
            "same; give num_iterations: 1",
        ),
        (
            ["sampling.model={name_or_path: org/large}", "num_iterations=2"],
            "--set num_iterations=2: num_iterations is 2 and sampling.model draws the samples, which no "
            "iteration changes; give num_iterations: 1; for more of its samples raise sampling.num_samples",
        ),
        (
            [
                "selection.human_solutions=only",
                "num_iterations=1",
                "sampling.model={name_or_path: org/large}",
            ],
            "--set sampling.model={name_or_path: org/large}: sampling.model is given and "
            "selection.human_solutions is only, so nothing is sampled; leave one out",
        ),
        (
            ["prompt.teacher={num_examples: 0}"],
            "--set prompt.teacher={num_examples: 0}: prompt.teacher is given, and there is no "
            "sampling.model; leave it out, or name one",
        ),
        (
            ["problems.solution='{{ answer'"],
            "--set problems.solution='{{ answer': problems.solution is no Jinja template: line 1 of it: "
            "unexpected end of template, expected 'end of print statement'.",
        ),
    ],
)
def test_what_the_source_of_solutions_contradicts_is_told(load: Load, options: list[str], said: str) -> None:
    (line,) = lines_of(lambda: load("", *options))
    assert line == said


def test_a_teacher_is_a_folder_or_a_hub_id_as_the_model_is(load: Load, tmp_path: Path) -> None:
    for name in ("train.jsonl", "test.jsonl"):
        (tmp_path / name).touch()
    recipe = load(
        "", "num_iterations=1", "sampling.model={name_or_path: ./large, revision: main}", "prompt.teacher={}"
    )
    assert recipe.sampling.model is not None
    assert recipe.sampling.model.name_or_path == str(tmp_path / "large")
    (line,) = lines_of(lambda: check_files(recipe))
    assert f"sampling.model.name_or_path is {tmp_path}/large, and there is no such file or folder" in line
    assert "--set sampling.model.name_or_path=FOLDER-OR-HUB-ID names another" in line


def test_a_run_name_is_the_name_of_a_folder(load: Load) -> None:
    (line,) = lines_of(lambda: load("run_name: ../x\n"))
    assert line == ("x.yaml:10: run_name is '../x'; letters, digits, dots, dashes and underscores are wanted")


def test_a_section_that_is_built_in_python_is_checked_too() -> None:
    with pytest.raises(ValueError, match="global_batch_size 16 is no multiple of it"):
        TrainingSection(per_device_train_batch_size=3)


# Options


@pytest.mark.parametrize("option", ["sampling", "=3", "sampling..top_k=3"])
def test_an_option_has_a_key_and_a_value(load: Load, option: str) -> None:
    (line,) = lines_of(lambda: load("", option))
    assert line == f"--set {option}: KEY=VALUE is wanted, as in --set sampling.num_samples=8"


def test_an_unknown_key_of_an_option_is_told_with_the_option(load: Load) -> None:
    (line,) = lines_of(lambda: load("", "sampling.num_sample=8"))
    assert line == ("--set sampling.num_sample=8: unknown key sampling.num_sample; did you mean num_samples?")


def test_an_option_that_is_not_yaml_is_told(load: Load) -> None:
    (line,) = lines_of(lambda: load("", "sampling.stop_strings=[a"))
    assert line.startswith("--set sampling.stop_strings=[a: this is not YAML: ")


def test_an_option_does_not_lead_through_a_value(load: Load) -> None:
    (line,) = lines_of(lambda: load("seed: 1\n", "seed.x=2"))
    assert line == "--set seed.x=2: seed is 1, not a section"
    (line,) = lines_of(lambda: load("", "prompt.base=[{}]", "prompt.base.x=2"))
    assert line == "--set prompt.base.x=2: prompt.base is a list; set it whole"


# Keys of the libraries


def test_owned_keys_are_refused_with_the_reason(load: Load) -> None:
    lines = lines_of(lambda: load("training:\n  seed: 3\n  report_to: wandb\nlora: {task_type: CAUSAL_LM}\n"))
    assert lines == [
        "x.yaml:11: training.seed is rest_em's own; give seed at the top of the recipe",
        "x.yaml:12: training.report_to is rest_em's own; give tracking.report_to",
        "x.yaml:13: lora.task_type is rest_em's own; a policy is a causal language model",
    ]


def test_every_owned_key_is_one_of_the_installed_libraries() -> None:
    training = {field.name for field in dataclasses.fields(transformers.TrainingArguments)}
    assert OWNED_TRAINING_KEYS.keys() <= training
    assert OWNED_LORA_KEYS.keys() <= {field.name for field in dataclasses.fields(peft.LoraConfig)}
    assert not OWNED_TRAINING_KEYS.keys() & TrainingSection.model_fields.keys()


def test_no_key_of_the_libraries_that_says_where_things_go_or_what_is_evaluated_is_left_open() -> None:
    prefixes = ("eval_", "save_", "hub_", "push_", "do_", "fsdp", "trackio_", "load_best", "resume_")
    for field in dataclasses.fields(transformers.TrainingArguments):
        if field.name.startswith(prefixes):
            assert field.name in OWNED_TRAINING_KEYS, field.name


def test_what_the_training_stage_sets_itself_is_no_free_key_of_a_recipe() -> None:
    source = (Path(rest_em.__file__).parent / "training" / "arguments.py").read_text(encoding="utf-8")
    (call,) = (
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "TrainingArguments"
    )
    keys = {keyword.arg for keyword in call.keywords if keyword.arg is not None}
    assert keys <= OWNED_TRAINING_KEYS.keys() | TrainingSection.model_fields.keys()


def test_keys_of_the_libraries_pass(load: Load) -> None:
    check_library_keys(
        load(
            "training: {weight_decay: 0, adam_beta2: 0.95, lr_scheduler_type: cosine, warmup_steps: 0.1,"
            " gradient_checkpointing: true, gradient_checkpointing_kwargs: {use_reentrant: false}}\n"
            "lora: {r: 4, target_modules: [q_proj], init_lora_weights: pissa_niter_4, bias: none,"
            " rank_pattern: {a: 3}, loftq_config: {}}\n"
        )
    )


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ("training: {weight_decy: 0}", "unknown key training.weight_decy; did you mean weight_decay?"),
        ("training: {learning_rat: 1}", "unknown key training.learning_rat; did you mean learning_rate?"),
        (
            "training: {xyz: 1}",
            "unknown key training.xyz; transformers' TrainingArguments has none of that name",
        ),
        ("training: {weight_decay: abc}", "training.weight_decay is 'abc'; a number is wanted"),
        ("training: {weight_decay: true}", "training.weight_decay is true; a number is wanted"),
        (
            "training: {train_sampling_strategy: sequential}",
            "training.train_sampling_strategy is 'sequential'; group_by_length or random is wanted: "
            "the same order on any number of ranks",
        ),
        (
            "training: {lr_scheduler_type: reduce_lr_on_plateau}",
            "training.lr_scheduler_type is 'reduce_lr_on_plateau'; it needs evaluations within the training, "
            "and policies are evaluated by sampling after it; give one that needs none, such as cosine",
        ),
        ("training: {warmup_steps: -1}", "training.warmup_steps is -1; a number >= 0 is wanted"),
        ("lora: {rr: 1}", "unknown key lora.rr; did you mean r?"),
        ("lora: {xyz: 1}", "unknown key lora.xyz; peft's LoraConfig has none of that name"),
        ("lora: {r: 1.5}", "lora.r is 1.5; a whole number is wanted"),
        ("lora: {bias: some}", "lora.bias is 'some'; one of none, all, lora_only is wanted"),
        (
            "lora: {target_modules: [3]}",
            "lora.target_modules is [3]; a text, a list (each a text) or null is wanted",
        ),
        ("lora: {eva_config: {}}", "lora.eva_config is {}; null is wanted"),
    ],
)
def test_a_wrong_key_or_value_of_a_library_is_told(load: Load, section: str, told: str) -> None:
    recipe = load(f"{section}\n")
    assert lines_of(lambda: check_library_keys(recipe)) == [f"x.yaml:10: {told}"]


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ("training: {adam_beta1: 1.5}", "training.adam_beta1 is 1.5: Invalid beta parameter"),
        ("training: {weight_decay: -1.0}", "training.weight_decay is -1.0: Invalid weight_decay"),
        ("lora: {r: 0}", "lora.r is 0; a whole number > 0 is wanted"),
        ("lora: {layers_pattern: h}", "lora: When `layers_pattern` is specified"),
    ],
)
def test_a_value_that_only_training_would_refuse_is_told(load: Load, section: str, told: str) -> None:
    (line,) = lines_of(lambda: check_library_keys(load(f"{section}\n")))
    assert line.startswith(f"x.yaml:10: {told}")


def test_a_schedule_that_lacks_its_arguments_is_told(load: Load) -> None:
    recipe = load("training: {lr_scheduler_type: warmup_stable_decay}\n")
    (line,) = lines_of(lambda: check_library_keys(recipe))
    assert line.startswith(
        "x.yaml:10: training.lr_scheduler_type is 'warmup_stable_decay'; with these training.lr"
    )
    check_library_keys(
        load(
            "training: {lr_scheduler_type: warmup_stable_decay, lr_scheduler_kwargs: {num_decay_steps: 2}}\n"
        )
    )


def test_a_name_in_an_enumeration_of_a_library_is_checked(load: Load) -> None:
    recipe = load("training: {lr_scheduler_type: cosin}\n")
    (line,) = lines_of(lambda: check_library_keys(recipe))
    assert line.startswith("x.yaml:10: training.lr_scheduler_type is 'cosin'; one of linear, cosine, ")


# Paths


def test_paths_in_the_file_are_beside_it_and_in_options_below_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "recipes"
    (folder / "base").mkdir(parents=True)
    text = MINIMAL.replace("org/base", "base").replace("name: number", "function: judge.py:judge")
    (folder / "x.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(
        Path("recipes/x.yaml"),
        ["problems.test.path=other/test.csv", "prompt.examples=e.jsonl", "prompt.base=[{examples: f.jsonl}]"],
    )
    assert recipe.model.name_or_path == str(folder / "base")
    assert recipe.problems.train.path == str(folder / "train.jsonl")
    assert recipe.reward.function == f"{folder / 'judge.py'}:judge"
    assert recipe.problems.test.path == str(tmp_path / "other/test.csv")
    assert recipe.prompt.examples == str(tmp_path / "e.jsonl")
    assert recipe.prompt.base[0].examples == str(tmp_path / "f.jsonl")


def test_a_reward_may_be_nothing_but_its_name(load: Load) -> None:
    text = MINIMAL.replace("reward: {name: number}", "reward: number")
    assert load(text=text).reward == load().reward
    assert load("", "reward.threshold=0.5", text=text).reward.threshold == 0.5
    wrong = lines_of(lambda: load(text=text.replace("number", "judge.py:f")))
    assert wrong == ["x.yaml:7: reward.name is 'judge.py:f'; a function is named by function: judge.py:f"]


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        ("{}", "reward.name is missing; name a reward, or a function of your own"),
        ("{function: f.py}", "reward.function is 'f.py'; file.py:function or package"),
        ("{name: number, function: f.py:g}", "reward.function is given, and name is 'number'; leave one out"),
        ("{name: number, rewards: [{name: boxed}]}", "reward.rewards are given, and 'number' is too"),
        ("{rewards: [{weight: 2.0}]}", "reward.rewards[0].name is missing"),
        ("{rewards: [{name: number, weight: 0}]}", "reward.rewards[0].weight is 0"),
        ("{rewards: [{name: number}], options: {a: 1}}", "reward.options belongs to each of reward.rewards"),
        ("{name: number, combine: all}", "reward.combine is for several rewards"),
        ("{function: f.py:g, signature: trll}", "reward.signature is 'trll'"),
        ("{function: f.py:g, batch_size: 0}", "reward.batch_size is 0"),
    ],
)
def test_rewards_that_contradict_themselves_are_told(load: Load, reward: str, said: str) -> None:
    (line,) = lines_of(lambda: load(text=MINIMAL.replace("{name: number}", reward)))
    assert line.startswith(f"x.yaml:7: {said}")


def test_hub_ids_and_names_of_rewards_are_no_paths(load: Load) -> None:
    recipe = load(
        "", "problems.test={path: openai/gsm8k, split: test}", "reward={function: package.module:function}"
    )
    assert recipe.model.name_or_path == "org/base"
    assert recipe.problems.test.path == "openai/gsm8k"
    assert recipe.reward.function == "package.module:function"


def test_files_that_are_not_there_are_told_with_their_line(load: Load, tmp_path: Path) -> None:
    text = MINIMAL.replace("org/base", "./base").replace("name: number", "function: judge.py:judge")
    option = "prompt.base=[{examples: e.jsonl}]"
    recipe = load("", option, text=text)
    nothing = "and there is no such file or folder"
    *missing, model = lines_of(lambda: check_files(recipe))
    assert missing == [
        f"x.yaml:3: problems.train.path is {tmp_path}/train.jsonl, {nothing}",
        f"x.yaml:4: problems.test.path is {tmp_path}/test.jsonl, {nothing}",
        f"--set {option}: prompt.base[0].examples is {tmp_path}/e.jsonl, {nothing}",
        f"x.yaml:7: reward.function is {tmp_path}/judge.py, {nothing}",
    ]
    assert model == (
        f"x.yaml:1: model.name_or_path is {tmp_path}/base, {nothing} (paths in a recipe begin at its folder, "
        "those of --set at the working directory); --set model.name_or_path=FOLDER-OR-HUB-ID names another"
    )


@pytest.mark.parametrize("name", ["models/sub/base", "~nobody-of-this-name/base", "./" + "x" * 300, "./a\0b"])
def test_what_can_be_no_hub_id_and_is_no_folder_is_told(load: Load, name: str) -> None:
    recipe = load("", f"model.name_or_path={json.dumps(name)}")
    told = [line for line in lines_of(lambda: check_files(recipe)) if "model.name_or_path is" in line]
    assert len(told) == 1
    assert "no such file or folder" in told[0]


def test_a_folder_without_a_checkpoint_is_no_model_and_has_no_revision(load: Load, tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    for name in ("train.jsonl", "test.jsonl"):
        (tmp_path / name).touch()
    recipe = load(text=MINIMAL.replace("org/base", "./base, revision: main"))
    assert lines_of(lambda: check_files(recipe)) == [
        f"x.yaml:1: model.name_or_path is {tmp_path}/base, and there is no config.json in it; a Hugging Face "
        "checkpoint is wanted",
        "x.yaml:1: model.revision is for models of the hub, and model.name_or_path is a folder; leave it out",
    ]


def test_a_pattern_of_files_is_no_file_that_is_missing(load: Load) -> None:
    check_files(load(text=MINIMAL.replace("train.jsonl", "'a/*/*.json'").replace("test.jsonl", "'b?.csv'")))


def test_files_that_are_there_and_hub_ids_pass(load: Load, tmp_path: Path) -> None:
    for name in ("train.jsonl", "test.jsonl"):
        (tmp_path / name).touch()
    check_files(load())


# Writing


def test_a_written_recipe_reads_back_equal(load: Load, tmp_path: Path) -> None:
    recipe = load(
        "run_name: '1e-5'\nlora: {r: 4, target_modules: [q, 'yes', 'null', '0o7', '1:30', '~', '']}\n"
        "training: {learning_rate: 1e-5, weight_decay: 1e-3, optim_args: \"a: 'b'\\n  c \\n\"}\n",
        'sampling.stop_strings=["\\n", " # ", "\\t\\u00e9\\u2028"]',
        'prompt.template="Q: {{ question }}\\n\\n  A: \\n"',
        "prompt.base=[{num_examples: 0}, {name: b, chat_template: true, system: be kind}]",
        "reward.options={nested: {list: [1, 1.0, -0.0, true, null], text: 'a: b'}}",
    )
    written = tmp_path / "elsewhere" / "recipe.yaml"
    written.parent.mkdir()
    written.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(written) == recipe


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_a_shipped_recipe_loads_and_reads_back_equal(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    check_library_keys(recipe)
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(tmp_path / "recipe.yaml") == recipe


def test_a_written_recipe_means_the_same_to_other_readers_of_yaml(load: Load) -> None:
    recipe = load("run_name: 'yes'\ntraining: {learning_rate: 1e-5}\n")
    assert yaml.safe_load(dump_recipe(recipe)) == recipe.model_dump(mode="json")


def test_a_key_tells_where_it_was_written(load: Load) -> None:
    recipe = load("", "lora.r=3", "prompt.base=[{}]")
    assert recipe.place("sampling.max_new_tokens") == "x.yaml:9"
    assert recipe.place("sampling.top_k") == "x.yaml:8"
    assert recipe.place("evaluation.top_k") == "x.yaml"
    assert recipe.place("lora.r") == "--set lora.r=3"
    assert recipe.place("prompt.base[0].name") == "--set prompt.base=[{}]"


def test_recipes_are_equal_wherever_they_were_written(load: Load) -> None:
    assert load("# a comment\nseed: 3\n") == load("", "seed=3")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("recipes/quickstart/smollm2-135m.yaml", "quickstart-smollm2-135m"),
        ("recipes/v1.5/recipes/a.yaml", "a"),
        ("somewhere/mine.v2.yaml", "mine.v2"),
    ],
)
def test_a_run_is_named_after_its_recipe(load: Load, path: str, name: str) -> None:
    assert run_name_of(Path(path), load()) == name


def test_a_run_name_wins_over_the_path(load: Load) -> None:
    assert run_name_of(Path("recipes/a/b.yaml"), load("run_name: mine\n")) == "mine"


def test_the_difference_of_two_recipes_is_a_line_a_key() -> None:
    old = {"seed": 0, "sampling": {"temperature": 0.7, "top_k": 40}, "lora": None, "gone": "x"}
    new = {"seed": 0, "sampling": {"temperature": 1.0, "top_k": 40}, "lora": {"r": 8}, "added": [1, True]}
    assert difference(old, new) == [
        "sampling.temperature: 0.7 -> 1.0",
        "lora.r: absent -> 8",
        "added: absent -> [1, true]",
        "lora: null -> absent",
        "gone: 'x' -> absent",
    ]


def test_equal_recipes_have_no_difference(load: Load) -> None:
    values = load().model_dump(mode="json")
    assert difference(values, values) == []


# docs/recipes.md


def test_the_tables_of_the_docs_are_those_of_the_sections() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == page_with_tables(page), "write them again with: .venv/bin/python tests/recipe_reference.py"


def blocks_of_the_docs(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_the_smallest_recipe_of_the_docs_loads(load: Load) -> None:
    assert load(text=blocks_of_the_docs("yaml")[0]).sampling.max_new_tokens == 48


def test_the_wrong_recipe_of_the_docs_is_told_as_the_docs_say(load: Load) -> None:
    lines = lines_of(lambda: load(text=blocks_of_the_docs("yaml")[1]))
    missing = [line for line in lines if " is missing; " in line]
    assert [line for line in lines if line not in missing] == blocks_of_the_docs("text")[0].splitlines()


def test_the_sections_of_the_docs_load(load: Load) -> None:
    for section in blocks_of_the_docs("yaml")[2:]:
        changed = {**yaml.safe_load(MINIMAL), **yaml.safe_load(section.replace("1e-5", "1.0e-5"))}
        check_library_keys(load(text=yaml.safe_dump(changed)))
