"""Identify a model, choose its engine, check its probe vectors, and commit it to a store."""
