"""Make objects visible: files first, then the one record that commits them.

A commit puts each file where it belongs unless it is there, then publishes the record over what
is there. Two processes that write the same object therefore end with one set of files and one
record, without a lock; a process that died half way leaves files that the next one adopts after
comparing them with its own. The record comes last, so what it names is whole and durable.
"""

from __future__ import annotations

import datetime
import getpass
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
    """

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
        ConflictError: A value is NaN or infinite; nothing is written.
    """
    bad = ~np.isfinite(array).reshape(len(array), -1).all(axis=1)
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
        # Another machine may have computed them, with other rounding. Rows may differ by far less
        # than two different frames do.
        spread = np.abs(array - array.mean(axis=0)).mean()
        return bool(np.abs(array - other).mean() <= 0.01 * spread + 1e-6)

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
    if committed(backend, meta):
        return False
    path = records.meta_path(meta)
    stored = dict(files)
    for name, data in files.items():
        if not backend.put_new(f"{path}/{name}", data):
            stored[name] = backend.get(f"{path}/{name}")
    if stored != files and not _same(same, stored):
        raise ConflictError(
            "other-bytes",
            f"{path} holds files that no record names and that differ from what was to be "
            f"written. Remove {backend.url}/{path} and run the same command again.",
        )
    commit = records.seal(
        Commit(
            version=records.VERSION,
            meta=meta,
            files=tuple(
                File(f"{path}/{name}", len(data), keys.checksum(data))
                for name, data in sorted(stored.items())
            ),
            author=f"{getpass.getuser()}@{socket.gethostname()}",
            time=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            command=command_line(),
        )
    )
    return backend.put_new(names.commit_path(commit.id), records.write_commit(commit))


def _same(same: Callable[[Mapping[str, bytes]], bool], stored: Mapping[str, bytes]) -> bool:
    try:
        return same(stored)
    except DamagedError:
        return False


def command_line() -> str:
    """The command this process was started with, for the record."""
    return " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
