"""Interface of a store's backend: five methods, and everything above uses only these."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from wsa.store.common.errors import DamagedError

# wsa writes no larger file.
MAX_FILE_BYTES = 8 << 30


class Entry(NamedTuple):
    """A file's entry in a listing.

    Attributes:
        path: Path relative to the store.
        bytes: Length in bytes.
        modified: Time of publication, in seconds since 1970 by the clock of the backend.
    """

    path: str
    bytes: int
    modified: float


class Backend(Protocol):
    """Storage for immutable files.

    Paths are relative, with forward slashes, and come from `wsa.store.common.names`. A file appears
    whole or not at all, and never changes. Every method raises `StorageError` if the storage
    refuses, and `DamagedError` if the path leads out of the store. `get` raises `FileNotFoundError`
    if there is no such file, and `DamagedError`, before reading, if the file is larger than
    expected. Anything but a plain file (a folder, a pipe) counts as missing.
    """

    @property
    def url(self) -> str:
        """The store's path or URL, as a user would type it."""
        ...

    @property
    def at_once(self) -> int:
        """Useful number of concurrent small reads: 1 if a read does not have to wait."""
        ...

    def get(self, path: str, most: int = MAX_FILE_BYTES) -> bytes:
        """Read a file of at most `most` bytes."""
        ...

    def put_new(self, path: str, data: bytes) -> bool:
        """Publish a file unless one exists, and return whether this call published it."""
        ...

    def list(self, prefix: str) -> Iterator[Entry]:
        """List all files below the folder `prefix`, in no order."""
        ...

    def delete(self, path: str) -> None:
        """Remove a file, if there is one."""
        ...

    def stat(self, path: str) -> int | None:
        """Return a file's length in bytes, or None if there is no such file."""
        ...


def too_large(place: str, found: int, most: int) -> DamagedError:
    """Return the error of `get` for a file that is larger than expected."""
    return DamagedError(
        "bad-bytes",
        f"{place} is too large: it has {found} bytes, and at most {most} are allowed. Run 'wsa "
        "verify'.",
    )
