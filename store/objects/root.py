"""Open or create a store: the folder that contains `wsa.json`."""

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
from wsa.store.common.atomic_files import TEMPORARY, make_folder, no_permission, storage_errors
from wsa.store.common.errors import (
    ConflictError,
    DamagedError,
    MissingError,
    StorageError,
    UsageError,
)
from wsa.store.format import records

if TYPE_CHECKING:
    from wsa.store.objects.snapshot import Snapshot

_log = logging.getLogger(__name__)

FORMAT = 1


class Root(msgspec.Struct, frozen=True):
    """Content of `wsa.json`."""

    format: int


def open_store(url: str, *, create: bool = False) -> Backend:
    """Open the store at `url`.

    Args:
        url: A folder, or a folder in a bucket.
        create: Whether to create a store if there is none; the folder must be new or empty.

    Raises:
        MissingError: If there is no store, or the folder holds something else.
        ConflictError: If the store has another format.
        DamagedError: If `wsa.json` cannot be read.
        StorageError: If the disk or the bucket refuses.
        UsageError: If the URL is invalid, or its server cannot hold a store.
    """
    backend = open_backend(url)
    try:
        data = _read(backend)
    except FileNotFoundError:
        data = _create_root(backend, create)
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


def _create_root(backend: Backend, create: bool) -> bytes:
    """Write `wsa.json`, which was missing a moment ago, and return its content."""
    free = is_free(backend)
    try:
        # Another process may have created the store meanwhile; it writes this file first.
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
            f"{backend.url} cannot hold a store: its server lets a second writer replace a file, "
            "although asked not to (If-None-Match: *). Use a server that keeps this promise, or a "
            "folder."
        )
    if "://" not in backend.url:
        root = Path(backend.url)
        with storage_errors(root):
            make_folder(root)  # Nothing else makes a store's root, which may only be unmounted.
    backend.put_new(names.STORE_FILE, hashing.canonical(Root(FORMAT)))
    return _read(backend)


def require_present(backend: Backend) -> None:
    """Check that an opened store is still there.

    Raises:
        StorageError: If it is gone, such as a folder that was moved or a share that was unmounted.
    """
    if backend.stat(names.STORE_FILE) is None:
        raise StorageError(
            "unavailable",
            f"The store {backend.url} is gone: there is no {names.STORE_FILE}. Mount it, or move it "
            "back.",
        )


def is_free(backend: Backend) -> bool:
    """Whether a store can be created here: there are no files, except leftovers of a killed writer
    in `tmp/`.

    Raises:
        StorageError: If the folder or bucket cannot be listed.
    """
    return all(entry.path.startswith(f"{TEMPORARY}/") for entry in backend.list(""))


def gives_names_once(backend: Backend) -> bool:
    """Test, with a temporary file, whether a second `put_new` of the same name is refused.

    Raises:
        StorageError: If the disk or the bucket refuses.
    """
    path = f"{TEMPORARY}/{secrets.token_hex(8)}"
    won = [backend.put_new(path, data) for data in (b"first", b"second")]
    backend.delete(path)
    return won == [True, False]


def _read(backend: Backend) -> bytes:
    try:
        return backend.get(names.STORE_FILE, records.MAX_RECORD_BYTES)
    except DamagedError as error:
        if error.kind == "bad-bytes":  # Too large. The other kind is a link out of the store.
            raise _damaged(backend) from None
        raise


def _damaged(backend: Backend) -> DamagedError:
    content = hashing.canonical(Root(FORMAT)).decode()
    return DamagedError(
        "bad-record",
        f"{backend.url}/{names.STORE_FILE} is damaged. If {backend.url} is a store of this "
        f"wsa, that file's whole content is {content} and nothing else is lost: write that.",
    )


def require_writable(backend: Backend) -> None:
    """Check that this user can add to the store: write a test file, and check existing folders.

    Raises:
        StorageError: If this user cannot add to the store.
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
    """Open a store, log its URL, and take a snapshot of it.

    Args:
        create: Whether to create a store if there is none.
        or_empty: Whether to return an empty snapshot, and create nothing, if there is no store.

    Raises:
        MissingError: If there is no store.
    """
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
