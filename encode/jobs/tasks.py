"""Tasks of a worker: register a model, embed a segment's frames or windows, commit embeddings.

Each function takes plain values and opens the objects it needs from the store. It may safely run
twice: commits are exclusive, and committed objects are not computed again. Each process builds a
model once and keeps it. A worker may run several tasks in parallel: one has the model while others
read frames or write embeddings. An error with one object is returned as a `Failed`, so that the
segment's other objects do not fail with it.
"""

from __future__ import annotations

import dataclasses
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from distributed import get_worker
from numpy.typing import NDArray

from wsa.encode.inference.encoder import Encoder, choose_device, stored
from wsa.encode.inference.segment_inputs import SegmentFrames, read_segment_frames
from wsa.encode.jobs.encoding import Encoding
from wsa.encode.jobs.events import SegmentDone
from wsa.encode.jobs.plan import Item
from wsa.encode.models.registry import Request
from wsa.encode.registration.register import Registered, open_model, register
from wsa.store.backends.base import Backend
from wsa.store.common import memory, names, user_code
from wsa.store.common.errors import ConflictError, MissingError, StorageError, UsageError, WsaError
from wsa.store.format.records import EmbeddingMeta
from wsa.store.objects.model_spec import read_spec
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import take_objects, take_snapshot
from wsa.store.objects.writer import commit_embedding, committed, embedding_dtype

MODELS_KEPT = 8

# A process builds or runs one model at a time. The model uses all cores of a CPU or the memory of a
# GPU, and torch has only one generator for untrained weights.
model_lock = threading.Lock()


@dataclasses.dataclass(frozen=True)
class TaskSettings:
    """Settings that all tasks of an encoding share.

    Attributes:
        store: URL of the store.
        sources: Source of the weights of each model, by key.
        engines: Engine of each model, by key.
        device: `cpu`, `cuda` or `auto`.
        threads: Number of cores that torch may use in a task; 0 for the worker's own setting.
    """

    store: str
    sources: dict[str, str]
    engines: dict[str, str]
    device: str = "auto"
    threads: int = 0


@dataclasses.dataclass(frozen=True)
class Failed:
    """An error with one object, and its worker.

    Attributes:
        model: Model key.
        error: The error.
        worker: Address of the worker.
        host: Name of the worker's machine.
        unfit: Whether the worker cannot open the model at all.
    """

    model: str
    error: WsaError
    worker: str
    host: str
    unfit: bool = False


@dataclasses.dataclass(frozen=True)
class Embedded:
    """Embeddings of a segment's own inputs by one model.

    Attributes:
        model: Model key.
        rows: Embeddings (n, *shape) in their stored type; None if the object already exists.
        reading: Seconds to read the frames.
        running: Seconds to run the model.
    """

    model: str
    rows: NDArray[Any] | None
    reading: float
    running: float


def set_threads(threads: int) -> None:
    """Set the number of cores that torch may use in this thread; 0 leaves it unchanged."""
    if threads:
        torch.set_num_threads(threads)


def register_model(
    store: str, request: Request, how: Encoding, threads: int
) -> Registered | Failed:
    """Build a model and commit it if it is new, with `wsa.encode.registration.register.register`.

    Returns:
        The model, or the reason why this worker cannot build it, although another may.

    Raises:
        WsaError: If no worker can build it.
    """
    set_threads(threads)
    snapshot = take_snapshot(open_store(store))
    try:
        with model_lock:
            return register(
                snapshot,
                request,
                how.max_step_error,
                choose_device(how.device),
                how.engine,
                how.games,
            )
    except (MissingError, ImportError) as error:
        if isinstance(error, MissingError) and error.kind == "no-frames":
            raise  # No other worker has frames to fit the basis on either.
        return as_failed(request.alias, error, unfit=True)
    except WsaError:
        raise
    except user_code.ERRORS as error:
        raise as_failed(request.alias, error).error from error


def embed(settings: TaskSettings, items: Sequence[Item]) -> list[Embedded | Failed]:
    """Read a segment's frames once, and run them through each model that has not seen them.

    Args:
        items: Objects to write for one segment, by several models.

    Returns:
        One entry per item.
    """
    started = time.perf_counter()
    set_threads(settings.threads)
    try:
        backend = open_store(settings.store)
        present = [committed(backend, item.path) for item in items]
        runs = [
            item for item, done in zip(items, present, strict=True) if len(item.own) and not done
        ]
        frames = _read(backend, runs) if runs else None
    except user_code.ERRORS as error:  # Any error fails this segment alone.
        return [as_failed(item, error) for item in items]
    reading = (time.perf_counter() - started) / len(items)
    return [
        Embedded(item.model, None, reading, 0.0) if done else _run(settings, item, frames, reading)
        for item, done in zip(items, present, strict=True)
    ]


def _read(backend: Backend, items: Sequence[Item]) -> SegmentFrames:
    """Read the frames of the items' segment."""
    meta = items[0].meta
    name = meta.game, meta.segment
    windows = any(item.window > 1 for item in items)
    paths = [names.frames_path(*name), *([names.segment_path(*name)] if windows else [])]
    return read_segment_frames(take_objects(backend, paths), meta, rows=windows)


def _run(
    settings: TaskSettings, item: Item, frames: SegmentFrames | None, reading: float
) -> Embedded | Failed:
    if frames is None or not len(item.own):
        try:
            snapshot = take_objects(open_store(settings.store), [names.model_path(item.model)])
            shape = read_spec(snapshot, item.model).shape
        except WsaError as error:
            return as_failed(item, error)
        return Embedded(item.model, np.zeros((0, *shape), np.float16), reading, 0.0)
    with model_lock:
        try:
            source, device = settings.sources[item.model], choose_device(settings.device)
            engine = settings.engines[item.model]
            # Keep all models of this encoding, or they would evict each other for every segment.
            keep = max(MODELS_KEPT, len(settings.sources))
            encoder = cached_model(settings.store, item.model, source, device, engine, keep)
        except (MissingError, ConflictError, UsageError, ImportError) as error:
            return as_failed(item, error, unfit=True)  # This worker lacks weights or engine.
        except user_code.ERRORS as error:
            return as_failed(item, error)
        started = time.perf_counter()
        try:
            before = encoder.passes
            embeddings = encoder.embed_inputs(frames, item.window, item.own)
            assert encoder.passes - before == len(item.own)
            return Embedded(item.model, stored(embeddings), reading, time.perf_counter() - started)
        except user_code.ERRORS as error:  # A model may raise anything.
            return as_failed(item, error)


def commit(
    settings: TaskSettings, items: Sequence[Item], embedded: Sequence[Embedded | Failed]
) -> list[SegmentDone | Failed]:
    """Join each model's embeddings of a segment with the copied ones, and commit them.

    Args:
        embedded: Results of `embed` for these items, and possibly for others.

    Returns:
        One entry per item.
    """
    outcomes: list[SegmentDone | Failed] = []
    by_model = {own.model: own for own in embedded}
    for item in items:
        own = by_model[item.model]
        try:
            outcomes.append(own if isinstance(own, Failed) else _commit(settings, item, own))
        except user_code.ERRORS as error:
            outcomes.append(as_failed(item, error))
    return outcomes


def encode_segment(settings: TaskSettings, items: Sequence[Item]) -> list[SegmentDone | Failed]:
    """Embed and commit a segment whose sources of copied rows are all finished."""
    return commit(settings, items, embed(settings, items))


def _commit(settings: TaskSettings, item: Item, embedded: Embedded) -> SegmentDone:
    started = time.perf_counter()
    own = embedded.rows
    passes = copied = 0
    if own is not None:
        backend = open_store(settings.store)
        this = item.meta.game, item.meta.segment
        copies = [copy for copy in item.copies if (copy.game, copy.segment) != this]
        repeats = [copy for copy in item.copies if (copy.game, copy.segment) == this]
        paths = [names.embedding_path(c.game, item.model, c.segment) for c in copies]
        sources = take_objects(backend, paths)
        parts = [sources.read_embedding(c.game, item.model, c.segment)[c.source] for c in copies]
        if {part.shape[1:] for part in parts} - {own.shape[1:]}:
            raise ConflictError("other-bytes", f"{item.model} has embeddings of several shapes.")
        kind = np.result_type(own.dtype, *(p.dtype for p in parts))
        whole = np.zeros((item.inputs, *own.shape[1:]), kind)
        whole[item.own] = own
        for copy, part in zip(copies, parts, strict=True):
            whole[copy.target] = part
        for copy in repeats:
            whole[copy.target] = whole[copy.source]
        # Each row was rounded on its own, so this loses nothing, and the type does not depend on
        # which rows were copied.
        whole = whole.astype(embedding_dtype(whole), copy=False)
        passes, copied = len(item.own), item.inputs - len(item.own)
        meta = EmbeddingMeta(
            game=item.meta.game,
            segment=item.meta.segment,
            model=item.model,
            shape=whole.shape,
            dtype=whole.dtype.name,
            passes=passes,
            copied=copied,
            seconds=round(embedded.running, 6),
            window=item.window,
            engine=settings.engines[item.model],
        )
        commit_embedding(backend, meta, whole)
    writing = time.perf_counter() - started
    return SegmentDone(
        game=item.meta.game,
        segment=item.meta.segment,
        model=item.model,
        inputs=item.inputs,
        passes=passes,
        copied=copied,
        seconds=embedded.reading + embedded.running + writing,
        reading=embedded.reading,
        running=embedded.running,
        writing=writing,
        worker=_this_worker()[0],
    )


def as_failed(
    of: Item | str, error: BaseException, unfit: bool = False, where: tuple[str, str] | None = None
) -> Failed:
    """Describe an error with its object or model and its worker; convert it to a `WsaError`."""
    worker, host = where or _this_worker()
    model = of if isinstance(of, str) else of.model
    if isinstance(of, Item):
        of = f"{model} on {of.meta.game} segment {of.meta.segment}"
    if isinstance(error, WsaError):
        return Failed(model, error, worker, host, unfit)
    if isinstance(error, ImportError):
        known: WsaError = MissingError(
            "no-library", f"{error}. Install it there: pip install wsa[cpu,lite]."
        )
    elif memory.ran_out(error):
        known = StorageError(
            "no-memory",
            f"{of} ran out of memory on {host}. Use fewer --workers, or machines with more.",
        )
    else:
        message = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        known = ConflictError(
            "model-failed",
            f"{of} failed on {host} ({message}). Try it alone with --scheduler inproc.",
        )
    return Failed(model, known, worker, host, unfit)


def _this_worker() -> tuple[str, str]:
    """Return this worker's address and machine."""
    try:
        return get_worker().address, socket.gethostname()
    except ValueError:  # Called outside a worker.
        return "", socket.gethostname()


_models: dict[tuple[str | None, ...], Encoder] = {}


def cached_model(
    store: str, key: str, source: str | None, device: str, engine: str, keep: int = MODELS_KEPT
) -> Encoder:
    """Return a model, built once per process; the `keep` most recently used ones are kept."""
    name = store, key, source, device, engine
    encoder = _models.pop(name, None)
    if encoder is None:
        snapshot = take_objects(open_store(store), [names.model_path(key)])
        encoder = open_model(snapshot, key, source=source, device=device, engine=engine)
    _models[name] = encoder
    while len(_models) > keep:
        del _models[next(iter(_models))]
    return encoder
