"""Take damaged objects out of a store, so that the commands that made them make them again.

Nothing is thrown away: what there is of an object may be the only copy. Its record and every file
that can still be read are copied to

    damaged/<object id>/<attempt>.json      the record
    damaged/<object id>/<attempt>/<file>    the files

and only then is the record removed, which makes the object one that was never committed, and last
its files. A writer that makes the object again meanwhile writes into a folder of its own.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence

from wsa.store.backends.base import MAX_FILE_BYTES, Backend
from wsa.store.common import hashing, names
from wsa.store.common.errors import DamagedError
from wsa.store.format import records
from wsa.store.format.records import Commit
from wsa.store.maintenance.sweep import KEPT, owner
from wsa.store.maintenance.verify import Damage
from wsa.store.objects.snapshot import read_record

# A recorded command is shown to be typed again: only what cannot be another command is.
_PLAIN_COMMAND = re.compile(r"wsa (collect|import)( [A-Za-z0-9_./=,:-]+)+")


@dataclasses.dataclass(frozen=True)
class Repair:
    """What was done about one damaged object or record.

    Attributes:
        path: The object's path, or its record's.
        kept: Folder below `damaged/` where what is left of it lies now; "" where nothing was done.
        left: Files that could not be copied and were left where they are.
        next: What to run, or to do, next.
    """

    path: str
    kept: str
    left: tuple[str, ...]
    next: str


def repair(backend: Backend, damage: Iterable[Damage]) -> list[Repair]:
    """Take each damaged object out of the store.

    Args:
        backend: The store.
        damage: As `verify` reports it. What a place refused to read now may be whole: it is left.

    Raises:
        StorageError: The place refused; what was done until then is done.
    """
    by_path: dict[str, list[Damage]] = {}
    for one in damage:
        by_path.setdefault(one.path, []).append(one)
    return [_repair(backend, path, found) for path, found in by_path.items()]


def _repair(backend: Backend, path: str, damage: Sequence[Damage]) -> Repair:
    first = damage[0]
    if any(one.kind == "unavailable" for one in damage):
        return Repair(path, "", (), "see to the disk, which refused to read it, and verify again")
    if first.attempt:
        return _set_object_aside(backend, first)
    return _set_record_aside(backend, first)


def _set_object_aside(backend: Backend, damage: Damage) -> Repair:
    """Copy a damaged object away, then remove its record, then its files."""
    record = names.commit_path(hashing.object_id(damage.path))
    commit = read_record(backend, record)
    if commit is None or commit.attempt != damage.attempt:
        return Repair(damage.path, "", (), "nothing: it is another's by now")
    kept = f"{KEPT}/{commit.id}/{commit.attempt}"
    _keep(backend, f"{kept}.json", records.write_commit(commit))
    files = [f"{commit.folder}/{file.name}" for file in commit.files]
    left = [file for file in files if not _copy(backend, file, f"{kept}/{_name(file, commit)}")]
    backend.delete(record)
    for file in files:
        if file not in left:
            backend.delete(file)
    return Repair(damage.path, kept, tuple(left), _next(damage, commit.command))


def _set_record_aside(backend: Backend, damage: Damage) -> Repair:
    """Copy a damaged record away, and the files that it may have named; then remove the record.

    Which attempt it named is not known, so the files stay as well: a writer may be at work there.
    `wsa sweep` removes what no record names.
    """
    try:
        data = backend.get(damage.path, records.MAX_RECORD_BYTES)
    except FileNotFoundError:
        return Repair(damage.path, "", (), "nothing: it is gone")
    except DamagedError:
        return Repair(damage.path, "", (), f"remove {damage.path}: no record is so large")
    object_id = hashing.object_id(damage.path)
    left: list[str] = []
    if damage.game or damage.model:
        at = object_path(damage)
        object_id = hashing.object_id(at)
        for entry in list(backend.list(at)):
            if owner(entry.path) and not _copy(
                backend, entry.path, f"{KEPT}/{object_id}/{entry.path.removeprefix(f'{at}/')}"
            ):
                left.append(entry.path)
    kept = f"{KEPT}/{object_id}/{hashing.checksum(data)[:16]}"
    _keep(backend, f"{kept}.json", data)
    backend.delete(damage.path)
    return Repair(damage.path, kept, tuple(left), _next(damage, ""))


def object_path(damage: Damage) -> str:
    """Path of the object that a damaged record was the record of, as its files told."""
    if not damage.game:
        return names.model_path(damage.model)
    if damage.model:
        return names.embedding_path(damage.game, damage.model, damage.segment)
    if damage.unit == "frames":
        return names.frames_path(damage.game, damage.segment)
    return names.segment_path(damage.game, damage.segment)


def _name(file: str, commit: Commit) -> str:
    return file.removeprefix(f"{commit.folder}/")


def _copy(backend: Backend, file: str, to: str) -> bool:
    """Copy a file; False where there is one that cannot be read, or is larger than any of wsa's."""
    try:
        _keep(backend, to, backend.get(file, MAX_FILE_BYTES))
    except FileNotFoundError:
        return True  # Nothing is left of it.
    except DamagedError:
        return False
    return True


def _keep(backend: Backend, path: str, data: bytes) -> None:
    """Publish a copy; where an earlier repair kept other bytes under that name, beside it."""
    if backend.put_new(path, data):
        return
    try:
        kept = backend.get(path, len(data))
    except DamagedError:  # Another that is longer.
        kept = None
    if kept != data:  # An interrupted repair's copy is as good as one of this.
        backend.put_new(f"{path}.{hashing.checksum(data)[:16]}", data)


def _next(damage: Damage, command: str) -> str:
    """What makes or fetches the object again."""
    alias = names.key_alias(damage.model) if damage.model else ""
    if damage.game and alias:
        return f"wsa encode --models {damage.model} --game {damage.game}"
    if alias:
        return f"wsa encode --models {alias}"
    if damage.game:
        again = (
            command
            if _PLAIN_COMMAND.fullmatch(command)
            else "the 'wsa collect' or 'wsa import' that made it"
        )
        return f"{again}; or, from another store, wsa pull URL --game {damage.game}"
    return "the 'wsa collect' or 'wsa encode' that made it"
