"""Run each frozen vision model once per distinct frame, and learn from the stored embeddings."""

__version__ = "0.1.0"
