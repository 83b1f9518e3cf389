"""Collect segments by playing games, or import recorded data as segments."""
