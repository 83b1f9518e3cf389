"""Encode missing segments in parallel with Dask."""
