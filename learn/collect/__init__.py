"""Collect segments by playing games, or import them from other data."""
