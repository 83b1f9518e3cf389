"""What a store's bytes mean: records, arrays, windows, and the limits on hostile input."""
