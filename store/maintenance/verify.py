"""Check every byte of a store and report damage, without changing anything.

Each commit record is parsed and checked against its own checksum. Each file that it names is read
and compared with its length and blake3, and each array is decoded. In a damaged array, the chunks
with correct checksums are still valid, so the report names the damaged rows. The number of
embeddings is compared with the segment's frames or rows, and the records of their model and of the
segment must be there, since they were committed before. Files that no record names are counted, but
they are not damage: they belong to dead or active writers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from wsa.store.backends.base import Backend
from wsa.store.common import hashing, names
from wsa.store.common.errors import DamagedError, Kind, StorageError, WsaError
from wsa.store.format import arrays as layout
from wsa.store.format import records
from wsa.store.format.limits import check_metadata
from wsa.store.format.records import Commit, EmbeddingMeta, FramesMeta, Meta, SegmentMeta
from wsa.store.maintenance.sweep import KEPT, list_attempts, objects_named
from wsa.store.objects.snapshot import Snapshot, arrays_of, list_records, read_record
from wsa.store.objects.writer import committed

# Further damage is only counted, so that it cannot fill the memory.
MOST_LISTED = 10_000
# Number of concurrent checks on a network; each takes the memory of one object.
OBJECTS_AT_ONCE = 8

Rows = tuple[tuple[int, int], ...]


# What the storage may answer instead of a file's bytes.
REFUSALS: tuple[Kind, ...] = ("unavailable", "no-permission", "no-memory")


@dataclasses.dataclass(frozen=True)
class Damage:
    """One array, object, or record that is damaged, or that the storage refused to read.

    Attributes:
        path: The object's path, or the record's path if the record is damaged.
        kind: Kind of the error that reading raises.
        why: Message of that error.
        game, segment, model: Owner of the object; "" if it has none or it is unknown.
        array: The damaged array; "" for the whole object.
        unit: Unit of `rows`: the segment's `rows`, or its distinct `frames`.
        rows: Damaged ranges, each as (first, last).
        attempt: The attempt that the record names; "" if the record is damaged.
    """

    path: str
    kind: Kind
    why: str
    game: str = ""
    segment: str = ""
    model: str = ""
    array: str = ""
    unit: str = ""
    rows: Rows = ()
    attempt: str = ""

    @property
    def refused(self) -> bool:
        """Whether the storage refused the read, so that the bytes may be intact."""
        return self.kind in REFUSALS

    @property
    def concerns(self) -> str:
        """Game, segment, model and rows in words, as far as they are known."""
        parts = [
            f"{word} {value}"
            for word, value in (
                ("game", self.game),
                ("segment", self.segment),
                ("model", self.model),
                ("array", self.array),
            )
            if value
        ]
        if self.rows:
            ranges = " and ".join(f"{first} to {last}" for first, last in self.rows)
            parts.append(f"{self.unit} {ranges}")
        elif self.model and not self.segment:
            parts[-1] += ", and nothing it encoded"
        words = ", ".join(parts)
        if self.attempt:
            return words
        return f"the record of {words or 'an object none of whose files are left'}"


@dataclasses.dataclass(frozen=True)
class Report:
    """Result of a verification.

    Attributes:
        objects: Number of committed objects read.
        of: Number of objects in the store; more than `objects` if only a sample was read.
        files: Number of files read.
        bytes: Size of the objects read.
        leftovers: Number of files that no record names; None if only a sample was read.
        incomplete: Number of segments with only their frames or only their rows committed, and files
            of the other half that no record names: a writer died or is active between the two, or a
            record is lost; None if only a sample was read.
        set_aside: Number of objects and records in `damaged/`.
        damage: Damage, sorted by path; at most `MOST_LISTED` entries.
        unlisted: Number of further damages.
    """

    objects: int
    of: int
    files: int
    bytes: int
    leftovers: int | None
    incomplete: int | None
    set_aside: int
    damage: tuple[Damage, ...]
    unlisted: int = 0


def verify(
    backend: Backend,
    on_object: Callable[[int, int], None] = lambda done, total: None,
    sample: float = 1.0,
) -> Report:
    """Check all objects of a store, or a random sample.

    Args:
        on_object: Called after each object with the numbers of objects done and in total.
        sample: Fraction of the objects to read.

    Raises:
        StorageError: If the store cannot be listed. An unreadable file counts as damage instead.
    """
    # List files before records, so that a commit in between does not count as a leftover.
    listing = list_attempts(backend, "" if sample >= 1 else KEPT)
    paths = [entry.path for entry in list_records(backend)]
    listed = frozenset(paths)
    total = len(paths)
    if sample < 1:
        paths = random.sample(paths, min(total, math.ceil(sample * total)))
    damage: list[Damage] = []
    counts = _Counts()
    needed: set[str] = set()
    named: set[str] = set()
    objects = files = size = unlisted = 0
    for done, checked in enumerate(_check_all(backend, paths), 1):
        if checked.folder:
            objects += 1
            files += checked.files + 1
            size += checked.bytes
            listing.attempts.pop(checked.folder, None)
            counts.add(checked)
        if checked.meta is not None:
            needed.update(records.dependencies(checked.meta))
            named.update(objects_named(checked.meta))
        room = MOST_LISTED - len(damage)
        damage += checked.damage[:room]
        unlisted += len(checked.damage[room:])
        on_object(done, len(paths))
    lost = [path for path in sorted(needed) if _is_lost(backend, path, listed)]
    for one in (*counts.mismatches(backend), *map(partial(_lost_record, backend), lost)):
        if len(damage) < MOST_LISTED:
            damage.append(one)
        else:
            unlisted += 1
    leftovers = sum(attempt.files for attempt in listing.attempts.values()) + len(listing.strange)
    incomplete = {
        path
        for attempt in listing.attempts
        if listing.may_be_lost(attempt, named)
        and (path := attempt.rpartition("/")[0]) not in needed
        and _is_missing(backend, path, listed)
    }
    # A record's name is the hash of its object's path. So the paths of files without a readable
    # record, and of objects that others depend on, tell which object a damaged record belongs to.
    orphans = {path.rpartition("/")[0] for path in listing.attempts}
    by_record = {records.record_path(path): path for path in orphans | needed}
    damage = [_with_object(one, by_record) for one in damage]
    return Report(
        objects=objects,
        of=total,
        files=files,
        bytes=size,
        leftovers=leftovers if sample >= 1 else None,
        incomplete=len(incomplete) if sample >= 1 else None,
        set_aside=len(listing.kept),
        damage=tuple(sorted(damage, key=lambda d: (d.path, d.array, d.rows))),
        unlisted=unlisted,
    )


@dataclasses.dataclass(frozen=True)
class _Checked:
    """Result of checking one record and its object; `folder` is empty if the record is damaged."""

    damage: Sequence[Damage] = ()
    folder: str = ""
    files: int = 0
    bytes: int = 0
    meta: Meta | None = None


class _Counts:
    """Numbers of frames, rows and embeddings, to compare after all objects have been read."""

    def __init__(self) -> None:
        self._segments: dict[str, tuple[int, int]] = {}
        self._embeddings: dict[str, tuple[str, int, int]] = {}

    def add(self, checked: _Checked) -> None:
        meta = checked.meta
        if isinstance(meta, SegmentMeta):
            self._segments[records.meta_path(meta)] = meta.frames, meta.rows
        elif isinstance(meta, EmbeddingMeta) and not checked.damage:
            segment = names.segment_path(meta.game, meta.segment)
            self._embeddings[records.meta_path(meta)] = segment, meta.window > 1, meta.shape[0]

    def mismatches(self, backend: Backend) -> Iterator[Damage]:
        """Yield embeddings whose number differs from their segment's frames or rows."""
        for path, (segment, column, count) in self._embeddings.items():
            if segment not in self._segments or self._segments[segment][column] == count:
                continue
            commit = read_record(backend, records.record_path(path))
            if commit is not None and isinstance(commit.meta, EmbeddingMeta):
                why = (
                    f"{path} has {count} embeddings, and its segment {self._segments[segment][column]} "
                    f"{commit.meta.unit}. Run 'wsa verify'."
                )
                yield _damage(commit, "", (), DamagedError("bad-record", why))


def _is_missing(backend: Backend, path: str, listed: AbstractSet[str]) -> bool:
    """Whether the object at `path` has no record, neither in the listing nor committed since."""
    return records.record_path(path) not in listed and not committed(backend, path)


def _is_lost(backend: Backend, path: str, listed: AbstractSet[str]) -> bool:
    """Whether an object that others depend on has no record, and no repair took it out."""
    kept = f"{KEPT}/{hashing.object_id(path)}"
    return _is_missing(backend, path, listed) and not any(True for _ in backend.list(kept))


def _lost_record(backend: Backend, path: str) -> Damage:
    record = records.record_path(path)
    why = (
        f"{record} is gone from {backend.url}: it is committed before the embeddings that depend on "
        f"{path}."
    )
    return Damage(record, "lost-file", why)


def _check_all(backend: Backend, paths: Sequence[str]) -> Iterator[_Checked]:
    check = partial(_check, backend)
    if backend.at_once == 1:
        yield from map(check, paths)
        return
    with ThreadPoolExecutor(OBJECTS_AT_ONCE) as threads:
        step = 16 * OBJECTS_AT_ONCE  # Submitting all at once could make a million futures.
        for at in range(0, len(paths), step):
            yield from threads.map(check, paths[at : at + step])


def _check(backend: Backend, path: str) -> _Checked:
    try:
        commit = read_record(backend, path)
    except (DamagedError, StorageError) as error:
        return _Checked([Damage(path, error.kind, str(error))])
    if commit is None:  # Removed meanwhile.
        return _Checked()
    damage = list(_check_object(Snapshot(backend, {}), commit))
    return _Checked(damage, commit.folder, len(commit.files), commit.bytes, commit.meta)


def _check_object(snapshot: Snapshot, commit: Commit) -> Iterator[Damage]:
    bad: dict[str, tuple[WsaError, bytes | None]] = {}
    try:
        files = snapshot.read_files(commit)
    except (DamagedError, StorageError):
        files, bad = _read_one_by_one(snapshot, commit)
    for name, (shape, dtype) in arrays_of(commit.meta).items():
        prefix = f"{name}/" if name else ""
        chunk = prefix + layout.chunk_file(len(shape))
        own = {file: bad.pop(file) for file in list(bad) if file.startswith(prefix)}
        if own:
            why, data = next(iter(own.values()))
            data = data if own.keys() == {chunk} else None
        else:
            try:
                layout.decode_array(files, name, shape, dtype, commit.folder)
                continue
            except DamagedError as error:
                why, data = error, files.get(chunk)
        rows: Rows = ((0, shape[0] - 1),)
        if data is not None:
            with contextlib.suppress(DamagedError):
                stored = check_metadata(files.get(f"{prefix}zarr.json"), shape, dtype, chunk)
                rows = tuple(layout.damaged_rows(stored, data))
        yield _damage(commit, name, rows, why)
    for why, _ in bad.values():  # Files outside the arrays, on which the whole object depends.
        yield _damage(commit, "", (), why)


def _read_one_by_one(
    snapshot: Snapshot, commit: Commit
) -> tuple[dict[str, bytes], dict[str, tuple[WsaError, bytes | None]]]:
    """Read an object's files one by one.

    Returns:
        The files that are what was committed; and for each of the others the error, and its bytes
        if they can be read.
    """
    files: dict[str, bytes] = {}
    bad: dict[str, tuple[WsaError, bytes | None]] = {}
    for file in commit.files:
        try:
            files[file.name] = snapshot.read_file(commit, file)
        except (DamagedError, StorageError) as error:
            data = None
            with contextlib.suppress(DamagedError, StorageError, FileNotFoundError):
                data = snapshot.backend.get(f"{commit.folder}/{file.name}", file.bytes)
            bad[file.name] = error, data
    return files, bad


def _damage(commit: Commit, array: str, rows: Rows, why: WsaError) -> Damage:
    """Return damage to some rows of an array, or to all rows if `rows` is empty."""
    meta = commit.meta
    unit, count = "", 0
    if isinstance(meta, SegmentMeta):
        unit, count = ("frames", meta.frames) if array == "digest" else ("rows", meta.rows)
    elif isinstance(meta, EmbeddingMeta):
        unit, count = meta.unit, meta.shape[0]
    elif isinstance(meta, FramesMeta):
        unit, count = "frames", meta.frames
        rows = () if array == "palette" else rows  # All frames need the palette.
    if count and not rows:
        rows = ((0, count - 1),)
    owner = {name: getattr(meta, name, "") for name in ("game", "segment", "model")}
    return Damage(
        commit.path,
        why.kind,
        str(why),
        **owner,
        array=array,
        unit=unit,
        rows=rows,
        attempt=commit.attempt,
    )


def _with_object(damage: Damage, objects: Mapping[str, str]) -> Damage:
    """Add to a damaged record what the files' path tells about its object."""
    parts = objects.get(damage.path, "").split("/")
    if damage.attempt or len(parts) < 2:
        return damage
    if parts[0] == "models":
        return dataclasses.replace(damage, model=parts[1])
    model = parts[3] if parts[2] == "embeddings" else ""
    unit = "rows" if parts[2] == "segments" else "frames"
    return dataclasses.replace(damage, game=parts[1], segment=parts[-1], model=model, unit=unit)
