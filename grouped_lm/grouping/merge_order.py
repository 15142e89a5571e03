"""How well the order of merges follows frequency: the premise of the paper's grouping, measured on a text."""

import math
from typing import Any

import numpy as np

FIRST = 2_048
"""Number of ids whose share of the tokens is counted."""


def measure_merge_order(counts: "np.ndarray[Any, Any]", first: int = FIRST) -> dict[str, Any]:
    """Return how well ids, in their own order, are sorted by count.

    Args:
        counts: (V,) occurrences of every id. Set end-of-text to 0: it is no merge.
        first: number of ids, in [1, V]. The share of the first ids is compared with that of as many most frequent ids.

    Returns:
        `unigram_nats` is the entropy of a token drawn by its count: the loss in nats of a model that knows nothing
        else. `rank_correlation` is Spearman's correlation of id and rarity over the ids that occur, in [-1, 1]; 1 means
        that lower ids are always more frequent. `low` and `high` are its 95 % interval by Fisher's z with the variance
        1.06 / (n - 3) (Fieller et al. 1957). Shares are in [0, 1].
    """
    from scipy import stats  # imported here: the library needs torch and numpy alone

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
