"""Truncation of a distribution over tokens (top-k, top-p, min-p), and draws from the kept tokens.

Letters: N states, C candidates, M kept, V vocabulary.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from grouped_lm.config import check_range
from grouped_lm.errors import DivergedError

NARROW = 256
"""Candidates that are sorted first: sorting all 50,257 numbers takes longer than a small body."""
WIDER = 8
"""How many times more are sorted of those states whose truncation goes on behind them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Truncation:
    """Which tokens may be drawn. The truncation sees the joint distribution; temperature comes after it.

    Each condition keeps a prefix of the tokens in the order of their probability, the lowest id first among equals;
    together they keep the shortest, which is never empty.

    Raises:
        ConfigError: a value out of its range.
    """

    top_k: int | None = None
    """The k likeliest, >= 1; None keeps all."""
    top_p: float = 1.0
    """The fewest likeliest that have this probability together, in (0, 1] (Holtzman et al. 2020, arXiv 1904.09751)."""
    min_p: float = 0.0
    """Those with at least this share of the likeliest one's probability, in [0, 1] (arXiv 2407.01082)."""

    def __post_init__(self) -> None:
        check_range("top-k", self.top_k, 1)
        check_range("top-p", self.top_p, 0, 1, open_low=True)
        check_range("min-p", self.min_p, 0, 1)

    @property
    def keeps_all(self) -> bool:
        """Whether all tokens are kept."""
        return self.top_k is None and self.top_p == 1 and self.min_p == 0

    @property
    def log_min_p(self) -> float:
        """Return log(min_p), -inf for 0."""
        return math.log(self.min_p) if self.min_p else -math.inf


@dataclass(frozen=True, slots=True)
class KeptTokens:
    """The tokens that a truncation keeps for each state, likeliest first."""

    log_prob: Tensor  # (N, M) log-probabilities under the whole distribution, -inf where fewer than M are kept
    ids: Tensor  # (N, M) int64 token ids, 0 where fewer than M are kept

    @property
    def sizes(self) -> Tensor:
        """(N,) tokens kept, >= 1."""
        return (self.log_prob > -torch.inf).sum(1)


def truncate(log_prob: Tensor, ids: Tensor | None, truncation: Truncation) -> KeptTokens:
    """Return the kept tokens of (N, C) candidates: sort by probability and id, and take the prefix.

    The log-probability is -inf where a candidate is none. If `ids` is None, the column is the id.
    """
    limit = min(truncation.top_k or log_prob.shape[1], log_prob.shape[1])
    if not len(log_prob):
        return KeptTokens(log_prob[:, :limit], torch.empty_like(log_prob[:, :limit], dtype=torch.int64))
    if limit == 1 and ids is None:
        best = log_prob.argmax(1, keepdim=True)  # torch promises the first among equals
        return KeptTokens(log_prob.gather(1, best), best)
    rows, size = torch.arange(len(log_prob), device=log_prob.device), min(limit, NARROW)
    pieces: list[tuple[Tensor, KeptTokens]] = []
    while True:
        kept = _largest(log_prob, ids, size)
        fits = _prefix(kept.log_prob, truncation)
        ends = ~fits[:, -1]  # the prefix ends before what was sorted does
        width = max(1, int(fits.sum(1).max()))
        fits = fits[:, :width]
        values = kept.log_prob[:, :width].masked_fill(~fits, -torch.inf)
        found = KeptTokens(values, kept.ids[:, :width].masked_fill(~fits, 0))
        if size == limit or bool(ends.all()):
            return merge_kept([*pieces, (rows, found)])
        if bool(ends.any()):
            pieces.append((rows[ends], KeptTokens(found.log_prob[ends], found.ids[ends])))
            rows, log_prob, ids = rows[~ends], log_prob[~ends], None if ids is None else ids[~ends]
        size = min(limit, WIDER * size)


def merge_kept(pieces: list[tuple[Tensor, KeptTokens]]) -> KeptTokens:
    """Return the kept tokens of all N states from pieces of (rows, their kept tokens); every row is in one piece."""
    if len(pieces) == 1:
        return pieces[0][1]
    number, width = sum(len(rows) for rows, _ in pieces), max(kept.ids.shape[1] for _, kept in pieces)
    log_prob = pieces[0][1].log_prob.new_full((number, width), -torch.inf)
    ids = torch.zeros_like(log_prob, dtype=torch.int64)
    for rows, kept in pieces:
        log_prob[rows, : kept.ids.shape[1]] = kept.log_prob
        ids[rows, : kept.ids.shape[1]] = kept.ids
    return KeptTokens(log_prob, ids)


def _largest(log_prob: Tensor, ids: Tensor | None, size: int) -> KeptTokens:
    """Return the `size` likeliest in order, the lowest id first among equals; `torch.topk` does not promise that."""
    smallest = log_prob.topk(size, dim=1).values[:, -1:]
    width = max(size, int((log_prob >= smallest).sum(1).max())) if size < log_prob.shape[1] else size
    values, places = log_prob.topk(width, dim=1)  # once more where others equal the last
    found = places if ids is None else ids.gather(1, places)
    found, by_id = found.sort(dim=1)
    values, by_value = values.gather(1, by_id).sort(dim=1, descending=True, stable=True)
    return KeptTokens(values[:, :size], found.gather(1, by_value)[:, :size])


def _prefix(log_prob: Tensor, truncation: Truncation) -> Tensor:
    """Return (N, M) which of the sorted log-probabilities are kept."""
    fits = (log_prob > -torch.inf) & (log_prob >= log_prob[:, :1] + truncation.log_min_p)
    if truncation.top_p < 1:
        prob = log_prob.double().exp()
        before = prob.cumsum(1) - prob
        fits &= before < truncation.top_p
        fits[:, 0] = True
    return fits


def draw(weights: Tensor, rows: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw (m,) columns, one for each of (m,) `rows`, by the inverse of the cumulated weights of that row.

    The (N, C) fp64 weights are 0 or more, with a sum above 0 in every row. No column of weight 0 is ever drawn.

    Raises:
        DivergedError: the weights of a row are not finite numbers; one such would spoil the draws of all rows.
    """
    below = weights.cumsum(1)
    check_finite(below[:, -1])
    below = below / below[:, -1:]
    last = (below < 1).sum(1)  # the last column with any weight
    uniform = torch.rand(rows.shape, dtype=torch.float64, generator=generator, device=weights.device)
    shelves = below + torch.arange(len(below), dtype=torch.float64, device=below.device).unsqueeze(1)
    place = torch.searchsorted(shelves.flatten(), uniform + rows, right=True) - rows * weights.shape[1]
    return torch.minimum(place, last[rows])  # uniform + row may round up to the next row


def draw_one(log_prob: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw (N,) columns, one for every row of (N, C) log-probabilities.

    The least of independent exponential times with rates p is that of column c with probability p[c]. Times are fp64,
    since fp32 is too coarse for rare tokens. `check_finite` refuses rows that are no log-probabilities.
    """
    prob = log_prob.double().exp()
    rate, column = (prob / torch.empty_like(prob).exponential_(generator=generator)).max(1)
    check_finite(rate)
    return column


def check_finite(weights: Tensor) -> None:
    """Raise `DivergedError` if one of (N,) weights is 0, infinite or no number."""
    if not bool(((weights > 0) & (weights < torch.inf)).all()):
        raise DivergedError("the model gives probabilities that are no finite numbers: its weights have diverged")


def tempered(log_prob: Tensor, temperature: float) -> Tensor:
    """Return (N, C) fp64 weights p^(1 / temperature), of sum 1 and finite, of (N, C) log-probabilities."""
    return ((log_prob - log_prob.amax(1, keepdim=True)).double() / temperature).softmax(1)


def draw_from(
    log_prob: Tensor, truncation: Truncation, temperature: float, num_samples: int, generator: torch.Generator | None
) -> Tensor:
    """Return (N, num_samples) ids drawn from the tokens that `truncation` keeps of (N, V) log-probabilities."""
    if truncation.keeps_all:  # nothing to sort
        ids = torch.arange(log_prob.shape[1], device=log_prob.device).expand_as(log_prob)
        return draw_kept(KeptTokens(log_prob, ids), temperature, num_samples, generator)
    return draw_kept(truncate(log_prob, None, truncation), temperature, num_samples, generator)


def draw_kept(kept: KeptTokens, temperature: float, num_samples: int, generator: torch.Generator | None) -> Tensor:
    """Return (N, num_samples) ids drawn from the kept tokens, each with weight p^(1 / temperature)."""
    if not len(kept.ids):
        return kept.ids.new_empty(0, num_samples)
    weights = tempered(kept.log_prob, temperature)
    rows = torch.arange(len(weights), device=weights.device).repeat_interleave(num_samples)
    return kept.ids[rows, draw(weights, rows, generator)].view(-1, num_samples)
