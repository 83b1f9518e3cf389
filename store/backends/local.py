"""A store in a folder: a local disk or a POSIX share (NFS, Lustre, CephFS)."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from wsa.store.backends.base import MAX_FILE_BYTES, Entry, too_large
from wsa.store.common.atomic_files import TEMPORARY, storage_errors, write_once
from wsa.store.common.errors import DamagedError, MissingError


class LocalBackend:
    """Files below one folder. No path and no symbolic link leads out of it.

    Raises:
        MissingError: What is there is no folder.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(os.path.expanduser(root)).absolute()  # noqa: PTH111  Path's raises.
        file = _file_in_the_way(self.root)
        if file is not None:
            raise MissingError(
                "no-store",
                f"{file} is a file, and a store is a folder. Give another path with --store.",
            )

    @property
    def url(self) -> str:
        """The folder's absolute path."""
        return str(self.root)

    @property
    def at_once(self) -> int:
        """A file system's own waiting is short beside what threads cost."""
        return 1

    def get(self, path: str, most: int = MAX_FILE_BYTES) -> bytes:
        """The file's bytes, at most `most`; `FileNotFoundError` if there is none."""
        full = self._inside(path)
        with storage_errors(full):
            length = _length(full)
            if length is not None and length > most:
                raise too_large(str(full), length, most)
            if length is not None:
                try:
                    return full.read_bytes()
                except FileNotFoundError:
                    pass  # It was removed just now.
        raise FileNotFoundError(full)

    def put_new(self, path: str, data: bytes) -> bool:
        """Publish a file unless one is there; whether this call did."""
        self._inside(TEMPORARY)
        return write_once(self.root, self._inside(path), data)

    def list(self, prefix: str) -> Iterator[Entry]:
        """All files below the folder `prefix`, in no order."""
        folder = self._inside(prefix)
        with storage_errors(folder):
            for parent, _, files in os.walk(folder, onerror=_refuse):
                base = os.path.relpath(parent, self.root)
                start = "" if base == "." else base.replace(os.sep, "/") + "/"
                for name in files:
                    with contextlib.suppress(FileNotFoundError):  # Removed just now.
                        found = os.lstat(f"{parent}{os.sep}{name}")
                        yield Entry(start + name, found.st_size, found.st_mtime)

    def delete(self, path: str) -> None:
        """Remove a file; nothing happens if there is none."""
        full = self._inside(path)
        with storage_errors(full), contextlib.suppress(FileNotFoundError, IsADirectoryError):
            full.unlink()

    def stat(self, path: str) -> int | None:
        """The file's length in bytes, or None if there is none."""
        full = self._inside(path)
        with storage_errors(full):
            return _length(full)

    def _inside(self, path: str) -> Path:
        full = self.root / path
        try:
            real, root = os.path.realpath(full, strict=False), os.path.realpath(self.root)
            inside = os.path.commonpath([real, root]) == root
        except (ValueError, OSError):  # A NUL byte, or links that run in a circle.
            inside = False
        if not inside:
            raise DamagedError(
                "bad-record",
                f"{path!r} leads out of the store {self.root}. Someone planted a path or a link "
                "there; remove it.",
            )
        return full


def _file_in_the_way(folder: Path) -> Path | None:
    with contextlib.suppress(OSError):  # Without permission, the first read says so.
        return next((place for place in (folder, *folder.parents) if place.is_file()), None)
    return None


def _length(path: Path) -> int | None:
    """Bytes of a plain file; None for anything else, which reading might hang on."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def _refuse(error: OSError) -> None:
    """Stop a listing that would be incomplete; a folder that is not there is merely empty."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error
