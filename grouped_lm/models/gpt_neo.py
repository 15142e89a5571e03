"""GPT-Neo's body: GPT-2 with unscaled attention scores and a local window in every second layer.

It equals Hugging Face's `GPTNeoModel` (Black et al., 2021, https://github.com/EleutherAI/gpt-neo), the body of the
TinyStories models. Names are the same, but `attn.attention` is `attn` here.

Letters: B batch, T sequence, D width, H attention heads, V vocabulary.
"""

from functools import lru_cache

import torch
from torch import Tensor, nn

from grouped_lm.config import ModelConfig
from grouped_lm.models.gpt2 import GPT2, INIT_STD, LayerCache, attend, merge_heads, split_heads, visible


class GPTNeo(GPT2):
    """Pre-norm transformer with learned positions; attention is global in even layers, local in odd ones."""

    def build_attention(self, layer: int) -> nn.Module:
        """Return the attention of a layer."""
        return NeoAttention(self.config, window_of_layer(self.config, layer))

    def c_proj_std(self) -> float:
        """Return GPT-2's standard deviation of all other weights."""
        return INIT_STD


def window_of_layer(config: ModelConfig, layer: int) -> int | None:
    """Return the number of tokens that a token of this layer sees, itself included; None means all."""
    return config.window_size if layer % 2 else None


class NeoAttention(nn.Module):
    """Causal self-attention softmax(q k') v for each head, without 1/sqrt(D/H).

    Position i sees j with i - window < j <= i. If `window` is None it sees all j <= i.
    """

    def __init__(self, config: ModelConfig, window: int | None) -> None:
        super().__init__()
        self.n_head, self.dropout, self.window = config.n_head, config.dropout, window
        self.fused = config.attention == "fused"
        self.q_proj = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.k_proj = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.v_proj = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.out_proj = nn.Linear(config.n_embd, config.n_embd)
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, cache: LayerCache | None = None) -> Tensor:
        """Map (B, T, D) to (B, T, D)."""
        q, k, v = (split_heads(proj(x), self.n_head) for proj in (self.q_proj, self.k_proj, self.v_proj))
        n_tokens = x.shape[1]
        mask = None
        if cache is not None:
            k, v = cache.append(k, v)
            mask = visible(n_tokens, k.shape[2], self.window, x.device)
        elif self.window is not None and n_tokens > self.window:  # else the window cuts nothing off
            mask = local_causal_mask(n_tokens, self.window, x.device)
        dropout = self.dropout if self.training else 0.0
        y = attend(q, k, v, dropout, 1.0, mask, fused=self.fused)
        return self.resid_dropout(self.out_proj(merge_heads(y)))


def local_causal_mask(n_tokens: int, window: int, device: torch.device) -> Tensor:
    """Return the (T, T) bool mask that is True where i - window < j <= i; made once per T and device.

    It is in no state dict. Code under `torch.compile` makes its own, which is fused away.
    """
    make = visible if torch.compiler.is_compiling() else _kept_mask
    return make(n_tokens, n_tokens, window, device)


_kept_mask = lru_cache(maxsize=4)(visible)


def forget_masks() -> None:
    """Drop the masks made so far: those of a fake step have no data, and a real step must not find them."""
    _kept_mask.cache_clear()
