"""Open a store, or start one: the folder with `wsa.json` in it."""

from __future__ import annotations

import errno
import logging
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from wsa.store.backends.base import Backend
from wsa.store.backends.open import open_backend
from wsa.store.common import hashing, names
from wsa.store.common.atomic_files import TEMPORARY, no_permission
from wsa.store.common.errors import (
    ConflictError,
    DamagedError,
    MissingError,
    StorageError,
    UsageError,
)
from wsa.store.format import records

if TYPE_CHECKING:
    from wsa.store.backends.base import Backend
    from wsa.store.objects.snapshot import Snapshot

_log = logging.getLogger(__name__)

FORMAT = 1


class Root(msgspec.Struct, frozen=True):
    """Content of `wsa.json`."""

    format: int


def open_store(url: str, *, create: bool = False) -> Backend:
    """Open the store at `url`.

    Args:
        url: A folder, or a folder of a bucket.
        create: Start a store if there is none; the folder must be new or empty.

    Raises:
        MissingError: There is no store, or the folder holds something else.
        ConflictError: The store is of another format.
        DamagedError: `wsa.json` cannot be read.
        StorageError: The place refused.
        UsageError: The URL names no place, or one that cannot hold a store.
    """
    backend = open_backend(url)
    try:
        data = _read(backend)
    except FileNotFoundError:
        data = _start(backend, create)
    try:
        root = records.read_json(data, Root, names.STORE_FILE)
    except DamagedError:
        raise _damaged(backend) from None
    if root.format != FORMAT:
        raise ConflictError(
            "other-format",
            f"{backend.url} is a store of format {root.format}; this wsa reads format {FORMAT}. "
            "Use the wsa that wrote it, or name another store with --store.",
        )
    return backend


def _start(backend: Backend, create: bool) -> bytes:
    """Write `wsa.json` where there was none a moment ago; returns its content."""
    free = is_free(backend)
    try:
        # A process that is starting the store puts this file before all others.
        return _read(backend)
    except FileNotFoundError:
        pass
    if not free:
        raise MissingError(
            "no-store",
            f"{backend.url} is not a wsa store: it holds files but no {names.STORE_FILE}. "
            "Give another path with --store, or an empty folder to start a store there.",
        )
    if not create:
        raise MissingError(
            "no-store",
            f"There is no store at {backend.url} yet. Start one with 'wsa collect --game "
            "Seaquest', or name another with --store or WSA_STORE.",
        )
    if "://" in backend.url and not gives_names_once(backend):
        raise UsageError(
            "bad-option",
            f"{backend.url} cannot hold a store: its server lets a second writer replace a file, "
            "though asked not to (If-None-Match: *). Use a server that keeps this promise, or a "
            "folder.",
        )
    backend.put_new(names.STORE_FILE, hashing.canonical(Root(FORMAT)))
    return _read(backend)


def is_free(backend: Backend) -> bool:
    """Whether a store may be started at a place: it holds nothing, but perhaps in `tmp/`, where a
    writer's files lie that was killed over its first.

    Raises:
        StorageError: The place cannot be listed.
    """
    return all(entry.path.startswith(f"{TEMPORARY}/") for entry in backend.list(""))


def gives_names_once(backend: Backend) -> bool:
    """Whether the place refuses a second file of a name, tried out with a file that is then removed.

    Raises:
        StorageError: The place refused.
    """
    path = f"{TEMPORARY}/{secrets.token_hex(8)}"
    won = [backend.put_new(path, data) for data in (b"first", b"second")]
    backend.delete(path)
    return won == [True, False]


def _read(backend: Backend) -> bytes:
    try:
        return backend.get(names.STORE_FILE, records.MAX_RECORD_BYTES)
    except DamagedError as error:
        if error.kind == "bad-bytes":  # Too large; not a link that leads out of the store.
            raise _damaged(backend) from None
        raise


def _damaged(backend: Backend) -> DamagedError:
    whole = hashing.canonical(Root(FORMAT)).decode()
    return DamagedError(
        "bad-record",
        f"{backend.url}/{names.STORE_FILE} is damaged. If {backend.url} is a store of this "
        f"wsa, that file's whole content is {whole} and nothing else is lost: write that.",
    )


def require_writable(backend: Backend) -> None:
    """Try a file at the place, and look at folders that others made, before any work is done.

    Raises:
        StorageError: This user cannot add to the store.
    """
    path = f"{TEMPORARY}/{secrets.token_hex(8)}"
    backend.put_new(path, b"")
    backend.delete(path)
    if "://" in backend.url:
        return
    root = Path(backend.url)
    for folder in (root, *root.glob("*/"), *root.glob("games/*/"), *root.glob("games/*/*/")):
        if not os.access(folder, os.W_OK | os.X_OK):
            denied = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            raise StorageError("no-permission", no_permission(folder, denied))


def open_snapshot(
    store: str, *, create: bool = False, or_empty: bool = False
) -> tuple[Backend, Snapshot]:
    """A store and a snapshot of it; says which store it is.

    Args:
        store: URL of the store.
        create: Start a store if there is none.
        or_empty: Without a store, behave as if it were empty, and make nothing.

    Raises:
        MissingError: There is no store.
    """
    from wsa.store.backends.open import open_backend
    from wsa.store.objects.snapshot import Snapshot, take_snapshot

    try:
        backend = open_store(store, create=create)
    except MissingError:
        backend = open_backend(store)
        if not or_empty or not is_free(backend):
            raise
        _log.info("store %s, not there yet", backend.url)
        return backend, Snapshot(backend, {})
    _log.info("store %s", backend.url)
    return backend, take_snapshot(backend)
