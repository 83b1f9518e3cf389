"""Embed frames while a game is played: look up each frame and run the models on the misses."""
