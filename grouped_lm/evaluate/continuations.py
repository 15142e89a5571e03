"""How likely a text goes on as given: the log-likelihoods behind choice tasks, clozes and lm-evaluation-harness.

Letters: B pairs at once, T window.
"""

import itertools
from typing import Any

import numpy as np
import torch

from grouped_lm.config import IGNORE_INDEX
from grouped_lm.models.lm import LanguageModel

Pair = tuple[list[int], list[int]]
"""Ids of a context, never empty, and of what follows it, never empty."""


@torch.no_grad()
def log_likelihoods(model: LanguageModel, pairs: list[Pair], batch_size: int) -> list[tuple[float, bool]]:
    """Return for every pair the log-probability of the continuation, nats, and whether greedy decoding writes it.

    Args:
        model: in evaluation mode.
        pairs: longer ones than block_size + 1 lose the beginning of their context, and where the continuation alone
            is longer, it is read in windows of its own (`split_long`).
        batch_size: B, windows per pass, >= 1.
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
        states = model.hidden(input_ids.to(device))[counted.to(device)]
        wanted_ids = targets[counted].to(device)
        log_prob = model.head.target_log_prob(states, wanted_ids).double().cpu().numpy()
        hits = torch.cat([model.head.argmax(rows) for rows in states.split(64)]).eq(wanted_ids).cpu().numpy()
        which = counted.nonzero()[:, 0].numpy()
        for row, (index, _, _) in enumerate(batch):
            totals[index] += log_prob[which == row].sum()
            greedy[index] &= bool(hits[which == row].all())
    return list(zip(totals.tolist(), greedy.tolist(), strict=True))


def split_long(context: list[int], continuation: list[int], block_size: int) -> list[Pair]:
    """Return windows (inputs, targets), every token of the continuation a target once.

    The first window has as much of the context as fits; later ones do not overlap, as `gvc eval` reads by default.
    """
    room = max(1, block_size + 1 - len(continuation))
    ids = context[-room:] + continuation
    first = len(ids) - len(continuation) - 1  # input whose target is the continuation's first token
    edges = [0, *range(block_size, len(ids) - 1, block_size), len(ids) - 1]
    return [
        (ids[start:stop], ids[max(start, first) + 1 : stop + 1])
        for start, stop in itertools.pairwise(edges)
        if stop > first
    ]
