"""A softmax over the tokens of the training text; all other tokens are one class of uniform share. It is exact.

Letters: N tokens, D width, V vocabulary, K tokens seen in training.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grouped_lm.config import IGNORE_INDEX, setting
from grouped_lm.heads.context import HeadContext, HeadOptions, check_options, init_linear, log_mass
from grouped_lm.heads.decoding.columns import ColumnBlocks
from grouped_lm.heads.losses.chunked import DEFAULT_CHUNK_ROWS, Linear
from grouped_lm.heads.losses.functional import HeadLoss, at_least_fp32, exact_dtype
from grouped_lm.heads.regularised import RegularisedHead


@dataclass(kw_only=True, slots=True)
class TrimConfig(HeadOptions):
    """Config of `head=trim`."""

    name: str = "trim"
    tied: bool = True
    """Take the rows of the seen tokens from the input embedding; else the head has K rows of its own."""
    bias: bool = False
    """A bias per class."""
    chunk_rows: int = setting(DEFAULT_CHUNK_ROWS, 1, 10**9, unit="rows of logits")
    """Rows of logits that exist at once, >= 1."""

    def __post_init__(self) -> None:
        check_options(self)


class TrimHead(RegularisedHead):
    """Logits W[seen ids] h of K tokens, and one more of `rest`: log p(unseen token) = log p(rest) - log(V - K).

    A vocabulary made for all of the web has ids that a corpus never uses. Leaving them out costs no quality as long as
    they do not occur. If all V tokens were seen there is no `rest`, and this is the dense softmax. If no counts are
    known, all tokens count as seen.
    """

    needs_counts = True
    sizes_follow_text = True

    token_to_class: Tensor  # (V,) int64, 0 to K - 1 for seen tokens, K for all others
    seen: Tensor  # (K,) ids of the seen tokens

    def __init__(self, config: TrimConfig, weight: nn.Parameter | None, n_embd: int, token_to_class: Tensor) -> None:
        super().__init__(n_embd, token_to_class.numel())
        self.tied, self.chunk_rows = weight is not None, config.chunk_rows
        self.register_buffer("token_to_class", token_to_class)
        self.register_buffer("seen", torch.empty(0, dtype=torch.int64), persistent=False)
        self.after_load()
        if weight is None:
            weight = nn.Parameter(torch.empty(self.seen.numel(), n_embd))
            init_linear(weight)
        self.weight = weight
        self.rest = nn.Parameter(torch.empty(1 if self.n_rest else 0, n_embd))
        init_linear(self.rest)
        classes = self.seen.numel() + self.rest.shape[0]
        self.bias = nn.Parameter(torch.zeros(classes)) if config.bias else None

    @classmethod
    def build(cls, config: TrimConfig, context: HeadContext) -> "TrimHead":
        """Return a freshly initialised head; the counts or a checkpoint tell which tokens were seen."""
        classes = context.saved.get("token_to_class")
        if classes is None:
            all_of_them = torch.ones(context.vocab_size, dtype=torch.int64)
            seen = (all_of_them if context.counts is None else context.counts) > 0
            classes = torch.where(seen, seen.cumsum(0) - 1, seen.sum())
        return cls(config, context.token_weight(True) if config.tied else None, context.n_embd, classes)

    def start_from(self, log_share: Tensor) -> None:
        """Set the biases so that hidden states of zero give the (V,) log-probabilities, but for those of the rest."""
        if self.bias is not None:
            self.bias.copy_(log_mass(log_share, self.token_to_class, len(self.bias)))

    def after_load(self) -> None:
        """Update the list of seen tokens."""
        largest = self.token_to_class.max()
        single = torch.bincount(self.token_to_class)[-1] == 1  # a rest of one token is a class like any other
        n_seen = int(largest) + int(single)
        self.seen = torch.argsort(self.token_to_class, stable=True)[:n_seen]
        self.n_rest = self.vocab_size - n_seen

    def token_rows(self) -> int:
        """Return the number of tokens that are a class of their own."""
        return len(self.seen)

    def trained_ids(self, seen: Tensor) -> Tensor:
        """Return the ids of the tokens that are a class of their own."""
        return self.seen

    def rows(self) -> Tensor:
        """Return the (classes, D) rows of the softmax."""
        sparse = not self.weight.is_leaf  # where the optimizer has rows of the table; else it needs dense gradients
        own = F.embedding(self.seen, self.weight, sparse=sparse) if self.tied else self.weight
        return torch.cat([own, self.rest])

    def log_share(self, classes: Tensor, dtype: torch.dtype) -> Tensor:
        """Return log p(token | its class): -log(V - K) for the rest, 0 for tokens that are a class of their own."""
        return (classes == self.seen.numel()).to(dtype) * -math.log(max(1, self.n_rest))

    def loss(self, hidden: Tensor, targets: Tensor, reduction: str = "mean", accuracy: bool = False) -> HeadLoss:
        """Return the negative log-likelihood of the targets; there are no parts."""
        states, flat = self.flatten(hidden, targets)
        classes = self.token_to_class[flat.clamp_min(0)].masked_fill(flat == IGNORE_INDEX, IGNORE_INDEX)
        share = -self.log_share(classes, exact_dtype(self.weight.dtype))
        layer = Linear(states, self.rows(), self.bias, self.chunk_rows)
        return self.linear_loss(layer, classes, targets.shape, reduction, share)

    def log_prob(self, hidden: Tensor) -> Tensor:
        """Return the (..., V) log-probabilities of every token."""
        joint = F.log_softmax(at_least_fp32(F.linear(hidden, self.rows(), self.bias)), dim=-1)
        return joint[..., self.token_to_class] + self.log_share(self.token_to_class, joint.dtype)

    def blocks(self, hidden: Tensor) -> ColumnBlocks:
        """Return the tokens in blocks for (N, D) states."""
        return ColumnBlocks(hidden, self.rows(), self.bias, self.token_to_class)

    def flops_per_token(self) -> float:
        """Return 2 D (K + 1)."""
        return 2.0 * self.n_embd * (self.seen.numel() + self.rest.shape[0])
