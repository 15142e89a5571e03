"""Tokenizers: GPT-2's, bytes, and a BPE trained on the training text."""
