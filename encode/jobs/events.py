"""Events of an encoding, as plain data for progress bars, logs and JSON lines."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from wsa.encode.registration.engine_choice import EngineChoice
from wsa.store.common.errors import WsaError
from wsa.store.objects.model_spec import ModelSpec


@dataclasses.dataclass(frozen=True)
class Started:
    """The workers are ready.

    Attributes:
        workers: Number of workers.
        threads: Number of threads of all workers.
        device: Device on which they run models.
        dashboard: Address of Dask's dashboard; empty if there is none.
    """

    workers: int
    threads: int
    device: str
    dashboard: str


@dataclasses.dataclass(frozen=True)
class ModelReady:
    """A model is in the store.

    Attributes:
        spec: Spec of the model.
        fitted: Number of frames that went through it to fit its basis.
        choice: Engine that runs it, with its measured speed and error, and why not the others.
    """

    spec: ModelSpec
    fitted: int
    choice: EngineChoice | None


@dataclasses.dataclass(frozen=True)
class Planned:
    """Numbers of objects to write, of frames or windows to run, and of those to copy."""

    objects: int
    passes: int
    copies: int


@dataclasses.dataclass(frozen=True)
class SegmentDone:
    """One segment has been embedded by one model.

    Attributes:
        game: ALE game id.
        segment: Id of the segment.
        model: Model key.
        inputs: Number of its frames, or windows of frames.
        passes: Number of inputs that went through the model; 0 if another run committed first.
        copied: Number of inputs whose embedding was copied.
        seconds: Seconds from start to commit, on the worker.
        reading: Seconds of these to read and decode the frames, divided among a segment's models.
        running: Seconds to preprocess them and run the model.
        writing: Seconds to copy rows, compress and commit.
        worker: Address of the worker that committed.
        attempts: Number of attempts, with this one.
    """

    game: str
    segment: str
    model: str
    inputs: int
    passes: int
    copied: int
    seconds: float
    reading: float = 0.0
    running: float = 0.0
    writing: float = 0.0
    worker: str = ""
    attempts: int = 1


@dataclasses.dataclass(frozen=True)
class AttemptFailed:
    """An attempt at one segment by one model failed.

    Attributes:
        game: ALE game id.
        segment: Id of the segment.
        model: Model key.
        attempts: Number of attempts, with this one.
        last: Whether the object is skipped from now on; otherwise there is another attempt.
        error: Reason.
        worker: Address of the worker.
    """

    game: str
    segment: str
    model: str
    attempts: int
    last: bool
    error: WsaError
    worker: str


@dataclasses.dataclass(frozen=True)
class WorkerUnfit:
    """A worker cannot open a model and gets no more segments; `error` says why."""

    worker: str
    host: str
    error: WsaError


Event = Started | ModelReady | Planned | SegmentDone | AttemptFailed | WorkerUnfit
Listener = Callable[[Event], None]
