"""Frames in, committed embeddings out: models, preprocessing, the one forward function, and jobs."""
