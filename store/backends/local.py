"""Store in a folder: a local disk or a POSIX share (NFS, Lustre, CephFS)."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from wsa.store.backends.base import MAX_FILE_BYTES, Entry, too_large
from wsa.store.common.atomic_files import (
    TEMPORARY,
    file_in_the_way,
    storage_errors,
    write_once,
)
from wsa.store.common.errors import DamagedError, MissingError

_NO_FILE = FileNotFoundError, NotADirectoryError, IsADirectoryError


class LocalBackend:
    """Files below one folder. Paths and symbolic links that lead out of it are refused.

    Raises:
        MissingError: If the path or one of its parents is a file.
    """

    at_once = 1  # Threads cost more than a file system's latency.

    def __init__(self, root: str | Path) -> None:
        self.root = Path(os.path.expanduser(root)).absolute()  # noqa: PTH111  Path.expanduser raises.
        file = file_in_the_way(self.root)
        if file is not None:
            raise MissingError(
                "no-store",
                f"{file} is a file, but a store is a folder. Give another path with --store.",
            )

    @property
    def url(self) -> str:
        """The folder's absolute path."""
        return str(self.root)

    def get(self, path: str, most: int = MAX_FILE_BYTES) -> bytes:
        """Read a file of at most `most` bytes; `FileNotFoundError` if there is none."""
        full = self._inside(path)
        with storage_errors(full):
            length = _length(full)
            if length is not None and length > most:
                raise too_large(str(full), length, most)
            with contextlib.suppress(FileNotFoundError):  # Removed since `_length` saw it.
                if length is not None:
                    return full.read_bytes()
        raise FileNotFoundError(full)

    def put_new(self, path: str, data: bytes) -> bool:
        """Publish a file unless one exists, and return whether this call published it."""
        self._inside(TEMPORARY)
        return write_once(self.root, self._inside(path), data)

    def list(self, prefix: str) -> Iterator[Entry]:
        """List all files below the folder `prefix`, in no order."""
        folder = self._inside(prefix)
        with storage_errors(folder):
            for parent, _, files in os.walk(folder, onerror=_raise_unless_missing):
                base = os.path.relpath(parent, self.root)
                start = "" if base == "." else base.replace(os.sep, "/") + "/"
                for name in files:
                    with contextlib.suppress(FileNotFoundError):  # Removed meanwhile.
                        status = os.lstat(f"{parent}{os.sep}{name}")
                        yield Entry(start + name, status.st_size, status.st_mtime)

    def delete(self, path: str) -> None:
        """Remove a file, if there is one."""
        full = self._inside(path)
        with storage_errors(full), contextlib.suppress(*_NO_FILE):
            full.unlink()

    def stat(self, path: str) -> int | None:
        """Return a file's length in bytes, or None if there is no such file."""
        full = self._inside(path)
        with storage_errors(full):
            return _length(full)

    def _inside(self, path: str) -> Path:
        full = self.root / path
        try:
            real, root = os.path.realpath(full, strict=False), os.path.realpath(self.root)
            inside = os.path.commonpath([real, root]) == root
        except (ValueError, OSError):  # A NUL byte, or a loop of links.
            inside = False
        if not inside:
            raise DamagedError(
                "bad-record",
                f"{path!r} leads out of the store {self.root}. Someone planted a path or a link "
                "there; remove it.",
            )
        return full


def _length(path: Path) -> int | None:
    """Return a plain file's length in bytes; None for anything else, which could block a read."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _raise_unless_missing(error: OSError) -> None:
    """Raise instead of listing incompletely; a missing folder counts as empty."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error
