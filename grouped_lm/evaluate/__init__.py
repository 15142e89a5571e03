"""Evaluation: validation during training, `gvc eval`, tasks, and statistics."""
