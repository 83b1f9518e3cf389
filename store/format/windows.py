"""Windows of consecutive frames: the frame of a row and of the rows before it in its episode.

At the start of an episode, the first frame is repeated, as
`gymnasium.wrappers.FrameStackObservation` does with `padding_type="reset"`. A segment that begins
inside an episode starts with frames from before its first step (`context` rows). So the windows of
all other rows are the same as in the whole episode. Windows of context rows begin with the
segment's first row; no training uses them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wsa.store.common import hashing
from wsa.store.common.errors import UsageError
from wsa.store.format.stacks import MAX_STACK_FRAMES


def episode_starts(is_first: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the first row of each row's episode; 0 if the episode began before the segment.

    Args:
        is_first: Whether a row is the first of its episode, shape (rows,).

    Returns:
        Rows, shape (rows,).
    """
    return np.maximum.accumulate(np.where(is_first, np.arange(len(is_first)), 0))


def window_rows(
    rows: NDArray[np.int64], starts: NDArray[np.int64], window: int
) -> NDArray[np.int64]:
    """Return the rows of each window, oldest first.

    Args:
        rows: Last row of each window, shape (n,).
        starts: First row of each window's episode, shape (n,).
        window: Frames per window, at most `MAX_STACK_FRAMES`.

    Returns:
        Rows, shape (n, window).

    Raises:
        UsageError: If the window is longer than the context that segments store.
    """
    if not 1 <= window <= MAX_STACK_FRAMES:
        raise UsageError(
            f"A stack of {window} frames is not possible: segments hold what stacks of 1 to "
            f"{MAX_STACK_FRAMES} need. Choose one of these."
        )
    offsets = np.arange(window - 1, -1, -1)
    result: NDArray[np.int64] = np.maximum(rows[:, None] - offsets, starts[:, None])
    return result


def window_digests(digests: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the digests of windows, shape (n, 16), from those of their frames, (n, w, 16)."""
    joined = b"".join(hashing.window_digest(window.tobytes()) for window in digests)
    return np.frombuffer(joined, np.uint8).reshape(-1, hashing.DIGEST_BYTES)
