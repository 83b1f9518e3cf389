"""What an encoding takes of a worker's memory, for `wsa encode --dry-run`: an upper bound.

A worker is started as an encoding starts them, builds every model, and measures its engines: that
is its libraries, weights and activations, measured. What its tasks hold beside that is counted:
the frames of the largest segment in each thread, embeddings on their way, and, for a model that is
not in the store yet, the features that its basis is fitted on.
"""

from __future__ import annotations

import dataclasses
import math
import re
import resource
import sys
from collections.abc import Sequence
from pathlib import Path

from distributed import KilledWorker

from wsa.encode.inference.encoder import Encoder, choose_device
from wsa.encode.inference.segment_inputs import WINDOWS_AT_ONCE
from wsa.encode.jobs import cluster
from wsa.encode.jobs import tasks as job
from wsa.encode.jobs.plan import make_plan
from wsa.encode.jobs.scheduler import worker_died
from wsa.encode.jobs.workers import TASKS_A_GPU, TASKS_A_THREAD, THREADS_A_WORKER
from wsa.encode.models.registry import Request
from wsa.encode.registration import fit_reduction, register
from wsa.encode.registration import identity as lookup
from wsa.store.common.errors import WsaError
from wsa.store.objects.model_spec import parse_output
from wsa.store.objects.probe import MAX_STEP_ERROR
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import Snapshot, take_snapshot


@dataclasses.dataclass(frozen=True)
class MeasuredModel:
    """One model as it was found where it would run.

    Attributes:
        engine: What would run it.
        rate: Frames a second of that.
        window: Consecutive frames that it looks at.
        features: Numbers of one input before any reduction.
        numbers: Numbers of an embedding.
    """

    engine: str
    rate: float
    window: int
    features: int
    numbers: int


@dataclasses.dataclass(frozen=True)
class Estimate:
    """One model's share of the work.

    Attributes:
        name: The model's alias, and its game where it embeds that alone.
        objects: Embedding objects to write.
        passes: Frames, or windows of frames, to run through the model.
        copies: Those whose embedding is copied.
        strip: Frames of the strip, or of a game, to run to fit the model's basis.
        bytes: Size of the embeddings before compression, which saves about a third.
        engine: What would run it.
        minutes: Time, from that engine's rate measured just now.
    """

    name: str
    objects: int
    passes: int
    copies: int
    strip: int
    bytes: int
    engine: str
    minutes: float


def measure_model(
    snapshot: Snapshot,
    request: Request,
    games: Sequence[str],
    device: str,
    engine: str = "auto",
    max_step_error: float = MAX_STEP_ERROR,
) -> tuple[MeasuredModel, Encoder]:
    """Build a model and measure its engines, as when it is registered; nothing is written.

    Raises:
        MissingError: No weights, or an engine that is not installed.
        UsageError: A precision that is not to be had there.
        ConflictError: A model that fails, or a precision that errs too much.
    """
    engine = request.engine(engine)
    found, _, identity = register.measure_engines(snapshot, request, device, engine, games)
    choice = found.choose(engine, identity.precision, max_step_error)
    features = found.embed(choice.engine, identity.precision)[0].size
    output = parse_output(request.output)
    numbers = SCREEN_NUMBERS * output.numbers if output.of_one_game else output.numbers or features
    measured = MeasuredModel(choice.engine, choice.rate, identity.window, features, numbers)
    return measured, found.encoder(choice.engine, identity.precision)


def estimate(
    snapshot: Snapshot,
    request: Request,
    games: Sequence[str],
    measured: MeasuredModel,
    parallel: int = 1,
) -> Estimate:
    """Plan one model.

    Args:
        snapshot: The store.
        request: The model.
        games: Games.
        measured: The model, from `measure_model`.
        parallel: Workers that run it side by side.
    """
    spec = lookup.find_model(snapshot, request)
    # Of a model that is not in the store, nothing has been encoded under whatever key it will get.
    key = spec.key if spec else lookup.unregistered_key(request)
    output = parse_output(request.output)
    only = {key: output.only_game} if output.only_game else {}
    plan = make_plan(snapshot, [key], games, windows={key: measured.window}, only=only)
    fit = 0 if spec else fit_reduction.frames_needed(snapshot, output, measured.window)
    numbers = math.prod(spec.shape) if spec else measured.numbers
    return Estimate(
        name=f"{request.alias} of {output.only_game}" if output.only_game else request.alias,
        objects=len(plan.items),
        passes=plan.passes,
        copies=plan.copies,
        strip=fit,
        bytes=2 * numbers * sum(item.inputs for item in plan.items),
        engine=measured.engine,
        # A basis is fitted by one worker alone.
        minutes=(plan.passes / parallel + fit) / measured.rate / 60,
    )


# Of `palette` a grey level has 42 + 40 numbers, of `objects` a class one more.
SCREEN_NUMBERS = 83

# An allocator keeps some of what it got back.
SPARE = 1.1

# Of a segment a task holds its frames as palette indices and as colours, and those it runs.
COPIES_OF_FRAMES = 7 / 3

LARGEST_SCREEN = 250 * 160 * 3

# A basis is fitted on the features, made of parts that are joined, and on their differences.
COPIES_OF_FEATURES = 3


@dataclasses.dataclass(frozen=True)
class WorkerMeasurement:
    """All models in one worker: its most bytes, and each model."""

    peak: int
    models: tuple[MeasuredModel, ...]


def measure_on_worker(
    snapshot: Snapshot,
    requests: Sequence[Request],
    games: Sequence[str],
    device: str,
    engine: str,
    max_step_error: float = MAX_STEP_ERROR,
    scheduler: str = "local",
) -> WorkerMeasurement:
    """Start a worker here, and let it build and measure the models; with `inproc` this process is it.

    Raises:
        MissingError: No weights, or an engine that is not installed.
        UsageError: A precision that is not to be had here.
        ConflictError: A model that fails, or a precision that errs too much.
        StorageError: The worker died of it.
    """
    asked = snapshot.backend.url, tuple(requests), tuple(games), device, engine, max_step_error
    with cluster.connect(scheduler, int(scheduler == "local"), device) as (client, threads):
        try:
            found: WorkerMeasurement = client.submit(_measure, *asked, threads).result()
        except KilledWorker as error:
            raise worker_died(", ".join(request.alias for request in requests), error) from None
    return found


def _measure(
    store: str,
    requests: Sequence[Request],
    games: Sequence[str],
    device: str,
    engine: str,
    max_step_error: float,
    threads: int,
) -> WorkerMeasurement:
    job.set_threads(threads)
    snapshot = take_snapshot(open_store(store))
    kept, models = [], []
    for request in requests:
        try:
            measured, encoder = measure_model(
                snapshot, request, games, choose_device(device), engine, max_step_error
            )
        except WsaError:
            raise
        except Exception as error:
            raise job.as_failed(request.alias, error).error from error
        kept.append(encoder)
        models.append(measured)
    return WorkerMeasurement(peak_bytes(), tuple(models))


def worker_bytes(
    snapshot: Snapshot,
    games: Sequence[str],
    device: str,
    found: WorkerMeasurement,
    fitted: Sequence[int],
) -> int:
    """The most memory that one worker takes, in bytes.

    Args:
        snapshot: The store.
        games: Games.
        device: `cpu`, `cuda` or `auto`.
        found: The models, from `measure_on_worker`.
        fitted: Frames, or windows, on which each one's basis has still to be fitted.
    """
    segments = [m for m in snapshot.segments() if m.game in games]
    inputs = max((max(m.rows, m.frames) for m in segments), default=0)
    pixels = {(f.game, f.segment): f.height * f.width * 3 for f in snapshot.frames()}
    frames = max((m.frames * pixels.get((m.game, m.segment), 0) for m in segments), default=0)
    frame_bytes = max(pixels.values(), default=0)
    windows = max((m.window for m in found.models if m.window > 1), default=0)
    window_bytes = frame_bytes * windows * WINDOWS_AT_ONCE
    embeddings = sum(inputs * m.numbers for m in found.models)
    on_gpu = choose_device(device) == "cuda"
    at_once = TASKS_A_GPU if on_gpu else THREADS_A_WORKER
    # A row is float32 where it is made, then half, then joined, then compressed.
    tasks = at_once * (COPIES_OF_FRAMES * frames + window_bytes + 10 * embeddings)
    waiting = TASKS_A_THREAD * at_once * 4 * embeddings
    screen = max(frame_bytes, LARGEST_SCREEN)  # The strip has all games.
    fit = max(
        count * (m.window * screen + COPIES_OF_FEATURES * 4 * m.features)
        for count, m in zip(fitted, found.models, strict=True)
    )
    return int(SPARE * (found.peak + max(tasks + waiting, fit)))


def peak_bytes() -> int:
    """The most memory that this process has had."""
    status = Path("/proc/self/status")
    if status.exists():  # What `getrusage` says there includes the process that started this one.
        return 1024 * int(re.search(r"VmHWM:\s*(\d+)", status.read_text())[1])  # type: ignore[index]
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most
