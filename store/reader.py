"""Read a store: a fixed set of commits, and the arrays they name, checked as they are read.

A `Snapshot` never changes: what is committed after it was taken is not seen, so a reader never
meets half of anything. Every file is compared with the length and blake3 in its commit record
before it is decoded; a difference raises `DamagedError` and is never turned into zeros.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from wsa.store import keys, layout, names, records
from wsa.store.backends import Backend, get_small
from wsa.store.errors import DamagedError, MissingError
from wsa.store.records import Commit, EmbeddingMeta, File, ModelMeta, SegmentMeta

M = TypeVar("M", SegmentMeta, EmbeddingMeta, ModelMeta)


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """The objects of a store that were committed when it was taken, by path."""

    backend: Backend
    commits: dict[str, Commit]

    @property
    def games(self) -> list[str]:
        """Games with at least one segment, sorted."""
        return sorted({meta.game for meta in self._metas(SegmentMeta)})

    def segments(self, game: str | None = None) -> list[SegmentMeta]:
        """Segments of one game or of all, sorted by game and id."""
        found = (m for m in self._metas(SegmentMeta) if game in (None, m.game))
        return sorted(found, key=lambda m: (m.game, m.segment))

    def embeddings(self, game: str | None = None, model: str | None = None) -> list[EmbeddingMeta]:
        """Embedding objects, of one game, one model, or all, sorted."""
        found = (
            m
            for m in self._metas(EmbeddingMeta)
            if game in (None, m.game) and model in (None, m.model)
        )
        return sorted(found, key=lambda m: (m.game, m.model, m.segment))

    @property
    def models(self) -> list[str]:
        """Keys of all models, sorted."""
        return sorted(m.model for m in self._metas(ModelMeta))

    def models_of(self, game: str) -> list[str]:
        """Keys of the models that have encoded every segment of `game`, sorted."""
        wanted = {m.segment for m in self.segments(game)}
        return [
            key
            for key in sorted({m.model for m in self.embeddings(game)})
            if wanted <= {m.segment for m in self.embeddings(game, key)}
        ]

    def commit(self, path: str) -> Commit:
        """The record of the object at `path`.

        Raises:
            MissingError: No such object was committed.
        """
        try:
            return self.commits[path]
        except KeyError:
            raise MissingError(
                "not-encoded", f"The store {self.backend.url} has no {path}."
            ) from None

    def read_files(self, commit: Commit, prefix: str = "") -> dict[str, bytes]:
        """Bytes of an object's files, checked, by path relative to the object.

        Args:
            commit: The object's record.
            prefix: Only files whose relative path begins so.

        Raises:
            DamagedError: A file is gone, cut or changed.
        """
        skip = len(commit.path) + 1
        return {
            file.path[skip:]: self.read_file(file)
            for file in commit.files
            if file.path.startswith(prefix, skip)
        }

    def read_file(self, file: File) -> bytes:
        """One file's bytes, checked against its record."""
        length = self.backend.stat(file.path)
        if length == file.bytes:  # Otherwise it may be of any size, and is not worth reading.
            try:
                data = self.backend.get(file.path)
                if keys.checksum(data) == file.blake3:
                    return data
            except FileNotFoundError:
                length = None
        if length is None:
            raise DamagedError(
                "lost-file", f"{file.path} is gone from {self.backend.url}. Run 'wsa verify'."
            )
        raise DamagedError(
            "bad-bytes",
            f"{file.path} in {self.backend.url} is not what was committed "
            f"({length} bytes, {file.bytes} committed). Run 'wsa verify'.",
        )

    def read_array(self, meta: SegmentMeta, name: str) -> NDArray[Any]:
        """One array of a segment: `frames`, `digest`, `palette`, or a row field."""
        commit = self.commit(names.segment_path(meta.game, meta.segment))
        shape, dtype = segment_array(meta, name)
        files = self.read_files(commit, f"{name}/")
        return layout.decode_array(files, name, shape, dtype, commit.path)

    def read_rows(self, meta: SegmentMeta) -> dict[str, NDArray[Any]]:
        """Every row field of a segment, each (rows,)."""
        return {name: self.read_array(meta, name) for name in layout.ROW_FIELDS}

    def read_frames(self, meta: SegmentMeta) -> NDArray[np.uint8]:
        """A segment's distinct frames as RGB, (F, H, W, 3) uint8."""
        frames = self.read_array(meta, "frames")
        if meta.indexed:
            palette = self.read_array(meta, "palette")
            frames = np.take(palette, frames, axis=0)
        return frames.astype(np.uint8, copy=False)

    def read_digests(self, meta: SegmentMeta) -> NDArray[np.uint8]:
        """Digests of a segment's distinct frames, (F, 16) uint8."""
        return self.read_array(meta, "digest").astype(np.uint8, copy=False)

    def read_embedding(self, game: str, model: str, segment: str) -> NDArray[np.floating[Any]]:
        """Embeddings of a segment's frames by one model, (F, *shape) float16 or float32."""
        commit = self.commit(names.embedding_path(game, model, segment))
        meta = commit.meta
        assert isinstance(meta, EmbeddingMeta)
        array = layout.decode_array(
            self.read_files(commit), None, meta.shape, meta.dtype, commit.path
        )
        return array

    def read_model(self, key: str, prefix: str = "") -> dict[str, bytes]:
        """Files of a model: `spec.json`, `probe.safetensors`, perhaps `basis.safetensors`."""
        return self.read_files(self.commit(names.model_path(key)), prefix)

    def _metas(self, kind: type[M]) -> Iterable[M]:
        return (c.meta for c in self.commits.values() if isinstance(c.meta, kind))


def take_snapshot(backend: Backend, earlier: Snapshot | None = None) -> Snapshot:
    """Read every commit record of a store.

    Args:
        backend: The store.
        earlier: A snapshot of the same store; its records are not read again, so an object that
            was removed and made anew since is not noticed.

    Raises:
        DamagedError: A record is damaged.
    """
    known = {} if earlier is None else {c.id: c for c in earlier.commits.values()}
    commits = {}
    for path in list_records(backend):
        commit = known.get(path.rpartition("/")[2].removesuffix(".json"))
        if commit is None:
            commit = read_record(backend, path)
        if commit is not None:
            commits[commit.path] = commit
    return Snapshot(backend, commits)


def list_records(backend: Backend) -> list[str]:
    """Paths of all commit records, sorted.

    Anything else in `commits/` is passed over: the half-made files of a copying tool, for one.
    """
    return sorted(path for path in backend.list("commits") if path.endswith(".json"))


def read_record(backend: Backend, path: str) -> Commit | None:
    """The record at `path`, or None if it has been removed.

    Raises:
        DamagedError: It is not a whole and consistent record.
    """
    try:
        return records.read_commit(get_small(backend, path), path)
    except FileNotFoundError:
        return None


def take_objects(backend: Backend, paths: Iterable[str]) -> Snapshot:
    """A snapshot of a few objects, without reading every record of the store.

    Raises:
        MissingError: One of them is not committed.
        DamagedError: A record is damaged.
    """
    commits = {}
    for path in paths:
        commit = read_record(backend, names.commit_path(keys.object_id(path)))
        if commit is None:
            raise MissingError("not-encoded", f"The store {backend.url} has no {path}.")
        commits[path] = commit
    return Snapshot(backend, commits)


def segment_array(meta: SegmentMeta, name: str) -> tuple[tuple[int, ...], str]:
    """Shape and type that one of a segment's arrays must have."""
    if name == "frames":
        pixels: tuple[int, ...] = (meta.frames, meta.height, meta.width)
        return (pixels if meta.indexed else (*pixels, 3)), "uint8"
    if name == "digest":
        return (meta.frames, keys.DIGEST_BYTES), "uint8"
    if name == "palette":
        return (256, 3), "uint8"
    return (meta.rows,), layout.ROW_FIELDS[name]


def segment_arrays(meta: SegmentMeta) -> list[str]:
    """Names of all arrays of a segment."""
    return ["frames", "digest", *(["palette"] if meta.indexed else []), *layout.ROW_FIELDS]
