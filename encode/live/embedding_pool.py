"""Embed inputs in parallel threads, each on one core.

The work is cut into pieces, by models and by inputs. One thread runs each piece, and torch and
OpenVINO use one core in it, so cores never wait for each other inside an operation. Since a frame's
embedding does not depend on its batch, the result does not depend on the number of threads.
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
"""Embeds the inputs from one index up to another: (n, width)."""


class EmbeddingPool:
    """A pool of threads that embed."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._pool = ThreadPoolExecutor(
            threads, "embed", initializer=torch.set_num_threads, initargs=(1,)
        )

    def begin(
        self,
        count: int,
        models: Sequence[tuple[Piece, bool]],
        keep: Callable[[NDArray[Any]], None],
    ) -> Embeddings:
        """Start embedding inputs with several models.

        Args:
            count: Number of inputs, at least 1.
            models: For each model, a function that embeds some inputs, and whether to split the
                inputs over threads.
            keep: Called once with all rows, when they are ready and first asked for.
        """
        parts = [
            [self._pool.submit(_timed, embed, *ends) for ends in self._cut(count, apart)]
            for embed, apart in models
        ]
        return Embeddings(parts, keep)

    def _cut(self, count: int, apart: bool) -> list[tuple[int, int]]:
        """Split `count` inputs into parts of equal size, one per thread."""
        parts = min(count, self.threads) if apart else 1
        ends = [count * i // parts for i in range(parts + 1)]
        return list(itertools.pairwise(ends))


class Embeddings:
    """Embeddings in progress.

    Attributes:
        seconds: Time that the models took, summed over the threads; 0 until `rows` returned.
    """

    def __init__(
        self,
        parts: list[list[Future[tuple[NDArray[Any], float]]]],
        keep: Callable[[NDArray[Any]], None],
    ) -> None:
        self._parts, self._keep = parts, keep
        self._rows: NDArray[Any] | None = None
        self.seconds = 0.0

    def rows(self) -> NDArray[Any]:
        """Wait for the embeddings, (n, width), the models side by side.

        Raises:
            WsaError: If a model failed; every call raises it again.
        """
        if self._rows is None:
            done = [[part.result() for part in of_model] for of_model in self._parts]
            by_model = [np.concatenate([rows for rows, _ in of_model]) for of_model in done]
            self._rows = np.concatenate(by_model, axis=1)
            self.seconds = sum(seconds for of_model in done for _, seconds in of_model)
            self._keep(self._rows)
        return self._rows


def _timed(embed: Piece, begin: int, end: int) -> tuple[NDArray[Any], float]:
    began = time.perf_counter()
    return embed(begin, end), time.perf_counter() - began
