"""Threads that embed side by side, each on one core.

What is to be embedded is cut into pieces, frames by models, and each piece is run by one thread, in
which torch and OpenVINO use one core. So cores never wait for each other inside an operation, and
since a frame's embedding does not depend on its batch, nothing depends on how many threads there are.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Piece = Callable[[int, int], NDArray[Any]]
"""Embeds inputs from one number up to another: (n, width)."""


class EmbeddingPool:
    """Threads, and what they are given.

    Args:
        threads: How many.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._pool = ThreadPoolExecutor(
            threads, "embed", initializer=torch.set_num_threads, initargs=(1,)
        )

    def begin(self, count: int, models: Sequence[tuple[Piece, bool]]) -> Embeddings:
        """Begin to embed inputs by several models.

        Args:
            count: How many inputs, at least 1.
            models: What embeds some of them, and whether it may be given them in parts.
        """
        parts = [
            [self._pool.submit(_timed, embed, *ends) for ends in self._cut(count, apart)]
            for embed, apart in models
        ]
        return Embeddings(parts)

    def _cut(self, count: int, apart: bool) -> list[tuple[int, int]]:
        """Parts of equal size, one a thread."""
        parts = min(count, self.threads) if apart else 1
        ends = [count * i // parts for i in range(parts + 1)]
        return list(itertools.pairwise(ends))


class Embeddings:
    """Embeddings that are being made.

    Args:
        parts: Of each model, what makes some of its rows, and the seconds that took.
    """

    def __init__(self, parts: list[list[Future[tuple[NDArray[Any], float]]]]) -> None:
        self._parts = parts

    def result(self) -> tuple[NDArray[Any], float]:
        """Wait for them: (n, width), the models side by side, and seconds summed over the threads.

        Raises:
            WsaError: A model failed. What it raised is raised again whenever it is asked.
        """
        done = [[part.result() for part in of_model] for of_model in self._parts]
        rows = [np.concatenate([rows for rows, _ in of_model]) for of_model in done]
        seconds = sum(seconds for of_model in done for _, seconds in of_model)
        return np.concatenate(rows, axis=1), seconds


def _timed(embed: Piece, begin: int, end: int) -> tuple[NDArray[Any], float]:
    began = time.perf_counter()
    return embed(begin, end), time.perf_counter() - began
