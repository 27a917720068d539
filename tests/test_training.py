"""The M-step: what the loss counts, that ranks and accumulation do not change it, what a checkpoint holds."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from rank_program import recorded
from safetensors.torch import load_file
from test_launch import launched
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from rest_em.batches import EncodedExample
from rest_em.errors import TrainingError
from rest_em.processes import kill_group
from rest_em.recipe import TrainingSection
from rest_em.stages import Ranks, stage_environment
from rest_em.storage import read_json, write_examples, write_json
from rest_em.tokens import encode_prompt
from rest_em.training.examples import encode_examples, length_limit
from rest_em.training.loader import EpochLoader, MicroBatches, Packing, pad
from rest_em.training.loss import solution_loss
from rest_em.training.stage import main
from rest_em.types import TrainingExample
from rest_em.usage import Usage, joint_usage

PLAIN_STEPS = {"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0}
"""Steps as long as the gradient: a wrong scale of the loss shows, which AdamW and clipping would hide."""
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
LORA = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
TWINS = ["ddp_cpu", "zero1_cpu", "zero2_cpu", "zero3_cpu", "zero3_offload_cpu"]
"""Launch files of two processes on a CPU."""


@pytest.fixture(autouse=True)
def _one_thread(own_environment: None) -> None:
    torch.set_num_threads(1)


def _examples(number: int) -> list[TrainingExample]:
    """Sums of different length, every third with half the weight."""
    return [
        TrainingExample(
            f"p{i}",
            0,
            prompt=f"{i} + {i * 7}? ",
            token_ids=tuple(f"={i * 8}".encode()),
            finish_reason="stop_string",
            weight=0.5 if i % 3 == 0 else 1.0,
        )
        for i in range(number)
    ]


def _spec(
    folder: Path,
    model: Path,
    examples: list[TrainingExample],
    *,
    lora: Any = None,
    quantization: Any = None,
    **training: Any,
) -> dict[str, Any]:
    write_examples(folder / "dataset.parquet", examples)
    defaults = {"global_batch_size": 8, "num_train_epochs": 2, "learning_rate": 1e-3, "bf16": False}
    return {
        "model": {"name_or_path": str(model), "revision": None, "trust_remote_code": False},
        "examples": str(folder / "dataset.parquet"),
        "output": str(folder / "policy"),
        "training": {**defaults, **training},
        "lora": lora,
        "quantization": quantization,
        "seed": 3,
        "iteration": 1,
        "progress": str(folder / "progress"),
        "stop": str(folder / "stop"),
    }


def _train(
    folder: Path,
    model: Path,
    examples: list[TrainingExample],
    *,
    lora: Any = None,
    quantization: Any = None,
    **training: Any,
) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    main(_spec(folder, model, examples, lora=lora, quantization=quantization, **training))
    result: dict[str, Any] = read_json(folder / "policy" / "training.json")
    return result


def _train_on_two_ranks(folder: Path, jobs: list[tuple[str, dict[str, Any]]]) -> None:
    """Train one specification after another, each under a launch file."""
    described = []
    for name, spec in jobs:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        environments = [
            stage_environment(Ranks(rank, 2, rank, 2), port, launched(name), is_training=True)
            for rank in range(2)
        ]
        described.append({"spec": spec, "environments": environments})
    write_json(folder / "jobs.json", described)
    program = str(Path(__file__).with_name("rank_program.py"))
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, program, str(folder / "jobs.json")], env=environment, start_new_session=True
    )
    try:
        code = process.wait(timeout=560)
    finally:
        kill_group(process)
    assert code == 0, "\n".join(path.read_text()[-2000:] for path in sorted(folder.rglob("rank?.log")))


def _weights(folder: Path, epoch: int = 2) -> dict[str, torch.Tensor]:
    return load_file(folder / "policy" / f"epoch-{epoch}" / "model.safetensors")


def _largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


@pytest.fixture(scope="session")
def seventeen() -> list[TrainingExample]:
    """Two global batches of 8, and one of a single example that two ranks cannot share."""
    return _examples(17)


@pytest.fixture(scope="session")
def one_process(
    tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path, seventeen: list[TrainingExample]
) -> Path:
    folder = tmp_path_factory.mktemp("one")
    before = dict(os.environ)
    with recorded():
        _train(folder, tiny_model_folder, seventeen, **PLAIN_STEPS)
    os.environ.clear()
    os.environ.update(before)
    return folder


# What the loss counts


def test_only_the_solution_and_its_end_carry_weight(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    example = TrainingExample("p", 0, "ab", token_ids=(50, 51), finish_reason="stop_string", weight=0.5)
    (encoded,), num_left_out = encode_examples([example], tiny_tokenizer, None)
    ab = tiny_tokenizer.convert_tokens_to_ids("ab")
    assert encoded == EncodedExample((1, ab, 50, 51, 2), num_prompt_tokens=2, weight=0.5)
    assert encoded.num_solution_tokens == 3
    assert num_left_out == 0
    batch = pad([(encoded, 2.0), (EncodedExample((1, 60, 61), 1, 1.0), 2.0)])
    assert batch["input_ids"].tolist() == [[1, ab, 50, 51, 2], [1, 60, 61, 0, 0]]
    assert batch.keys() == {"input_ids", "token_weights"}
    assert batch["token_weights"].tolist() == [[0, 0, 1, 1, 1], [0, 2, 2, 0, 0]]


def test_a_solution_that_the_model_ended_gets_no_second_end(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    example = TrainingExample("p", 0, "ab", token_ids=(50, 2), finish_reason="eos", weight=1.0)
    (encoded,), _ = encode_examples([example], tiny_tokenizer, None)
    assert encoded.token_ids[2:] == (50, 2)


def test_a_truncated_solution_is_never_trained_on(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    example = TrainingExample("p", 0, "ab", token_ids=(50, 51), finish_reason="length", weight=1.0)
    with pytest.raises(AssertionError, match="never trained on"):
        encode_examples([example], tiny_tokenizer, None)


def test_a_chat_is_trained_on_as_it_is_sampled_from(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    prompt = ({"role": "user", "content": "ab"},)
    example = TrainingExample("p", 0, prompt, token_ids=(50,), finish_reason="stop_string", weight=1.0)
    (encoded,), _ = encode_examples([example], tiny_tokenizer, None)
    assert list(encoded.token_ids[:-2]) == encode_prompt(tiny_tokenizer, prompt)
    assert encoded.token_ids[:2].count(1) == 1


def test_examples_too_long_are_left_out_and_counted(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    examples = [
        TrainingExample("p", i, "ab", token_ids=(50,) * i, finish_reason="stop_string", weight=1.0)
        for i in (1, 2, 3, 9)
    ]
    kept, num_left_out = encode_examples(examples, tiny_tokenizer, 5)
    assert [len(one.token_ids) for one in kept] == [4, 5]
    assert num_left_out == 2


def test_nothing_left_to_train_on_says_how_long_the_examples_are(
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    example = TrainingExample("p", 0, "ab", token_ids=(50,) * 6, finish_reason="eos", weight=1.0)
    with pytest.raises(
        TrainingError, match=r"at most 5 tokens.*all 1 have at least 8 tokens; raise training"
    ):
        encode_examples([example], tiny_tokenizer, 5)


def test_a_tokenizer_without_an_end_is_refused(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    endless = PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer.backend_tokenizer, bos_token="<s>")
    with pytest.raises(TrainingError, match="has no EOS token"):
        encode_examples(_examples(1), endless, None)


def test_the_loss_sums_weight_times_surprise_of_the_solution() -> None:
    # One example: prompt 3, then solution 0, 1 with weights 2 and 1; p(0) = 1/2 and p(1) = 1/4 by hand.
    logits = torch.tensor([[[math.log(2), 0.0, -math.inf], [0.0, 0.0, math.log(2)], [9.0, 9.0, 9.0]]])
    logits[0, 0, 1] = math.log(2)
    loss = solution_loss(logits, torch.tensor([0, 1]), torch.tensor([0, 1]), torch.tensor([2.0, 1.0]))
    assert loss.item() == pytest.approx(2 * math.log(2) + math.log(4))


def test_a_micro_batch_without_weight_has_no_loss_and_no_gradient() -> None:
    logits = torch.zeros(1, 2, 5, requires_grad=True)
    nothing = torch.zeros(0, dtype=torch.long)
    loss = solution_loss(logits, nothing, nothing, torch.zeros(0))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert logits.grad.abs().max() == 0


# The loss of a global batch


def _mean_loss_of_base(model_folder: Path, examples: list[TrainingExample]) -> float:
    """The weighted mean over all solution tokens, one example at a time and without our batches."""
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    total = weights = 0.0
    for example in examples:
        prompt = encode_prompt(tokenizer, example.prompt)
        solution = [*example.token_ids, tokenizer.eos_token_id]
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *solution]])).logits[0]
        for place, token in enumerate(solution, start=len(prompt) - 1):
            total -= example.weight * logits[place].log_softmax(-1)[token].item()
            weights += example.weight
    return total / weights


@pytest.mark.parametrize("per_device", [1, 3, 12])
def test_the_loss_is_the_weighted_mean_over_the_global_batchs_solution_tokens(
    tmp_path: Path, tiny_model_folder: Path, per_device: int
) -> None:
    examples = _examples(12)
    sizes = {"global_batch_size": 12, "per_device_train_batch_size": per_device, "num_train_epochs": 1}
    result = _train(tmp_path, tiny_model_folder, examples, **sizes)
    assert result["loss"] == pytest.approx([_mean_loss_of_base(tiny_model_folder, examples)], abs=1e-5)
    assert result["num_tokens"] == sum(len(one.token_ids) + 1 for one in examples)


def test_accumulation_gives_the_weights_of_one_big_batch(
    tmp_path: Path, tiny_model_folder: Path, seventeen: list[TrainingExample], one_process: Path
) -> None:
    _train(tmp_path, tiny_model_folder, seventeen, per_device_train_batch_size=2, **PLAIN_STEPS)
    assert _largest_difference(_weights(tmp_path), _weights(one_process)) < 1e-5


def test_activation_checkpointing_changes_nothing(
    tmp_path: Path, tiny_model_folder: Path, seventeen: list[TrainingExample], one_process: Path
) -> None:
    _train(tmp_path, tiny_model_folder, seventeen, activation_checkpointing=True, **PLAIN_STEPS)
    assert _largest_difference(_weights(tmp_path), _weights(one_process)) < 1e-5


def test_the_longer_the_training_the_lower_the_loss(one_process: Path) -> None:
    first, second = read_json(one_process / "policy" / "training.json")["loss"]
    assert second < first


def _usage(folder: Path) -> Usage:
    usage = joint_usage(folder / "policy")
    assert usage is not None
    return usage


def test_what_it_took_is_told(
    one_process: Path, seventeen: list[TrainingExample], tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    encoded, _ = encode_examples(seventeen, tiny_tokenizer, None)
    num_tokens, usage = 2 * sum(len(one.token_ids) for one in encoded), _usage(one_process)
    assert num_tokens <= usage.num_tokens < 1.5 * num_tokens  # the rest is padding
    assert (usage.num_ranks, usage.device, usage.num_steps) == (1, "cpu", 6)
    assert 0 < usage.work_seconds < usage.seconds
    assert usage.peak_bytes is not None
    assert usage.resident_bytes_at_start is not None
    assert usage.peak_bytes >= usage.resident_bytes_at_start > 0


# Ranks


@pytest.fixture(scope="module")
def two_ranks(
    tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path, seventeen: list[TrainingExample]
) -> Path:
    """The same training on two ranks under each launch file, a folder each, and of adapters under ZeRO-3."""
    folder = tmp_path_factory.mktemp("two")
    trainings: dict[str, dict[str, Any]] = dict.fromkeys(TWINS, PLAIN_STEPS)
    jobs = []
    for name, training in [*trainings.items(), ("adapters", {"lora": LORA})]:
        (folder / name).mkdir()
        spec = _spec(folder / name, tiny_model_folder, seventeen, **training)
        jobs.append((name if name in TWINS else "zero3_cpu", spec))
    _train_on_two_ranks(folder, jobs)
    return folder


def _told(folder: Path) -> list[dict[str, Any]]:
    """Return what each rank told of its training."""
    return [read_json(path) for path in sorted(folder.glob("rank?.json"))]


def _assert_equal_training(folder: Path, other: Path) -> None:
    losses = [read_json(one / "policy" / "training.json")["loss"] for one in (folder, other)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    for epoch in (1, 2):
        assert _largest_difference(_weights(folder, epoch), _weights(other, epoch)) < 1e-5


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", TWINS)
def test_two_ranks_see_different_data_end_equal_and_learn_as_one_process_does(
    name: str, two_ranks: Path, one_process: Path
) -> None:
    (alone,), (first, second) = _told(one_process), _told(two_ranks / name)
    assert len(alone["losses"]) == 6
    assert first["losses"] == second["losses"] == pytest.approx(alone["losses"], abs=1e-4)
    assert first["weights"] == second["weights"]  # of ZeRO-3, what is whole between steps: nothing
    num_shared = sum(1 for one in first["shown"] if one in second["shown"])
    assert num_shared <= 1  # the one without weight, where the last global batch has a single example
    _assert_equal_training(two_ranks / name, one_process)
    usage, of_one = _usage(two_ranks / name), _usage(one_process)
    assert (usage.num_ranks, usage.num_steps) == (2, 6)
    assert 0.9 * of_one.num_tokens < usage.num_tokens < 1.2 * of_one.num_tokens


@pytest.mark.timeout(600)
def test_adapters_under_zero_3_equal_those_of_one_process(
    tmp_path: Path, tiny_model_folder: Path, seventeen: list[TrainingExample], two_ranks: Path
) -> None:
    _train(tmp_path, tiny_model_folder, seventeen, lora=LORA)
    _assert_equal_training(two_ranks / "adapters", tmp_path)


# What a checkpoint holds


def test_every_epoch_leaves_an_ordinary_checkpoint_of_the_bases_kind(
    one_process: Path, tiny_model_folder: Path
) -> None:
    policy = one_process / "policy"
    assert read_json(policy / "training.json")["checkpoints"] == ["epoch-1", "epoch-2"]
    left = sorted(path.name for path in policy.iterdir())
    assert left == ["epoch-1", "epoch-2", "steps.jsonl", "training.json", "usage"]
    for epoch in (1, 2):
        folder = policy / f"epoch-{epoch}"
        model = AutoModelForCausalLM.from_pretrained(folder)
        assert model.config.use_cache
        assert model.dtype == torch.float32
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert tokenizer.chat_template == AutoTokenizer.from_pretrained(tiny_model_folder).chat_template
        assert model.generation_config.eos_token_id == 2
    assert _largest_difference(_weights(one_process, 1), _weights(one_process, 2)) > 0


def test_a_half_precision_base_gives_half_precision_checkpoints(
    tmp_path: Path, tiny_model_folder: Path
) -> None:
    base = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.bfloat16).save_pretrained(base)
    AutoTokenizer.from_pretrained(tiny_model_folder).save_pretrained(base)
    _train(tmp_path / "run", base, _examples(8), num_train_epochs=1, bf16=True)
    weights = _weights(tmp_path / "run", 1)
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert read_json(tmp_path / "run" / "policy" / "epoch-1" / "config.json")["dtype"] == "bfloat16"


def test_what_an_interrupted_attempt_left_is_replaced(tmp_path: Path, tiny_model_folder: Path) -> None:
    for name in ("epoch-1", ".epoch-1"):
        (tmp_path / "policy" / name).mkdir(parents=True)
        (tmp_path / "policy" / name / "half.safetensors").write_bytes(b"half")
    write_json(tmp_path / "policy" / "training.json", {"checkpoints": ["epoch-9"]})
    result = _train(tmp_path, tiny_model_folder, _examples(8), num_train_epochs=1)
    assert result["checkpoints"] == ["epoch-1"]
    assert not list((tmp_path / "policy").rglob("half.safetensors"))
    assert not (tmp_path / "policy" / ".epoch-1").exists()


@pytest.mark.parametrize("quantization", [None, NF4], ids=["lora", "qlora"])
def test_an_adapter_is_kept_small_and_merged_beside_and_the_base_is_untouched(
    tmp_path: Path, tiny_model_folder: Path, quantization: Any
) -> None:
    def base_hash() -> str:
        return hashlib.sha256((tiny_model_folder / "model.safetensors").read_bytes()).hexdigest()

    before = base_hash()
    kinds = set()

    def note(module: torch.nn.Module, arguments: Any, output: Any) -> None:
        kinds.add(type(module).__name__)

    hook = torch.nn.modules.module.register_module_forward_hook(note)
    result = _train(
        tmp_path, tiny_model_folder, _examples(16), lora=LORA, quantization=quantization, learning_rate=1e-2
    )
    hook.remove()
    assert ("Linear4bit" in kinds) == (quantization is not None)
    assert result["loss"][1] < result["loss"][0]
    assert base_hash() == before
    folder = tmp_path / "policy" / "epoch-2"
    base = AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32)
    input_ids = torch.arange(3, 40)[None]
    base_logits = base(input_ids).logits
    merged_logits = AutoModelForCausalLM.from_pretrained(folder)(input_ids).logits
    adapted_logits = PeftModel.from_pretrained(base, folder / "adapter")(input_ids).logits
    assert torch.allclose(merged_logits, adapted_logits, atol=1e-4)
    assert (merged_logits - base_logits).abs().max() > 1e-2
    adapter = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in adapter.values()} == {torch.float32}
    assert all("lora_" in name for name in adapter)


def test_a_quantised_base_is_refused_under_deepspeed(tmp_path: Path, tiny_model_folder: Path) -> None:
    os.environ |= {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}
    ports = {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
    }
    os.environ |= ports
    with pytest.raises(TrainingError, match=r"not trained with DeepSpeed.* launch it with launch/ddp.yaml"):
        _train(tmp_path, tiny_model_folder, _examples(8), lora=LORA, quantization=NF4)


def test_a_tuned_model_has_learned_its_solutions_and_to_stop(tmp_path: Path, tiny_model_folder: Path) -> None:
    examples = _examples(4)
    schedule = {"num_train_epochs": 8, "global_batch_size": 1, "learning_rate": 1e-2}
    _train(tmp_path, tiny_model_folder, examples, **schedule)
    folder = tmp_path / "policy" / "epoch-8"
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for example in examples:
        prompt = torch.tensor([encode_prompt(tokenizer, example.prompt)])
        generated = model.generate(prompt, do_sample=False, max_new_tokens=20)[0, prompt.shape[1] :]
        assert generated.tolist() == [*example.token_ids, tokenizer.eos_token_id]


# What a run is told


def test_progress_ends_complete(one_process: Path) -> None:
    progress = read_json(one_process / "progress" / "0.json")
    assert (progress["done"], progress["total"]) == (6, 6)
    assert progress["loss"] > 0


def test_the_models_own_length_is_a_limit_too(tmp_path: Path, tiny_model_folder: Path) -> None:
    too_long = dataclasses.replace(_examples(1)[0], token_ids=(50,) * 600)
    result = _train(tmp_path, tiny_model_folder, [*_examples(8), too_long], num_train_epochs=1)
    assert (result["num_examples"], result["num_left_out"]) == (8, 1)


def test_the_shorter_of_the_recipes_and_the_models_limit_holds_whatever_the_model_calls_it() -> None:
    section = TrainingSection.model_validate({})
    gpt2, llama = GPT2Config(n_positions=64), LlamaConfig(max_position_embeddings=32)
    assert [length_limit(section, config) for config in (gpt2, llama)] == [64, 32]
    section = TrainingSection.model_validate({"max_length": 40})
    assert [length_limit(section, config) for config in (gpt2, llama)] == [40, 32]


def test_every_epoch_has_an_order_of_its_own_and_the_recipe_chooses_its_kind() -> None:
    examples = [EncodedExample((5,) * (k % 7 + 2), 1, 1.0) for k in range(32)]

    def orders(strategy: str) -> list[list[Any]]:
        arguments: Any = SimpleNamespace(
            per_device_train_batch_size=4, gradient_accumulation_steps=1, world_size=1, process_index=0,
            train_sampling_strategy=strategy,
        )  # fmt: skip
        sampler = MicroBatches(
            examples, arguments, "0/1", packing=Packing(is_packed=False, share_prefixes=False)
        )
        loader = EpochLoader(examples, batch_sampler=sampler)
        found = []
        for epoch in range(2):
            loader.set_epoch(epoch)
            found.append([[index for index, _ in batch] for batch in sampler])
        return found

    by_length, at_random = orders("group_by_length"), orders("random")
    assert by_length[0] != by_length[1]
    assert by_length[0] != at_random[0]
    for epoch in (*by_length, *at_random):
        assert sorted(itertools.chain.from_iterable(epoch)) == list(range(32))


@pytest.mark.parametrize(("bf16", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_bf16_says_in_what_the_model_computes(
    tmp_path: Path, tiny_model_folder: Path, bf16: bool, dtype: torch.dtype
) -> None:
    seen = set()

    def note(module: torch.nn.Module, arguments: Any, output: Any) -> None:
        if isinstance(module, torch.nn.Linear) and output.dim() > 0:  # the head returns the loss, in fp32
            seen.add((module.weight.dtype, output.dtype))

    hook = torch.nn.modules.module.register_module_forward_hook(note)
    try:
        _train(tmp_path, tiny_model_folder, _examples(8), num_train_epochs=1, bf16=bf16)
    finally:
        hook.remove()
    assert seen == {(torch.float32, dtype)}


def test_a_batch_that_the_ranks_cannot_share_stops_before_anything_is_loaded(tmp_path: Path) -> None:
    os.environ["WORLD_SIZE"] = "3"
    with pytest.raises(
        TrainingError, match=r"8 examples cannot be shared out evenly over 3 ranks; set it to 6"
    ):
        _train(tmp_path, tmp_path / "no-model", _examples(8))


def test_a_loss_that_is_not_a_number_stops_the_run(tmp_path: Path, tiny_model_folder: Path) -> None:
    with pytest.raises(
        TrainingError, match=r"the loss is (nan|inf) at step \d of 6; lower training.learning_r"
    ):
        _train(tmp_path, tiny_model_folder, _examples(24), learning_rate=1e38)
