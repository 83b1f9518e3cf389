"""Shared by all training: the loop, checkpoints, metrics, and interruption."""
