"""Where a store's bytes live, as five verbs; everything above speaks only these."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from wsa.store.common.errors import DamagedError

# No file that wsa writes is larger.
MAX_FILE_BYTES = 8 << 30


class Entry(NamedTuple):
    """A file as a listing shows it.

    Attributes:
        path: Its path.
        bytes: Its length.
        modified: When it was published, in seconds since 1970 by the clock of the place.
    """

    path: str
    bytes: int
    modified: float


class Backend(Protocol):
    """A place for immutable files.

    Paths are relative, with forward slashes, and come from `wsa.store.common.names`. A file appears
    whole or not at all, and is never changed. Every verb raises `StorageError` when the place
    refuses and `DamagedError` when the path leads out of it; `get` raises `FileNotFoundError`
    when there is no such file, and `DamagedError`, unread, when it is larger than expected. What is not a plain file (a folder, a pipe) counts as none.
    """

    @property
    def url(self) -> str:
        """The place, as a user would type it."""
        ...

    @property
    def at_once(self) -> int:
        """How many small reads are worth making side by side: 1 where none has to wait."""
        ...

    def get(self, path: str, most: int = MAX_FILE_BYTES) -> bytes:
        """The file's bytes, of which `most` are expected at most."""
        ...

    def put_new(self, path: str, data: bytes) -> bool:
        """Publish a file unless one is there; whether this call did."""
        ...

    def list(self, prefix: str) -> Iterator[Entry]:
        """All files below the folder `prefix`, in no order."""
        ...

    def delete(self, path: str) -> None:
        """Remove a file; nothing happens if there is none."""
        ...

    def stat(self, path: str) -> int | None:
        """The file's length in bytes, or None if there is none."""
        ...


def too_large(place: str, found: int, most: int) -> DamagedError:
    """What `get` raises."""
    return DamagedError(
        "bad-bytes",
        f"{place} is rejected: it has {found} bytes, and at most {most} can be right. Run 'wsa verify'.",
    )
