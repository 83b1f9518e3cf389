"""Train the paper's own encoders on the frames of a store."""
