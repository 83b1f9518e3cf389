"""What a model looks at for one embedding: a frame, or the frames of a window.

A model with a window of 1 has an input for each distinct frame of a segment, any other one for each
row. Equal inputs have equal digests, whichever segment and game they stand in, so each goes through
a model once.
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

# A hundred megabytes where four screens make a window; a GPU takes no more at once.
WINDOWS_AT_ONCE = 256


@dataclasses.dataclass(frozen=True)
class SegmentFrames:
    """What a segment shows.

    Attributes:
        pictures: (F, H, W) uint8, its distinct frames as indices into `palette`, or (F, H, W, 3) RGB.
        palette: (256, 3) uint8 RGB, or None.
        frame: (rows,) int64, which of them each row shows; empty where no model has a window.
        starts: (rows,) int64, where each row's episode begins; empty likewise.
        small: Its frames as models see them, as far as some have asked for them.
    """

    pictures: NDArray[np.uint8]
    palette: NDArray[np.uint8] | None
    frame: NDArray[np.int64]
    starts: NDArray[np.int64]
    small: dict[Preprocessing, _Small] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def frames(self) -> NDArray[np.uint8]:
        """Its distinct frames, (F, H, W, 3) uint8 RGB."""
        return self.pictures if self.palette is None else self.palette[self.pictures]

    def inputs(self, window: int, chosen: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
        """Some of the inputs, a bounded number at a time: each window repeats its neighbours' frames.

        Args:
            window: Frames in an input.
            chosen: (n,) frames, or rows where `window` > 1.

        Yields:
            (m, H, W, 3) uint8 RGB, or (m, window, H, W, 3), oldest first.
        """
        if window == 1:
            yield self.frames if len(chosen) == len(self.frames) else self.frames[chosen]
            return
        of = self.frame[window_rows(chosen, self.starts[chosen], window)]
        for at in range(0, len(of), WINDOWS_AT_ONCE):
            yield self.frames[of[at : at + WINDOWS_AT_ONCE]]

    def levels(
        self,
        window: int,
        chosen: NDArray[np.int64],
        how: Preprocessing,
        shrink: Callable[[NDArray[np.uint8]], NDArray[np.uint8]],
    ) -> Iterator[NDArray[np.uint8]]:
        """The same inputs made small, each frame once, whichever models and windows show it.

        Args:
            window: Frames in an input.
            chosen: (n,) frames, or rows where `window` > 1.
            how: How the model wants to see them.
            shrink: What makes frames (n, H, W, 3), or grey ones (n, H, W), so: (n, channels, h, w)
                uint8.

        Yields:
            (m, channels, h, w) uint8, or (m, window, channels, h, w), oldest first.
        """
        alike = how.alike
        if alike not in self.small:
            shape = (len(self.pictures), 1 if how.channels == "grey" else 3, how.height, how.width)
            self.small[alike] = _Small(np.empty(shape, np.uint8), np.zeros(shape[0], np.bool_))
        small = self.small[alike]
        of = chosen
        if window > 1:
            of = self.frame[window_rows(chosen, self.starts[chosen], window)]
        missing = np.unique(of[~small.made[of]])
        shown = self._grey() if how.channels == "grey" else lambda some: self.frames[some]
        for at in range(0, len(missing), WINDOWS_AT_ONCE):
            some = missing[at : at + WINDOWS_AT_ONCE]
            small.levels[some] = shrink(shown(some))
        small.made[missing] = True
        for at in range(0, len(of), WINDOWS_AT_ONCE):
            yield small.levels[of[at : at + WINDOWS_AT_ONCE]]

    def _grey(self) -> Callable[[NDArray[np.int64]], NDArray[np.uint8]]:
        """What gives some of the frames as grey screens, or as RGB if there is no palette.

        Of a palette's 256 colours the grey levels are known before any frame is looked at: no frame
        becomes three times as large, to be made small again.
        """
        if self.palette is None:
            return lambda some: self.frames[some]
        levels = cv2.cvtColor(self.palette[None], cv2.COLOR_RGB2GRAY)[0]
        return lambda some: levels[self.pictures[some]]


@dataclasses.dataclass(frozen=True)
class _Small:
    """Frames made small, (F, channels, h, w) uint8, and which of them are, (F,)."""

    levels: NDArray[np.uint8]
    made: NDArray[np.bool_]


def read_segment_frames(snapshot: Snapshot, meta: SegmentMeta, *, rows: bool) -> SegmentFrames:
    """Read a segment's frames, and what of its rows models with a window need if `rows` is set.

    Raises:
        MissingError: Its frames are not here.
        DamagedError: Stored bytes are not what was committed.
    """
    none = np.zeros(0, np.int64)
    frame, starts = _rows(snapshot, meta) if rows else (none, none)
    return SegmentFrames(*snapshot.read_pictures(meta), frame, starts)


def input_digests(snapshot: Snapshot, meta: SegmentMeta, window: int) -> NDArray[np.uint8]:
    """Identities of a segment's inputs, (n, 16) uint8."""
    digests = snapshot.read_digests(meta)
    if window == 1:
        return digests
    frame, starts = _rows(snapshot, meta)
    return window_digests(digests[frame[window_rows(np.arange(meta.rows), starts, window)]])


def _rows(snapshot: Snapshot, meta: SegmentMeta) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which frame each row shows, and where its episode begins."""
    frame = snapshot.read_array(meta, "frame").astype(np.int64)
    return frame, episode_starts(snapshot.read_array(meta, "is_first"))
