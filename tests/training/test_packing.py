"""Packs: no example sees another, what prompts share is computed once, loss and gradients stay the same."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, Gemma3TextConfig, GPTJConfig, LlamaConfig, MistralConfig

from rest_em import packs
from rest_em.batches import EncodedExample, packed_micro_batches
from rest_em.errors import TrainingError
from rest_em.packs import FAMILIES, MIN_SHARED_TOKENS, Pack, Segment, num_chunks, pack_examples
from rest_em.recipe import TrainingSection
from rest_em.training.arguments import choose_packing
from rest_em.training.attention import PackedAttention, why_not_packed
from rest_em.training.base import refuse_shared_targets
from rest_em.training.loader import Packing, pack, pad
from rest_em.training.loss import SolutionLoss, solution_loss

HEAD = tuple(range(10, 10 + 2 * MIN_SHARED_TOKENS))
"""What few-shot prompts begin with."""


def _examples(vocab_size: int = 100) -> list[EncodedExample]:
    """Five examples: three of one prompt, one with another question, one that shares nothing."""
    rng = random.Random(0)

    def tokens(number: int) -> tuple[int, ...]:
        return tuple(rng.randrange(3, vocab_size) for _ in range(number))

    question, other = tokens(MIN_SHARED_TOKENS + 3), tokens(5)
    prompts = [HEAD + question] * 3 + [HEAD + other, tokens(7)]
    return [
        EncodedExample(prompt + tokens(2 + i), len(prompt), weight=1.0 - i / 10)
        for i, prompt in enumerate(prompts)
    ]


def _seen(packed: Pack, place: int) -> list[int]:
    """Return the places that a token sees, itself the last."""
    (segment,) = (one for one in packed.segments if one.start <= place < one.end)
    runs = [*(packed.segments[index] for index in segment.sees), Segment(segment.start, place + 1)]
    return [i for run in runs for i in range(run.start, run.end)]


# Packs


def test_prompts_that_begin_alike_are_there_once() -> None:
    examples = _examples()
    packed = pack_examples(examples, share_prefixes=True)
    num_unshared = len(pack_examples(examples, share_prefixes=False).token_ids)
    num_question = examples[0].num_prompt_tokens - len(HEAD)
    assert len(packed.token_ids) == num_unshared - 3 * len(HEAD) - 2 * num_question
    assert sum(tuple(packed.token_ids[i : i + len(HEAD)]) == HEAD for i in range(len(packed.token_ids))) == 1


def _random_examples(rng: random.Random) -> list[EncodedExample]:
    """Prompts of three tokens that often begin alike, end within one another or are the same."""
    head = [rng.randrange(3) for _ in range(rng.choice([0, 5, 20, 40]))]
    examples: list[EncodedExample] = []
    for _ in range(rng.randrange(1, 9)):
        prompt = head + [rng.randrange(3) for _ in range(rng.randrange(25))] or [1]
        if examples and rng.random() < 0.4:
            prompt = list(rng.choice(examples).prompt_ids)[: rng.choice([999, 10])]
        solution = [rng.randrange(3) for _ in range(rng.randrange(1, 6))]
        examples.append(EncodedExample((*prompt, *solution), len(prompt), 1.0))
    return examples


@pytest.mark.parametrize("share_prefixes", [False, True])
def test_every_solution_token_is_predicted_from_its_own_example_and_nothing_else(
    share_prefixes: bool,
) -> None:
    rng = random.Random(0)
    for _ in range(300):
        examples = _random_examples(rng)
        packed = pack_examples(examples, share_prefixes=share_prefixes)
        done = [0] * len(examples)
        for place, index, target in zip(packed.predicting, packed.examples, packed.targets, strict=True):
            example = examples[index]
            end = example.num_prompt_tokens + done[index]
            seen = _seen(packed, place)
            assert [packed.token_ids[i] for i in seen] == list(example.token_ids[:end])
            assert [packed.positions[i] for i in seen] == list(range(end))
            assert target == example.token_ids[end]
            done[index] += 1
        assert done == [example.num_solution_tokens for example in examples]
        assert [one.start for one in packed.segments[1:]] == [one.end for one in packed.segments[:-1]]


def test_packed_micro_batches_take_every_example_once_and_about_equally_many_tokens() -> None:
    rng = random.Random(1)
    examples = [EncodedExample((k % 5,) * 3 + (9,) * rng.randrange(1, 60), 3, 1.0) for k in range(40)]
    cuts = packed_micro_batches(range(40), examples, per_device=5, num_ranks=2, share_prefixes=False)
    assert sorted(index for cut in cuts for index in cut) == list(range(40))
    assert {len(cut) for cut in cuts} == {5}
    loads = [sum(len(examples[index].token_ids) for index in cut) for cut in cuts]
    assert max(loads) < 1.3 * min(loads)


def test_a_short_global_batch_gives_every_rank_as_many_micro_batches() -> None:
    examples = [EncodedExample((1, 2), 1, 1.0)] * 3
    for share_prefixes, sizes in ((False, [0, 1, 1, 1]), (True, [0, 0, 1, 2])):
        cuts = packed_micro_batches(
            [0, 1, 2], examples, per_device=2, num_ranks=4, share_prefixes=share_prefixes
        )
        assert sorted(map(len, cuts)) == sizes


# Loss and gradients


def _one_by_one(model: Any, examples: Sequence[EncodedExample]) -> torch.Tensor:
    """The weighted loss as the model's own code gives it, an example a pass."""
    total = torch.zeros(())
    for example in examples:
        logits = model(input_ids=torch.tensor([example.token_ids]), use_cache=False).logits[0]
        start = example.num_prompt_tokens
        targets = torch.tensor(example.token_ids[start:])
        total = total + example.weight * cross_entropy(logits[start - 1 : -1], targets, reduction="sum")
    return total


def _packed(model: Any, examples: Sequence[EncodedExample], *, share_prefixes: bool) -> torch.Tensor:
    attention = PackedAttention()
    attention.install(model)
    SolutionLoss(model)
    inputs = pack([(one, 1.0) for one in examples], share_prefixes=share_prefixes)
    attention.segments = inputs.pop("segments")
    found: torch.Tensor = model(**inputs)
    return found


def _gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    return {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def _tiny(family: str) -> Any:
    from planner.families import config_of

    changes: dict[str, Any] = {"num_hidden_layers": 2, "attention_dropout": 0.0}
    if family == "gpt2":
        changes = {"n_layer": 2, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    torch.manual_seed(0)
    config = copy.deepcopy(config_of(family, **changes))  # the model's attention is set in it
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).train()


def _assert_same(model: Any, found: torch.Tensor, wanted: dict[str, torch.Tensor], expected: float) -> None:
    assert found.item() == pytest.approx(expected, rel=1e-5)
    got = _gradients(model, found)
    assert got.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert (got[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-7, name


@pytest.mark.parametrize(
    ("family", "share_prefixes"), [*((family, True) for family in FAMILIES), ("llama", False)]
)
def test_a_packs_loss_and_gradients_are_those_of_its_examples_one_by_one(
    family: str, share_prefixes: bool
) -> None:
    model, examples = _tiny(family), _examples()
    expected = _one_by_one(model, examples)
    wanted = _gradients(model, expected)
    assert why_not_packed(model.config, longest=100) is None
    found = _packed(model, examples, share_prefixes=share_prefixes)
    _assert_same(model, found, wanted, expected.item())


@pytest.mark.parametrize("is_packed", [True, False])
def test_logits_in_parts_give_the_same_loss_and_gradients(
    monkeypatch: pytest.MonkeyPatch, is_packed: bool
) -> None:
    model, examples = _tiny("llama"), _examples()
    expected = _one_by_one(model, examples)
    wanted = _gradients(model, expected)
    monkeypatch.setattr(packs, "MAX_LOGITS_BYTES", 4 * model.config.vocab_size * 3)
    num_tokens = sum(one.num_solution_tokens for one in examples)
    assert num_chunks(num_tokens, model.config.vocab_size) == 7
    if is_packed:
        found = _packed(model, examples, share_prefixes=True)
    else:
        batch = pad([(one, 1.0) for one in examples])
        rows, places = torch.nonzero(batch["token_weights"], as_tuple=True)
        logits = model(input_ids=batch["input_ids"], use_cache=False).logits
        found = solution_loss(
            logits,
            rows * logits.shape[1] + places - 1,
            batch["input_ids"][rows, places],
            batch["token_weights"][rows, places],
        )
    _assert_same(model, found, wanted, expected.item())


def test_logits_exist_for_a_bounded_number_of_solution_tokens_only(monkeypatch: pytest.MonkeyPatch) -> None:
    model, examples = _tiny("llama"), _examples()
    monkeypatch.setattr(packs, "MAX_LOGITS_BYTES", 4 * model.config.vocab_size * 3)
    sizes = []
    model.lm_head.forward = lambda hidden, project=model.lm_head.forward: (
        sizes.append(len(hidden)),
        project(hidden),
    )[1]
    _gradients(model, _packed(model, examples, share_prefixes=True))
    assert max(sizes) == 3
    assert sum(sizes) == 2 * sum(one.num_solution_tokens for one in examples)  # the backward pass, too


def test_adapters_and_activation_checkpointing_learn_the_same_from_packs() -> None:
    config, examples = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False), _examples()
    model = get_peft_model(_tiny("llama"), config)
    expected = _one_by_one(model, examples)
    wanted = _gradients(model, expected)
    inner = model.get_base_model()
    inner.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    inner.enable_input_require_grads()
    attention = PackedAttention()
    attention.install(inner)
    SolutionLoss(inner)
    inputs = pack([(one, 1.0) for one in examples], share_prefixes=True)
    attention.segments = inputs.pop("segments")
    _assert_same(model, model(**inputs), wanted, expected.item())


# Where a model cannot be packed


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (GPTJConfig(), "not been tried with models of the type gptj"),
        (MistralConfig(sliding_window=64), "sliding window of 64 tokens, and the longest example has 65"),
        (Gemma3TextConfig(final_logit_softcapping=30.0), "it has final_logit_softcapping"),
    ],
)
def test_a_model_that_cannot_be_packed_is_trained_on_padded_examples_and_says_why(
    config: Any, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert choose_packing(TrainingSection(), config, 65) == Packing(is_packed=False, share_prefixes=False)
    told = capsys.readouterr().err
    assert told.startswith("examples are padded, not packed: ")
    assert reason in told
    with pytest.raises(TrainingError, match=f"training.packing is true, but .*{reason}; give auto or false"):
        choose_packing(TrainingSection(packing=True), config, 65)


def test_noise_that_depends_on_the_length_of_a_row_is_for_padded_examples() -> None:
    noisy = TrainingSection.model_validate({"neftune_noise_alpha": 5.0})
    assert not choose_packing(noisy, LlamaConfig(), 65).is_packed


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_an_adapter_on_a_matrix_that_embedding_and_head_share_is_refused(target: str) -> None:
    model = _tiny("llama")
    refuse_shared_targets(get_peft_model(model, LoraConfig(target_modules=[target])).get_base_model())
    config = copy.deepcopy(model.config)
    config.tie_word_embeddings = True
    tied = AutoModelForCausalLM.from_config(config)
    adapted = get_peft_model(tied, LoraConfig(target_modules=[target]))
    with pytest.raises(TrainingError, match=r"share a matrix.*leave it out, or .* lora.modules_to_save"):
        refuse_shared_targets(adapted.get_base_model())


def test_the_recipe_says_whether_examples_are_packed_and_prefixes_shared() -> None:
    config = LlamaConfig()
    sections = ({}, {"prefix_sharing": False}, {"packing": False})
    found = [choose_packing(TrainingSection.model_validate(one), config, 65) for one in sections]
    assert [(one.is_packed, one.share_prefixes) for one in found] == [
        (True, True), (True, False), (False, False)
    ]  # fmt: skip
