"""Training: the loop, and how a run continues from a checkpoint."""
