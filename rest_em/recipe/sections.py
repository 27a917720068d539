"""Every setting of a run, typed and strict. This module is the reference of the YAML.

Sections are `model, problems, prompt, reward, sampling, selection, training, lora, quantization, evaluation,
tracking`; names inside are those of the library that uses them (transformers' GenerationConfig,
TrainingArguments and BitsAndBytesConfig, peft's LoraConfig). Left out: reading the YAML (`loading`), the keys
that only the libraries know (`libraries`), and whether files, columns, rewards and models are there, which
`rest_em check` tries.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator
from pydantic_core import PydanticCustomError

NonEmpty = Annotated[str, Field(min_length=1)]
AtLeastOne = Annotated[int, Field(gt=0)]
Contradiction = tuple[tuple[str | int, ...], str]
"""The path of a key below the section that finds it, and what is wrong with its value."""

LOCAL_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".csv", ".parquet")
"""A path of problems that ends in one of these is a file; any other is a data set of the hub or a folder."""

_PROMPT_NAME = re.compile(r"(?!epoch-[0-9]+$)[A-Za-z0-9_(-][A-Za-z0-9 ._()-]{0,99}", re.IGNORECASE)
"""Names a folder beside those of the checkpoints, `epoch-1` and on."""


def is_pattern(path: str) -> bool:
    """Say whether a path stands for several files."""
    return any(one in path for one in "*?[")


def refuse_contradictions(contradictions: list[Contradiction]) -> None:
    """Tell pydantic of keys that cannot be used together; `loading` gives each its line."""
    if contradictions:
        message = "; ".join(f"{'.'.join(map(str, path))} {text}" for path, text in contradictions)
        raise PydanticCustomError("contradiction", "{message}", {"message": message, "all": contradictions})


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class ModelSection(Section):
    """The base model; every M-step starts from it unless `training.train_from` says otherwise."""

    name_or_path: NonEmpty
    """A hub id or a folder with an ordinary Hugging Face checkpoint of a decoder-only model."""
    revision: str | None = None
    """A branch, tag or commit of the hub."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """The sampler's precision; `auto` is bfloat16 where the device computes it natively, else float32."""
    attn_implementation: Literal["auto", "stock"] = "auto"
    """`auto` is rest_em's shared-prefix cache and attention if the model allows, `stock` the model's own."""
    trust_remote_code: bool = False
    """Run modelling code that comes with the checkpoint."""


class Range(Section):
    """Numbers from `min` to `max`, both among them."""

    min: float
    """The least."""
    max: float
    """The greatest."""


Wanted = str | bool | int | float
"""What a column may hold that rows are chosen by."""


class ProblemSource(Section):
    """Where one set of problems comes from: a local file or a hub data set."""

    path: NonEmpty
    """A JSONL (also .jsonl.gz), JSON, CSV or Parquet file, a pattern of several such as `tasks/*.json`, whose
    rows get the column `file`, or a hub data set's id."""
    name: str | None = None
    """The hub data set's configuration."""
    split: str | None = None
    """The hub data set's split; required for a hub id, refused for a file."""
    revision: str | None = None
    """A branch, tag or commit of the hub."""
    data_files: NonEmpty | None = None
    """In the place of a split: a JSON lines file of the hub data set, such as `test.jsonl`, where it has a
    loading script, which `datasets` runs no more."""
    field: NonEmpty | None = None
    """The key of a JSON file that holds the list of its rows."""
    where: dict[str, Wanted | tuple[Wanted, ...] | Range] = {}
    """Only rows whose columns hold these values, or one of a list, or a number of a range (`min`, `max`)."""
    max_problems: AtLeastOne | None = None
    """Only the first so many problems."""

    @property
    def is_file(self) -> bool:
        """Whether the path is that of local files, by its suffix."""
        return self.path.lower().endswith(LOCAL_SUFFIXES)

    @property
    def is_pattern(self) -> bool:
        """Whether the path stands for several files."""
        return is_pattern(self.path)

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        wrong: list[Contradiction] = []
        if self.is_file:
            wrong += [
                ((key,), f"is for data sets of the hub, and the path {self.path} is a file; leave it out")
                for key in ("name", "split", "revision", "data_files")
                if getattr(self, key) is not None
            ]
        elif self.field is not None:
            wrong.append((("field",), f"is for JSON files, and the path {self.path} is none; leave it out"))
        elif self.data_files is not None:
            wrong += [
                ((key,), "is given, and data_files is too; leave one out")
                for key in ("name", "split")
                if getattr(self, key) is not None
            ]
        elif self.split is None:
            files = ", ".join(LOCAL_SUFFIXES)
            text = f"is missing and the path {self.path!r} is no {files} file; name the hub data set's split"
            wrong.append((("split",), text))
        refuse_contradictions(wrong)
        return self


class ProblemsSection(Section):
    """Problems to train on, to decide on (validation) and to measure on (test)."""

    train: ProblemSource
    """Sampled from and trained on."""
    validation: ProblemSource | None = None
    """D_val, for choosing the prompt and the checkpoint; None splits it off `train` by a hash of the id."""
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """The share of `train` that becomes D_val where `validation` is None."""
    test: ProblemSource
    """Measured in every iteration; no decision looks at it."""
    reference: NonEmpty = "answer"
    """The column with the gold answer or the unit tests."""
    id: NonEmpty | None = None
    """The column with a unique id; None derives ids from the rows' content."""
    solution: NonEmpty | None = None
    """The column that holds the solution that people wrote, or a Jinja template over the columns; None is
    `prompt.solution`. Only `selection.human_solutions` looks at it."""

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.validation is not None and self.validation_fraction != 0.1:
            text = f"is {self.validation_fraction} and problems.validation is named, so nothing is split off"
            refuse_contradictions([(("validation_fraction",), f"{text}; leave one out")])
        if self.solution is not None:
            _refuse_unreadable("solution", self.solution)
        return self

    def sources(self) -> Mapping[str, ProblemSource]:
        """Return the sources that are named, by their keys."""
        named = {"train": self.train, "validation": self.validation, "test": self.test}
        return {key: source for key, source in named.items() if source is not None}


class PromptVariant(Section):
    """What may differ between the base's, the tuned policy's and other prompts; None inherits."""

    name: NonEmpty | None = None
    """How reports and the run's folder call it; None is made of the number of examples, as in `2-shot`."""
    template: NonEmpty | None = None
    """A Jinja template over the problem's columns."""
    examples: NonEmpty | None = None
    """A JSONL, JSON, CSV or Parquet file of worked examples, with the template's columns and `solution`."""
    num_examples: Annotated[int, Field(ge=0)] | None = None
    """How many of the examples to show, from the first; None shows all, 0 none."""
    system: str | None = None
    """A system message; needs `chat_template`. An empty one takes away what would be inherited."""
    chat_template: bool | None = None
    """Messages for the tokenizer's chat template; else plain text."""

    @model_validator(mode="after")
    def _parses(self) -> Self:
        if self.name is not None and not _PROMPT_NAME.fullmatch(self.name):
            text = f"is {self.name!r}; letters, digits, spaces, dots, dashes, underscores and parentheses are"
            refuse_contradictions(
                [(("name",), f"{text} wanted, at most 100, no dot first and not epoch-N as a checkpoint")]
            )
        if self.template is not None:
            _refuse_unreadable("template", self.template)
        return self


class PromptSection(PromptVariant):
    """The prompt of a problem. Its variants inherit what they do not say from this section."""

    template: NonEmpty
    """A Jinja template over the problem's columns: `{{ question }}` is the column `question`."""
    chat_template: bool = False
    """Messages for the tokenizer's chat template (examples as earlier turns); else plain text."""
    solution: NonEmpty = "solution"
    """The examples' column that holds the worked solution, or a Jinja template over their columns."""
    example_separator: str = "\n\n"
    """What stands after each worked example of a plain-text prompt."""
    base: tuple[PromptVariant, ...] = ()
    """Candidates for the base model; of several, the one with the highest pass@1 on D_val serves."""
    tuned: PromptVariant = PromptVariant()
    """The prompt of every tuned policy, in its E-step and its evaluation."""
    training: PromptVariant | None = None
    """The prompt of the M-step; None is `tuned`."""
    teacher: PromptVariant | None = None
    """The prompt of `sampling.model`; None is the one that serves the base."""

    def resolved(self, variant: PromptVariant) -> PromptVariant:
        """Return the variant with what it does not say taken from this section.

        The section's name is that of the prompt as the section has it; one that differs has its own.
        """
        keys = set(PromptVariant.model_fields) - {"name"}
        said = {key for key in keys if getattr(variant, key) is not None}
        whole = {key: getattr(variant if key in said else self, key) for key in keys}
        return PromptVariant(name=variant.name if variant.name or said else self.name, **whole)

    def variants(self) -> Mapping[tuple[str | int, ...], PromptVariant]:
        """Return the section itself and its variants as written, by their keys."""
        found: dict[tuple[str | int, ...], PromptVariant] = {(): self}
        found |= {("base", index): variant for index, variant in enumerate(self.base)}
        found[("tuned",)] = self.tuned
        named = {"training": self.training, "teacher": self.teacher}
        return found | {(key,): variant for key, variant in named.items() if variant is not None}

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        _refuse_unreadable("solution", self.solution)
        wrong: list[Contradiction] = []
        for path, written in self.variants().items():
            whole, said = self.resolved(written), written.model_fields_set
            if whole.system and not whole.chat_template and said & {"system", "chat_template"}:
                key = "system" if "system" in said else "chat_template"
                text = "cannot be: there is a system message and chat_template is false"
                wrong.append(((*path, key), f"{text}; set chat_template: true, or system: '' to have none"))
            if whole.num_examples and whole.examples is None and "num_examples" in said:
                wrong.append(((*path, "num_examples"), f"is {whole.num_examples} and no examples are named"))
        names = [variant.name for variant in self.base]
        for index, name in enumerate(names):
            if name is not None and name in names[:index]:
                text = f"is {name!r}, as prompt.base[{names.index(name)}].name is already"
                wrong.append((("base", index, "name"), text))
        refuse_contradictions(wrong)
        return self


def _refuse_unreadable(key: str, template: str) -> None:
    import jinja2
    import jinja2.sandbox

    try:
        jinja2.sandbox.SandboxedEnvironment().parse(template)
    except jinja2.TemplateSyntaxError as error:
        refuse_contradictions([((key,), f"is no Jinja template: line {error.lineno} of it: {error.message}")])


class RewardFunction(Section):
    """A function that judges solutions: one of ours, an installed package's, or the user's own."""

    name: NonEmpty | None = None
    """Built in (`exact_match`, `number`, `boxed`, `unit_tests`), or an entry point `rest_em.rewards`."""
    function: NonEmpty | None = None
    """In the place of a name: `file.py:function` or `package.module:function`."""
    signature: Literal["rest_em", "trl", "verl", "openrlhf"] = "rest_em"
    """How the function is called: as ours, or as that library calls its own; see docs/rewards.md."""
    batch_size: AtLeastOne | None = None
    """Solutions a call; None is 16 for a function that takes lists or is async, else 1."""
    columns: dict[str, NonEmpty] = {}
    """With `signature: trl`, parameter -> the column of the problems that it gets, where names differ."""
    options: dict[str, Any] = {}
    """Keyword arguments of the reward beyond those of its signature."""
    threshold: float = 1.0
    """A float reward is correct if it is at least this."""

    @property
    def called(self) -> str:
        """What messages call it."""
        return self.name or self.function or ""

    @model_validator(mode="after")
    def _names_one(self) -> Self:
        wrong: list[Contradiction] = []
        if self.name is not None and ":" in self.name:
            wrong.append((("name",), f"is {self.name!r}; a function is named by function: {self.name}"))
        if self.function is not None and not all(self.function.rpartition(":")[::2]):
            text = f"is {self.function!r}; file.py:function or package.module:function is wanted"
            wrong.append((("function",), text))
        if self.name is not None and self.function is not None:
            wrong.append((("function",), f"is given, and name is {self.name!r}; leave one out"))
        refuse_contradictions(wrong)
        return self


class RewardPart(RewardFunction):
    """One of several rewards."""

    weight: Annotated[float, Field(gt=0)] = 1.0
    """Its factor in a sum."""

    @model_validator(mode="after")
    def _is_named(self) -> Self:
        if not self.called:
            refuse_contradictions(
                [(("name",), "is missing; name a reward, or a function of your own with function")]
            )
        return self


class RewardSection(RewardFunction):
    """r(x, y): how solutions are judged. `reward: number` is short for `reward: {name: number}`."""

    rewards: tuple[RewardPart, ...] = ()
    """In the place of a name: several rewards."""
    combine: Literal["sum", "all"] = "sum"
    """The weighted sum of `rewards`; or 1 if each of them is at least its own threshold, else 0."""
    answer: str | None = None
    """How the final answer is found for majority votes: `final_answer`, `number`, `boxed`, `last_line`,
    `text`; None is the built-in reward's own, `final_answer` for a plug-in."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 10.0
    """Wall-clock limit of one call; the grader process is killed after it."""
    num_workers: AtLeastOne | None = None
    """Grader processes; None is one for each usable core, at most 8."""
    max_unscorable: Annotated[float, Field(ge=0, le=1)] = 0.05
    """The run stops if a larger share of a stage's solutions cannot be judged."""
    allow_code_execution: bool = False
    """Run programs that the model wrote, in a sandbox: what `unit_tests` does; see docs/sandbox.md first."""
    allow_weaker_isolation: bool = False
    """Run them although this host refuses a layer of that sandbox; which one, the refusal says."""

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        wrong: list[Contradiction] = []
        if self.rewards and self.called:
            wrong.append((("rewards",), f"are given, and {self.called!r} is too; leave one out"))
        if not self.rewards and not self.called:
            text = (
                "is missing; name a reward, or a function of your own with function, or several with rewards"
            )
            wrong.append((("name",), text))
        if self.rewards:
            for key in ("signature", "batch_size", "columns", "options"):
                if getattr(self, key) != type(self).model_fields[key].default:
                    wrong.append(((key,), "belongs to each of reward.rewards"))
        if self.combine != "sum" and not self.rewards:
            wrong.append((("combine",), "is for several rewards, and there are no reward.rewards"))
        refuse_contradictions(wrong)
        return self

    @property
    def key(self) -> str:
        """The key that says which reward it is."""
        return "rewards" if self.rewards else "function" if self.function else "name"

    @property
    def title(self) -> str:
        """What messages call it, or all of them."""
        return " + ".join(part.called for part in self.parts)

    @property
    def parts(self) -> tuple[RewardPart, ...]:
        """The rewards, one or several."""
        if self.rewards:
            return self.rewards
        return (RewardPart(**self.model_dump(include=set(RewardFunction.model_fields))),)


class SamplingSection(Section):
    """The E-step's draws; names are those of transformers' GenerationConfig."""

    num_samples: AtLeastOne = 32
    """N: solutions a problem."""
    max_new_tokens: AtLeastOne
    """The cap on a solution's tokens; what it cuts off is never trained on."""
    temperature: Annotated[float, Field(ge=0)] = 0.7
    """0 is greedy."""
    top_k: Annotated[int, Field(ge=0)] = 40
    """Only the k likeliest tokens; 0 turns it off."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Only the smallest set of tokens whose probability reaches this; applied after `top_k`."""
    stop_strings: tuple[NonEmpty, ...] = ()
    """A solution ends before the first of these."""
    unit_size: AtLeastOne = 256
    """Solutions a work unit: decoded and committed to disk whole; a crash loses at most one unit a rank."""
    max_rows: AtLeastOne = 128
    """Sequences decoded at once."""
    model: ModelSection | None = None
    """Another model that draws the E-step's solutions, the teacher of a distillation; None is the policy."""

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.temperature == 0 and self.num_samples > 1:
            text = f"is 0 (greedy) and num_samples is {self.num_samples}: the samples would be equal"
            refuse_contradictions([(("temperature",), f"{text}; give a temperature > 0, or num_samples: 1")])
        return self


class SelectionSection(Section):
    """Which correct solutions become D_i."""

    max_solutions_per_problem: AtLeastOne = 10
    """K, the paper's cap."""
    deduplicate: bool = True
    """Keep one of the solutions that are equal in normalised form."""
    human_solutions: Literal["none", "mix", "solved", "only"] = "none"
    """Solutions that people wrote (`problems.solution`): none; mixed in, one a problem beyond K; in the place
    of the samples, for the problems that a sample solves; or they alone, and nothing is sampled."""


class TrainingSection(Section):
    """The M-step. Every field of transformers' TrainingArguments is allowed but those that rest_em owns."""

    model_config = ConfigDict(extra="allow")

    num_train_epochs: AtLeastOne = 3
    """Epochs; each ends with a checkpoint that D_val can choose."""
    global_batch_size: AtLeastOne = 16
    """Examples an optimiser step, over all ranks; accumulation is derived from it."""
    per_device_train_batch_size: AtLeastOne | None = None
    """Examples a forward pass and rank, at most the rank's share; None is its largest divisor up to 8."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-5
    """The peak of the schedule."""
    bf16: bool | Literal["auto"] = "auto"
    """bfloat16 autocast over fp32 master weights; `auto` where the device computes it natively."""
    max_length: AtLeastOne | None = None
    """Examples of more tokens (prompt and solution) are left out and counted; None is the model's limit."""
    packing: bool | Literal["auto"] = "auto"
    """Put the examples of a forward pass one after another, not padded; `auto` where the model allows it. It
    changes speed and memory, not what is learned."""
    prefix_sharing: bool = True
    """Where they are packed, compute once what their prompts begin with in common; gradients are the same."""
    checkpoint_choice: Literal["first_drop", "best", "last"] = "first_drop"
    """Which epoch's checkpoint is taken: the last before the first drop on D_val, the best or the last."""
    train_from: Literal["base", "previous"] = "base"
    """What every M-step tunes: the base model, or the policy that drew the iteration's samples."""

    save_seconds: Annotated[float, Field(ge=0)] | None = 900.0
    """Seconds of training between two checkpoints from which an interrupted M-step goes on; None for none."""

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        rows = self.per_device_train_batch_size
        if rows is not None and self.global_batch_size % rows:
            text = f"is {rows} and global_batch_size {self.global_batch_size} is no multiple of it"
            refuse_contradictions([(("per_device_train_batch_size",), text)])
        return self


class EvalChoice(Section):
    """A benchmark on which a run's policies are measured beside its own test problems."""

    path: NonEmpty
    """An eval's YAML file, or the name of one that comes with rest_em."""
    data: NonEmpty | None = None
    """Its data, as `--data` of `rest_em evaluate`: a file, a folder or a hub id; None is the eval's own."""
    when: Literal["every", "last", "best"] = "every"
    """Which policies are measured: each iteration's, the last, or the best on D_val; the base always."""
    limit: AtLeastOne | None = None
    """Only so many of its problems; of each group as many as can be."""


class EvaluationSection(Section):
    """How policies are measured on the test problems, on benchmarks and on D_val."""

    num_samples: Annotated[int, Field(ge=0)] = 8
    """Samples a test problem for pass@k and maj@k; 0 measures greedy pass@1 only."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Of those samples; pass@1 is greedy."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """As in `sampling`, of those samples."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    """As in `sampling`, of those samples."""
    pass_at: tuple[AtLeastOne, ...] = Field(default_factory=lambda said: _up_to_all(said, (1,)))
    """The k of pass@k; 1 is the greedy solution's, the others come from the samples. By default 1 and all."""
    majority_at: tuple[AtLeastOne, ...] = Field(default_factory=lambda said: _up_to_all(said, ()))
    """The k of maj@k. By default all samples."""
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Of the intervals."""
    format: NonEmpty | None = None
    """A regular expression that is found in a solution with the format that the prompt asks for."""
    num_train_problems: Annotated[int, Field(ge=0)] = 200
    """So many training problems, the first, are measured greedily too, for the gap to the test problems."""
    evals: tuple[EvalChoice, ...] = ()
    """Benchmarks on which the policies are measured: transfer sets."""
    stop_on: Literal["never", "validation"] = "never"
    """`validation` ends the iterations when greedy pass@1 on D_val falls below the best policy's, beyond the
    interval of their paired difference."""
    contamination: Literal["report", "exclude", "ignore"] = "report"
    """Training problems that overlap with test problems or benchmarks: tell of them, or leave them out."""
    contamination_words: AtLeastOne = 13
    """A run of so many words that two problems share is an overlap."""

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        wrong: list[Contradiction] = []
        if self.format is not None:
            wrong += [(("format",), text) for text in regex_mistakes(self.format)]
        for key, ks in (("pass_at", [k for k in self.pass_at if k > 1]), ("majority_at", self.majority_at)):
            if max(ks, default=0) > self.num_samples:
                text = f"has k = {max(ks)} and evaluation.num_samples is {self.num_samples}"
                wrong.append(((key,), f"{text}; give num_samples: {max(ks)}, or a smaller k"))
        refuse_contradictions(wrong)
        return self


def regex_mistakes(pattern: str) -> list[str]:
    """Return what is wrong with a regular expression, if anything."""
    try:
        re.compile(pattern)
    except re.error as error:
        return [f"is no regular expression: {error}"]
    return []


def _up_to_all(said: Mapping[str, Any], always: tuple[int, ...]) -> tuple[int, ...]:
    """Return the default k of a section in which `num_samples`, unless it is wrong, is already known."""
    num_samples = said.get("num_samples", 0)
    return (*always, num_samples) if num_samples > 1 else always


class TrackingSection(Section):
    """Where metrics go besides the run folder."""

    report_to: tuple[Literal["tensorboard", "wandb", "trackio", "mlflow"], ...] = ()
    """Trackers that get what is in metrics.jsonl; each is a package to install."""
    project: Annotated[str, Field(min_length=1)] = "rest_em"
    """What wandb and trackio call the project, and MLflow the experiment."""

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        twice = [name for name, number in Counter(self.report_to).items() if number > 1]
        refuse_contradictions([(("report_to",), f"names {name} twice; once will do") for name in twice])
        return self


@dataclass(frozen=True)
class Places:
    """Where the keys of a recipe were written; recipes are equal wherever that was."""

    texts: Mapping[tuple[str | int, ...], str] = field(default_factory=dict, compare=False)
    """`file:line` or the option of each key; that of the empty path is the file's."""

    def of(self, path: tuple[str | int, ...]) -> str:
        """Return where the key, or else the nearest section around it, was written."""
        while path and path not in self.texts:
            path = path[:-1]
        return self.texts.get(path, "the recipe")


class Recipe(Section):
    """A whole run."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Draws and training depend on it and on nothing else that is random."""
    num_iterations: Annotated[int, Field(ge=0)] = 3
    """I of Algorithm 1; 0 only measures the base."""
    run_name: str | None = None
    """The run's folder is `runs/<run_name>`; None is the recipe's path below `recipes/`, joined by dashes."""
    model: ModelSection
    """The base model."""
    problems: ProblemsSection
    """What to solve."""
    prompt: PromptSection
    """How the model is asked."""
    reward: RewardSection
    """How solutions are judged."""
    sampling: SamplingSection
    """The E-step."""
    selection: SelectionSection = SelectionSection()
    """What becomes D_i."""
    training: TrainingSection = TrainingSection()
    """The M-step."""
    lora: dict[str, Any] | None = None
    """peft's LoraConfig, passed through; None trains all weights."""
    quantization: dict[str, Any] | None = None
    """transformers' BitsAndBytesConfig, passed through, for the base below the adapters of `lora` (QLoRA)."""
    evaluation: EvaluationSection = EvaluationSection()
    """How policies are measured."""
    tracking: TrackingSection = TrackingSection()
    """Where metrics go."""
    _places: Places = PrivateAttr(default_factory=Places)

    def place(self, key: str) -> str:
        """Return where a dotted key or else the section around it was written, as in `recipes/x.yaml:12`."""
        names = re.findall(r"[^.\[\]]+", key)
        return self._places.of(tuple(int(name) if name.isdigit() else name for name in names))

    def remember_places(self, places: Places) -> None:
        """Note where the keys were written; `loading` does it."""
        self._places = places

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.run_name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.run_name):
            text = f"is {self.run_name!r}; letters, digits, dots, dashes and underscores are wanted"
            refuse_contradictions([(("run_name",), text)])
        refuse_contradictions(
            [*self._repeated_iterations(), *self._idle_teacher(), *self._trained_quantised()]
        )
        return self

    def _trained_quantised(self) -> Iterator[Contradiction]:
        """Say so where quantised weights would be trained themselves, or nothing be quantised."""
        if self.quantization is None:
            return
        if self.lora is None:
            yield (
                ("quantization",),
                "is given and lora is not: quantised weights cannot be trained; give lora",
            )
        if not (self.quantization.get("load_in_4bit") or self.quantization.get("load_in_8bit")):
            yield (
                ("quantization",),
                "quantises nothing; give load_in_4bit: true (QLoRA) or load_in_8bit: true",
            )

    def _repeated_iterations(self) -> Iterator[Contradiction]:
        """Say so where every iteration would train on what the first one does."""
        only, teacher = self.selection.human_solutions == "only", self.sampling.model
        if self.num_iterations > 1 and (only or teacher is not None):
            why = "sampling.model draws the samples, which no iteration changes"
            more = "; for more of its samples raise sampling.num_samples"
            if only:
                why, more = "selection.human_solutions is only, so each would train on the same", ""
            yield ("num_iterations",), f"is {self.num_iterations} and {why}; give num_iterations: 1{more}"

    def _idle_teacher(self) -> Iterator[Contradiction]:
        """Say so where a teacher is named that draws nothing."""
        if self.sampling.model is not None and self.selection.human_solutions == "only":
            text = "is given and selection.human_solutions is only, so nothing is sampled; leave one out"
            yield ("sampling", "model"), text
        if self.sampling.model is None and self.prompt.teacher is not None:
            yield ("prompt", "teacher"), "is given, and there is no sampling.model; leave it out, or name one"
