"""Ranks of targets, found from few groups or blocks, are those of the sorted V log-probabilities, ties included."""

import pytest
import torch
from head_cases import head_of

from grouped_lm.heads import HEADS
from grouped_lm.heads.decoding.ranks import ranks_by_all

N, V = 200, 3_001


def head_with(name: str, weights: str):
    """Random weights, with a share for unseen tokens or without; all zero, so that whole groups tie; or whole numbers,
    so that a few tokens tie.
    """
    head = head_of(name, V, 61, reserve=0.1 if "reserve" in weights else False)
    for parameter in head.parameters():
        if "zero" in weights:
            parameter.data.zero_()
        if "whole" in weights:
            parameter.data.copy_(parameter.sign() * (parameter.abs() > 1))
    return head


@pytest.mark.parametrize("weights", ["random", "zero", "whole", "reserve", "reserve, zero", "reserve, whole"])
@pytest.mark.parametrize("name", HEADS)
@torch.no_grad()
def test_ranks_are_those_of_the_sorted_joint_distribution(name, weights):
    head = head_with(name, weights)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randint(-1, 2, (N, head.n_embd), generator=generator).double()
    joint = head.log_prob(hidden)
    order = joint.argsort(dim=1, descending=True, stable=True)  # stable: equals by id
    chosen = order[torch.arange(N), torch.arange(N) % 8 * (torch.arange(N) % 3 + 1)]  # most of them likely
    targets = torch.where(torch.arange(N) % 10 == 0, torch.randint(0, V, (N,), generator=generator), chosen)
    places = (order == targets.unsqueeze(1)).int().argmax(1)
    for most in (1, 5, 40):
        found = head.ranks(hidden, targets, most)
        assert found.rank.tolist() == places.clamp_max(most).tolist()
        torch.testing.assert_close(found.best, joint.amax(1))
        torch.testing.assert_close(found.log_prob, joint.gather(1, targets.unsqueeze(1)).squeeze(1))


@pytest.mark.parametrize(
    "options",
    [{"inner_scale": True}, {"second_order": True}, {"own_shortlist": True}, {"shortlist_size": V + 5}],
    ids=lambda options: next(iter(options)),
)
@torch.no_grad()
def test_ranks_of_a_shortlist_with_options(options):
    head = head_of("shortlist", V, 61, **({"directions": 0, "shared_rows": V} | options))
    hidden = torch.randn(N, head.n_embd, generator=torch.Generator().manual_seed(0)).double()
    joint, targets = head.log_prob(hidden), torch.arange(N) % V
    own = joint.gather(1, targets.unsqueeze(1))
    found = head.ranks(hidden, targets, V)
    torch.testing.assert_close(found.log_prob, own.squeeze(1))
    assert found.rank.tolist() == (joint > own).sum(1).tolist()
    assert head.argmax(hidden).tolist() == joint.argmax(1).tolist()


@pytest.mark.parametrize("name", ["dense", "shortlist"])
@torch.no_grad()
def test_a_diverged_model_predicts_nothing_right(name):
    head = head_of(name)
    for parameter in head.parameters():
        parameter.data.fill_(torch.nan)
    assert head.ranks(torch.ones(3, head.n_embd).double(), torch.tensor([1, 2, 50]), 5).rank.tolist() == [5, 5, 5]
    assert head.ranks(torch.ones(0, head.n_embd).double(), torch.tensor([], dtype=torch.int64), 5).rank.shape == (0,)


def test_equal_columns_are_counted_by_id():
    ranks = ranks_by_all(lambda states: torch.zeros(len(states), 1_000), torch.ones(3, 1), torch.tensor([0, 3, 900]), 5)
    assert ranks.rank.tolist() == [0, 3, 5]
