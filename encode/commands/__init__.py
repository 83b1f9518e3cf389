"""The commands that encode: encode, status, models."""
