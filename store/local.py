"""A store in a folder: a local disk or a POSIX share (NFS, Lustre, CephFS)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from wsa.store.errors import DamagedError
from wsa.store.publish import storage_errors, write_once


class LocalBackend:
    """Files below one folder. No path and no symbolic link leads out of it."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser().absolute()

    @property
    def url(self) -> str:
        """The folder's absolute path."""
        return str(self.root)

    def get(self, path: str) -> bytes:
        """The file's bytes; `FileNotFoundError` if there is none."""
        full = self._inside(path)
        with storage_errors(full):
            try:
                return full.read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                pass
        raise FileNotFoundError(full)

    def put_new(self, path: str, data: bytes) -> bool:
        """Publish a file unless one is there; whether this call did."""
        return write_once(self.root, self._inside(path), data)

    def list(self, prefix: str) -> Iterator[str]:
        """Paths of all files below the folder `prefix`, in no order."""
        folder = self._inside(prefix)
        with storage_errors(folder):
            for parent, _, files in os.walk(folder):
                base = Path(parent).relative_to(self.root)
                for name in files:
                    yield (base / name).as_posix()

    def delete(self, path: str) -> None:
        """Remove a file; nothing happens if there is none."""
        full = self._inside(path)
        with storage_errors(full):
            full.unlink(missing_ok=True)

    def stat(self, path: str) -> int | None:
        """The file's length in bytes, or None if there is none."""
        full = self._inside(path)
        with storage_errors(full):
            try:
                return full.stat().st_size
            except (FileNotFoundError, NotADirectoryError):
                return None

    def _inside(self, path: str) -> Path:
        full = self.root / path
        if not full.resolve().is_relative_to(self.root.resolve()):
            raise DamagedError(
                "bad-record",
                f"{path} leads out of the store {self.root}. Someone planted a path or a link "
                "there; remove it.",
            )
        return full
