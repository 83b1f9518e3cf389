"""Sample batches of transitions from stored embeddings."""
