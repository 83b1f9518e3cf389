"""Atomic, durable writes of whole files.

`write_once` writes a temporary file on the same file system, flushes it, links it to its final name
(the kernel refuses if that name exists) and flushes the folder. So a reader sees either no file or
the whole file, and of two writers exactly one wins. Nothing else in wsa publishes to a shared
folder. `replace` is for files that belong to one machine or one run, where the newest wins.

New files and folders in a store get the permissions and the group of the store's root, whatever the
umask of the process: if a group may write to the root, it may write to every folder below.
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

from wsa.store.common.cache_folder import cache_folder
from wsa.store.common.errors import StorageError, UsageError

TEMPORARY = "tmp"

_folder_lock = threading.Lock()

_FULL = {errno.ENOSPC, errno.EDQUOT}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn an `OSError` into a `StorageError` that names the path and the remedy."""
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
        blocked = isinstance(error, FileExistsError | NotADirectoryError)
        if blocked and (file := file_in_the_way(path)):
            raise StorageError(
                "unavailable",
                f"{path}: {file} is a file, but a folder is needed there. Give another path, or "
                "move the file.",
            ) from None
        raise StorageError(
            "unavailable",
            f"{path}: {error.strerror or error}. Check that the folder is mounted, then run the same "
            "command again.",
        ) from None


def file_in_the_way(folder: Path) -> Path | None:
    """Return the path, or the nearest parent, that is a file and prevents a folder; None if none."""
    with contextlib.suppress(OSError):  # The first access reports a missing permission.
        return next((place for place in (folder, *folder.parents) if place.is_file()), None)
    return None


def no_permission(path: Path, error: OSError) -> str:
    """Return a message about a denied access: owner, permissions, and what to do."""
    place = next(p for p in (path, *path.parents) if os.path.lexists(p) or p == p.parent)
    try:
        status = place.stat()
        owner = f"{user_name(status.st_uid)}:{group_name(status.st_gid)}"
        owner = f"{place} belongs to {owner}, mode {stat.filemode(status.st_mode)}"
    except OSError:
        owner = f"{place} cannot be looked at"
    if _in_cache(path):
        remedy = "Each user needs a cache of their own: set WSA_CACHE to another folder."
    else:
        remedy = "Ask its owner for access: docs/howto/share.md says how a group shares a store."
    return f"{path}: {error.strerror or error} for {user_name(os.geteuid())}. {owner}. {remedy}"


def _in_cache(path: Path) -> bool:
    try:
        return path.is_relative_to(cache_folder())
    except UsageError:  # There is none.
        return False


def require_writable(folder: Path) -> None:
    """Make a folder if it is missing, and check before any work that files can be added to it.

    Raises:
        StorageError: They cannot.
    """
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))


def user_name(number: int) -> str:
    """Return a user's name, or the number if the system knows no name."""
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def group_name(number: int) -> str:
    """Return a group's name, or the number if the system knows no name."""
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


def write_once(root: Path, path: Path, data: bytes) -> bool:
    """Publish `data` at `path` unless `path` exists.

    Args:
        root: The store's root; the temporary file is in its `tmp/`.
        path: Final path, below `root`.

    Returns:
        True if this call published the file, False if it existed.

    Raises:
        StorageError: If there is no space, or the file system refuses.
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
                # Over NFS, the reply to a successful link can be lost. The retry then finds the
                # name taken, by this same file: it has two links.
                published = temporary.stat().st_nlink == 2
            # The loser flushes too, or what it writes next could survive a crash that loses the
            # winner's file.
            flush_folder(path.parent)
            return published
        finally:
            temporary.unlink(missing_ok=True)


def replace(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically, replacing an existing file.

    Raises:
        StorageError: If there is no space, or the file system refuses.
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
    """Make a file at least `size` bytes long and reserve disk space for all of them.

    For memory-mapped files: on a full disk, writing to a hole in one kills the process.

    Raises:
        StorageError: If there is no space, or the file system refuses.
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
                file.truncate(size)  # The system cannot reserve space.


def make_folder(folder: Path, root: Path | None = None) -> None:
    """Make `folder` and its missing parents durably, flushing the parent of each.

    Args:
        root: Root of the store that the folder is in; new folders get its permissions and group.

    Raises:
        FileNotFoundError: If there is no such root. It may have been moved or unmounted.
    """
    if folder.is_dir():
        return
    with _folder_lock:  # Otherwise several threads would flush the same parents.
        _make_folder(folder, root)


def _make_folder(folder: Path, root: Path | None) -> None:
    if not folder.is_dir():
        if folder == root:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(root))
        _make_folder(folder.parent, root)
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            if root is not None and root in folder.parents:
                _share_folder(folder, root)
        flush_folder(folder.parent)


def _share_folder(folder: Path, root: Path) -> None:
    """Give a new folder the permissions and the group of the store's root."""
    made, wanted = folder.stat(), root.stat()
    if made.st_gid != wanted.st_gid:
        with contextlib.suppress(PermissionError):  # This user may not be in that group.
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
    """Write and flush a new file; in a store, with the read and write permissions of its root."""
    with path.open("xb") as file:
        if root is not None:
            mode = root.stat().st_mode & 0o666
            if os.fstat(file.fileno()).st_mode & 0o777 != mode:
                os.fchmod(file.fileno(), mode)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
