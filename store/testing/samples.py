"""Small objects for tests of a store, without an emulator or a model.

A `Work` describes what one writer commits. Its content depends only on its fields, so a test knows
what a reader must see: `check_store` compares this.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np

from wsa.store.backends.base import Backend
from wsa.store.common import hashing, names
from wsa.store.format import arrays
from wsa.store.format.records import EmbeddingMeta, ModelMeta, Protocol, SegmentMeta
from wsa.store.maintenance.verify import verify
from wsa.store.objects import writer
from wsa.store.objects.snapshot import Snapshot, arrays_of, take_snapshot

Kind = Literal["segment", "embedding", "model"]
KINDS: tuple[Kind, ...] = get_args(Kind)
SEGMENTS = 4
ALIASES = ("lite0", "vit")

Content = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Work:
    """One object to commit: a segment, one model's embeddings of a segment, or a model.

    Attributes:
        kind: Kind of the object.
        number: Number of the segment; even and odd ones belong to two games.
        alias: Alias of the model.
        salt: Changes the content but not the path, to tell which writer's bytes were kept.
    """

    kind: Kind
    number: int = 0
    alias: str = "lite0"
    salt: int = 0

    @property
    def _segment(self) -> tuple[str, str]:
        return ("Pong", "Breakout")[self.number % 2], names.make_segment(
            "a1" * 6, 0, self.number, 2
        )

    @property
    def _key(self) -> str:
        return names.make_model_key(self.alias, hashing.identity(self.alias))

    @property
    def paths(self) -> list[str]:
        """Paths of the objects, in the order in which they become visible."""
        if self.kind == "model":
            return [names.model_path(self._key)]
        game, segment = self._segment
        if self.kind == "embedding":
            return [names.embedding_path(game, self._key, segment)]
        return [names.frames_path(game, segment), names.segment_path(game, segment)]

    def contents(self) -> list[Content]:
        """Return the content of each object: arrays, or the files of a model."""
        return _contents(self)

    def commit(self, backend: Backend) -> bool:
        """Commit the work, and return whether this call made its last object visible."""
        if self.kind == "model":
            return writer.commit_model(backend, ModelMeta(self._key), dict(self.contents()[0]))
        game, segment = self._segment
        if self.kind == "embedding":
            array = self.contents()[0][""]
            meta = EmbeddingMeta(
                game, segment, self._key, array.shape, "float16", len(array), 0, 0.5
            )
            return writer.commit_embedding(backend, meta, array)
        frames, rows = self.contents()
        segment_meta = SegmentMeta(
            game=game,
            segment=segment,
            run="a1" * 6,
            env=0,
            start=self.number,
            rows=len(rows["action"]),
            steps=len(rows["action"]),
            frames=len(frames["frames"]),
            episodes=(),
            protocol=Protocol("v5", 4, 0.25, 0, False, False, True, 27000, ("NOOP",)),
            policy="random",
            seed=1,
            emulator=("0.12.0", ""),
        )
        return writer.commit_segment(backend, segment_meta, {**frames, **rows})


@functools.cache
def _contents(work: Work) -> list[Content]:
    shared_rng = np.random.default_rng([work.number, *work.alias.encode()])
    rng = np.random.default_rng([work.number, *work.alias.encode(), work.salt])
    if work.kind == "model":
        return [{"spec.json": rng.bytes(30), "probe.safetensors": rng.bytes(50)}]
    if work.kind == "embedding":
        return [{"": rng.normal(size=(3, 4)).astype(np.float16)}]
    # All writers of a segment have the same frames. Different rows, as here, would be a mistake.
    frames = {
        "frames": shared_rng.integers(0, 255, (3, 2, 2), np.uint8),
        "palette": shared_rng.integers(0, 255, (256, 3), np.uint8),
    }
    rows = {name: rng.integers(0, 2, 5).astype(kind) for name, kind in arrays.ROW_FIELDS.items()}
    return [frames, {"digest": shared_rng.integers(0, 255, (3, 16), np.uint8), **rows}]


def read_object(snapshot: Snapshot, path: str) -> Content:
    """Read the whole content of an object.

    Raises:
        DamagedError: If its bytes are not what was committed.
    """
    commit = snapshot.commit(path)
    meta = commit.meta
    if isinstance(meta, SegmentMeta):
        return snapshot.read_rows(meta)
    if isinstance(meta, EmbeddingMeta):
        return {"": snapshot.read_embedding(meta.game, meta.model, meta.segment)}
    if isinstance(meta, ModelMeta):
        return snapshot.read_model(meta.model)
    files = snapshot.read_files(commit)
    return {
        name: arrays.decode_array(files, name, shape, dtype, commit.folder)
        for name, (shape, dtype) in arrays_of(meta).items()
    }


def same_content(a: Content, b: Content) -> bool:
    """Whether two objects have the same names, types, shapes and values."""
    return a.keys() == b.keys() and all(
        np.asarray(a[name]).dtype == np.asarray(b[name]).dtype and np.array_equal(a[name], b[name])
        for name in a
    )


def check_store(backend: Backend, works: Sequence[Work]) -> set[str]:
    """Read and verify a store that contains only objects of `works`.

    Returns:
        Paths of the visible objects.

    Raises:
        AssertionError: If an object is not in `works`, or is not what was committed.
    """
    snapshot = take_snapshot(backend)
    expected = {
        path: content
        for work in works
        for path, content in zip(work.paths, work.contents(), strict=True)
    }
    for path in snapshot.commits:
        assert path in expected, f"{path} was not committed"
        assert same_content(read_object(snapshot, path), expected[path]), f"{path} is another"
    report = verify(backend)
    # A work may be an embedding alone; the records of its segment and model then count as lost.
    damage = [one for one in report.damage if one.attempt or one.kind != "lost-file"]
    assert not damage, damage
    assert report.objects == len(snapshot.commits)
    return set(snapshot.commits)


def unnamed(backend: Backend) -> set[str]:
    """Return the files that no record names: leftovers, and files of active writers."""
    commits = take_snapshot(backend).commits.values()
    named = {f"{commit.folder}/{file.name}" for commit in commits for file in commit.files}
    named |= {names.commit_path(commit.id) for commit in commits} | {names.STORE_FILE}
    return {entry.path for entry in backend.list("")} - named


# Paths of every object that works of these kinds, segments and aliases can make visible.
ALL_PATHS = sorted(
    {
        path
        for kind in KINDS
        for number in range(SEGMENTS)
        for alias in ALIASES
        for path in Work(kind, number, alias).paths
    }
)
