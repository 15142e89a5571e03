"""Optimizers, the learning rate, and metrics of a step that are read from the device only when due."""
