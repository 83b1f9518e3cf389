"""Let one process train in a folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import filelock

from wsa.store.common.errors import ConflictError


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a run's folder.

    Raises:
        ConflictError: If another process is training the run.
    """
    lock = filelock.FileLock(folder / "lock", timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise ConflictError(
            "run-exists",
            f"Another process is training {folder}. Wait for it, or give another --run-dir.",
        ) from None
    try:
        yield
    finally:
        lock.release()
