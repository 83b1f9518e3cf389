"""Turn frames into embeddings: preprocessing, engines, network output and reduction."""
