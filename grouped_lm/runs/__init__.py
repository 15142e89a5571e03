"""A run on disk: its folder, identity, checkpoints, metrics, and tables of runs."""
