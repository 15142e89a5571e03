"""Tokenizers: GPT-2's, bytes, and BPE trained on the run's own text."""
