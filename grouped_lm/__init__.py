"""Grouped output layers for language models: heads, groupings, training and exact measurement.

from grouped_lm.heads import GroupedConfig, build_head
head = build_head(GroupedConfig(), n_embd=256, vocab_size=50_257)
loss = head(hidden, targets).nll          # exact, without a V-wide tensor

compressed = grouped_lm.compress(model)   # a causal LM of transformers gets a compressed output layer
"""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import `compress` when it is asked for: it brings torch along, and `gvc --help` must not wait for that."""
    if name == "compress":
        from grouped_lm.hf.compress import compress

        return compress
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
