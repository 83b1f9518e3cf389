"""A sample of a stored game's frames, small for a store of any size, and the same every time.

Segments are ranked by a hash of their ids, so samples for models that have encoded different
segments overlap as much as possible. The id of a segment also seeds the draw of its frames.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsa.store.common import hashing
from wsa.store.format.records import SegmentMeta
from wsa.store.objects.snapshot import Snapshot

SEED = 0


@dataclasses.dataclass(frozen=True)
class FrameSample:
    """Frames of some segments. Those of one segment are distinct, and in random order.

    Attributes:
        segments: The segments.
        owners: Index of each frame's segment, shape (n,).
        ranks: Position of each frame in the draw of its segment, shape (n,).
        rows: First row of the segment that shows the frame, shape (n,).
        frames: Number of the frame within its segment, shape (n,).
        steps: Step of that row, counted from the start of the environment, shape (n,).
        digests: Digests of the frames, shape (n, 16), uint8.
    """

    segments: tuple[SegmentMeta, ...]
    owners: NDArray[np.int64]
    ranks: NDArray[np.int64]
    rows: NDArray[np.int64]
    frames: NDArray[np.int64]
    steps: NDArray[np.int64]
    digests: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.frames)

    def of(self, segments: Collection[str], most: int) -> FrameSample:
        """Return the first `most` frames of each segment whose id is in `segments`."""
        wanted = np.array([meta.segment in segments for meta in self.segments])
        kept = wanted[self.owners] & (self.ranks < most)
        columns = {name: getattr(self, name)[kept] for name in _COLUMNS}
        return FrameSample(self.segments, **columns)

    def name(self, n: int) -> str:
        """Return where a frame comes from: its run, environment, and step."""
        meta = self.segments[self.owners[n]]
        return f"run {meta.run}, environment {meta.env}, step {self.steps[n]:,}"


def choose_segments(metas: Iterable[SegmentMeta], most: int) -> list[SegmentMeta]:
    """Return at most `most` segments, in a random order that is always the same."""
    return sorted(metas, key=lambda meta: hashing.identity([SEED, meta.segment]))[:most]


def draw(snapshot: Snapshot, metas: Sequence[SegmentMeta], most: int) -> FrameSample:
    """Draw at most `most` distinct frames of each segment.

    Raises:
        DamagedError: If stored bytes differ from what was committed.
    """
    columns: dict[str, list[NDArray[Any]]] = {name: [] for name in _COLUMNS}
    for owner, meta in enumerate(metas):
        for name, column in zip(_COLUMNS, _draw(snapshot, owner, meta, most), strict=True):
            columns[name].append(column)
    return FrameSample(
        tuple(metas), **{name: np.concatenate(parts) for name, parts in columns.items()}
    )


_COLUMNS = tuple(
    field.name for field in dataclasses.fields(FrameSample) if field.name != "segments"
)


def _draw(snapshot: Snapshot, owner: int, meta: SegmentMeta, most: int) -> tuple[NDArray[Any], ...]:
    """Draw the frames of one segment; return its part of each column."""
    table = snapshot.read_rows(meta)
    own = np.flatnonzero(~table["context"])  # The other rows repeat the end of the segment before.
    frames, at = np.unique(table["frame"][own], return_index=True)
    generator = np.random.default_rng(int(hashing.identity([SEED, meta.segment])[:16], 16))
    chosen = generator.permutation(len(frames))[:most]
    rows, frames = own[at[chosen]], frames[chosen].astype(np.int64)
    decided = np.cumsum(~table["context"] & (table["action"] >= 0)) - 1
    steps = meta.start + np.maximum(decided[rows], 0)
    ranks = np.arange(len(rows))
    return np.full(len(rows), owner), ranks, rows, frames, steps, table["digest"][frames]


def read_pngs(snapshot: Snapshot, meta: SegmentMeta, frames: Collection[int]) -> dict[int, bytes]:
    """Read some of a segment's frames as PNG files, by their number within the segment.

    Raises:
        MissingError: If the store has only the segment's rows.
        DamagedError: If stored bytes differ from what was committed.
    """
    pictures, palette = snapshot.read_pictures(meta)
    return {frame: _png(pictures[frame], palette) for frame in frames}


def _png(picture: NDArray[np.uint8], palette: NDArray[np.uint8] | None) -> bytes:
    """Encode a stored picture as PNG: RGB (H, W, 3), or indices (H, W) with a palette (256, 3)."""
    image = Image.fromarray(picture)
    if palette is not None:
        image.putpalette(palette.tobytes())
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()
