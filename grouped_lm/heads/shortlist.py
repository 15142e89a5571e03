"""The most frequent tokens next to groups of all others in the first softmax, with a row of weights for every token.

Source: a shortlist next to clusters is that of adaptive softmax (Grave et al. 2017, arXiv 1609.04309), here with full
rows and many small groups (arXiv 2411.06371). Several directions per group are a mixture inside the logit.
Letters: N tokens, D width, V vocabulary, K shortlist, G groups, H of them reserved, S slots per group, R directions per
group, M tokens with shared rows.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import is_fake

from grouped_lm.config import IGNORE_INDEX, setting
from grouped_lm.errors import CheckpointError, ConfigError
from grouped_lm.grouping import group_members
from grouped_lm.heads.context import (
    GroupedTokens,
    HeadContext,
    HeadOptions,
    Placement,
    check_options,
    init_linear,
    log_mass,
    place_tokens,
)
from grouped_lm.heads.decoding.best_first import BestFirstHead
from grouped_lm.heads.losses.chunked import class_nll, default_chunk_rows
from grouped_lm.heads.losses.functional import HeadLoss, at_least_fp32, at_once, classify, two_step_loss
from grouped_lm.heads.losses.in_group import in_group_loss
from grouped_lm.heads.losses.kernel_loss import TokenIndex, head_loss, kernel_loss
from grouped_lm.heads.losses.two_steps import TableRows, TwoStepTargets, pick_rows, two_steps_nll


@dataclass(kw_only=True, slots=True)
class ShortlistConfig(HeadOptions):
    """Config of the default head, `head=shortlist`: every weight is a row of the embedding."""

    name: str = "shortlist"
    shortlist_size: int | None = setting(None, 0, 10**9, unit="tokens")
    """Tokens K outside the groups, >= 0; more than V mean all V. Null means 2,048, or less: at
    most V / 8, and a quarter of the different tokens that the training text has."""
    group_size: int | None = setting(None, 1, 10**9, unit="slots")
    """Slots per group S, in [1, V]; null means round(sqrt V)."""
    directions: int = setting(0, 0, 10**6)
    """Vectors R per group, >= 0; the group's logit is the log-sum-exp of theirs. With 0 it has the mean row alone."""
    tied: bool = True
    """Share the V x D matrix with the input embedding."""
    own_shortlist: bool = False
    """Give the shortlisted tokens rows of their own, K x D; with tied only the tokens in groups share the embedding."""
    shared_rows: int = setting(32768, 0, 10**9, unit="tokens")
    """Number M >= 0 of most frequent tokens in groups whose rows are shared with the directions. The mean row of a
    group's tokens, weighted by frequency, is added to all of its directions: the first-order term of its true logit.
    As many as the text has types are enough. A group without such a token has the mean row 0."""
    inner_scale: bool = False
    """Scale and shift the states before the softmax inside a group: h (1 + P[g]) + Q[g], from 0."""
    second_order: bool = False
    """Add the second-order term of the group's log-sum-exp to its logit: half the variance of its tokens' logits, each
    dimension alone, times a factor per group that starts at 0. Needs head.directions of 0 or 1."""
    reserve: bool | float = True
    start: str = setting("counts", choices=("zero", "counts"))

    def __post_init__(self) -> None:
        check_options(self)
        if self.second_order and self.directions > 1:
            raise ConfigError(f"head.second_order=true needs head.directions of 0 or 1, got {self.directions}")
        if not self.directions and not self.shared_rows:
            raise ConfigError("head.directions=0 leaves groups nothing but rows they share: give head.shared_rows too")


@dataclass(slots=True)
class _Targets:
    """The places of N targets."""

    counted: Tensor  # (N,) bool, false where ignored
    groups: Tensor  # (N,) groups, -1 in the shortlist and where ignored
    slots: Tensor  # (N,) places in the group or in the shortlist
    fixed: Tensor
    """(N,) constant part of -log p(class): -log(1 - reserved), or all of it for targets in reserved groups."""
    learned: Tensor  # (N,) bool, true where the first softmax has the class
    classes: Tensor  # (N,) classes in the first softmax, -1 where it has none


class ShortlistHead(GroupedTokens, BestFirstHead):
    """p(token) of the first softmax for K tokens, p(group) p(token | group) for all others.

    The first softmax has K logits W[ids] h + bias[ids] and G logits logsumexp_r(directions[g, r] h + b[g, r]). The true
    logit of a group is the log-sum-exp over its tokens. One direction can only follow it as a line. `b` starts at
    -log R, so that R does not matter at the start.

    With `reserve` the last H groups have constant probabilities, and the first softmax, over the other G - H, shares
    the rest: a text without their tokens cannot teach how likely they are elsewhere. With `shared_rows` the mean row of
    a group's tokens is added to all of its directions, so every state trains it.
    """

    no_weight_decay: ClassVar[tuple[str, ...]] = ("group_bias",)
    needs_counts = True
    has_reserve = True
    preferred_groupings = ("brown", "frequency", "merge_rank")
    reserved: Tensor  # (H,) log-probabilities of the reserved groups, which are the last ones
    sharing: Tensor  # (M,) ids of the tokens whose rows are part of their group's mean row, sorted by group
    parts: Tensor  # (M,) fp32 share of each of them in that mean row

    def __init__(self, config: ShortlistConfig, weight: nn.Parameter, placement: Placement) -> None:
        super().__init__(n_embd=weight.shape[1], vocab_size=weight.shape[0])
        self.weight, self.tied = weight, config.tied
        self.bias = nn.Parameter(torch.zeros(self.vocab_size))
        self.register_buffer("reserved", placement.reserved, persistent=len(placement.reserved) > 0)
        self._frozen = False
        self._kept_layer: tuple[Tensor, Tensor] | None = None
        self._group_members: Tensor | None = None
        self.shortlist_size, self.group_size = placement.shortlist_size, placement.group_size or None
        places = placement.token_to_group, placement.token_to_slot
        self.assign_groups(*places, placement.n_group, placement.group_size, self.shortlist_size)
        self._init_groups(config.directions)
        n_shared = placement.n_shared
        if n_shared is None:
            n_inside = self.vocab_size - self.shortlist_size
            if self.reserved.numel():  # only then are the groups known, and no fake tensors
                n_inside -= int((placement.token_to_group >= self.n_learned).sum())
            n_shared = min(config.shared_rows, n_inside)
        self.register_buffer("sharing", torch.zeros(n_shared, dtype=torch.int64), persistent=n_shared > 0)
        self.register_buffer("parts", torch.zeros(n_shared), persistent=n_shared > 0)
        self.table_rows: TableRows | None = None
        self.shortlist_weight = None
        if config.own_shortlist:
            self.shortlist_weight = nn.Parameter(torch.empty(self.shortlist_size, self.n_embd))
            init_linear(self.shortlist_weight)

    def _init_groups(self, directions: int) -> None:
        self.directions = None
        if self.n_learned and directions:
            self.directions = nn.Parameter(torch.empty(self.n_learned, directions, self.n_embd))
            init_linear(self.directions)
        columns = max(1, directions)
        group_bias = torch.full((self.n_learned, columns), -math.log(columns))
        if self.n_learned:
            self.group_bias = nn.Parameter(group_bias)
        else:  # FSDP2 takes no parameter without elements
            self.register_buffer("group_bias", group_bias, persistent=False)

    # `grouped_lm.heads.scaled` changes the states of both steps.

    @property
    def plain(self) -> bool:
        """Whether both steps take the states as they are, so that the fast paths may be used."""
        return True

    def inner_states(self, states: Tensor, groups: Tensor) -> Tensor:
        """Return the (N, D) states inside the (N,) groups."""
        return states

    def inner_table(self) -> tuple[Tensor, Tensor]:
        """Return (V, D) rows and (V,) biases that give the logits inside groups from the states themselves."""
        return self.weight, self.bias

    def class_states(self, states: Tensor) -> Tensor:
        """Return the inputs of the first softmax."""
        return states

    @property
    def n_learned(self) -> int:
        """G - H, the number of groups that are not reserved."""
        return self.n_group - self.reserved.numel()

    @classmethod
    def build(cls, config: ShortlistConfig, context: HeadContext) -> "ShortlistHead":
        """Return a freshly initialised head."""
        placement = place_tokens(config.shortlist_size, config.group_size, config.reserve, context)
        head = cls(config, context.token_weight(config.tied), placement)
        if placement.n_shared is None:  # else a checkpoint has them
            head.share_rows(torch.zeros(head.vocab_size) if context.counts is None else context.counts)
        head.find_table_rows()
        return head

    def start_from(self, log_share: Tensor) -> None:
        """Set the biases so that hidden states of zero give the (V,) log-probabilities."""
        self.bias.copy_(log_share)
        self.group_bias.add_(log_mass(log_share, self.token_to_group, self.n_group)[: self.n_learned, None])

    def share_rows(self, counts: Tensor) -> None:
        """Choose the tokens with shared rows by their (V,) counts; parts are counts, or equal where all are 0."""
        groups = self.token_to_group.long()
        learned = (groups >= 0) & (groups < self.n_learned)
        most = counts.double().masked_fill(~learned, -1).topk(len(self.sharing)).indices
        self.sharing.copy_(most[groups[most].argsort(stable=True)])
        inside, parts = groups[self.sharing], counts.double()[self.sharing]
        mass = torch.zeros(self.n_group, dtype=torch.float64)
        parts = torch.where(mass.index_add(0, inside, parts)[inside] == 0, 1.0, parts)
        self.parts.copy_(parts / mass.index_add(0, inside, parts)[inside])

    def after_load(self) -> None:
        """Update the members of groups.

        Raises:
            CheckpointError: the loaded groups have other sizes than the head.
        """
        self._check_sizes()
        self.sort_tokens()
        self._group_members = None
        self.find_table_rows()

    def _check_sizes(self) -> None:
        """Compare the loaded groups with K, G and S, which no shape of a weight need tell."""
        groups, slots = self.token_to_group, self.token_to_slot
        if is_fake(groups) or groups.is_meta:
            return
        single = groups < 0
        largest = slots.masked_fill(single, -1).max()
        found = torch.stack([single.sum(), groups.max() + 1, largest + 1]).tolist()
        own = [self.shortlist_size, self.n_group, self.group_size or 0]
        if found[0] != own[0] or found[1] > own[1] or found[2] > own[2]:
            loaded, built = ("K={:,}, G={:,}, S={:,}".format(*sizes) for sizes in (found, own))
            raise CheckpointError(
                f"the loaded token_to_group is another grouping than this head's: {loaded} instead of {built}; build "
                "the head with the options, counts and grouping of the saved one, or give build_head(saved=state)"
            )

    def find_table_rows(self) -> None:
        """Set `table_rows`, if all weights are rows of the table and at most half of its rows are trained.

        Where the tied table is no leaf, as in `gvc train`, its gradient is then sparse. That of a leaf is dense: an
        optimizer of dense gradients refuses a sparse one.
        """
        self.table_rows = None
        rows_alone = self.directions is None and self.shortlist_weight is None and self.plain
        if not rows_alone or self.weight.device.type != "cpu" or is_fake(self.weight) or not self.n_learned:
            return
        parts = torch.zeros(self.vocab_size).index_add_(0, self.sharing, self.parts.float())
        members = group_members(self.token_to_group, self.token_to_slot, self.n_group, self.group_size or 0)
        table_rows = TableRows(self.outside, members[: self.n_learned], parts, sparse=self.tied)
        if 2 * table_rows.ids.numel() <= self.vocab_size:
            self.table_rows = table_rows

    def build_token_index(self) -> TokenIndex | None:
        """Return the index of the tokens, if all weights are rows of the table."""
        if self.directions is not None or self.shortlist_weight is not None or not self.n_learned or not self.plain:
            return None
        parts = self.parts.new_zeros(self.vocab_size, dtype=torch.float32)
        parts = parts.index_copy(0, self.sharing, self.parts.float())
        places = self.token_to_group, self.token_to_slot, self.n_group, self.shortlist_size
        return TokenIndex(*places, parts, self.reserved)

    def gradient_rows(self) -> int:
        """Return the rows of the gradient of a tied table: those of `table_rows`, else V."""
        return super().gradient_rows() if self.table_rows is None else len(self.table_rows.ids)

    def trained_ids(self, seen: Tensor) -> Tensor:
        """Return the ids outside those reserved groups that have no target."""
        groups = self.token_to_group.long()
        trained = torch.arange(self.n_group + 1, device=groups.device) < self.n_learned
        trained[groups[seen]] = True
        trained[-1] = True  # of the tokens in the shortlist, whose group is -1
        return trained[groups].nonzero().squeeze(1)

    def class_row_ids(self) -> Tensor:
        """Return the ids whose rows of the table `class_layer` needs: of the shortlist, and those with shared rows."""
        own = self.outside if self.shortlist_weight is None else self.outside[:0]
        return torch.cat([own, self.sharing])

    def class_layer(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the (K + (G - H) R, D) weights and the biases of the first softmax from rows at `class_row_ids`."""
        own, members = rows, rows[:0]  # a split's gradient is a copy
        if len(self.sharing):
            own, members = rows.tensor_split((rows.shape[0] - len(self.sharing),))
        shortlist = own if self.shortlist_weight is None else self.shortlist_weight
        groups = self.mean_rows(members)
        if self.directions is not None:
            groups = self.directions + groups
        weight = torch.cat([shortlist, groups.flatten(0, 1)])
        return weight, torch.cat([self.bias[self.outside], self.group_bias.flatten()])

    def mean_rows(self, members: Tensor) -> Tensor:
        """Return the (G - H, 1, D) mean rows of groups, 0 where there is none, from the (M, D) shared rows."""
        mean = members.new_zeros(self.n_learned, 1, self.n_embd)
        if not len(self.sharing) or not self.n_learned:
            return mean
        parts = members * self.parts.to(members.dtype).unsqueeze(1)
        groups = self.token_to_group[self.sharing].clamp(0, self.n_learned - 1)  # as tables change one after another
        return mean.index_add(0, groups, parts.unsqueeze(1))

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Keep the weights of the first softmax inside the block, in which no weight may change."""
        before, self._frozen = self._frozen, True
        try:
            yield
        finally:
            self._frozen = before
            if not before:
                self._kept_layer = None

    def kept_class_layer(self) -> tuple[Tensor, Tensor]:
        """Return `class_layer`; while the weights are `frozen` and gradients are off it is computed once."""
        if self._kept_layer is not None and not torch.is_grad_enabled():
            return self._kept_layer
        layer = self.class_layer(self.weight[self.class_row_ids()])
        if self._frozen and not torch.is_grad_enabled():
            self._kept_layer = layer
        return layer

    def class_logits(self, states: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Return the (N, K + G - H) logits of the first softmax; the slow line that `class_nll` equals."""
        logits = at_least_fp32(F.linear(self.class_states(states), weight, bias))
        own, groups = logits.tensor_split((self.shortlist_size,), dim=1)
        if self.group_bias.shape[1] > 1:
            groups = groups.unflatten(1, self.group_bias.shape).logsumexp(-1)
        return torch.cat([own, groups], dim=1)

    def loss(self, hidden: Tensor, targets: Tensor, reduction: str = "mean", accuracy: bool = False) -> HeadLoss:
        """Return the negative log-likelihood of the targets.

        The parts are the first softmax, and the softmax inside the group (0 for targets in the shortlist).
        """
        states, flat = self.flatten(hidden, targets)
        if not accuracy and not self.adds_extra and (index := self.token_index()) and index.fits(states, self.weight):
            table, groups = (self.weight, self.bias), (None, self.group_bias.squeeze(1))
            return head_loss(kernel_loss(states, table, groups, index, flat, reduction), targets)
        places = self._places_of(flat)
        if reduction == "none" or accuracy or self.adds_extra:
            return self._loss_per_token(states, places, targets, reduction, accuracy)
        if self.plain and (self.table_rows is not None or self.tied) and at_once(states, self.weight):
            first, inside = self._sums_in_one_node(states, places)
        else:
            first, inside = self._sums_in_two_nodes(states, places)
        return two_step_loss(targets, reduction, (first, None), (inside, None))

    def _places_of(self, flat: Tensor) -> _Targets:
        counted = flat != IGNORE_INDEX
        groups, slots = self.groups_and_slots(flat.clamp_min(0))
        if self.reserved.numel():
            place = groups - self.n_learned
            fixed = torch.where(place < 0, -self.log_rest(), -at_least_fp32(self.reserved)[place.clamp_min(0)])
            fixed, learned = fixed.masked_fill(~counted, 0), counted & (place < 0)
        else:
            fixed, learned = torch.zeros_like(groups, dtype=self.reserved.dtype), counted
        classes = torch.where(groups < 0, slots, groups + self.shortlist_size).masked_fill(~learned, -1)
        return _Targets(counted, groups.masked_fill(~counted, -1), slots, fixed, learned, classes)

    def _loss_per_token(
        self, states: Tensor, places: _Targets, targets: Tensor, reduction: str, accuracy: bool
    ) -> HeadLoss:
        """Return the loss with (N,) parts, hits and extra; the (N, K + G) logits of the first softmax are kept."""
        where, picked = (self.padded_members(), places.groups, places.slots), self.class_row_ids()
        inner = self.inner_states(states, places.groups)
        nll, hits, rows = in_group_loss(inner, self.weight, self.bias, where, picked, accuracy)
        logits = self.class_logits(states, *self.class_layer(rows))
        first, right = classify(logits, places.classes, places.learned, accuracy)
        extra = self.logits_extra(logits, places.classes, first, places.learned)
        single = places.counted & (places.groups < 0)  # a token of the shortlist is the only one of its class
        token = nll, hits | single if accuracy else None
        return two_step_loss(targets, reduction, (first + places.fixed, right), token, extra)

    def _sums_in_two_nodes(self, states: Tensor, places: _Targets) -> tuple[Tensor, Tensor]:
        """Return the sums of both steps, from one operator each."""
        where, picked = (self.padded_members(), places.groups, places.slots), self.class_row_ids()
        inner = self.inner_states(states, places.groups)
        nll, _, rows = in_group_loss(inner, self.weight, self.bias, where, picked, accuracy=False)
        layout = self.shortlist_size, self.group_bias.shape[1]
        chunk_rows = default_chunk_rows(states.device)
        first = class_nll(self.class_states(states), *self.class_layer(rows), places.classes, *layout, chunk_rows)
        return first + places.fixed.sum(), nll.sum()

    def _sums_in_one_node(self, states: Tensor, places: _Targets) -> tuple[Tensor, Tensor]:
        """Return the sums of both steps. The states have one gradient, and that of both comes with the second sum."""
        fixed = places.fixed.sum()
        if self.table_rows is None:
            rows, weight = pick_rows(self.weight, self.class_row_ids())
            layer = self.class_layer(rows)
            del rows  # the layer has copies
            layout = self.shortlist_size, self.group_bias.shape[1]
            where = TwoStepTargets(places.classes, layout, (self.padded_members(), places.groups, places.slots))
            total, first = two_steps_nll(states, layer, (weight, self.bias), where)
            return first + fixed, total - first
        in_table = places.classes, places.slots
        total, first = self.table_rows.nll(states, self.weight, self.bias, self.group_bias.squeeze(1), in_table)
        rare = (places.counted & ~places.learned).nonzero().squeeze(1)  # tokens that the training text never had
        if rare.numel():
            rare_places = self.padded_members(), places.groups[rare], places.slots[rare]
            one = states[rare], self.weight, self.bias, rare_places, self.outside[:0]
            total = total + in_group_loss(*one, accuracy=False)[0].sum()
        return first + fixed, total - first

    def log_rest(self) -> Tensor:
        """Return the () log-probability of all classes but the reserved ones, in fp32 or finer."""
        return torch.log1p(-at_least_fp32(self.reserved).exp().sum())

    def shortlist_ids(self) -> Tensor:
        """Return the (K,) ids of the tokens outside the groups."""
        return self.outside

    @torch.inference_mode(False)  # computed once, also for training
    def group_members(self) -> Tensor:
        """Return the (G, S) int64 ids of every group, -1 at padding slots. Training needs none of them."""
        if self._group_members is None or self._group_members.device != self.token_to_group.device:
            self._group_members = self.padded_members().long()
        return self._group_members

    def class_log_prob(self, states: Tensor) -> Tensor:
        """Return the (N, K + G) log-probabilities of the shortlist, then of the groups."""
        logits = self.class_logits(states, *self.kept_class_layer())
        first = logits.log_softmax(-1) + self.log_rest().to(logits.dtype)
        return torch.cat([first, self.reserved.to(first.dtype).expand(len(states), -1)], dim=1)

    def in_group_log_prob(self, states: Tensor, groups: Tensor) -> Tensor:
        """Return the (N, S) log p(token | group) for one group per row."""
        ids = self.group_members()[groups]
        rows = ids.clamp_min(0)
        states = self.inner_states(states, groups)
        logits = at_least_fp32((self.weight[rows] @ states.unsqueeze(-1)).squeeze(-1) + self.bias[rows])
        return logits.masked_fill(ids < 0, -torch.inf).log_softmax(-1)

    def group_log_prob(self, states: Tensor, group: int) -> Tensor:
        """Return the (N, C) log p(token | group) of the C tokens of one group."""
        ids = self.group_members()[group]
        ids = ids[ids >= 0]
        states = self.inner_states(states, torch.full_like(states[:, 0], group, dtype=torch.int64))
        return at_least_fp32(F.linear(states, self.weight[ids], self.bias[ids])).log_softmax(-1)

    def log_prob(self, hidden: Tensor) -> Tensor:
        """Return the (..., V) log-probabilities of every token, from all V logits; the slow line that `loss` equals."""
        states = hidden.reshape(-1, self.n_embd)
        first = self.class_log_prob(states)
        logits = at_least_fp32(F.linear(states, *self.inner_table()))
        members = self.group_members()
        inside = logits[:, members.clamp_min(0)].masked_fill(members < 0, -torch.inf).log_softmax(-1)
        inside = inside + first[:, self.shortlist_size :, None]
        joint = torch.cat([first[:, : self.shortlist_size], inside.flatten(1)], dim=1)
        place = self.shortlist_size + self.token_to_group.long() * members.shape[1]
        place = torch.where(self.token_to_group < 0, 0, place) + self.token_to_slot
        return joint[:, place].view(*hidden.shape[:-1], self.vocab_size)

    def fit(self, weight: Tensor, bias: Tensor | None) -> None:
        """Set the rows and biases of a dense layer."""
        self.weight.copy_(weight)
        if self.shortlist_weight is not None:
            self.shortlist_weight.copy_(weight[self.outside])
        self.bias.copy_(torch.zeros_like(self.bias) if bias is None else bias)  # it may have started at log counts

    def flops_per_token(self) -> float:
        """Return 2 D (K + (G - H) R + S): of a token in a group, 2 D S more than of a token in the shortlist."""
        first = self.shortlist_size + self.group_bias.numel()
        return 2.0 * self.n_embd * (first + (self.group_size or 0))
