"""What environments have shown last: a frame, and those before it that a model may look at."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from wsa.store.common import hashing


@dataclasses.dataclass(frozen=True)
class FrameWindow:
    """A frame as it was played, and those of its episode before it.

    Attributes:
        frames: (H, W, 3) uint8 RGB each, oldest first; an episode's first is repeated before it.
        digests: Theirs.
    """

    frames: tuple[NDArray[np.uint8], ...]
    digests: tuple[bytes, ...]


class FrameHistory:
    """The last frames of each environment.

    Args:
        longest: How many of them windows reach back to; 1 where no model has a window.
    """

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._last: dict[int, FrameWindow] = {}

    def push(
        self, frames: NDArray[np.uint8], first: NDArray[np.bool_], envs: NDArray[np.int64]
    ) -> list[FrameWindow]:
        """Take frames, one after the other.

        Args:
            frames: (n, H, W, 3) uint8 RGB.
            first: (n,) whether each begins an episode: what was before it is forgotten.
            envs: (n,) which environments they are of.
        """
        found = []
        for shown, begins, env in zip(frames, first, envs.tolist(), strict=True):
            digest = hashing.frame_digest(shown)
            # An environment may write over what it has shown.
            frame = shown if self._longest == 1 else shown.copy()
            before = None if begins else self._last.get(env)
            if before is None:
                before = FrameWindow((frame,) * self._longest, (digest,) * self._longest)
            seen = FrameWindow((*before.frames[1:], frame), (*before.digests[1:], digest))
            self._last[env] = seen
            found.append(seen)
        return found


def window_inputs(
    seen: Sequence[FrameWindow], window: int
) -> tuple[list[bytes], Callable[[list[int]], NDArray[np.uint8]]]:
    """What a model that looks at `window` frames sees of this.

    Returns:
        The identities of the frames, or windows; and what gives some of them as a batch,
        (n, H, W, 3), or (n, window, H, W, 3), uint8 RGB.
    """
    if window == 1:
        return (
            [one.digests[-1] for one in seen],
            lambda some: np.stack([seen[i].frames[-1] for i in some]),
        )
    return (
        [hashing.window_digest(b"".join(one.digests[-window:])) for one in seen],
        lambda some: np.stack([np.stack(seen[i].frames[-window:]) for i in some]),
    )
