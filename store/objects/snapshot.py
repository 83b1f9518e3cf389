"""Read a store: a fixed set of commits, and their arrays, checked as they are read.

A `Snapshot` never changes: it does not show later commits, so a reader sees a consistent state.
Every file is compared with the length and blake3 in its commit record before it is decoded. A
difference raises `DamagedError`; a damaged file never reads as zeros.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from wsa.store.backends.base import Backend, Entry
from wsa.store.common import hashing, names
from wsa.store.common.errors import DamagedError, MissingError, StorageError, WsaError
from wsa.store.format import arrays, records
from wsa.store.format.records import (
    Commit,
    EmbeddingMeta,
    File,
    FramesMeta,
    Meta,
    ModelMeta,
    SegmentMeta,
)
from wsa.store.objects.record_cache import WORTHWHILE, Catalog

A = TypeVar("A")
B = TypeVar("B")
M = TypeVar("M", FramesMeta, SegmentMeta, EmbeddingMeta, ModelMeta)
S = TypeVar("S", FramesMeta, SegmentMeta, EmbeddingMeta)
Groups = dict[tuple[str, ...], list[S]]
"""Records by game, or by game and model, in this order; each list is sorted by segment."""


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """The objects that were committed to a store when the snapshot was taken.

    Attributes:
        backend: The store.
        commits: Records by the path of their object.
        records: The same records by their file's entry in the listing, for the next snapshot.
    """

    backend: Backend
    commits: dict[str, Commit]
    records: Mapping[Entry, Commit] = dataclasses.field(default_factory=dict, repr=False)

    @property
    def games(self) -> list[str]:
        """Games with at least one segment, sorted."""
        return [game for (game,) in self._segments]

    def segments(self, game: str | None = None) -> list[SegmentMeta]:
        """Segments of one game or of all games, sorted by game and id."""
        return _select(self._segments, game)

    def segments_of(self, game: str) -> list[SegmentMeta]:
        """Segments of a game, sorted by id.

        Raises:
            MissingError: If there are none.
        """
        if segments := self.segments(game):
            return segments
        raise MissingError(
            "no-frames",
            f"The store {self.backend.url} has no frames of {game}. Collect some: "
            f"wsa collect --game {game}",
        )

    def frames(self, game: str | None = None) -> list[FramesMeta]:
        """Frames objects, sorted like segments; a segment pulled without frames has none."""
        return _select(self._frames, game)

    def segments_with_frames(self, game: str | None = None) -> list[SegmentMeta]:
        """Segments whose frames are here, sorted like segments."""
        with_frames = {(m.game, m.segment) for m in self.frames(game)}
        return [m for m in self.segments(game) if (m.game, m.segment) in with_frames]

    def segments_encoded_by(self, game: str, models: Iterable[str]) -> list[SegmentMeta]:
        """Segments of a game that all these models have encoded, sorted by id."""
        done = [{e.segment for e in self.embeddings(game, key)} for key in models]
        return [m for m in self.segments(game) if all(m.segment in each for each in done)]

    def embeddings(self, game: str | None = None, model: str | None = None) -> list[EmbeddingMeta]:
        """Embeddings of one game, one model, or all, sorted by game, model and segment."""
        return _select(self._embeddings, game, model)

    @functools.cached_property
    def models(self) -> list[str]:
        """Keys of all models, sorted."""
        return sorted(m.model for m in self._metas(ModelMeta))

    def models_of(self, game: str, *, partly: bool = False) -> list[str]:
        """Keys of the models that have encoded every segment of `game`, or any if `partly`; sorted."""
        wanted = set() if partly else {m.segment for m in self.segments(game)}
        return [
            key
            for (of, key), metas in self._embeddings.items()
            if of == game and wanted <= {m.segment for m in metas}
        ]

    # A store may have a million records, and a service asks for those of each game and model.
    @functools.cached_property
    def _segments(self) -> Groups[SegmentMeta]:
        return _group(self._metas(SegmentMeta), lambda m: (m.game,))

    @functools.cached_property
    def _frames(self) -> Groups[FramesMeta]:
        return _group(self._metas(FramesMeta), lambda m: (m.game,))

    @functools.cached_property
    def _embeddings(self) -> Groups[EmbeddingMeta]:
        return _group(self._metas(EmbeddingMeta), lambda m: (m.game, m.model))

    def commit(self, path: str) -> Commit:
        """Return the record of the object at `path`.

        Raises:
            MissingError: If no such object is in the snapshot.
        """
        try:
            return self.commits[path]
        except KeyError:
            raise MissingError(
                "not-encoded", f"The store {self.backend.url} has no {path}."
            ) from None

    def read_files(self, commit: Commit, prefix: str = "") -> dict[str, bytes]:
        """Read and check an object's files; returns their bytes by path inside its folder.

        Args:
            prefix: Read only files whose name starts with this.

        Raises:
            DamagedError: If a file is missing, truncated or changed.
        """
        wanted = [file for file in commit.files if file.name.startswith(prefix)]
        found = _map(self.backend, partial(self.read_file, commit), wanted)
        return {file.name: data for file, data in zip(wanted, found, strict=True)}

    def read_file(self, commit: Commit, file: File) -> bytes:
        """Read one file and check it against its record."""
        path = f"{commit.folder}/{file.name}"
        try:
            data = self.backend.get(path, file.bytes)
        except FileNotFoundError:
            raise DamagedError(
                "lost-file", f"{path} is gone from {self.backend.url}. Run 'wsa verify'."
            ) from None
        if len(data) == file.bytes and hashing.checksum(data) == file.blake3:
            return data
        raise DamagedError(
            "bad-bytes",
            f"{path} in {self.backend.url} is not what was committed "
            f"({len(data)} bytes, {file.bytes} committed). Run 'wsa verify'.",
        )

    def read_array(self, meta: SegmentMeta, name: str) -> NDArray[Any]:
        """Read one array of a segment: `digest`, or a row field."""
        return self.read_array_at(names.segment_path(meta.game, meta.segment), name)

    def read_rows(self, meta: SegmentMeta) -> dict[str, NDArray[Any]]:
        """Read every row field of a segment, each of shape (rows,), and its `digest`."""
        commit = self.commit(names.segment_path(meta.game, meta.segment))
        files = self.read_files(commit)
        rows = {
            name: arrays.decode_array(files, name, shape, dtype, commit.folder)
            for name, (shape, dtype) in arrays_of(commit.meta).items()
        }
        if rows["frame"].min() < 0 or rows["frame"].max() >= meta.frames:
            raise DamagedError(
                "bad-array",
                f"{commit.folder} has rows that show frames beyond its {meta.frames}. Run 'wsa "
                "verify'.",
            )
        return rows

    def read_frames(self, meta: SegmentMeta) -> NDArray[np.uint8]:
        """Read a segment's distinct frames as RGB, shape (F, H, W, 3), uint8.

        Raises the errors of `read_pictures`.
        """
        pictures, palette = self.read_pictures(meta)
        return pictures if palette is None else palette[pictures]

    def read_pictures(
        self, meta: SegmentMeta
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
        """Read a segment's distinct frames as they are stored.

        Returns:
            Palette indices, shape (F, H, W), uint8, and the RGB palette, shape (256, 3), uint8. If
            the segment has more than 256 colors: RGB, shape (F, H, W, 3), and None.

        Raises:
            MissingError: If the store has only the segment's rows.
            DamagedError: If stored bytes are not what was committed.
        """
        path = names.frames_path(meta.game, meta.segment)
        if path not in self.commits:
            raise MissingError(
                "no-frames",
                f"The store {self.backend.url} has the rows of {meta.game} segment {meta.segment} "
                f"but not its frames. Fetch them: wsa pull URL --game {meta.game}",
            )
        frames_meta = self.commits[path].meta
        assert isinstance(frames_meta, FramesMeta)
        if frames_meta.frames != meta.frames:
            raise DamagedError(
                "bad-record",
                f"{path} has {frames_meta.frames} frames, but its segment has {meta.frames}. Run "
                "'wsa verify'.",
            )
        pictures = self.read_array_at(path, "frames").astype(np.uint8, copy=False)
        if not frames_meta.indexed:
            return pictures, None
        return pictures, self.read_array_at(path, "palette").astype(np.uint8, copy=False)

    def read_digests(self, meta: SegmentMeta) -> NDArray[np.uint8]:
        """Read the digests of a segment's distinct frames, shape (F, 16), uint8."""
        return self.read_array(meta, "digest").astype(np.uint8, copy=False)

    def read_embedding(self, game: str, model: str, segment: str) -> NDArray[np.floating[Any]]:
        """Read one model's embeddings of a segment, float16 or float32.

        Returns:
            Embedding i of frame i, shape (F, *shape). If the model's window is above 1: embedding i
            of the window that ends at row i (`wsa.store.format.windows`), shape (rows, *shape).

        Raises:
            MissingError: If the embeddings are not in the snapshot.
            DamagedError: If stored bytes are not what was committed.
        """
        commit = self.commit(names.embedding_path(game, model, segment))
        meta = commit.meta
        assert isinstance(meta, EmbeddingMeta)
        rows = self.commits.get(names.segment_path(game, segment))
        if rows is not None and not (isinstance(rows.meta, SegmentMeta) and meta.fits(rows.meta)):
            raise DamagedError(
                "bad-record",
                f"{commit.path} has {meta.shape[0]} embeddings, but its segment has a different "
                f"number of {meta.unit}. Run 'wsa verify'.",
            )
        return self.read_array_at(commit.path)

    def read_model(self, key: str, prefix: str = "") -> dict[str, bytes]:
        """Read a model's files: `spec.json`, `probe.safetensors`, perhaps `basis.safetensors`."""
        return self.read_files(self.commit(names.model_path(key)), prefix)

    def read_array_at(self, path: str, name: str = "") -> NDArray[Any]:
        """Read one array of the object at `path`, by its name in `arrays_of`."""
        commit = self.commit(path)
        shape, dtype = arrays_of(commit.meta)[name]
        files = self.read_files(commit, f"{name}/" if name else "")
        return arrays.decode_array(files, name, shape, dtype, commit.folder)

    def _metas(self, kind: type[M]) -> Iterable[M]:
        return (c.meta for c in self.commits.values() if isinstance(c.meta, kind))


def _group(metas: Iterable[S], group_of: Callable[[S], tuple[str, ...]]) -> Groups[S]:
    ordered = sorted(metas, key=lambda m: (group_of(m), m.segment))
    return {group: list(members) for group, members in itertools.groupby(ordered, group_of)}


def _select(groups: Groups[S], *names: str | None) -> list[S]:
    """Return the records of the groups with these names, of which None stands for any."""
    return [
        meta
        for group, metas in groups.items()
        if all(name in (None, own) for name, own in zip(names, group, strict=True))
        for meta in metas
    ]


def take_snapshot(backend: Backend, earlier: Snapshot | None = None) -> Snapshot:
    """List a store's commit records, and read those that this machine has not read before.

    Args:
        earlier: An earlier snapshot of the same store, whose unchanged records are reused.

    Raises:
        DamagedError: If a record is damaged.
    """
    known = dict(earlier.records) if earlier else {}
    listed = list_records(backend)
    if sum(entry not in known for entry in listed) >= WORTHWHILE:
        catalog = Catalog(backend.url)
        cached = catalog.read()
        for entry in listed:
            if entry not in known and entry in cached:
                with contextlib.suppress(DamagedError):
                    known[entry] = records.read_commit(cached[entry], entry.path)
        unread = [entry for entry in listed if entry not in known]
        catalog.add(_read_all(backend, unread, known))
    else:
        _read_all(backend, [entry for entry in listed if entry not in known], known)
    current = {entry: commit for entry in listed if (commit := known.get(entry)) is not None}
    return Snapshot(backend, {commit.path: commit for commit in current.values()}, current)


def _read_all(
    backend: Backend, entries: Sequence[Entry], known: dict[Entry, Commit]
) -> dict[Entry, bytes]:
    """Read records into `known` and return their bytes; skip records that have been removed."""
    read = {}
    for entry, data in zip(entries, _map(backend, partial(_get, backend), entries), strict=True):
        if data is not None:
            known[entry] = records.read_commit(data, entry.path)
            read[entry] = data
    return read


def _map(backend: Backend, read: Callable[[A], B], items: Sequence[A]) -> Iterable[B]:
    """Apply `read` to each item, in threads if the backend gains from them; keeps the order."""
    if backend.at_once == 1 or len(items) < 2:
        return map(read, items)
    with ThreadPoolExecutor(backend.at_once) as threads:
        return list(threads.map(read, items))


def _get(backend: Backend, entry: Entry) -> bytes | None:
    try:
        return backend.get(entry.path, records.MAX_RECORD_BYTES)
    except FileNotFoundError:
        return None


def list_records(backend: Backend) -> list[Entry]:
    """List all commit records, sorted.

    Other files in `commits/` are ignored, such as the incomplete files of a copying tool.
    """
    return sorted(entry for entry in backend.list("commits") if names.is_record(entry.path))


def read_each(backend: Backend) -> Iterator[tuple[str, Commit | WsaError | None]]:
    """Yield (path, record) of every record: an error if it is unreadable, None if it was removed."""

    def read(path: str) -> Commit | WsaError | None:
        try:
            return read_record(backend, path)
        except (DamagedError, StorageError) as error:
            return error.reworded(str(error))  # Without a traceback that keeps the bytes.

    paths = [entry.path for entry in list_records(backend)]
    # In blocks, so that a million records are not in memory at once.
    for at in range(0, len(paths), 1024):
        block = paths[at : at + 1024]
        yield from zip(block, _map(backend, read, block), strict=True)


def read_record(backend: Backend, path: str) -> Commit | None:
    """Return the record at `path`, or None if it has been removed.

    Raises:
        DamagedError: If it is not a complete, consistent record.
    """
    try:
        return records.read_commit(backend.get(path, records.MAX_RECORD_BYTES), path)
    except FileNotFoundError:
        return None


def take_objects(backend: Backend, paths: Iterable[str]) -> Snapshot:
    """Take a snapshot of a few objects, without reading every record of the store.

    Raises:
        MissingError: If one of them is not committed.
        DamagedError: If a record is damaged.
    """
    commits = {}
    for path in paths:
        commit = read_record(backend, records.record_path(path))
        if commit is None:
            raise MissingError("not-encoded", f"The store {backend.url} has no {path}.")
        commits[path] = commit
    return Snapshot(backend, commits)


def arrays_of(meta: Meta) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return shape and dtype of each of an object's arrays, by its name in the Zarr group.

    An embedding is itself an array, named "". A model has none.
    """
    if isinstance(meta, FramesMeta):
        pixels = (meta.frames, meta.height, meta.width)
        if not meta.indexed:
            return {"frames": ((*pixels, 3), "uint8")}
        return {"frames": (pixels, "uint8"), "palette": ((256, 3), "uint8")}
    if isinstance(meta, SegmentMeta):
        rows = {name: ((meta.rows,), kind) for name, kind in arrays.ROW_FIELDS.items()}
        return {"digest": ((meta.frames, hashing.DIGEST_BYTES), "uint8"), **rows}
    return {"": (meta.shape, meta.dtype)} if isinstance(meta, EmbeddingMeta) else {}
