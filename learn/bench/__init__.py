"""Grids of runs: train, evaluate, and tabulate games, fusions, models, and seeds."""
