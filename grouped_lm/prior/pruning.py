"""A smaller n-gram model: n-grams with a small count are dropped, and the model still sums to 1."""

from collections.abc import Sequence

import numpy as np

from grouped_lm.prior.counting import NGrams
from grouped_lm.prior.levels import Level, sum_by_context


def prune_levels(levels: Sequence[Level], min_counts: Sequence[int]) -> list[Level]:
    """Return the levels without the n-grams whose count is below the smallest count of their length.

    The whole count of a dropped n-gram goes to the shorter contexts, as its discount did before. An n-gram that is the
    context of a kept one stays as a node with count 0. Totals and discounts stay those of the whole model.

    Args:
        levels: One for each length, shortest first; not pruned before.
        min_counts: Smallest count that is kept, for each length.
    """
    kept = _kept_ngrams(levels, min_counts)
    pruned = []
    for length, (level, smallest) in enumerate(zip(levels, min_counts, strict=True)):
        contexts = kept[length - 1] if length else np.ones(1, bool)
        pruned.append(_prune_level(level, smallest, kept[length], contexts))
    return pruned


def _kept_ngrams(levels: Sequence[Level], min_counts: Sequence[int]) -> list[np.ndarray]:
    """Return for each level which n-grams stay: those with enough counts, and contexts of longer ones that stay."""
    kept = [level.ngrams.counts >= smallest for level, smallest in zip(levels, min_counts, strict=True)]
    kept[0][:] = True  # the node of a single token is its id
    for length in range(len(levels) - 1, 1, -1):
        kept[length - 1] |= sum_by_context(kept[length], levels[length].ngrams.offsets, np.int64) > 0
    return kept


def _prune_level(level: Level, smallest: int, kept: np.ndarray, kept_contexts: np.ndarray) -> Level:
    words, counts, offsets = level.ngrams.words, level.ngrams.counts, level.ngrams.offsets
    small = counts < smallest
    given_up = sum_by_context(np.where(small, level.mass(counts), 0.0), offsets, np.float64)
    rows_before = np.concatenate([[0], np.cumsum(kept)])
    starts = rows_before[offsets[:-1]][kept_contexts]  # a dropped context has no n-gram that stays
    ngrams = NGrams(
        words[kept],
        np.where(small, 0, counts)[kept].astype(counts.dtype),
        np.append(starts, rows_before[-1]).astype(offsets.dtype),
    )
    reserved = (level.reserved + given_up)[kept_contexts]
    return Level(ngrams, level.totals[kept_contexts], reserved, level.discounts)
