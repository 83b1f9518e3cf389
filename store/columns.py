"""Arrays of an export in the making: written chunk by chunk, rows of several segments joined."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec, ZstdCodec

from wsa.store.format import arrays
from wsa.store.format.records import SegmentMeta

# Of a chunk, which is a file: large enough for few files, small enough to be held for every column.
CHUNK_BYTES = 4 << 20

# Name, type and meaning of each column of the table of rows.
ROW_COLUMNS: dict[str, tuple[str, str]] = {
    "frame_index": ("int64", "the observation: a place on the axis `frame`"),
    "action": (
        "int16",
        "what was done there; -1 where nothing was: the row is only an observation",
    ),
    "reward": ("float32", "what the action earned, raw"),
    "terminated": ("bool", "the game ended by the action"),
    "truncated": ("bool", "the episode was cut after the action"),
    "is_first": ("bool", "first observation of an episode"),
    "context": ("bool", "stands here only for stacks of frames: the steps before it are not here"),
    "lives": ("uint8", "lives left"),
    "episode": ("int64", "number of the episode, unique in this table"),
    "segment": ("int32", "place of the segment in the attribute `segments`"),
    "step": ("int64", "steps that this environment had played before"),
}


class Column:
    """One array, written chunk by chunk, so that no chunk is written twice.

    Args:
        group: Where to make it.
        name: Its name.
        shape: Its shape; fewer rows may come.
        dtype: Its type.
        axes: Names of its axes.
        attributes: What to say of it.
    """

    def __init__(
        self,
        group: zarr.Group,
        name: str,
        shape: tuple[int, ...],
        dtype: str,
        axes: tuple[str, ...],
        attributes: dict[str, Any],
    ) -> None:
        row = math.prod(shape[1:]) * np.dtype(dtype).itemsize
        self._chunk = max(1, min(CHUNK_BYTES // max(1, row), shape[0]))
        self._array = group.create_array(
            name,
            shape=shape,
            dtype=dtype,
            chunks=(self._chunk, *(max(1, n) for n in shape[1:])),
            dimension_names=axes,
            attributes=attributes,
            fill_value=0,
            compressors=[ZstdCodec(level=3), Crc32cCodec()],
            config={"write_empty_chunks": True},
        )
        self._held: list[NDArray[Any]] = []
        self._waiting = 0
        self.count = 0

    def add(self, rows: NDArray[Any]) -> None:
        """Take more rows."""
        self._held.append(rows)
        self._waiting += len(rows)
        if self._waiting >= self._chunk:
            joined = np.concatenate(self._held)
            whole = len(joined) // self._chunk * self._chunk
            self._put(joined[:whole])
            # A copy, which does not keep the whole alive.
            self._held = [joined[whole:].copy()]

    def finish(self) -> None:
        """Write what is left."""
        if self._waiting:
            self._put(np.concatenate(self._held))
        if self.count < self._array.shape[0]:
            self._array.resize((self.count, *self._array.shape[1:]))

    def _put(self, rows: NDArray[Any]) -> None:
        self._array[self.count : self.count + len(rows)] = rows
        self.count += len(rows)
        self._waiting -= len(rows)


class Table:
    """Joins segments that continue each other, and numbers episodes over all of them."""

    def __init__(self, columns: dict[str, Column]) -> None:
        self._columns = columns
        self._last: dict[str, NDArray[Any]] | None = None  # the row that may be repeated
        self._end: tuple[str, int, int] | None = None  # where the last segment's play went on
        self._episodes = 0

    def add(self, meta: SegmentMeta, number: int, rows: arrays.Arrays, frame: int) -> None:
        """Take a segment's rows.

        Args:
            meta: The segment.
            number: Its place among the exported ones.
            rows: Its row fields, and what models saw in the window that ends at each row.
            frame: Place of its first frame.
        """
        context = int(rows["context"].sum())
        joined = self._end == (meta.run, meta.env, meta.start) and not rows["is_first"][context]
        acted = rows["action"] >= 0
        steps: NDArray[np.int64] = np.cumsum(acted) - acted
        steps[:context] = np.arange(-context, 0)
        table: dict[str, NDArray[Any]] = {
            **{name: rows[name] for name in self._columns if name in rows},
            "frame_index": rows["frame"].astype(np.int64) + frame,
            "segment": np.full(meta.rows, number, np.int32),
            "step": meta.start + steps,
        }
        if joined:
            self._last = None
            table = {name: column[context:] for name, column in table.items()}
        begins = np.diff(table["episode"], prepend=table["episode"][0]) != 0
        begins[0] = not joined
        episodes = self._episodes - 1 + np.cumsum(begins)
        self._episodes = int(episodes[-1]) + 1
        table["episode"] = episodes
        self.finish()
        for name, column in self._columns.items():
            column.add(table[name][:-1])
        self._last = {name: column[-1:].copy() for name, column in table.items()}
        self._end = (meta.run, meta.env, meta.start + meta.steps)

    def finish(self) -> None:
        """Write the last row, which no further segment repeats."""
        if self._last is not None:
            for name, column in self._columns.items():
                column.add(self._last[name])
        self._last = None
