"""What an encoding takes of a worker's memory, for `wsa encode --dry-run`: an upper bound.

A worker is started as an encoding starts them, and builds every model and runs a batch through it:
that is its libraries, weights and activations, measured. What its tasks hold beside that is counted:
the frames of the largest segment in each thread, embeddings on their way, and, for a model that is
not in the store yet, the strip's features that its basis is fitted on.
"""

from __future__ import annotations

import dataclasses
import math
import re
import resource
import sys
from collections.abc import Sequence
from pathlib import Path

from wsa.encode import cluster, job, lookup, register, strip
from wsa.encode.forward import choose_device
from wsa.encode.inputs import WINDOWS_AT_ONCE
from wsa.encode.models import Request
from wsa.encode.workers import TASKS_A_GPU, TASKS_A_THREAD, THREADS_A_WORKER
from wsa.store.reader import Snapshot, take_snapshot
from wsa.store.root import open_store

# An allocator keeps some of what it got back.
SPARE = 1.1

# Of a segment a task holds its frames as palette indices and as colours, and those it runs.
COPIES_OF_FRAMES = 7 / 3

# A basis is fitted on the features, made of parts that are joined, and on their differences.
COPIES_OF_FEATURES = 3


@dataclasses.dataclass(frozen=True)
class Measured:
    """One model in a worker: numbers of its features and of its embedding, for one input."""

    features: int
    embedding: int
    window: int


def worker_bytes(
    snapshot: Snapshot, requests: Sequence[Request], games: Sequence[str], device: str, engine: str
) -> int:
    """The most memory that one worker takes, in bytes.

    Raises:
        MissingError: No weights.
        UsageError: An engine or a precision that is not to be had here.
    """
    url = snapshot.backend.url
    with cluster.connect("local", 1, device) as (client, threads):
        asked = client.submit(_measure, url, tuple(requests), games, device, engine, threads)
        peak, models = asked.result()
    segments = [m for m in snapshot.segments() if m.game in games]
    inputs = max((max(m.rows, m.frames) for m in segments), default=0)
    pixels = {(f.game, f.segment): f.height * f.width * 3 for f in snapshot.frames()}
    frames = max((m.frames * pixels.get((m.game, m.segment), 0) for m in segments), default=0)
    windows = max((m.window for m in models if m.window > 1), default=0)
    a_window = max(pixels.values(), default=0) * windows * WINDOWS_AT_ONCE
    embeddings = sum(inputs * m.embedding for m in models)
    on_gpu = choose_device(device) == "cuda"
    at_once = TASKS_A_GPU if on_gpu else THREADS_A_WORKER
    # A row is float32 where it is made, then half, then joined, then compressed.
    tasks = at_once * (COPIES_OF_FRAMES * frames + a_window + 10 * embeddings)
    waiting = TASKS_A_THREAD * at_once * 4 * embeddings
    fitted = [m for r, m in zip(requests, models, strict=True) if _fits(snapshot, r)]
    fit = 0
    if fitted:
        strip_frames = [game.frames for game in strip.load_strip()]
        count = sum(map(len, strip_frames))
        features = max(4 * m.features for m in fitted) * count
        fit = COPIES_OF_FEATURES * features + sum(part.nbytes for part in strip_frames)
    return int(SPARE * (peak + max(tasks + waiting, fit)))


def _fits(snapshot: Snapshot, request: Request) -> bool:
    """Whether a model's basis has still to be fitted."""
    return "pca" in request.output and lookup.find(snapshot, request) is None


def _measure(
    store: str,
    requests: Sequence[Request],
    games: Sequence[str],
    device: str,
    engine: str,
    threads: int,
) -> tuple[int, tuple[Measured, ...]]:
    """On a worker: build all models, measure their engines as an encoding does, see what it took."""
    job.set_threads(threads)
    snapshot = take_snapshot(open_store(store))
    kept, found = [], []
    for request in requests:
        engines, _, identity = register.measured(
            snapshot, request, choose_device(device), engine, games
        )
        chosen = engines.choose(engine, identity.precision, math.inf).engine
        encoder = engines.encoder(chosen, identity.precision)
        kept.append(encoder)
        frames = strip.probe_frames(identity.window)
        features = math.prod(encoder.features(frames).shape[1:])
        numbers = encoder.output.numbers or math.prod(encoder(frames).shape[1:])
        found.append(Measured(features, numbers, identity.window))
    return peak_bytes(), tuple(found)


def peak_bytes() -> int:
    """The most memory that this process has had."""
    status = Path("/proc/self/status")
    if status.exists():  # What `getrusage` says there includes the process that started this one.
        return 1024 * int(re.search(r"VmHWM:\s*(\d+)", status.read_text())[1])  # type: ignore[index]
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most
