"""The most frequent tokens beside groups of all others in the first softmax, rows of their own for all.

Source: a shortlist beside clusters is that of adaptive softmax (Grave et al. 2017, arXiv 1609.04309), here with full
rows and many small groups (arXiv 2411.06371); several directions per group are those of a mixture inside the logit.
Letters: N tokens, D width, V vocabulary, K shortlist, G groups, H of them reserved, S slots per group, R directions per
group.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import is_fake

from grouped_lm.config import check_choice, check_range
from grouped_lm.errors import ConfigError
from grouped_lm.grouping import group_members
from grouped_lm.heads.base import (
    IGNORE_INDEX,
    HeadContext,
    HeadLoss,
    at_least_fp32,
    classify,
    flatten,
    init_linear,
    log_shares,
    two_step_loss,
)
from grouped_lm.heads.decoding.best_first import BestFirstHead
from grouped_lm.heads.losses.chunked import at_once, class_nll, default_chunk_rows
from grouped_lm.heads.losses.in_group import GroupRows, in_group_loss
from grouped_lm.heads.losses.table_rows import TableRows
from grouped_lm.heads.losses.two_steps import pick_rows, two_steps_nll
from grouped_lm.heads.placement import Places, place_tokens


@dataclass(kw_only=True, slots=True)
class ShortlistConfig:
    """Config of the default head, `head=shortlist`: every weight is a row of the embedding."""

    name: str = "shortlist"
    shortlist_size: int = 256
    """Tokens K outside the groups, >= 0; more than V mean all V."""
    group_size: int | None = None
    """Slots per group S, in [1, V]; null means round(sqrt V)."""
    directions: int = 0
    """Vectors R per group, >= 0; the group's logit is the log-sum-exp of theirs. 0 leaves it the mean row alone."""
    tied: bool = True
    """Share the V x D matrix with the input embedding."""
    own_shortlist: bool = False
    """Give the shortlisted tokens rows of their own, K x D; with tied only the tokens in groups share the embedding."""
    shared_rows: int = 32768
    """Most frequent tokens in groups, M >= 0, whose rows are shared with the directions: to all of a group's directions
    the mean row of its tokens, by frequency, is added, the first-order term of its true logit. 0 for a group without
    any of these tokens, which with `directions` 0 is left its bias alone: as many as the text has types are enough."""
    reserve: bool = True
    """Give groups whose tokens the training text never has a fixed probability, instead of one that only falls."""
    start: str = "counts"
    """Biases at the start: zero, or counts (log-frequencies in the training text)."""

    def __post_init__(self) -> None:
        check_range("head.shortlist_size", self.shortlist_size, 0, 10**9)
        check_range("head.group_size", self.group_size, 1, 10**9)
        check_range("head.directions", self.directions, 0, 10**6)
        check_range("head.shared_rows", self.shared_rows, 0, 10**9)
        if not self.directions and not self.shared_rows:
            raise ConfigError("head.directions=0 leaves groups nothing but rows they share: give head.shared_rows too")
        check_choice("head.start", self.start, ("zero", "counts"))


class ShortlistHead(BestFirstHead):
    """p(token) of the first softmax for K tokens, p(group) p(token | group) for all others.

    The first softmax has K logits W[ids] h + bias[ids] and G logits logsumexp_r(directions[g, r] h + b[g, r]). A
    group's true logit is the log-sum-exp over its tokens, which one direction can only follow as a line. `b` starts
    at -log R, so that R changes nothing at the start.

    With `reserve` the last H groups have constant probabilities, and the first softmax, over the other G - H, shares
    what is left: no text in which they never occur can teach how likely they are elsewhere. With `shared_rows` the mean
    row of a group's tokens is added to all of its directions, and so is learned from every state.
    """

    no_weight_decay: ClassVar[tuple[str, ...]] = ("group_bias",)
    needs_counts: ClassVar[bool] = True
    preferred_groupings: ClassVar[tuple[str, ...]] = ("brown", "frequency", "merge_rank")
    regularised: ClassVar[bool] = True

    token_to_group: Tensor
    token_to_slot: Tensor
    reserved: Tensor
    sharing: Tensor
    """(M,) ids of the tokens whose rows their groups' directions share, by group."""
    parts: Tensor
    """(M,) fp32, of each in its group's mean."""

    def __init__(self, config: ShortlistConfig, weight: nn.Parameter, places: Places) -> None:
        super().__init__(n_embd=weight.shape[1], vocab_size=weight.shape[0])
        self.weight = weight
        self.bias = nn.Parameter(torch.zeros(self.vocab_size))
        self.register_buffer("token_to_group", places.token_to_group.int())
        self.register_buffer("token_to_slot", places.token_to_slot.int())
        self.register_buffer("reserved", places.reserved, persistent=len(places.reserved) > 0)
        self._frozen = False
        self._kept: tuple[Tensor, Tensor] | None = None
        self._group_members: Tensor | None = None
        self.shortlist_size, self.n_group = places.n_alone, places.n_group
        self.group_size = places.group_size or None
        self.rows = GroupRows(
            places.token_to_group, places.token_to_slot, places.n_group, places.group_size, places.n_alone
        )
        n_learned = self.n_group - places.reserved.numel()
        self.directions = None
        if n_learned and config.directions:
            self.directions = nn.Parameter(torch.empty(n_learned, config.directions, self.n_embd))
            init_linear(self.directions)
        columns = max(1, config.directions)
        group_bias = torch.full((n_learned, columns), -math.log(columns))
        if n_learned:
            self.group_bias = nn.Parameter(group_bias)
        else:  # FSDP2 takes no parameter without elements
            self.register_buffer("group_bias", group_bias, persistent=False)
        n_learned_tokens = self.vocab_size - self.shortlist_size
        if places.reserved.numel():
            n_learned_tokens -= int((places.token_to_group >= n_learned).sum())
        n_shared = min(config.shared_rows, n_learned_tokens) if places.n_shared is None else places.n_shared
        self.register_buffer("sharing", torch.zeros(n_shared, dtype=torch.int64), persistent=n_shared > 0)
        self.register_buffer("parts", torch.zeros(n_shared), persistent=n_shared > 0)
        self.tied = config.tied
        self.table_rows: TableRows | None = None
        self.shortlist_weight = None
        if config.own_shortlist:
            self.shortlist_weight = nn.Parameter(torch.empty(self.shortlist_size, self.n_embd))
            init_linear(self.shortlist_weight)

    @classmethod
    def build(cls, config: Any, context: HeadContext) -> "ShortlistHead":
        """See `Head.build`."""
        places = place_tokens(config.shortlist_size, config.group_size, config.reserve, context)
        head = cls(config, context.token_weight(config.tied), places)
        if places.n_shared is None:  # else a checkpoint brings them
            head.share_rows(torch.zeros(head.vocab_size) if context.counts is None else context.counts)
        if config.start == "counts" and context.counts is not None:
            head.start_from(context.counts)
        head.find_table_rows()
        return head

    @torch.no_grad()
    def start_from(self, counts: Tensor) -> None:
        """Set the biases so that at hidden states of zero the head gives the smoothed frequencies of the tokens."""
        log_share = log_shares(counts)
        self.bias.copy_(log_share)
        mass = torch.zeros(self.n_group, dtype=torch.float64)
        inside = self.token_to_group >= 0
        mass.index_add_(0, self.token_to_group[inside], log_share[inside].exp())
        self.group_bias.add_(mass[: len(self.group_bias)].log()[:, None])

    def share_rows(self, counts: Tensor) -> None:
        """Choose by (V,) counts the tokens whose rows directions share; parts are counts, or equal where all are 0."""
        groups = self.token_to_group.long()
        learned = (groups >= 0) & (groups < len(self.group_bias))
        most = counts.double().masked_fill(~learned, -1).topk(len(self.sharing)).indices
        self.sharing.copy_(most[groups[most].argsort(stable=True)])
        inside, parts = groups[self.sharing], counts.double()[self.sharing]
        mass = torch.zeros(self.n_group, dtype=torch.float64)
        parts = torch.where(mass.index_add(0, inside, parts)[inside] == 0, 1.0, parts)
        self.parts.copy_(parts / mass.index_add(0, inside, parts)[inside])

    def after_load(self) -> None:
        """See `Head.after_load`."""
        self.rows.assign(self.token_to_group, self.token_to_slot)
        self._group_members = None
        self.find_table_rows()

    def find_table_rows(self) -> None:
        """Find which rows of the table are all that is trained, where that is so and they are at most half of it.

        With those the gradient of a tied table is sparse, as a model's other one, from its embedding, is not: an
        optimizer of dense gradients takes their sum, and refuses this one alone.
        """
        self.table_rows = None
        alone = self.directions is None and self.shortlist_weight is None
        if not alone or self.weight.device.type != "cpu" or is_fake(self.weight) or not len(self.group_bias):
            return
        parts = torch.zeros(self.vocab_size).index_add_(0, self.sharing, self.parts.float())
        members = group_members(self.token_to_group, self.token_to_slot, self.n_group, self.group_size or 0)
        found = TableRows(self.rows.outside, members[: len(self.group_bias)], parts)
        if 2 * found.ids.numel() <= self.vocab_size:
            self.table_rows = found

    def gradient_rows(self) -> int:
        """See `Head.gradient_rows`."""
        return super().gradient_rows() if self.table_rows is None else len(self.table_rows.ids)

    def columns(self, shared: Tensor) -> tuple[Tensor, Tensor]:
        """Return the (K + (G - H) R, D) rows and the biases of the first softmax.

        Args:
            shared: rows of the table, those of `picked`.
        """
        own, members = shared, shared[:0]  # a split's gradient is a copy
        if len(self.sharing):
            own, members = shared.tensor_split((shared.shape[0] - len(self.sharing),))
        rows = own if self.shortlist_weight is None else self.shortlist_weight
        groups = self.mean_rows(members)
        if self.directions is not None:
            groups = self.directions + groups
        return (
            torch.cat([rows, groups.flatten(0, 1)]),
            torch.cat([self.bias[self.rows.outside], self.group_bias.flatten()]),
        )

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """See `Head.frozen`: the columns are kept."""
        before, self._frozen = self._frozen, True
        try:
            yield
        finally:
            self._frozen = before
            if not before:
                self._kept = None

    def columns_now(self) -> tuple[Tensor, Tensor]:
        """Return `columns`, those at hand where the weights are `frozen` and gradients off."""
        if self._kept is not None and not torch.is_grad_enabled():
            return self._kept
        found = self.columns(self.weight[self.picked()])
        if self._frozen and not torch.is_grad_enabled():
            self._kept = found
        return found

    def mean_rows(self, members: Tensor) -> Tensor:
        """Return the (G - H, 1, D) mean rows of groups, 0 without any, from the (M, D) rows that they share."""
        n_learned = len(self.group_bias)
        mean = members.new_zeros(n_learned, 1, self.n_embd)
        if not len(self.sharing) or not n_learned:
            return mean
        parts = members * self.parts.to(members.dtype).unsqueeze(1)
        place = self.token_to_group[self.sharing].clamp(0, n_learned - 1)  # beyond it, parts of older files are 0
        return mean.index_add(0, place, parts.unsqueeze(1))

    def picked(self) -> Tensor:
        """Return the ids whose rows of the table `columns` wants: the shortlist's, and those that directions share."""
        own = self.rows.outside if self.shortlist_weight is None else self.rows.outside[:0]
        return torch.cat([own, self.sharing])

    def first_logits(self, states: Tensor, rows: Tensor, bias: Tensor) -> Tensor:
        """Return the (N, K + G - H) logits of the first softmax, the slow line that `class_nll` equals.

        Args:
            states: (N, D).
            rows, bias: those of `columns`.
        """
        logits = at_least_fp32(F.linear(states, rows, bias))
        own, groups = logits.tensor_split((self.shortlist_size,), dim=1)
        if self.group_bias.shape[1] > 1:
            groups = groups.unflatten(1, self.group_bias.shape).logsumexp(-1)
        return torch.cat([own, groups], dim=1)

    def loss(self, hidden: Tensor, targets: Tensor, reduction: str = "mean", accuracy: bool = False) -> HeadLoss:
        """See `Head.loss`; the parts are the first softmax, and the one inside the group (0 in the shortlist)."""
        states, flat = flatten(hidden, targets)
        counted = flat != IGNORE_INDEX
        token = flat.clamp_min(0)
        groups, slots = self.groups_and_slots(token)
        per_token = reduction == "none" or accuracy or self.adds_extra
        if not per_token and (self.table_rows is not None or self.tied) and at_once(states, self.weight):
            first_sum, inside_sum = self.summed(states, groups, slots, counted)
            return two_step_loss(targets, reduction, (first_sum, None), (inside_sum, None))
        inside = groups.masked_fill(~counted, -1)
        nll, hits, shared = in_group_loss(
            states, self.weight, self.bias, self.members(), inside, slots, self.picked(), accuracy
        )
        columns = self.columns(shared)
        fixed, learned = self.fixed_nll(groups, counted)
        classes = self.classes_of(groups, slots, learned)
        if not per_token:
            first_sum = class_nll(
                states,
                *columns,
                classes,
                self.shortlist_size,
                self.group_bias.shape[1],
                default_chunk_rows(states.device),
            )
            return two_step_loss(targets, reduction, (first_sum + fixed.sum(), None), (nll.sum(), None))
        first_logits = self.first_logits(states, *columns)
        first, right = classify(first_logits, classes, learned, accuracy)
        extra = self.logits_extra(first_logits, classes, first, learned)
        alone = counted & (groups < 0)  # a shortlisted token is the only one of its class
        return two_step_loss(
            targets, reduction, (first + fixed, right), (nll, hits | alone if accuracy else None), extra
        )

    def summed(self, states: Tensor, groups: Tensor, slots: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sums of both steps, with one gradient of the states; that of both comes with the second.

        Args:
            states: (N, D), where `at_once` holds.
            groups, slots: (N,), of the targets.
            counted: (N,) bool.
        """
        fixed, learned = self.fixed_nll(groups, counted)
        classes = self.classes_of(groups, slots, learned)
        if self.table_rows is None:
            shared, weight = pick_rows(self.weight, self.picked())
            columns = self.columns(shared)
            del shared  # the columns have copies
            layout = self.shortlist_size, self.group_bias.shape[1]
            places = self.members(), groups.masked_fill(~counted, -1), slots
            total, first = two_steps_nll(states, columns, classes, layout, (weight, self.bias), places)
            return first + fixed.sum(), total - first
        table = self.weight, self.bias
        total, first = self.table_rows.nll(states, *table, self.group_bias.squeeze(1), classes, slots, self.tied)
        rare = (counted & ~learned).nonzero().squeeze(1)  # tokens that the training text never had
        if rare.numel():
            one = states[rare], *table, self.members(), groups[rare], slots[rare], self.rows.outside[:0]
            total = total + in_group_loss(*one, accuracy=False)[0].sum()
        return first + fixed.sum(), total - first

    def classes_of(self, groups: Tensor, slots: Tensor, learned: Tensor) -> Tensor:
        """Return the (N,) classes of targets in the first softmax, -1 where it has none; `learned` of `fixed_nll`."""
        return torch.where(groups < 0, slots, groups + self.shortlist_size).masked_fill(~learned, -1)

    def fixed_nll(self, groups: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
        """Return what is fixed of each (N,) -log p(class), and the (N,) targets whose class the first softmax has.

        That is -log(1 - reserved) for those, all of -log p(class) for targets in reserved groups.
        """
        if not self.reserved.numel():
            return torch.zeros_like(groups, dtype=self.reserved.dtype), counted
        place = groups - len(self.group_bias)
        fixed = torch.where(place < 0, -self.log_rest(), -self.reserved[place.clamp_min(0)])
        return fixed.masked_fill(~counted, 0), counted & (place < 0)

    def log_rest(self) -> Tensor:
        """Return the () logarithm of the probability of all classes but the reserved ones, in fp32 or finer."""
        return torch.log1p(-at_least_fp32(self.reserved).exp().sum())

    def shortlist_ids(self) -> Tensor:
        """See `BestFirstHead.shortlist_ids`: the shortlist."""
        return self.rows.outside

    def members(self) -> Tensor:
        """Return `GroupRows.members`; what is trained by `table_rows` alone never asks for them."""
        return self.rows.members(self.token_to_group, self.token_to_slot)

    @torch.inference_mode(False)  # made once, for gradients too
    def group_members(self) -> Tensor:
        """See `BestFirstHead.group_members`; made when first asked for, which training never does."""
        if self._group_members is None or self._group_members.device != self.token_to_group.device:
            self._group_members = self.members().long()
        return self._group_members

    def groups_and_slots(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """See `BestFirstHead.groups_and_slots`."""
        return self.token_to_group[tokens].long(), self.token_to_slot[tokens].long()

    def class_log_prob(self, states: Tensor) -> Tensor:
        """See `BestFirstHead.class_log_prob`."""
        logits = self.first_logits(states, *self.columns_now())
        first = logits.log_softmax(-1) + self.log_rest().to(logits.dtype)
        return torch.cat([first, self.reserved.to(first.dtype).expand(len(states), -1)], dim=1)

    def in_group_log_prob(self, states: Tensor, groups: Tensor) -> Tensor:
        """See `BestFirstHead.in_group_log_prob`."""
        ids = self.group_members()[groups]
        rows = ids.clamp_min(0)
        logits = at_least_fp32((self.weight[rows] @ states.unsqueeze(-1)).squeeze(-1) + self.bias[rows])
        return logits.masked_fill(ids < 0, -torch.inf).log_softmax(-1)

    def log_prob(self, hidden: Tensor) -> Tensor:
        """See `Head.log_prob`; plain autograd over all V logits, the slow line that `loss` equals."""
        states = hidden.reshape(-1, self.n_embd)
        first = self.class_log_prob(states)
        logits = at_least_fp32(F.linear(states, self.weight, self.bias))
        members = self.group_members()
        inside = logits[:, members.clamp_min(0)].masked_fill(members < 0, -torch.inf).log_softmax(-1)
        inside = inside + first[:, self.shortlist_size :, None]
        joint = torch.cat([first[:, : self.shortlist_size], inside.flatten(1)], dim=1)
        place = self.shortlist_size + self.token_to_group.long() * members.shape[1]
        place = torch.where(self.token_to_group < 0, 0, place) + self.token_to_slot
        return joint[:, place].view(*hidden.shape[:-1], self.vocab_size)

    def flops_per_token(self) -> float:
        """Return 2 D (K + (G - H) R + S): that of a token in a group, 2 D S more than of one in the shortlist."""
        first = self.shortlist_size + self.group_bias.numel()
        return 2.0 * self.n_embd * (first + (self.group_size or 0))
