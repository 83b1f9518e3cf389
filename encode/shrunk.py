"""Screens made small once for all models and windows that look at them while they are played.

A window of four shows three screens that the one before has shown, and models that want screens
alike show each other's. Making a grey screen small takes as long as a small network.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsa.encode.inference.encoder import Encoder
from wsa.store.common import hashing

KEPT = 1024  # Screens that are made small in one way: of 256 environments the last four.


class Shrunk:
    """The screens last seen, as models see them; may be asked by many threads.

    Args:
        encoders: The models.
        windows: Frames that each looks at.
    """

    def __init__(self, encoders: Sequence[Any], windows: Sequence[int]) -> None:
        looks = Counter[Any]()
        for encoder, window in zip(encoders, windows, strict=False):
            looks[encoder.alike] += window
        # Where one model looks at one frame at a time, there is nobody to keep it for.
        self._kept = {alike: _Kept() for alike, count in looks.items() if count > 1}

    def embed(self, encoder: Encoder, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """What a model gives for frames, to the bit as from the frames themselves.

        Args:
            encoder: One of the models.
            frames: As it takes them: (n, H, W, 3), or (n, window, H, W, 3), uint8 RGB.

        Returns:
            (n, *shape) float32.
        """
        kept = self._kept.get(encoder.alike)
        if kept is None or not encoder.shrinks(frames.shape[-3:-1]):
            return encoder(frames)
        levels = kept.levels(encoder, frames.reshape(-1, *frames.shape[-3:]))
        return encoder.of_levels(levels.reshape(*frames.shape[:-3], *levels.shape[1:]))


class _Kept:
    """Those that are made small in one way."""

    def __init__(self) -> None:
        self._levels: OrderedDict[bytes, NDArray[np.uint8]] = OrderedDict()
        self._lock = threading.Lock()

    def levels(self, encoder: Encoder, frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """What `Encoder.shrink` gives for frames (n, H, W, 3)."""
        digests = [hashing.frame_digest(frame) for frame in frames]
        with self._lock:
            new = {digest: i for i, digest in enumerate(digests) if digest not in self._levels}
            if new:
                made = encoder.shrink(frames[list(new.values())])
                # Copies: a view would keep the whole batch in memory.
                self._levels |= {digest: row.copy() for digest, row in zip(new, made, strict=True)}
            for digest in digests:
                self._levels.move_to_end(digest)
            found = np.stack([self._levels[digest] for digest in digests])
            while len(self._levels) > KEPT:
                self._levels.popitem(last=False)
        return found
