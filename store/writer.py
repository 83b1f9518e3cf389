"""Make objects visible: files first, then the one record that commits them.

A commit puts each file where it belongs unless it is there, then publishes the record over what
is there. Two processes that write the same object therefore end with one set of files and one
record, without a lock; a process that died half way leaves files that the next one adopts after
comparing them with its own. The record comes last, so what it names is whole and durable.
"""

from __future__ import annotations

import datetime
import getpass
import os
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsa.store import keys, layout, names, records
from wsa.store.backends import Backend
from wsa.store.errors import ConflictError, DamagedError
from wsa.store.reader import segment_array, segment_arrays
from wsa.store.records import Commit, EmbeddingMeta, File, Meta, ModelMeta, SegmentMeta

FLOAT16_MAX = 65504.0


def commit_segment(backend: Backend, meta: SegmentMeta, arrays: layout.Arrays) -> bool:
    """Commit a segment.

    Args:
        backend: The store.
        meta: What it is.
        arrays: Its arrays, as `layout.encode_segment` takes them.

    Returns:
        True if this call made it visible, False if it was already.

    Raises:
        ConflictError: Other bytes lie in its place, and no record names them.
        UsageError: An array is too large.
        ValueError: `arrays` are not what `meta` says; nothing is written.
    """
    if sorted(arrays) != sorted(segment_arrays(meta)):
        raise ValueError(f"a segment has {segment_arrays(meta)}, not {list(arrays)}")
    for name, array in arrays.items():
        _require(name, array, *segment_array(meta, name))

    def same(theirs: Mapping[str, bytes]) -> bool:
        where = names.segment_path(meta.game, meta.segment)
        return all(
            np.array_equal(
                array, layout.decode_array(theirs, name, array.shape, array.dtype.name, where)
            )
            for name, array in arrays.items()
        )

    return _commit(backend, meta, layout.encode_segment(arrays), same)


def embedding_dtype(array: NDArray[np.floating[Any]]) -> type[np.float16 | np.float32]:
    """float16, or float32 where a value would overflow it."""
    return np.float16 if np.abs(array).max(initial=0) <= FLOAT16_MAX else np.float32


def commit_embedding(
    backend: Backend, meta: EmbeddingMeta, array: NDArray[np.floating[Any]]
) -> bool:
    """Commit the embeddings (F, *shape) of one segment's frames.

    Returns:
        True if this call made them visible, False if they were already.

    Raises:
        ConflictError: A value is NaN or infinite and nothing is written; or other bytes lie in
            their place, and no record names them.
        UsageError: The array is too large.
        ValueError: The array is not what `meta` says; nothing is written.
    """
    _require("embedding", array, meta.shape, meta.dtype)
    bad = ~np.isfinite(array).all(axis=tuple(range(1, array.ndim)))
    if bad.any():
        raise ConflictError(
            "not-finite",
            f"Model {meta.model} gave NaN or infinite embeddings for {bad.sum()} of {len(array)} "
            f"frames of {meta.game} segment {meta.segment} (first: frame {bad.argmax()}). Nothing "
            "was written. Check the weights file; if you chose --precision, try fp32.",
        )

    def same(theirs: Mapping[str, bytes]) -> bool:
        where = names.embedding_path(meta.game, meta.model, meta.segment)
        other = layout.decode_array(theirs, None, array.shape, meta.dtype, where)
        # Another machine may have computed them, with other rounding. No row may differ by more
        # than a hundredth of what frames differ by, or the last bit of a float16.
        mine = array.astype(np.float64)
        spread = np.abs(mine - mine.mean(axis=0)).mean()
        apart = np.abs(mine - other).reshape(len(mine), -1).mean(axis=1).max()
        return bool(apart <= 0.01 * spread + 2**-10 * np.abs(mine).mean())

    return _commit(backend, meta, layout.encode_embedding(array), same)


def commit_model(backend: Backend, meta: ModelMeta, files: layout.Files) -> bool:
    """Commit a model's files; whether this call made it visible."""
    # The key is cut from everything that matters, so files under it are of the same model.
    return _commit(backend, meta, files, lambda theirs: theirs.keys() >= files.keys())


def committed(backend: Backend, meta: Meta) -> bool:
    """Whether the object that `meta` describes is visible."""
    record = names.commit_path(keys.object_id(records.meta_path(meta)))
    return backend.stat(record) is not None


def _commit(
    backend: Backend,
    meta: Meta,
    files: layout.Files,
    same: Callable[[Mapping[str, bytes]], bool],
) -> bool:
    path = records.meta_path(meta)
    try:
        record_path, _ = _record(meta, {})
        records.read_commit(_record(meta, {})[1], record_path)
    except DamagedError as error:
        raise ValueError(f"{meta} would give a record that cannot be read: {error}") from None
    if committed(backend, meta):
        return False
    stored = dict(files)
    for name, data in files.items():
        if not backend.put_new(f"{path}/{name}", data):
            stored[name] = _get(backend, f"{path}/{name}")
    if stored != files and not _same(same, stored):
        if committed(backend, meta):
            return False
        raise ConflictError(
            "other-bytes",
            f"{path} holds files that no record names and that differ from what was to be "
            f"written. Remove {backend.url}/{path} and run the same command again.",
        )
    return backend.put_new(*_record(meta, stored))


def _record(meta: Meta, files: Mapping[str, bytes]) -> tuple[str, bytes]:
    """Where the record of an object goes, and its bytes."""
    commit = Commit(
        version=records.VERSION,
        meta=meta,
        files=tuple(
            File(f"{records.meta_path(meta)}/{name}", len(data), keys.checksum(data))
            for name, data in sorted(files.items())
        ),
        author=author(),
        time=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=command_line(),
    )
    return names.commit_path(commit.id), records.write_commit(commit)


def _require(name: str, array: NDArray[Any], shape: tuple[int, ...], dtype: str) -> None:
    if array.shape != shape or array.dtype != dtype:
        raise ValueError(f"{name} is {array.shape} {array.dtype}; its record says {shape} {dtype}")


def _get(backend: Backend, path: str) -> bytes:
    """Bytes of a file that is there; none if it is a folder or a pipe."""
    try:
        return backend.get(path)
    except FileNotFoundError:
        return b""


def _same(same: Callable[[Mapping[str, bytes]], bool], stored: Mapping[str, bytes]) -> bool:
    try:
        return same(stored)
    except DamagedError:
        return False


def author() -> str:
    """`user@host`, or the user's number where it has no name, as in many containers."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # OSError from Python 3.13 on.
        user = str(os.getuid())
    return _text(f"{user}@{socket.gethostname()}")


def command_line() -> str:
    """The command this process was started with, for the record."""
    return _text(" ".join([Path(sys.argv[0]).name, *sys.argv[1:]]))


def _text(words: str) -> str:
    """What came from the system, as text that JSON can hold."""
    return words.encode(errors="backslashreplace").decode()
