"""GPT-2's body: token ids in, hidden states out. It has no output layer. A cache lets it read each token once.

Names, shapes and initialisation are those of GPT-2 (Radford et al., 2019, "Language Models are Unsupervised Multitask
Learners") in Hugging Face's `GPT2Model`. But projections are `nn.Linear`: the transpose of its `Conv1D` weights.

Letters: B batch, T sequence, D width, H attention heads, V vocabulary, G groups, S slots per group,
E width of one head, P longest context (block_size).
"""

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from grouped_lm.config import ModelConfig
from grouped_lm.grouping import default_group_size

LAYER_NORM_EPS = 1e-5
INIT_STD = 0.02
"""Standard deviation of freshly drawn embeddings, as GPT-2's."""


class FactorisedEmbedding(nn.Module):
    """scale[g] * slot[s] + shift[g] for the token of id g S + s: (2 G + S) D numbers instead of V D.

    S is round(sqrt V). It is `head=film` on the input side (arXiv 2411.06371 compresses the output alone). Groups are
    by id, also if the head has another grouping. `scale` starts at random signs. So tokens in one slot of different
    groups start nearly unrelated, and the product has the spread of a table's rows.
    """

    no_weight_decay: ClassVar[tuple[str, ...]] = ("scale", "shift")

    def __init__(self, vocab_size: int, n_embd: int) -> None:
        super().__init__()
        self.group_size = default_group_size(vocab_size)
        n_group = -(-vocab_size // self.group_size)
        self.slot = nn.Parameter(INIT_STD * torch.randn(self.group_size, n_embd))
        self.scale = nn.Parameter(torch.randn(n_group, n_embd))
        self.shift = nn.Parameter(INIT_STD * torch.randn(n_group, n_embd))

    def forward(self, input_ids: Tensor) -> Tensor:
        """Map (...) int64 ids in [0, V) to (..., D)."""
        groups, slots = input_ids // self.group_size, input_ids % self.group_size
        return F.embedding(groups, self.scale) * F.embedding(slots, self.slot) + F.embedding(groups, self.shift)


def build_embedding(config: ModelConfig, vocab_size: int) -> nn.Embedding | FactorisedEmbedding:
    """Build the input embedding that `config.embedding` names."""
    if config.embedding == "factorised":
        return FactorisedEmbedding(vocab_size, config.n_embd)
    return nn.Embedding(vocab_size, config.n_embd)


def estimate_embedding_params(config: ModelConfig, vocab_size: int) -> int:
    """Return V D, or (2 G + S) D."""
    if config.embedding == "table":
        return vocab_size * config.n_embd
    size = default_group_size(vocab_size)
    return (2 * -(-vocab_size // size) + size) * config.n_embd


class LayerCache:
    """One layer's keys and values, (B, H, P, E) each, of which `length` places are filled."""

    def __init__(self, block_size: int) -> None:
        self.block_size, self.length = block_size, 0
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add (B, H, T, E) keys and values, and return all of them, (B, H, length, E) each."""
        if self.keys is None or self.values is None:
            shape = (*keys.shape[:2], self.block_size, keys.shape[3])
            self.keys, self.values = keys.new_empty(shape), values.new_empty(shape)
        stop = self.length + keys.shape[2]
        self.keys[:, :, self.length : stop] = keys
        self.values[:, :, self.length : stop] = values
        self.length = stop
        return self.keys[:, :, :stop], self.values[:, :, :stop]

    def select(self, rows: Tensor) -> None:
        """Keep (R,) rows of the batch."""
        if self.keys is not None and self.values is not None:
            self.keys, self.values = self.keys[rows], self.values[rows]


class KVCache:
    """The caches of all layers. A body with a cache takes its input as the next tokens."""

    def __init__(self, n_layer: int, block_size: int) -> None:
        self.block_size = block_size
        self.layers = [LayerCache(block_size) for _ in range(n_layer)]
        self.recent: Tensor | None = None  # (B, n) last ids, for models that look at them again

    @property
    def length(self) -> int:
        """Number of tokens read so far, the same in every layer between two calls of a body."""
        return self.layers[-1].length

    def select(self, rows: Tensor) -> None:
        """Keep (R,) rows of the batch."""
        for layer in self.layers:
            layer.select(rows)
        self.recent = None if self.recent is None else self.recent[rows]


def visible(n_new: int, n_all: int, window: int | None, device: torch.device) -> Tensor:
    """Return the (n_new, n_all) bool mask of the keys that the last n_new of n_all tokens see.

    Token i sees j with i - window < j <= i, or all j <= i where window is None.
    """
    distance = torch.arange(n_all - n_new, n_all, device=device)[:, None] - torch.arange(n_all, device=device)
    return (distance >= 0) & (distance < (n_all if window is None else window))


class GPT2(nn.Module):
    """Pre-norm transformer with learned positions and global causal attention; `config.window_size` is not used."""

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.config, self.block_size = config, config.block_size
        self.wte = build_embedding(config, vocab_size)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config, self.build_attention(layer)) for layer in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=LAYER_NORM_EPS)
        init_weights(self, self.c_proj_std())
        nn.init.constant_(self.ln_f.weight, config.ln_f_gain)

    def build_attention(self, layer: int) -> nn.Module:
        """Return the attention of a layer."""
        return Attention(self.config)

    def c_proj_std(self) -> float:
        """Return the standard deviation at which residual projections start: each block adds twice to the stream."""
        return INIT_STD / math.sqrt(2 * self.config.n_layer)

    def forward(self, input_ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """Return the (B, T, D) states after `ln_f`; state t depends on tokens 0..t alone.

        Args:
            input_ids: (B, T) int64 in [0, V), T in [1, block_size].
            cache: of the tokens before these. These are added to it. Its length plus T must be in [1, block_size].

        Raises:
            ValueError: T is above block_size.
        """
        x = self.drop(self.wte(input_ids) + self.wpe(positions(input_ids, self.block_size, cache)))
        for layer, block in enumerate(self.h):
            x = run_block(block, x, None if cache is None else cache.layers[layer], self.config)
        return self.ln_f(x)


class Attention(nn.Module):
    """Causal self-attention: softmax(q k' / sqrt(D / H)) v for each head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_head, self.dropout, self.fused = config.n_head, config.dropout, config.attention == "fused"
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, cache: LayerCache | None = None) -> Tensor:
        """Map (B, T, D) to (B, T, D)."""
        q, k, v = (split_heads(part, self.n_head) for part in self.c_attn(x).chunk(3, dim=-1))
        mask = None
        if cache is not None:
            k, v = cache.append(k, v)
            mask = visible(q.shape[2], k.shape[2], None, x.device)
        dropout = self.dropout if self.training else 0.0
        y = attend(q, k, v, dropout, q.shape[-1] ** -0.5, mask, fused=self.fused)
        return self.resid_dropout(self.c_proj(merge_heads(y)))


class MLP(nn.Module):
    """c_proj(gelu(c_fc(x))), four times as wide inside; gelu by its tanh formula ("gelu_new")."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, D) to (B, T, D)."""
        return self.dropout(self.c_proj(F.gelu(self.c_fc(x), approximate="tanh")))


class Block(nn.Module):
    """x + attn(ln_1(x)), then x + mlp(ln_2(x)), with any kind of attention."""

    def __init__(self, config: ModelConfig, attn: nn.Module) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=LAYER_NORM_EPS)
        self.attn = attn
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=LAYER_NORM_EPS)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cache: LayerCache | None = None) -> Tensor:
        """Map (B, T, D) to (B, T, D); `cache` has this layer's keys and values of earlier tokens."""
        x = x + (self.attn(self.ln_1(x)) if cache is None else self.attn(self.ln_1(x), cache))
        return x + self.mlp(self.ln_2(x))


def run_block(block: nn.Module, x: Tensor, cache: LayerCache | None, config: ModelConfig) -> Tensor:
    """Map (B, T, D) to (B, T, D); activation checkpointing (Chen et al. 2016, arXiv 1604.06174) keeps no inside."""
    if cache is not None:
        return block(x, cache)
    if config.activation_checkpointing and torch.is_grad_enabled():
        return checkpoint(block, x, use_reentrant=False, preserve_rng_state=config.dropout > 0)
    return block(x)


def attend(
    q: Tensor, k: Tensor, v: Tensor, dropout: float, scale: float, mask: Tensor | None = None, *, fused: bool
) -> Tensor:
    """Return softmax(scale q k') v, (B, H, T, D/H) each, causal where no (T, T) bool mask is given.

    `dropout` is a probability on the attention weights. `fused` uses torch's kernel. Without it B x H x T x T scores
    are in memory, as in the eager attention of `transformers`.
    """
    if fused:
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scale
        )
    if mask is None:
        mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril()
    scores = (q @ k.transpose(-1, -2) * scale).masked_fill(~mask, torch.finfo(q.dtype).min)
    weights = scores.softmax(-1, dtype=torch.float32).to(v.dtype)
    return F.dropout(weights, dropout) @ v


def split_heads(x: Tensor, n_head: int) -> Tensor:
    """Return (B, T, D) as (B, H, T, D/H)."""
    return x.unflatten(-1, (n_head, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """Return (B, H, T, D/H) as (B, T, D)."""
    return x.transpose(1, 2).flatten(-2)


def positions(input_ids: Tensor, block_size: int, cache: KVCache | None = None) -> Tensor:
    """Return the (T,) positions of the ids: 0 to T - 1, or those after the cached tokens."""
    start = 0 if cache is None else cache.length
    stop = start + input_ids.shape[-1]
    check_seq_len(stop, block_size)
    return torch.arange(start, stop, device=input_ids.device)


def check_seq_len(n_tokens: int, block_size: int) -> None:
    """Raise `ValueError` unless 1 <= n_tokens <= block_size."""
    if not 1 <= n_tokens <= block_size:
        raise ValueError(
            f"sequence length must be in [1, {block_size}] (model.block_size), got {n_tokens}; "
            "cut the input or build the model with a larger model.block_size"
        )


@torch.no_grad()
def init_weights(body: nn.Module, c_proj_std: float = INIT_STD) -> None:
    """Draw weights from N(0, INIT_STD^2), those called `c_proj` from N(0, c_proj_std^2), and set biases to 0."""
    for name, module in body.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=c_proj_std if name.endswith(".c_proj") else INIT_STD)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
