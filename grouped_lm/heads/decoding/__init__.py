"""Exact sampling, top-k and argmax on the joint distribution of two-level heads."""
