"""From frames to embeddings: preprocessing, engines, the network, its output and reduction."""
