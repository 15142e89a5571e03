"""Score every token of a text with a model: one row per target, from which all metrics of `gvc eval` are computed.

Letters: N targets, V vocabulary, T window, B windows per batch.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grouped_lm.config import IGNORE_INDEX, check_range
from grouped_lm.errors import ConfigError
from grouped_lm.heads.base import Head
from grouped_lm.heads.decoding.best_first import BestFirstHead
from grouped_lm.models.lm import LanguageModel
from grouped_lm.system.runtime import autocast

PARTS = {
    "nll": "val/loss",
    "group_nll": "val/loss_group",
    "token_nll": "val/loss_token",
    "group_correct": "val/group_accuracy",
    "token_correct": "val/token_in_group_accuracy",
    "head_nll": "val/loss_head",
    "prior_nll": "val/loss_prior",
    "weight_nll": "val/loss_weight",
    "prior_share": "val/prior_share",
}
"""Values of `HeadLoss` and `MixedLoss` per token, and the metrics that are their means."""
MEASURED = 1024
"""Tokens of which the times of body and head are compared: the blocks of a head are slower for fewer."""
TOP_K = 5
"""A target counts for the top-k accuracy if it is among so many most likely tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ContextRule:
    """The context from which each token is predicted."""

    window: int
    """Largest number of tokens before a target, the model's block_size."""
    stride: int | None = None
    """New targets per window, in [1, window]; the other tokens of a window are context only. None: no overlap."""
    per_story: bool = False
    """Whether the context starts at the end-of-text before each story. Otherwise the text is one long sequence."""

    def __post_init__(self) -> None:
        check_range("--stride", self.stride, 1)
        if self.stride is not None and self.stride > self.window:
            raise ConfigError(f"--stride must be in [1, {self.window}] (model.block_size), got {self.stride}")

    def describe(self) -> str:
        """Return a description for people."""
        stride = self.stride or self.window
        overlap = "without overlap" if stride == self.window else f"{stride} new targets each"
        sequence = "every story alone, after an end-of-text" if self.per_story else "the text in one piece"
        return f"{sequence}; windows of {self.window} tokens, {overlap}"


@dataclass(frozen=True, slots=True)
class Window:
    """A window with the inputs tokens[start : stop] and the targets tokens[first + 1 : stop + 1]."""

    start: int
    first: int
    stop: int


def list_windows(n_tokens: int, starts: np.ndarray, rule: ContextRule) -> list[Window]:
    """Return windows in which every token but the first, the end-of-text at index 0, is a target exactly once.

    `starts` has the (documents,) index of every document's first token.
    """
    stride = rule.stride or rule.window
    edges = [*(starts - 1).tolist(), n_tokens - 1] if rule.per_story else [0, n_tokens - 1]
    windows = []
    for begin, end in itertools.pairwise(edges):  # inputs begin..end-1, targets begin+1..end
        first = begin
        while first < end:
            stop = min(end, first + (rule.window if first == begin else stride))
            start = first if stride == rule.window else max(begin, stop - rule.window)
            windows.append(Window(start, first, stop))
            first = stop
    return windows


@dataclass(kw_only=True, slots=True)
class TokenScores:
    """One entry per target, in the order of the text."""

    targets: np.ndarray
    """(N,) token ids."""
    nll: np.ndarray
    """(N,) fp64, nats."""
    position: np.ndarray
    """(N,) index of the target in its window: the number of tokens before it, less one."""
    top1: np.ndarray
    """(N,) bool: the target is the most likely token."""
    top5: np.ndarray
    """(N,) bool: the target is among the five most likely tokens."""
    confidence: np.ndarray
    """(N,) probability of the most likely token."""
    group_nll: np.ndarray | None = None
    token_nll: np.ndarray | None = None
    group_correct: np.ndarray | None = None
    token_correct: np.ndarray | None = None
    group_confidence: np.ndarray | None = None
    """(N,) probability of the most likely entry of the first softmax."""
    head_nll: np.ndarray | None = None
    prior_nll: np.ndarray | None = None
    weight_nll: np.ndarray | None = None
    prior_share: np.ndarray | None = None


@torch.no_grad()
def score_tokens(
    model: LanguageModel,
    tokens: np.ndarray,
    windows: list[Window],
    batch_size: int,
    device: torch.device,
    dtype: str = "float32",
    done: Callable[[float], object] = lambda targets: None,
) -> TokenScores:
    """Return the scores of every target of (N + 1,) tokens, with matrix products in `dtype`.

    The model is on `device` in evaluation mode; `windows` are those of the whole text. `done` is called after each
    batch with its number of targets.
    """
    n_targets = len(tokens) - 1
    columns: dict[str, np.ndarray] = {"targets": np.asarray(tokens[1:], np.int64)}
    for input_ids, targets, indices, positions in iter_batches(tokens, windows, batch_size):
        with autocast(device, dtype):
            hidden = model.hidden(input_ids.to(device))
            counted = targets.to(device) != IGNORE_INDEX
            scores = score_hidden(model.head, hidden[counted], targets.to(device)[counted])
        scores["position"] = positions
        for name, values in scores.items():
            array = values.cpu().numpy()
            if name not in columns:
                columns[name] = np.zeros(n_targets, np.float64 if array.dtype.kind == "f" else array.dtype)
            columns[name][indices] = array
        done(len(indices))
    return TokenScores(**columns)


@torch.no_grad()
def measure_body_share(model: LanguageModel, tokens: np.ndarray, device: torch.device, dtype: str = "float32") -> float:
    """Return the part of the time of `score_tokens` that the body takes, from some of the (N + 1,) tokens."""
    block_size: Any = model.body.block_size
    size = min(block_size, len(tokens) - 1)
    rows = max(1, min(MEASURED // size, (len(tokens) - 1) // size))
    input_ids, targets = (
        torch.from_numpy(tokens[i : i + rows * size].astype(np.int64)).view(rows, size).to(device) for i in (0, 1)
    )
    clock = []
    for _ in range(2):  # the second time nothing is computed for the first time
        clock = [time.perf_counter()]
        with autocast(device, dtype):
            hidden = model.hidden(input_ids).flatten(0, 1)
            float(hidden.sum())  # waits for a GPU
            clock.append(time.perf_counter())
            float(score_hidden(model.head, hidden, targets.flatten())["nll"].sum())
        clock.append(time.perf_counter())
    return (clock[1] - clock[0]) / (clock[2] - clock[0])


def iter_batches(
    tokens: np.ndarray, windows: list[Window], batch_size: int
) -> Iterator[tuple[Tensor, Tensor, np.ndarray, Tensor]]:
    """Yield (B, T) inputs and targets, and per counted target its index in the text and its position in the window.

    Windows of similar length are in one batch, so that little is padded.
    """
    ordered = sorted(windows, key=lambda w: w.stop - w.start, reverse=True)
    for begin in range(0, len(ordered), batch_size):
        batch = ordered[begin : begin + batch_size]
        width = batch[0].stop - batch[0].start
        input_ids = np.zeros((len(batch), width), np.int64)
        targets = np.full((len(batch), width), IGNORE_INDEX, np.int64)
        for row, window in enumerate(batch):
            size, skipped = window.stop - window.start, window.first - window.start
            input_ids[row, :size] = tokens[window.start : window.stop]
            targets[row, skipped:size] = tokens[window.first + 1 : window.stop + 1]
        indices = np.concatenate([np.arange(w.first, w.stop) for w in batch])
        positions = np.concatenate([np.arange(w.first - w.start, w.stop - w.start) for w in batch])
        yield torch.from_numpy(input_ids), torch.from_numpy(targets), indices, torch.from_numpy(positions)


def score_hidden(head: Head, hidden: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Return (n,) columns of `TokenScores` for (n, D) hidden states and (n,) targets, without those that are None."""
    ranks = head.ranks(hidden, targets, TOP_K)
    columns = {"nll": -ranks.log_prob}
    probe = head.loss(hidden[:1], targets[:1], reduction="none")
    if any(getattr(probe, name, None) is not None for name in PARTS if name != "nll"):
        loss = head.loss(hidden, targets, reduction="none", accuracy=True)
        columns = {name: value for name in PARTS if (value := getattr(loss, name, None)) is not None}
    columns["top1"], columns["top5"] = ranks.rank == 0, ranks.rank < TOP_K
    columns["confidence"] = ranks.best.double().exp()
    if isinstance(head, BestFirstHead):
        columns["group_confidence"] = head.class_log_prob(hidden).amax(1).double().exp()
    return columns
