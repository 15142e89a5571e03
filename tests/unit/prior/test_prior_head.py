"""The mixture of a head and counts, as a head: against its definition, for heads of every kind."""

import numpy as np
import pytest
import torch
from literal_kneser_ney import EOT, VOCAB, small_text
from scipy import stats

from grouped_lm.config import IGNORE_INDEX, ConfigError, ModelConfig, PriorConfig
from grouped_lm.heads import build_head
from grouped_lm.heads.decoding.truncation import Truncation
from grouped_lm.models.gpt2 import GPT2, KVCache
from grouped_lm.models.lm import LanguageModel
from grouped_lm.prior import build_kneser_ney
from grouped_lm.prior.head import MixedModel, PriorHead, context_features

WIDTH, TEXT = 8, small_text(400)
IDS = torch.from_numpy(TEXT[:24].astype(np.int64)).view(2, 12)
TARGETS = torch.from_numpy(TEXT[1:25].astype(np.int64)).view(2, 12)


def mixed_model(head: str = "dense", mix: str = "gate", order: int = 4) -> MixedModel:
    """A body of one block with random weights, a head, and counts of the small text."""
    torch.manual_seed(0)
    body = GPT2(ModelConfig(n_layer=1, n_head=2, n_embd=WIDTH, block_size=16), VOCAB)
    torch.nn.init.normal_(body.wte.weight, std=0.7)
    counts = torch.from_numpy(np.bincount(TEXT, minlength=VOCAB))
    inner = build_head(head, WIDTH, VOCAB, counts=counts, wte=body.wte.weight, tokens=lambda: TEXT)
    model = LanguageModel(body, inner)
    prior = PriorHead(inner, build_kneser_ney(TEXT, VOCAB, EOT, order), PriorConfig(name="kneser_ney", mix=mix), seed=0)
    prior.weight.fill_(0.3)
    if prior.gate is not None:
        torch.nn.init.normal_(prior.gate.out.weight)  # it starts at 0
    return MixedModel(model, prior).eval()


def literal(model: MixedModel) -> tuple[torch.Tensor, torch.Tensor]:
    """The probabilities of both parts at every place of IDS, (24, V) each, from the definitions."""
    states = model.body(IDS).flatten(0, 1)
    own = model.head.head.log_prob(states).double().exp()
    histories = [row[: place + 1].tolist() for row in IDS for place in range(12)]
    return own, torch.from_numpy(model.head.counts.probabilities(histories))


@pytest.mark.parametrize("head", ["dense", "shortlist", "grouped", "adaptive", "sampled", "trim"])
@pytest.mark.parametrize("mix", ["weight", "gate"])
def test_the_loss_is_minus_log_p_of_the_mixture(head, mix):
    model = mixed_model(head, mix)
    with torch.no_grad():
        own, counts = literal(model)
        log_prob = model.head.log_prob(model.hidden(IDS))
        torch.testing.assert_close(log_prob.exp().sum(-1), torch.ones(2, 12).double(), atol=1e-6, rtol=0)
        targets = TARGETS.clone()
        targets[1, 3] = IGNORE_INDEX
        loss = model(IDS, targets, reduction="none")
        mean = model(IDS, targets).nll
    picked = TARGETS.view(-1, 1)
    share = loss.prior_share.view(-1, 1).double()
    share[15] = 0.5  # where the target is ignored there is none
    if mix == "weight":
        assert torch.allclose(share[:15], torch.tensor(0.3).double())
    expected = (1 - share) * own + share * counts
    counted = targets.view(-1) != IGNORE_INDEX
    torch.testing.assert_close(log_prob.flatten(0, 1).exp()[counted], expected[counted], atol=1e-6, rtol=0)
    one = 0.7 * own + 0.3 * counts
    for values, prob in ((loss.nll, expected), (loss.head_nll, own), (loss.prior_nll, counts), (loss.weight_nll, one)):
        nll = -prob.gather(1, picked).log().squeeze(1) * counted
        torch.testing.assert_close(values.view(-1).double(), nll, atol=1e-5, rtol=0)
    assert float(mean) == pytest.approx(float(loss.nll.sum() / 23), rel=1e-6)


@pytest.mark.parametrize("order", [2, 3, 4, 5])
def test_probabilities_sum_to_one(order):
    model = mixed_model("shortlist", order=order)
    with torch.no_grad():
        prob = model.head.log_prob(model.hidden(IDS)).exp()
    torch.testing.assert_close(prob.sum(-1), torch.ones(2, 12).double(), atol=1e-6, rtol=0)


def test_the_cache_gives_the_same_contexts():
    model, cache = mixed_model(), KVCache(1, 16)
    with torch.no_grad():
        whole = model.hidden(IDS)
        pieces = torch.cat([model.hidden(IDS[:, a:b], cache) for a, b in ((0, 2), (2, 3), (3, 9), (9, 12))], dim=1)
        torch.testing.assert_close(pieces, whole)
        cache.select(torch.tensor([1]))
        assert cache.recent.tolist() == IDS[1:, -3:].tolist()


@pytest.mark.parametrize("mix", ["weight", "gate"])
@pytest.mark.parametrize("truncation", [Truncation(), Truncation(top_k=4), Truncation(top_p=0.8)])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_draws_follow_the_mixture(mix, truncation, temperature):
    model = mixed_model("shortlist", mix)
    with torch.no_grad():
        hidden = model.hidden(IDS)[0, 5:6]
        prob = model.head.log_prob(hidden).exp()[0]
        generator = torch.Generator().manual_seed(1)
        options = {"temperature": temperature, "truncation": truncation, "num_samples": 20_000}
        draws = model.head.sample(hidden, generator, **options)[0]
        assert int(model.head.sample(hidden, generator, temperature=0.0)) == int(prob.argmax())
        assert model.head.topk(hidden, 3).ids[0].tolist() == prob.topk(3).indices.tolist()
    order = prob.argsort(descending=True)
    before = prob[order].cumsum(0) - prob[order]
    kept = order[: truncation.top_k][(before < truncation.top_p)[: truncation.top_k]]
    expected = torch.zeros_like(prob)
    expected[kept] = prob[kept] ** (1 / temperature)
    expected = (expected / expected.sum() * len(draws)).numpy()
    observed = np.bincount(draws.numpy(), minlength=VOCAB)
    assert not observed[expected == 0].any()
    assert stats.chisquare(observed[expected > 0], expected[expected > 0]).pvalue > 0.001


def test_the_gate_is_trained_alone_and_on_counts_without_the_target():
    model = mixed_model()
    hidden, targets = model.hidden(IDS).flatten(0, 1), TARGETS.flatten()
    loss = model.head.gate_loss(hidden.detach(), targets)
    loss.backward()
    assert all(p.grad is not None for p in model.head.gate.parameters())
    assert all(p.grad is None for p in [*model.body.parameters(), *model.head.head.parameters()])
    counts, expected = model.head.counts, []
    with torch.no_grad():
        own, _ = literal(model)
        for row in range(2):
            for place in range(12):
                context = IDS[row, max(0, place - 2) : place + 1].tolist()
                if EOT not in context and len(context) < 3:
                    continue  # the window does not say which counts the token has
                at = 12 * row + place
                left_out = counts.text_contexts(TEXT, at + 1, at + 2, leave_one_out=True)
                states, features = model.body(IDS)[row, place : place + 1], model.head.log_shares
                share = float(features(states, left_out)[1].exp())
                p_counts = counts.probabilities(left_out)[0, int(TARGETS[row, place])]
                expected.append(-np.log((1 - share) * float(own[at, TARGETS[row, place]]) + share * p_counts))
    assert 12 < len(expected) < 24
    assert loss.item() == pytest.approx(np.mean(expected), abs=1e-5)


def test_a_gate_sees_finite_numbers_of_pruned_counts():
    counts = build_kneser_ney(TEXT, VOCAB, EOT, 5, (1, 1, 2, 2, 2))  # prior.min_count=2
    contexts = counts.text_contexts(TEXT, leave_one_out=True)
    features = context_features(counts, contexts)
    assert (contexts.nodes[1:] < 0).any()
    assert np.isfinite(features).all()
    assert features.min() >= 0


def test_a_loss_that_is_not_finite_leaves_the_gate_alone():
    model = mixed_model()
    hidden = model.hidden(IDS).flatten(0, 1).detach()
    hidden[:, 0] = float("nan")
    model.head.gate_loss(hidden, TARGETS.flatten()).backward()
    assert all(bool((p.grad == 0).all()) for p in model.head.gate.parameters())


def test_a_prior_is_no_head_of_its_own():
    with pytest.raises(ConfigError, match="choose prior=kneser_ney"):
        PriorHead.build(None, None)
