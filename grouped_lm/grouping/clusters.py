"""Context clusters: groups of tokens that have similar neighbours in the training text, of nearly equal size.

Letters: n words (the tokens that are clustered), C contexts, G groups, m pairs of a context and a word, V vocabulary,
T tokens of the text.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from grouped_lm.config import GroupingConfig
from grouped_lm.grouping.partition import Grouping, GroupingInputs, SeededConfig, group_by_labels, order_by_frequency

Array = np.ndarray[Any, Any]

MAX_TOKENS = 20_000_000
"""The text is read from its start up to this number of tokens."""
MAX_WORDS = 50_000
"""Number of most frequent tokens that are clustered. Rarer tokens are placed by id."""
MAX_CONTEXTS = 1_000
"""Number of most frequent neighbours that are distinguished. All others count as one more."""
SWEEPS = 8
"""Passes of the exchange and of k-means: on 580,000 tokens of TinyStories the last one moves under 2 % of the words."""
STRICT = 2
"""Last passes of the exchange that respect the capacities. Before, twice as much fits: words can swap places."""
FEATURES = 64
"""Dimensions of the random projection for k-means."""


def by_brown_clusters(_: GroupingConfig, inputs: GroupingInputs) -> Grouping:
    """Return groups by exchange clustering: tokens that follow the same words share a group."""
    return group_by_clusters(inputs, brown_clusters)


def by_kmeans_clusters(config: SeededConfig, inputs: GroupingInputs) -> Grouping:
    """Return groups by k-means: tokens with the same words before and after them share a group."""
    return group_by_clusters(inputs, functools.partial(kmeans_clusters, seed=config.seed))


def group_by_clusters(inputs: GroupingInputs, cluster: Callable[[Array, Array, int, Array], Array]) -> Grouping:
    """Return a grouping of clusters of the tokens that occur, at most `MAX_WORDS`; all other tokens are placed by id.

    There are ceil(V / S) clusters. A cluster has at most twice its even share of the tokens that occur, so that the
    softmax inside groups has work in all of them. With `equal_sizes` the other tokens fill the clusters up, and group
    sizes differ by at most one. Otherwise they get groups of their own, and the softmax inside clusters is short. Then
    no group has both tokens that occur and tokens that do not.

    Args:
        inputs: counts and text are needed.
        cluster: returns (n,) clusters from the (T,) text, (n,) ids of words, the most frequent first, the vocabulary
            size of the text, and (G,) largest numbers of words, of sum n or more.
    """
    counts, ids, text, size = inputs.counts, inputs.ids, inputs.text, inputs.group_size
    vocab_size, order = counts.numel(), order_by_frequency(counts)
    n_group = math.ceil(vocab_size / size)
    n_seen = int((counts > 0).sum())
    words, rare, unseen = order.tensor_split([min(MAX_WORDS, n_seen), n_seen])
    sizes = np.full(n_group, vocab_size // n_group if inputs.equal_sizes else size)
    if inputs.equal_sizes:
        sizes[: vocab_size % n_group] += 1
    capacity = np.minimum(sizes, 2 * math.ceil(words.numel() / n_group))
    clusters: Array = np.empty(0, dtype=np.int64)
    if words.numel():
        text_vocab_size = max(int(ids.max()), int(text.max(initial=0))) + 1
        clusters = cluster(text, ids[words].numpy(), text_vocab_size, capacity)
    if inputs.equal_sizes:
        others = torch.cat([rare, unseen]).sort().values
        rest = np.repeat(np.arange(n_group), sizes - np.bincount(clusters, minlength=n_group))
    else:
        others, n_rare = torch.cat([rare.sort().values, unseen.sort().values]), math.ceil(rare.numel() / size)
        parts = np.arange(rare.numel()) // size, n_rare + np.arange(unseen.numel()) // size
        rest = n_group + np.concatenate(parts)
    labels = torch.from_numpy(np.concatenate([clusters, rest]))
    return group_by_labels(torch.cat([words, others]), torch.unique(labels, return_inverse=True)[1])


@dataclass(frozen=True)
class Pairs:
    """The number of times that each context is next to each word: m entries, sorted by word."""

    contexts: Array  # (m,) in [0, C]; C means any other token
    words: Array  # (m,) in [0, n)
    counts: Array  # (m,) fp64, above 0


def count_pairs(tokens: Array, words: Array, vocab_size: int, distance: int = 1) -> Pairs:
    """Return how often each context is next to each word: before it for distance 1, after it for -1."""
    tokens = np.asarray(tokens[:MAX_TOKENS], dtype=np.int64)
    contexts = np.argsort(-np.bincount(tokens, minlength=vocab_size), kind="stable")[:MAX_CONTEXTS]
    context_of = np.full(vocab_size, len(contexts))
    context_of[contexts] = np.arange(len(contexts))
    word_of = np.full(vocab_size, -1)
    word_of[words] = np.arange(len(words))
    first, second = tokens[:-1], tokens[1:]
    neighbour, word = (first, second) if distance == 1 else (second, first)
    inside = word_of[word] >= 0
    keys = word_of[word[inside]] * (MAX_CONTEXTS + 1) + context_of[neighbour[inside]]
    distinct, counts = np.unique(keys, return_counts=True)
    return Pairs(distinct % (MAX_CONTEXTS + 1), distinct // (MAX_CONTEXTS + 1), counts.astype(np.float64))


def brown_clusters(tokens: Array, words: Array, vocab_size: int, capacity: Array) -> Array:
    """Return the (n,) cluster of each word by exchange: each word moves to the cluster that makes the text likeliest.

    The likelihood is that of p(cluster | word before) p(word | cluster): the two steps of a head, with one word of
    context. It is sum_vc N(v, c) log N(v, c) - sum_c N(c) log N(c). Source: predictive exchange clustering (Uszkoreit
    and Brants 2008), a relative of Brown et al. 1992, here with a capacity for each cluster. The arguments are those of
    `cluster` in `group_by_clusters`. The first words choose their clusters first.
    """
    pairs = count_pairs(tokens, words, vocab_size)
    edges = np.searchsorted(pairs.words, np.arange(len(words) + 1))  # of the entries of each word
    joint, total = np.zeros((MAX_CONTEXTS + 1, len(capacity))), np.zeros(len(capacity))
    clusters, sizes = np.full(len(words), -1), np.zeros_like(capacity)
    for sweep in range(SWEEPS):
        strict = sweep >= SWEEPS - STRICT
        limit = capacity if strict else 2 * capacity
        for word in range(len(words))[:: -1 if strict else 1]:  # the rarest words leave a full cluster first
            entries = slice(edges[word], edges[word + 1])
            contexts, counts = pairs.contexts[entries], pairs.counts[entries]
            own = counts.sum()
            if sweep:
                joint[contexts, clusters[word]] -= counts
                total[clusters[word]] -= own
                sizes[clusters[word]] -= 1
            gain = _gain(joint[contexts], counts[:, None]).sum(0) - _gain(total, own)
            best = int(np.where(sizes < limit, gain, -np.inf).argmax())
            clusters[word] = best
            joint[contexts, best] += counts
            total[best] += own
            sizes[best] += 1
    return clusters


def _gain(before: Array, added: Array | float) -> Array:
    """Return f(before + added) - f(before) with f(x) = x log x, f(0) = 0."""
    after: Array = before + added
    gain: Array = after * np.log(np.maximum(after, 1e-300)) - before * np.log(np.maximum(before, 1e-300))
    return gain


def kmeans_clusters(tokens: Array, words: Array, vocab_size: int, capacity: Array, seed: int = 0) -> Array:
    """Return the (n,) cluster of each word by k-means with capacities, from the tokens before and after it.

    Words are unit vectors: the positive pointwise mutual information with every context on either side, projected to
    `FEATURES` random directions. `seed` is that of the projection and of the first centres; the other arguments are
    those of `cluster` in `group_by_clusters`.
    """
    rng, n_group = np.random.default_rng(seed), len(capacity)
    sides = [count_pairs(tokens, words, vocab_size, distance) for distance in (1, -1)]
    points: Array = np.sum(
        [_mutual_information(pairs, len(words)) @ rng.standard_normal((MAX_CONTEXTS + 1, FEATURES)) for pairs in sides],
        axis=0,
    )
    points /= np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-12)
    centres = points[rng.permutation(max(len(words), n_group))[:n_group] % len(words)]
    for _ in range(SWEEPS):
        clusters = assign_within(np.round(points @ centres.T, 6), capacity)  # rounded: no last bit may decide
        centres = np.zeros_like(centres)
        np.add.at(centres, clusters, points)
        centres /= np.maximum(np.linalg.norm(centres, axis=1, keepdims=True), 1e-12)
    return clusters


def _mutual_information(pairs: Pairs, n_word: int) -> Array:
    """Return the (n, C + 1) positive pointwise mutual information of words and contexts."""
    table = np.zeros((n_word, MAX_CONTEXTS + 1), dtype=np.float32)
    table[pairs.words, pairs.contexts] = pairs.counts
    expected = table.sum(1, keepdims=True) * table.sum(0, keepdims=True) / max(1.0, float(table.sum()))
    information: Array = np.log(np.maximum(table, 1e-9) / np.maximum(expected, 1e-9)).clip(min=0)
    return information


def assign_within(similarity: Array, capacity: Array) -> Array:
    """Return the (n,) cluster of each word from its (n, G) similarities.

    A full cluster keeps its nearest words, the others take their next choice.
    """
    clusters, left = np.full(len(similarity), -1), capacity.copy()
    waiting = np.arange(len(similarity))
    while len(waiting):
        open_only = np.where(left > 0, similarity[waiting], -np.inf)
        best = open_only.argmax(1)
        order = np.lexsort((waiting, -open_only.max(1), best))  # by cluster, the nearest first
        sorted_best = best[order]
        place = np.arange(len(order)) - np.searchsorted(sorted_best, sorted_best)
        taken = order[place < left[sorted_best]]
        clusters[waiting[taken]] = best[taken]
        left -= np.bincount(best[taken], minlength=len(left))
        waiting = np.delete(waiting, taken)
    return clusters
