"""`wsa bench`: a grid of runs, on the workers that encoding has."""

from __future__ import annotations

from wsa.encode.jobs.cluster import connect
from wsa.learn.bench import runner
from wsa.learn.configs.bench import BenchOptions


def bench(o: BenchOptions) -> int:
    """`wsa bench`."""
    return runner.bench(o, connect)
