"""Weight Sharing Attention (WSA), its baselines, and its ablations, with one common interface."""
