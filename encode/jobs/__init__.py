"""Encode what is missing, in parallel, with Dask."""
