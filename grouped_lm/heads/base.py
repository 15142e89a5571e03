"""The interface of an output layer: hidden states in, exact negative log-likelihoods out, no V-wide tensor promised.

Letters: B batch, T sequence, N = B*T, D width, V vocabulary, G groups, S slots per group.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import is_fake

from grouped_lm.config import IGNORE_INDEX, GroupingConfig, check_choice
from grouped_lm.errors import ConfigError
from grouped_lm.grouping import Grouping, build_grouping, order_by_frequency
from grouped_lm.heads.decoding.truncation import KeptTokens, Truncation, draw_from, draw_kept, truncate


@dataclass(slots=True)
class HeadLoss:
    """Negative log-likelihood in nats and its parts; scalars, or shaped like the targets for reduction="none"."""

    nll: Tensor
    """-log p(token) = group_nll + token_nll, exactly."""
    group_nll: Tensor | None = None
    """-log p(group); None for heads without groups. It and `token_nll` have gradients under reduction="none" alone."""
    token_nll: Tensor | None = None
    """-log p(token | group)."""
    group_correct: Tensor | None = None
    """Targets whose group is the likeliest one; asked for with accuracy=True."""
    token_correct: Tensor | None = None
    """Targets that are the likeliest token of their own group."""
    extra: Tensor | None = None
    """What training adds to `nll`, which stays the likelihood; see `Head.regularise`. None where nothing is added."""

    def objective(self) -> Tensor:
        """Return what training lowers: nll, and the extra if there is one."""
        return self.nll if self.extra is None else self.nll + self.extra

    def over(self, counted: Tensor) -> "HeadLoss":
        """Return the means of sums: every loss divided by the () number of targets that count."""
        parts = (self.nll, self.group_nll, self.token_nll, self.extra)
        nll, group, token, extra = (None if part is None else part / counted for part in parts)
        assert nll is not None  # no loss is without it
        return HeadLoss(nll, group, token, self.group_correct, self.token_correct, extra)


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
    tokens: Callable[[], np.ndarray] | None = None
    """Gives the training text, (T,) ids, for groupings by the company that tokens keep."""
    saved: Mapping[str, Tensor] = field(default_factory=dict)
    """The head's buffers in the checkpoint that is being loaded for use: what the training text decided."""

    def groups(self, group_size: int | None, ids: Tensor | None = None, equal: bool = True) -> Grouping:
        """Return the grouping of all V tokens, or of `ids` alone; see `build_grouping`.

        A checkpoint that is being loaded brings the one of all V.
        """
        if ids is None and "token_to_group" in self.saved:
            groups, slots = self.saved["token_to_group"].long(), self.saved["token_to_slot"].long()
            return Grouping(groups, slots, int(groups.max()) + 1, int(slots.max()) + 1)
        counts = self.counts if ids is None or self.counts is None else self.counts[ids]
        number = self.vocab_size if ids is None else ids.numel()
        return build_grouping(self.grouping, number, group_size, counts, self.tokens, ids, equal)

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
    preferred_groupings: ClassVar[tuple[str, ...]] = ("merge_rank",)
    """Groupings to take where none is named, best first; the last needs neither counts nor text."""
    regularised: ClassVar[bool] = False
    """Whether label smoothing and z-loss are defined for it."""
    sizes_follow_text: ClassVar[bool] = False
    """Whether the training text decides shapes of its parameters, which shapes of a run alone do not tell."""

    def __init__(self, n_embd: int, vocab_size: int) -> None:
        super().__init__()
        self.n_embd, self.vocab_size = n_embd, vocab_size
        self.label_smoothing, self.z_loss = 0.0, 0.0
        self.register_load_state_dict_post_hook(_derive_anew)

    def regularise(self, label_smoothing: float, z_loss: float) -> None:
        """Add to the loss under `train()`, at the level of the first softmax.

        That is the one over V for heads without groups, over groups (and what stands beside them) for others; a
        softmax inside a group is left alone.

        Args:
            label_smoothing: e in [0, 1): adds e (mean -log p - nll), so that targets share e with all classes.
            z_loss: adds z_loss * (log of the partition function)^2, as in PaLM (arXiv 2204.02311, section 5).

        Raises:
            ValueError: this head has no such loss.
        """
        if (label_smoothing or z_loss) and not self.regularised:
            raise ValueError(f"{type(self).__name__} has no label smoothing and no z-loss")
        self.label_smoothing, self.z_loss = label_smoothing, z_loss

    @property
    def adds_extra(self) -> bool:
        """Whether `loss` has to give an extra now."""
        return self.training and bool(self.label_smoothing or self.z_loss)

    def extra_of(self, nll: Tensor, target_logit: Tensor, mean_logit: Tensor, counted: Tensor) -> Tensor:
        """Return the (N,) extra of a softmax, all arguments (N,); no logits of all classes are needed.

        -log p of class c is log Z - logit[c], so mean -log p - nll is target_logit - mean_logit, and log Z is nll +
        target_logit.
        """
        extra = self.label_smoothing * (target_logit - mean_logit) + self.z_loss * (nll + target_logit).square()
        return extra.masked_fill(~counted, 0.0)

    def logits_extra(self, logits: Tensor, classes: Tensor, nll: Tensor, counted: Tensor) -> Tensor | None:
        """Return `extra_of` the (N, C) logits of the first softmax; None where nothing is added."""
        if not self.adds_extra:
            return None
        target = logits.gather(1, classes.clamp_min(0)[:, None]).squeeze(1)
        return self.extra_of(nll, target, logits.mean(1), counted)

    @classmethod
    @abstractmethod
    def build(cls, config: Any, context: HeadContext) -> "Head":
        """Return a freshly initialised head of this kind from its own config."""

    def after_load(self) -> None:
        """Derive anew what follows from buffers that were overwritten; `load_state_dict` calls it by itself."""

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Promise that no weight changes inside, so that what follows from them alone is made once for many tokens."""
        yield

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

    def logits_per_token(self) -> float:
        """Return how many numbers `loss` computes per target, each a product of D."""
        return self.flops_per_token() / (2.0 * self.n_embd)

    def gradient_rows(self) -> int:
        """Return how many rows the gradient of a tied (V, D) table has, as a CPU's `loss` gives it: V unless sparse."""
        return self.vocab_size

    def target_log_prob(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Return (...) log p(target), zero where ignored."""
        return -self.loss(hidden, targets, reduction="none").nll

    def truncate(self, hidden: Tensor, truncation: Truncation) -> KeptTokens:
        """Return the tokens that `truncation` keeps of the joint distribution, likeliest first, equals by id.

        Args:
            hidden: (N, D).
            truncation: by rank, cumulated probability, or share of the likeliest.
        """
        return truncate(self.log_prob(hidden), None, truncation)

    def topk(self, hidden: Tensor, k: int) -> KeptTokens:
        """Return the min(k, V) likeliest tokens of (N, D) states."""
        return self.truncate(hidden, Truncation(top_k=k))

    def argmax(self, hidden: Tensor) -> Tensor:
        """Return (N,) ids of the likeliest token of (N, D) states."""
        return self.truncate(hidden, Truncation(top_k=1)).ids.squeeze(1)

    def sample(
        self,
        hidden: Tensor,
        generator: torch.Generator | None = None,
        *,
        temperature: float = 1.0,
        truncation: Truncation | None = None,
        num_samples: int = 1,
    ) -> Tensor:
        """Draw (N, num_samples) token ids from the joint distribution.

        Args:
            hidden: (N, D).
            generator: on the device of the states; None is torch's global one.
            temperature: T >= 0; tokens that the truncation leaves get weight p^(1/T), 0 takes the likeliest.
            truncation: what may be drawn; None is all.
            num_samples: draws per state, >= 1.
        """
        if temperature == 0:
            return self.argmax(hidden).unsqueeze(1).expand(-1, num_samples)
        truncation = truncation or Truncation()
        if not truncation.keeps_all:
            return draw_kept(self.truncate(hidden, truncation), temperature, num_samples, generator)
        return draw_from(self.log_prob(hidden), truncation, temperature, num_samples, generator)


def _derive_anew(head: Any, _: Any) -> None:
    head.after_load()


def may_look(values: Tensor) -> bool:
    """Return whether numbers may be read here and now: on a CPU that nobody traces; a GPU's step would wait."""
    return values.device.type == "cpu" and not torch.compiler.is_compiling() and not is_fake(values)


def flatten(hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return (N, D) states and (N,) targets.

    Raises:
        ValueError: the leading shapes differ, or a target is below 0 and not IGNORE_INDEX (where it `may_look`).
    """
    if hidden.shape[:-1] != targets.shape:
        raise ValueError(f"hidden {tuple(hidden.shape)} and targets {tuple(targets.shape)} do not match")
    if may_look(targets) and targets.numel():
        lowest = int(targets.masked_fill(targets == IGNORE_INDEX, 0).min())
        if lowest < 0:
            raise ValueError(f"a target is {lowest}: ids are 0 and above, and what counts nowhere is {IGNORE_INDEX}")
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
    targets: Tensor,
    reduction: str,
    group: tuple[Tensor, Tensor | None],
    token: tuple[Tensor, Tensor | None],
    extra: Tensor | None = None,
) -> HeadLoss:
    """Add up two steps, each the (N,) losses and hits of `classify`, into the loss of targets of any shape.

    Both losses may be sums already, where the reduction is not none; the parts carry a gradient only where it is: else
    one operator has made that of both. `extra`, (N,), is that of `Head.logits_extra`.
    """

    def finish(values: Tensor) -> Tensor:
        return reduce_nll(values.view(targets.shape) if values.ndim else values, targets, reduction)

    def count(hits: Tensor | None) -> Tensor | None:
        if hits is None:
            return None
        return hits.view(targets.shape) if reduction == "none" else hits.sum()

    return HeadLoss(
        nll=finish(group[0] + token[0]),
        group_nll=finish(group[0] if reduction == "none" else group[0].detach()),
        token_nll=finish(token[0] if reduction == "none" else token[0].detach()),
        group_correct=count(group[1]),
        token_correct=count(token[1]),
        extra=None if extra is None else finish(extra),
    )


def at_least_fp32(logits: Tensor) -> Tensor:
    """Return fp16 and bf16 logits as fp32: a softmax in less loses digits that the loss shows."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def check_bias_start(start: str, bias: bool) -> None:
    """Check `head.start` of a head whose biases are an option.

    Raises:
        ConfigError: neither zero nor counts, or counts and no biases.
    """
    check_choice("head.start", start, ("zero", "counts"))
    if start == "counts" and not bias:
        raise ConfigError("head.start=counts sets biases: it needs head.bias=true")


def log_shares(counts: Tensor) -> Tensor:
    """Return the logarithms of (V,) counts as shares of the text, half a token added to each, in fp64."""
    smoothed = counts.double() + 0.5
    return (smoothed / smoothed.sum()).log()


def init_linear(weight: Tensor, std: float = 0.02) -> None:
    """Initialise as GPT-2 does its embeddings and projections: N(0, 0.02)."""
    torch.nn.init.normal_(weight, mean=0.0, std=std)
