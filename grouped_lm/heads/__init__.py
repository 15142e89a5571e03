"""Output layers, one file each, with one interface (`grouped_lm.heads.base`).

A new head is a file with its config and its class, a line in `HEADS`, and a YAML file in `conf/head`.
Letters: D width, V vocabulary, T tokens of the training text.
"""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from grouped_lm.config import IGNORE_INDEX, GroupingConfig, parse_named
from grouped_lm.errors import ConfigError
from grouped_lm.grouping import GROUPINGS, Grouping, Text, parse_grouping
from grouped_lm.heads.adaptive import AdaptiveConfig, AdaptiveHead
from grouped_lm.heads.base import Head
from grouped_lm.heads.class_full import ClassFullConfig, ClassFullHead
from grouped_lm.heads.context import GroupedTokens, HeadConfig, HeadContext, HeadOptions, log_shares
from grouped_lm.heads.dense import DenseConfig, DenseHead
from grouped_lm.heads.film import FilmConfig, FilmHead
from grouped_lm.heads.grouped import GroupedConfig, GroupedHead
from grouped_lm.heads.losses.functional import HeadLoss, exact_dtype, may_look
from grouped_lm.heads.low_rank import LowRankConfig, LowRankHead
from grouped_lm.heads.regularised import RegularisedHead
from grouped_lm.heads.reserve import ReserveMixin, with_reserve
from grouped_lm.heads.sampled import SampledConfig, SampledHead
from grouped_lm.heads.scaled import ScaledHead
from grouped_lm.heads.shortlist import ShortlistConfig, ShortlistHead
from grouped_lm.heads.trim import TrimConfig, TrimHead
from grouped_lm.heads.two_level import TwoLevelHead


class HeadKind(NamedTuple):
    """A registered head, and the dataclass of its config."""

    schema: type
    head: type[Head]


HEADS: dict[str, HeadKind] = {
    "dense": HeadKind(DenseConfig, DenseHead),
    "grouped": HeadKind(GroupedConfig, GroupedHead),
    "film": HeadKind(FilmConfig, FilmHead),
    "class_full": HeadKind(ClassFullConfig, ClassFullHead),
    "shortlist": HeadKind(ShortlistConfig, ShortlistHead),
    "adaptive": HeadKind(AdaptiveConfig, AdaptiveHead),
    "low_rank": HeadKind(LowRankConfig, LowRankHead),
    "sampled": HeadKind(SampledConfig, SampledHead),
    "trim": HeadKind(TrimConfig, TrimHead),
}
"""Every head, by the name that configs and tables use."""
DEFAULT_HEAD = "shortlist"
"""The head that `gvc train` and `grouped_lm.compress` take; its settings are the defaults of its config."""


def parse_head_config(values: dict[str, Any] | str) -> Any:
    """Return the config of a head from its name, or from a dict of its name and options.

    Raises:
        ConfigError: an unknown name or key, a value of another type or out of range.
    """
    schemas = {name: kind.schema for name, kind in HEADS.items()}
    return parse_named(schemas, {"name": values} if isinstance(values, str) else values, "head")


def needs_grouping(config: HeadConfig) -> bool:
    """Return whether the head puts tokens into groups."""
    return hasattr(config, "group_size")


def needs_counts(config: HeadConfig, grouping: GroupingConfig) -> bool:
    """Return whether the head or its grouping is built from the training occurrences of the tokens."""
    from_counts = HEADS[config.name].head.needs_counts or getattr(config, "start", "zero") == "counts"
    from_counts = from_counts or bool(getattr(config, "reserve", False))
    return from_counts or (needs_grouping(config) and GROUPINGS[grouping.name].needs_counts)


def build_head(
    head: HeadConfig | str,
    n_embd: int | None = None,
    vocab_size: int | None = None,
    grouping: GroupingConfig | str | None = None,
    counts: Any = None,
    wte: Tensor | None = None,
    tokens: Any = None,
    saved: Mapping[str, Tensor] | None = None,
    **options: Any,
) -> Head:
    """Build a head, freshly initialised from torch's global generator.

    Args:
        head: the name of a head in `HEADS`, or the config of one.
        n_embd: D; None means that of `wte`.
        vocab_size: V; None means that of `wte`.
        grouping: config or name of a grouping. None means the first of the head's `preferred_groupings` for which
            counts and text are given: `brown`, `frequency`, then `merge_rank` for `shortlist`, else `merge_rank`.
        counts: (V,) training occurrences, for groupings and heads that sort their tokens. None counts `tokens`.
        wte: (V, D) input embedding, for tied heads. In bf16 or fp16 it gives all parameters its type.
        tokens: the training text for groupings made from it: (T,) ids, or a function that returns them.
        saved: the head's buffers in a checkpoint that is being loaded for use.
        options: further settings of the head, such as shortlist_size=1024.

    Raises:
        ConfigError: an unknown name or option, or a value of another type or out of range.
    """
    config = _config_of(head, options)
    if wte is not None and not isinstance(wte, Tensor):
        raise ConfigError(f"wte must be a tensor, got {type(wte).__name__}: give wte=embedding.weight")
    if wte is not None and wte.ndim == 2:
        vocab_size, n_embd = vocab_size or wte.shape[0], n_embd or wte.shape[1]
    if n_embd is None or vocab_size is None or n_embd < 1 or vocab_size < 1:
        raise ConfigError(f"a head needs n_embd and vocab_size, both at least 1, or wte; got {n_embd} and {vocab_size}")
    text, known = _checked_text(tokens, vocab_size), _checked_counts(counts, vocab_size)
    kind = HEADS[config.name].head
    if grouping is None:
        grouping = _preferred_grouping(kind, has_counts=not (known is None and text is None), has_text=text is not None)
    grouping = parse_grouping(grouping)
    if known is None and text is not None and needs_counts(config, grouping):
        known = torch.from_numpy(np.bincount(text(), minlength=vocab_size))
    return build_in_context(config, HeadContext(n_embd, vocab_size, grouping, known, wte, text, saved or {}))


def build_in_context(config: Any, context: HeadContext, kind: type[Head] | None = None) -> Head:
    """Build the head of a config, with the options that every head has: `head.reserve` and `head.start`.

    Its parameters are in the type of the input embedding where that is bf16 or fp16, as the hidden states then are.

    `kind` is the class to build; None takes the one that the config names.
    """
    if kind is None:
        scaled = getattr(config, "inner_scale", False) or getattr(config, "second_order", False)
        kind = ScaledHead if scaled else HEADS[config.name].head
    reserve = False if kind.has_reserve else getattr(config, "reserve", False)
    head = (with_reserve(kind) if reserve else kind).build(config, context)
    if isinstance(head, ReserveMixin):
        head.set_reserve(reserve, context.counts, context.tokens)
    if getattr(config, "start", "zero") == "counts" and context.counts is not None:
        with torch.no_grad():
            head.start_from(log_shares(context.counts))
    if context.wte is not None and exact_dtype(context.wte.dtype) != context.wte.dtype:
        for parameter in head.parameters():  # not head.to: tables such as shares stay exact
            parameter.data = parameter.data.to(context.wte.dtype)
    return head


def _config_of(head: Any, options: dict[str, Any]) -> Any:
    if isinstance(head, str):
        return parse_head_config({"name": head} | options)
    if not is_dataclass(head) or isinstance(head, type) or getattr(head, "name", None) not in HEADS:
        raise ConfigError(f"head must be a name ({', '.join(HEADS)}) or a config of one, got {head!r}")
    values = {spec.name: getattr(head, spec.name) for spec in fields(head)}
    return parse_head_config(values | options)


def _preferred_grouping(head: type[Head], has_counts: bool, has_text: bool) -> str:
    for name in head.preferred_groupings:
        kind = GROUPINGS[name]
        if (has_counts or not kind.needs_counts) and (has_text or not kind.needs_text):
            return name
    raise AssertionError(f"the last of {head.__name__}.preferred_groupings needs counts or text")


def _checked_counts(counts: Any, vocab_size: int) -> Tensor | None:
    if counts is None:
        return None
    if not isinstance(counts, Tensor | np.ndarray):
        raise ConfigError(
            f"counts must be a tensor of shape ({vocab_size},), got {type(counts).__name__}: torch.as_tensor(counts)"
        )
    if isinstance(counts, np.ndarray) and counts.dtype.kind == "u":  # torch has few operations for these
        counts = counts.astype(np.int64)
    known = torch.as_tensor(counts).detach().cpu()
    known = known.double() if known.is_floating_point() else known.long()
    if known.shape != (vocab_size,):
        raise ConfigError(
            f"counts must have shape ({vocab_size},), one number per token, got {tuple(known.shape)}: "
            "torch.bincount(ids, minlength=vocab_size) has it"
        )
    if may_look(known) and not bool((known >= 0).all()):
        raise ConfigError(f"counts must be 0 or more, got {known.min().item()}: they are occurrences of the tokens")
    return known


def _checked_text(tokens: Any, vocab_size: int) -> Text | None:
    """Return a function that reads the text and checks it."""
    if tokens is None:
        return None
    if not callable(tokens) and not isinstance(tokens, Tensor | np.ndarray):
        raise ConfigError(
            f"tokens must be an array or tensor of ids, or a function that returns one, got {type(tokens).__name__}: "
            "numpy.asarray(tokens)"
        )

    def read() -> "np.ndarray[Any, Any]":
        text = tokens() if callable(tokens) else tokens
        ids: np.ndarray[Any, Any] = text.numpy(force=True) if isinstance(text, Tensor) else np.asanyarray(text)
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise ConfigError(f"tokens must be one row of integer ids, got {ids.dtype} of shape {ids.shape}")
        if ids.size and (ids.min() < 0 or ids.max() >= vocab_size):
            raise ConfigError(
                f"tokens must be ids in [0, {vocab_size}), got {ids.min()} to {ids.max()}: "
                "give the vocab_size of the tokenizer that made them"
            )
        return ids

    return read


__all__ = [
    "DEFAULT_HEAD",
    "HEADS",
    "IGNORE_INDEX",
    "AdaptiveConfig",
    "AdaptiveHead",
    "ClassFullConfig",
    "ClassFullHead",
    "DenseConfig",
    "DenseHead",
    "FilmConfig",
    "FilmHead",
    "GroupedConfig",
    "GroupedHead",
    "GroupedTokens",
    "Grouping",
    "Head",
    "HeadConfig",
    "HeadContext",
    "HeadKind",
    "HeadLoss",
    "HeadOptions",
    "LowRankConfig",
    "LowRankHead",
    "RegularisedHead",
    "SampledConfig",
    "SampledHead",
    "ScaledHead",
    "ShortlistConfig",
    "ShortlistHead",
    "TrimConfig",
    "TrimHead",
    "TwoLevelHead",
    "build_head",
    "build_in_context",
    "needs_counts",
    "needs_grouping",
    "parse_head_config",
]
