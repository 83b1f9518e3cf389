"""Atari environments, and policies to play them."""
