"""Log-probabilities of continuations, for choice tasks, clozes and lm-evaluation-harness.

Letters: B windows per batch, T window.
"""

import itertools
from typing import Any

import numpy as np
import torch

from grouped_lm.config import IGNORE_INDEX
from grouped_lm.evaluate.scoring import SEARCH_ROWS, Window, iter_batches
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
    windows: list[Window] = []
    tokens: list[int] = []
    pair_of: list[int] = []
    for index, pair in enumerate(pairs):
        for inputs, continuation in split_long(*pair, body.block_size):
            stop = len(tokens) + len(inputs)
            windows.append(Window(len(tokens), stop - len(continuation), stop))
            tokens += [*inputs, continuation[-1]]
            pair_of += [index] * (len(inputs) + 1)
    totals, greedy = np.zeros(len(pairs)), np.ones(len(pairs), bool)
    device = next(model.parameters()).device
    for input_ids, targets, indices, _ in iter_batches(np.array(tokens), windows, batch_size):
        counted = targets != IGNORE_INDEX
        hidden, target_ids = model.hidden(input_ids.to(device))[counted.to(device)], targets[counted].to(device)
        log_prob = model.head.target_log_prob(hidden, target_ids).double().cpu().numpy()
        hits = torch.cat([model.head.argmax(rows) for rows in hidden.split(SEARCH_ROWS)]).eq(target_ids).cpu().numpy()
        pairs_here = np.array(pair_of)[indices]
        np.add.at(totals, pairs_here, log_prob)
        np.logical_and.at(greedy, pairs_here, hits)
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
