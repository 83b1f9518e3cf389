"""Where a store's bytes live, as five verbs; everything above speaks only these."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from wsa.store.errors import UsageError


class Backend(Protocol):
    """A place for immutable files.

    Paths are relative, with forward slashes, and come from `wsa.store.names`. A file appears
    whole or not at all, and is never changed. Every verb raises `StorageError` when the place
    refuses; `get` raises `FileNotFoundError` when there is no such file.
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


def open_backend(url: str) -> Backend:
    """The backend for a folder.

    Raises:
        UsageError: The URL's scheme is not served.
    """
    from wsa.store.local import LocalBackend

    scheme, separator, rest = url.partition("://")
    if not separator:
        return LocalBackend(url)
    if scheme == "file":
        return LocalBackend(rest)
    raise UsageError(
        "bad-option",
        f"--store {url}: this version keeps stores in folders only, not on {scheme}://. "
        "Give a folder, for example --store /lab/wsa.",
    )
