"""Play games into segments, or import them from elsewhere."""
