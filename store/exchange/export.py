"""Export a game's rows and embeddings as plain arrays, for people without wsa.

An export is one Zarr v3 group in a folder, which zarr, dask and xarray can open:

    <model key>     (frame, ...)                     float16 or float32, one array per model;
                    (row, ...)                       if the model's window is above 1
    digest          (frame, byte)                    uint8, blake3-128 of the frame's RGB bytes
    frames          (frame, y, x, channel)           uint8 RGB, if requested
    frame_index, action, reward, ...                 (row,) each: the columns of `ROW_COLUMNS`

Row i is an observation; its action, reward, terminated and truncated are those of the step that
follows it. Consecutive segments are joined, so that the row after a step is its next observation. An
episode of T steps has T + 1 rows, and the last has action -1. Frames are distinct within a segment,
not within the game: equal frames have equal digests.

Segments are copied one after another, so memory stays bounded. The export is written to
`PATH.partial` and renamed at the end, so PATH is complete or absent.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fcntl
import math
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.errors import ZarrUserWarning

from wsa.store.common import atomic_files
from wsa.store.common.errors import ConflictError, MissingError
from wsa.store.common.hashing import DIGEST_BYTES
from wsa.store.format import arrays, records
from wsa.store.format.records import SegmentMeta
from wsa.store.objects import writer
from wsa.store.objects.flat_map import layout_of
from wsa.store.objects.snapshot import Snapshot

# Size of a chunk, which is a file: few files, and one chunk of every column fits in memory.
CHUNK_BYTES = 4 << 20

# Attributes of a model's column, by their name in its spec.
_ATTRIBUTES = {"timm_name": "timm_name", "source": "source", "licence": "license"}

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
    """One array, written in whole chunks, so that no chunk is written twice.

    Args:
        shape: Shape of the array; it is shortened if fewer rows are added.
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
        """Append rows, and write the chunks that are complete."""
        self._held.append(rows)
        self._waiting += len(rows)
        if self._waiting >= self._chunk:
            joined = np.concatenate(self._held)
            complete = len(joined) // self._chunk * self._chunk
            self._put(joined[:complete])
            # Copy, since a view would keep the whole array in memory.
            self._held = [joined[complete:].copy()]

    def finish(self) -> None:
        """Write the remaining rows, and shorten the array to the rows written."""
        if self._waiting:
            self._put(np.concatenate(self._held))
        if self.count < self._array.shape[0]:
            self._array.resize((self.count, *self._array.shape[1:]))

    def _put(self, rows: NDArray[Any]) -> None:
        self._array[self.count : self.count + len(rows)] = rows
        self.count += len(rows)
        self._waiting -= len(rows)


class Table:
    """Table of rows that joins consecutive segments and numbers the episodes of all segments."""

    def __init__(self, columns: dict[str, Column]) -> None:
        self._columns = columns
        self._last: dict[str, NDArray[Any]] | None = None  # last row, which a segment may repeat
        self._end: tuple[str, int, int] | None = None  # run, env and start of a next segment
        self._episodes = 0

    def add(self, meta: SegmentMeta, number: int, rows: arrays.Arrays, frame: int) -> None:
        """Append a segment's rows.

        Args:
            number: Index of the segment in the export.
            rows: Row fields, and embeddings of the window that ends at each row.
            frame: Index of the segment's first frame in the export.
        """
        context = int(rows["context"].sum())
        continues = self._end == (meta.run, meta.env, meta.start) and not rows["is_first"][context]
        acted = rows["action"] >= 0
        steps: NDArray[np.int64] = np.cumsum(acted) - acted
        steps[:context] = np.arange(-context, 0)
        table: dict[str, NDArray[Any]] = {
            **{name: rows[name] for name in self._columns if name in rows},
            "frame_index": rows["frame"].astype(np.int64) + frame,
            "segment": np.full(meta.rows, number, np.int32),
            "step": meta.start + steps,
        }
        if continues:
            self._last = None
            table = {name: column[context:] for name, column in table.items()}
        begins = np.diff(table["episode"], prepend=table["episode"][0]) != 0
        begins[0] = not continues
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


VERSION = 1  # Version of the attributes and of the names of arrays.


@dataclasses.dataclass(frozen=True)
class ExportPlan:
    """Contents of an export.

    Attributes:
        game: ALE game id.
        models: Keys of the models.
        pictures: Whether to export frames.
        segments: Segments in order of play.
        rows: Maximum number of rows; joined segments have fewer.
        frames: Number of frames, distinct within each segment.
        bytes: Size before compression.
    """

    game: str
    models: tuple[str, ...]
    pictures: bool
    segments: tuple[SegmentMeta, ...]
    rows: int
    frames: int
    bytes: int


def plan_export(
    snapshot: Snapshot, game: str, models: Sequence[str] = (), pictures: bool = False
) -> ExportPlan:
    """Plan an export; this reads only records.

    Args:
        models: Keys of the models; each must have encoded every segment.
        pictures: Whether to export frames.

    Raises:
        MissingError: If there is no such game, a model has not encoded every segment, or the store
            lacks frames.
        ConflictError: If a model's embeddings, or the screens, differ in shape.
    """
    segments = sorted(snapshot.segments_of(game), key=lambda m: (m.run, m.env, m.start))
    url = snapshot.backend.url
    wanted = {meta.segment for meta in segments}
    frames = sum(meta.frames for meta in segments)
    rows = sum(meta.rows for meta in segments)
    size = frames * DIGEST_BYTES + rows * sum(np.dtype(t).itemsize for t, _ in ROW_COLUMNS.values())
    for key in models:
        missing = wanted - {meta.segment for meta in snapshot.embeddings(game, key)}
        if missing:
            raise MissingError(
                "not-encoded",
                f"{len(missing)} of {len(wanted)} segments of {game} in {url} have not been "
                f"encoded by {key}. Run 'wsa encode', or leave the model out of --models.",
            )
        window, shape, dtype = layout_of(snapshot, game, key)
        size += (frames if window == 1 else rows) * math.prod(shape) * np.dtype(dtype).itemsize
    if pictures:
        missing = wanted - {meta.segment for meta in snapshot.frames(game)}
        if missing:
            raise MissingError(
                "no-frames",
                f"The store {url} lacks the frames of {len(missing)} of {len(wanted)} segments of "
                f"{game}. Fetch them with 'wsa pull', or export without --frames.",
            )
        size += frames * math.prod(_screen(snapshot, game)) * 3
    return ExportPlan(game, tuple(models), pictures, tuple(segments), rows, frames, size)


def _screen(snapshot: Snapshot, game: str) -> tuple[int, int]:
    shapes = {(meta.height, meta.width) for meta in snapshot.frames(game)}
    if len(shapes) != 1:
        raise ConflictError(
            "other-bytes", f"{game} has screens of sizes {shapes}. Export without --frames."
        )
    return shapes.pop()


def export(
    snapshot: Snapshot,
    plan: ExportPlan,
    path: Path,
    on_segment: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Write an export.

    Args:
        snapshot: The snapshot that the plan was made from.
        on_segment: Called after each segment with the numbers of segments done and in total.

    Returns:
        Number of rows written.

    Raises:
        ConflictError: If `path` exists, or another process is writing it.
        DamagedError: If stored bytes are not what was committed; `path` is not created.
        StorageError: If there is no space, or the folder cannot be written.
    """
    require_new(path)
    partial = path.with_name(f"{path.name}.partial")
    with atomic_files.storage_errors(path), _locked(path, partial):
        rows = _write(snapshot, plan, partial, on_segment)
        _flush(partial)
        partial.rename(path)
        atomic_files.flush_folder(path.parent)
    return rows


def require_new(path: Path) -> None:
    """Check that there is nothing at the path of an export.

    Raises:
        ConflictError: If there is.
    """
    if os.path.lexists(path) or path.name in ("", ".."):  # Such as `.` and `/`.
        raise ConflictError(
            "run-exists", f"{path} exists already. Export to another path, or remove it."
        )


@contextlib.contextmanager
def _locked(path: Path, partial: Path) -> Iterator[None]:
    """Lock `partial` as an empty folder that no other process writes to."""
    partial.mkdir(parents=True, exist_ok=True)
    handle = os.open(partial, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            # The system releases this lock when the process dies.
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConflictError(
                "run-exists", f"Another process is writing {partial}. Wait for it."
            ) from None
        for stale in partial.iterdir():
            # A killed export leaves only such files; any other file is a user's.
            if stale.name != "zarr.json" and not (stale / "zarr.json").exists():
                raise ConflictError(
                    "run-exists",
                    f"{stale} does not come from an export. Move it, or export to another path.",
                )
        for stale in partial.iterdir():
            shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
        yield
    finally:
        os.close(handle)


def _write(
    snapshot: Snapshot, plan: ExportPlan, folder: Path, on_segment: Callable[[int, int], None]
) -> int:
    group = zarr.create_group(folder, zarr_format=3, attributes=_attributes(snapshot, plan))
    rows = {
        name: Column(group, name, (plan.rows,), kind, ("row",), {"meaning": meaning})
        for name, (kind, meaning) in ROW_COLUMNS.items()
    }
    shape, meaning = (plan.frames, DIGEST_BYTES), "blake3-128 of the frame's RGB bytes"
    frames = {
        "digest": Column(group, "digest", shape, "uint8", ("frame", "byte"), {"meaning": meaning})
    }
    for key in plan.models:
        # An embedding of a window belongs to a row, so it is joined like one.
        of = frames if layout_of(snapshot, plan.game, key)[0] == 1 else rows
        of[key] = _model(snapshot, plan, group, key)
    if plan.pictures:
        screens = (plan.frames, *_screen(snapshot, plan.game), 3)
        axes = ("frame", "y", "x", "channel")
        frames["frames"] = Column(
            group, "frames", screens, "uint8", axes, {"meaning": "RGB screens"}
        )
    table = Table(rows)
    first = 0
    for number, meta in enumerate(plan.segments):
        content = snapshot.read_rows(meta)
        for key in plan.models:
            content[key] = snapshot.read_embedding(plan.game, key, meta.segment)
        if plan.pictures:
            content["frames"] = snapshot.read_frames(meta)
        for name, column in frames.items():
            column.add(content.pop(name))
        table.add(meta, number, content, first)
        first += meta.frames
        on_segment(number + 1, len(plan.segments))
    table.finish()
    for column in (*rows.values(), *frames.values()):
        column.finish()
    with warnings.catch_warnings():
        # It warns that other programs may not support it; they read each array's metadata instead.
        warnings.simplefilter("ignore", ZarrUserWarning)
        zarr.consolidate_metadata(folder, zarr_format=3)
    return rows["action"].count


def _attributes(snapshot: Snapshot, plan: ExportPlan) -> dict[str, Any]:
    runs = {
        meta.run: {
            "protocol": msgspec.to_builtins(meta.protocol),
            "policy": meta.policy,
            "seed": meta.seed,
            "emulator": list(meta.emulator),
        }
        for meta in plan.segments
    }
    authors = {
        c.author for c in snapshot.commits.values() if getattr(c.meta, "game", "") == plan.game
    }
    return {
        "wsa_export": VERSION,
        "game": plan.game,
        "store": snapshot.backend.url,
        "exported": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "by": writer.author(),
        "authors": sorted(authors),
        "runs": runs,
        "segments": [meta.segment for meta in plan.segments],
        "models": {key: _spec(snapshot, key) for key in plan.models},
        "conventions": {
            "rows": "Row i is an observation; its action, reward and ends are what followed. The "
            "row after a step is its next observation; an episode's last row has action -1.",
            "frames": "Distinct within a segment. Equal frames have equal digests.",
        },
    }


def _spec(snapshot: Snapshot, key: str) -> dict[str, Any]:
    data = snapshot.read_model(key, "spec.json")["spec.json"]
    spec: dict[str, Any] = records.read_json(data, dict, key)
    return spec


def _model(snapshot: Snapshot, plan: ExportPlan, group: zarr.Group, key: str) -> Column:
    window, shape, dtype = layout_of(snapshot, plan.game, key)
    unit, count = ("frame", plan.frames) if window == 1 else ("row", plan.rows)
    # Each model has its own axes, since an axis may differ in length between models.
    axes = (unit, *(f"{key}_{axis}" for axis in range(1, len(shape) + 1)))
    spec = _spec(snapshot, key)
    attributes = {_ATTRIBUTES[name]: value for name, value in spec.items() if name in _ATTRIBUTES}
    if window > 1:
        attributes["window"] = window
    return Column(group, key, (count, *shape), dtype, axes, attributes)


def _flush(folder: Path) -> None:
    """Make every file below a folder durable."""
    for parent, _, files in os.walk(folder):
        for name in files:
            with Path(parent, name).open("rb") as file:
                os.fsync(file.fileno())
        atomic_files.flush_folder(Path(parent))
