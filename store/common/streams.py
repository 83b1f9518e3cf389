"""Standard output and standard error that cannot stop a command.

A reader may exit (`wsa list | head -1`), a terminal may close, a job may start with `2>&-`, and
a terminal's encoding may lack the characters of a path. None of these may stop a command or change
its exit code. Output without a reader is dropped, and characters that cannot be encoded are
escaped. A result that does not fit on a disk is still an error.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

_NO_READER = (errno.EPIPE, errno.EIO)  # A pipe without a reader, a closed terminal.


class DroppingStream:
    """Text stream that drops output when it has no reader.

    Args:
        always: Whether any error drops the output (for log messages), or only a missing reader.
    """

    def __init__(self, stream: TextIO, always: bool) -> None:
        self._stream = stream
        self._always = always

    def write(self, text: str) -> int:
        """Write the text, or drop it."""
        with self._dropping():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush the stream, or drop its buffer."""
        with self._dropping():
            self._stream.flush()

    def close(self) -> None:
        """Only flush, since absl's logging closes a stream that it does not know as `sys.stderr`."""
        self.flush()

    def __getattr__(self, name: str) -> Any:
        """Delegate everything else to the stream."""
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _dropping(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self._always and error.errno not in _NO_READER:
                raise
            # The buffer still holds text; without this, the flush at exit would fail again.
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


@contextlib.contextmanager
def lasting() -> Iterator[None]:
    """Ignore missing readers of standard output and any error of standard error in the block."""
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
    """Wrap a stream; it is None if its descriptor was closed when Python started."""
    return DroppingStream(stream or Path(os.devnull).open("w", encoding="utf-8"), always)


def _open_descriptors() -> None:
    """Open descriptors 0, 1 and 2 if they are closed, so that no file gets one of these numbers.

    Otherwise a library that writes to standard error would write into that file.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
