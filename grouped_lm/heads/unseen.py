"""The share of probability that tokens get which the training text does not have (`head.reserve`).

Letters: V vocabulary, T tokens of the training text.
"""

import numpy as np
import torch
from torch import Tensor

from grouped_lm.grouping import Text

MIN_SHARE, MAX_SHARE = 0.001, 0.5
"""Range of the estimate. A share r costs every other token -log(1 - r) nats: 0.001 of them at the least share."""
PARTS = 5
_CHUNK = 1 << 22


def estimate_unseen_share(counts: Tensor, text: Text | None = None) -> float:
    """Return the expected share of tokens in other text that the training text does not have, in [0.001, 0.5].

    The text is cut into `PARTS` equal parts. The estimate is the share of all tokens whose id occurs in one part alone:
    they would be new to a reader of the other parts. Documents would be smaller parts, and they underrate the share
    where several of them come from one book (`runs/log`). Without the text it is the share of the tokens that occur
    once (Good 1953, Biometrika 40, 237), which underrates it too.

    Args:
        counts: (V,) training occurrences.
        text: returns the training text, (T,) ids.
    """
    total = int(counts.sum())
    if not total:
        return 0.0
    alone = counts == 1
    if text is not None:
        ids = text()
        first = np.full(len(counts), PARTS)
        last = np.full(len(counts), -1)
        for part in range(PARTS):
            there = np.zeros(len(counts), dtype=bool)
            start, stop = (len(ids) * edge // PARTS for edge in (part, part + 1))
            for at in range(start, stop, _CHUNK):
                there[ids[at : min(at + _CHUNK, stop)]] = True
            first[there] = np.minimum(first[there], part)
            last[there] = part
        alone |= torch.from_numpy(first == last)
    return min(max(int(counts[alone].sum()) / total, MIN_SHARE), MAX_SHARE)


def resolve_share(reserve: bool | float, counts: Tensor, text: Text | None) -> float:
    """Return the share that `head.reserve` stands for: the number, or the estimate for true; 0 without counts."""
    if not counts.any():
        return 0.0
    return estimate_unseen_share(counts, text) if reserve is True else float(reserve)
