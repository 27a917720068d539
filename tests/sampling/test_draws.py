import numpy as np
import pytest
import torch
from transformers.generation import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from rest_em.sampling.draws import NUM_NUCLEUS_CANDIDATES, choose_tokens, uniforms
from rest_em.types import DrawRequest, SamplingParams


def params(temperature=1.0, top_k=0, top_p=1.0):
    return SamplingParams(8, 16, temperature, top_k=top_k, top_p=top_p)


def request(seed=0, name="iteration-01/samples", max_new_tokens=16):
    settings = SamplingParams(8, max_new_tokens, 1.0)
    return DrawRequest(name, (), settings, iteration=1, seed=seed, unit_size=8, max_rows=8)


def exact_probabilities(logits, settings):
    """As transformers' own warpers have them."""
    scores = TemperatureLogitsWarper(settings.temperature)(None, logits)
    if settings.top_k:
        scores = TopKLogitsWarper(settings.top_k)(None, scores)
    if settings.top_p < 1:
        scores = TopPLogitsWarper(settings.top_p)(None, scores)
    return torch.softmax(scores.double(), dim=-1)


def drawn_probabilities(logits, settings, num_draws=20_000):
    """Of one row of logits, from evenly spaced numbers: exact to 1 / num_draws a token."""
    numbers = (torch.arange(num_draws, dtype=torch.float64) + 0.5) / num_draws
    tokens = choose_tokens(logits.expand(num_draws, -1), numbers, settings)
    return torch.bincount(tokens, minlength=logits.shape[-1]).double() / num_draws


@pytest.mark.parametrize(
    "settings",
    [params(), params(0.7), params(1.5, top_k=3), params(top_p=0.6), params(0.8, top_k=12, top_p=0.7)],
)
def test_each_token_gets_its_exact_share_of_the_unit_interval(settings):
    logits = torch.randn(1, 300, generator=torch.Generator().manual_seed(1)) * 3
    difference = drawn_probabilities(logits, settings) - exact_probabilities(logits, settings)[0]
    assert difference.abs().max() <= 1.01 / 20_000


def test_a_nucleus_wider_than_the_sorted_candidates_is_exact():
    logits = torch.randn(1, 2 * NUM_NUCLEUS_CANDIDATES, generator=torch.Generator().manual_seed(2)) * 0.1
    settings = params(top_p=0.9)
    exact = exact_probabilities(logits, settings)[0]
    assert (exact > 0).sum() > NUM_NUCLEUS_CANDIDATES
    assert (drawn_probabilities(logits, settings, 4_000) - exact).abs().max() <= 1.01 / 4_000


def test_rows_with_a_narrow_and_a_wide_nucleus_do_not_disturb_each_other():
    wide = torch.zeros(1, 2 * NUM_NUCLEUS_CANDIDATES)
    narrow = wide.clone()
    narrow[0, 7] = 50.0
    tokens = choose_tokens(
        torch.cat([wide, narrow, wide]), torch.tensor([0.5, 0.5, 0.1]).double(), params(top_p=0.9)
    )
    assert tokens[1] == 7
    assert tokens[0] != tokens[2]


def test_numbers_at_the_ends_of_the_interval_draw_tokens_that_have_a_probability():
    logits = torch.full((1, 1000), -torch.inf)
    logits[0, [3, 500]] = 0.0
    ends = torch.tensor([0.0, np.nextafter(1.0, 0.0)], dtype=torch.float64)
    for settings in (params(), params(top_k=40), params(top_p=0.99)):
        assert set(choose_tokens(logits.expand(2, -1), ends, settings).tolist()) == {3, 500}


def test_the_likeliest_token_survives_any_top_p():
    logits = torch.tensor([[0.0, 1.0, 0.5]])
    for settings in (params(top_p=1e-6), params(top_k=2, top_p=1e-6)):
        assert choose_tokens(logits, torch.tensor([0.999], dtype=torch.float64), settings).tolist() == [1]


def test_temperature_0_takes_the_likeliest_token():
    logits = torch.tensor([[0.0, 1.0, 0.5], [3.0, 1.0, 0.5]])
    assert choose_tokens(logits, torch.zeros(2).double(), params(temperature=0)).tolist() == [1, 0]


def test_numbers_depend_on_the_identity_of_a_sample():
    same = uniforms(request(), "p1", 3)
    others = [
        uniforms(request(seed=1), "p1", 3),
        uniforms(request(name="iteration-02/samples"), "p1", 3),
        uniforms(request(), "p2", 3),
        uniforms(request(), "p1", 4),
    ]
    assert (uniforms(request(), "p1", 3) == same).all()
    assert all((other != same).any() for other in others)


def test_more_new_tokens_leave_the_first_numbers_as_they_are():
    assert (uniforms(request(max_new_tokens=64), "p1", 3)[:16] == uniforms(request(), "p1", 3)).all()
