"""Case T4: each head may keep a share of probability for tokens that the training text does not have."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from head_cases import D, batch_of, head_of

from grouped_lm.errors import ConfigError
from grouped_lm.heads import HEADS, IGNORE_INDEX, build_head, parse_head_config
from grouped_lm.heads.decoding.truncation import Truncation
from grouped_lm.heads.reserve import ReserveMixin
from grouped_lm.heads.unseen import MAX_SHARE, MIN_SHARE, estimate_unseen_share

V, SHARE = 103, 0.05
UNSEEN = torch.arange(V) % 11 == 0  # as `head_of` counts
OTHERS = [name for name in HEADS if name != "shortlist"]  # which keeps the share itself


def fields_of(name: str) -> set[str]:
    return {field.name for field in dataclasses.fields(HEADS[name].schema)}


SETTINGS = [(name, own) for name in OTHERS for own in ({}, {"bias": True}) if own.keys() <= fields_of(name)]
WITH_BIAS = [(name, own) for name, own in SETTINGS if own or "bias" not in fields_of(name)]
SIZES = {"group_size": 7, "shortlist_size": 4, "directions": 2, "cutoffs": [3, 20], "div_value": 2.0, "rank": 3}
SIZES |= {"samples": 50, "shared_rows": 0}


def pair(name: str, **own):
    """Return a head with the share, and the same head without it."""
    head, without = head_of(name, reserve=SHARE, **own), head_of(name, **own)
    assert isinstance(head, ReserveMixin)
    assert not isinstance(without, ReserveMixin)
    without.load_state_dict({k: v for k, v in head.state_dict().items() if k not in ("unseen", "reserve_share")})
    return head, without


def config_of(name: str, **own):
    sizes = {key: value for key, value in SIZES.items() if key in fields_of(name)}
    return parse_head_config({"name": name} | sizes | own)


@pytest.mark.parametrize(("name", "own"), SETTINGS)
def test_t4_the_distribution_is_the_mixture(name, own):
    head, without = pair(name, **own)
    hidden, targets = batch_of(V, 4, 5)
    expected = ((1 - SHARE) * without.log_prob(hidden).exp() + SHARE * UNSEEN / UNSEEN.sum()).log()
    torch.testing.assert_close(head.log_prob(hidden), expected, rtol=1e-7, atol=1e-7)
    assert head.log_prob(hidden).exp().sum(-1).sub(1).abs().max() < 1e-6
    picked = expected.gather(-1, targets.clamp_min(0).unsqueeze(-1)).squeeze(-1).masked_fill(targets < 0, 0)
    assert UNSEEN[targets[targets >= 0]].any()
    torch.testing.assert_close(head.target_log_prob(hidden, targets), picked, rtol=1e-7, atol=1e-7)
    slope = torch.autograd.grad(picked.sum(), hidden, retain_graph=True)[0]
    for reduction, count in (("none", 1), ("sum", 1), ("mean", (targets != IGNORE_INDEX).sum())):
        loss = head.loss(hidden, targets, reduction)
        expected_loss = -picked if reduction == "none" else -picked.sum() / count
        torch.testing.assert_close(loss.nll, expected_loss, rtol=1e-7, atol=1e-7)
        gradient = torch.autograd.grad(loss.nll.sum() * count, hidden)[0]
        torch.testing.assert_close(gradient, -slope, rtol=1e-7, atol=1e-7)
        if loss.group_nll is not None:
            torch.testing.assert_close(loss.group_nll + loss.token_nll, loss.nll)


@pytest.mark.parametrize("name", OTHERS)
def test_t4_gradcheck(name):
    head = head_of(name, 23, reserve=SHARE)
    names, parameters = zip(*head.named_parameters(), strict=True)
    hidden, targets = batch_of(23, 2, 3)
    targets[0, 1] = 11

    def loss(states, *values):
        own = dict(zip(names, values, strict=True))
        return torch.func.functional_call(head, own, (states, targets), {"reduction": "none"}).nll

    assert torch.autograd.gradcheck(loss, [hidden, *(p.detach().clone().requires_grad_() for p in parameters)])


def test_t4_compiled_it_has_the_same_loss_and_gradient():
    torch.compiler.reset()
    head = head_of("dense", reserve=SHARE, dtype=torch.float32)
    hidden, targets = batch_of(V, 4, 5, dtype=torch.float32)
    losses = head(hidden, targets).nll, torch.compile(head)(hidden, targets).nll
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*(torch.autograd.grad(loss, hidden)[0] for loss in losses))


@pytest.mark.parametrize("name", OTHERS)
def test_t4_decoding_draws_from_the_mixture(name):
    head = head_of(name, reserve=0.4)
    hidden = batch_of(V, 3)[0].detach()
    log_prob = head.log_prob(hidden)
    best = log_prob.sort(descending=True, stable=True)
    assert torch.equal(head.topk(hidden, 7).ids, best.indices[:, :7])
    assert torch.equal(head.argmax(hidden), best.indices[:, 0])
    nucleus = head.truncate(hidden, Truncation(top_p=0.9))
    assert (nucleus.log_prob.exp().sum(1) >= 0.9 - 1e-6).all()
    drawn = head.sample(hidden, torch.Generator().manual_seed(3), num_samples=4000)
    share = UNSEEN[drawn].double().mean(1)
    assert (share - (log_prob.exp() * UNSEEN).sum(1)).abs().max() < 4 * 0.5 / 4000**0.5


@pytest.mark.parametrize("name", HEADS)
def test_t4_the_share_survives_a_checkpoint(name):
    head = head_of(name, reserve=SHARE, dtype=torch.float32)
    state, wte = copy.deepcopy(head.state_dict()), torch.nn.Parameter(torch.zeros(V, D))
    config = config_of(name, reserve=SHARE)
    fresh = build_head(config, D, V, "merge_rank", torch.zeros(V).long(), wte, saved=state).eval()
    fresh.load_state_dict(state)
    hidden = batch_of(V, 4, dtype=torch.float32)[0]
    assert torch.equal(fresh.log_prob(hidden), head.log_prob(hidden))


def test_t4_without_unseen_tokens_or_counts_nothing_changes():
    wte = torch.nn.Parameter(0.02 * torch.randn(V, D))
    hidden, targets = torch.randn(6, D), torch.arange(6)
    plain = build_head("dense", wte=wte).loss(hidden, targets).nll
    for counts in (None, torch.ones(V), torch.zeros(V)):
        head = build_head("dense", wte=wte, counts=counts, reserve=True)
        torch.testing.assert_close(head.loss(hidden, targets).nll, plain)
        torch.testing.assert_close(head.log_prob(hidden).exp().sum(1), torch.ones(6))


def test_t4_the_estimate_does_not_underrate_another_text():
    random = np.random.default_rng(0)
    ids = np.minimum(random.zipf(1.3, 40_000), 20_000)
    new, train = ids[:8_000], ids[8_000:]
    counts = torch.from_numpy(np.bincount(train, minlength=20_001))
    share = estimate_unseen_share(counts, lambda: train)
    needed = float((counts[torch.from_numpy(new)] == 0).double().mean())
    assert 0.95 * needed < share < 1.5 * needed
    assert estimate_unseen_share(counts) < share  # the tokens that occur once


@pytest.mark.parametrize(
    ("ids", "share"),
    [([0, 1, 2] * 100, MIN_SHARE), (range(50), MAX_SHARE), ([], 0.0), ([7], MAX_SHARE), ([1] * 199 + [2], 0.005)],
)
def test_t4_the_range_of_the_estimate(ids, share):
    text = np.array(ids, dtype=np.int64)
    assert estimate_unseen_share(torch.from_numpy(np.bincount(text, minlength=60)), lambda: text) == share


@pytest.mark.parametrize(("name", "own"), WITH_BIAS)
def test_t4_biases_start_at_the_shares_of_the_text(name, own):
    counts, wte = torch.arange(V) % 11, torch.nn.Parameter(0.02 * torch.randn(V, D))
    head = build_head(config_of(name, start="counts", **own), D, V, "merge_rank", counts, wte).eval()
    expected = (counts + 0.5) / (counts + 0.5).sum()
    if name == "trim":  # the rest is one class
        expected[UNSEEN] = expected[UNSEEN].mean()
    torch.testing.assert_close(head.log_prob(torch.zeros(1, D)).exp(), expected[None])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"reserve": 0.6}, r"head.reserve must be in \[0, 0.5\], got 0.6"),
        ({"reserve": "yes"}, r"head.reserve must be true or false or a number"),
        ({"start": "counts"}, r"it needs head\.bias=true"),
        ({"start": "count"}, r"head\.start must be one of zero, counts"),
    ],
)
@pytest.mark.parametrize("name", ["dense", "trim", "low_rank", "sampled", "adaptive"])
def test_t4_wrong_options_are_named(name, values, message):
    with pytest.raises(ConfigError, match=message):
        parse_head_config({"name": name} | values)
