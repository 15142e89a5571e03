"""Groupings by the training text: partitions of the promised sizes, that put together what belongs together."""

import math

import numpy as np
import pytest
import torch
from head_cases import plain_shortlist

from grouped_lm.errors import ConfigError
from grouped_lm.grouping import GROUPINGS, build_grouping, group_members
from grouped_lm.grouping.clusters import assign_within, brown_clusters, count_pairs, kmeans_clusters
from grouped_lm.heads import ClassFullConfig, GroupedConfig, build_head


def text_of_two_kinds(number: int = 20_000) -> np.ndarray:
    """Ids 0-9 and 10-19 take turns, each chosen by chance: only what stands beside an id tells its kind."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 10, number) + 10 * (np.arange(number) % 2)


def build(name: str, vocab_size: int, group_size: int | None = None, seen: int | None = None, equal: bool = True):
    rng = np.random.default_rng(1)
    tokens = rng.zipf(1.3, 3_000) % (seen or vocab_size)
    counts = torch.from_numpy(np.bincount(tokens, minlength=vocab_size))
    return build_grouping(name, vocab_size, group_size, counts, lambda: tokens, equal_sizes=equal), counts


@pytest.mark.parametrize("name", GROUPINGS)
@pytest.mark.parametrize(
    ("vocab_size", "group_size"), [(300, None), (103, 7), (10, 3), (9, 1), (5, 5), (1, 1), (100_003, None)]
)
def test_every_grouping_is_a_partition(name, vocab_size, group_size):
    grouping, _ = build(name, vocab_size, group_size)
    size = group_size or round(math.sqrt(vocab_size))
    table = group_members(grouping.token_to_group, grouping.token_to_slot, grouping.n_group, grouping.group_size)
    assert sorted(table[table >= 0].tolist()) == list(range(vocab_size))
    assert (table[:, 0] >= 0).all()  # no group is empty, and slots are filled from the first on
    assert grouping.group_size == (table >= 0).sum(1).max()
    if name != "sqrt_frequency":
        assert grouping.group_size <= size
        assert grouping.n_group == math.ceil(vocab_size / size)
    assert grouping.fingerprint() == build(name, vocab_size, group_size)[0].fingerprint()


@pytest.mark.parametrize("name", ["kmeans", "brown"])
@pytest.mark.parametrize(("vocab_size", "group_size"), [(300, None), (103, 7), (9, 1), (5, 5), (1, 1)])
def test_what_never_occurs_may_stand_apart(name, vocab_size, group_size):
    grouping, counts = build(name, vocab_size, group_size, seen=math.ceil(vocab_size / 3), equal=False)
    size = group_size or round(math.sqrt(vocab_size))
    table = group_members(grouping.token_to_group, grouping.token_to_slot, grouping.n_group, grouping.group_size)
    assert sorted(table[table >= 0].tolist()) == list(range(vocab_size))
    assert grouping.group_size <= size
    occurs = counts > 0
    assert not set(grouping.token_to_group[occurs].tolist()) & set(grouping.token_to_group[~occurs].tolist())
    even = math.ceil(int(occurs.sum()) / math.ceil(vocab_size / size))
    assert torch.bincount(grouping.token_to_group[occurs]).max() <= min(size, 2 * even)


def test_a_million_tokens():
    for name in GROUPINGS:
        grouping, _ = build(name, 1_000_000, seen=500)
        assert grouping.vocab_size == 1_000_000
        assert abs(grouping.n_group - 1_000) <= 1


def test_equal_shares_of_the_root_of_the_count():
    grouping, counts = build("sqrt_frequency", 1_000, 25)
    share = torch.zeros(grouping.n_group, dtype=torch.float64)
    share.index_add_(0, grouping.token_to_group, (counts + 1).double().sqrt())
    target = (counts + 1).double().sqrt().sum() / 40
    single = torch.bincount(grouping.token_to_group) == 1
    assert ((share - target).abs() <= target)[~single].all()
    sizes = torch.bincount(grouping.token_to_group)
    assert sizes[0] < sizes[-1]
    order = torch.argsort(grouping.token_to_group * 10_000 + grouping.token_to_slot)
    assert (counts[order].diff() <= 0).all()


@pytest.mark.parametrize("cluster", [brown_clusters, kmeans_clusters])
def test_words_of_a_kind_share_a_cluster(cluster):
    clusters = cluster(text_of_two_kinds(), np.arange(20), 20, np.array([12, 12]))
    assert len(set(clusters[:10])) == len(set(clusters[10:])) == 1
    assert clusters[0] != clusters[10]


@pytest.mark.parametrize("name", ["kmeans", "brown"])
def test_tokens_that_occur_are_spread_over_all_groups(name):
    grouping, counts = build(name, 1_000, 50, seen=200)
    per_group = torch.bincount(grouping.token_to_group[counts > 0], minlength=20)
    assert per_group.max() <= 2 * math.ceil(int((counts > 0).sum()) / 20)


def test_pairs_are_counted_on_either_side():
    tokens = np.array([1, 2, 1, 2, 3, 3])
    before = count_pairs(tokens, np.array([2, 3]), 5)
    found = dict(zip(zip(before.words, before.contexts, strict=True), before.counts, strict=True))
    assert found == {(0, 0): 2, (1, 1): 1, (1, 2): 1}  # contexts by count, ties by id: 1, 2, 3
    after = count_pairs(tokens, np.array([2, 3]), 5, distance=-1)
    assert dict(zip(zip(after.words, after.contexts, strict=True), after.counts, strict=True)) == {
        (0, 0): 1,
        (0, 2): 1,
        (1, 2): 1,
    }


def test_full_clusters_send_words_on():
    similarity = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]])
    assert assign_within(similarity, np.array([2, 1])).tolist() == [0, 0, 1]
    assert assign_within(similarity, np.array([1, 2])).tolist() == [0, 1, 1]


def test_brown_groups_are_more_predictable_than_random_ones():
    tokens = text_of_two_kinds()
    counts = torch.from_numpy(np.bincount(tokens, minlength=20))
    grouping = build_grouping("brown", 20, 10, counts, lambda: tokens)
    groups = grouping.token_to_group.numpy()[tokens]
    assert (groups[1:] != groups[:-1]).all()  # the two kinds take turns


def test_text_and_counts_are_asked_for():
    with pytest.raises(ConfigError, match="grouping=brown needs the token counts"):
        build_grouping("brown", 10)
    with pytest.raises(ConfigError, match="grouping=kmeans needs the training text"):
        build_grouping("kmeans", 10, counts=torch.ones(10))
    with pytest.raises(ConfigError, match=r"counts must have shape \(10,\), one number per token, got \(3,\)"):
        build_grouping("frequency", 10, counts=torch.ones(3))
    with pytest.raises(ConfigError, match="vocab_size must be 1 or more, got 0"):
        build_grouping("merge_rank", 0)


@pytest.mark.parametrize(
    "config",
    [
        ClassFullConfig(tied=False, group_size=7),
        GroupedConfig(group_size=7),
        plain_shortlist(tied=False, group_size=7, shortlist_size=9),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["sqrt_frequency", "kmeans", "brown"])
def test_heads_stay_exact_and_are_loaded_without_the_text(config, name):
    tokens = np.random.default_rng(0).zipf(1.3, 2_000) % 103
    counts = torch.from_numpy(np.bincount(tokens, minlength=103))
    head = build_head(config, 6, 103, name, counts, tokens=lambda: tokens).double()
    hidden, targets = torch.randn(40, 6, dtype=torch.float64), torch.arange(40)
    log_prob = head.log_prob(hidden)
    assert log_prob.exp().sum(-1).sub(1).abs().max() < 1e-12
    torch.testing.assert_close(head.loss(hidden, targets, reduction="none").nll, -log_prob.diagonal())
    fresh = build_head(config, 6, 103, name, counts * 0, saved=head.state_dict()).double()
    fresh.load_state_dict(head.state_dict())
    fresh.after_load()
    torch.testing.assert_close(fresh.log_prob(hidden), log_prob)


@pytest.mark.parametrize("name", ["brown", "kmeans"])
def test_tokens_that_never_occur_are_apart_also_where_rare_ones_are_not_clustered(name, monkeypatch):
    monkeypatch.setattr("grouped_lm.grouping.clusters.MAX_WORDS", 40)
    grouping, counts = build(name, 300, 10, seen=200, equal=False)
    assert 40 < (counts > 0).sum() < 250
    kinds = {(int(group), bool(count)) for group, count in zip(grouping.token_to_group, counts, strict=True)}
    assert len(kinds) == grouping.n_group  # each group has one kind of token
