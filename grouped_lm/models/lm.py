"""Language models: a body and a head, built from the config of a run; and the cost of a body, without building it.

Letters: B batch, T sequence, D width, V vocabulary, L layers, P longest context (block_size).
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from grouped_lm.config import Config, ModelConfig
from grouped_lm.data.tokenizers.base import vocab_size_of
from grouped_lm.errors import ConfigError
from grouped_lm.heads import HEADS, Head, HeadLoss, RegularisedHead, build_head, needs_counts
from grouped_lm.models.gpt2 import GPT2, KVCache, check_seq_len, estimate_embedding_params
from grouped_lm.models.gpt_neo import GPTNeo, window_of_layer

BODIES: dict[str, type[GPT2] | type[GPTNeo]] = {"gpt2": GPT2, "gpt_neo": GPTNeo}
"""Every body by the name that `model.body` uses."""


class LanguageModel(nn.Module):
    """head(body(input_ids), targets).

    The loss is taken inside `forward`, so that wrappers such as DDP and FSDP see every weight used.
    """

    def __init__(self, body: nn.Module, head: Head) -> None:
        super().__init__()
        self.body = body
        self.head = head

    def forward(self, input_ids: Tensor, targets: Tensor, **kwargs: Any) -> HeadLoss:
        """Return the head's loss, in nats.

        Args:
            input_ids: (B, T) int64 in [0, V), T in [1, block_size].
            targets: (B, T) int64 in [0, V) or IGNORE_INDEX: the tokens that follow.
            kwargs: for the head, such as reduction="sum".

        Raises:
            ValueError: T is above block_size, or the shapes differ.
        """
        return self.head(self.hidden(input_ids), targets, **kwargs)

    def hidden(self, input_ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """Return the (B, T, D) states that the head reads; `cache` is that of the body."""
        return self.body(input_ids) if cache is None else self.body(input_ids, cache)


def build_body(config: ModelConfig, vocab_size: int) -> GPT2 | GPTNeo:
    """Build the body that `config.body` names, freshly initialised from torch's global generator.

    Returns:
        A module that maps (B, T) int64 ids in [0, vocab_size) to (B, T, D) hidden states.

    Raises:
        ValueError: vocab_size is below 1.
    """
    if vocab_size < 1:
        raise ValueError(f"vocab_size must be at least 1, got {vocab_size}")
    return BODIES[config.body](config, vocab_size)


def build_lm(
    config: Config,
    count_tokens: Callable[[], np.ndarray] | None = None,
    read_tokens: Callable[[], np.ndarray] | None = None,
    saved: Mapping[str, Tensor] | None = None,
    vocab_size: int | None = None,
) -> LanguageModel:
    """Build the model of a run, freshly initialised from torch's global generator.

    Args:
        config: the run.
        count_tokens: gives the (V,) occurrences in the training text; called only where head or grouping need them.
        read_tokens: gives the training text, (T,) ids; called only for context clusters.
        saved: the head's buffers in a checkpoint that is being loaded for use (`train_state.head_buffers`).
        vocab_size: V; None means the tokenizer's.

    Raises:
        ConfigError: the head does not fit the rest of the config, or its grouping cannot be built.
    """
    check_head(config)
    vocab_size = vocab_size or vocab_size_of(config.tokenizer)
    body = build_body(config.model, vocab_size)
    counts = None
    if count_tokens is not None and needs_counts(config.head, config.grouping):
        counts = torch.from_numpy(count_tokens())
    head = build_head(
        config.head,
        config.model.n_embd,
        vocab_size,
        grouping=config.grouping,
        counts=counts,
        wte=body.wte.weight if isinstance(body.wte, nn.Embedding) else None,
        tokens=read_tokens,
        saved=saved,
    )
    if isinstance(head, RegularisedHead):
        head.regularise(config.train.label_smoothing, config.train.z_loss)
    return LanguageModel(body, head)


def check_head(config: Config) -> None:
    """Check that the head fits the rest of the config.

    Raises:
        ConfigError: it is tied, and the input embedding is no table, or one in rows that only the dense head can share;
            or it lacks the losses that are to be added.
    """
    if config.model.embedding != "table" and getattr(config.head, "tied", False):
        raise ConfigError(
            f"model.embedding={config.model.embedding} has no row per token for head={config.head.name} to share: "
            "set head.tied=false"
        )
    if config.train.vocab_parallel:
        _check_rows(config)
    if (config.train.label_smoothing or config.train.z_loss) and not HEADS[config.head.name].head.regularised:
        allowed = ", ".join(name for name, (_, head) in HEADS.items() if head.regularised)
        raise ConfigError(
            f"train.label_smoothing and train.z_loss must be 0 for head={config.head.name}, "
            f"got {config.train.label_smoothing} and {config.train.z_loss}: they are defined for {allowed}"
        )


def _check_rows(config: Config) -> None:
    head = config.head
    if config.head.name == "dense":
        if getattr(head, "reserve", False):
            raise ConfigError(
                f"train.vocab_parallel=true has no head.reserve, got {head.reserve}: set head.reserve=false"
            )
        return
    if config.model.embedding != "table":
        raise ConfigError(
            "train.vocab_parallel=true finds no table with a row per token to cut with "
            f"model.embedding={config.model.embedding} and head={head.name}: leave it out"
        )
    if getattr(head, "tied", False):
        raise ConfigError(
            f"train.vocab_parallel=true leaves no process the whole table that head={head.name} shares: "
            "set head.tied=false, or take head=dense or one without such a table, as grouped"
        )


def count_params(model: LanguageModel) -> tuple[int, int]:
    """Return the parameters of the whole model and of the head alone; a tied table counts with the embedding."""
    body = {id(p) for p in model.body.parameters()}
    own = sum(p.numel() for p in model.head.parameters() if id(p) not in body)
    return sum(p.numel() for p in model.parameters()), own


def estimate_body_params(config: ModelConfig, vocab_size: int) -> int:
    """Return the number of parameters of the built body: E + P D + L (12 D^2 + b D) + 2 D.

    E is V D, or less for a factorised input embedding. 12 D^2 is q, k, v and output (4) and the MLP (8). b counts
    biases and two layer norms: 13 for GPT-2, and 10 for GPT-Neo, which has no biases on q, k, v. An untied head is not
    counted.
    """
    width = config.n_embd
    biases_and_norms = 10 if config.body == "gpt_neo" else 13
    per_layer = 12 * width**2 + biases_and_norms * width
    embeddings = estimate_embedding_params(config, vocab_size) + config.block_size * width
    return embeddings + config.n_layer * per_layer + 2 * width


def estimate_body_flops_per_token(config: ModelConfig, seq_len: int) -> float:
    """Return the operations of the body's forward pass, per token: sum over layers of 24 D^2 + 4 D K.

    A multiply and its add count as two. 24 D^2 is 2 for each of the 12 D^2 matrix parameters of a layer. q k' and the
    weighted sum of v take 2 D each for every key that a token sees, K keys on average: (T + 1) / 2 with causal
    attention (half of the full T x T), and w - w (w - 1) / (2 T) with a window, where w = min(window_size, T).
    Embeddings, norms, biases, gelu and softmax are left out. A training step takes about three times as much.

    Raises:
        ValueError: seq_len, T in tokens, is not in [1, block_size].
    """
    check_seq_len(seq_len, config.block_size)
    total = 24.0 * config.n_layer * config.n_embd**2
    for layer in range(config.n_layer):
        window = window_of_layer(config, layer) if config.body == "gpt_neo" else None
        span = seq_len if window is None else min(window, seq_len)
        total += 4.0 * config.n_embd * (span - span * (span - 1) / (2 * seq_len))
    return total
