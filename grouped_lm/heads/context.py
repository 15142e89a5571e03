"""The inputs from which heads are built, the places of tokens in groups, and the start of weights.

Letters: N tokens, D width, V vocabulary, T tokens of the training text, K shortlist, G groups, H of them reserved,
S slots per group.
"""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import is_fake

from grouped_lm.config import GroupingConfig, check_fields, check_range, setting
from grouped_lm.errors import ConfigError
from grouped_lm.grouping import (
    Grouping,
    Text,
    build_grouping,
    check_group_size,
    describe_groups,
    group_members,
    order_by_frequency,
)
from grouped_lm.heads.losses import kernels
from grouped_lm.heads.losses.functional import may_look
from grouped_lm.heads.losses.kernel_loss import TokenIndex
from grouped_lm.heads.unseen import MAX_SHARE, resolve_share

SHORTLIST_SIZE = 2048
"""Frequent tokens outside the groups, if a config does not say how many."""


class HeadConfig(Protocol):
    """The config of a head: a dataclass with its name and its options."""

    name: str
    """The name in `HEADS`."""


@dataclass(kw_only=True, slots=True)
class HeadOptions:
    """Options that every head of the library has."""

    reserve: bool | float = False
    """A fixed share of probability for the tokens that the training text does not have, trained with: true estimates it
    from that text, a number in [0, 0.5] is the share itself. Training would only lower their probability."""
    start: str = setting("zero", choices=("zero", "counts"))
    """The biases at the start: zero, or counts (the head then gives the tokens' shares of the training text)."""


def check_options(config: Any) -> None:
    """Raise `ConfigError` for options of a head out of range, or for `head.start=counts` without biases."""
    check_fields(config, "head")
    if not isinstance(config.reserve, bool):
        check_range("head.reserve", config.reserve, 0, MAX_SHARE)
    if config.start == "counts" and not getattr(config, "bias", True):
        raise ConfigError("head.start=counts sets biases: it needs head.bias=true")


GROUP, SLOT = "token_to_group", "token_to_slot"
"""Names of the two buffers, also in checkpoints."""


class GroupedTokens(nn.Module):
    """A module with a group and a slot for each of V tokens, saved in its checkpoints."""

    token_to_group: Tensor
    """(V,) int32; -1 for tokens outside the groups. As int64 the tables would be as large as 1,024 states of D 128."""
    token_to_slot: Tensor  # (V,) int32: the place in the group, or among the tokens outside the groups

    outside: Tensor  # (K,) ids of the tokens outside the groups, by slot
    _padded: Tensor | None
    _token_index: TokenIndex | None

    def assign_groups(
        self, token_to_group: Tensor, token_to_slot: Tensor, n_group: int, group_size: int, n_outside: int = 0
    ) -> None:
        """Register the (V,) groups and slots as buffers; G, S and K are given, since fake tensors cannot be counted."""
        self.register_buffer(GROUP, token_to_group.to(torch.int32, copy=True))
        self.register_buffer(SLOT, token_to_slot.to(torch.int32, copy=True))
        for name in ("outside", "_padded"):
            self.register_buffer(name, None, persistent=False)
        self.n_group, self._width, self._n_outside = n_group, math.ceil(group_size / 8) * 8, n_outside
        self._token_index = None
        self.sort_tokens()

    def sort_tokens(self) -> None:
        """Update what follows from the groups; also needed after those were loaded."""
        self._padded, self._token_index, last = None, None, self.token_to_group.numel()
        slots = self.token_to_slot.masked_fill(self.token_to_group >= 0, last)
        self.outside = slots.argsort()[: self._n_outside].clone()  # a view would keep all V ids in memory

    @torch.inference_mode(False)  # computed once, also for training
    def padded_members(self) -> Tensor:
        """Return the (G, S) int32 ids of every group, -1 where it has no more.

        S is rounded up to a multiple of 8, since the grouped matrix products of a GPU need that.
        """
        if self._padded is None:
            members = group_members(self.token_to_group, self.token_to_slot, self.n_group, self._width)
            self._padded = members.int()
        return self._padded

    def token_index(self) -> TokenIndex | None:
        """Return the index of the tokens for kernels; None where kernels do not run, or the head has none."""
        device = self.token_to_group.device
        if not kernels.runs_on(device):
            return None
        if torch.compiler.is_compiling():
            return self._token_index
        if self._token_index is None or self._token_index.ids.device != device:
            self._token_index = self.build_token_index()
        return self._token_index

    def build_token_index(self) -> TokenIndex | None:
        """Return the index of the tokens; None for a head without kernels."""
        return None

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Convert or move the module, and build the index anew there, since code that is being compiled cannot."""
        self._token_index = None
        super()._apply(fn, recurse)
        if not is_fake(self.token_to_group):
            self.token_index()
        return self

    def groups_and_slots(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return the (N,) int64 groups and slots of (N,) ids."""
        return self.token_to_group[tokens].long(), self.token_to_slot[tokens].long()

    def describe_groups(self, special: dict[str, int]) -> dict[str, Any]:
        """Return a description of the groups for JSON; `special` has ids by name, such as end-of-text."""
        return describe_groups(self.token_to_group, self.token_to_slot, special)

    @staticmethod
    def saved_groups(saved: Mapping[str, Tensor]) -> tuple[Tensor, Tensor] | None:
        """Return the (V,) int64 groups and slots in the saved buffers of a head; None where there are none."""
        return (saved[GROUP].long(), saved[SLOT].long()) if GROUP in saved else None


@dataclass(frozen=True, eq=False)
class HeadContext:
    """What a head may be built from, besides its own config."""

    n_embd: int  # D
    vocab_size: int  # V
    grouping: GroupingConfig
    counts: Tensor | None = None  # (V,) training occurrences, where they are known
    wte: Tensor | None = None  # (V, D) input embedding, for tied heads
    tokens: Text | None = None  # Returns the training text, for groupings made from it
    saved: Mapping[str, Tensor] = field(default_factory=dict)
    """The head's buffers in a checkpoint that is being loaded for use. They hold what the training text decided."""

    def groups(self, group_size: int | None, ids: Tensor | None = None, equal_sizes: bool = True) -> Grouping:
        """Return the grouping of all V tokens, or of (n,) `ids` alone; a checkpoint has the grouping of all V."""
        if ids is None and (saved := GroupedTokens.saved_groups(self.saved)) is not None:
            return Grouping(*saved, int(saved[0].max()) + 1, int(saved[1].max()) + 1)
        counts = self.counts if ids is None or self.counts is None else self.counts[ids]
        number = self.vocab_size if ids is None else ids.numel()
        return build_grouping(self.grouping, number, group_size, counts, self.tokens, ids, equal_sizes)

    def by_frequency(self) -> Tensor:
        """Return the (V,) token ids, most frequent first and ties by id; by id alone where no counts are known."""
        return torch.arange(self.vocab_size) if self.counts is None else order_by_frequency(self.counts)

    def token_weight(self, tied: bool) -> nn.Parameter:
        """Return a (V, D) matrix with a row per token: the input embedding, or a matrix of the head's own.

        Raises:
            ConfigError: tied, and there is no embedding of that shape.
        """
        shape = self.vocab_size, self.n_embd
        if not tied:
            weight = nn.Parameter(torch.empty(shape))
            init_linear(weight)
            return weight
        if not isinstance(self.wte, nn.Parameter) or self.wte.shape != shape:
            given = "none" if self.wte is None else f"{type(self.wte).__name__} of shape {tuple(self.wte.shape)}"
            raise ConfigError(
                f"a tied head needs wte, the input embedding, as a parameter of shape {shape}, got {given}: "
                "give wte=embedding.weight, or build the head with tied=False"
            )
        warn_of_wide_start(self.wte)
        return self.wte


@dataclass(frozen=True, slots=True)
class Placement:
    """The group and the slot of each token, in a head with a shortlist."""

    token_to_group: Tensor  # (V,) int64, -1 in the shortlist
    token_to_slot: Tensor  # (V,) int64, the place in the group or in the shortlist
    n_group: int  # G
    group_size: int  # S
    shortlist_size: int  # K
    reserved: Tensor  # (H,) log-probabilities of the last groups
    n_shared: int | None = None  # Tokens with shared rows in a checkpoint; None where there is no checkpoint


def place_tokens(
    shortlist_size: int | None, group_size: int | None, reserve: bool | float, context: HeadContext
) -> Placement:
    """Return the K most frequent tokens as the shortlist (the first ids without counts), and all others in groups.

    `shortlist_size` is K. None means `SHORTLIST_SIZE`, or less: at most V / 8 and a quarter of the text's types.
    With `reserve` groups of tokens that never occur in the training text are last, with fixed probabilities.
    """
    reserved = torch.empty(0)
    if (saved := GroupedTokens.saved_groups(context.saved)) is not None:
        groups, slots = saved
        largest = slots[groups >= 0].max() if (groups >= 0).any() else -1
        reserved = context.saved.get("reserved", reserved)
        sizes = int(groups.max()) + 1, int(largest) + 1, int((groups < 0).sum())
        return Placement(groups, slots, *sizes, reserved, len(context.saved.get("sharing", ())))
    order, size = context.by_frequency(), check_group_size(group_size, context.vocab_size)
    if shortlist_size is None:
        types = context.vocab_size if context.counts is None else int((context.counts > 0).sum())
        shortlist_size = min(SHORTLIST_SIZE, context.vocab_size // 8, types // 4)
    first, rest = order[:shortlist_size], order[shortlist_size:].sort().values
    token_to_group, token_to_slot = torch.full_like(order, -1), torch.zeros_like(order)
    token_to_slot[first] = torch.arange(first.numel())
    if not rest.numel():
        return Placement(token_to_group, token_to_slot, 0, 0, first.numel(), reserved)
    grouping = context.groups(min(size, rest.numel()), rest, equal_sizes=False)
    groups = grouping.token_to_group
    if reserve and context.counts is not None:
        share = resolve_share(reserve, context.counts, context.tokens)
        groups, reserved = reserve_groups(groups, grouping.n_group, context.counts[rest], share)
    token_to_group[rest], token_to_slot[rest] = groups, grouping.token_to_slot
    return Placement(token_to_group, token_to_slot, grouping.n_group, grouping.group_size, first.numel(), reserved)


def reserve_groups(groups: Tensor, n_group: int, inside: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Put the groups whose tokens never occur last; return the new groups and the (H,) log-probabilities of those.

    Together they get `share`, in proportion to their sizes. `inside` has the (n,) occurrences of the tokens in groups.
    """
    seen = torch.zeros(n_group, dtype=inside.dtype).index_add_(0, groups, inside) > 0
    if bool(seen.all()) or not share:
        return groups, torch.empty(0)
    order = torch.argsort(~seen, stable=True)  # of the old groups in the new order
    groups = torch.argsort(order)[groups]
    sizes = torch.bincount(groups, minlength=n_group)[int(seen.sum()) :].double()
    return groups, (sizes / sizes.sum() * share).log().float()


def warn_of_wide_start(weight: Tensor) -> None:
    """Warn where an embedding has the start of torch's `nn.Embedding`, N(0, 1).

    Logits then have a spread of sqrt(D): 64.9 nats at the first step for D = 256 and V = 50,257, instead of 10.8.
    """
    rows = weight.detach()[:256]
    if not may_look(weight) or rows.numel() < 256:
        return
    std, mean = (float(value) for value in torch.std_mean(rows.float()))
    if abs(std - 1) < 0.1 and abs(mean) < 0.1:
        warnings.warn(
            "the head is tied to an embedding that starts at N(0, 1), as torch's nn.Embedding does: the first losses "
            "will be far above log V. Draw it smaller before training: "
            "torch.nn.init.normal_(embedding.weight, std=0.02)",
            stacklevel=5,
        )


def log_mass(log_share: Tensor, classes: Tensor, n_class: int) -> Tensor:
    """Return the (C,) log-shares of classes from the (V,) of their tokens, in fp64; class -1 is left out."""
    inside, mass = classes >= 0, torch.zeros(n_class, dtype=torch.float64)
    return mass.index_add_(0, classes[inside], log_share[inside].exp()).log()


def log_shares(counts: Tensor) -> Tensor:
    """Return the logarithms of (V,) counts as shares of the text, half a token added to each, in fp64."""
    smoothed = counts.double() + 0.5
    return (smoothed / smoothed.sum()).log()


def init_linear(weight: Tensor, std: float = 0.02) -> None:
    """Draw weights from N(0, std^2); 0.02 is GPT-2's choice for embeddings and projections."""
    torch.nn.init.normal_(weight, mean=0.0, std=std)
