"""Commands that play or learn."""
