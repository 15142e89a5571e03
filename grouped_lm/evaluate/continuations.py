"""Log-probabilities of continuations, for choice tasks, clozes and lm-evaluation-harness.

Letters: B windows per batch, T window.
"""

import itertools
from typing import Any

import numpy as np
import torch

from grouped_lm.config import IGNORE_INDEX
from grouped_lm.evaluate.scoring import SEARCH_ROWS
from grouped_lm.models.lm import LanguageModel

Pair = tuple[list[int], list[int]]
"""Ids of a context and of its continuation; both have at least one token."""


@torch.no_grad()
def log_likelihoods(model: LanguageModel, pairs: list[Pair], batch_size: int) -> list[tuple[float, bool]]:
    """Return the log-probability of each continuation in nats, and whether greedy decoding generates it.

    Args:
        model: in evaluation mode.
        pairs: contexts and continuations. If both have more than block_size + 1 tokens, the beginning of the context
            is cut off. A longer continuation is split into several windows.
        batch_size: B, >= 1.
    """
    body: Any = model.body
    block_size: int = body.block_size
    windows = [(index, *window) for index, pair in enumerate(pairs) for window in split_long(*pair, block_size)]
    windows.sort(key=lambda window: len(window[1]), reverse=True)
    totals, greedy = np.zeros(len(pairs)), np.ones(len(pairs), bool)
    device = next(model.parameters()).device
    for begin in range(0, len(windows), batch_size):
        batch = windows[begin : begin + batch_size]
        width = len(batch[0][1])
        input_ids = torch.zeros(len(batch), width, dtype=torch.int64)
        targets = torch.full((len(batch), width), IGNORE_INDEX)
        for row, (_, ids, wanted) in enumerate(batch):
            input_ids[row, : len(ids)] = torch.tensor(ids)
            targets[row, len(ids) - len(wanted) : len(ids)] = torch.tensor(wanted)
        counted = targets != IGNORE_INDEX
        hidden = model.hidden(input_ids.to(device))[counted.to(device)]
        target_ids = targets[counted].to(device)
        log_prob = model.head.target_log_prob(hidden, target_ids).double().cpu().numpy()
        hits = torch.cat([model.head.argmax(rows) for rows in hidden.split(SEARCH_ROWS)]).eq(target_ids).cpu().numpy()
        row_of = counted.nonzero()[:, 0].numpy()
        for row, (index, _, _) in enumerate(batch):
            totals[index] += log_prob[row_of == row].sum()
            greedy[index] &= bool(hits[row_of == row].all())
    return list(zip(totals.tolist(), greedy.tolist(), strict=True))


def split_long(context: list[int], continuation: list[int], block_size: int) -> list[Pair]:
    """Return windows (inputs, targets) in which every token of the continuation is a target once.

    The first window has as much context as fits. Later windows do not overlap, as in `gvc eval` by default.
    """
    n_context = max(1, block_size + 1 - len(continuation))
    ids = context[-n_context:] + continuation
    first = len(ids) - len(continuation) - 1  # input whose target is the continuation's first token
    edges = [0, *range(block_size, len(ids) - 1, block_size), len(ids) - 1]
    return [
        (ids[start:stop], ids[max(start, first) + 1 : stop + 1])
        for start, stop in itertools.pairwise(edges)
        if stop > first
    ]
