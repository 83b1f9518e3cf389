"""Put a file in its place once: whole or not at all, never over another, and still there after a crash.

`write_once` writes a temporary file on the same file system, flushes it, links it to its final name
(the kernel refuses if that name exists) and flushes the folder. A reader therefore sees either no
file or the whole one, and of two writers exactly one wins. Nothing else in wsa publishes to a
shared folder. `replace` is for files that belong to one machine or one run, where the newest wins.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

from wsa.store.common.errors import StorageError

TEMPORARY = "tmp"

_one_at_a_time = threading.Lock()

_FULL = {errno.ENOSPC, errno.EDQUOT}


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn the system's refusal into a `StorageError` that names the path and the remedy."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        if error.errno in _FULL:
            raise StorageError(
                "no-space",
                f"No room left at {path.parent} ({error.strerror}). Nothing committed was lost: "
                "free some space and run the same command again.",
            ) from None
        raise StorageError(
            "unavailable",
            f"{path}: {error.strerror or error}. Check that the folder is mounted and that you "
            "may write there, then run the same command again.",
        ) from None


def write_once(root: Path, path: Path, data: bytes) -> bool:
    """Publish `data` at `path` unless something is there already.

    Args:
        root: The store's root; the temporary file lives in its `tmp/`.
        path: Final place, below `root`.
        data: The file's whole content.

    Returns:
        True if this call published it, False if another had.

    Raises:
        StorageError: No space, or the folder refused.
    """
    with storage_errors(path):
        temporary = root / TEMPORARY / uuid.uuid4().hex
        make_folder(temporary.parent)
        make_folder(path.parent)
        try:
            _write(temporary, data)
            try:
                os.link(temporary, path)
                published = True
            except FileExistsError:
                # Over NFS the reply to a link that was made can be lost, and its repetition then
                # finds the name taken: by this very file, as the number of its names tells.
                published = temporary.stat().st_nlink == 2
            # The loser flushes too: what it builds on the winner's file must not outlive it.
            flush_folder(path.parent)
            return published
        finally:
            temporary.unlink(missing_ok=True)


def replace(path: Path, data: bytes) -> None:
    """Write `data` to `path`, whole or not at all, over what was there.

    Raises:
        StorageError: No space, or the folder refused.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            _write(temporary, data)
            temporary.replace(path)
            flush_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def reserve(path: Path, size: int) -> None:
    """Make a file at least `size` bytes long, with room on the disk for all of them.

    For files that are mapped: writing to a hole of one kills the process once the disk is full.

    Raises:
        StorageError: No space, or the folder refused.
    """
    with storage_errors(path):
        make_folder(path.parent)
        path.touch()
        with path.open("r+b") as file:
            begin = file.seek(0, os.SEEK_END)
            if begin >= size:
                return
            try:
                os.posix_fallocate(file.fileno(), begin, size - begin)
            except (AttributeError, OSError) as error:
                if getattr(error, "errno", None) in _FULL:
                    file.truncate(begin)
                    raise
                file.truncate(size)  # The system reserves nothing.


def make_folder(folder: Path) -> None:
    """Make `folder` and its parents, each flushed into its own parent."""
    if folder.is_dir():
        return
    with _one_at_a_time:  # Or each of several threads would flush the same parents.
        _make_folder(folder)


def _make_folder(folder: Path) -> None:
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        flush_folder(folder.parent)


def flush_folder(folder: Path) -> None:
    """Make the folder's entries durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
