"""A game's rows and embeddings in two flat files that training samples from at memory speed.

A store is made for sharing: compressed, checked, chunked; a random row costs a chunk. Training
draws millions of random rows, so each machine copies a snapshot once, in sequence, into

    <cache>/flat/<hash>/rows.bin          one structured record a row
                        embeddings.bin    one row a distinct frame of a segment, all models side by side
                        digests.bin       which frame that is
                        flat.json         which segments stand where

and maps them into memory. Only segments that are new since the last time are appended. The files
grow but never change, so readers that mapped them before are not disturbed; `flat.json` is
replaced last, so a crash leaves bytes that the next append overwrites. Sampling order depends on
the snapshot alone, not on the order in which segments were appended.
"""

from __future__ import annotations

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

from wsa.store import keys, layout, names, publish, records
from wsa.store.catalog import cache_folder
from wsa.store.errors import ConflictError, DamagedError, MissingError, UsageError
from wsa.store.reader import Snapshot
from wsa.store.records import SegmentMeta

ROW = np.dtype(
    [
        ("frame", "<i8"),  # row in embeddings.bin
        ("first", "<i8"),  # row where this episode begins here: stacks do not reach further back
        *((name, kind) for name, kind in layout.ROW_FIELDS.items() if name != "frame"),
    ]
)


MAX_CONTENTS_BYTES = 1 << 30


class Part(msgspec.Struct, frozen=True):
    """Where one segment stands: its id, the `check` of its records, first rows and counts."""

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
    shapes: tuple[tuple[int, ...], ...]
    dtype: str
    parts: tuple[Part, ...]


class FlatMap:
    """Rows and fused embeddings of one snapshot of one game.

    Attributes:
        models: Model keys, in the order their embeddings stand in a row.
        shapes: Shape of each model's embedding.
        rows: (R,) structured array of `ROW`, mapped.
        embeddings: (N, sum of widths) float16 or float32, mapped.
        digests: (N, 16) uint8, the frame behind each embedding row, mapped.
        steps: (S,) int64, the rows that hold a step, in the snapshot's order.
    """

    def __init__(self, folder: Path, contents: Contents, snapshot: Snapshot) -> None:
        self.models = contents.models
        self.shapes = contents.shapes
        widths = [math.prod(shape) for shape in self.shapes]
        edges = np.cumsum([0, *widths])
        self.columns = [slice(int(a), int(b)) for a, b in itertools.pairwise(edges)]
        known = {meta.segment for meta in snapshot.segments(contents.game)}
        parts = sorted((p for p in contents.parts if p.segment in known), key=lambda p: p.segment)
        total_rows, total_frames = _end(contents.parts)
        self.rows = np.memmap(folder / "rows.bin", ROW, "r", shape=(total_rows,))
        self.embeddings = np.memmap(
            folder / "embeddings.bin", contents.dtype, "r", shape=(total_frames, int(edges[-1]))
        )
        self.digests = np.memmap(
            folder / "digests.bin", np.uint8, "r", shape=(total_frames, keys.DIGEST_BYTES)
        )
        actions = np.asarray(self.rows["action"])
        self.steps = np.concatenate(
            [
                part.row + np.flatnonzero(actions[part.row : part.row + part.rows] >= 0)
                for part in parts
            ]
        )

    @property
    def width(self) -> int:
        """Numbers in a fused row."""
        return int(self.embeddings.shape[1])

    def gather(self, frames: NDArray[np.int64], out: NDArray[Any]) -> NDArray[Any]:
        """Copy embedding rows into `out`.

        Args:
            frames: (n,) rows of `embeddings`.
            out: (n, width), of the map's dtype.

        Raises:
            IndexError: A row is out of range.
        """
        if frames.size and (frames.min() < 0 or frames.max() >= len(self.embeddings)):
            raise IndexError(f"frame rows must be in [0, {len(self.embeddings)})")
        # mode="clip" lets numpy write straight into `out`; "raise" would go through a buffer.
        return np.take(self.embeddings, frames, axis=0, out=out, mode="clip")

    def stack(self, rows: NDArray[np.int64], depth: int) -> NDArray[np.int64]:
        """Embedding rows of the last `depth` frames up to each row, oldest first.

        Before an episode's first frame that frame is repeated, as
        `gymnasium.wrappers.FrameStackObservation` does with `padding_type="reset"`.

        Args:
            rows: (n,) rows.
            depth: Frames in a stack, at most `layout.MAX_STACK_FRAMES`.

        Returns:
            (n, depth) int64, rows of `embeddings`.

        Raises:
            UsageError: The stack is deeper than what segments repeat of each other.
        """
        if not 1 <= depth <= layout.MAX_STACK_FRAMES:
            raise UsageError(
                "bad-option",
                f"A stack of {depth} frames: segments hold what stacks of 1 to "
                f"{layout.MAX_STACK_FRAMES} need. Choose one of these.",
            )
        back = np.arange(depth - 1, -1, -1)
        at = np.maximum(rows[:, None] - back, self.rows["first"][rows][:, None])
        return self.rows["frame"][at]  # type: ignore[no-any-return]


def materialise(
    snapshot: Snapshot, game: str, models: Sequence[str], cache: Path | None = None
) -> FlatMap:
    """Copy a game's rows and embeddings into flat files, as far as that has not been done.

    Args:
        snapshot: What to copy.
        game: ALE game id.
        models: Model keys.
        cache: Where to keep the files; default `cache_folder()`.

    Raises:
        UsageError: No model is named.
        MissingError: No frames, or a segment not encoded by one of the models.
        ConflictError: A model's embeddings are not all of one shape.
        DamagedError: Stored bytes are not what was committed.
        StorageError: No room for the copy.
    """
    if not models:
        raise UsageError("bad-option", "Name at least one model with --models.")
    segments = snapshot.segments(game)
    if not segments:
        raise MissingError(
            "no-frames",
            f"The store {snapshot.backend.url} has no frames of {game}. Collect some: "
            f"wsa collect --game {game}",
        )
    _require_encoded(snapshot, game, models, segments)
    shapes, dtype = _shapes(snapshot, game, models)
    name = keys.identity([snapshot.backend.url, game, list(models)])[:24]
    folder = (cache or cache_folder()) / "flat" / name
    with publish.storage_errors(folder):
        publish.make_folder(folder)
    with publish.storage_errors(folder), filelock.FileLock(folder / "lock"):
        contents = _contents(folder / "flat.json")
        wanted = {meta.segment: _check(snapshot, game, models, meta) for meta in segments}
        fits = (
            contents is not None
            and contents.shapes == shapes
            and contents.dtype == dtype
            and all(wanted.get(p.segment, p.check) == p.check for p in contents.parts)
            and _whole(folder, contents)
        )
        if contents is None or not fits:
            # Another store stood at this path, or an object was made anew: start over. Files are
            # replaced, not cut, so that whoever mapped the old ones keeps them.
            for stale in ("flat.json", "rows.bin", "embeddings.bin", "digests.bin"):
                (folder / stale).unlink(missing_ok=True)
            contents = Contents(snapshot.backend.url, game, tuple(models), shapes, dtype, ())
        present = {part.segment for part in contents.parts}
        new = [meta for meta in segments if meta.segment not in present]
        if new:
            contents = _append(folder, contents, snapshot, new, wanted)
        # Under the lock: whoever comes next may replace the files.
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


def _shapes(
    snapshot: Snapshot, game: str, models: Sequence[str]
) -> tuple[tuple[tuple[int, ...], ...], str]:
    shapes = []
    dtype = "float16"
    for key in models:
        metas = snapshot.embeddings(game, key)
        different = {meta.shape[1:] for meta in metas}
        if len(different) != 1:
            raise ConflictError("other-bytes", f"{key} has embeddings of shapes {different}.")
        shapes.append(different.pop())
        if any(meta.dtype == "float32" for meta in metas):
            dtype = "float32"
    return tuple(shapes), dtype


def _check(snapshot: Snapshot, game: str, models: Sequence[str], meta: SegmentMeta) -> str:
    """A hash that changes when a segment or one of its embeddings is another object than before."""
    paths = [names.segment_path(game, meta.segment)]
    paths += [names.embedding_path(game, key, meta.segment) for key in models]
    return keys.identity([[f.blake3 for f in snapshot.commit(p).files] for p in paths])


def _contents(path: Path) -> Contents | None:
    try:
        return records.read_json(path.read_bytes(), Contents, str(path), MAX_CONTENTS_BYTES)
    except (FileNotFoundError, DamagedError):
        return None


def _end(parts: Sequence[Part]) -> tuple[int, int]:
    """Rows and embedding rows that the parts take."""
    return max((p.row + p.rows for p in parts), default=0), max(
        (p.frame + p.frames for p in parts), default=0
    )


def _frame_bytes(contents: Contents) -> int:
    width = sum(math.prod(shape) for shape in contents.shapes)
    return width * np.dtype(contents.dtype).itemsize


def _whole(folder: Path, contents: Contents) -> bool:
    """Whether the files are as long as `flat.json` says: cleaners of caches cut and remove."""
    rows, frames = _end(contents.parts)
    try:
        return all(
            (folder / name).stat().st_size >= size
            for name, size in (
                ("rows.bin", rows * ROW.itemsize),
                ("embeddings.bin", frames * _frame_bytes(contents)),
                ("digests.bin", frames * keys.DIGEST_BYTES),
            )
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
    """Write new segments behind those that are there, then replace `flat.json`."""
    parts = list(contents.parts)
    row, frame = _end(parts)
    dtype = np.dtype(contents.dtype)
    with (
        publish.storage_errors(folder / "embeddings.bin"),
        _at(folder / "rows.bin", row * ROW.itemsize) as rows_file,
        _at(folder / "embeddings.bin", frame * _frame_bytes(contents)) as embeddings_file,
        _at(folder / "digests.bin", frame * keys.DIGEST_BYTES) as digests_file,
    ):
        for meta in new:
            rows = snapshot.read_rows(meta)
            record = np.zeros(meta.rows, ROW)
            for field in layout.ROW_FIELDS:
                record[field] = rows[field]
            record["frame"] += frame
            record["first"] = row + _episode_starts(rows["is_first"])
            embedded = [
                snapshot.read_embedding(contents.game, key, meta.segment).reshape(meta.frames, -1)
                for key in contents.models
            ]
            fused = np.concatenate(embedded, axis=1, dtype=dtype)
            rows_file.write(record.data)
            embeddings_file.write(fused.data)
            digests_file.write(rows["digest"].data)
            parts.append(
                Part(meta.segment, checks[meta.segment], row, meta.rows, frame, meta.frames)
            )
            row += meta.rows
            frame += meta.frames
        for file in (rows_file, embeddings_file, digests_file):
            file.truncate()
            file.flush()
            os.fsync(file.fileno())
    contents = msgspec.structs.replace(contents, parts=tuple(parts))
    publish.replace(folder / "flat.json", keys.canonical(contents))
    return contents


def _at(path: Path, offset: int) -> Any:
    file = path.open("r+b" if path.exists() else "w+b")
    file.seek(offset)
    return file


def _episode_starts(is_first: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Row where each row's episode begins in the segment; row 0 where it began before."""
    return np.maximum.accumulate(np.where(is_first, np.arange(len(is_first)), 0))
