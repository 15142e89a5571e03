"""Sampling: the cuts are what they say, and draws follow the distribution."""

import torch

from grouped_lm.config import Config, ModelConfig, TokenizerConfig
from grouped_lm.generate import generate, pick_token
from grouped_lm.heads import GroupedConfig
from grouped_lm.models.build import build_lm


def test_greedy_takes_the_likeliest_and_the_lowest_id_among_equals():
    generator = torch.Generator()
    assert pick_token(torch.tensor([0.1, 0.5, 0.4]).log(), 0, None, generator) == 1
    assert pick_token(torch.tensor([0.2, 0.4, 0.4]).log(), 0, None, generator) == 1


def test_top_k_keeps_k():
    log_prob = torch.tensor([0.4, 0.1, 0.3, 0.2]).log()
    generator = torch.Generator().manual_seed(0)
    assert {pick_token(log_prob, 1.0, 2, generator) for _ in range(200)} == {0, 2}
    assert {pick_token(log_prob, 1.0, 99, generator) for _ in range(200)} == {0, 1, 2, 3}


def test_draws_follow_the_tempered_distribution():
    generator = torch.Generator().manual_seed(0)
    log_prob = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    draws = 20_000
    for temperature in (0.5, 1.0, 2.0):
        expected = (log_prob / temperature).softmax(0) * draws
        found = torch.bincount(
            torch.tensor([pick_token(log_prob, temperature, None, generator) for _ in range(draws)]), minlength=4
        )
        chi_square = ((found - expected) ** 2 / expected).sum()
        assert chi_square < 16.27  # 0.1 % of draws from the right distribution, 3 degrees of freedom


def test_generation_goes_past_the_block_and_stops_at_end_of_text():
    torch.manual_seed(0)
    config = Config(
        model=ModelConfig(n_layer=1, n_head=1, n_embd=8, block_size=5),
        head=GroupedConfig(),
        tokenizer=TokenizerConfig(name="bytes"),
    )
    model = build_lm(config).eval()
    ids = list(generate(model, [256], 40, block_size=5, eot_id=999, temperature=0))
    assert len(ids) == 40
    stop = ids[3]
    first = ids.index(stop)
    assert list(generate(model, [256], 40, block_size=5, eot_id=stop, temperature=0)) == ids[:first]
