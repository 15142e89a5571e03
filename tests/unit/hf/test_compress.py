"""A compressed head on a model of transformers starts near it, and its exact loss is that of its own logits."""

import pytest
import torch
import torch.nn.functional as F
from head_cases import plain_shortlist

import grouped_lm
from grouped_lm.errors import ConfigError
from grouped_lm.heads import AdaptiveConfig, ClassFullConfig, FilmConfig, GroupedConfig, ShortlistConfig

transformers = pytest.importorskip("transformers")
V, D = 211, 16


def small_gpt2(tied: bool = True, scale: float = 8.0):
    """Random rows have nothing in common that a low rank could use: a hard case for film and grouped."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=V,
        n_embd=D,
        n_layer=2,
        n_head=2,
        n_positions=32,
        tie_word_embeddings=tied,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(scale)
    return model


def kl(model, before: torch.Tensor, ids: torch.Tensor) -> float:
    after = model(ids).logits.log_softmax(-1)
    return (before.exp() * (before - after)).sum(-1).mean().item()


@pytest.mark.parametrize(
    ("head", "near"),
    [
        (plain_shortlist(shortlist_size=211), 1e-5),
        (ClassFullConfig(group_size=1), 1e-5),
        (ClassFullConfig(), 0.04),
        (None, 0.04),  # the default head
        (ShortlistConfig(shortlist_size=50), 0.04),
        (plain_shortlist(shortlist_size=50, directions=2), 0.04),
        (plain_shortlist(shortlist_size=50, own_shortlist=True), 0.04),
        (FilmConfig(), 0.75),
        (GroupedConfig(), 0.75),
    ],
    ids=str,
)
@torch.no_grad()
def test_it_starts_near_the_model(head, near):
    model, ids = small_gpt2(), torch.randint(V, (8, 32))
    before = model(ids).logits.log_softmax(-1)
    uniform = (before.exp() * before).sum(-1).mean().item() + torch.tensor(float(V)).log().item()
    compressed = grouped_lm.compress(model, head, input_ids=ids)
    assert kl(model, before, ids) < near * uniform
    logits = model(ids).logits
    torch.testing.assert_close(logits.exp().sum(-1), torch.ones(8, 32))
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(compressed(ids, ids).nll, expected)
    greedy = model.generate(ids[:1, :5], max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert greedy[0, 5] == logits[0, 4].argmax()


@pytest.mark.parametrize("head", [FilmConfig(), ClassFullConfig(tied=False)], ids=str)
def test_distillation_brings_it_nearer(head):
    ids, found = torch.randint(V, (8, 32), generator=torch.Generator().manual_seed(0)), []
    for steps in (0, 60):
        model = small_gpt2(scale=20.0)
        with torch.no_grad():
            before = model(ids).logits.log_softmax(-1)
            rows = model.transformer.wte.weight.clone()
        grouped_lm.compress(model, head, input_ids=ids, distill_steps=steps, lr=1e-2)
        with torch.no_grad():
            found.append(kl(model, before, ids))
        assert torch.equal(model.transformer.wte.weight, rows)
    assert found[1] < 0.92 * found[0]


@pytest.mark.parametrize("tied", [True, False])
def test_it_can_be_trained_from_random_tokens_alone(tied):
    compressed = grouped_lm.compress(small_gpt2(tied))
    ids = torch.randint(V, (2, 32))
    optimizer = torch.optim.AdamW(compressed.parameters(), lr=1e-2)
    losses = []
    for _ in range(5):
        loss = compressed(ids, ids).nll
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_what_cannot_be_compressed():
    with pytest.raises(ConfigError, match="AdaptiveHead cannot be fitted"):
        grouped_lm.compress(small_gpt2(), AdaptiveConfig())
    model = small_gpt2()
    grouped_lm.compress(model)
    with pytest.raises(ConfigError, match="only a linear output layer"):
        grouped_lm.compress(model)


@pytest.mark.parametrize("head", ["shortlist", "class_full", "grouped"])
def test_groups_are_made_by_frequency_where_counts_are_given(head):
    counts = torch.randperm(V, generator=torch.Generator().manual_seed(0))
    found, wanted, by_id = (
        grouped_lm.compress(small_gpt2(), head, counts=own, grouping=grouping).head.token_to_group
        for own, grouping in ((counts, None), (counts, "frequency"), (counts, "merge_rank"))
    )
    assert torch.equal(found, wanted)
    assert not torch.equal(found, by_id)
