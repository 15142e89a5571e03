"""Every head is an exact distribution over all V tokens: sums, losses, gradients, padding slots, ignored targets."""

import math

import pytest
import torch
from head_cases import plain_shortlist
from torch import Tensor

from grouped_lm.errors import ConfigError
from grouped_lm.heads import (
    IGNORE_INDEX,
    AdaptiveConfig,
    ClassFullConfig,
    DenseConfig,
    FilmConfig,
    GroupedConfig,
    Head,
    TrimConfig,
    TwoLevelHead,
    build_head,
    parse_head_config,
)

D = 6
SHAPES = [(103, 7), (103, None), (10, 3), (5, 5), (9, 1), (2, 2), (1, 1)]  # partial groups, one group, S = 1, S = V
KINDS = [GroupedConfig, FilmConfig, ClassFullConfig]  # groups, and padding slots in their masks


SHORTLISTS = [
    plain_shortlist(shortlist_size=0, group_size=1),
    plain_shortlist(shortlist_size=8, group_size=None),
    plain_shortlist(shortlist_size=102),
    plain_shortlist(shortlist_size=20, own_shortlist=True, start="counts", directions=2),
    plain_shortlist(shortlist_size=20, group_size=1, start="counts", shared_rows=30, reserve=True),
    plain_shortlist(shortlist_size=20, directions=0, shared_rows=100, reserve=True),
    plain_shortlist(),  # all of V
]
ADAPTIVE = [AdaptiveConfig(cutoffs=[5, 20], div_value=2.0), AdaptiveConfig(cutoffs=[1, 2, 3], div_value=1.0)]


def random_head(config, vocab_size: int, grouping: str = "merge_rank") -> Head:
    torch.manual_seed(0)
    wte = torch.nn.Parameter(torch.randn(vocab_size, D, dtype=torch.float64))
    counts = torch.randint(0, 50, (vocab_size,))
    head = build_head(config, D, vocab_size, grouping, counts, wte).double()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    return head


def states_and_targets(vocab_size: int, *shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(*shape, D, dtype=torch.float64, generator=generator)
    targets = torch.randint(0, vocab_size, shape, generator=generator)
    targets.view(-1)[::4] = IGNORE_INDEX
    return hidden, targets


def configs_for(group_size: int | None):
    return [kind(group_size=group_size) for kind in KINDS] + [
        *SHORTLISTS,
        plain_shortlist(shortlist_size=4, group_size=group_size, directions=2),
        DenseConfig(),
        DenseConfig(tied=False),
        DenseConfig(chunk_rows=4),
    ]


CASES = [(config, vocab) for vocab, size in SHAPES for config in configs_for(size)]
CASES += [(config, vocab) for vocab in (103, 10, 5, 2) for config in [*ADAPTIVE, AdaptiveConfig()]]


@pytest.mark.parametrize(("config", "vocab_size"), CASES, ids=str)
def test_exact_distribution(config, vocab_size):
    head = random_head(config, vocab_size)
    hidden, targets = states_and_targets(vocab_size, 3, 5)
    log_prob = head.log_prob(hidden)
    assert log_prob.shape == (3, 5, vocab_size)
    torch.testing.assert_close(log_prob.exp().sum(-1), torch.ones(3, 5, dtype=torch.float64), atol=1e-12, rtol=0)

    picked = log_prob.gather(-1, targets.clamp_min(0).unsqueeze(-1)).squeeze(-1)
    expected = torch.where(targets == IGNORE_INDEX, 0.0, -picked)
    per_token = head.loss(hidden, targets, reduction="none")
    torch.testing.assert_close(per_token.nll, expected)
    torch.testing.assert_close(head.target_log_prob(hidden, targets), -expected)
    torch.testing.assert_close(head.loss(hidden, targets, reduction="sum").nll, expected.sum())
    counted = (targets != IGNORE_INDEX).sum()
    torch.testing.assert_close(head.loss(hidden, targets).nll, expected.sum() / counted)
    if per_token.group_nll is not None:
        torch.testing.assert_close(per_token.group_nll + per_token.token_nll, per_token.nll)


@pytest.mark.parametrize("grouping", ["merge_rank", "random"])
@pytest.mark.parametrize("config", [*configs_for(7)[:-1], *ADAPTIVE], ids=str)
def test_gradients(config, grouping):
    head = random_head(config, 23, grouping)
    hidden, targets = states_and_targets(23, 2, 3)
    names, parameters = zip(*head.named_parameters(), strict=True)
    weights = torch.randn(2, 3, dtype=torch.float64)

    def weighted_loss(states: Tensor, *values: Tensor) -> Tensor:
        call = torch.func.functional_call(
            head, dict(zip(names, values, strict=True)), (states, targets), {"reduction": "none"}
        )
        return (call.nll * weights).sum()

    inputs = [hidden.requires_grad_(), *(p.detach().clone().requires_grad_() for p in parameters)]
    assert torch.autograd.gradcheck(weighted_loss, inputs)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("rows", [1, 4, 1000])
def test_chunked_dense_equals_plain(rows, reduction):
    plain, chunked = (
        random_head(DenseConfig(tied=False), 103),
        random_head(DenseConfig(tied=False, chunk_rows=rows), 103),
    )
    found = []
    for head in (plain, chunked):
        hidden, targets = states_and_targets(103, 3, 5)
        loss = head.loss(hidden.requires_grad_(), targets, reduction=reduction).nll
        (1.7 * loss).backward()
        found.append((loss, hidden.grad, head.weight.grad))
    for ours, theirs in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("config", [*configs_for(7), *ADAPTIVE], ids=str)
def test_nothing_counted_is_zero_not_nan(config):
    head = random_head(config, 103)
    hidden, targets = states_and_targets(103, 2, 3)
    loss = head.loss(hidden.requires_grad_(), torch.full_like(targets, IGNORE_INDEX)).nll
    loss.backward()
    assert loss.item() == 0.0
    assert hidden.grad.abs().max() == 0.0


@pytest.mark.parametrize("config", [*(kind(group_size=7) for kind in KINDS), *SHORTLISTS], ids=str)
@pytest.mark.parametrize("grouping", ["merge_rank", "frequency", "random"])
def test_every_grouping_is_a_partition_and_exact(config, grouping):
    head = random_head(config, 103, grouping)
    hidden, _ = states_and_targets(103, 4)
    assert head.log_prob(hidden).exp().sum(-1).sub(1).abs().max() < 1e-12
    pairs = set(zip(head.token_to_group.tolist(), head.token_to_slot.tolist(), strict=True))
    assert len(pairs) == 103


@pytest.mark.parametrize("config", [*(kind(group_size=7) for kind in KINDS), *SHORTLISTS], ids=str)
def test_wider_tables_of_older_checkpoints_load(config):
    head, other = random_head(config, 103, "random"), random_head(config, 103)
    assert head.token_to_group.dtype == head.token_to_slot.dtype == torch.int32
    other.load_state_dict({name: v if v.is_floating_point() else v.long() for name, v in head.state_dict().items()})
    other.after_load()
    assert other.token_to_group.dtype == torch.int32
    hidden, targets = states_and_targets(103, 4)
    torch.testing.assert_close(other.loss(hidden, targets).nll, head.loss(hidden, targets).nll)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_slots_would_leak_without_their_mask(kind):
    head = random_head(kind(group_size=7), 103)  # 15 groups, 2 padding slots
    hidden, _ = states_and_targets(103, 4)
    head.padding.zero_()
    assert head.log_prob(hidden).exp().sum(-1).max() < 1 - 1e-6


@pytest.mark.parametrize("kind", [GroupedConfig, ClassFullConfig])
def test_accuracies_count_targets_only(kind):
    head = random_head(kind(group_size=7), 103)
    hidden, targets = states_and_targets(103, 40)
    joint = head.log_prob(hidden)
    by_group = torch.zeros(40, head.n_group, dtype=torch.float64).index_add_(1, head.token_to_group, joint.exp())
    counted = targets != IGNORE_INDEX
    groups = head.token_to_group[targets.clamp_min(0)]
    in_group = joint.masked_fill(head.token_to_group != groups.unsqueeze(1), -torch.inf)
    loss = head.loss(hidden, targets, accuracy=True)
    assert loss.group_correct == ((by_group.argmax(1) == groups) & counted).sum()
    assert loss.token_correct == ((in_group.argmax(1) == targets) & counted).sum()


UNTIED = [GroupedConfig(), FilmConfig(), ClassFullConfig(tied=False), DenseConfig(tied=False)]
UNTIED_BY_COUNT = [
    plain_shortlist(tied=False, shortlist_size=k, directions=r) for k, r in ((0, 1), (20, 1), (20, 4), (103, 1))
]


@pytest.mark.parametrize("config", UNTIED + UNTIED_BY_COUNT + ADAPTIVE, ids=str)
def test_bf16_autocast_keeps_the_loss_in_fp32(config):
    head = build_head(config, 64, 103)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(50, 64, generator=generator)
    targets = torch.randint(0, 103, (50,), generator=generator)
    exact = head.loss(hidden, targets).nll
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = head.loss(hidden, targets).nll
    assert rough.dtype == torch.float32
    assert abs(rough - exact) < 5e-3


def test_the_paper_example_has_225_groups_and_143_padding_slots():
    head = build_head(GroupedConfig(), 4, 50_257)
    assert isinstance(head, TwoLevelHead)
    assert (head.n_group, head.group_size) == (225, 224)
    assert head.padding.sum() == 143


def test_initial_loss_is_that_of_a_uniform_guess():
    for config in UNTIED:
        torch.manual_seed(0)
        head = build_head(config, 64, 5_000)
        hidden = torch.nn.functional.layer_norm(torch.randn(200, 64), (64,))
        loss = head.loss(hidden, torch.randint(0, 5_000, (200,))).nll
        assert math.log(5_000) - 0.1 < loss.item() < math.log(5_000) + 0.8  # logits of unit variance cost half a nat


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "dens"}, "head must be one of"),
        ({"name": "dense", "group_size": 3}, "unknown key head.group_size"),
        ({"name": "dense", "tyed": True}, "did you mean head.tied"),
        ({"name": "grouped", "group_size": "seven"}, "head.group_size must be a whole number"),
        ({"name": "grouped", "group_size": 0}, r"head.group_size must be in \[1"),
        ({"name": "adaptive", "cutoffs": [20, 5]}, "head.cutoffs must be rising"),
        ({"name": "adaptive", "cutoffs": 5}, "head.cutoffs must be a list"),
        ({"name": "shortlist", "directions": -1}, r"head.directions must be in \[0"),
        ({"name": "shortlist", "shared_rows": 0}, "directions=0 .* give head.shared_rows too"),
        ({"name": "shortlist", "start": "count"}, r"head.start must be one of zero, counts"),
        ({"name": "grouped", "group_size": True}, "head.group_size must be a whole number"),
    ],
)
def test_bad_head_configs(values, message):
    with pytest.raises(ValueError, match=message):
        parse_head_config(values)


def test_mismatched_shapes_are_refused():
    head = random_head(GroupedConfig(group_size=7), 103)
    with pytest.raises(ValueError, match="do not match"):
        head.loss(torch.zeros(2, 3, D, dtype=torch.float64), torch.zeros(3, 2, dtype=torch.int64))


@pytest.mark.parametrize("kind", [DenseConfig, TrimConfig])
def test_a_bias_may_start_at_the_frequencies_of_the_tokens(kind):
    counts = torch.tensor([4, 0, 1, 0])
    wte = torch.nn.Parameter(torch.zeros(4, D))
    head = build_head(kind(bias=True, start="counts"), D, 4, counts=counts, wte=wte)
    expected = torch.tensor([4.5, 0.5, 1.5, 0.5]) / 7
    torch.testing.assert_close(head.log_prob(torch.zeros(1, D)).exp(), expected[None])
    with pytest.raises(ConfigError, match=r"head\.bias=true"):
        kind(start="counts")
