"""Embeddings of frames as they are played: look up, run the misses as one batch, remember.

What the store has is found by the frame's digest in the flat map; what it has not goes through the
same `Encoder` that fills the store, rounded the same way, so a cached and a live embedding of one
frame are the same numbers. Every frame is counted as found, remembered, or run.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsa.encode.forward import Encoder, stored
from wsa.store import keys
from wsa.store.errors import ConflictError
from wsa.store.flat import FlatMap
from wsa.store.index import DigestIndex

REMEMBERED = 50_000


class LiveEncoder:
    """Fused embeddings of single frames by several models.

    Args:
        flat: The game's flat map: what the store has, and the order of the models.
        encoders: One for each of `flat.models`, in that order.
        remember: How many frames seen live are kept in memory.

    Attributes:
        frames: Frames asked for.
        found: Of those, found in the store.
        remembered: Of those, seen live before.
    """

    def __init__(
        self, flat: FlatMap, encoders: Sequence[Encoder], remember: int = REMEMBERED
    ) -> None:
        self._flat = flat
        self._index = DigestIndex(flat.digests)
        self._encoders = list(encoders)
        self._threads = ThreadPoolExecutor(len(self._encoders) or 1)
        self._memory: OrderedDict[bytes, NDArray[Any]] = OrderedDict()
        self._remember = remember
        self.frames = 0
        self.found = 0
        self.remembered = 0

    @property
    def width(self) -> int:
        """Numbers in a fused embedding."""
        return self._flat.width

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of a fused embedding."""
        return self._flat.embeddings.dtype

    @property
    def passes(self) -> int:
        """Frames that went through a model, summed over the models."""
        return sum(encoder.passes for encoder in self._encoders)

    @property
    def hit_rate(self) -> float:
        """Share of frames that needed no pass."""
        return (self.found + self.remembered) / max(1, self.frames)

    def __call__(self, frames: NDArray[np.uint8]) -> NDArray[Any]:
        """Embed frames.

        Args:
            frames: (n, H, W, 3) uint8 RGB.

        Returns:
            (n, width) of the flat map's dtype, the models side by side.

        Raises:
            ConflictError: A model gave NaN, or a number too large for the flat map.
        """
        digests = [keys.frame_digest(frame) for frame in frames]
        rows = self._index.find(np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 16))
        out = np.empty((len(frames), self._flat.width), self._flat.embeddings.dtype)
        known = rows >= 0
        out[known] = self._flat.embeddings[rows[known]]
        self.frames += len(frames)
        self.found += int(known.sum())
        new: dict[bytes, int] = {}
        for i in np.flatnonzero(~known):
            digest = digests[i]
            if digest in self._memory:
                self._memory.move_to_end(digest)
                self.remembered += 1
            elif digest not in new:
                new[digest] = int(i)
            else:
                self.remembered += 1
        if new:
            missed = self._run(frames[list(new.values())])
            for digest, row in zip(new, missed, strict=True):
                self._memory[digest] = row.copy()  # A view would keep the whole batch in memory.
        for i in np.flatnonzero(~known):
            out[i] = self._memory[digests[i]]
        while len(self._memory) > self._remember:
            self._memory.popitem(last=False)
        return out

    def _run(self, frames: NDArray[np.uint8]) -> NDArray[Any]:
        """Every model over frames (n, H, W, 3), a thread for each model: (n, width)."""
        each = [frames] * len(self._encoders)
        parts = list(self._threads.map(self._run_one, self._flat.models, self._encoders, each))
        return np.concatenate(parts, axis=1)

    def _run_one(self, key: str, encoder: Encoder, frames: NDArray[np.uint8]) -> NDArray[Any]:
        with np.errstate(over="ignore"):
            part = stored(encoder(frames)).reshape(len(frames), -1).astype(self.dtype)
        if not np.isfinite(part).all():
            raise ConflictError(
                "not-finite",
                f"Model {key} gave an embedding that is not a number, or too large for "
                f"{self.dtype}, for a frame just played. Check the weights file; if the model "
                "was encoded with --precision, try fp32.",
            )
        return part
