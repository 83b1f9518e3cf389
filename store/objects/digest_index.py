"""Index from a frame's digest to its row number, for 10^8 frames and more.

A digest is two 64-bit words. Rows are sorted by the first word, which numpy sorts and searches at
the speed of integers; the second word confirms a match. A frame takes 24 bytes and no Python
object, and a few numpy calls look up many digests.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wsa.store.common.hashing import DIGEST_BYTES


class DigestIndex:
    """Searchable rows of digests.

    Args:
        digests: Digest of frame i in row i, shape (N, 16), uint8. If digests repeat, `find` returns
            the first row.
    """

    def __init__(self, digests: NDArray[np.uint8]) -> None:
        self._high, self._low, self._rows = _sorted(digests)

    def __len__(self) -> int:
        """Number of rows, including repeated digests."""
        return len(self._rows)

    def find(self, digests: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Return the row of each digest, or -1.

        Args:
            digests: Digests, shape (M, 16), uint8.

        Returns:
            Rows, shape (M,), int64.
        """
        high, low = _words(digests)
        result = np.full(len(high), -1, np.int64)
        pending = np.arange(len(high))
        at = np.searchsorted(self._high, high)
        while len(pending):  # One iteration, unless different digests share their first word.
            inside = at < len(self._high)
            pending, at = pending[inside], at[inside]
            same = self._high[at] == high[pending]
            pending, at = pending[same], at[same]
            hit = self._low[at] == low[pending]
            result[pending[hit]] = self._rows[at[hit]]
            pending, at = pending[~hit], at[~hit] + 1
        return result


def first_seen(digests: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return, for each digest, the first row with the same digest, shape (N,), int64."""
    high, low, rows = _sorted(digests)
    begins = np.ones(len(rows), np.bool_)
    begins[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    del high, low
    first = np.empty(len(rows), np.int64)
    first[rows] = rows[np.flatnonzero(begins)[np.cumsum(begins) - 1]]
    return first


def _sorted(
    digests: NDArray[np.uint8],
) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.int64]]:
    """Return both words and the rows, sorted by digest, then by row."""
    high, low = _words(digests)
    rows = np.argsort(high, kind="stable")
    high, low = high[rows], low[rows]
    if ((high[1:] == high[:-1]) & (low[1:] != low[:-1])).any():  # Only for crafted digests.
        order = np.lexsort((low, high))  # Stable.
        high, low, rows = high[order], low[order], rows[order]
    return high, low, rows


def _words(digests: NDArray[np.uint8]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    words = np.ascontiguousarray(digests, np.uint8).reshape(-1, DIGEST_BYTES).view(np.uint64)
    return words[:, 0], words[:, 1]
