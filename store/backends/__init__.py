"""Backends that keep a store's bytes: a folder or a bucket."""
