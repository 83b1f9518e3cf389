"""Segments, models and embeddings: commit them, take a snapshot, read them."""
