"""Decoding without a V-wide pass gives what the V-wide line gives: the same cuts, draws of the same distribution."""

import numpy as np
import pytest
import torch
from head_cases import plain_shortlist
from scipy.stats import chi2
from torch import Tensor

from grouped_lm.errors import ConfigError
from grouped_lm.heads import (
    HEADS,
    AdaptiveConfig,
    ClassFullConfig,
    DenseConfig,
    FilmConfig,
    GroupedConfig,
    Head,
    build_head,
)
from grouped_lm.heads.decoding.best_first import BestFirstHead
from grouped_lm.heads.decoding.truncation import Truncation, draw

D = 8
DRAWS = 200_000
CONFIGS = [
    DenseConfig(tied=False),
    GroupedConfig(),
    FilmConfig(),
    ClassFullConfig(tied=False),
    plain_shortlist(tied=False, shortlist_size=50, directions=2),
    plain_shortlist(tied=False, shortlist_size=0),
    plain_shortlist(tied=False, shortlist_size=50, own_shortlist=True, start="counts"),
    plain_shortlist(tied=False, shortlist_size=51, group_size=9, directions=0, shared_rows=30, reserve=True),
    AdaptiveConfig(cutoffs=[40, 300], div_value=2.0),
]
CUTS = [
    Truncation(top_k=1),
    Truncation(top_k=7),
    Truncation(top_k=400),
    Truncation(top_p=0.05),
    Truncation(top_p=0.9),
    Truncation(min_p=0.1),
    Truncation(min_p=1.0),
    Truncation(top_k=20, top_p=0.7, min_p=0.02),
    Truncation(),
]


def by_name(config) -> str:
    return f"{config.name}-{getattr(config, 'shortlist_size', '')}".rstrip("-")


def random_head(config, vocab_size: int, scale: float = 1.0, dtype=torch.float64) -> Head:
    """A head whose logits have a standard deviation of about `scale` times 2: between flat and nearly certain."""
    torch.manual_seed(0)
    counts = torch.randint(0, 50, (vocab_size,))
    wte = torch.nn.Parameter(torch.zeros(vocab_size, D))
    head = build_head(config, D, vocab_size, counts=counts, wte=wte).to(dtype)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=scale * 0.7)
    return head.requires_grad_(False)


def random_states(n: int) -> Tensor:
    return torch.randn(n, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def plain_cut(log_prob: Tensor, truncation: Truncation) -> list[int]:
    """The definition, on one state's (V,) log-probabilities."""
    values = log_prob.numpy()
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))
    kept, mass = [], 0.0
    for rank, token in enumerate(order):
        too_many = truncation.top_k is not None and rank >= truncation.top_k
        enough = rank > 0 and truncation.top_p < 1 and mass >= truncation.top_p
        if too_many or enough or values[token] < values[order[0]] + truncation.log_min_p:
            break
        kept.append(token)
        mass += np.exp(values[token])
    return kept


def lists(kept) -> list[list[int]]:
    return [row[:size] for row, size in zip(kept.ids.tolist(), kept.sizes.tolist(), strict=True)]


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("config", CONFIGS, ids=by_name)
def test_cuts_equal_the_definition(config, scale):
    head, states = random_head(config, 1_000, scale), random_states(100)
    joint = head.log_prob(states)
    for truncation in CUTS:
        kept = head.truncate(states, truncation)
        assert lists(kept) == [plain_cut(row, truncation) for row in joint], truncation
        expected = joint.gather(1, kept.ids).where(kept.log_prob > -torch.inf, -torch.inf)
        torch.testing.assert_close(kept.log_prob, expected, atol=1e-12, rtol=1e-12)
    assert head.topk(states, 5_000).ids.shape == (100, 1_000)


@pytest.mark.parametrize("config", CONFIGS[1:], ids=by_name)
@pytest.mark.parametrize("vocab_size", [1_000, 50_257])
def test_search_equals_the_v_wide_line_in_2000_states(config, vocab_size):
    n_states = 2_000 if vocab_size == 1_000 else 60
    head, states = random_head(config, vocab_size, scale=2.0), random_states(n_states)
    assert isinstance(head, BestFirstHead)
    for truncation in (Truncation(top_k=1), Truncation(top_k=40), Truncation(top_p=0.9), Truncation(min_p=0.05)):
        for piece in states.split(50):
            assert lists(head.truncate(piece, truncation)) == lists(Head.truncate(head, piece, truncation)), truncation


@pytest.mark.parametrize("config", CONFIGS, ids=by_name)
def test_equal_probabilities_are_ordered_by_id(config):
    """Few different logits, in every token and every group, make many ties, within groups and across them."""
    head, states = random_head(config, 1_000), random_states(50)
    for parameter in head.parameters():
        parameter.zero_()
    joint = head.log_prob(states)
    assert len(joint[0].unique()) < 12
    for truncation in CUTS:
        assert lists(head.truncate(states, truncation)) == [plain_cut(row, truncation) for row in joint], truncation


def test_a_tie_across_groups_goes_to_the_lowest_id():
    head = random_head(GroupedConfig(group_size=1), 5)  # every group is one token, so bound and probability are equal
    for parameter in head.parameters():
        parameter.zero_()
    assert head.argmax(random_states(3)).tolist() == [0, 0, 0]
    assert head.topk(random_states(1), 3).ids.tolist() == [[0, 1, 2]]


def test_the_best_token_of_the_best_group_is_another():
    head, states = random_head(GroupedConfig(), 1_000), random_states(500)
    greedy = head.argmax(states)
    best_group = head.class_log_prob(states).argmax(1)
    group_first = head.group_members()[best_group, head.in_group_log_prob(states, best_group).argmax(1)]
    assert (greedy == head.log_prob(states).argmax(1)).all()
    assert 0.05 < (greedy != group_first).double().mean() < 0.95


def test_few_groups_are_opened(monkeypatch):
    head, states = random_head(GroupedConfig(), 50_257, scale=4.0), random_states(20)
    opened = []
    inside = head.in_group_log_prob
    monkeypatch.setattr(
        head, "in_group_log_prob", lambda states, groups: opened.append(len(groups)) or inside(states, groups)
    )
    monkeypatch.setattr(head, "log_prob", lambda hidden: pytest.fail("a V-wide pass"))
    head.argmax(states)
    assert sum(opened) <= 20 * 8
    head.sample(states)
    assert opened[-1] == 20


def chi_square_p(counts: Tensor, expected: Tensor) -> float:
    """p-value of Pearson's test, cells pooled from the rarest on until each expects 5 or more."""
    found, wanted = [0.0], [0.0]
    expected, order = expected.sort()
    for count, mean in zip(counts[order].tolist(), expected.tolist(), strict=True):
        if wanted[-1] >= 5:
            found.append(0.0)
            wanted.append(0.0)
        found[-1] += count
        wanted[-1] += mean
    statistic = sum((f - w) ** 2 / w for f, w in zip(found, wanted, strict=True))
    return float(chi2.sf(statistic, len(wanted) - 1))


def holm_smallest(p_values: list[float]) -> float:
    """The smallest p-value adjusted after Holm: under 0.01 means that some test fails."""
    return min(1.0, min(p_values) * len(p_values))


def p_value(head: Head, state: Tensor, seed: int, temperature: float = 1.0) -> float:
    draws = head.sample(state, torch.Generator().manual_seed(seed), temperature=temperature, num_samples=DRAWS)
    expected = (head.log_prob(state)[0] / temperature).softmax(0) * DRAWS
    return chi_square_p(torch.bincount(draws[0], minlength=head.vocab_size), expected.double())


@pytest.mark.parametrize("vocab_size", [1_000, 50_257])
def test_draws_follow_the_joint_distribution(vocab_size):
    state = random_states(1)
    others = [HEADS["low_rank"].schema(rank=3), HEADS["sampled"].schema(samples=50), HEADS["trim"].schema()]
    heads = [random_head(config, vocab_size) for config in [*CONFIGS, *others]]
    assert holm_smallest([p_value(head, state, seed) for head in heads for seed in (0, 1, 2)]) > 0.01


@pytest.mark.parametrize("temperature", [0.3, 0.8, 1.5])
def test_draws_follow_the_tempered_distribution(temperature):
    state = random_states(1)
    heads = [random_head(config, 1_000) for config in CONFIGS]
    assert holm_smallest([p_value(head, state, 3, temperature) for head in heads]) > 0.01


SINGLE = [
    {},
    *({"truncation": truncation} for truncation in CUTS[1:]),
    {"truncation": Truncation(top_p=0.8), "temperature": 0.6},
]


@pytest.mark.parametrize("options", SINGLE, ids=str)
def test_one_draw_a_state_follows_what_the_cut_leaves(options):
    """The way of `gvc sample`, 10,000 times the same state: another one than that of many draws a state."""
    state, draws = random_states(1), 10_000
    p_values = []
    for config in CONFIGS[1:]:
        head = random_head(config, 1_000)
        found = head.sample(state.expand(draws, -1), torch.Generator().manual_seed(5), **options)
        kept = Head.truncate(head, state, options.get("truncation", Truncation()))
        share = (kept.log_prob[0] / options.get("temperature", 1.0)).softmax(0)
        expected = torch.zeros(1_000, dtype=torch.float64).index_add_(0, kept.ids[0], share) * draws
        counts = torch.bincount(found[:, 0], minlength=1_000)
        assert not counts[expected == 0].any()
        p_values.append(chi_square_p(counts[expected > 0], expected[expected > 0]) if (expected > 0).sum() > 1 else 1.0)
    assert holm_smallest(p_values) > 0.01


@pytest.mark.parametrize("truncation", CUTS[:-1], ids=str)
@pytest.mark.parametrize("config", CONFIGS[1:], ids=by_name)
def test_whether_a_token_is_kept_equals_the_definition(config, truncation):
    """Asked of every token of a few states, some of them with ties."""
    head = random_head(config, 300)
    states = torch.cat([random_states(2), torch.zeros(1, D, dtype=torch.float64)])
    wanted = Head.truncate(head, states, truncation)
    rows = torch.arange(3).repeat_interleave(300)
    tokens = torch.arange(300).repeat(3)
    found = head._keeps(states[rows], head.class_log_prob(states[rows]), tokens, truncation).view(3, 300)
    for row, ids in zip(found, lists(wanted), strict=True):
        assert row.nonzero().flatten().tolist() == sorted(ids)


def test_states_without_numbers_get_an_answer_too():
    head, states = random_head(GroupedConfig(), 300), torch.full((1, D), torch.nan, dtype=torch.float64)
    assert len(head._keeps(states, head.class_log_prob(states), torch.tensor([7]), Truncation(top_p=0.5))) == 1


def test_a_wrong_sampler_is_caught(monkeypatch):
    """One that draws a group and then a slot as if it were one of the first."""
    head, state = random_head(GroupedConfig(), 1_024), random_states(1)  # no padding slots
    inside = head.in_group_log_prob
    monkeypatch.setattr(head, "in_group_log_prob", lambda states, groups: inside(states, groups.clamp_max(3)))
    assert p_value(head, state, 0) < 1e-6


def test_a_slightly_wrong_sampler_is_caught(monkeypatch):
    head, state = random_head(GroupedConfig(), 1_000), random_states(1)
    first = head.class_log_prob
    monkeypatch.setattr(head, "class_log_prob", lambda states: (1.05 * first(states)).log_softmax(-1))
    draws = head.sample(state, torch.Generator().manual_seed(0), num_samples=DRAWS)
    monkeypatch.undo()
    expected = head.log_prob(state)[0].exp() * DRAWS
    assert chi_square_p(torch.bincount(draws[0], minlength=1_000), expected) < 1e-6


@pytest.mark.parametrize("config", CONFIGS, ids=by_name)
def test_every_state_draws_from_its_own_distribution(config):
    head, states = random_head(config, 300, scale=2.0), random_states(4)
    for options in ({}, {"temperature": 0.7}, {"truncation": Truncation(top_k=5)}):
        draws = head.sample(states, torch.Generator().manual_seed(0), num_samples=20_000, **options)
        for row, state in zip(draws, states, strict=True):
            alone = head.sample(state[None], torch.Generator().manual_seed(1), num_samples=20_000, **options)[0]
            shares = [torch.bincount(ids, minlength=300) / 20_000 for ids in (row, alone)]
            assert (shares[0] - shares[1]).abs().max() < 0.02  # 0.5 +- 0.005: four deviations of a difference
    assert (head.sample(states, temperature=0, num_samples=2) == head.argmax(states).unsqueeze(1)).all()


def test_draws_of_a_cut_stay_inside_it():
    head, states = random_head(ClassFullConfig(tied=False), 1_000), random_states(3)
    kept = head.truncate(states, Truncation(top_p=0.5))
    draws = head.sample(states, torch.Generator().manual_seed(0), truncation=Truncation(top_p=0.5), num_samples=5_000)
    for row, ids in zip(draws, lists(kept), strict=True):
        assert set(row.tolist()) == set(ids)


def test_nothing_of_weight_zero_is_drawn():
    weights = torch.tensor([[0.0, 1.0, 0.0, 3.0, 0.0], [0.0, 0.0, 0.0, 0.0, 1e-300]], dtype=torch.float64)
    rows = torch.arange(2).repeat(10_000)
    columns = draw(weights, rows, torch.Generator().manual_seed(0))
    assert set(columns[::2].tolist()) == {1, 3}
    assert set(columns[1::2].tolist()) == {4}
    assert 0.73 < (columns[::2] == 3).double().mean() < 0.77


@pytest.mark.parametrize("values", [{"top_k": 0}, {"top_p": 0.0}, {"top_p": 2.0}, {"min_p": -0.1}, {"min_p": 1.1}])
def test_bad_cuts(values):
    with pytest.raises(ConfigError, match=next(iter(values)).replace("_", "-")):
        Truncation(**values)


@pytest.mark.parametrize("config", CONFIGS[1:], ids=by_name)
def test_bf16_and_fp32_weights_decode(config):
    head = random_head(config, 1_000, dtype=torch.float32)
    states = random_states(20).float()
    assert (head.argmax(states) == Head.argmax(head, states)).all()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert head.sample(states, truncation=Truncation(top_p=0.9)).shape == (20, 1)
