"""Keep the last frames of each environment, for models with a window."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from wsa.store.common import hashing


@dataclasses.dataclass(frozen=True)
class FrameWindow:
    """A frame and the frames of its episode before it.

    Attributes:
        frames: Frames (H, W, 3) uint8 RGB, oldest first. At the start of an episode its first frame
            is repeated.
        digests: Digests of the frames.
    """

    frames: tuple[NDArray[np.uint8], ...]
    digests: tuple[bytes, ...]

    def last(self, count: int) -> FrameWindow:
        """Return a window of the last `count` frames."""
        return FrameWindow(self.frames[-count:], self.digests[-count:])


class FrameHistory:
    """The last frames of each environment.

    Args:
        longest: Number of frames to keep, the longest window of any model.
    """

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._last: dict[int, FrameWindow] = {}

    def push(
        self, frames: NDArray[np.uint8], first: NDArray[np.bool_], envs: NDArray[np.int64]
    ) -> list[FrameWindow]:
        """Add frames in order and return the window that ends at each.

        Args:
            frames: Frames (n, H, W, 3) uint8 RGB.
            first: Whether each frame begins an episode, (n,); its window has no older ones.
            envs: Environment of each frame, (n,).
        """
        windows = []
        for shown, begins, env in zip(frames, first, envs.tolist(), strict=True):
            digest = hashing.frame_digest(shown)
            frame = shown.copy()  # The environment may reuse its buffer.
            before = None if begins else self._last.get(env)
            if before is None:
                before = FrameWindow((frame,) * self._longest, (digest,) * self._longest)
            seen = FrameWindow((*before.frames[1:], frame), (*before.digests[1:], digest))
            self._last[env] = seen
            windows.append(seen)
        return windows


class FrameInputs:
    """Inputs of models with the same window; calling it stacks some of them into an array.

    Args:
        windows: Frames of each input, oldest first.
    """

    def __init__(self, windows: Sequence[FrameWindow]) -> None:
        self.windows = list(windows)

    def only(self, some: Sequence[int]) -> FrameInputs:
        """Return a selection of the inputs, by index."""
        return FrameInputs([self.windows[i] for i in some])

    def __call__(self, some: Sequence[int]) -> NDArray[np.uint8]:
        """Stack some inputs into a batch (n, H, W, 3), or (n, window, H, W, 3), uint8 RGB."""
        stacked = np.stack([np.stack(self.windows[i].frames) for i in some])
        return stacked if stacked.shape[1] > 1 else stacked[:, 0]


def window_inputs(seen: Sequence[FrameWindow], window: int) -> tuple[list[bytes], FrameInputs]:
    """Return the digests and the inputs for a model with this `window`."""
    windows = [one.last(window) for one in seen]
    if window == 1:
        return [one.digests[0] for one in windows], FrameInputs(windows)
    digests = [hashing.window_digest(b"".join(one.digests)) for one in windows]
    return digests, FrameInputs(windows)
