"""Where a store's bytes are kept: a folder, or a bucket."""
