"""Grouped output layers for language models: heads, groupings, training and exact measurement.

from grouped_lm.heads import GroupedConfig, build_head
head = build_head(GroupedConfig(), n_embd=256, vocab_size=50_257)
loss = head(hidden, targets).nll          # exact, without a V-wide tensor
"""

__version__ = "0.1.0"
