"""GPT-2's body: token ids in, hidden states out, no vocabulary on the way out.

Names, shapes and initialisation are those of GPT-2 (Radford et al., 2019, "Language Models are Unsupervised
Multitask Learners") as Hugging Face's `GPT2Model` has them, but projections are `nn.Linear`: their weights
are the transpose of the twin's `Conv1D` weights.

Letters: B batch, T sequence, D width, H attention heads, V vocabulary.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from grouped_lm.config import ModelConfig
from grouped_lm.models.embedding import INIT_STD, build_embedding
from grouped_lm.models.kv_cache import KVCache, LayerCache, visible

LAYER_NORM_EPS = 1e-5


class GPT2(nn.Module):
    """Pre-norm transformer with learned positions and global causal attention.

    Args:
        config: shapes and dropout; `window_size` is not used.
        vocab_size: V, >= 1, rows of the token embedding `wte`.
    """

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.config, self.block_size = config, config.block_size
        self.wte = build_embedding(config, vocab_size)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config, self.build_attention(layer)) for layer in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=LAYER_NORM_EPS)
        init_weights(self, self.c_proj_std())

    def build_attention(self, layer: int) -> nn.Module:
        """Return the attention of a layer."""
        return Attention(self.config)

    def c_proj_std(self) -> float:
        """Return the standard deviation at which residual projections start.

        Every block adds twice to the residual stream. Its variance stays that of one addition.
        """
        return INIT_STD / math.sqrt(2 * self.config.n_layer)

    def forward(self, input_ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """Return the (B, T, D) states after `ln_f`; state t depends on tokens 0..t alone.

        Args:
            input_ids: (B, T) int64 in [0, V), T in [1, block_size].
            cache: of the tokens before these; it is extended. Its length plus T must be in [1, block_size].

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
        """Map (B, T, D) to (B, T, D); `cache` is this layer's, of the tokens before."""
        x = x + (self.attn(self.ln_1(x)) if cache is None else self.attn(self.ln_1(x), cache))
        return x + self.mlp(self.ln_2(x))


def run_block(block: nn.Module, x: Tensor, cache: LayerCache | None, config: ModelConfig) -> Tensor:
    """Map (B, T, D) to (B, T, D); with `model.activation_checkpointing` the backward pass computes the inside again.

    Source: Chen et al. 2016 (arXiv 1604.06174), by `torch.utils.checkpoint`.
    """
    if cache is not None:
        return block(x, cache)
    if config.activation_checkpointing and torch.is_grad_enabled():
        return checkpoint(block, x, use_reentrant=False, preserve_rng_state=config.dropout > 0)
    return block(x)


def attend(
    q: Tensor, k: Tensor, v: Tensor, dropout: float, scale: float, mask: Tensor | None = None, *, fused: bool
) -> Tensor:
    """Return softmax(scale q k') v, (B, H, T, D/H) each, causal where no mask is given.

    Args:
        q: queries.
        k: keys.
        v: values.
        dropout: probability on the attention weights.
        scale: of the scores.
        mask: (T, T) bool, True where attention is allowed.
        fused: by torch's kernel; else as the eager attention of `transformers` does, B x H x T x T scores in memory.
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
    """(B, T, D) to (B, H, T, D/H)."""
    return x.unflatten(-1, (n_head, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, H, T, D/H) to (B, T, D): undoes `split_heads`."""
    return x.transpose(1, 2).flatten(-2)


def positions(input_ids: Tensor, block_size: int, cache: KVCache | None = None) -> Tensor:
    """Return the (T,) positions of the ids on their device: 0..T-1, or those that follow what is cached.

    Raises:
        ValueError: the last one is beyond block_size.
    """
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
    """Draw weights from N(0, INIT_STD), those called `c_proj` from N(0, c_proj_std), and set biases to 0.

    Both are standard deviations; layer norms keep PyTorch's own start, weight 1 and bias 0.
    """
    for name, module in body.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=c_proj_std if name.endswith(".c_proj") else INIT_STD)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
