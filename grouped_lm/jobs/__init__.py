"""Processes of ours: sweeps, launched trainers, device slots."""
