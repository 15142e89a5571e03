"""Does the order of merges follow frequency? The paper's premise, counted on a text."""

import math
from typing import Any

import numpy as np
from scipy import stats

FIRST = 2_048
"""Ids whose share of the tokens is counted: as many as a shortlist has."""


def measure_merge_order(counts: np.ndarray, first: int = FIRST) -> dict[str, Any]:
    """Return how well ids, in their own order, are sorted by count.

    Args:
        counts: (V,) occurrences of every id; end-of-text is best left at 0, which is no merge.
        first: ids from 0 on whose share of the tokens is held against that of as many most frequent ones, in [1, V].

    Returns:
        `unigram_nats`, the entropy of a token drawn by its count: what a model that knows nothing else loses, in nats;
        Spearman's correlation of id and rarity over the ids that occur, in [-1, 1] (1: the lower the id, the more
        frequent), and its 95 % interval by Fisher's z with the variance 1.06 / (n - 3) (Fieller et al. 1957); shares
        in [0, 1].
    """
    seen = np.flatnonzero(counts)
    figures: dict[str, Any] = {"vocab_size": len(counts), "ids": len(seen), "tokens": int(counts.sum()), "first": first}
    correlation, low, high = 0.0, -1.0, 1.0
    if len(seen) > 3 and len(np.unique(counts[seen])) > 1:
        correlation = float(stats.spearmanr(seen, -counts[seen]).statistic)
        reach = float(stats.norm.ppf(0.975)) * math.sqrt(1.06 / (len(seen) - 3))
        z = math.atanh(max(-1 + 1e-12, min(1 - 1e-12, correlation)))
        low, high = math.tanh(z - reach), math.tanh(z + reach)
    total = max(1, int(counts.sum()))
    shares = counts[seen] / total
    figures["unigram_nats"] = float(-(shares * np.log(shares)).sum())
    figures |= {"rank_correlation": correlation, "low": low, "high": high}
    figures["share_of_first"] = float(counts[:first].sum()) / total
    figures["share_of_top"] = float(np.sort(counts)[::-1][:first].sum()) / total
    return figures
