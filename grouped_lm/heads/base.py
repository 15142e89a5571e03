"""The interface of an output layer: hidden states in, exact negative log-likelihoods out.

No V-wide tensor is promised. Letters: N tokens or states, D width, V vocabulary.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from grouped_lm.errors import ConfigError
from grouped_lm.heads.context import HeadContext
from grouped_lm.heads.decoding.ranks import Blocks, Ranks, ranks_by_all, ranks_by_blocks
from grouped_lm.heads.decoding.truncation import KeptTokens, Truncation, draw_from, draw_kept, truncate
from grouped_lm.heads.losses.functional import HeadLoss, flatten


class Head(nn.Module, ABC):
    """An output layer. Its forward pass computes the loss, so that DDP and FSDP see its weights used.

    A new head defines `build`, `loss`, `log_prob` and `flops_per_token`. The class attributes tell the library what
    else it needs. `topk`, `argmax` and `sample` follow from `log_prob`: the slow lines that faster heads equal.
    """

    needs_counts: ClassVar[bool] = False
    """Whether the head is built from the training occurrences of the tokens, whatever the grouping."""
    preferred_groupings: ClassVar[tuple[str, ...]] = ("merge_rank",)
    """Groupings to take where none is named, best first. The last one must need neither counts nor text."""
    no_weight_decay: ClassVar[tuple[str, ...]] = ()
    """Names of parameters that are scales, shifts or biases. The optimizer does not decay them."""
    regularised: ClassVar[bool] = False
    """Whether label smoothing and z-loss are defined for it."""
    has_reserve: ClassVar[bool] = False
    """Whether the head itself keeps `head.reserve`. To others `grouped_lm.heads.reserve` adds it."""
    sizes_follow_text: ClassVar[bool] = False
    """Whether the training text decides shapes of its parameters, so that a config alone does not tell them."""

    def __init__(self, n_embd: int, vocab_size: int) -> None:
        super().__init__()
        self.n_embd, self.vocab_size = n_embd, vocab_size
        self.register_load_state_dict_post_hook(_after_load)

    @classmethod
    @abstractmethod
    def build(cls, config: Any, context: HeadContext) -> "Head":
        """Return a freshly initialised head from its config."""

    @abstractmethod
    def loss(self, hidden: Tensor, targets: Tensor, reduction: str = "mean", accuracy: bool = False) -> HeadLoss:
        """Return the exact negative log-likelihood of the targets, in nats.

        Args:
            hidden: (..., D) states after the last norm.
            targets: (...) int64 in [0, V), or IGNORE_INDEX.
            reduction: "mean" over the targets that count, "sum", or "none" (zero at ignored ones).
            accuracy: also count right groups and tokens (heads with groups).
        """

    @abstractmethod
    def log_prob(self, hidden: Tensor) -> Tensor:
        """Return the (..., V) log-probabilities of every token, in fp32 or finer, in the order of the ids."""

    @abstractmethod
    def flops_per_token(self) -> float:
        """Return the floating-point operations of one forward pass of `loss`, per target."""

    def target_log_prob(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Return (...) log p(target), zero where ignored."""
        return -self.loss(hidden, targets, reduction="none").nll

    def forward(self, hidden: Tensor, targets: Tensor, **kwargs: Any) -> HeadLoss:
        """Return `loss(hidden, targets, **kwargs)`."""
        return self.loss(hidden, targets, **kwargs)

    def flatten(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return (N, D) states and (N,) targets; shapes, types and the range of the targets are checked."""
        return flatten(hidden, targets, self.n_embd, self.vocab_size)

    def truncate(self, hidden: Tensor, truncation: Truncation) -> KeptTokens:
        """Return the tokens that `truncation` keeps for (N, D) states, likeliest first, equals by id."""
        self.check_states(hidden)
        return truncate(self.log_prob(hidden), None, truncation)

    def topk(self, hidden: Tensor, k: int) -> KeptTokens:
        """Return the min(k, V) likeliest tokens of (N, D) states."""
        return self.truncate(hidden, Truncation(top_k=k))

    def argmax(self, hidden: Tensor) -> Tensor:
        """Return the (N,) ids of the likeliest token of (N, D) states."""
        return self.truncate(hidden, Truncation(top_k=1)).ids.squeeze(1)

    def ranks(self, hidden: Tensor, tokens: Tensor, most: int) -> Ranks:
        """Return how many tokens are likelier than each of (N,) ids for (N, D) states, counted up to `most` >= 1.

        The order is that of `truncate`: the likeliest first, equals by id. Without `blocks` it takes all V numbers.
        """
        self.check_states(hidden)
        with torch.no_grad():
            blocks = self.blocks(hidden)
            if blocks is None:
                return ranks_by_all(self.log_prob, hidden, tokens, most)
            return ranks_by_blocks(blocks, tokens, most)

    def check_states(self, hidden: Tensor) -> None:
        """Raise `ValueError` unless states are (N, D), as decoding takes them."""
        if hidden.ndim != 2 or hidden.shape[1] != self.n_embd:
            shape = tuple(hidden.shape)
            raise ValueError(
                f"decoding takes states of shape (N, {self.n_embd}), got {shape}: hidden[:, -1] of a batch"
            )

    def blocks(self, hidden: Tensor) -> Blocks | None:
        """Return the tokens in blocks for (N, D) states, from which ranks are found faster; None: there are none."""
        return None

    def sample(
        self,
        hidden: Tensor,
        generator: torch.Generator | None = None,
        *,
        temperature: float = 1.0,
        truncation: Truncation | None = None,
        num_samples: int = 1,
    ) -> Tensor:
        """Return (N, num_samples) token ids drawn from the joint distribution.

        Args:
            hidden: (N, D).
            generator: on the device of the states; None is torch's global one.
            temperature: T in [0, inf). Tokens that the truncation keeps get weight p^(1/T); 0 takes the likeliest.
            truncation: which tokens may be drawn; None means all.
            num_samples: draws per state, >= 1.

        Raises:
            ValueError: the states have another shape, or the temperature is negative or not finite.
        """
        self.check_states(hidden)
        if not 0 <= temperature < math.inf:  # NaN compares false
            raise ValueError(f"temperature must be 0 or more, and finite, got {temperature}")
        if temperature == 0:
            return self.argmax(hidden).unsqueeze(1).expand(-1, num_samples)
        return self.draw_tokens(hidden, generator, temperature, truncation or Truncation(), num_samples)

    def draw_tokens(
        self, hidden: Tensor, generator: torch.Generator | None, temperature: float, truncation: Truncation, count: int
    ) -> Tensor:
        """Return `sample` of `count` draws for temperatures above 0."""
        if not truncation.keeps_all:
            return draw_kept(self.truncate(hidden, truncation), temperature, count, generator)
        return draw_from(self.log_prob(hidden), truncation, temperature, count, generator)

    def start_from(self, log_share: Tensor) -> None:
        """Set the biases so that hidden states of zero give the (V,) log-probabilities, for `head.start=counts`."""
        if isinstance(bias := getattr(self, "bias", None), nn.Parameter):
            bias.copy_(log_share)

    # What follows is for heads with tables, and for measurements. A new head may leave it out.

    def after_load(self) -> None:
        """Update what is derived from buffers. It runs after `load_state_dict` and after a checkpoint is loaded."""

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Promise that no weight changes inside the block, so that results of weights alone may be kept."""
        yield

    def fit(self, weight: Tensor, bias: Tensor | None) -> None:
        """Set the weights of the tokens to the nearest ones to those of a dense layer, (V, D) and (V,).

        Raises:
            ConfigError: the head cannot be fitted.
        """
        raise ConfigError(f"{type(self).__name__} cannot be fitted to a dense layer: take head=shortlist, which can")

    def logits_per_token(self) -> float:
        """Return the count of numbers that `loss` computes per target, each a product over D."""
        return self.flops_per_token() / (2.0 * self.n_embd)

    def gradient_rows(self) -> int:
        """Return the rows of the gradient of a tied (V, D) table, as `loss` on a CPU gives it: V unless sparse."""
        return self.vocab_size

    def token_rows(self) -> int:
        """Return the rows of a matrix of the head that has one for each of its tokens: V, or fewer."""
        return self.vocab_size

    def trained_ids(self, seen: Tensor) -> Tensor | None:
        """Return the ids of the rows of a tied table that `loss` can train, None if those are all.

        `seen` is (V,) bool: the tokens that can be targets.
        """
        return None

    def extra_repr(self) -> str:
        """Return the sizes for `print`: V, D, and K (shortlist), G (groups), S (slots) where the head has them."""
        sizes: dict[str, Any] = {"V": self.vocab_size, "D": self.n_embd}
        sizes |= {"K": getattr(self, "shortlist_size", None), "G": getattr(self, "n_group", None)}
        sizes |= {"S": getattr(self, "group_size", None)}
        return ", ".join(f"{letter}={size:,}" for letter, size in sizes.items() if size is not None)


def _after_load(head: Any, _: Any) -> None:  # not a lambda, which cannot be pickled
    head.after_load()
