"""States as rows in which all models stand side by side, gathered from a flat map.

A state of k frames is k rows, oldest first. Each has what the models of single frames gave for its
frame. What a model with a window gave, for the window that ends with the state, stands in the last
row; where no state ends there are zeros in its place, which nobody reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsa.store.objects.flat_map import FlatMap


class StateRows:
    """Gathers rows into one buffer.

    Args:
        flat: The data.

    Attributes:
        width: Numbers in a row.
    """

    def __init__(self, flat: FlatMap) -> None:
        self._flat = flat
        self.width = flat.width + flat.window_width
        # One buffer for every batch: numpy gathers into it without allocating.
        self._buffer = np.empty((0, 0, self.width), flat.embeddings.dtype)

    def gather(
        self, frames: NDArray[np.int64], ends: Mapping[int, NDArray[np.int64]]
    ) -> NDArray[Any]:
        """Gather runs of rows.

        Args:
            frames: (B, m) which frames they show, as `FlatMap.stack` gives them.
            ends: By place in the run, the (B,) rows of the flat map at which states end there.

        Returns:
            (B, m, width), the caller's until the next call.
        """
        flat, (count, length) = self._flat, frames.shape
        if self._buffer.shape[1] != length or len(self._buffer) < count:
            self._buffer = np.zeros((count, length, self.width), self._buffer.dtype)
        out = self._buffer[:count]
        if not flat.window_width:
            flat.gather(frames.ravel(), out.reshape(-1, self.width))
            return out
        single = flat.embeddings[frames]
        windows = {
            at: flat.gather_windows(rows, np.empty((count, flat.window_width), out.dtype))
            for at, rows in ends.items()
        }
        for window, place, columns in zip(flat.windows, flat.places, flat.columns, strict=True):
            if window == 1:
                out[:, :, place] = single[:, :, columns]
            else:
                for at, seen in windows.items():
                    out[:, at, place] = seen[:, columns]
        return out
