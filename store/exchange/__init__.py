"""Copy between stores, and export plain arrays."""
