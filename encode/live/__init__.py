"""Embed frames while a game is played: look each one up, run what is missing."""
