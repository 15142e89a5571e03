"""Adaptive softmax on ids sorted by training frequency, with the modules of torch.

Source: Grave et al. 2017 (arXiv 1609.04309), `torch.nn.AdaptiveLogSoftmaxWithLoss`.
Letters: N tokens, D width, V vocabulary, K the first cutoff, C clusters after it.
"""

import itertools
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from grouped_lm.config import IGNORE_INDEX, setting
from grouped_lm.errors import ConfigError
from grouped_lm.heads.context import HeadContext, HeadOptions, check_options, log_mass
from grouped_lm.heads.decoding.best_first import BestFirstHead
from grouped_lm.heads.losses.chunked import class_nll, default_chunk_rows
from grouped_lm.heads.losses.functional import HeadLoss, at_least_fp32, classify, static_sizes, two_step_loss


@dataclass(kw_only=True, slots=True)
class AdaptiveConfig(HeadOptions):
    """Config of `head=adaptive`."""

    name: str = "adaptive"
    cutoffs: list[int] = field(default_factory=lambda: [2_000, 10_000])
    """Ranks at which clusters begin, rising, >= 1. Those from V on are ignored; if none is left it is V - 1."""
    div_value: float | int = setting(4.0, 1, 1e6)
    """Cluster i of 1, 2, ... has D // div_value^i dimensions. With 0, its tokens stay equally likely."""
    bias: bool = False
    """A bias per token and cluster; torch's module has none in the clusters."""

    def __post_init__(self) -> None:
        check_options(self)
        whole = all(isinstance(c, int) and not isinstance(c, bool) and c >= 1 for c in self.cutoffs)
        if not (self.cutoffs and whole and self.cutoffs == sorted(set(self.cutoffs))):
            raise ConfigError(f"head.cutoffs must be rising whole numbers from 1 on, got {self.cutoffs}")


def places_of(mine: Tensor) -> Tensor:
    """Return the places where (N,) is true; all places where sizes must not depend on it."""
    return torch.arange(len(mine), device=mine.device) if static_sizes() else mine.nonzero().squeeze(1)


class AdaptiveHead(BestFirstHead):
    """A softmax over the K most frequent tokens and C clusters, then one in the target's cluster, of lower rank.

    The modules and parameters are torch's, and `log_prob` equals torch's. `loss` is new, since torch's own takes no
    ignored targets, has no reduction but the mean, and fails under bf16 autocast on fp32 states. A summed loss computes
    its exact gradients chunk by chunk, and keeps no logits.
    """

    needs_counts = True
    in_chunks: ClassVar[bool] = True
    """Whether summed losses keep no logits. Otherwise they are torch's own line, to which the bench compares them."""

    rank: Tensor
    starts: Tensor  # (C,) int64 ranks at which clusters begin

    def __init__(self, config: AdaptiveConfig, n_embd: int, by_frequency: Tensor) -> None:
        super().__init__(n_embd, vocab_size=by_frequency.numel())
        if self.vocab_size < 2:
            raise ConfigError(f"head=adaptive needs a vocabulary of at least 2 tokens, got {self.vocab_size}")
        cutoffs = [cutoff for cutoff in config.cutoffs if cutoff < self.vocab_size] or [self.vocab_size - 1]
        self.adaptive = nn.AdaptiveLogSoftmaxWithLoss(n_embd, self.vocab_size, cutoffs, config.div_value, config.bias)
        if config.bias:
            for tail in self.tails:
                tail[1].bias = nn.Parameter(torch.zeros(tail[1].out_features))
        self.register_buffer("rank", torch.argsort(by_frequency))
        self.register_buffer("starts", torch.tensor(self.adaptive.cutoffs[:-1]), persistent=False)
        self._tables: tuple[Tensor, Tensor] | None = None

    @property
    def tails(self) -> list[Any]:
        """The two linear layers of each cluster."""
        return list(self.adaptive.tail)

    @classmethod
    def build(cls, config: AdaptiveConfig, context: HeadContext) -> "AdaptiveHead":
        """Return a freshly initialised head; without counts, ids are taken as ranks."""
        return cls(config, context.n_embd, context.by_frequency())

    def start_from(self, log_share: Tensor) -> None:
        """Set the biases so that hidden states of zero give the (V,) log-probabilities."""
        if self.adaptive.head.bias is None:
            return
        ids, members = self.tables()
        cluster = self.groups_and_slots(torch.arange(self.vocab_size))[0]
        mass = log_mass(log_share, cluster, len(members))
        self.adaptive.head.bias.copy_(torch.cat([log_share[ids[: self.adaptive.shortlist_size]], mass]))
        for tail, own in zip(self.tails, members, strict=True):
            tail[1].bias.copy_(log_share[own[own >= 0]])

    def loss(self, hidden: Tensor, targets: Tensor, reduction: str = "mean", accuracy: bool = False) -> HeadLoss:
        """Return the negative log-likelihood of the targets.

        The parts are the first softmax, and the softmax inside the cluster (0 for the first K tokens).
        """
        states, flat = self.flatten(hidden, targets)
        counted = flat != IGNORE_INDEX
        cluster, slots = self.groups_and_slots(flat.clamp_min(0))  # -1 for the first K
        classes = torch.where(cluster < 0, slots, self.adaptive.shortlist_size + cluster)
        if self.in_chunks and reduction != "none" and not accuracy and not self.adds_extra:
            sums = self.chunked(states, classes.masked_fill(~counted, -1), cluster, slots)
            return two_step_loss(targets, reduction, (sums[0], None), (sums[1], None))
        first_logits = at_least_fp32(self.adaptive.head(states))
        first = classify(first_logits, classes, counted, accuracy)
        extra = self.logits_extra(first_logits, classes, first[0], counted)
        inside = torch.zeros_like(first[0])
        hits = counted & (cluster < 0)
        for index, tail in enumerate(self.adaptive.tail):
            mine = counted & (cluster == index)
            rows = places_of(mine)
            nll, right = classify(at_least_fp32(tail(states[rows])), slots[rows], mine[rows], accuracy)
            inside = inside.index_add(0, rows, nll)
            hits = hits if right is None else hits.index_copy(0, rows, hits[rows] | right)
        return two_step_loss(targets, reduction, first, (inside, hits if accuracy else None), extra)

    def chunked(self, states: Tensor, classes: Tensor, cluster: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Return the summed losses of the first softmax and of those inside clusters.

        A chunk of a cluster has as many logits as one of the first softmax, if that is a row or more. The (N,) classes
        of the first softmax are -1 where ignored, the clusters -1 for the first K tokens.
        """
        columns, chunk_rows = self.adaptive.head.weight, default_chunk_rows(states.device)
        first = class_nll(states, columns, self.adaptive.head.bias, classes, len(columns), 1, chunk_rows)
        inside = torch.zeros_like(first)
        for index, tail in enumerate(self.tails):
            mine, own = (classes >= 0) & (cluster == index), tail[1].weight
            rows, places = places_of(mine), slots.masked_fill(~mine, -1)
            own_rows = max(1, chunk_rows * len(columns) // len(own))
            inside = inside + class_nll(tail[0](states[rows]), own, tail[1].bias, places[rows], len(own), 1, own_rows)
        return first, inside

    def after_load(self) -> None:
        """Forget the tables made from `rank`."""
        self._tables = None

    @torch.inference_mode(False)  # computed once, also for training
    def tables(self) -> tuple[Tensor, Tensor]:
        """Return the (V,) ids, most frequent first, and the (C, S) ids of the clusters, -1 where one has no more."""
        if self._tables is None or self._tables[0].device != self.rank.device:
            by_rank = torch.argsort(self.rank)
            clusters = [by_rank[start:stop] for start, stop in itertools.pairwise(self.adaptive.cutoffs)]
            self._tables = by_rank, pad_sequence(clusters, batch_first=True, padding_value=-1)
        return self._tables

    def shortlist_ids(self) -> Tensor:
        """Return the (K,) ids of the most frequent tokens."""
        return self.tables()[0][: self.adaptive.shortlist_size]

    def group_members(self) -> Tensor:
        """Return the (C, S) ids of the clusters."""
        return self.tables()[1]

    def groups_and_slots(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return the (N,) clusters of (N,) ids, -1 for the K most frequent, and the places in them."""
        rank = self.rank[tokens]
        cluster = torch.bucketize(rank, self.starts, right=True) - 1
        return cluster, torch.where(cluster < 0, rank, rank - self.starts[cluster.clamp_min(0)])

    def class_log_prob(self, states: Tensor) -> Tensor:
        """Return the (N, K + C) log-probabilities of the most frequent tokens, then of the clusters."""
        return at_least_fp32(self.adaptive.head(states)).log_softmax(-1)

    def group_log_prob(self, states: Tensor, group: int) -> Tensor:
        """Return the (N, C) log p(token | cluster) of the C tokens of one cluster."""
        return at_least_fp32(self.adaptive.tail[group](states)).log_softmax(-1)

    def in_group_log_prob(self, states: Tensor, groups: Tensor) -> Tensor:
        """Return the (N, S) log p(token | cluster) for one cluster per row, cluster by cluster."""
        log_prob = at_least_fp32(states.new_empty(len(states), self.group_members().shape[1])).fill_(-torch.inf)
        for cluster in groups.unique().tolist():
            rows = (groups == cluster).nonzero().squeeze(1)
            inside = self.group_log_prob(states[rows], cluster)
            log_prob[rows, : inside.shape[1]] = inside
        return log_prob

    def log_prob(self, hidden: Tensor) -> Tensor:
        """Return the (..., V) log-probabilities of every token, as torch does.

        Products are in the precision of the weights, sums in fp32.
        """
        states = hidden.reshape(-1, self.n_embd).to(self.adaptive.head.weight.dtype)
        n_single = self.adaptive.shortlist_size
        with torch.autocast(hidden.device.type, enabled=False):
            first = self.class_log_prob(states)
            inside = [at_least_fp32(tail(states)).log_softmax(-1) for tail in self.adaptive.tail]
        clusters = [part + first[:, n_single + index, None] for index, part in enumerate(inside)]
        joint = torch.cat([first[:, :n_single], *clusters], dim=1)
        return joint[:, self.rank].view(*hidden.shape[:-1], self.vocab_size)

    def flops_per_token(self) -> float:
        """Return 2 D (K + C), the first softmax of every token; the cost of rarer tokens depends on the text."""
        return 2.0 * self.n_embd * self.adaptive.head_size
