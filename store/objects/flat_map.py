"""Flat memory-mapped files of a game's rows and embeddings, for fast random access in training.

A store is made for sharing: compressed, checked and chunked, so reading a random row costs a chunk.
Training draws millions of random rows. So each machine copies a snapshot once, in sequence, into

    <cache>/flat/<hash>/rows.bin          one structured record per row
                        embeddings.bin    one row per distinct frame of a segment, models side by side
                        digests.bin       the digest of each of these frames
                        windows.bin       one row per row, models with a window side by side
                        flat.json         the position of each segment

and maps these files into memory. Files that no model needs are absent. Later calls only append new
segments. The files grow but never change, so readers that have mapped them are not affected.
`flat.json` is replaced last, so a crash leaves bytes that the next append overwrites. Sampling order
depends only on the snapshot, not on the order of appending.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import filelock
import msgspec
import numpy as np
from numpy.typing import NDArray

from wsa.store.common import atomic_files, hashing, names
from wsa.store.common.cache_folder import cache_folder
from wsa.store.common.errors import ConflictError, DamagedError, MissingError, UsageError
from wsa.store.format import arrays, records
from wsa.store.format.records import SegmentMeta
from wsa.store.format.windows import episode_starts, window_digests, window_rows
from wsa.store.objects.snapshot import Snapshot


def side_by_side(shapes: Sequence[Sequence[int]]) -> list[slice]:
    """Return the columns of embeddings of these shapes, flattened and concatenated in one row."""
    edges = itertools.accumulate(map(math.prod, shapes), initial=0)
    return [slice(begin, end) for begin, end in itertools.pairwise(edges)]


def in_files(windows: Sequence[int], shapes: Sequence[Sequence[int]]) -> list[slice]:
    """Return each model's columns in its file: `windows.bin` if it has a window above 1, else
    `embeddings.bin`."""
    columns, edges = [], {False: 0, True: 0}
    for window, shape in zip(windows, shapes, strict=True):
        begin = edges[window > 1]
        edges[window > 1] += math.prod(shape)
        columns.append(slice(begin, edges[window > 1]))
    return columns


ROW = np.dtype(
    [
        ("frame", "<i8"),  # row in embeddings.bin
        ("first", "<i8"),  # first row of this episode in the segment: no stack reaches further back
        *((name, kind) for name, kind in arrays.ROW_FIELDS.items() if name != "frame"),
    ]
)

FILES = ("rows.bin", "embeddings.bin", "digests.bin", "windows.bin")
MAX_CONTENTS_BYTES = 1 << 30


class Part(msgspec.Struct, frozen=True):
    """Position of one segment.

    Attributes:
        segment: The segment's id.
        check: Hash of the checksums of its files, to notice a replaced object.
        row, rows: First row in `rows.bin` and `windows.bin`, and number of rows.
        frame, frames: First row in `embeddings.bin` and `digests.bin`, and number of frames.
    """

    segment: str
    check: str
    row: int
    rows: int
    frame: int
    frames: int


class Contents(msgspec.Struct, frozen=True):
    """Content of `flat.json`."""

    store: str
    game: str
    models: tuple[str, ...]
    windows: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtype: str
    parts: tuple[Part, ...]

    def width(self, *, windowed: bool) -> int:
        """Number of values in a row of `windows.bin` (windowed) or `embeddings.bin`."""
        models = zip(self.windows, self.shapes, strict=True)
        return sum(math.prod(shape) for window, shape in models if (window > 1) == windowed)

    def files(self) -> dict[str, int]:
        """Return the names of the files and their minimum sizes in bytes."""
        rows, frames = _totals(self.parts)
        itemsize = np.dtype(self.dtype).itemsize
        entries = {
            "rows.bin": (rows, ROW.itemsize),
            "embeddings.bin": (frames, self.width(windowed=False) * itemsize),
            "digests.bin": (frames, hashing.DIGEST_BYTES),
            "windows.bin": (rows, self.width(windowed=True) * itemsize),
        }
        return {name: count * size for name, (count, size) in entries.items() if size}


class FlatMap:
    """Rows and fused embeddings of one snapshot of one game.

    Attributes:
        models: Model keys, in the order of their embeddings in a row.
        windows: Each model's window.
        shapes: Shape of each model's embedding.
        columns: Each model's columns in `embeddings`, or in `windowed` if its window is above 1.
        places: Each model's columns in a row of all models' embeddings, in the order of `models`.
        width, window_width: Number of values in a row of `embeddings`, and of `windowed`.
        rows: Structured array of `ROW`, shape (R,), mapped.
        embeddings: Embeddings of frames, shape (N, width), float16 or float32, mapped.
        digests: Digest of the frame of each row of `embeddings`, shape (N, 16), uint8, mapped.
        windowed: Embeddings of the window that ends at each row, shape (R, window_width), float16
            or float32, mapped.
        parts: Positions of the snapshot's segments, in its order.
        steps: Rows with an action, shape (S,), int64, in the snapshot's order.
    """

    def __init__(self, folder: Path, contents: Contents, snapshot: Snapshot) -> None:
        self.models = contents.models
        self.windows = contents.windows
        self.shapes = contents.shapes
        self.columns = in_files(contents.windows, contents.shapes)
        self.places = side_by_side(contents.shapes)
        self.width = contents.width(windowed=False)
        self.window_width = contents.width(windowed=True)
        known = {meta.segment for meta in snapshot.segments(contents.game)}
        parts = [part for part in contents.parts if part.segment in known]
        self.parts = sorted(parts, key=lambda part: part.segment)
        total_rows, total_frames = _totals(contents.parts)
        self.rows = np.memmap(folder / "rows.bin", ROW, "r", shape=(total_rows,))
        digest_shape = (total_frames, hashing.DIGEST_BYTES)
        self.digests = _map_file(folder / "digests.bin", "uint8", digest_shape)
        self.embeddings = _map_file(
            folder / "embeddings.bin", contents.dtype, (total_frames, self.width)
        )
        self.windowed = _map_file(
            folder / "windows.bin", contents.dtype, (total_rows, self.window_width)
        )
        actions = np.asarray(self.rows["action"])
        self.steps = np.concatenate(
            [
                part.row + np.flatnonzero(actions[part.row : part.row + part.rows] >= 0)
                for part in self.parts
            ]
        )

    def gather(self, frames: NDArray[np.int64], out: NDArray[Any]) -> NDArray[Any]:
        """Copy rows of `embeddings` into `out` and return it.

        Args:
            frames: Rows of `embeddings`, shape (n,).
            out: Buffer of the map's dtype, shape (n, width).

        Raises:
            IndexError: If a row is out of range.
        """
        return _take(self.embeddings, frames, out)

    def gather_windows(self, rows: NDArray[np.int64], out: NDArray[Any]) -> NDArray[Any]:
        """Copy the embeddings of the windows that end at `rows` into `out` and return it.

        Args:
            rows: Rows, shape (n,).
            out: Buffer of the map's dtype, shape (n, window_width).

        Raises:
            IndexError: If a row is out of range.
        """
        return _take(self.windowed, rows, out)

    def stack(self, rows: NDArray[np.int64], depth: int) -> NDArray[np.int64]:
        """Return where the embeddings of the last `depth` frames up to each row are, oldest first.

        Args:
            rows: Rows, shape (n,).
            depth: Frames per stack, at most `MAX_STACK_FRAMES`.

        Returns:
            Rows of `embeddings`, shape (n, depth), int64.

        Raises:
            UsageError: If the stack is deeper than the context that segments store.
        """
        at = window_rows(rows, self.rows["first"][rows], depth)
        frames: NDArray[np.int64] = self.rows["frame"][at]
        return frames

    def window_digests(self, window: int) -> NDArray[np.uint8]:
        """Return the digest of the window that ends at each row, shape (R, 16), uint8."""
        frames = self.stack(np.arange(len(self.rows)), window)
        return window_digests(self.digests[frames])


def materialize(
    snapshot: Snapshot, game: str, models: Sequence[str], cache: Path | None = None
) -> FlatMap:
    """Copy a game's rows and embeddings into flat files, except those copied before.

    Args:
        cache: Parent folder of the files; `cache_folder()` if None.

    Raises:
        UsageError: If no model is named.
        MissingError: If there are no frames, or one of the models has not encoded a segment.
        ConflictError: If a model's embeddings differ in shape or window.
        DamagedError: If stored bytes are not what was committed.
        StorageError: If there is no space for the copy.
    """
    if not models:
        raise UsageError("Name at least one model with --models.")
    segments = snapshot.segments_of(game)
    _require_encoded(snapshot, game, models, segments)
    windows, shapes, dtype = shapes_of(snapshot, game, models)
    # A snapshot of fewer segments may need no float32, so the two have a folder each.
    kind = [] if dtype == "float16" else [dtype]
    name = hashing.identity([snapshot.backend.url, game, list(models), *kind])[:24]
    folder = (cache or cache_folder()) / "flat" / name
    with atomic_files.storage_errors(folder):
        atomic_files.make_folder(folder)
    with atomic_files.storage_errors(folder), filelock.FileLock(folder / "lock"):
        contents = _read_contents(folder / "flat.json")
        checks = {meta.segment: _object_hash(snapshot, game, models, meta) for meta in segments}
        fits = (
            contents is not None
            and (contents.windows, contents.shapes) == (windows, shapes)
            and contents.dtype == dtype
            and all(checks.get(p.segment, p.check) == p.check for p in contents.parts)
            and _is_complete(folder, contents)
        )
        if contents is None or not fits:
            # Another store was at this path, or an object was recreated: start over. Remove the
            # files rather than truncate them, so that processes that mapped the old ones keep them.
            for stale in ("flat.json", *FILES):
                (folder / stale).unlink(missing_ok=True)
            contents = Contents(
                snapshot.backend.url, game, tuple(models), windows, shapes, dtype, ()
            )
        present = {part.segment for part in contents.parts}
        new = [meta for meta in segments if meta.segment not in present]
        if new:
            contents = _append(folder, contents, snapshot, new, checks)
        # Map under the lock: the next process may replace the files.
        return FlatMap(folder, contents, snapshot)


def _require_encoded(
    snapshot: Snapshot, game: str, models: Sequence[str], segments: list[SegmentMeta]
) -> None:
    for key in models:
        done = {meta.segment for meta in snapshot.embeddings(game, key)}
        missing = sum(meta.segment not in done for meta in segments)
        if missing:
            raise MissingError(
                "not-encoded",
                f"{missing} of {len(segments)} segments of {game} have not been encoded by {key}. "
                f"Run: wsa encode --game {game} --models {names.key_alias(key)}",
            )


def shapes_of(
    snapshot: Snapshot, game: str, models: Sequence[str]
) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...], str]:
    """Return each model's window and embedding shape, and a dtype that holds all embeddings."""
    layouts = [layout_of(snapshot, game, key) for key in models]
    windows, shapes, dtypes = zip(*layouts, strict=True) if layouts else ((), (), ())
    return windows, shapes, max(dtypes, default="float16")  # float16 < float32


def layout_of(snapshot: Snapshot, game: str, key: str) -> tuple[int, tuple[int, ...], str]:
    """Return a model's window, the shape of one embedding, and a dtype that holds all of them.

    Only the snapshot's segments count: what others encode meanwhile must not change a run's table.

    Raises:
        ConflictError: If windows or shapes differ, or there are no embeddings.
    """
    segments = {meta.segment for meta in snapshot.segments(game)}
    metas = [meta for meta in snapshot.embeddings(game, key) if meta.segment in segments]
    layouts = {(meta.window, meta.shape[1:]) for meta in metas}
    if len(layouts) != 1:
        raise ConflictError(
            "other-bytes",
            f"{key} has embeddings with different windows or shapes: {layouts}. Use other models.",
        )
    return *layouts.pop(), max(meta.dtype for meta in metas)


def _object_hash(snapshot: Snapshot, game: str, models: Sequence[str], meta: SegmentMeta) -> str:
    """Return a hash that changes if a segment or one of its embeddings is replaced."""
    paths = [names.segment_path(game, meta.segment)]
    paths += [names.embedding_path(game, key, meta.segment) for key in models]
    return hashing.identity([[f.blake3 for f in snapshot.commit(p).files] for p in paths])


def _read_contents(path: Path) -> Contents | None:
    try:
        return records.read_json(path.read_bytes(), Contents, str(path), MAX_CONTENTS_BYTES)
    except (FileNotFoundError, DamagedError):
        return None


def _totals(parts: Sequence[Part]) -> tuple[int, int]:
    """Return the number of rows, and of embedding rows, that the parts take."""
    return max((p.row + p.rows for p in parts), default=0), max(
        (p.frame + p.frames for p in parts), default=0
    )


def _map_file(path: Path, dtype: str, shape: tuple[int, int]) -> NDArray[Any]:
    """Map a file; an empty array needs no file, since no system maps zero bytes."""
    return np.memmap(path, dtype, "r", shape=shape) if math.prod(shape) else np.empty(shape, dtype)


def _take(table: NDArray[Any], rows: NDArray[np.int64], out: NDArray[Any]) -> NDArray[Any]:
    if rows.size and (rows.min() < 0 or rows.max() >= len(table)):
        raise IndexError(f"rows must be in [0, {len(table)})")
    # mode="clip" makes numpy write directly into `out`; "raise" would use a buffer.
    return np.take(table, rows, axis=0, out=out, mode="clip")


def _is_complete(folder: Path, contents: Contents) -> bool:
    """Whether no file is shorter than `flat.json` says: cleaners of caches truncate and remove."""
    try:
        return all(
            (folder / name).stat().st_size >= size for name, size in contents.files().items()
        )
    except FileNotFoundError:
        return False


def _append(
    folder: Path,
    contents: Contents,
    snapshot: Snapshot,
    new: list[SegmentMeta],
    checks: dict[str, str],
) -> Contents:
    """Append new segments to the files, then replace `flat.json`."""
    parts = list(contents.parts)
    row, frame = _totals(parts)
    with atomic_files.storage_errors(folder), contextlib.ExitStack() as opened:
        files = {
            name: opened.enter_context(_open_at(folder / name, size))
            for name, size in contents.files().items()
        }
        for meta in new:
            rows = snapshot.read_rows(meta)
            record = np.zeros(meta.rows, ROW)
            for field in arrays.ROW_FIELDS:
                record[field] = rows[field]
            record["frame"] += frame
            record["first"] = row + episode_starts(rows["is_first"])
            files["rows.bin"].write(record.data)
            files["digests.bin"].write(rows["digest"].data)
            for name, windowed in (("embeddings.bin", False), ("windows.bin", True)):
                if name in files:
                    files[name].write(_read_embeddings(contents, snapshot, meta, windowed).data)
            parts.append(
                Part(meta.segment, checks[meta.segment], row, meta.rows, frame, meta.frames)
            )
            row += meta.rows
            frame += meta.frames
        for file in files.values():
            file.truncate()
            file.flush()
            os.fsync(file.fileno())
    contents = msgspec.structs.replace(contents, parts=tuple(parts))
    atomic_files.replace(folder / "flat.json", hashing.canonical(contents))
    return contents


def _read_embeddings(
    contents: Contents, snapshot: Snapshot, meta: SegmentMeta, windowed: bool
) -> NDArray[Any]:
    """Return a segment's embeddings of frames, or of windows, models side by side."""
    embedded = [
        snapshot.read_embedding(contents.game, key, meta.segment)
        for key, window in zip(contents.models, contents.windows, strict=True)
        if (window > 1) == windowed
    ]
    return np.concatenate(
        [array.reshape(len(array), -1) for array in embedded], axis=1, dtype=contents.dtype
    )


def _open_at(path: Path, offset: int) -> Any:
    file = path.open("r+b" if path.exists() else "w+b")
    file.seek(offset)
    return file
