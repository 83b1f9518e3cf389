"""What environments have shown last: a frame, and those before it that a model may look at."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

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

    def last(self, count: int) -> FrameWindow:
        """Its last frames alone."""
        return FrameWindow(self.frames[-count:], self.digests[-count:])


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
            frame = shown.copy()  # An environment may write over what it has shown.
            before = None if begins else self._last.get(env)
            if before is None:
                before = FrameWindow((frame,) * self._longest, (digest,) * self._longest)
            seen = FrameWindow((*before.frames[1:], frame), (*before.digests[1:], digest))
            self._last[env] = seen
            found.append(seen)
        return found


class FrameInputs:
    """What models that look at so many frames see; called, it gives some of it as an array.

    Args:
        windows: The frames that each input is made of, oldest first.
    """

    def __init__(self, windows: Sequence[FrameWindow]) -> None:
        self.windows = list(windows)

    def only(self, some: Sequence[int]) -> FrameInputs:
        """Some of these."""
        return FrameInputs([self.windows[i] for i in some])

    def __call__(self, some: Sequence[int]) -> NDArray[np.uint8]:
        """Some as a batch, (n, H, W, 3), or (n, window, H, W, 3), uint8 RGB."""
        stacked = np.stack([np.stack(self.windows[i].frames) for i in some])
        return stacked if stacked.shape[1] > 1 else stacked[:, 0]


def window_inputs(seen: Sequence[FrameWindow], window: int) -> tuple[list[bytes], FrameInputs]:
    """What a model that looks at `window` frames sees of this: identities, and the inputs."""
    windows = [one.last(window) for one in seen]
    if window == 1:
        return [one.digests[0] for one in windows], FrameInputs(windows)
    digests = [hashing.window_digest(b"".join(one.digests)) for one in windows]
    return digests, FrameInputs(windows)
