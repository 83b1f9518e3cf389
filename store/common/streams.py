"""Standard output and standard error of a command: always there, and no reason to stop working.

A reader may leave (`wsa list | head -1`), a terminal may close, a job may start with `2>&-`, and
a terminal may lack the characters of a path. None of that may end work that was begun, or change
the exit code of what was done. What has no reader is dropped; what cannot be spelled is escaped.
A result that does not fit on a disk is another matter: that is an error.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

_NO_READER = (errno.EPIPE, errno.EIO)  # A pipe without a reader, a terminal that is gone.


class DroppingStream:
    """A text stream that drops what has no reader.

    Args:
        stream: What is written to.
        always: Whether to drop on any error, as remarks are, or only where there is no reader.
    """

    def __init__(self, stream: TextIO, always: bool) -> None:
        self._stream = stream
        self._always = always

    def write(self, text: str) -> int:
        """Write, or drop."""
        with self._dropping():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, or drop."""
        with self._dropping():
            self._stream.flush()

    def close(self) -> None:
        """Flush: the interpreter's streams stay open, which absl's logging closes by another name."""
        self.flush()

    def __getattr__(self, name: str) -> Any:
        """Everything else is the stream's."""
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _dropping(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self._always and error.errno not in _NO_READER:
                raise
            # What is left in the buffer goes nowhere too, or it would fail again at the end.
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


@contextlib.contextmanager
def lasting() -> Iterator[None]:
    """Let output and remarks go on without a reader, until the block ends."""
    _open_descriptors()
    before = sys.stdout, sys.stderr
    for stream in before:
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
    sys.stdout, sys.stderr = _dropping(before[0], False), _dropping(before[1], True)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def _dropping(stream: TextIO | None, always: bool) -> Any:
    """Python has no stream at all where a descriptor was closed when it began."""
    return DroppingStream(stream or Path(os.devnull).open("w", encoding="utf-8"), always)


def _open_descriptors() -> None:
    """Open what of input, output and error was closed, before a file gets its number.

    A library that writes to standard error would else write into that file.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
