"""Batches of transitions from stored embeddings."""
