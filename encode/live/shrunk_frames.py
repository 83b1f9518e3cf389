"""Cache the last screens in resized form, so that models with the same preprocessing share them."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsa.encode.inference.encoder import Encoder
from wsa.encode.live.frame_history import FrameInputs, FrameWindow

MAX_SHRUNK = 1024  # Screens per preprocessing: the last four of 256 environments.


class ShrunkFrames:
    """Embeds frames through a cache of resized screens; safe for many threads.

    Args:
        windows: Number of frames that each model sees.
    """

    def __init__(self, encoders: Sequence[Any], windows: Sequence[int]) -> None:
        looks = Counter[Any]()
        for encoder, window in zip(encoders, windows, strict=False):
            looks[encoder.alike] += window
        # A single model of single frames would never reuse a screen.
        shared = {alike for alike, count in looks.items() if alike is not None and count > 1}
        self._caches = {alike: _ShrunkCache() for alike in shared}
        models = Counter(encoder.alike for encoder in encoders)
        self._of_several = {alike for alike, count in models.items() if count > 1}

    def embed(self, encoder: Encoder, inputs: FrameInputs) -> NDArray[np.float32]:
        """Embed inputs with a model; the result equals that of the original frames to the bit.

        Args:
            encoder: One of the models.
            inputs: Inputs with the model's window.

        Returns:
            Embeddings (n, *shape) float32.
        """
        cache = self._caches.get(encoder.alike)
        if cache is None or not self._worth_keeping(encoder, inputs.windows[0].frames[0]):
            return encoder(inputs(range(len(inputs.windows))))
        levels = cache.levels(encoder, inputs.windows)
        return encoder.embed_shrunk(levels if levels.shape[1] > 1 else levels[:, 0])

    def _worth_keeping(self, encoder: Encoder, frame: NDArray[np.uint8]) -> bool:
        """Return whether to cache: small gray screens always, others only if models share them.

        Other screens are no smaller than the frame.
        """
        on_cpu = encoder.device.type == "cpu"
        return encoder.shrinks(frame.shape[:2]) or (on_cpu and encoder.alike in self._of_several)


class _ShrunkCache:
    """Cache of screens resized with the same preprocessing, least recently used first."""

    def __init__(self) -> None:
        self._levels: OrderedDict[bytes, NDArray[np.uint8]] = OrderedDict()
        self._lock = threading.Lock()

    def levels(self, encoder: Encoder, windows: Sequence[FrameWindow]) -> NDArray[np.uint8]:
        """Return the levels of `Encoder.shrink` for windows, (n, window, channels, h, w)."""
        frames = {
            digest: frame
            for window in windows
            for digest, frame in zip(window.digests, window.frames, strict=True)
        }
        # Hold the lock while resizing, since the next thread usually needs the same screens.
        with self._lock:
            fresh = [digest for digest in frames if digest not in self._levels]
            if fresh:
                small = encoder.shrink(np.stack([frames[digest] for digest in fresh]))
                # Copy, since a view would keep the whole batch in memory.
                self._levels |= zip(fresh, map(np.copy, small), strict=True)
            for digest in frames:
                self._levels.move_to_end(digest)
            levels = np.stack([self._levels[digest] for w in windows for digest in w.digests])
            while len(self._levels) > MAX_SHRUNK:
                self._levels.popitem(last=False)
        return levels.reshape(len(windows), -1, *levels.shape[1:])
