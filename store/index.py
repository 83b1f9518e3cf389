"""Which frames are already there: from a frame's digest to a row number, for millions of frames.

Digests are kept sorted as 16-byte words and searched by bisection: 16 bytes a frame, no Python
object per frame, and a look-up of many digests is one numpy call.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wsa.store.keys import DIGEST_BYTES


class DigestIndex:
    """Rows of digests, searchable.

    Args:
        digests: (N, 16) uint8, row i belonging to frame i. Of equal digests the first row is found.
    """

    def __init__(self, digests: NDArray[np.uint8]) -> None:
        words = _words(digests)
        order = np.argsort(words, kind="stable")
        self._sorted = words[order]
        self._rows = order.astype(np.int64)

    def __len__(self) -> int:
        """Number of rows, repeated digests included."""
        return len(self._rows)

    def find(self, digests: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Row of each digest, or -1.

        Args:
            digests: (M, 16) uint8.

        Returns:
            (M,) int64.
        """
        wanted = _words(digests)
        if not len(self._rows):
            return np.full(len(wanted), -1, np.int64)
        at = np.minimum(np.searchsorted(self._sorted, wanted), len(self._rows) - 1)
        return np.where(self._sorted[at] == wanted, self._rows[at], -1)


def first_seen(digests: NDArray[np.uint8]) -> NDArray[np.int64]:
    """For each digest, the row where the same digest stands first, (N,) int64."""
    return DigestIndex(digests).find(digests)


def _words(digests: NDArray[np.uint8]) -> NDArray[np.void]:
    """(N, 16) uint8 as N opaque words, which numpy sorts and searches bytewise."""
    return np.ascontiguousarray(digests, np.uint8).reshape(-1, DIGEST_BYTES).view("V16").ravel()
