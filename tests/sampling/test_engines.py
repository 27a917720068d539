"""Both engines against `generate` and against exact probabilities, on tiny random models."""

import contextlib
from dataclasses import replace

import pytest
import torch
import transformers as hf
from transformers.generation import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from rest_em.errors import SamplingError
from rest_em.sampling.engine import make_sampler, unsupported_reason
from rest_em.sampling.policy import in_memory
from rest_em.sampling.shared_prefix import SharedPrefixSampler
from rest_em.sampling.stock import StockSampler
from rest_em.tokens import sliding_window
from rest_em.types import DrawRequest, Problem, SamplingParams

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.3}
GATED = {**SIZES, "intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 256}
SMALL_GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "initializer_range": 0.3}

SHARED_PREFIX = {
    "llama": hf.LlamaConfig(**GATED),
    "qwen2": hf.Qwen2Config(**GATED),
    "qwen3": hf.Qwen3Config(**GATED, head_dim=16),
    "mistral": hf.MistralConfig(**GATED, sliding_window=200),
    "gpt2": hf.GPT2Config(**SMALL_GPT),
    "gpt_neox": hf.GPTNeoXConfig(**SIZES, intermediate_size=48, max_position_embeddings=256),
}
STOCK = {
    "gptj": hf.GPTJConfig(**SMALL_GPT, rotary_dim=4),
    "bloom": hf.BloomConfig(hidden_size=32, n_layer=2, n_head=4, initializer_range=0.3),
    "gemma2": hf.Gemma2Config(**GATED, head_dim=8, sliding_window=200),
    "qwen3_next": hf.Qwen3NextConfig(
        **GATED,
        head_dim=16,
        layer_types=["linear_attention", "full_attention"],
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        num_experts=2,
        num_experts_per_tok=1,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
    ),
    "mamba": hf.MambaConfig(hidden_size=32, num_hidden_layers=2, state_size=4, initializer_range=0.3),
}

SHOTS = "1 + 1 = 2\n\n3 + 4 = 7\n\n"
WITH_HEAD = [SHOTS + "5 + 5 =", SHOTS + "12 + 34 + 5 =", SHOTS + "5 +", SHOTS + "abab"]
WITHOUT_HEAD = ["9", "what is 12 + 34?", "ab", "=== a longer prompt than the others ==="]


def nothing(num_tokens, num_solutions):
    """An observer that does not look."""


@pytest.fixture(scope="module")
def policies(tiny_tokenizer):
    """Random models by name, made once."""
    made = {}

    def policy(name):
        if name not in made:
            config = {**SHARED_PREFIX, **STOCK}[name]
            config.vocab_size, config.pad_token_id = len(tiny_tokenizer), 0
            config.bos_token_id, config.eos_token_id = 1, 2
            torch.manual_seed(1)
            made[name] = in_memory(hf.AutoModelForCausalLM.from_config(config).eval(), tiny_tokenizer)
        return made[name]

    return policy


def problems(prompts):
    return tuple(
        Problem(id=f"p{place}", prompt=prompt, reference=None) for place, prompt in enumerate(prompts)
    )


def request(prompts, max_rows=8, seed=0, **settings):
    params = SamplingParams(**{"num_samples": 1, "max_new_tokens": 20, "temperature": 0.0, **settings})
    return DrawRequest("it/samples", problems(prompts), params, 1, seed, unit_size=64, max_rows=max_rows)


def whole(request):
    return [(problem, range(request.params.num_samples)) for problem in request.problems]


def generated(policy, prompt, max_new_tokens, **settings):
    """The new tokens of `generate`, greedy, one prompt at a time."""
    ids = torch.tensor([policy.tokenizer(prompt)["input_ids"]])
    out = policy.model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=max_new_tokens,
        pad_token_id=0,
        **settings,
    )
    return tuple(out[0, ids.shape[1] :].tolist())


@pytest.mark.parametrize("prompts", [WITH_HEAD, WITHOUT_HEAD, WITH_HEAD[:1]], ids=["head", "no head", "one"])
@pytest.mark.parametrize("name", SHARED_PREFIX)
def test_greedy_tokens_of_the_shared_prefix_engine_equal_those_of_generate(policies, name, prompts):
    policy, wanted = policies(name), request(prompts)
    assert unsupported_reason(policy.model) is None
    solutions = SharedPrefixSampler(policy, nothing)(wanted, whole(wanted))
    assert [one.token_ids for one in solutions] == [generated(policy, prompt, 20) for prompt in prompts]


@pytest.mark.parametrize("name", STOCK)
def test_models_that_the_fast_engine_cannot_serve_are_decoded_like_generate(policies, name, capsys):
    policy, wanted = policies(name), request(WITH_HEAD[:2], max_new_tokens=8)
    sampler = make_sampler(policy, "auto", nothing)
    assert isinstance(sampler, StockSampler)
    assert "which is slower" in capsys.readouterr().err
    solutions = sampler(wanted, whole(wanted))
    assert [one.token_ids for one in solutions] == [generated(policy, prompt, 8) for prompt in WITH_HEAD[:2]]


def test_the_reason_names_what_a_model_does(policies):
    assert "softcap" in unsupported_reason(policies("gemma2").model)
    assert "state" in unsupported_reason(policies("mamba").model)
    assert "state" in unsupported_reason(policies("qwen3_next").model)
    assert "cannot be set" in unsupported_reason(policies("gptj").model)


def test_a_model_whose_logits_come_out_otherwise_is_left_to_the_stock_engine(policies):
    model = policies("llama").model

    def depend_on_the_pass(module, arguments, output):
        return output + output.flip(-1) * output.shape[1]

    hook = model.lm_head.register_forward_hook(depend_on_the_pass)
    try:
        assert "its logits differ by" in unsupported_reason(model)
    finally:
        hook.remove()


@contextlib.contextmanager
def passes_of(policy):
    """Note the shape of each forward pass's token ids."""
    shapes = []
    hook = policy.model.register_forward_pre_hook(
        lambda module, arguments, named: shapes.append(tuple(named["input_ids"].shape)), with_kwargs=True
    )
    try:
        yield shapes
    finally:
        hook.remove()


def test_what_prompts_share_is_computed_once_and_nothing_after_a_rows_end(policies):
    policy, wanted = policies("llama"), request(WITH_HEAD, num_samples=3, temperature=1.0, max_rows=4)
    with passes_of(policy) as shapes:
        solutions = SharedPrefixSampler(policy, nothing)(wanted, whole(wanted))
    ids = [policy.tokenizer(prompt)["input_ids"] for prompt in WITH_HEAD]
    length = len(policy.tokenizer(SHOTS)["input_ids"])
    head, prompts, *rows = shapes
    assert head == (1, length)
    assert prompts == (len(WITH_HEAD), max(map(len, ids)) - length)
    assert all(num_tokens == 1 and num_rows <= 4 for num_rows, num_tokens in rows)
    # The first token of each solution comes from its prompt's pass.
    assert sum(num_rows for num_rows, _ in rows) == sum(len(one.token_ids) - 1 for one in solutions)


def test_the_stock_engine_decodes_prompts_of_one_length_together(policies):
    policy, wanted = policies("llama"), request(["x1", "longer", "y2", "z3"], max_rows=2)
    with passes_of(policy) as shapes:
        solutions = StockSampler(policy, nothing)(wanted, whole(wanted))
    assert [num_rows for num_rows, num_tokens in shapes if num_tokens > 1] == [2, 1, 1]
    assert [one.problem_id for one in solutions] == ["p0", "p1", "p2", "p3"]


def test_a_unit_longer_than_the_sliding_window_is_decoded_like_generate(tiny_tokenizer):
    torch.manual_seed(1)
    config = hf.MistralConfig(**GATED, vocab_size=len(tiny_tokenizer), sliding_window=8, eos_token_id=2)
    policy = in_memory(hf.MistralForCausalLM(config).eval(), tiny_tokenizer)
    assert sliding_window(policy.model.config) == 8
    sampler = make_sampler(policy, "auto", nothing)
    for prompts, max_new_tokens in ((["9", "ab"], 4), (WITHOUT_HEAD, 12)):
        wanted = request(prompts, max_new_tokens=max_new_tokens)
        expected = [generated(policy, prompt, max_new_tokens) for prompt in prompts]
        assert [one.token_ids for one in sampler(wanted, whole(wanted))] == expected


def test_stock_is_used_where_the_recipe_says_so(policies):
    assert isinstance(make_sampler(policies("llama"), "stock", nothing), StockSampler)


def test_the_models_own_attention_is_restored(policies):
    model = policies("llama").model
    own = model.config._attn_implementation
    wanted = request(WITH_HEAD)
    SharedPrefixSampler(policies("llama"), nothing)(wanted, whole(wanted))
    assert model.config._attn_implementation == own


def test_a_setting_of_the_models_generation_config_is_not_used(policies):
    policy = policies("gptj")
    wanted = request(WITH_HEAD[:1])
    plain = StockSampler(policy, nothing)(wanted, whole(wanted))
    policy.model.generation_config.repetition_penalty = 50.0
    penalised = StockSampler(policy, nothing)(wanted, whole(wanted))
    policy.model.generation_config.repetition_penalty = 1.0
    assert penalised == plain


def test_every_end_token_of_the_generation_config_ends_a_solution(policies):
    policy = policies("llama")
    wanted = request(WITH_HEAD[:1])
    (free,) = SharedPrefixSampler(policy, nothing)(wanted, whole(wanted))
    policy.model.generation_config.eos_token_id = [2, free.token_ids[3]]
    ending = in_memory(policy.model, policy.tokenizer)
    policy.model.generation_config.eos_token_id = 2
    (ended,) = SharedPrefixSampler(ending, nothing)(wanted, whole(wanted))
    first = free.token_ids.index(free.token_ids[3])
    assert (ended.finish_reason, ended.token_ids) == ("eos", free.token_ids[: first + 1])


@pytest.mark.parametrize("max_rows", [1, 3, 100])
def test_few_rows_that_are_refilled_draw_what_many_rows_draw(policies, max_rows):
    policy = policies("llama")
    wanted = request(
        WITH_HEAD + WITHOUT_HEAD,
        num_samples=5,
        temperature=1.0,
        top_k=20,
        stop_strings=("a", "1", "e", "5", "k"),
        seed=3,
    )
    many = SharedPrefixSampler(policy, nothing)(wanted, whole(wanted))
    few = SharedPrefixSampler(policy, nothing)(replace(wanted, max_rows=max_rows), whole(wanted))
    assert len({len(one.token_ids) for one in many}) > 4
    assert few == many
    assert [(one.problem_id, one.index) for one in many] == [
        (f"p{problem}", index) for problem in range(8) for index in range(5)
    ]


def test_both_engines_draw_the_same(policies):
    policy = policies("llama")
    wanted = request(
        WITH_HEAD, num_samples=4, temperature=0.8, top_k=30, top_p=0.9, stop_strings=("b",), max_rows=3
    )
    stock = StockSampler(policy, nothing)(wanted, whole(wanted))
    assert SharedPrefixSampler(policy, nothing)(wanted, whole(wanted)) == stock


def test_a_unit_drawn_twice_is_the_same_and_another_seed_is_not(policies):
    sampler = SharedPrefixSampler(policies("llama"), nothing)
    wanted = request(WITH_HEAD, num_samples=4, temperature=1.0)
    assert sampler(wanted, whole(wanted)) == sampler(wanted, whole(wanted))
    other = replace(wanted, seed=1)
    assert sampler(other, whole(other)) != sampler(wanted, whole(wanted))


def test_prompts_computed_in_several_groups_draw_the_same(policies, monkeypatch):
    sampler = SharedPrefixSampler(policies("llama"), nothing)
    wanted = request(WITHOUT_HEAD, num_samples=3, temperature=1.0)
    together = sampler(wanted, whole(wanted))
    monkeypatch.setattr("rest_em.sampling.shared_prefix.MAX_PREFILL_TOKENS", 20)
    assert sampler(wanted, whole(wanted)) == together


def test_buffers_that_grow_while_rows_are_decoded_change_nothing(policies, monkeypatch):
    monkeypatch.setattr("rest_em.sampling.attention.CAPACITY_STEP", 1)
    policy, wanted = policies("llama"), request(WITHOUT_HEAD, max_new_tokens=40)
    solutions = SharedPrefixSampler(policy, nothing)(wanted, whole(wanted))
    assert [one.token_ids for one in solutions] == [generated(policy, prompt, 40) for prompt in WITHOUT_HEAD]


@pytest.mark.parametrize("engine", [SharedPrefixSampler, StockSampler])
def test_text_ids_and_reason_of_a_stopped_solution_agree(policies, engine):
    policy = policies("llama")
    wanted = request(WITH_HEAD, num_samples=8, temperature=1.0, stop_strings=("0", "z", "\n"))
    solutions = engine(policy, nothing)(wanted, whole(wanted))
    stopped = [one for one in solutions if one.finish_reason == "stop_string"]
    assert stopped
    for one in stopped:
        assert not any(stop in one.text for stop in wanted.params.stop_strings)
        assert policy.tokenizer.decode(one.token_ids, skip_special_tokens=True) == one.text
    for one in solutions:
        if one.finish_reason == "length":
            assert len(one.token_ids) == 20
        if one.finish_reason == "eos":
            assert one.token_ids[-1] == 2


@pytest.mark.parametrize("engine", [SharedPrefixSampler, StockSampler])
def test_an_observer_is_told_of_every_token_and_solution(policies, engine):
    told = []
    wanted = request(WITH_HEAD, num_samples=3, temperature=1.0, max_rows=4)
    drawn = engine(policies("llama"), lambda tokens, solutions: told.append((tokens, solutions)))(
        wanted, whole(wanted)
    )
    assert sum(solutions for _, solutions in told) == 12
    assert sum(tokens for tokens, _ in told) == sum(len(one.token_ids) for one in drawn)


def test_a_prompt_that_fills_the_positions_is_refused_by_name(policies):
    wanted = request(["ok", "x" * 300])
    with pytest.raises(
        SamplingError, match=r"problem p1: its prompt has 301 tokens, the model has 256 positions"
    ):
        SharedPrefixSampler(policies("gpt2"), nothing)(wanted, whole(wanted))


def test_a_solution_ends_where_the_positions_end(policies):
    wanted = request(["x" * 250])
    (solution,) = SharedPrefixSampler(policies("gpt2"), nothing)(wanted, whole(wanted))
    assert (solution.finish_reason, len(solution.token_ids)) == ("length", 5)


def exact_pairs(policy, prompt, params):
    """The probability of each pair of first tokens, by transformers' own warpers."""

    def next_probabilities(ids):
        with torch.no_grad():
            scores = policy.model(torch.tensor([ids])).logits[:, -1].double()
        scores = TemperatureLogitsWarper(params.temperature)(None, scores)
        if params.top_k:
            scores = TopKLogitsWarper(params.top_k)(None, scores)
        if params.top_p < 1:
            scores = TopPLogitsWarper(params.top_p)(None, scores)
        return torch.softmax(scores, dim=-1)[0]

    prompt_ids = policy.tokenizer(prompt)["input_ids"]
    first = next_probabilities(prompt_ids)
    return {
        (one, two): (first[one] * probability).item()
        for one in first.nonzero().flatten().tolist()
        for two, probability in enumerate(next_probabilities([*prompt_ids, one]))
        if probability > 0
    }


@pytest.mark.parametrize("engine", [SharedPrefixSampler, StockSampler])
@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.7, "top_k": 5},
        {"temperature": 1.3, "top_p": 0.5},
        {"temperature": 1.0, "top_k": 8, "top_p": 0.8},
        {"temperature": 1.0},
    ],
)
def test_pairs_of_tokens_are_drawn_with_their_exact_probabilities(policies, settings, engine):
    """Chi-square over the pairs that are expected at least 5 times, the others as one cell."""
    policy = replace(policies("llama"), eos_token_ids=frozenset())
    num_draws = 4000
    wanted = request(["12 + 34 ="], num_samples=num_draws, max_new_tokens=2, max_rows=1000, **settings)
    counts: dict[tuple[int, ...], int] = {}
    for one in engine(policy, nothing)(wanted, whole(wanted)):
        counts[one.token_ids] = counts.get(one.token_ids, 0) + 1
    exact = exact_pairs(policy, "12 + 34 =", wanted.params)
    assert set(counts) <= set(exact)
    large = [pair for pair, probability in exact.items() if probability * num_draws >= 5]
    cells = [(counts.get(pair, 0), exact[pair] * num_draws) for pair in large]
    rest = num_draws - sum(expected for _, expected in cells)
    if rest >= 5:
        cells.append((num_draws - sum(count for count, _ in cells), rest))
    chi_square = sum((count - expected) ** 2 / expected for count, expected in cells)
    freedom = len(cells) - 1
    assert freedom > 5
    assert abs(chi_square - freedom) < 4 * (2 * freedom) ** 0.5


def test_the_samples_of_a_problem_are_independent(policies):
    """The first tokens of samples 2i and 2i + 1 coincide as often as independent draws would."""
    policy = policies("llama")
    wanted = request(
        ["12 + 34 ="], num_samples=4000, max_new_tokens=1, temperature=1.0, top_k=5, max_rows=1000
    )
    tokens = [one.token_ids for one in SharedPrefixSampler(policy, nothing)(wanted, whole(wanted))]
    shares = [tokens.count(token) / len(tokens) for token in set(tokens)]
    expected = sum(share**2 for share in shares)
    pairs = list(zip(tokens[::2], tokens[1::2], strict=True))
    same = sum(one == two for one, two in pairs) / len(pairs)
    assert abs(same - expected) < 4 * (expected * (1 - expected) / len(pairs)) ** 0.5
