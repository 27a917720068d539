"""The recipe: every setting of a run, typed and strict. This module is the reference of the YAML.

Sections are `model, problems, prompt, reward, sampling, selection, training, lora, evaluation, tracking`;
names inside are those of the library that uses them (transformers' GenerationConfig and TrainingArguments,
peft's LoraConfig). Paths resolve against the recipe's folder. Reading files of problems, importing rewards
and loading models are left to the stages: `rest_em check` tries them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class ModelSection(_Section):
    """The base model; every M-step starts from it."""

    name_or_path: str
    """A hub id or a folder with an ordinary Hugging Face checkpoint of a decoder-only model."""
    revision: str | None = None
    """A branch, tag or commit of the hub."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """The sampler's precision; `auto` is bfloat16 where the device computes it natively, else float32."""
    attn_implementation: Literal["auto", "stock"] = "auto"
    """`auto` uses rest_em's shared-prefix cache and attention where the model allows, `stock` the model's own."""
    trust_remote_code: bool = False
    """Run modelling code that comes with the checkpoint."""


class ProblemSource(_Section):
    """Where one set of problems comes from: a local file or a hub data set."""

    path: str
    """A JSONL, JSON, CSV or Parquet file, or a hub data set's id."""
    name: str | None = None
    """The hub data set's configuration."""
    split: str | None = None
    """The hub data set's split; required for a hub id, refused for a file."""
    revision: str | None = None
    """A branch, tag or commit of the hub."""
    max_problems: Annotated[int, Field(gt=0)] | None = None
    """Only the first so many problems."""


class ProblemsSection(_Section):
    """Problems to train on, to decide on (validation) and to measure on (test)."""

    train: ProblemSource
    validation: ProblemSource | None = None
    """D_val, for choosing the prompt and the checkpoint; None splits it off `train` by a hash of the id."""
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """The share of `train` that becomes D_val where `validation` is None."""
    test: ProblemSource
    """Measured in every iteration; no decision looks at it."""
    reference: str = "answer"
    """The column with the gold answer or the unit tests."""
    id: str | None = None
    """The column with a unique id; None derives ids from the rows' content."""


class PromptVariant(_Section):
    """What may differ between the base's, the tuned policy's and the training prompt; None inherits."""

    name: str | None = None
    """How reports call it."""
    template: str | None = None
    """A Jinja template over the problem's columns."""
    examples: str | None = None
    """A JSONL, JSON, CSV or Parquet file of worked examples, with the problems' columns and `solution`."""
    num_examples: Annotated[int, Field(ge=0)] | None = None
    """How many of the examples to show, from the first; None shows all, 0 none."""
    system: str | None = None
    """A system message; needs `chat_template`."""
    chat_template: bool | None = None
    """Render with the tokenizer's chat template; else plain text."""


class PromptSection(PromptVariant):
    """The prompt of a problem. The three variants inherit what they do not say from this section."""

    template: str
    solution: str = "solution"
    """The examples' column that holds the worked solution."""
    example_separator: str = "\n\n"
    """What stands after each worked example of a plain-text prompt."""
    base: tuple[PromptVariant, ...] = ()
    """Candidates for the base model; where there are several, the one with the highest pass@1 on D_val serves."""
    tuned: PromptVariant = PromptVariant()
    """The prompt of every tuned policy, in its E-step and its evaluation."""
    training: PromptVariant | None = None
    """The prompt of the M-step; None is `tuned`."""


class RewardSection(_Section):
    """r(x, y): how solutions are judged."""

    name: str
    """A built-in reward (`exact_match`, `number`, `boxed`), or `package.module:function`, or `file.py:function`."""
    options: dict[str, Any] = {}
    """Keyword arguments of the reward beyond problem and solution."""
    answer: str | None = None
    """How the final answer is found for majority votes: `final_answer`, `number`, `boxed`, `last_line`, `text`;
    None is the built-in reward's own, `final_answer` for a plug-in."""
    threshold: float = 1.0
    """A float reward is correct if it is at least this."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 10.0
    """Wall-clock limit of one call; the grader process is killed after it."""
    num_workers: Annotated[int, Field(gt=0)] | None = None
    """Grader processes; None is one for each usable core, at most 8."""
    max_unscorable: Annotated[float, Field(ge=0, le=1)] = 0.05
    """The run stops if a larger share of a stage's solutions cannot be judged."""


class SamplingSection(_Section):
    """The E-step's draws; names are those of transformers' GenerationConfig."""

    num_samples: Annotated[int, Field(gt=0)] = 32
    """N: solutions a problem."""
    max_new_tokens: Annotated[int, Field(gt=0)]
    """The cap on a solution's tokens; what it cuts off is never trained on."""
    temperature: Annotated[float, Field(ge=0)] = 0.7
    """0 is greedy."""
    top_k: Annotated[int, Field(ge=0)] = 40
    """Only the k likeliest tokens; 0 turns it off."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Only the smallest set of tokens whose probability reaches this; applied after `top_k`."""
    stop_strings: tuple[str, ...] = ()
    """A solution ends before the first of these."""
    unit_size: Annotated[int, Field(gt=0)] = 256
    """Solutions a work unit: decoded and committed to disk whole; a crash loses at most one unit a rank."""
    max_rows: Annotated[int, Field(gt=0)] = 128
    """Sequences decoded at once."""


class SelectionSection(_Section):
    """Which correct solutions become D_i."""

    max_solutions_per_problem: Annotated[int, Field(gt=0)] = 10
    """K, the paper's cap."""
    deduplicate: bool = True
    """Keep one of the solutions that are equal in normalised form."""


class TrainingSection(BaseModel):
    """The M-step. Every field of transformers' TrainingArguments is allowed but the few that rest_em owns."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, use_attribute_docstrings=True)

    num_train_epochs: Annotated[int, Field(gt=0)] = 3
    """Epochs; each ends with a checkpoint that D_val can choose."""
    global_batch_size: Annotated[int, Field(gt=0)] = 16
    """Examples an optimiser step, over all ranks; accumulation is derived from it."""
    per_device_train_batch_size: Annotated[int, Field(gt=0)] | None = None
    """Examples a forward pass and rank; None is the largest divisor of the rank's share that is at most 8."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-5
    """The peak of the schedule."""
    bf16: bool | Literal["auto"] = "auto"
    """bfloat16 autocast over fp32 master weights; `auto` where the device computes it natively."""
    max_length: Annotated[int, Field(gt=0)] | None = None
    """Longer examples (prompt and solution, tokens) are left out and counted; None is the model's own limit."""
    checkpoint_choice: Literal["first_drop", "best", "last"] = "first_drop"
    """Which epoch's checkpoint is the policy: walk forward on D_val to the first drop, the best, or the last."""


class EvaluationSection(_Section):
    """How policies are measured on the test problems and chosen on D_val."""

    num_samples: Annotated[int, Field(ge=0)] = 8
    """Samples a test problem for pass@k and maj@k; 0 measures greedy pass@1 only."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Of those samples; pass@1 is greedy."""
    top_k: Annotated[int, Field(ge=0)] = 0
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    pass_at: tuple[int, ...] = (1, 8)
    """The k of pass@k; 1 is the greedy solution's, the others come from the samples."""
    majority_at: tuple[int, ...] = (8,)
    """The k of maj@k."""
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Of the intervals."""


class TrackingSection(_Section):
    """Where metrics go besides the run folder."""

    report_to: tuple[str, ...] = ()
    """Trackers as accelerate names them (`tensorboard`, `wandb`, `trackio`, `mlflow`); fed from metrics.jsonl."""


class Recipe(_Section):
    """A whole run."""

    seed: Annotated[int, Field(ge=0)] = 0
    """Draws and training depend on it and on nothing else that is random."""
    num_iterations: Annotated[int, Field(ge=0)] = 3
    """I of Algorithm 1; 0 only measures the base."""
    run_name: str | None = None
    """The run's folder is `runs/<run_name>`; None is the recipe's path below `recipes/`, joined by dashes."""
    model: ModelSection
    problems: ProblemsSection
    prompt: PromptSection
    reward: RewardSection
    sampling: SamplingSection
    selection: SelectionSection = SelectionSection()
    training: TrainingSection = TrainingSection()
    lora: dict[str, Any] | None = None
    """peft's LoraConfig, passed through; None trains all weights."""
    evaluation: EvaluationSection = EvaluationSection()
    tracking: TrackingSection = TrackingSection()
