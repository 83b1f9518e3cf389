"""What a worker does: register a model, embed a segment's frames or windows, commit them.

Each function takes plain values, opens what it needs from the store, and may run twice without
harm: commits are exclusive, and what is committed is not made again. A model is built once in each
process and kept. A worker may run several of these side by side: one of them has the model, while
the others read frames or write embeddings. What goes wrong with one object is handed back as a
`Failed`, so that the segment's other objects do not fall with it.
"""

from __future__ import annotations

import dataclasses
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from distributed import get_worker
from numpy.typing import NDArray

from wsa.encode.inference.encoder import Encoder, choose_device, stored
from wsa.encode.inference.segment_inputs import SegmentFrames, read_segment_frames
from wsa.encode.jobs.events import SegmentDone
from wsa.encode.jobs.plan import Item
from wsa.encode.models.registry import Request
from wsa.encode.registration.register import Registered, open_model, register
from wsa.store.backends.base import Backend
from wsa.store.common import names
from wsa.store.common.errors import ConflictError, MissingError, StorageError, UsageError, WsaError
from wsa.store.format.records import EmbeddingMeta
from wsa.store.objects.model_spec import read_spec
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import take_objects, take_snapshot
from wsa.store.objects.writer import commit_embedding, committed, embedding_dtype

MODELS_KEPT = 8

# One model is built or run at a time in a process: on a CPU it has the cores, on a GPU the memory,
# and torch has one generator for untrained weights.
model_lock = threading.Lock()


@dataclasses.dataclass(frozen=True)
class TaskSettings:
    """What all tasks of an encoding have in common.

    Attributes:
        store: The store's URL.
        sources: Where the weights of each model are, by its key.
        engines: What runs each model, by its key.
        device: `cpu`, `cuda` or `auto`.
        threads: Cores that torch may use in a task; 0 as the worker has it.
    """

    store: str
    sources: dict[str, str]
    engines: dict[str, str]
    device: str = "auto"
    threads: int = 0


@dataclasses.dataclass(frozen=True)
class Failed:
    """What went wrong with one object, and on which worker.

    Attributes:
        model: The model key.
        error: Why, as all errors of wsa.
        worker: The worker's address.
        host: Its machine's name.
        unfit: Whether the worker cannot open the model at all.
    """

    model: str
    error: WsaError
    worker: str
    host: str
    unfit: bool = False


@dataclasses.dataclass(frozen=True)
class Embedded:
    """A segment's own inputs after one model: (n, *shape) in the type they are stored as.

    `rows` is None if the object is there already.
    """

    model: str
    rows: NDArray[Any] | None
    reading: float
    running: float


def set_threads(threads: int) -> None:
    """How many cores torch may use in this thread; 0 leaves it as it is."""
    if threads:
        torch.set_num_threads(threads)


def register_model(
    store: str,
    request: Request,
    max_step_error: float,
    device: str,
    threads: int,
    engine: str = "auto",
    games: Sequence[str] = (),
) -> Registered | Failed:
    """Build a model and commit it unless it is there; see `wsa.encode.registration.register.register`.

    Returns:
        The model, or why this worker cannot build it while another may.

    Raises:
        WsaError: No worker can.
    """
    set_threads(threads)
    snapshot = take_snapshot(open_store(store))
    try:
        with model_lock:
            return register(snapshot, request, max_step_error, choose_device(device), engine, games)
    except (MissingError, ImportError) as error:
        if isinstance(error, MissingError) and error.kind == "no-frames":
            raise  # To fit a basis on, which no other worker has either.
        return as_failed(request.alias, error, unfit=True)
    except WsaError:
        raise
    except Exception as error:
        raise as_failed(request.alias, error).error from error


def embed(settings: TaskSettings, items: Sequence[Item]) -> list[Embedded | Failed]:
    """Read a segment's frames once, and run them through each model that has not seen them.

    Args:
        settings: What all tasks have in common.
        items: What to write of one segment, by several models.

    Returns:
        One entry an item.
    """
    started = time.perf_counter()
    set_threads(settings.threads)
    try:
        backend = open_store(settings.store)
        there = [committed(backend, _meta(item)) for item in items]
        runs = [item for item, done in zip(items, there, strict=True) if len(item.own) and not done]
        shown = _read(backend, runs) if runs else None
    except Exception as error:  # noqa: BLE001  Whatever it is, it is this segment's.
        return [as_failed(item, error) for item in items]
    reading = (time.perf_counter() - started) / len(items)
    return [
        Embedded(item.model, None, reading, 0.0) if done else _run(settings, item, shown, reading)
        for item, done in zip(items, there, strict=True)
    ]


def _read(backend: Backend, items: Sequence[Item]) -> SegmentFrames:
    """What these items' segment shows."""
    meta = items[0].meta
    of = meta.game, meta.segment
    windows = any(item.window > 1 for item in items)
    paths = [names.frames_path(*of), *([names.segment_path(*of)] if windows else [])]
    return read_segment_frames(take_objects(backend, paths), meta, rows=windows)


def _run(
    settings: TaskSettings, item: Item, shown: SegmentFrames | None, reading: float
) -> Embedded | Failed:
    if shown is None or not len(item.own):
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
            keep = max(MODELS_KEPT, len(settings.sources))  # One more would be built ever again.
            encoder = cached_model(settings.store, item.model, source, device, engine, keep)
        except (MissingError, ConflictError, UsageError, ImportError) as error:
            return as_failed(item, error, unfit=True)  # No weights, others, or no such engine here.
        except Exception as error:  # noqa: BLE001
            return as_failed(item, error)
        started = time.perf_counter()
        try:
            before = encoder.passes
            found = np.concatenate(list(_embeddings(encoder, shown, item)))
            assert encoder.passes - before == len(item.own)
            return Embedded(item.model, stored(found), reading, time.perf_counter() - started)
        except Exception as error:  # noqa: BLE001  A model may raise anything.
            return as_failed(item, error)


def _embeddings(
    encoder: Encoder, shown: SegmentFrames, item: Item
) -> Iterator[NDArray[np.float32]]:
    """A segment's own inputs after a model, some after another.

    On a CPU grey screens are made small once for all models and windows, a window of four else made
    each four times. Those in colour would take too much memory.
    """
    if encoder.shrinks(shown.pictures.shape[1:3]):
        how = encoder.preprocessing
        for some in shown.levels(item.window, item.own, how, encoder.shrink):
            yield encoder.embed_shrunk(some)
        return
    for some in shown.inputs(item.window, item.own):
        yield encoder(some)


def commit(
    settings: TaskSettings, items: Sequence[Item], embedded: Sequence[Embedded | Failed]
) -> list[SegmentDone | Failed]:
    """Join each model's embeddings of a segment with the copied ones, and commit them.

    Args:
        settings: What all tasks have in common.
        items: What to write.
        embedded: From `embed`, of these items and perhaps of others.

    Returns:
        One entry an item.
    """
    outcomes: list[SegmentDone | Failed] = []
    of = {own.model: own for own in embedded}
    for item in items:
        own = of[item.model]
        try:
            outcomes.append(own if isinstance(own, Failed) else _commit(settings, item, own))
        except Exception as error:  # noqa: BLE001
            outcomes.append(as_failed(item, error))
    return outcomes


def encode_segment(settings: TaskSettings, items: Sequence[Item]) -> list[SegmentDone | Failed]:
    """`embed` and `commit`, where no copied row is still to be made."""
    return commit(settings, items, embed(settings, items))


def _commit(settings: TaskSettings, item: Item, embedded: Embedded) -> SegmentDone:
    started = time.perf_counter()
    own = embedded.rows
    meta = _meta(item)
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
        # Rows were rounded one by one, so this loses nothing; and the type is the same whichever
        # rows were copied.
        whole = whole.astype(embedding_dtype(whole), copy=False)
        meta = _meta(item, whole, embedded.running, settings.engines[item.model])
        commit_embedding(backend, meta, whole)
    writing = time.perf_counter() - started
    return SegmentDone(
        game=item.meta.game,
        segment=item.meta.segment,
        model=item.model,
        inputs=item.inputs,
        passes=meta.passes,
        copied=meta.copied,
        seconds=embedded.reading + embedded.running + writing,
        reading=embedded.reading,
        running=embedded.running,
        writing=writing,
        worker=_this_worker()[0],
    )


def _meta(
    item: Item, whole: NDArray[Any] | None = None, seconds: float = 0.0, engine: str = "torch"
) -> EmbeddingMeta:
    """The metadata of an item's object; without the array, of no more than its name."""
    made = whole is not None
    return EmbeddingMeta(
        game=item.meta.game,
        segment=item.meta.segment,
        model=item.model,
        shape=whole.shape if whole is not None else (item.inputs,),
        dtype=whole.dtype.name if whole is not None else "float16",
        passes=len(item.own) if made else 0,
        copied=item.inputs - len(item.own) if made else 0,
        seconds=round(seconds, 3),
        window=item.window,
        engine=engine,
    )


def as_failed(
    of: Item | str, error: BaseException, unfit: bool = False, where: tuple[str, str] | None = None
) -> Failed:
    """Name the object, or the model, and the worker; errors that are not wsa's become one."""
    worker, host = where or _this_worker()
    model = of if isinstance(of, str) else of.model
    if isinstance(of, Item):
        of = f"{model} on {of.meta.game} segment {of.meta.segment}"
    if isinstance(error, ImportError):
        error = MissingError("no-library", f"{error}. Install it there: pip install wsa[cpu,lite].")
    elif isinstance(error, MemoryError) or "out of memory" in str(error):
        error = StorageError(
            "no-memory",
            f"{of} ran out of memory on {host}. Use fewer --workers, or machines with more.",
        )
    elif not isinstance(error, WsaError):
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        error = ConflictError(
            "model-failed", f"{of} failed on {host} ({said}). Try it alone with --scheduler inproc."
        )
    return Failed(model, error, worker, host, unfit)


def _this_worker() -> tuple[str, str]:
    """This worker's address and its machine."""
    try:
        return get_worker().address, socket.gethostname()
    except ValueError:  # No worker: somebody calls these functions.
        return "", socket.gethostname()


_models: dict[tuple[str | None, ...], Encoder] = {}


def cached_model(
    store: str, key: str, source: str | None, device: str, engine: str, keep: int = MODELS_KEPT
) -> Encoder:
    """A model, built once; of all that were built, the `keep` that were used last are kept."""
    name = store, key, source, device, engine
    encoder = _models.pop(name, None)
    if encoder is None:
        snapshot = take_objects(open_store(store), [names.model_path(key)])
        encoder = open_model(snapshot, key, source=source, device=device, engine=engine)
    _models[name] = encoder
    while len(_models) > keep:
        del _models[next(iter(_models))]
    return encoder
