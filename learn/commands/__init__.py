"""The commands that play or learn."""
