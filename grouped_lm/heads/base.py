"""The interface of an output layer: hidden states in, exact negative log-likelihoods out, no V-wide tensor promised.

Letters: B batch, T sequence, N = B*T, D width, V vocabulary, G groups, S slots per group.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grouped_lm.config import GroupingConfig
from grouped_lm.grouping import Grouping, build_grouping, order_by_frequency
from grouped_lm.heads.cuts import Cut, Kept, draw_kept, keep

IGNORE_INDEX = -100
"""Targets of this value count nowhere: no loss, no gradient, not in the mean."""


@dataclass(slots=True)
class HeadLoss:
    """Negative log-likelihood in nats and its parts; scalars, or shaped like the targets for reduction="none"."""

    nll: Tensor
    """-log p(token) = group_nll + token_nll, exactly."""
    group_nll: Tensor | None = None
    """-log p(group); None for heads without groups."""
    token_nll: Tensor | None = None
    """-log p(token | group)."""
    group_correct: Tensor | None = None
    """Targets whose group is the likeliest one; asked for with accuracy=True."""
    token_correct: Tensor | None = None
    """Targets that are the likeliest token of their own group."""


def reduce_nll(nll: Tensor, targets: Tensor, reduction: str) -> Tensor:
    """Sum or average per-token losses over the targets that count (0, not NaN, where none does).

    Raises:
        ValueError: reduction is not mean, sum or none.
    """
    if reduction == "none":
        return nll
    if reduction == "sum":
        return nll.sum()
    if reduction == "mean":
        return nll.sum() / (targets != IGNORE_INDEX).sum().clamp_min(1)
    raise ValueError(f"reduction must be mean, sum or none, got {reduction!r}")


@dataclass(frozen=True, eq=False)
class HeadContext:
    """What a head may be built from, besides its own config."""

    n_embd: int
    """D."""
    vocab_size: int
    """V."""
    grouping: GroupingConfig
    counts: Tensor | None = None
    """(V,) training occurrences, where they are known."""
    wte: Tensor | None = None
    """(V, D) input embedding, for tied heads."""

    def groups(self, group_size: int | None) -> Grouping:
        """Return the grouping of all V tokens; see `build_grouping`."""
        return build_grouping(self.grouping, self.vocab_size, group_size, self.counts)

    def by_frequency(self) -> Tensor:
        """Return the (V,) token ids, most frequent first and ties by id; by id alone where no counts are known."""
        if self.counts is None:
            return torch.arange(self.vocab_size)
        return order_by_frequency(self.counts)

    def token_weight(self, tied: bool) -> nn.Parameter:
        """Return a (V, D) matrix of a row per token: the input embedding, or one of the head's own.

        Raises:
            ValueError: tied, and there is no embedding of that shape.
        """
        shape = self.vocab_size, self.n_embd
        if not tied:
            weight = nn.Parameter(torch.empty(shape))
            init_linear(weight)
            return weight
        if not isinstance(self.wte, nn.Parameter) or self.wte.shape != shape:
            raise ValueError(f"a tied head needs a {shape} embedding")
        return self.wte


class Head(nn.Module, ABC):
    """An output layer. Its forward does the work, so that wrappers such as DDP and FSDP see its weights used."""

    no_weight_decay: ClassVar[tuple[str, ...]] = ()
    """Names of matrices that are scales, shifts or biases, and so are not decayed."""
    needs_counts: ClassVar[bool] = False
    """Whether the head is built from the training occurrences of the tokens, whatever the grouping."""

    def __init__(self, n_embd: int, vocab_size: int) -> None:
        super().__init__()
        self.n_embd, self.vocab_size = n_embd, vocab_size

    @classmethod
    @abstractmethod
    def build(cls, config: Any, context: HeadContext) -> "Head":
        """Return a freshly initialised head of this kind from its own config."""

    def after_load(self) -> None:
        """Derive anew what follows from the grouping, once a checkpoint has brought its own."""

    def forward(self, hidden: Tensor, targets: Tensor, **kwargs: Any) -> HeadLoss:
        """Return `loss(hidden, targets, **kwargs)`."""
        return self.loss(hidden, targets, **kwargs)

    @abstractmethod
    def loss(self, hidden: Tensor, targets: Tensor, reduction: str = "mean", accuracy: bool = False) -> HeadLoss:
        """Return the exact negative log-likelihood of the targets.

        Args:
            hidden: (..., D) states after the last norm.
            targets: (...) int64 in [0, V), or IGNORE_INDEX.
            reduction: "mean" over the targets that count, "sum", or "none" (zero at ignored ones).
            accuracy: also count right groups and tokens (heads with groups).
        """

    @abstractmethod
    def log_prob(self, hidden: Tensor) -> Tensor:
        """Return (..., V) fp32 log-probabilities of every token, in the order of the ids."""

    @abstractmethod
    def flops_per_token(self) -> float:
        """Return the floating-point operations of one forward pass of `loss`, per target."""

    def target_log_prob(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Return (...) log p(target), zero where ignored."""
        return -self.loss(hidden, targets, reduction="none").nll

    def keep(self, hidden: Tensor, cut: Cut) -> Kept:
        """Return the tokens that `cut` keeps of the joint distribution, likeliest first, the lowest id among equals.

        Args:
            hidden: (N, D).
            cut: by rank, cumulated probability, or share of the likeliest.
        """
        return keep(self.log_prob(hidden), None, cut)

    def topk(self, hidden: Tensor, k: int) -> Kept:
        """Return the min(k, V) likeliest tokens of (N, D) states."""
        return self.keep(hidden, Cut(top_k=k))

    def argmax(self, hidden: Tensor) -> Tensor:
        """Return (N,) ids of the likeliest token of (N, D) states."""
        return self.keep(hidden, Cut(top_k=1)).ids.squeeze(1)

    def sample(
        self,
        hidden: Tensor,
        generator: torch.Generator | None = None,
        *,
        temperature: float = 1.0,
        cut: Cut | None = None,
        num_samples: int = 1,
    ) -> Tensor:
        """Draw (N, num_samples) token ids from the joint distribution.

        Args:
            hidden: (N, D).
            generator: on the device of the states; None is torch's global one.
            temperature: T >= 0; tokens that the cut leaves get weight p^(1/T), 0 takes the likeliest.
            cut: what may be drawn; None is all.
            num_samples: draws per state, >= 1.
        """
        if temperature == 0:
            return self.argmax(hidden).unsqueeze(1).expand(-1, num_samples)
        cut = cut or Cut()
        if not cut.keeps_all:
            return draw_kept(self.keep(hidden, cut), temperature, num_samples, generator)
        log_prob = self.log_prob(hidden)
        ids = torch.arange(self.vocab_size, device=log_prob.device).expand_as(log_prob)
        return draw_kept(Kept(log_prob, ids), temperature, num_samples, generator)


def flatten(hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return (N, D) states and (N,) targets.

    Raises:
        ValueError: the leading shapes differ.
    """
    if hidden.shape[:-1] != targets.shape:
        raise ValueError(f"hidden {tuple(hidden.shape)} and targets {tuple(targets.shape)} do not match")
    return hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)


def classify(logits: Tensor, classes: Tensor, counted: Tensor, accuracy: bool) -> tuple[Tensor, Tensor | None]:
    """Return (N,) cross entropies, zero where not counted, and with `accuracy` which rows have the likeliest class.

    Args:
        logits: (N, C), fp32 or finer.
        classes: (N,) int64 in [0, C) where counted.
        counted: (N,) bool.
        accuracy: also compare with the largest logit.
    """
    picked = classes.masked_fill(~counted, IGNORE_INDEX)
    nll = F.cross_entropy(logits, picked, ignore_index=IGNORE_INDEX, reduction="none")
    return nll, (logits.argmax(-1) == classes) & counted if accuracy else None


def two_step_loss(
    targets: Tensor, reduction: str, group: tuple[Tensor, Tensor | None], token: tuple[Tensor, Tensor | None]
) -> HeadLoss:
    """Add up two steps, each the (N,) losses and hits of `classify`, into the loss of targets of any shape."""

    def finish(values: Tensor) -> Tensor:
        return reduce_nll(values.view(targets.shape), targets, reduction)

    def count(hits: Tensor | None) -> Tensor | None:
        if hits is None:
            return None
        return hits.view(targets.shape) if reduction == "none" else hits.sum()

    return HeadLoss(
        nll=finish(group[0] + token[0]),
        group_nll=finish(group[0]),
        token_nll=finish(token[0]),
        group_correct=count(group[1]),
        token_correct=count(token[1]),
    )


def at_least_fp32(logits: Tensor) -> Tensor:
    """Return fp16 and bf16 logits as fp32: a softmax in less loses digits that the loss shows."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def init_linear(weight: Tensor, std: float = 0.02) -> None:
    """Initialise as GPT-2 does its embeddings and projections: N(0, 0.02)."""
    torch.nn.init.normal_(weight, mean=0.0, std=std)
