"""What a model says about every token of a text: one row per target, from which all measures are made.

Letters: N targets, V vocabulary, T window.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from grouped_lm.config import IGNORE_INDEX, check_range
from grouped_lm.errors import ConfigError
from grouped_lm.heads.base import Head
from grouped_lm.heads.decoding.best_first import BestFirstHead
from grouped_lm.models.lm import LanguageModel
from grouped_lm.system.precision import autocast

TOP = 5
"""Likeliest tokens among which a target is looked for."""
SEARCH_ROWS = 64
"""States whose likeliest tokens are searched at once: a group's weight rows are gathered for each of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What a token is predicted from.

    Raises:
        ConfigError: a stride outside [1, window].
    """

    window: int
    """Most tokens read before a target, the model's block_size."""
    stride: int | None = None
    """Targets per window, in [1, window]; the others of a window are context only. None: all, no overlap."""
    per_story: bool = False
    """Every story alone, from the end-of-text before it; else the text in one piece, stories in each other's wake."""

    def __post_init__(self) -> None:
        check_range("--stride", self.stride, 1)
        if self.stride is not None and self.stride > self.window:
            raise ConfigError(f"--stride must be in [1, {self.window}] (model.block_size), got {self.stride}")

    def describe(self) -> str:
        """Say in words what this is."""
        stride = self.stride or self.window
        overlap = "without overlap" if stride == self.window else f"{stride} new targets each"
        what = "every story alone, after an end-of-text" if self.per_story else "the text in one piece"
        return f"{what}; windows of {self.window} tokens, {overlap}"


@dataclass(frozen=True, slots=True)
class Window:
    """Inputs tokens[start : stop]; the targets are tokens[first + 1 : stop + 1]."""

    start: int
    first: int
    stop: int


def list_windows(n_tokens: int, starts: np.ndarray, reading: Reading) -> list[Window]:
    """Return windows in which every token but the first is a target exactly once.

    Args:
        n_tokens: tokens in the text, end-of-text at 0 included.
        starts: (documents,) index of every document's first token.
        reading: how to read.
    """
    stride = reading.stride or reading.window
    edges = [*(starts - 1).tolist(), n_tokens - 1] if reading.per_story else [0, n_tokens - 1]
    found = []
    for begin, end in itertools.pairwise(edges):  # inputs begin..end-1, targets begin+1..end
        first = begin
        while first < end:
            stop = min(end, first + (reading.window if first == begin else stride))
            found.append(Window(max(begin, stop - reading.window), first, stop))
            first = stop
    if stride == reading.window:  # no overlap: a last, short window does not read what came before it
        found = [Window(window.first, window.first, window.stop) for window in found]
    return found


@dataclass(kw_only=True, slots=True)
class Scores:
    """One entry per target, in the order of the text."""

    targets: np.ndarray
    """(N,) token ids."""
    nll: np.ndarray
    """(N,) fp64, nats."""
    position: np.ndarray
    """(N,) tokens read before the target, less one."""
    top1: np.ndarray
    """(N,) bool: the likeliest token, by the joint distribution."""
    top5: np.ndarray
    confidence: np.ndarray
    """(N,) probability of the likeliest token."""
    group_nll: np.ndarray | None = None
    token_nll: np.ndarray | None = None
    group_correct: np.ndarray | None = None
    token_correct: np.ndarray | None = None
    group_confidence: np.ndarray | None = None
    """(N,) probability of the likeliest entry of the first step."""


@torch.no_grad()
def score(
    model: LanguageModel,
    tokens: np.ndarray,
    windows: list[Window],
    batch_size: int,
    device: torch.device,
    dtype: str = "float32",
) -> Scores:
    """Score every target of `windows`, which must cover the text.

    Args:
        model: in evaluation mode.
        tokens: (N + 1,) ids.
        windows: see `list_windows`; read in order of length, so that little is padded.
        batch_size: windows per pass, >= 1.
        device: the model's.
        dtype: of the matrix products.
    """
    n_targets = len(tokens) - 1
    columns: dict[str, np.ndarray] = {"targets": np.asarray(tokens[1:], np.int64)}
    for input_ids, targets, places, positions in _batches(tokens, windows, batch_size):
        with autocast(device, dtype):
            hidden = model.hidden(input_ids.to(device))
            counted = targets.to(device) != IGNORE_INDEX
            found = score_states(model.head, hidden[counted], targets.to(device)[counted])
        found["position"] = positions
        for name, values in found.items():
            array = values.cpu().numpy()
            if name not in columns:
                columns[name] = np.zeros(n_targets, np.float64 if array.dtype.kind == "f" else array.dtype)
            columns[name][places] = array
    return Scores(**columns)


def _batches(
    tokens: np.ndarray, windows: list[Window], batch_size: int
) -> Iterator[tuple[Tensor, Tensor, np.ndarray, Tensor]]:
    """Yield (B, T) inputs and targets, and for the targets that count their places in the text and in the window."""
    ordered = sorted(windows, key=lambda w: w.stop - w.start, reverse=True)
    for begin in range(0, len(ordered), batch_size):
        batch = ordered[begin : begin + batch_size]
        width = batch[0].stop - batch[0].start
        input_ids = np.zeros((len(batch), width), np.int64)
        targets = np.full((len(batch), width), IGNORE_INDEX, np.int64)
        places, positions = [], []
        for row, window in enumerate(batch):
            size, skipped = window.stop - window.start, window.first - window.start
            input_ids[row, :size] = tokens[window.start : window.stop]
            targets[row, skipped:size] = tokens[window.first + 1 : window.stop + 1]
            places.append(np.arange(window.first, window.stop))
            positions.append(np.arange(skipped, size))
        yield (
            torch.from_numpy(input_ids),
            torch.from_numpy(targets),
            np.concatenate(places),
            torch.from_numpy(np.concatenate(positions)),
        )


def score_states(head: Head, states: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Return (n,) columns of `Scores` for (n, D) states and (n,) targets; absent ones are left out."""
    loss = head.loss(states, targets, reduction="none", accuracy=True)
    parts = ("nll", "group_nll", "token_nll", "group_correct", "token_correct")
    found = {name: value for name in parts if (value := getattr(loss, name)) is not None}
    tops = [head.topk(rows, TOP) for rows in states.split(SEARCH_ROWS)]
    hits = torch.cat(
        [kept.ids == wanted[:, None] for kept, wanted in zip(tops, targets.split(SEARCH_ROWS), strict=True)]
    )
    found["top1"], found["top5"] = hits[:, 0], hits.any(1)
    found["confidence"] = torch.cat([kept.log_prob[:, 0] for kept in tops]).double().exp()
    if isinstance(head, BestFirstHead):
        found["group_confidence"] = head.first_step(states).amax(1).double().exp()
    return found
