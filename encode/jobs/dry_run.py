"""Estimate the work of an encoding, and a worker's memory, for `wsa encode --dry-run`.

The memory is an upper bound. It starts a worker as an encoding does, which builds every model and
measures its engines; the worker's peak covers libraries, weights and activations. It then adds what
tasks hold: the frames of the largest segment in each thread, embeddings in transit and, for a model
that is not in the store yet, the features to fit its basis on.
"""

from __future__ import annotations

import dataclasses
import math
import re
import resource
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from distributed import KilledWorker

from wsa.encode.inference.encoder import Encoder, choose_device
from wsa.encode.inference.segment_inputs import WINDOWS_AT_ONCE
from wsa.encode.jobs import cluster
from wsa.encode.jobs import tasks as job
from wsa.encode.jobs.encoding import Encoding
from wsa.encode.jobs.plan import make_plan
from wsa.encode.jobs.scheduler import worker_died
from wsa.encode.jobs.workers import TASKS_A_GPU, TASKS_A_THREAD, THREADS_A_WORKER
from wsa.encode.models.registry import Request, libraries
from wsa.encode.registration import fit_reduction, register
from wsa.encode.registration import identity as lookup
from wsa.store.common import user_code
from wsa.store.common.errors import WsaError
from wsa.store.objects.model_spec import parse_output
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import Snapshot, take_snapshot


@dataclasses.dataclass(frozen=True)
class MeasuredModel:
    """Measurements of a model on a worker.

    Attributes:
        engine: Engine that would run the model; `none` if it has no network.
        rate: Frames per second of that engine.
        window: Number of consecutive frames that the model sees.
        features: Size of an embedding before any reduction.
        numbers: Size of an embedding.
    """

    engine: str
    rate: float
    window: int
    features: int
    numbers: int


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Estimated work for one model.

    Attributes:
        name: Alias of the model, and its game if it embeds only one.
        objects: Number of embedding objects to write.
        passes: Number of frames, or windows of frames, to run through the model.
        copies: Number of frames or windows whose embedding is copied.
        fit: Number of probe frames, or of frames of a game, to run to fit the model's basis.
        bytes: Size of the embeddings before compression, which saves about a third.
        engine: Engine that would run the model; `none` if it has no network.
        minutes: Time in minutes, from the engine's measured rate.
    """

    name: str
    objects: int
    passes: int
    copies: int
    fit: int
    bytes: int
    engine: str
    minutes: float


def measure_model(
    snapshot: Snapshot, request: Request, how: Encoding
) -> tuple[MeasuredModel, Encoder]:
    """Build a model and measure its engines, as registering does, without writing anything.

    Raises:
        MissingError: If the weights are not found or the engine is not installed.
        UsageError: If the device lacks the precision.
        ConflictError: If the model fails, or the error of the precision is too large.
    """
    device, engine = choose_device(how.device), request.engine(how.engine)
    engines = register.measure_engines(snapshot, request, device, engine, how.games)
    identity = engines.identity
    choice = engines.choose(engine, identity.precision, how.max_step_error)
    features = engines.embed(choice.engine, identity.precision)[0].size
    output = parse_output(request.output)
    numbers = SCREEN_NUMBERS * output.numbers if output.of_one_game else output.numbers or features
    measured = MeasuredModel(choice.shown, choice.rate, identity.window, features, numbers)
    return measured, engines.encoder(choice.engine, identity.precision)


def by_name(snapshot: Snapshot, requests: Sequence[Request]) -> dict[str, Request]:
    """Return the requests by a name for each, but only one of those for the same stored model.

    The name is short, as in `Estimate`. If several models share it, it is a model's key or, for a
    model that is not in the store, what `--models` takes.
    """
    keys = {r: spec.key for r in requests if (spec := lookup.find_model(snapshot, r))}
    different = list({keys.get(r, r): r for r in requests}.values())
    count = Counter(map(_name, different))
    return {_name(r) if count[_name(r)] == 1 else keys.get(r) or _as_typed(r): r for r in different}


def _as_typed(request: Request) -> str:
    return f"{request.alias}{':random' if request.source == 'random' else ''}@{request.output}"


def _name(request: Request) -> str:
    game = parse_output(request.output).only_game
    return f"{request.alias} of {game}" if game else request.alias


def estimate(
    snapshot: Snapshot,
    request: Request,
    games: Sequence[str],
    measured: MeasuredModel,
    parallel: int = 1,
) -> Estimate:
    """Estimate the work for one model.

    Args:
        parallel: Number of workers that run the model in parallel.
    """
    spec = lookup.find_model(snapshot, request)
    # A model that is not in the store has no embeddings yet, so any unused key will do.
    key = spec.key if spec else lookup.unregistered_key(request)
    output = parse_output(request.output)
    only = {key: output.only_game} if output.only_game else {}
    plan = make_plan(snapshot, [key], games, windows={key: measured.window}, only=only)
    fit = 0 if spec else fit_reduction.frames_needed(snapshot, output, measured.window)
    numbers = math.prod(spec.shape) if spec else measured.numbers
    return Estimate(
        name=_name(request),
        objects=len(plan.items),
        passes=plan.passes,
        copies=plan.copies,
        fit=fit,
        bytes=2 * numbers * sum(item.inputs for item in plan.items),
        engine=measured.engine,
        # One worker alone fits a basis.
        minutes=(plan.passes / parallel + fit) / measured.rate / 60,
    )


# A gray level of `palette` has 42 + 40 numbers, a class of `objects` one more.
SCREEN_NUMBERS = 83

# The allocator keeps some of the freed memory.
SPARE = 1.1

# A task holds a segment's frames as palette indices, as colors, and once more to run them.
COPIES_OF_FRAMES = 7 / 3

LARGEST_SCREEN = 250 * 160 * 3

# A fit holds the parts of the features, the joined features, and their difference from the mean.
COPIES_OF_FEATURES = 3


@dataclasses.dataclass(frozen=True)
class WorkerMeasurement:
    """Peak memory, in bytes, of a worker with all models, and the measurements of each model."""

    peak: int
    models: tuple[MeasuredModel, ...]


def measure_on_worker(
    snapshot: Snapshot, encoding: Encoding, scheduler: str = "local"
) -> WorkerMeasurement:
    """Build and measure the models on a new worker on this machine, or in this process (`inproc`).

    Raises:
        MissingError: If the weights are not found or the engine is not installed.
        UsageError: If the device lacks the precision.
        ConflictError: If the model fails, or the error of the precision is too large.
        StorageError: If the worker died.
    """
    workers, imports = int(scheduler == "local"), libraries(encoding.requests)
    connected = cluster.connect(scheduler, workers, encoding.device, imports=imports)
    with connected as (client, threads):
        try:
            asked = snapshot.backend.url, encoding, threads
            measurement: WorkerMeasurement = client.submit(_measure, *asked).result()
        except KilledWorker as error:
            aliases = ", ".join(request.alias for request in encoding.requests)
            raise worker_died(aliases, error) from None
    return measurement


def _measure(store: str, encoding: Encoding, threads: int) -> WorkerMeasurement:
    job.set_threads(threads)
    snapshot = take_snapshot(open_store(store))
    kept, models = [], []
    for request in encoding.requests:
        try:
            measured, encoder = measure_model(snapshot, request, encoding)
        except WsaError:
            raise
        except user_code.ERRORS as error:
            raise job.as_failed(request.alias, error).error from error
        kept.append(encoder)
        models.append(measured)
    return WorkerMeasurement(peak_bytes(), tuple(models))


def worker_bytes(
    snapshot: Snapshot, encoding: Encoding, found: WorkerMeasurement, fitted: Sequence[int]
) -> int:
    """Return an upper bound of one worker's memory, in bytes.

    Args:
        fitted: For each model, the number of frames or windows to fit its basis on.
    """
    segments = [m for m in snapshot.segments() if m.game in encoding.games]
    inputs = max((max(m.rows, m.frames) for m in segments), default=0)
    pixels = {(f.game, f.segment): f.height * f.width * 3 for f in snapshot.frames()}
    frames = max((m.frames * pixels.get((m.game, m.segment), 0) for m in segments), default=0)
    frame_bytes = max(pixels.values(), default=0)
    windows = max((m.window for m in found.models if m.window > 1), default=0)
    window_bytes = frame_bytes * windows * WINDOWS_AT_ONCE
    embeddings = sum(inputs * m.numbers for m in found.models)
    on_gpu = choose_device(encoding.device) == "cuda"
    at_once = TASKS_A_GPU if on_gpu else THREADS_A_WORKER
    # A row is held as float32, as float16, in the joined array, and compressed.
    tasks = at_once * (COPIES_OF_FRAMES * frames + window_bytes + 10 * embeddings)
    waiting = TASKS_A_THREAD * at_once * 4 * embeddings
    screen = max(frame_bytes, LARGEST_SCREEN)  # The probe frames have the largest screens too.
    fits = (
        count * (m.window * screen + COPIES_OF_FEATURES * 4 * m.features)
        for count, m in zip(fitted, found.models, strict=True)
    )
    return int(SPARE * (found.peak + max(tasks + waiting, max(fits, default=0))))


def peak_bytes() -> int:
    """Return the peak memory of this process in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # On Linux, `getrusage` would include the parent process.
        return 1024 * int(re.search(r"VmHWM:\s*(\d+)", status.read_text())[1])  # type: ignore[index]
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most
