"""What a library's user may do with any head: it works, or says why not; never another number than asked for."""

import copy

import pytest
import torch
from head_cases import D, batch_of, head_of, plain_shortlist
from torch import Tensor

from grouped_lm.errors import CheckpointError, DivergedError
from grouped_lm.heads import HEADS, IGNORE_INDEX, DenseConfig, GroupedConfig, Head, build_head
from grouped_lm.heads.decoding.truncation import Truncation

DEFAULT = "the default"
NAMES = [*HEADS, DEFAULT]


def build(name: str) -> Head:
    """Return a head of 103 tokens; the default one trains the rows of 33 of them, the text having no others."""
    if name != DEFAULT:
        return head_of(name)
    torch.manual_seed(0)
    wte = torch.nn.Parameter(torch.randn(103, D, dtype=torch.float64))
    config = plain_shortlist(shortlist_size=4, directions=0, shared_rows=99, reserve=True)
    counts = (33 - torch.arange(103)).clamp_min(0)
    return build_head(config, D, 103, "frequency", counts, wte).double().eval()


@pytest.mark.parametrize("name", NAMES)
def test_inference_mode_leaves_no_trace(name):
    head, (hidden, targets) = build(name), batch_of(103, 5)
    expected = head.loss(hidden, targets).nll
    fresh = copy.deepcopy(head)
    with torch.inference_mode():
        for _ in range(2):
            fresh.sample(hidden), fresh.topk(hidden, 3), fresh.log_prob(hidden), fresh.loss(hidden, targets)
    with torch.no_grad():
        torch.testing.assert_close(fresh.log_prob(hidden), head.log_prob(hidden))
    for reduction in ("mean", "none"):
        fresh.loss(hidden, targets, reduction).nll.sum().backward()
    torch.testing.assert_close(fresh.loss(hidden, targets).nll, expected)


@pytest.mark.parametrize("name", NAMES)
def test_weights_that_change_in_place_are_seen(name):
    head, (hidden, targets) = build(name), batch_of(103, 5)
    targets = targets.clamp_min(0)
    with torch.no_grad():
        for _ in range(2):
            with head.frozen():
                head.sample(hidden)
                ours = head.target_log_prob(hidden, targets)
                torch.testing.assert_close(ours, head.log_prob(hidden).gather(1, targets[:, None])[:, 0])
            for parameter in head.parameters():
                parameter.data.mul_(1.5)  # no version counter tells


@pytest.mark.parametrize("name", NAMES)
def test_a_loaded_state_needs_no_further_call(name):
    head, (hidden, targets) = build(name), batch_of(103, 5)
    other = build(name)
    shuffled = torch.randperm(103, generator=torch.Generator().manual_seed(1))
    for key, buffer in other.named_buffers():  # as of a text with other frequencies
        if key in other.state_dict() and buffer.shape[:1] == (103,):
            buffer.copy_(buffer[shuffled])
    other.after_load()
    with torch.no_grad():
        other.topk(hidden, 3)  # makes what follows from the grouping it had
        other.load_state_dict(head.state_dict())
        torch.testing.assert_close(other.log_prob(hidden), head.log_prob(hidden))
        torch.testing.assert_close(other.loss(hidden, targets).nll, head.loss(hidden, targets).nll)
        assert torch.equal(other.topk(hidden, 3).ids, head.topk(hidden, 3).ids)


def shortlist_of(**sizes) -> Head:
    wte = torch.nn.Parameter(0.02 * torch.randn(1000, D))
    return build_head("shortlist", wte=wte, **({"shortlist_size": 105, "group_size": 30, "shared_rows": 500} | sizes))


@pytest.mark.parametrize(
    ("sizes", "others", "said"),
    [
        ({}, {"shortlist_size": 100}, "K=100, G=30, S=30 instead of K=105, G=30, S=30"),
        ({"group_size": 300}, {"group_size": 400}, "K=105, G=3, S=400 instead of K=105, G=3, S=300"),
    ],
    ids=["K", "S"],
)
def test_a_state_of_another_shortlist_or_group_size_is_refused(sizes, others, said):
    head, state = shortlist_of(**sizes), shortlist_of(**others).state_dict()
    assert all(state[key].shape == value.shape for key, value in head.state_dict().items())  # torch would load it
    with pytest.raises(CheckpointError, match=f"another grouping than this head's: {said}"):
        head.load_state_dict(state)
    shortlist_of(**others).load_state_dict(state)


@pytest.mark.parametrize("name", NAMES)
def test_targets_that_are_no_ids_are_refused(name):
    hidden, targets = batch_of(103, 5)
    targets[2] = -1
    for reduction in ("mean", "none"):
        with pytest.raises(ValueError, match=f"a target is -1.*{IGNORE_INDEX}"):
            build(name).loss(hidden, targets, reduction)


@pytest.mark.parametrize("name", NAMES)
def test_parts_have_gradients_where_tokens_have(name):
    head, (hidden, targets) = build(name), batch_of(103, 5)
    if (parts := head.loss(hidden, targets, "none")).token_nll is None:
        return
    assert parts.token_nll.requires_grad
    for accuracy in (False, True):
        loss = head.loss(hidden, targets, accuracy=accuracy)
        assert not loss.token_nll.requires_grad
        assert not loss.group_nll.requires_grad
        torch.testing.assert_close(loss.nll, loss.group_nll + loss.token_nll)


@pytest.mark.parametrize("name", NAMES)
def test_second_derivatives_are_right_or_refused(name):
    head, (hidden, targets) = build(name), batch_of(103, 5)
    hidden = hidden.detach().requires_grad_()

    def second(nll: Tensor) -> Tensor:
        (first,) = torch.autograd.grad(nll, hidden, create_graph=True)
        return torch.autograd.grad(first.square().sum(), hidden)[0]

    counted = (targets != IGNORE_INDEX).sum()
    picked = head.log_prob(hidden).gather(1, targets.clamp_min(0)[:, None])[:, 0]
    expected = second(-picked.masked_fill(targets == IGNORE_INDEX, 0).sum() / counted)
    if name == "dense":  # plain autograd
        torch.testing.assert_close(second(head.loss(hidden, targets).nll), expected)
        return
    with pytest.raises(RuntimeError, match="first derivatives alone"):
        second(head.loss(hidden, targets).nll)


@pytest.mark.parametrize("name", NAMES)
def test_weights_in_bf16(name):
    head, (hidden, targets) = build(name).to(torch.bfloat16), batch_of(103, 5, dtype=torch.bfloat16)
    log_prob = head.log_prob(hidden)
    assert log_prob.dtype == torch.float32
    assert log_prob.exp().sum(-1).sub(1).abs().max() < 1e-5
    none = head.loss(hidden, targets, "none").nll
    total = head.loss(hidden, targets, "sum").nll
    torch.testing.assert_close(total, none.sum(), rtol=2e-2, atol=0.1)
    total.backward()


MANY = 2**16
"""Rows of a batch in 256 chunks, whose sum in bf16 no longer grows, and in fp16 is nearly infinite."""
SUMMED = [(name, "mean") for name in HEADS] + [(name, "none") for name in ("dense", "grouped", "film", "sampled")]


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize(("name", "reduction"), SUMMED)
def test_gradients_of_bf16_weights_are_sums_over_all_rows(name, reduction):
    head = head_of(name, bias=True, samples=20, chunk_rows=256).bfloat16().train()
    exact = copy.deepcopy(head).double()
    hidden = torch.randn(MANY, D, generator=torch.Generator().manual_seed(1)).bfloat16()
    targets = torch.full((MANY,), 30)  # in a group and a cluster
    for own, states in ((head, hidden), (exact, hidden.double())):
        torch.manual_seed(0)  # of the sampled tokens
        (own.loss(states, targets, reduction).nll.sum() / (MANY if reduction == "none" else 1)).backward()
    for (key, found), wanted in zip(head.named_parameters(), exact.parameters(), strict=True):
        assert found.grad.dtype == torch.bfloat16
        assert (found.grad - wanted.grad).abs().max() <= 0.01 * wanted.grad.abs().max(), key


def test_gradients_of_fp16_weights_are_finite_however_many_rows_they_sum():
    head = build_head("dense", 8, 16, tied=False, bias=True, chunk_rows=256).half()
    hidden = 1 + torch.randn(70_000, 8, generator=torch.Generator().manual_seed(1)).half()
    head.loss(hidden, torch.zeros(70_000, dtype=torch.int64)).nll.backward()
    torch.testing.assert_close(head.bias.grad[0], head.bias.grad.new_tensor(-15 / 16), rtol=0.01, atol=0)
    torch.testing.assert_close(
        head.weight.grad[0], head.bias.grad[0] * hidden.float().mean(0).half(), rtol=0.02, atol=0
    )


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reserve", [False, 0.1])
@pytest.mark.parametrize("name", HEADS)
def test_a_head_on_an_embedding_in_half_precision_is_used_as_any_other(name, reserve, dtype):
    options = {"reserve": reserve} | ({"shortlist_size": 4} if name == "shortlist" else {})
    options |= {"start": "counts", "bias": True} if name in ("dense", "low_rank", "trim") else {}
    options |= {"cutoffs": [3, 20]} if name == "adaptive" else {"samples": 9} if name == "sampled" else {}
    table, counts = 0.1 * torch.randn(103, D), torch.arange(103) % 11 * 7
    head, fine = (
        build_head(name, wte=torch.nn.Parameter(table.to(own)), counts=counts, **options).eval()
        for own in (dtype, torch.float32)
    )
    assert {parameter.dtype for parameter in head.parameters()} == {dtype}
    for (key, found), wanted in zip(head.named_buffers(), fine.buffers(), strict=True):
        assert torch.equal(found, wanted), key  # tables of the text stay exact
    hidden, targets = batch_of(103, 9, dtype=dtype)
    for reduction in ("mean", "sum", "none"):
        for training in (True, False):
            head.train(training).loss(hidden, targets, reduction).nll.sum().backward()
    with torch.no_grad():
        log_prob = head.log_prob(hidden)
        assert log_prob.exp().sum(-1).sub(1).abs().max() < 1e-5
        for accuracy in (True, False):
            nll = head.loss(hidden, targets, "none", accuracy).nll
            picked = log_prob.gather(1, targets.clamp_min(0)[:, None])[:, 0].masked_fill(targets < 0, 0)
            torch.testing.assert_close(-nll, picked, rtol=0.01, atol=0.02)
        torch.testing.assert_close(head.target_log_prob(hidden, targets), picked, rtol=0.01, atol=0.02)
        for truncation in (None, Truncation(top_k=3), Truncation(top_p=0.5)):
            assert head.sample(hidden, truncation=truncation, temperature=0.8, num_samples=2).shape == (9, 2)
        assert head.ranks(hidden, targets.clamp_min(0), 5) is not None
        assert head.topk(hidden, 3).ids.shape == (9, 3)


@pytest.mark.parametrize("name", NAMES)
def test_bf16_states_under_autocast(name):
    head, (hidden, targets) = build(name).float(), batch_of(103, 5, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        head.loss(hidden, targets).nll.backward()
    assert hidden.grad.isfinite().all()


@pytest.mark.parametrize("truncation", [None, Truncation(top_k=3), Truncation(top_p=0.5)])
@pytest.mark.parametrize("name", NAMES)
def test_no_states(name, truncation):
    head, none = build(name), torch.zeros(0, D, dtype=torch.float64)
    with torch.no_grad():
        assert head.sample(none, truncation=truncation, num_samples=2).shape == (0, 2)
        assert head.sample(none, truncation=truncation, temperature=0.5).shape == (0, 1)
        assert head.argmax(none).shape == (0,)
        assert head.topk(none, 3).ids.shape[0] == 0


@pytest.mark.parametrize("temperature", [0.5, 1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_a_state_that_is_no_number_is_said_and_spoils_no_other(name, temperature):
    head, (hidden, _) = build(name), batch_of(103, 5)
    hidden = hidden.detach()
    hidden[2] = torch.nan
    for draws in (1, 2):
        with torch.no_grad(), pytest.raises(DivergedError, match="no finite numbers"):
            head.sample(hidden, temperature=temperature, num_samples=draws)


@pytest.mark.parametrize("name", NAMES)
def test_next_to_no_temperature_takes_the_likeliest(name):
    head, (hidden, _) = build(name), batch_of(103, 5)
    with torch.no_grad():
        for temperature in (1e-3, 1e-310):
            for truncation in (None, Truncation(top_k=5)):
                drawn = head.sample(hidden, temperature=temperature, truncation=truncation, num_samples=2)
                assert torch.equal(drawn, head.argmax(hidden)[:, None].expand(-1, 2))


@pytest.mark.parametrize(("n_group", "group_size"), [(3, 7), (5, 13), (7, 3), (12, 7)])
def test_groups_that_are_equally_likely_keep_to_the_cut(n_group, group_size):
    number = n_group * group_size
    head = build_head(GroupedConfig(group_size=group_size), D, number)
    for parameter in head.parameters():
        torch.nn.init.zeros_(parameter)
    with torch.no_grad():
        drawn = head.sample(
            torch.zeros(5000, D), torch.Generator().manual_seed(0), truncation=Truncation(top_k=number - 1)
        )
    assert drawn.max() == number - 2  # of equals the lowest ids are kept


def test_products_of_fp64_stay_so_under_autocast():
    torch.manual_seed(0)
    head = build_head(DenseConfig(chunk_rows=2), D, 103, wte=torch.nn.Parameter(torch.randn(103, D).double()))
    hidden, targets = batch_of(103, 5)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(head.loss(hidden, targets, "sum").nll, head.loss(hidden, targets, "none").nll.sum())
