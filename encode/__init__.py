"""Frames in, committed embeddings out: models, preprocessing, one forward function, jobs."""
