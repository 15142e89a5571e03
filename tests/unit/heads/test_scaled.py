"""`head.inner_scale` and `head.second_order` of the shortlist head, in fp64."""

import math

import pytest
import torch
from head_cases import D, batch_of, plain_shortlist

from grouped_lm.errors import ConfigError
from grouped_lm.heads import IGNORE_INDEX, ScaledHead, build_head

V = 103
OPTIONS = [{"inner_scale": True}, {"second_order": True}, {"inner_scale": True, "second_order": True}]
SIZES = {"shortlist_size": 8, "group_size": 7, "directions": 0, "shared_rows": 200, "reserve": 0.1, "start": "counts"}


def made(seed: int = 0, zero: bool = False, **own) -> ScaledHead:
    torch.manual_seed(seed)
    wte = torch.nn.Parameter(0.3 * torch.randn(V, D, dtype=torch.float64))
    counts = torch.where(torch.arange(V) < 80, torch.arange(V) % 11 + 1, 0)
    head = build_head(plain_shortlist(**(SIZES | own)), D, V, "frequency", counts, wte).double().eval()
    for name, parameter in head.named_parameters():
        if not (zero and name in ("scale", "shift", "variance_scale")):
            torch.nn.init.normal_(parameter, std=0.5)
    return head


@pytest.mark.parametrize("own", OPTIONS, ids=str)
def test_the_loss_is_that_of_an_exact_distribution(own):
    head = made(**own)
    assert isinstance(head, ScaledHead)
    assert head.reserved.numel()
    hidden, targets = batch_of(V, 4, 5)
    log_prob = head.log_prob(hidden)
    assert log_prob.exp().sum(-1).sub(1).abs().max() < 1e-7
    picked = log_prob.gather(-1, targets.clamp_min(0).unsqueeze(-1)).squeeze(-1)
    slow = torch.where(targets == IGNORE_INDEX, 0.0, -picked)
    inputs = [hidden, *head.parameters()]
    for reduction, count in (("none", 1), ("sum", 1), ("mean", int((targets != IGNORE_INDEX).sum()))):
        loss = head.loss(hidden, targets, reduction)
        torch.testing.assert_close(loss.nll, slow if reduction == "none" else slow.sum() / count)
        fast = torch.autograd.grad(loss.nll.sum() * count, inputs, retain_graph=True)
        for ours, theirs in zip(fast, torch.autograd.grad(slow.sum(), inputs, retain_graph=True), strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("own", OPTIONS, ids=str)
def test_at_the_start_it_is_the_default_head(own):
    head, plain = made(zero=True, **own), made()
    plain.load_state_dict({key: value for key, value in head.state_dict().items() if key in plain.state_dict()})
    hidden, targets = batch_of(V, 4, 5)
    torch.testing.assert_close(head.log_prob(hidden), plain.log_prob(hidden))
    torch.testing.assert_close(head.loss(hidden, targets).nll, plain.loss(hidden, targets).nll)


def test_scale_and_shift_are_on_the_states_of_a_group():
    head = made(inner_scale=True)
    hidden = batch_of(V, 1)[0].detach()
    group = int(head.token_to_group.max()) // 2
    ids = (head.token_to_group == group).nonzero().squeeze(1)
    state = hidden[0] * (1 + head.scale[group]) + head.shift[group]
    expected = (head.weight[ids] @ state + head.bias[ids]).log_softmax(0)
    log_prob = head.log_prob(hidden)[0, ids]
    torch.testing.assert_close(log_prob - log_prob.logsumexp(0), expected)
    inside = head.in_group_log_prob(hidden, torch.tensor([group]))[0]
    torch.testing.assert_close(inside[head.token_to_slot[ids].long()], expected)


def test_the_second_order_term_brings_the_logit_closer_to_the_log_sum_exp():
    head = made(second_order=True)
    with torch.no_grad():
        head.bias.zero_()
        head.group_bias.zero_()
        head.parts.fill_(1.0)
        head.parts.div_(
            torch.bincount(head.token_to_group[head.sharing].long())[head.token_to_group[head.sharing].long()]
        )
    hidden = 0.5 * batch_of(V, 200)[0].detach()
    errors = []
    for factor in (0.0, 1.0):
        torch.nn.init.constant_(head.variance_scale, factor)
        group = int(head.token_to_group[head.sharing[0]])
        ids = (head.token_to_group == group).nonzero().squeeze(1)
        true = (hidden @ head.weight[ids].T).logsumexp(1) - math.log(len(ids))
        logits = head.class_logits(hidden, *head.class_layer(head.weight[head.class_row_ids()]))
        errors.append((logits[:, head.shortlist_size + group] - true).abs().mean())
    assert errors[1] < 0.7 * errors[0]


def test_wrong_settings_are_named():
    with pytest.raises(ConfigError, match=r"head\.second_order=true needs head\.directions of 0 or 1, got 2"):
        plain_shortlist(second_order=True, directions=2)
