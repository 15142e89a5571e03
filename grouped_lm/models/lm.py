"""A language model is a body and a head; and what a body costs, without building it.

Letters: B batch, T sequence, D width, V vocabulary, L layers, P longest context (block_size).
"""

from typing import Any

from torch import Tensor, nn

from grouped_lm.config import ModelConfig
from grouped_lm.heads.base import Head
from grouped_lm.heads.losses.functional import HeadLoss
from grouped_lm.models.embedding import estimate_embedding_params
from grouped_lm.models.gpt2 import check_seq_len
from grouped_lm.models.gpt_neo import window_of_layer
from grouped_lm.models.kv_cache import KVCache


class LanguageModel(nn.Module):
    """head(body(input_ids), targets).

    The loss is taken inside `forward`, so that wrappers such as DDP and FSDP see every weight used.

    Args:
        body: (B, T) ids to (B, T, D) hidden states.
        head: hidden states and targets to their loss.
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
        """Return the (B, T, D) states that the head reads; see the body for `cache`."""
        return self.body(input_ids) if cache is None else self.body(input_ids, cache)


def estimate_body_params(config: ModelConfig, vocab_size: int) -> int:
    """Return the parameters of the built body: E + P D + L (12 D^2 + b D) + 2 D.

    E is V D, or less for a factorised input embedding. 12 D^2 is q, k, v and output (4) and the MLP (8); b counts
    biases and two layer norms: 13 for GPT-2, and 10 for GPT-Neo, which has none on q, k, v. An untied head comes on
    top.

    Args:
        config: shapes.
        vocab_size: V.
    """
    width = config.n_embd
    biases_and_norms = 10 if config.body == "gpt_neo" else 13
    per_layer = 12 * width**2 + biases_and_norms * width
    embeddings = estimate_embedding_params(config, vocab_size) + config.block_size * width
    return embeddings + config.n_layer * per_layer + 2 * width


def estimate_body_flops_per_token(config: ModelConfig, seq_len: int) -> float:
    """Return the operations of the body's forward pass, per token: sum over layers of 24 D^2 + 4 D K.

    A multiply and its add count as two. 24 D^2 is 2 for each of the 12 D^2 matrix parameters of a layer; q k'
    and the weighted sum of v take 2 D each for every key that a token sees, K keys on average: (T + 1) / 2
    with causal attention (half of the full T x T), and w - w (w - 1) / (2 T) with a window, where
    w = min(window_size, T). Embeddings, norms, biases, gelu and softmax are left out. A training step takes
    about three times as much.

    Args:
        config: shapes.
        seq_len: T, tokens, in [1, block_size].

    Raises:
        ValueError: seq_len is out of range.
    """
    check_seq_len(seq_len, config.block_size)
    total = 24.0 * config.n_layer * config.n_embd**2
    for layer in range(config.n_layer):
        window = window_of_layer(config, layer) if config.body == "gpt_neo" else None
        span = seq_len if window is None else min(window, seq_len)
        total += 4.0 * config.n_embd * (span - span * (span - 1) / (2 * seq_len))
    return total
