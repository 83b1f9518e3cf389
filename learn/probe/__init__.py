"""Linear probes: how much of a game's state a model's embeddings hold."""
