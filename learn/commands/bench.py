"""`wsa bench`: a grid of runs, on the same workers as encoding."""

from __future__ import annotations

from wsa.learn.bench import runner
from wsa.learn.configs.bench import BenchOptions


def bench(o: BenchOptions) -> int:
    """`wsa bench`."""
    return runner.bench(o)
