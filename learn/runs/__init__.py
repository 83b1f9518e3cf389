"""A run: its folder and configuration, setup, training, resuming, and evaluation."""
