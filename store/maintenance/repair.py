"""Take damaged objects out of a store, so that the same commands can make them again.

Nothing is discarded, since the remains of an object may be the only copy. Its record and every file
that can still be read are copied to

    damaged/<object id>/<attempt>.json      the record
    damaged/<object id>/<attempt>/<file>    the files

Only then is the record removed, so that the object counts as not committed, and then the files. A
writer that makes the object again meanwhile is not affected, since it writes into its own folder.
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

# Users may type a suggested command. So a recorded one is suggested only if it is plainly wsa's.
_PLAIN_COMMAND = re.compile(r"wsa (collect|import)( [A-Za-z0-9_./=,:-]+)+")


@dataclasses.dataclass(frozen=True)
class Repair:
    """Result of repairing one damaged object or record.

    Attributes:
        path: The object's path, or its record's.
        kept: Folder below `damaged/` that has the remains; "" if nothing was done.
        left: Files that could not be copied and stay in place.
        next: What to run or to do next.
    """

    path: str
    kept: str
    left: tuple[str, ...]
    next: str


def repair(backend: Backend, damage: Iterable[Damage]) -> list[Repair]:
    """Take each damaged object out of the store.

    Args:
        damage: Damage, as `verify` reports it. Objects that the storage refused to read stay, since
            they may be intact.

    Raises:
        StorageError: If the storage refuses; repairs made before that remain.
    """
    by_path: dict[str, list[Damage]] = {}
    for one in damage:
        by_path.setdefault(one.path, []).append(one)
    return [_repair(backend, path, found) for path, found in by_path.items()]


def _repair(backend: Backend, path: str, damage: Sequence[Damage]) -> Repair:
    first = damage[0]
    if any(one.refused for one in damage):
        return Repair(
            path,
            "",
            (),
            "nothing: it may be intact. Fix what the storage reports, and verify again",
        )
    if first.attempt:
        return _set_object_aside(backend, first)
    return _set_record_aside(backend, first)


def _set_object_aside(backend: Backend, damage: Damage) -> Repair:
    """Copy a damaged object to `damaged/`, then remove its record, then its files."""
    record = records.record_path(damage.path)
    commit = read_record(backend, record)
    if commit is None or commit.attempt != damage.attempt:
        return Repair(damage.path, "", (), "nothing: it was replaced since the verification")
    kept = f"{KEPT}/{commit.id}/{commit.attempt}"
    _keep(backend, f"{kept}.json", records.write_commit(commit))
    files = [f"{commit.folder}/{file.name}" for file in commit.files]
    left = [file for file in files if not _copy(backend, file, f"{kept}/{_name(file, commit)}")]
    # Copying takes time, in which another repair and a writer may have replaced the object.
    if read_record(backend, record) != commit:
        return Repair(damage.path, "", (), "nothing: it was replaced since the verification")
    backend.delete(record)
    for file in files:
        if file not in left:
            backend.delete(file)
    return Repair(damage.path, kept, tuple(left), _next_step(damage, commit.command))


def _set_record_aside(backend: Backend, damage: Damage) -> Repair:
    """Copy a damaged record and the files that it may have named to `damaged/`; remove the record.

    A lost record is kept as an empty file: it says that the object was taken out.
    It is unknown which attempt the record named, and a writer may be active there. So the files
    also stay in place, and `wsa sweep` removes them later.
    """
    lost = damage.kind == "lost-file"
    try:
        data = backend.get(damage.path, records.MAX_RECORD_BYTES)
        if lost:
            return Repair(damage.path, "", (), "nothing: it is there again")
    except FileNotFoundError:
        if not lost:
            return Repair(damage.path, "", (), "nothing: it is gone")
        data = b""
    except DamagedError:
        return Repair(damage.path, "", (), f"remove {damage.path}: no record is so large")
    if not lost and _is_intact(data, damage.path):
        return Repair(damage.path, "", (), "nothing: it was replaced since the verification")
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
    if not lost:  # Otherwise another writer may have just committed it.
        backend.delete(damage.path)
    return Repair(damage.path, kept, tuple(left), _next_step(damage, ""))


def _is_intact(data: bytes, path: str) -> bool:
    """Whether a record's bytes are complete; its object was made again after the verification."""
    try:
        records.read_commit(data, path)
    except DamagedError:
        return False
    return True


def object_path(damage: Damage) -> str:
    """Return the path of a damaged record's object, which `verify` derived from its files."""
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
    """Copy a file; return False if it exists but cannot be read, or is too large for wsa's."""
    try:
        _keep(backend, to, backend.get(file, MAX_FILE_BYTES))
    except FileNotFoundError:
        return True  # There is nothing to copy.
    except DamagedError:
        return False
    return True


def _keep(backend: Backend, path: str, data: bytes) -> None:
    """Publish a copy, under another name if an earlier repair kept other bytes under this one."""
    if backend.put_new(path, data):
        return
    try:
        kept = backend.get(path, len(data))
    except DamagedError:  # The other copy is longer.
        kept = None
    if kept != data:  # The copy of an interrupted repair may be the same.
        backend.put_new(f"{path}.{hashing.checksum(data)[:16]}", data)


def _next_step(damage: Damage, command: str) -> str:
    """Return the command that makes or fetches the object again."""
    alias = names.key_alias(damage.model) if damage.model else ""
    if damage.game and alias:
        return f"wsa encode --models {damage.model} --game {damage.game}"
    if alias:
        return f"wsa encode --models {alias}"
    if damage.game:
        maker = (
            command
            if _PLAIN_COMMAND.fullmatch(command)
            else "the 'wsa collect' or 'wsa import' that made it"
        )
        return f"{maker}; or, from another store, wsa pull URL --game {damage.game}"
    return "the 'wsa collect' or 'wsa encode' that made it"
