"""Predict memory and time of a run without a step."""
