"""Which frames make up a window: those of a row and of the rows before it, within its episode.

A window of w frames is what an agent that remembers w of them has seen at a row. Before an episode's
first frame that frame is repeated, as `gymnasium.wrappers.FrameStackObservation` does with
`padding_type="reset"`. A segment that begins inside an episode first repeats frames from before its
first step (`context` rows), so the windows of all other rows are those of the whole episode. Those of
context rows begin with the earliest row at hand; nothing is learned from them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wsa.store.common import hashing
from wsa.store.common.errors import UsageError
from wsa.store.format.stacks import MAX_STACK_FRAMES


def episode_starts(is_first: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Row where each row's episode begins in the segment; row 0 where it began before."""
    return np.maximum.accumulate(np.where(is_first, np.arange(len(is_first)), 0))


def window_rows(
    rows: NDArray[np.int64], starts: NDArray[np.int64], window: int
) -> NDArray[np.int64]:
    """The rows that windows are made of, oldest first.

    Args:
        rows: (n,) rows where windows end.
        starts: (n,) rows where their episodes begin.
        window: Frames in a window, at most `MAX_STACK_FRAMES`.

    Returns:
        (n, window) rows.

    Raises:
        UsageError: The window is longer than what segments repeat of each other.
    """
    if not 1 <= window <= MAX_STACK_FRAMES:
        raise UsageError(
            "bad-option",
            f"A stack of {window} frames: segments hold what stacks of 1 to {MAX_STACK_FRAMES} "
            "need. Choose one of these.",
        )
    back = np.arange(window - 1, -1, -1)
    found: NDArray[np.int64] = np.maximum(rows[:, None] - back, starts[:, None])
    return found


def window_digests(digests: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Identities of windows, (n, 16), from the digests of their frames, (n, w, 16) uint8."""
    found = b"".join(hashing.window_digest(window.tobytes()) for window in digests)
    return np.frombuffer(found, np.uint8).reshape(-1, hashing.DIGEST_BYTES)
