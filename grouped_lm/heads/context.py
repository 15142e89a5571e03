"""The inputs from which heads are built, and the start of their weights.

Letters: D width, V vocabulary, T tokens of the training text.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from grouped_lm.config import GroupingConfig, check_choice
from grouped_lm.errors import ConfigError
from grouped_lm.grouping import Grouping, build_grouping, order_by_frequency
from grouped_lm.heads.grouped_tokens import GroupedTokens
from grouped_lm.heads.losses.functional import may_look

Text = Callable[[], "np.ndarray[Any, Any]"]
"""Returns the training text, (T,) ids. It is called only where the text is needed."""


class HeadConfig(Protocol):
    """The config of a head: a dataclass with its name and its options."""

    name: str
    """The name in `HEADS`."""


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
    tokens: Text | None = None
    """Returns the training text, for groupings made from it."""
    saved: Mapping[str, Tensor] = field(default_factory=dict)
    """The head's buffers in a checkpoint that is being loaded for use. They hold what the training text decided."""

    def groups(self, group_size: int | None, ids: Tensor | None = None, equal_sizes: bool = True) -> Grouping:
        """Return the grouping of all V tokens, or of `ids` alone; a checkpoint brings the grouping of all V.

        Args:
            group_size: S; None means round(sqrt V).
            ids: (n,) tokens to group; None means all.
            equal_sizes: whether clusters must have equal sizes.
        """
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


def check_bias_start(start: str, bias: bool) -> None:
    """Check `head.start` of a head whose biases are an option.

    Raises:
        ConfigError: neither zero nor counts, or counts without biases.
    """
    check_choice("head.start", start, ("zero", "counts"))
    if start == "counts" and not bias:
        raise ConfigError("head.start=counts sets biases: it needs head.bias=true")


def log_shares(counts: Tensor) -> Tensor:
    """Return the logarithms of (V,) counts as shares of the text, half a token added to each, in fp64."""
    smoothed = counts.double() + 0.5
    return (smoothed / smoothed.sum()).log()


def init_linear(weight: Tensor, std: float = 0.02) -> None:
    """Draw weights from N(0, std^2); 0.02 is GPT-2's choice for embeddings and projections."""
    torch.nn.init.normal_(weight, mean=0.0, std=std)
