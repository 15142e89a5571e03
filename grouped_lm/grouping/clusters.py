"""Which tokens are alike, from what stands beside them in the training text: clusters of nearly equal size.

Letters: n words that are clustered, C contexts, G groups, m pairs of a context and a word.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

MAX_TOKENS = 20_000_000
"""Tokens of the text that are read, from its start."""
MAX_WORDS = 20_000
"""Most frequent tokens that are clustered; rarer ones say too little about themselves, and fill up by id."""
MAX_CONTEXTS = 1_000
"""Most frequent neighbours that are told apart; all others are one more."""
SWEEPS = 8
"""Passes of the exchange and of k-means: on 580,000 tokens of TinyStories the last one moves under 2 % of the words."""
STRICT = 2
"""Last passes of the exchange that hold the limits; before, twice as much fits, so that words can pass each other."""
FEATURES = 64
"""Dimensions of the random projection for k-means."""


@dataclass(frozen=True)
class Pairs:
    """How often each context stands beside each word: m entries, sorted by word."""

    contexts: np.ndarray
    """(m,) in [0, C]; C is every other token."""
    words: np.ndarray
    """(m,) in [0, n)."""
    counts: np.ndarray
    """(m,) fp64, above 0."""

    def of_word(self, number: int) -> list[slice]:
        """Return where the entries of each of `number` words lie."""
        edges = np.searchsorted(self.words, np.arange(number + 1))
        return [slice(a, b) for a, b in pairwise(edges)]


def count_pairs(tokens: np.ndarray, words: np.ndarray, vocab_size: int, distance: int = 1) -> Pairs:
    """Count the neighbours of `words`.

    Args:
        tokens: (T,) ids of a text.
        words: (n,) distinct ids.
        vocab_size: V, above every id.
        distance: 1 counts what stands before a word, -1 what stands after it.
    """
    tokens = np.asarray(tokens[:MAX_TOKENS], dtype=np.int64)
    contexts = np.argsort(-np.bincount(tokens, minlength=vocab_size), kind="stable")[:MAX_CONTEXTS]
    context_of = np.full(vocab_size, len(contexts))
    context_of[contexts] = np.arange(len(contexts))
    word_of = np.full(vocab_size, -1)
    word_of[words] = np.arange(len(words))
    first, second = tokens[:-1], tokens[1:]
    beside, word = (first, second) if distance == 1 else (second, first)
    inside = word_of[word] >= 0
    keys = word_of[word[inside]] * (MAX_CONTEXTS + 1) + context_of[beside[inside]]
    found, counts = np.unique(keys, return_counts=True)
    return Pairs(found % (MAX_CONTEXTS + 1), found // (MAX_CONTEXTS + 1), counts.astype(np.float64))


def brown_clusters(tokens: np.ndarray, words: np.ndarray, vocab_size: int, room: np.ndarray) -> np.ndarray:
    """Return the (n,) cluster of each word, by exchange: each goes to where the text gets likeliest, again and again.

    The likelihood is that of p(cluster | word before) p(word | cluster), a head's own two steps with one word of
    context: sum_vc N(v, c) log N(v, c) - sum_c N(c) log N(c). Source: predictive exchange clustering (Uszkoreit and
    Brants 2008), of the family of Brown et al. 1992, with a limit to each cluster's size.

    Args:
        tokens: (T,) ids of a text.
        words: (n,) distinct ids, the most frequent first: the first come first to their places.
        vocab_size: V.
        room: (G,) most words in each cluster; n in all at least.
    """
    pairs = count_pairs(tokens, words, vocab_size)
    entries = pairs.of_word(len(words))
    beside, total = np.zeros((MAX_CONTEXTS + 1, len(room))), np.zeros(len(room))
    clusters, sizes = np.full(len(words), -1), np.zeros_like(room)
    for sweep in range(SWEEPS):
        strict = sweep >= SWEEPS - STRICT
        limit = room if strict else 2 * room
        for word in range(len(words))[:: -1 if strict else 1]:  # the rarest leave a full cluster first
            at, counts = pairs.contexts[entries[word]], pairs.counts[entries[word]]
            own = counts.sum()
            if sweep:
                beside[at, clusters[word]] -= counts
                total[clusters[word]] -= own
                sizes[clusters[word]] -= 1
            gain = _gain(beside[at], counts[:, None]).sum(0) - _gain(total, own)
            best = int(np.where(sizes < limit, gain, -np.inf).argmax())
            clusters[word] = best
            beside[at, best] += counts
            total[best] += own
            sizes[best] += 1
    return clusters


def _gain(have: np.ndarray, more: np.ndarray | float) -> np.ndarray:
    """Return f(have + more) - f(have) with f(x) = x log x, f(0) = 0."""
    after = have + more
    return after * np.log(np.maximum(after, 1e-300)) - have * np.log(np.maximum(have, 1e-300))


def kmeans_clusters(
    tokens: np.ndarray, words: np.ndarray, vocab_size: int, room: np.ndarray, seed: int = 0
) -> np.ndarray:
    """Return the (n,) cluster of each word, by k-means of limited sizes over what stands before and after it.

    Words are unit vectors: positive pointwise mutual information with every context on either side, projected to
    `FEATURES` random directions.

    Args:
        tokens, words, vocab_size, room: see `brown_clusters`.
        seed: of the projection and of the first centres.
    """
    rng, n_group = np.random.default_rng(seed), len(room)
    sides = [count_pairs(tokens, words, vocab_size, distance) for distance in (1, -1)]
    points = sum(_information(pairs, len(words)) @ rng.standard_normal((MAX_CONTEXTS + 1, FEATURES)) for pairs in sides)
    points /= np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-12)
    centres = points[rng.permutation(max(len(words), n_group))[:n_group] % len(words)]
    for _ in range(SWEEPS):
        clusters = assign_within(np.round(points @ centres.T, 6), room)  # so that no last bit decides
        centres = np.zeros_like(centres)
        np.add.at(centres, clusters, points)
        centres /= np.maximum(np.linalg.norm(centres, axis=1, keepdims=True), 1e-12)
    return clusters


def _information(pairs: Pairs, number: int) -> np.ndarray:
    """Return the (n, C + 1) positive pointwise mutual information of words and contexts."""
    table = np.zeros((number, MAX_CONTEXTS + 1), dtype=np.float32)
    table[pairs.words, pairs.contexts] = pairs.counts
    expected = table.sum(1, keepdims=True) * table.sum(0, keepdims=True) / max(1.0, float(table.sum()))
    return np.log(np.maximum(table, 1e-9) / np.maximum(expected, 1e-9)).clip(min=0)


def assign_within(similarity: np.ndarray, room: np.ndarray) -> np.ndarray:
    """Return the (n,) cluster of each word: every full cluster keeps those nearest to it, the others look further.

    Args:
        similarity: (n, G).
        room: (G,) most words in each cluster; n in all at least.
    """
    clusters, room = np.full(len(similarity), -1), room.copy()
    waiting = np.arange(len(similarity))
    while len(waiting):
        open_only = np.where(room > 0, similarity[waiting], -np.inf)
        best = open_only.argmax(1)
        order = np.lexsort((waiting, -open_only.max(1), best))  # by cluster, the nearest first
        sorted_best = best[order]
        place = np.arange(len(order)) - np.searchsorted(sorted_best, sorted_best)
        taken = order[place < room[sorted_best]]
        clusters[waiting[taken]] = best[taken]
        room -= np.bincount(best[taken], minlength=len(room))
        waiting = np.delete(waiting, taken)
    return clusters
