"""The format of a store: records, arrays, windows, and limits on hostile input."""
