"""What a worker does: register a model, embed a segment's frames, commit them.

Each function takes plain values, opens what it needs from the store, and may run twice without
harm: commits are exclusive, and what is committed is not made again. A model is built once in each
process and kept.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wsa.encode.events import SegmentDone
from wsa.encode.forward import Encoder, choose_device, stored
from wsa.encode.models import Request
from wsa.encode.plan import Item
from wsa.encode.register import Registered, open_model, read_spec, register
from wsa.store import names
from wsa.store.errors import ConflictError
from wsa.store.reader import take_objects, take_snapshot
from wsa.store.records import EmbeddingMeta
from wsa.store.root import open_store
from wsa.store.writer import commit_embedding, embedding_dtype

MODELS_KEPT = 8

_one_at_a_time = threading.Lock()


def set_threads(threads: int) -> None:
    """How many cores torch may use in this process; 0 leaves it as it is."""
    if threads:
        torch.set_num_threads(threads)


def register_model(
    store: str, request: Request, max_step_error: float, device: str, threads: int
) -> Registered:
    """Build a model and commit it unless it is there; see `wsa.encode.register.register`."""
    set_threads(threads)
    snapshot = take_snapshot(open_store(store))
    return register(snapshot, request, max_step_error, choose_device(device))


def embed(
    store: str, item: Item, source: str, device: str, threads: int
) -> tuple[NDArray[Any], float]:
    """Run the frames of `item.own` through its model.

    Returns:
        (n, *shape) in the type they are stored as, and the seconds it took.
    """
    started = time.perf_counter()
    backend = open_store(store)
    if not len(item.own):
        spec = read_spec(take_objects(backend, [names.model_path(item.model)]), item.model)
        return np.zeros((0, *spec.shape), np.float16), time.perf_counter() - started
    set_threads(threads)
    snapshot = take_objects(backend, [names.frames_path(item.meta.game, item.meta.segment)])
    frames = snapshot.read_frames(item.meta)[item.own]
    with _one_at_a_time:  # A worker that somebody else started may have several threads.
        encoder = _model(store, item.model, source, choose_device(device))
        before = encoder.passes
        found = encoder(frames)
        assert encoder.passes - before == len(item.own)
    return stored(found), time.perf_counter() - started


def commit(
    store: str, item: Item, embedded: tuple[NDArray[Any], float], after: Sequence[SegmentDone] = ()
) -> SegmentDone:
    """Join a segment's own embeddings with the copied ones, and commit them.

    Args:
        store: The store's URL.
        item: What to write.
        embedded: From `embed`.
        after: Commits that this one copies from; they only have to be over.
    """
    started = time.perf_counter()
    own, seconds = embedded
    backend = open_store(store)
    this = item.meta.game, item.meta.segment
    copies = [copy for copy in item.copies if (copy.game, copy.segment) != this]
    repeats = [copy for copy in item.copies if (copy.game, copy.segment) == this]
    paths = [names.embedding_path(c.game, item.model, c.segment) for c in copies]
    sources = take_objects(backend, paths)
    parts = [sources.read_embedding(c.game, item.model, c.segment)[c.source] for c in copies]
    if {part.shape[1:] for part in parts} - {own.shape[1:]}:
        raise ConflictError("other-bytes", f"{item.model} has embeddings of several shapes.")
    whole = np.zeros(
        (item.meta.frames, *own.shape[1:]), np.result_type(own.dtype, *(p.dtype for p in parts))
    )
    whole[item.own] = own
    for copy, part in zip(copies, parts, strict=True):
        whole[copy.target] = part
    for copy in repeats:
        whole[copy.target] = whole[copy.source]
    # Rows were rounded one by one, so this loses nothing; and the type is the same whichever rows
    # were copied.
    whole = whole.astype(embedding_dtype(whole), copy=False)
    passes, copied = len(item.own), item.meta.frames - len(item.own)
    meta = EmbeddingMeta(
        game=item.meta.game,
        segment=item.meta.segment,
        model=item.model,
        shape=whole.shape,
        dtype=whole.dtype.name,
        passes=passes,
        copied=copied,
        seconds=round(seconds, 3),
    )
    commit_embedding(backend, meta, whole)
    seconds += time.perf_counter() - started
    return SegmentDone(meta.game, meta.segment, meta.model, passes, copied, seconds)


@functools.lru_cache(maxsize=MODELS_KEPT)
def _model(store: str, key: str, source: str, device: str) -> Encoder:
    snapshot = take_objects(open_store(store), [names.model_path(key)])
    return open_model(snapshot, key, source=source, device=device)
