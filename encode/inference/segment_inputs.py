"""Build a model's inputs from a segment: single frames, or windows of frames.

A model with a window of 1 has one input per distinct frame of a segment; any other model has one
per row. Equal inputs have equal digests across segments and games, so each needs only one pass.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

from wsa.store.format.records import SegmentMeta
from wsa.store.format.windows import episode_starts, window_digests, window_rows
from wsa.store.objects.model_spec import Preprocessing
from wsa.store.objects.snapshot import Snapshot

# A hundred megabytes with windows of four screens; also the batch size on a GPU.
WINDOWS_AT_ONCE = 256


@dataclasses.dataclass(frozen=True)
class SegmentFrames:
    """Frames of a segment, and what models with a window need of its rows.

    Attributes:
        pictures: Distinct frames, uint8: (F, H, W) indices into `palette`, or (F, H, W, 3) RGB.
        palette: Colors (256, 3) uint8 RGB; None if the pictures are RGB.
        frame: Index into `pictures` of each row, (rows,) int64; empty if no model has a window.
        starts: First row of each row's episode, (rows,) int64; empty if no model has a window.
        small: Cache of resized frames, by preprocessing; filled on demand.
    """

    pictures: NDArray[np.uint8]
    palette: NDArray[np.uint8] | None
    frame: NDArray[np.int64]
    starts: NDArray[np.int64]
    small: dict[Preprocessing, _Small] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def frames(self) -> NDArray[np.uint8]:
        """Distinct frames, (F, H, W, 3) uint8 RGB."""
        return self.pictures if self.palette is None else self.palette[self.pictures]

    def inputs(self, window: int, chosen: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
        """Yield chosen inputs, in parts, since overlapping windows repeat frames in memory.

        Args:
            window: Number of frames in an input.
            chosen: Indices (n,) of frames, or of rows if `window` > 1.

        Yields:
            Frames (m, H, W, 3) uint8 RGB, or windows (m, window, H, W, 3), oldest first.
        """
        if window == 1:
            yield self.frames if len(chosen) == len(self.frames) else self.frames[chosen]
            return
        for some in _parts(self._indices(window, chosen)):
            yield self.frames[some]

    def levels(
        self,
        window: int,
        chosen: NDArray[np.int64],
        how: Preprocessing,
        shrink: Callable[[NDArray[np.uint8]], NDArray[np.uint8]],
    ) -> Iterator[NDArray[np.uint8]]:
        """Yield chosen inputs resized; each frame is resized once for all models and windows.

        Args:
            window: Number of frames in an input.
            chosen: Indices (n,) of frames, or of rows if `window` > 1.
            shrink: Function that resizes frames (n, H, W, 3), or gray ones (n, H, W), to uint8
                (n, channels, h, w).

        Yields:
            Levels (m, channels, h, w) uint8, or (m, window, channels, h, w), oldest first.
        """
        alike = how.alike
        if alike not in self.small:
            shape = (len(self.pictures), 1 if how.gray else 3, how.height, how.width)
            self.small[alike] = _Small(np.empty(shape, np.uint8), np.zeros(shape[0], np.bool_))
        small = self.small[alike]
        indices = self._indices(window, chosen)
        missing = np.unique(indices[~small.made[indices]])
        read = self._gray() if how.gray else lambda batch: self.frames[batch]
        for some in _parts(missing):
            small.levels[some] = shrink(read(some))
        small.made[missing] = True
        for some in _parts(indices):
            yield small.levels[some]

    def _indices(self, window: int, chosen: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the frames of chosen inputs, (n,), or (n, window) with the oldest first."""
        if window == 1:
            return chosen
        return self.frame[window_rows(chosen, self.starts[chosen], window)]

    def _gray(self) -> Callable[[NDArray[np.int64]], NDArray[np.uint8]]:
        """Return a function from frame indices to gray screens, or to RGB without a palette.

        The palette's 256 colors are converted to gray once. Frames are then looked up in it and
        need no RGB copy of three times the size.
        """
        if self.palette is None:
            return lambda some: self.frames[some]
        levels = cv2.cvtColor(self.palette[None], cv2.COLOR_RGB2GRAY)[0]
        return lambda some: levels[self.pictures[some]]


def _parts(indices: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    for at in range(0, len(indices), WINDOWS_AT_ONCE):
        yield indices[at : at + WINDOWS_AT_ONCE]


@dataclasses.dataclass(frozen=True)
class _Small:
    """Resized frames (F, channels, h, w) uint8, and whether each is computed yet (F,)."""

    levels: NDArray[np.uint8]
    made: NDArray[np.bool_]


def read_segment_frames(snapshot: Snapshot, meta: SegmentMeta, *, rows: bool) -> SegmentFrames:
    """Read a segment's frames and, if `rows` is set, the row data that models with a window need.

    Raises:
        MissingError: If the store lacks the frames.
        DamagedError: If stored bytes differ from the committed ones.
    """
    none = np.zeros(0, np.int64)
    frame, starts = _rows(snapshot, meta) if rows else (none, none)
    return SegmentFrames(*snapshot.read_pictures(meta), frame, starts)


def input_digests(snapshot: Snapshot, meta: SegmentMeta, window: int) -> NDArray[np.uint8]:
    """Return the digests of a segment's inputs, (n, 16) uint8."""
    digests = snapshot.read_digests(meta)
    if window == 1:
        return digests
    frame, starts = _rows(snapshot, meta)
    return window_digests(digests[frame[window_rows(np.arange(meta.rows), starts, window)]])


def _rows(snapshot: Snapshot, meta: SegmentMeta) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return each row's frame index, and the first row of its episode."""
    frame = snapshot.read_array(meta, "frame").astype(np.int64)
    return frame, episode_starts(snapshot.read_array(meta, "is_first"))
