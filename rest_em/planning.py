"""A recipe as the planner sees it: its problems counted, their prompts measured, its settings as setups.

No model is loaded and torch is not imported, so that `rest_em plan` answers at once. What follows from the
numbers is left to `rest_em.planner`.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from rest_em.batches import divide_global_batch
from rest_em.errors import PlanError
from rest_em.packs import FAMILIES, MIN_SHARED_TOKENS
from rest_em.planner.adapters import adapter_of
from rest_em.planner.candidates import LORA, NF4
from rest_em.planner.hardware import Cluster
from rest_em.planner.inventory import weights_of
from rest_em.planner.plan import Plan, mean_padded, plan_sampling, plan_training, weight_bytes
from rest_em.planner.sampling_setup import Engine, SamplingSetup
from rest_em.planner.shapes import ModelShape, load_shape
from rest_em.planner.strategies import Offload, Strategy, ZeroSettings
from rest_em.planner.training import Method, TrainingSetup
from rest_em.planner.workload import Lengths, Workload
from rest_em.problem_sets import ProblemSets
from rest_em.problems import base_variants, teacher_variant, training_variant, tuned_variant
from rest_em.recipe import ModelSection, Recipe
from rest_em.stages import uses_deepspeed
from rest_em.types import Messages, Problem

CHARACTERS_PER_TOKEN = 3.5
"""Where there is no tokenizer: on the safe side of the usual 4 of English text."""
MEASURED_PROMPTS = 200
"""So many prompts are encoded, evenly spread, the longest among them."""
CHECKPOINTING = ("activation_checkpointing", "gradient_checkpointing")
"""transformers' name of it, and the older one."""
DEFAULT_SUCCESS = 0.5
"""Share of correct solutions where nobody says."""


@dataclass(frozen=True, slots=True)
class Launch:
    """What a launch says of the M-step.

    Example:
        Launch(strategy="zero2", offload_optimizer="cpu")
    """

    strategy: Strategy
    offload_optimizer: Offload = "none"
    offload_param: Offload = "none"
    zero: Mapping[str, Any] | None = None
    """`zero_optimization` of DeepSpeed's JSON; None where there is none, and DeepSpeed's defaults hold."""
    is_sized: bool = False
    """Whether DeepSpeed's buckets are sized for the model, as `--emit` writes them."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], num_ranks: int) -> Launch:
        """Return what accelerate tells the processes that it starts."""
        if not uses_deepspeed(environment):
            return cls("ddp" if num_ranks > 1 else "single")
        file = environment.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
        if file != "none":
            return _from_json(Path(file))
        stage = environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
        return _deepspeed(
            stage,
            environment.get("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "none"),
            environment.get("ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE", "none"),
            "the launch's environment",
        )

    @classmethod
    def from_file(cls, path: Path, num_ranks: int) -> Launch:
        """Return what a launch file of accelerate says.

        Raises:
            PlanError: it cannot be read, or launches what the planner does not know.
        """
        values = _launch_values(path)
        kind = str(values.get("distributed_type", "NO"))
        if kind in ("NO", "MULTI_GPU", "MULTI_CPU"):
            return cls("ddp" if num_ranks > 1 else "single")
        if kind != "DEEPSPEED":
            raise PlanError(
                f"{path}: distributed_type is {kind}, which is not planned for; NO, MULTI_GPU or DEEPSPEED is"
            )
        settings = values.get("deepspeed_config") or {}
        if not isinstance(settings, dict):
            raise PlanError(f"{path}: deepspeed_config is {settings!r}; keys, as zero_stage: 2, are wanted")
        if settings.get("deepspeed_config_file") is not None:
            return _from_json(Path(str(settings["deepspeed_config_file"])))
        return _deepspeed(
            str(settings.get("zero_stage", 2)),
            str(settings.get("offload_optimizer_device", "none")),
            str(settings.get("offload_param_device", "none")),
            str(path),
        )


def devices_of_launch(path: Path) -> tuple[int | None, int | None]:
    """Return the devices a node and the nodes that a launch file starts processes on.

    Either is None where the file leaves it open.

    Raises:
        PlanError: the file cannot be read, or a number in it is none.
    """
    values = _launch_values(path)
    processes, machines = (values.get(key) for key in ("num_processes", "num_machines"))
    for key, value in (("num_processes", processes), ("num_machines", machines)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise PlanError(f"{path}: {key} is {value!r}; a whole number > 0 is wanted")
    if values.get("distributed_type") == "NO":
        if (processes or 1) > 1:
            raise PlanError(
                f"{path}: num_processes is {processes} with distributed_type NO, with which accelerate "
                "starts one; MULTI_GPU or DEEPSPEED is wanted"
            )
        return 1, 1
    if processes is None:
        return None, machines
    if processes % (machines or 1):
        raise PlanError(
            f"{path}: num_processes is {processes}, and num_machines {machines}; as many processes on each "
            "machine are wanted"
        )
    return processes // (machines or 1), machines


def _launch_values(path: Path) -> Mapping[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise PlanError(f"{path}: cannot be read as a launch file: {error}") from error
    if not isinstance(values, dict):
        raise PlanError(f"{path}: no launch file; `accelerate config` writes one")
    return values


def _from_json(path: Path) -> Launch:
    """Return what DeepSpeed's own configuration says.

    Raises:
        PlanError: it cannot be read, or says what the planner does not know.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        section = values["zero_optimization"]
        optimizer, param = (
            str((section.get(name) or {}).get("device", "none"))
            for name in ("offload_optimizer", "offload_param")
        )
        stage = str(section["stage"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PlanError(
            f"{path}: cannot be read as a configuration of DeepSpeed with zero_optimization.stage: "
            f"{type(error).__name__}: {error}"
        ) from error
    return replace(_deepspeed(stage, optimizer, param, str(path)), zero=section)


ZERO_KEYS = {
    "reduce_bucket_size": "reduce_bucket_size",
    "allgather_bucket_size": "allgather_bucket_size",
    "overlap_comm": "overlap_comm",
    "contiguous_gradients": "contiguous_gradients",
    "sub_group_size": "sub_group_size",
    "stage3_prefetch_bucket_size": "prefetch_bucket_size",
    "stage3_param_persistence_threshold": "param_persistence_threshold",
    "stage3_max_live_parameters": "max_live_parameters",
    "stage3_max_reuse_distance": "max_reuse_distance",
}
"""DeepSpeed's key -> the planner's."""


def zero_settings(launch: Launch, shape: ModelShape, num_elements: int) -> ZeroSettings:
    """Return DeepSpeed's settings under a launch.

    Args:
        num_elements: of all weights, adapters among them.

    Raises:
        PlanError: a value is none that the planner knows.
    """
    if launch.zero is None:
        default = ZeroSettings()
        return default.sized(shape.hidden_size, num_elements) if launch.is_sized else default
    auto = ZeroSettings().auto(shape.hidden_size)
    found: dict[str, Any] = {}
    for key, name in ZERO_KEYS.items():
        value = launch.zero.get(key)
        if value is None:
            continue
        if value != "auto" and not (isinstance(value, int | float) and 0 <= value < 2**63):
            raise PlanError(
                f'zero_optimization.{key} is {value!r}; a number from 0 to 2**63 or "auto" is wanted'
            )
        is_flag = name in ("overlap_comm", "contiguous_gradients")
        found[name] = getattr(auto, name) if value == "auto" else bool(value) if is_flag else int(value)
    offloaded = launch.zero.get("offload_optimizer") or launch.zero.get("offload_param") or {}
    if "pin_memory" in offloaded:
        found["pin_memory"] = bool(offloaded["pin_memory"])
    return replace(ZeroSettings(), **found)


def _deepspeed(stage: str, optimizer: str, param: str, where: str) -> Launch:
    strategies: dict[str, Strategy] = {"1": "zero1", "2": "zero2", "3": "zero3"}
    offloads: dict[str, Offload] = {"none": "none", "cpu": "cpu", "nvme": "nvme"}
    if stage not in strategies:
        raise PlanError(f"{where}: ZeRO stage {stage} is not planned for; 1, 2 or 3 is")
    for device in (optimizer, param):
        if device not in offloads:
            raise PlanError(f"{where}: an offload to {device} is not planned for; none, cpu or nvme is")
    return Launch(strategies[stage], offloads[optimizer], offloads[param])


def make_plan(
    recipe: Recipe,
    problems: ProblemSets,
    cluster: Cluster,
    launch: Launch,
    *,
    method: Method | None = None,
    success_rate: float | None = None,
    mean_new_tokens: float | None = None,
) -> Plan:
    """Return the plan of a recipe on a cluster.

    Args:
        method: of fine-tuning; None is the recipe's.
        success_rate: expected share of correct solutions; None is `DEFAULT_SUCCESS`.
        mean_new_tokens: expected tokens of a solution; None is half of the cap.

    Raises:
        PlanError: the model's family, an option or the launch is not known.
        TrainingError: the global batch cannot be shared out over the devices.
        ProblemError: the problems cannot be used.
    """
    shape = shape_of_model(recipe.model, "model")
    sampler, drawn = recipe.model, shape
    if recipe.sampling.model is not None:
        sampler, drawn = recipe.sampling.model, shape_of_model(recipe.sampling.model, "sampling.model")
    workload = measure(recipe, problems, success_rate=success_rate, mean_new_tokens=mean_new_tokens)
    sampling = sampling_setup(recipe, drawn, workload, cluster)
    training = training_setup(recipe, shape, workload, cluster, launch, method=method)
    num_examples = _num_examples(recipe, workload)
    return Plan(
        model=recipe.model.name_or_path,
        shape=shape,
        sampler=sampler.name_or_path,
        sampling_shape=drawn,
        cluster=cluster,
        workload=workload,
        sampling=plan_sampling(drawn, sampling, cluster, workload),
        training=plan_training(
            shape, training, cluster, num_examples=num_examples, num_epochs=recipe.training.num_train_epochs
        ),
        num_iterations=recipe.num_iterations,
        is_drawn=recipe.selection.human_solutions != "only",
        evaluation_share=_evaluation_share(recipe, workload, recipe.training.num_train_epochs),
        base_share=_evaluation_share(recipe, workload, len(base_variants(recipe.prompt))),
        save_seconds=recipe.training.save_seconds,
    )


def _num_examples(recipe: Recipe, workload: Workload) -> float | None:
    """Return how many examples are expected to be trained on, human solutions among them."""
    num_samples, cap = recipe.sampling.num_samples, recipe.selection.max_solutions_per_problem
    match recipe.selection.human_solutions:
        case "only":
            return workload.num_train
        case "solved":
            return workload.num_examples(num_samples, 1)
        case kind:
            sampled = workload.num_examples(num_samples, cap)
            num_human = (workload.num_train or 0) if kind == "mix" else 0
            return None if sampled is None else sampled + num_human


def shape_of_model(model: ModelSection, key: str) -> ModelShape:
    """Return the shape of a model, from its folder or from what the hub's client has stored.

    Args:
        key: the recipe's section, for messages.

    Raises:
        PlanError: there is none, or it is not known.
    """
    name = model.name_or_path
    if Path(name).is_dir():
        return load_shape(Path(name))
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, "config.json", revision=model.revision)
    except HFValidationError:
        found = None
    if not isinstance(found, str):
        found = _download(name, model.revision, key)
    return load_shape(Path(found))


def _download(name: str, revision: str | None, key: str) -> str:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return hf_hub_download(name, "config.json", revision=revision)
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise PlanError(
            f"{key}.name_or_path is {name}: no such folder, and the hub gave no config.json: {reason}; name "
            "a folder with the model's config.json"
        ) from error


def measure(
    recipe: Recipe, problems: ProblemSets, *, success_rate: float | None, mean_new_tokens: float | None
) -> Workload:
    """Count a recipe's problems and measure their prompts.

    Raises:
        PlanError: a rate or a length is none.
        ProblemError: the problems cannot be used.
    """
    cap = recipe.sampling.max_new_tokens
    if success_rate is not None and not 0 <= success_rate <= 1:
        raise PlanError(f"--success is {success_rate}; a rate from 0 to 1 is wanted, as 0.4")
    if mean_new_tokens is not None and not 0 < mean_new_tokens <= cap:
        raise PlanError(
            f"--mean-tokens is {mean_new_tokens}; above 0 and at most sampling.max_new_tokens, {cap}, is "
            "wanted"
        )
    count_tokens, told = _counter(recipe.sampling.model or recipe.model)
    prompt, teacher = recipe.prompt, teacher_variant(recipe.prompt)
    variants = (*base_variants(prompt), tuned_variant(prompt), *(() if teacher is None else (teacher,)))
    asked = [problems.rendered("train", one) for one in variants]
    trained = problems.rendered("train", training_variant(prompt))
    return Workload(
        num_train=len(trained),
        num_validation=len(problems.rendered("validation", tuned_variant(prompt))),
        num_test=len(problems.rendered("test", tuned_variant(prompt))),
        prompt=max((_lengths(one, count_tokens) for one in asked), key=lambda one: one.longest),
        training_prompt=_lengths(trained, count_tokens),
        mean_new_tokens=cap / 2 if mean_new_tokens is None else mean_new_tokens,
        longest_human=_longest(problems.human_solutions.values(), count_tokens),
        success_rate=DEFAULT_SUCCESS if success_rate is None else success_rate,
        sources=(
            told,
            "solutions: half of sampling.max_new_tokens is assumed; --mean-tokens says better"
            if mean_new_tokens is None
            else "solutions: --mean-tokens",
            f"success: {DEFAULT_SUCCESS} is assumed; --success says better"
            if success_rate is None
            else "success: --success",
        ),
    )


class _Counter:
    """Tokens of a prompt, by the model's own tokenizer or by its characters."""

    def __init__(self, tokenizer: Any | None) -> None:
        self._tokenizer = tokenizer

    def __call__(self, prompt: str | Messages) -> tuple[int, ...]:
        """Return the token ids, or as many numbers of characters as there are tokens."""
        text, extra = prompt, 0
        if not isinstance(text, str):
            extra = 4 * len(text)  # what a chat template puts around a message
            text = "".join(f"{one['role']}\n{one['content']}\n" for one in text)
        if self._tokenizer is not None:
            return (*self._tokenizer.encode(text).ids, *range(extra))
        size = math.ceil(len(text) / CHARACTERS_PER_TOKEN)
        step = CHARACTERS_PER_TOKEN
        return (*(hash(text[int(i * step) : int((i + 1) * step)]) for i in range(size)), *range(extra))


def _counter(model: ModelSection) -> tuple[_Counter, str]:
    file = Path(model.name_or_path) / "tokenizer.json"
    if file.exists():
        from tokenizers import Tokenizer

        return _Counter(Tokenizer.from_file(str(file))), f"prompts: {file.name} of the model"
    told = f"prompts: {CHARACTERS_PER_TOKEN} characters a token; there is no tokenizer.json in a folder"
    return _Counter(None), told


def _lengths(problems: Sequence[Problem], count_tokens: _Counter) -> Lengths:
    """Measure prompts: all of a few, else a sample with the longest and the shortest texts."""
    by_size = sorted(problems, key=lambda one: _size(one.prompt))
    step = max(1, len(by_size) // MEASURED_PROMPTS)
    chosen = by_size[::step]
    if len(by_size) > 1:
        chosen += by_size[-3:]
    encoded = [count_tokens(one.prompt) for one in chosen]
    sizes = [max(1, len(one)) for one in encoded]
    same = (len(set(tokens)) == 1 for tokens in zip(*encoded, strict=False))
    head = sum(1 for _ in itertools.takewhile(bool, same))
    return Lengths(
        longest=max(sizes),
        shortest=min(sizes),
        mean=sum(sizes) / len(sizes),
        head=min(head, min(sizes) - 1),
    )


def _longest(texts: Collection[str], count_tokens: _Counter) -> int:
    """Return the tokens of the longest of some texts, looking at those with the most characters."""
    longest = sorted(texts, key=len)[-MEASURED_PROMPTS:]
    return max((len(count_tokens(one)) for one in longest), default=0)


def _size(prompt: str | Messages) -> int:
    return len(prompt) if isinstance(prompt, str) else sum(len(one["content"]) for one in prompt)


def sampling_setup(recipe: Recipe, shape: ModelShape, workload: Workload, cluster: Cluster) -> SamplingSetup:
    """Return how a recipe's E-step is done on a device."""
    sampling, model = recipe.sampling, recipe.sampling.model or recipe.model
    dtype = model.dtype
    is_half = dtype in ("bfloat16", "float16") or (dtype == "auto" and cluster.gpu.bf16_flops is not None)
    width = 2 if is_half else 4
    total, active = weight_bytes(shape, width)
    longest = workload.prompt.longest
    cap = sampling.max_new_tokens
    if shape.max_positions is not None:
        cap = max(1, min(cap, shape.max_positions - longest))
    window = min((one for one in shape.windows if one is not None), default=None)
    is_stock = (
        model.attn_implementation == "stock"
        or shape.family == "gemma2"  # its attention caps scores
        or (window is not None and longest + cap > window)
    )
    engine: Engine = "stock" if is_stock else "shared_prefix"
    return SamplingSetup(
        weight_bytes=total,
        active_weight_bytes=active,
        dtype_bytes=width,
        num_samples=sampling.num_samples,
        max_rows=sampling.max_rows,
        unit_size=sampling.unit_size,
        longest_prompt=longest,
        mean_prompt=workload.prompt.mean,
        common_head=min(workload.prompt.head, longest - 1),
        max_new_tokens=cap,
        mean_new_tokens=min(workload.mean_new_tokens, cap),
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        engine=engine,
    )


def training_setup(
    recipe: Recipe,
    shape: ModelShape,
    workload: Workload,
    cluster: Cluster,
    launch: Launch,
    *,
    method: Method | None = None,
) -> TrainingSetup:
    """Return how a recipe's M-step is done under a launch.

    Raises:
        PlanError: adapters that are not planned for.
        TrainingError: the global batch cannot be shared out over the devices.
    """
    section, extra = recipe.training, recipe.training.model_extra or {}
    is_half = cluster.gpu.bf16_flops is not None if section.bf16 == "auto" else bool(section.bf16)
    is_deepspeed = launch.strategy.startswith("zero")
    precision: Literal["fp32", "autocast", "bf16"] = (
        "fp32" if not is_half else "bf16" if is_deepspeed else "autocast"
    )
    # Under DeepSpeed's bf16 adapters are cast with the rest, but where zero.Init has made the base before
    # them.
    is_cast = precision == "bf16" and launch.strategy != "zero3"
    if method is None:
        method = "full" if recipe.lora is None else "lora" if recipe.quantization is None else "qlora"
    if method == "qlora" and (recipe.quantization or NF4).get("load_in_8bit"):
        raise PlanError("quantization.load_in_8bit: a base of 8 bits is not planned for, one of 4 is")
    adapter = None
    if method != "full":
        adapter = adapter_of(recipe.lora or LORA, shape, 2 if is_cast else 4)
    if method == "qlora" and (precision == "fp32" or shape.experts is not None):
        found = "stacked experts" if shape.experts is not None else "fp32"
        raise PlanError(
            f"a quantised base (qlora) cannot be planned for with {found}; nf4 weights are computed with in "
            "bfloat16, and bitsandbytes quantises linear layers alone"
        )
    sampled = 0 if recipe.selection.human_solutions == "only" else recipe.sampling.max_new_tokens
    cap = max(sampled, workload.longest_human) + 1  # its end
    limits = [one for one in (section.max_length, shape.max_positions) if one is not None]
    longest = min([workload.training_prompt.longest + cap, *limits])
    rows, _ = divide_global_batch(
        section.global_batch_size, cluster.num_devices, section.per_device_train_batch_size
    )
    is_packed = section.packing is not False and can_pack(shape, longest)
    is_packed = is_packed and extra.get("neftune_noise_alpha") is None
    shared = workload.training_prompt.head if is_packed and section.prefix_sharing and rows > 1 else 0
    mean = min(float(longest), workload.training_prompt.mean + workload.mean_new_tokens)
    return TrainingSetup(
        method=method,
        strategy=launch.strategy,
        num_rows=rows,
        global_batch_size=section.global_batch_size,
        longest=longest,
        mean_length=mean if is_packed else mean_padded(mean, longest, rows),
        num_kept=min(longest, longest - workload.training_prompt.shortest + 1),
        num_solution_tokens=min(cap, longest - 1),
        precision=precision,
        is_checkpointed=any(extra.get(one) for one in CHECKPOINTING),
        optim=str(extra.get("optim", "adamw_torch_fused")),
        adapter=adapter,
        offload_optimizer=launch.offload_optimizer,
        offload_param=launch.offload_param,
        zero=zero_settings(launch, shape, weights_of(shape, adapter).num_elements),
        checkpoint_element_bytes=4 if shape.dtype == "float32" else 2,
        is_packed=is_packed,
        num_shared=shared if shared >= MIN_SHARED_TOKENS else 0,
    )


def can_pack(shape: ModelShape, longest: int) -> bool:
    """Say whether the M-step packs a model's examples, as `training.attention.why_not_packed` does."""
    has_room = all(window is None or window >= longest for window in shape.windows)
    return shape.family in FAMILIES and not shape.has_logit_cap and not shape.has_score_cap and has_room


def overrides_of(recipe: Recipe, plan: Plan) -> dict[str, Any]:
    """Return the keys of a recipe, dotted, that a plan of it was made with other values of."""
    found: dict[str, Any] = {}
    if plan.sampling.setup.max_rows != recipe.sampling.max_rows:
        found["sampling.max_rows"] = plan.sampling.setup.max_rows
    setup, extra = plan.training.setup, recipe.training.model_extra or {}
    section = recipe.training
    rows, _ = divide_global_batch(
        section.global_batch_size, plan.cluster.num_devices, section.per_device_train_batch_size
    )
    if setup.num_rows != rows:
        found["training.per_device_train_batch_size"] = setup.num_rows
    keys = [one for one in CHECKPOINTING if extra.get(one)]
    if setup.is_checkpointed and not keys:
        found[f"training.{CHECKPOINTING[0]}"] = True
    if not setup.is_checkpointed:
        found |= {f"training.{key}": False for key in keys}
    if setup.method == "full" and recipe.lora is not None:
        found["lora"] = None
    if setup.method != "qlora" and recipe.quantization is not None:
        found["quantization"] = None
    if setup.method == "qlora" and recipe.quantization is None:
        found |= {f"quantization.{name}": value for name, value in NF4.items()}
    if setup.method != "full" and recipe.lora is None:
        found |= {f"lora.{name}": value for name, value in LORA.items()}
    return found


def _evaluation_share(recipe: Recipe, workload: Workload, num_choices: int) -> float:
    """Return the solutions drawn to measure a policy and to choose among others, for each of an E-step.

    Args:
        num_choices: checkpoints, or prompts of the base, that are tried on the validation problems.
    """
    asked = recipe.evaluation
    measured = (workload.num_test or 0) * (1 + asked.num_samples) + asked.num_train_problems
    chosen = (workload.num_validation or 0) * num_choices
    drawn = (workload.num_train or 0) * recipe.sampling.num_samples
    return (measured + chosen) / drawn if drawn else 0.0
