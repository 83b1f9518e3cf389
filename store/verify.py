"""Check every byte of a store and say what is damaged; change nothing.

Each commit record is parsed and its own checksum compared; each file it names is read, compared
with its length and blake3, and each array is decoded. What no record names is counted but is not
damage: it is the leftover of a writer that died, or of one that is at work.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from wsa.store import keys, layout, names
from wsa.store.backends import Backend
from wsa.store.errors import DamagedError, StorageError
from wsa.store.reader import (
    Snapshot,
    list_records,
    read_record,
    segment_array,
    segment_arrays,
)
from wsa.store.records import Commit, EmbeddingMeta, SegmentMeta


@dataclasses.dataclass(frozen=True)
class Damage:
    """One damaged object.

    Attributes:
        path: The object's path, or its record's where that is what is damaged.
        concerns: Game, segment, model and rows, as far as they can be told.
        why: What was found.
    """

    path: str
    concerns: str
    why: str


@dataclasses.dataclass(frozen=True)
class Report:
    """What a verification saw.

    Attributes:
        objects: Committed objects read.
        files: Files read.
        bytes: Bytes read.
        leftovers: Files that no record names.
        damage: What is damaged, sorted by path.
    """

    objects: int
    files: int
    bytes: int
    leftovers: int
    damage: tuple[Damage, ...]


def verify(
    backend: Backend, on_object: Callable[[int, int], None] = lambda done, total: None
) -> Report:
    """Read every committed byte of a store.

    Args:
        backend: The store.
        on_object: Called with (objects done, objects in all) after each.

    Raises:
        StorageError: The store cannot be listed. What cannot be read is damage.
    """
    # Before the records: what is committed meanwhile is then whole, and no leftover.
    present = set(backend.list(""))
    damage: list[Damage] = []
    commits: dict[str, Commit] = {}
    unreadable: dict[str, str] = {}
    for path in list_records(backend):
        try:
            commit = read_record(backend, path)
        except (DamagedError, StorageError) as error:
            unreadable[path] = str(error)
        else:
            if commit is not None:
                commits[commit.path] = commit
    snapshot = Snapshot(backend, commits)
    for done, path in enumerate(sorted(commits), 1):
        try:
            _verify_object(snapshot, commits[path])
        except (DamagedError, StorageError) as error:
            damage.append(Damage(path, concerns(commits[path]), str(error)))
        on_object(done, len(commits))
    named = {file.path for commit in commits.values() for file in commit.files}
    leftovers = {
        path
        for path in present - named - {names.STORE_FILE}
        if not (path.startswith("commits/") and path.endswith(".json"))
    }
    # A record's name is the hash of its object's path, so the files that lie there tell which.
    objects = {names.commit_path(keys.object_id(path)): path for path in map(_object, leftovers)}
    for path, why in unreadable.items():
        what = objects.get(path, "an object none of whose files are left")
        damage.append(Damage(path, f"the record of {what}", why))
    return Report(
        objects=len(commits),
        files=len(named) + len(commits),
        bytes=sum(f.bytes for c in commits.values() for f in c.files),
        leftovers=len(leftovers),
        damage=tuple(sorted(damage, key=lambda d: d.path)),
    )


def _object(file: str) -> str:
    """Path of the object that a file would belong to."""
    parts = file.split("/")
    if parts[0] == "games":
        return "/".join(parts[: 5 if parts[2:3] == ["embeddings"] else 4])
    return "/".join(parts[:2])


def concerns(commit: Commit) -> str:
    """What a reader loses with an object, in words."""
    meta = commit.meta
    if isinstance(meta, SegmentMeta):
        return f"game {meta.game}, segment {meta.segment}, rows 0 to {meta.rows - 1}"
    if isinstance(meta, EmbeddingMeta):
        return (
            f"game {meta.game}, segment {meta.segment}, model {meta.model}, "
            f"frames 0 to {meta.shape[0] - 1}"
        )
    return f"model {meta.model}, and nothing it encoded"


def _verify_object(snapshot: Snapshot, commit: Commit) -> None:
    files = snapshot.read_files(commit)
    meta = commit.meta
    if isinstance(meta, SegmentMeta):
        for name in segment_arrays(meta):
            shape, dtype = segment_array(meta, name)
            layout.decode_array(files, name, shape, dtype, commit.path)
    elif isinstance(meta, EmbeddingMeta):
        layout.decode_array(files, None, meta.shape, meta.dtype, commit.path)


def remedy(damage: Damage) -> str:
    """What to type to get the object back."""
    if damage.path.startswith("commits/"):
        return f"remove {damage.path}, then run 'wsa collect' or 'wsa encode' again"
    record = names.commit_path(keys.object_id(damage.path))
    return f"remove {record} and {damage.path}, then run 'wsa collect' or 'wsa encode' again"
