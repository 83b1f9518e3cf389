"""Segments, models and embeddings: write them, open a snapshot, read rows."""
