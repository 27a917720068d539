"""The E-step's memory beside real draws and beside values worked by hand, and its time."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from rest_em.planner.sampling import grown_capacity, kv_bytes_per_token, max_batch, sampling_memory
from rest_em.planner.sampling_schedule import schedule, solution_lengths
from rest_em.planner.sampling_setup import PREFILL_TOKENS, SamplingSetup
from rest_em.planner.sampling_speed import Rates, estimate_speed, prefill_seconds, step_seconds
from rest_em.planner.shapes import Experts, ModelShape

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "sampling_memory.py"
LLAMA_8B = ModelShape(
    family="llama",
    num_layers=32,
    hidden_size=4096,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    intermediate_size=14336,
    vocab_size=128256,
    is_tied=False,
    max_positions=8192,
    rotary_dim=128,
)
WEIGHTS = 2 * 8_030_261_248
SETUP = SamplingSetup(
    weight_bytes=WEIGHTS,
    active_weight_bytes=WEIGHTS,
    dtype_bytes=2,
    num_samples=32,
    max_rows=128,
    unit_size=256,
    longest_prompt=400,
    mean_prompt=180.0,
    common_head=90,
    max_new_tokens=512,
    mean_new_tokens=200.0,
    top_k=40,
)
A100 = Rates(flops=312e12, bandwidth=2.039e12, link_bandwidth=300e9)


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("sampling_memory_benchmark", SCRIPT)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "engine", "sizes", "draw"),
    [
        ("llama", "shared_prefix", (2, 9, 3, 4, 8, 12), {}),
        ("llama", "shared_prefix", (1, 100, 0, 16, 16, 30), {"top_k": 40}),
        ("qwen3", "shared_prefix", (4, 120, 80, 2, 8, 4), {"top_p": 0.9}),
        ("gpt2", "shared_prefix", (16, 300, 10, 1, 8, 6), {"top_k": 40}),
        ("llama", "stock", (2, 9, 3, 4, 8, 12), {}),
        ("qwen3", "stock", (1, 100, 0, 16, 16, 8), {"top_k": 40}),
        ("gemma2, window 64", "stock", (2, 200, 0, 4, 8, 4), {"top_k": 5}),
    ],
)
def test_a_predicted_peak_is_that_of_the_storages_of_a_real_draw(benchmark, name, engine, sizes, draw):
    policy = benchmark.make_policy(name, benchmark.torch.float32)
    result = benchmark.measure(policy, engine, benchmark.Case(*sizes, draw))
    assert abs(result.error) < 0.005
    assert abs(result.error_above_weights) < 0.01


def test_the_scores_of_a_prefill_without_a_fused_kernel_are_predicted(benchmark):
    from torch.nn.attention import SDPBackend, sdpa_kernel

    policy = benchmark.make_policy("llama", benchmark.torch.float32)
    case = benchmark.Case(8, 300, 1, 1, 8, 2, benchmark.GREEDY)
    with sdpa_kernel(SDPBackend.MATH):
        result = benchmark.measure(policy, "shared_prefix", case, is_fused=False)
    assert result.predicted.instant == "prefill"
    assert result.predicted.activations > 8 * 6 * 8 * 299 * 300
    assert abs(result.error_above_weights) < 0.02


def test_the_benchmark_prints_what_it_measures(benchmark, capsys, tmp_path):
    benchmark.main(["--model", "llama", "--case", "1", "--json", str(tmp_path / "figures.json")])
    assert "| llama | stock | 1 | draw |" in capsys.readouterr().out
    assert '"measured_bytes"' in (tmp_path / "figures.json").read_text()


def test_constants_are_those_of_the_engine():
    from rest_em.planner import sampling, sampling_passes
    from rest_em.sampling import attention, draws, shared_prefix

    assert shared_prefix.MAX_PREFILL_TOKENS == PREFILL_TOKENS
    assert attention.CAPACITY_STEP == sampling.CAPACITY_STEP
    assert draws.BLOCK == draws.NUM_NUCLEUS_CANDIDATES == sampling_passes.DRAW_BLOCK


def test_units_are_those_that_the_sampler_plans():
    from rest_em.sampling.units import plan_units

    for num_samples, unit_size in ((32, 256), (3, 256), (32, 20), (5, 3), (1, 1)):
        setup = replace(SETUP, num_samples=num_samples, unit_size=unit_size)
        first = plan_units(1000, num_samples, unit_size)[0]
        assert len(first) == setup.unit_problems
        assert len(first[0][1]) == setup.unit_samples


def test_keys_and_values_of_a_token_by_hand():
    assert kv_bytes_per_token(LLAMA_8B, 2) == 2 * 32 * 8 * 128 * 2 == 131_072
    # M7: 80 layers of 8192 without groups, 8 sequences of 4096 tokens.
    big = replace(LLAMA_8B, num_layers=80, num_heads=64, num_kv_heads=64)
    assert kv_bytes_per_token(big, 2) * 8 * 4096 == 80 * 2**30
    assert kv_bytes_per_token(replace(big, num_kv_heads=8), 2) * 8 * 4096 == 10 * 2**30


def test_buffers_of_rows_grow_by_an_eighth_in_steps_of_16():
    assert grown_capacity(10, 16) == (16, 0)
    assert grown_capacity(10, 17) == (32, 16)
    assert grown_capacity(300, 400) == (400, 352)  # 304, 352, 400


def test_components_of_the_shared_prefix_engine_by_hand():
    instants = {one.instant: one for one in sampling_memory(LLAMA_8B, SETUP).instants}
    assert instants["loading"].total_bytes == WEIGHTS
    token = 131_072
    # 256 / 32 = 8 problems a unit, in one prefill of 8 x 310 tokens; the longest row has 310 + 511 tokens.
    capacity, before = grown_capacity(311, 821)
    decode = instants["decode"]
    assert decode.kv_cache_head == 90 * token
    assert decode.kv_cache_prompts == 8 * 310 * token
    assert decode.kv_cache_rows == 128 * capacity * token
    assert decode.activations > 8 * 128 * 32 * (90 + capacity)
    assert instants["growth"].kv_growth == 128 * before * token // 32 * 3 // 2
    assert instants["draw"].logits == (128 + 8) * 128256 * 2
    assert "refill" not in instants
    assert "refill" in {
        one.instant for one in sampling_memory(LLAMA_8B, replace(SETUP, num_samples=8)).instants
    }


def test_the_stock_engine_keeps_prompts_of_every_row_and_a_copied_layer():
    stock = replace(SETUP, engine="stock")
    instants = {one.instant: one for one in sampling_memory(LLAMA_8B, stock).instants}
    assert instants["decode"].kv_cache_rows == 128 * 911 * 131_072
    assert instants["growth"].kv_growth == 128 * 911 * 131_072 // 64
    assert instants["draw"].logits == 128 * 128256 * (2 + 4 + 4)
    windowed = replace(LLAMA_8B, family="mistral", windows=(256,) * 16 + (None,) * 16)
    seen = {one.instant: one for one in sampling_memory(windowed, stock).instants}
    assert seen["decode"].kv_cache_rows == 128 * (256 + 911) * 131_072 // 2


def test_a_server_divides_weights_and_keys_among_its_devices():
    one = sampling_memory(LLAMA_8B, replace(SETUP, engine="server")).peak
    four = sampling_memory(LLAMA_8B, replace(SETUP, engine="server", tensor_parallel=4)).peak
    sixteen = sampling_memory(LLAMA_8B, replace(SETUP, engine="server", tensor_parallel=16)).peak
    assert four.weights == one.weights // 4
    assert four.kv_cache_rows == one.kv_cache_rows // 4
    # There are 8 heads of keys: further devices hold copies.
    assert sixteen.kv_cache_rows == one.kv_cache_rows // 8
    with pytest.raises(ValueError, match="engine stock has no tensor parallelism"):
        replace(SETUP, engine="stock", tensor_parallel=2)


@pytest.mark.parametrize("engine", ["shared_prefix", "stock", "server"])
def test_the_largest_batch_fits_and_one_more_does_not(engine):
    setup = replace(SETUP, engine=engine, unit_size=1024)
    usable = 24 * 10**9
    rows = max_batch(LLAMA_8B, setup, usable, outside_bytes=5 * 10**8, reserve=0.05)
    room = (usable - 5 * 10**8) * 0.95
    assert 0 < rows < 1024
    assert sampling_memory(LLAMA_8B, replace(setup, max_rows=rows)).peak.total_bytes <= room
    assert sampling_memory(LLAMA_8B, replace(setup, max_rows=rows + 1)).peak.total_bytes > room
    assert max_batch(LLAMA_8B, setup, 16 * 10**9) == 0
    assert max_batch(LLAMA_8B, setup, 10**13) == 1024


def test_the_common_head_is_below_the_longest_prompt():
    with pytest.raises(ValueError, match="common_head 400 is not below"):
        replace(SETUP, common_head=400)


def test_a_small_batch_is_bound_by_reading_the_weights():
    # 2P bytes less the embedding's table, which is looked up; no cache, no launches: P. 8 B at 2.039 TB/s.
    bare = replace(A100, launch_seconds=0.0, bandwidth_share=1.0, flops_share=1.0)
    step = step_seconds(LLAMA_8B, replace(SETUP, engine="stock"), bare, num_rows=1, num_tokens=0)
    lookup = 128256 * 4096 * 2
    assert step.bound == "bandwidth"
    assert step.total_seconds == pytest.approx((WEIGHTS - lookup) / 2.039e12, rel=1e-3)
    # A GPU's balance: rows at which computing takes as long, FLOP/s / bandwidth = 153.
    many = step_seconds(LLAMA_8B, replace(SETUP, engine="stock"), bare, num_rows=153, num_tokens=0)
    assert many.compute == pytest.approx(step.bandwidth, rel=0.01)


def test_a_small_model_is_bound_by_launches():
    small = replace(LLAMA_8B, hidden_size=576, intermediate_size=1536, num_layers=30, vocab_size=49152)
    tiny = replace(SETUP, weight_bytes=270_000_000, active_weight_bytes=270_000_000)
    step = step_seconds(small, tiny, A100, num_rows=8, num_tokens=100)
    assert step.bound == "launches"
    assert step.launches == pytest.approx((56 * 30 + 26 + 14) * 8e-6)


def test_tensor_parallelism_pays_two_all_reduces_a_layer():
    server = replace(SETUP, engine="server", tensor_parallel=8)
    step = step_seconds(LLAMA_8B, server, A100, num_rows=64, num_tokens=300)
    assert step.communication == pytest.approx(64 * (30e-6 + 2 * 7 / 8 * 64 * 4096 * 2 / 300e9))
    with pytest.raises(ValueError, match="link_bandwidth"):
        step_seconds(LLAMA_8B, server, replace(A100, link_bandwidth=None), num_rows=1, num_tokens=1)


def test_more_rows_choose_more_experts():
    experts = Experts(num_experts=8, num_active=2, intermediate_size=14336)
    mixtral = replace(LLAMA_8B, family="mixtral", experts=experts, is_tied=True)
    setup = replace(SETUP, weight_bytes=93_000_000_000, active_weight_bytes=26_000_000_000)
    bare = replace(A100, bandwidth_share=1.0)
    steps = [step_seconds(mixtral, setup, bare, num_rows=rows, num_tokens=0).bandwidth for rows in (1, 4, 99)]
    assert steps[0] == pytest.approx(26e9 / 2.039e12, rel=1e-3)
    # Four rows of 2 in 8 choose 8 (1 - 0.75^4) = 5.47 experts of the 8.
    assert steps[1] == pytest.approx((26e9 + 67e9 / 0.75 * (0.75 - 0.75**4)) / 2.039e12, rel=1e-3)
    assert steps[2] == pytest.approx(93e9 / 2.039e12, rel=0.01)


def test_lengths_have_the_mean_that_is_asked_for_and_end_at_the_cap():
    lengths = solution_lengths(200.0, 512, 256)
    assert sum(lengths) / 256 == pytest.approx(200, rel=0.01)
    assert min(lengths) >= 1
    assert max(lengths) == 512
    # Any stretch is spread like the whole.
    assert sum(lengths[:64]) / 64 == pytest.approx(200, rel=0.1)


def test_the_schedule_is_the_engines_own(benchmark):
    from rest_em.sampling.shared_prefix import SharedPrefixSampler
    from rest_em.types import DrawRequest, Problem, SamplingParams

    policy = benchmark.make_policy("llama", benchmark.torch.float32)
    policy = replace(policy, eos_token_ids=frozenset(range(0, 8000, 5)))
    passes = []
    hook = policy.model.register_forward_pre_hook(
        lambda module, arguments, named: passes.append(tuple(named["input_ids"].shape)), with_kwargs=True
    )
    params = SamplingParams(num_samples=40, max_new_tokens=12, temperature=1.0, top_k=99)
    request = DrawRequest("x", (Problem(id="p", prompt="7 8 9", reference=None),), params, 1, 0, 40, 8)
    solutions = SharedPrefixSampler(policy, lambda *_: None)(request, [(request.problems[0], range(40))])
    hook.remove()
    lengths = [len(one.token_ids) for one in solutions]
    assert len(set(lengths)) > 3
    counted = [rows for one in schedule(lengths, 8) for rows in [one.num_rows] * one.num_steps]
    assert counted == [rows for rows, num_tokens in passes[2:]]


def test_the_stock_engine_waits_for_the_longest_of_a_batch():
    fixed = replace(SETUP, mean_new_tokens=512.0)
    spread = replace(SETUP, mean_new_tokens=100.0)
    stock = estimate_speed(LLAMA_8B, replace(spread, engine="stock"), A100, num_problems=64)
    shared = estimate_speed(LLAMA_8B, spread, A100, num_problems=64)
    assert stock.mean_rows == pytest.approx(32 * 100 / max(solution_lengths(100.0, 512, 256)), rel=0.25)
    assert shared.mean_rows > 2 * stock.mean_rows
    assert shared.tokens_per_second > 3 * stock.tokens_per_second
    assert estimate_speed(LLAMA_8B, fixed, A100, num_problems=64).mean_rows == 128


def test_time_grows_with_the_work_and_shrinks_with_devices():
    def seconds(num_problems=64, num_devices=1, **changes):
        setup = replace(SETUP, **changes)
        result = estimate_speed(LLAMA_8B, setup, A100, num_problems=num_problems, num_devices=num_devices)
        return result.total_seconds

    assert seconds(num_problems=128) == pytest.approx(2 * seconds())
    assert seconds(num_devices=4) == pytest.approx(seconds() / 4)
    # 8 units on 3 devices: the last two wait for nobody, all wait for the third round.
    assert seconds(num_devices=3) == pytest.approx(seconds() * 3 / 8)
    assert seconds(num_samples=64) > 1.5 * seconds()
    assert seconds(mean_new_tokens=400.0) > seconds() > seconds(mean_new_tokens=100.0)
    assert seconds(max_rows=8) > seconds(max_rows=32) > seconds()
    assert seconds(mean_prompt=390.0) > seconds()
    # Fewer problems than a unit holds make a smaller unit, not a fraction of one.
    assert seconds(num_problems=1) < seconds(num_problems=8)
    with pytest.raises(ValueError, match="takes more than 1 devices"):
        seconds(engine="server", tensor_parallel=2)


def test_prompts_are_computed_once_for_all_their_samples():
    stock = prefill_seconds(LLAMA_8B, replace(SETUP, engine="stock"), A100)
    shared = prefill_seconds(LLAMA_8B, SETUP, A100)
    # 256 prompts of 180 tokens against 8 of 90 behind a head of 90.
    assert stock / shared == pytest.approx(256 * 180 / (8 * 90 + 90), rel=0.03)
