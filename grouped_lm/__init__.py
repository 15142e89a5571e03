"""Compressed output layers for language models: heads, groupings, training and measurement.

import grouped_lm

head = grouped_lm.build_head("grouped", n_embd=256, vocab_size=50_257)
loss = head(hidden, targets)              # exact, in nats, without a V-wide tensor
loss.backward()

compressed = grouped_lm.compress(model)   # a causal language model of transformers gets a compressed output layer
model, tokenizer = grouped_lm.load_run("runs/my-run")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grouped_lm.heads import Head, HeadLoss, build_head
    from grouped_lm.hf.compress import compress
    from grouped_lm.runs.load import load_run

__version__ = "0.2.0"
__all__ = ["Head", "HeadLoss", "__version__", "build_head", "compress", "load_run"]

_MODULES = {
    "Head": "grouped_lm.heads",
    "HeadLoss": "grouped_lm.heads",
    "build_head": "grouped_lm.heads",
    "compress": "grouped_lm.hf.compress",
    "load_run": "grouped_lm.runs.load",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use. It imports torch, which `gvc --help` must not wait for."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    """Return the public names."""
    return __all__
