"""Commit objects: write their files, then publish the one record that makes the object visible.

Each attempt to write an object has its own folder, so writers meet only at the record, whose name
depends only on the object. One record wins, without a lock, and the loser removes its files. A
process that dies halfway leaves files that no record names and no reader uses; `wsa sweep` removes
them. The record comes last, so the files that it names are complete and durable.
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
from wsa.store.objects.snapshot import arrays_of

FLOAT16_MAX = 65504.0

# A put mostly waits for the disk or the network.
PUTS_AT_ONCE = 8


def commit_segment(backend: Backend, meta: SegmentMeta, arrays: layout.Arrays) -> bool:
    """Commit a segment: its frames first, then its rows.

    Args:
        arrays: `frames` (F, H, W) or (F, H, W, 3) uint8, `palette` (256, 3) uint8 if frames are
            indices, `digest` (F, 16) uint8, and every field of `layout.ROW_FIELDS` (rows,).

    Returns:
        True if this call made the rows visible, False if they already were.

    Raises:
        UsageError: If an array is too large.
        ValueError: If `arrays` do not match `meta`; nothing is written.
    """
    if arrays["frames"].ndim not in (3, 4):
        raise ValueError(f"frames are {arrays['frames'].shape}")
    _, height, width, *_ = arrays["frames"].shape
    indexed = "palette" in arrays
    frames = FramesMeta(meta.game, meta.segment, meta.frames, height, width, indexed)
    frame_arrays = arrays_of(frames)
    if sorted(arrays) != sorted([*frame_arrays, *arrays_of(meta)]):
        raise ValueError(f"a segment has {[*frame_arrays, *arrays_of(meta)]}, not {list(arrays)}")
    for name, (shape, dtype) in (frame_arrays | arrays_of(meta)).items():
        _require(name, arrays[name], shape, dtype)
    frame_files = layout.encode_group({name: arrays[name] for name in frame_arrays})
    row_files = layout.encode_group(
        {name: arrays[name] for name in arrays if name not in frame_arrays}
    )
    # Make both records before writing anything, since either may be invalid.
    commits = _record(frames, frame_files), _record(meta, row_files)
    _commit(backend, commits[0], frame_files)
    return _commit(backend, commits[1], row_files)


def embedding_dtype(array: NDArray[np.floating[Any]]) -> type[np.float16 | np.float32]:
    """Return float16, or float32 if a value would overflow float16."""
    return np.float16 if np.abs(array).max(initial=0) <= FLOAT16_MAX else np.float32


def commit_embedding(
    backend: Backend, meta: EmbeddingMeta, array: NDArray[np.floating[Any]]
) -> bool:
    """Commit one segment's embeddings of frames, (F, *shape), or of windows, (rows, *shape).

    Returns:
        True if this call made them visible, False if they already were.

    Raises:
        ConflictError: If a value is NaN or infinite; nothing is written.
        UsageError: If the array is too large.
        ValueError: If the array does not match `meta`; nothing is written.
    """
    _require("embedding", array, meta.shape, meta.dtype)
    bad = ~np.isfinite(array).all(axis=tuple(range(1, array.ndim)))
    if bad.any():
        raise ConflictError(
            "not-finite",
            f"Model {meta.model} returned NaN or infinite embeddings for {bad.sum()} of "
            f"{len(array)} {meta.unit} of {meta.game} segment {meta.segment} (first: "
            f"{meta.unit[:-1]} {bad.argmax()}). Nothing was written. Check the weights file; if "
            "you chose --precision, try fp32.",
        )
    files = layout.encode_embedding(array)
    return _commit(backend, _record(meta, files), files)


def commit_model(backend: Backend, meta: ModelMeta, files: layout.Files) -> bool:
    """Commit a model's files, and return whether this call made the model visible."""
    return _commit(backend, _record(meta, files), files)


def committed(backend: Backend, path: str) -> bool:
    """Whether the object at `path` is visible."""
    return backend.stat(records.record_path(path)) is not None


def _commit(backend: Backend, commit: Commit, files: layout.Files) -> bool:
    if committed(backend, commit.path):
        return False
    paths = [f"{commit.folder}/{name}" for name in files]
    try:
        _put_all(backend, dict(zip(paths, files.values(), strict=True)))
    except BaseException:
        remove_files(backend, paths)
        raise
    return publish_record(backend, commit, paths)


def publish_record(backend: Backend, commit: Commit, paths: Sequence[str]) -> bool:
    """Publish the record of files that are already written; remove them if another writer won.

    Returns:
        Whether this call made the object visible.

    Raises:
        StorageError: If the disk or the bucket refuses. The network may still deliver the record
            later, so the files stay; `sweep` removes them if it does not.
    """
    won = ended = False
    try:
        won = backend.put_new(names.commit_path(commit.id), records.write_commit(commit))
        ended = True
    except StorageError as error:
        ended = error.kind == "no-space"
        raise
    finally:
        if not won and _lost(backend, commit, ended):
            remove_files(backend, paths)
    return won


def new_attempt() -> str:
    """Return a random folder name for one attempt."""
    return secrets.token_hex(8)


def remove_files(backend: Backend, paths: Sequence[str]) -> None:
    """Remove an attempt's files; `sweep` removes those that cannot be removed now."""
    for path in paths:
        with contextlib.suppress(StorageError):
            backend.delete(path)


def _put_all(backend: Backend, files: Mapping[str, bytes]) -> None:
    with ThreadPoolExecutor(PUTS_AT_ONCE) as threads:
        puts = [threads.submit(backend.put_new, path, data) for path, data in files.items()]
        try:
            published = [put.result() for put in puts]
        except BaseException:
            threads.shutdown(cancel_futures=True)
            raise
    for path, new in zip(files, published, strict=True):
        require_new(path, new)


def require_new(path: str, new: bool) -> None:
    """Raise `ConflictError` if a file already existed in an attempt's new folder."""
    if not new:
        raise ConflictError(
            "other-bytes", f"{path} was there before it was written. Run the same command again."
        )


def _lost(backend: Backend, commit: Commit, ended: bool) -> bool:
    """Whether this attempt lost: another writer's record is there, or none is and ours cannot come.

    Args:
        ended: Whether the put has definitely ended, so that its record cannot appear later.
    """
    try:
        data = backend.get(names.commit_path(commit.id), records.MAX_RECORD_BYTES)
        return records.read_commit(data, names.commit_path(commit.id)).attempt != commit.attempt
    except FileNotFoundError:
        return ended
    except ConflictError:  # A newer wsa's record.
        return True
    except (DamagedError, StorageError):
        return False


def _record(meta: Meta, files: Mapping[str, bytes]) -> Commit:
    """Return the record of an object's new attempt."""
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
    """Return `user@host`, with the user's number if it has no name, as in many containers."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # OSError from Python 3.13 on.
        user = str(os.getuid())
    return _json_text(f"{user}@{socket.gethostname()}")


def command_line() -> str:
    """Return this process's command line without secrets."""
    return _json_text(redact(" ".join([Path(sys.argv[0]).name, *sys.argv[1:]])))


def _json_text(words: str) -> str:
    """Escape what JSON cannot encode, such as undecodable bytes from the system."""
    return words.encode(errors="backslashreplace").decode()
