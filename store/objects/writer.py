"""Make objects visible: files first, then the one record that commits them.

Each attempt to write an object has a folder of its own, so writers never meet before the record,
whose name is the object's: one record wins, without a lock, and the loser takes its files away. A
process that died halfway leaves files that no record names and that are never used, so `wsa sweep`
may remove them. The record comes last, so what it names is whole and durable.
"""

from __future__ import annotations

import contextlib
import datetime
import getpass
import os
import secrets
import socket
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsa.store.backends.base import Backend
from wsa.store.common import hashing, names
from wsa.store.common.errors import ConflictError, DamagedError, StorageError, redact
from wsa.store.format import arrays as layout
from wsa.store.format import records
from wsa.store.format.records import (
    Commit,
    EmbeddingMeta,
    File,
    FramesMeta,
    Meta,
    ModelMeta,
    SegmentMeta,
)
from wsa.store.objects.snapshot import group_arrays

FLOAT16_MAX = 65504.0

# Each waits for the disk or the network.
PUTS_AT_ONCE = 8


def commit_segment(backend: Backend, meta: SegmentMeta, arrays: layout.Arrays) -> bool:
    """Commit a segment: its frames first, then its rows.

    Args:
        backend: The store.
        meta: What it is.
        arrays: `frames` (F, H, W) or (F, H, W, 3) uint8, `palette` (256, 3) uint8 where frames are
            indices, `digest` (F, 16) uint8, and every field of `layout.ROW_FIELDS` (rows,).

    Returns:
        True if this call made the rows visible, False if they were already.

    Raises:
        UsageError: An array is too large.
        ValueError: `arrays` are not what `meta` says; nothing is written.
    """
    if arrays["frames"].ndim not in (3, 4):
        raise ValueError(f"frames are {arrays['frames'].shape}")
    _, height, width, *_ = arrays["frames"].shape
    indexed = "palette" in arrays
    frames = FramesMeta(meta.game, meta.segment, meta.frames, height, width, indexed)
    pictures = group_arrays(frames)
    if sorted(arrays) != sorted([*pictures, *group_arrays(meta)]):
        raise ValueError(f"a segment has {[*pictures, *group_arrays(meta)]}, not {list(arrays)}")
    for name, (shape, dtype) in (pictures | group_arrays(meta)).items():
        _require(name, arrays[name], shape, dtype)
    files = layout.encode_group({name: arrays[name] for name in pictures})
    rows = layout.encode_group({name: arrays[name] for name in arrays if name not in pictures})
    records_of = _record(frames, files), _record(meta, rows)  # Both, before anything is written.
    _commit(backend, records_of[0], files)
    return _commit(backend, records_of[1], rows)


def embedding_dtype(array: NDArray[np.floating[Any]]) -> type[np.float16 | np.float32]:
    """float16, or float32 where a value would overflow it."""
    return np.float16 if np.abs(array).max(initial=0) <= FLOAT16_MAX else np.float32


def commit_embedding(
    backend: Backend, meta: EmbeddingMeta, array: NDArray[np.floating[Any]]
) -> bool:
    """Commit the embeddings of one segment, (F, *shape), or (rows, *shape) of windows.

    Returns:
        True if this call made them visible, False if they were already.

    Raises:
        ConflictError: A value is NaN or infinite; nothing is written.
        UsageError: The array is too large.
        ValueError: The array is not what `meta` says; nothing is written.
    """
    _require("embedding", array, meta.shape, meta.dtype)
    bad = ~np.isfinite(array).all(axis=tuple(range(1, array.ndim)))
    if bad.any():
        raise ConflictError(
            "not-finite",
            f"Model {meta.model} gave NaN or infinite embeddings for {bad.sum()} of {len(array)} "
            f"{meta.unit} of {meta.game} segment {meta.segment} (first: {meta.unit[:-1]} "
            f"{bad.argmax()}). Nothing was written. Check the weights file; if you "
            "chose --precision, try fp32.",
        )
    files = layout.encode_embedding(array)
    return _commit(backend, _record(meta, files), files)


def commit_model(backend: Backend, meta: ModelMeta, files: layout.Files) -> bool:
    """Commit a model's files; whether this call made it visible."""
    return _commit(backend, _record(meta, files), files)


def committed(backend: Backend, meta: Meta) -> bool:
    """Whether the object that `meta` describes is visible."""
    record = names.commit_path(hashing.object_id(records.meta_path(meta)))
    return backend.stat(record) is not None


def _commit(backend: Backend, commit: Commit, files: layout.Files) -> bool:
    if committed(backend, commit.meta):
        return False
    paths = [f"{commit.folder}/{name}" for name in files]
    try:
        _put_all(backend, dict(zip(paths, files.values(), strict=True)))
    except BaseException:
        remove_files(backend, paths)
        raise
    return publish_record(backend, commit, paths)


def publish_record(backend: Backend, commit: Commit, paths: Sequence[str]) -> bool:
    """Publish a record whose files lie in their places, or take these away if it came too late.

    Returns:
        Whether this call made the object visible.

    Raises:
        StorageError: The place refused. A network may still deliver the record some time later, so
            its files stay then; `sweep` removes them if it did not.
    """
    won = over = False
    try:
        won = backend.put_new(names.commit_path(commit.id), records.write_commit(commit))
        over = True
    except StorageError as error:
        over = error.kind == "no-space"
        raise
    finally:
        if not won and _lost(backend, commit, over):
            remove_files(backend, paths)
    return won


def new_attempt() -> str:
    """A folder name that no other attempt has."""
    return secrets.token_hex(8)


def remove_files(backend: Backend, paths: Sequence[str]) -> None:
    """Remove files that only this attempt knows; `sweep` removes what cannot be removed now."""
    for path in paths:
        with contextlib.suppress(StorageError):
            backend.delete(path)


def _put_all(backend: Backend, files: Mapping[str, bytes]) -> None:
    with ThreadPoolExecutor(PUTS_AT_ONCE) as threads:
        puts = [threads.submit(backend.put_new, path, data) for path, data in files.items()]
        try:
            done = [put.result() for put in puts]
        except BaseException:
            threads.shutdown(cancel_futures=True)
            raise
    for path, new in zip(files, done, strict=True):
        require_new(path, new)


def require_new(path: str, new: bool) -> None:
    """Raise `ConflictError` if a file was in a folder whose name was drawn just now."""
    if not new:
        raise ConflictError(
            "other-bytes", f"{path} was there before it was written. Run the same command again."
        )


def _lost(backend: Backend, commit: Commit, over: bool) -> bool:
    """Whether another's record is there; or none, and none of ours is on its way."""
    try:
        found = backend.get(names.commit_path(commit.id), records.MAX_RECORD_BYTES)
        return records.read_commit(found, names.commit_path(commit.id)).attempt != commit.attempt
    except FileNotFoundError:
        return over
    except ConflictError:  # A later wsa's record.
        return True
    except (DamagedError, StorageError):
        return False


def _record(meta: Meta, files: Mapping[str, bytes]) -> Commit:
    """The record of an object, with an attempt of its own."""
    commit = Commit(
        version=records.VERSION,
        meta=meta,
        attempt=new_attempt(),
        files=tuple(
            File(name, len(data), hashing.checksum(data)) for name, data in sorted(files.items())
        ),
        author=author(),
        time=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=command_line(),
    )
    try:
        return records.read_commit(records.write_commit(commit), names.commit_path(commit.id))
    except DamagedError as error:
        raise ValueError(f"{meta} would give a record that cannot be read: {error}") from None


def _require(name: str, array: NDArray[Any], shape: tuple[int, ...], dtype: str) -> None:
    if array.shape != shape or array.dtype != dtype:
        raise ValueError(f"{name} is {array.shape} {array.dtype}; its record says {shape} {dtype}")


def author() -> str:
    """`user@host`, or the user's number where it has no name, as in many containers."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # OSError from Python 3.13 on.
        user = str(os.getuid())
    return _text(f"{user}@{socket.gethostname()}")


def command_line() -> str:
    """The command this process was started with, for the record, without secrets."""
    return _text(redact(" ".join([Path(sys.argv[0]).name, *sys.argv[1:]])))


def _text(words: str) -> str:
    """What came from the system, as text that JSON can hold."""
    return words.encode(errors="backslashreplace").decode()
