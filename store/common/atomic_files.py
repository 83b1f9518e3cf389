"""Put a file in its place once: whole or not at all, never over another, and still there after a crash.

`write_once` writes a temporary file on the same file system, flushes it, links it to its final name
(the kernel refuses if that name exists) and flushes the folder. A reader therefore sees either no
file or the whole one, and of two writers exactly one wins. Nothing else in wsa publishes to a
shared folder. `replace` is for files that belong to one machine or one run, where the newest wins.

What is made in a store has the permissions and the group of the store's root, whatever the umask
of the process that makes it: a folder that a group may write to is so all the way down.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import pwd
import stat
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

from wsa.store.common.errors import StorageError

TEMPORARY = "tmp"

_one_at_a_time = threading.Lock()

_FULL = {errno.ENOSPC, errno.EDQUOT}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


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
        if error.errno in _FORBIDDEN:
            raise StorageError("no-permission", no_permission(path, error)) from None
        raise StorageError(
            "unavailable",
            f"{path}: {error.strerror or error}. Check that the folder is mounted, then run the same "
            "command again.",
        ) from None


def no_permission(path: Path, error: OSError) -> str:
    """Who may do what at a place that refused, and what to do about it."""
    place = next(p for p in (path, *path.parents) if os.path.lexists(p) or p == p.parent)
    try:
        found = place.stat()
        whose = f"{user_name(found.st_uid)}:{group_name(found.st_gid)}"
        whose = f"{place} belongs to {whose}, mode {stat.filemode(found.st_mode)}"
    except OSError:
        whose = f"{place} cannot be looked at"
    return (
        f"{path}: {error.strerror or error} for {user_name(os.geteuid())}. {whose}. Ask its owner for access: "
        "docs/howto/share.md says how a group shares a store."
    )


def user_name(number: int) -> str:
    """A user's name, or the number of one that the system has no name for."""
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def group_name(number: int) -> str:
    """A group's name, or the number of one that the system has no name for."""
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


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
        make_folder(temporary.parent, root)
        make_folder(path.parent, root)
        try:
            _write(temporary, data, root)
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


def make_folder(folder: Path, root: Path | None = None) -> None:
    """Make `folder` and its parents, each flushed into its own parent.

    Args:
        folder: The folder.
        root: The store that it is part of, whose permissions and group it gets.
    """
    if folder.is_dir():
        return
    with _one_at_a_time:  # Or each of several threads would flush the same parents.
        _make_folder(folder, root)


def _make_folder(folder: Path, root: Path | None) -> None:
    if not folder.is_dir():
        _make_folder(folder.parent, root)
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            if root is not None and folder != root and root in folder.parents:
                _share_folder(folder, root)
        flush_folder(folder.parent)


def _share_folder(folder: Path, root: Path) -> None:
    """Give a new folder the permissions and the group of the store's root."""
    made, wanted = folder.stat(), root.stat()
    if made.st_gid != wanted.st_gid:
        with contextlib.suppress(PermissionError):  # Who is not of that group cannot.
            os.chown(folder, -1, wanted.st_gid)
    mode = stat.S_IMODE(wanted.st_mode) & 0o2777
    if stat.S_IMODE(made.st_mode) & 0o2777 != mode:
        folder.chmod(mode)


def flush_folder(folder: Path) -> None:
    """Make the folder's entries durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write(path: Path, data: bytes, root: Path | None = None) -> None:
    """Write a new file; one of a store's is as readable as its root, and no more."""
    with path.open("xb") as file:
        if root is not None:
            mode = root.stat().st_mode & 0o666
            if os.fstat(file.fileno()).st_mode & 0o777 != mode:
                os.fchmod(file.fileno(), mode)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
