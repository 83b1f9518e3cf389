"""Where a store's bytes live, as five verbs; everything above speaks only these."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from wsa.store.errors import DamagedError, UsageError
from wsa.store.records import MAX_RECORD_BYTES


class Backend(Protocol):
    """A place for immutable files.

    Paths are relative, with forward slashes, and come from `wsa.store.names`. A file appears
    whole or not at all, and is never changed. Every verb raises `StorageError` when the place
    refuses and `DamagedError` when the path leads out of it; `get` raises `FileNotFoundError`
    when there is no such file. What is not a plain file (a folder, a pipe) counts as none.
    """

    @property
    def url(self) -> str:
        """The place, as a user would type it."""
        ...

    def get(self, path: str) -> bytes:
        """The file's bytes."""
        ...

    def put_new(self, path: str, data: bytes) -> bool:
        """Publish a file unless one is there; whether this call did."""
        ...

    def list(self, prefix: str) -> Iterator[str]:
        """Paths of all files below the folder `prefix`, in no order."""
        ...

    def delete(self, path: str) -> None:
        """Remove a file; nothing happens if there is none."""
        ...

    def stat(self, path: str) -> int | None:
        """The file's length in bytes, or None if there is none."""
        ...


def get_small(backend: Backend, path: str) -> bytes:
    """A JSON file's bytes.

    Raises:
        FileNotFoundError: There is no such file.
        DamagedError: It is larger than any that wsa writes; it is not read.
    """
    length = backend.stat(path) or 0
    if length > MAX_RECORD_BYTES:
        raise DamagedError(
            "bad-record", f"{backend.url}/{path} is refused: it has {length} bytes. Remove it."
        )
    return backend.get(path)


def open_backend(url: str) -> Backend:
    """The backend for a folder, given as a path or as `file:///path`.

    Raises:
        UsageError: The URL's scheme is not served, or it names no folder.
    """
    from wsa.store.local import LocalBackend

    scheme, separator, rest = url.partition("://")
    if url and not separator:
        return LocalBackend(url)
    if scheme == "file" and rest.startswith("/"):
        return LocalBackend(rest)
    if not url or scheme == "file":
        raise UsageError(
            "bad-option",
            f"--store {url!r} names no folder. Write it like /lab/wsa or file:///lab/wsa.",
        )
    raise UsageError(
        "bad-option",
        f"--store {url}: this version keeps stores in folders only, not on {scheme}://. "
        "Give a folder, for example --store /lab/wsa.",
    )
