"""Running out of memory, as one of wsa's own errors."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from wsa.store.common.errors import StorageError

# torch has a class for a GPU's memory only, and importing it takes seconds; so match the messages
# of both its allocators.
_MESSAGES = re.compile(
    r"out of memory|(can't|not enough|failed to) allocate|not enough memory"
    r"|Storage size calculation overflowed"
)


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory ran out: Python's or numpy's, or torch's on a CPU or a GPU."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and bool(_MESSAGES.search(str(error)))


def too_little(error: BaseException, advice: str) -> StorageError:
    """Describe an error of an allocation, ending with what needs less memory."""
    size = re.search(
        r"(?:[Tt]ried to allocate|Unable to allocate) ([\d.]+ (?:[KMGTPE]i?B|bytes))", str(error)
    )
    asked = f" for {_readable(size[1])}" if size else ""
    return StorageError("no-memory", f"there is not enough memory{asked}. {advice}")


@contextlib.contextmanager
def reported(advice: str) -> Iterator[None]:
    """Convert errors of allocations to wsa's own, ending with `advice`; also a decorator.

    Raises:
        StorageError: If memory runs out.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        raise too_little(error, advice) from error


def _readable(size: str) -> str:
    """Write a number of bytes, such as 102400000000 bytes, in GB."""
    number, unit = size.split()
    return f"{float(number) / 1e9:,.1f} GB" if unit == "bytes" else size
