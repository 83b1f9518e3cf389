"""What happens while encoding, as plain data; progress bars, logs and JSON lines listen."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from wsa.encode.registration.engine_choice import EngineChoice
from wsa.store.common.errors import WsaError
from wsa.store.objects.model_spec import ModelSpec


@dataclasses.dataclass(frozen=True)
class Started:
    """Workers are there: how many, with how many threads in all, and what they run models on.

    `dashboard` is the address of Dask's own pages, empty where there are none.
    """

    workers: int
    threads: int
    device: str
    dashboard: str


@dataclasses.dataclass(frozen=True)
class ModelReady:
    """A model is in the store; `fitted` strip frames went through it to fit its basis.

    `choice` says which engine runs it, how fast and exact that was found to be, and why the others
    were left out.
    """

    spec: ModelSpec
    fitted: int
    choice: EngineChoice | None


@dataclasses.dataclass(frozen=True)
class Planned:
    """What is to be done: objects to write, frames or windows of frames to run, and to copy."""

    objects: int
    passes: int
    copies: int


@dataclasses.dataclass(frozen=True)
class SegmentDone:
    """One segment has been embedded by one model.

    Attributes:
        game: ALE game id.
        segment: The segment's id.
        model: The model key.
        inputs: Its frames, or windows of frames.
        passes: Frames, or windows, that went through the model; none if another run was quicker.
        copied: Those whose embedding was copied.
        seconds: From start to commit, on the worker.
        reading: Of these, seconds to read and decode the frames, shared among a segment's models.
        running: To preprocess them and run the model.
        writing: To copy rows, compress and commit.
        worker: Address of the worker that committed.
        attempts: How often it was tried, this time included.
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
        segment: The segment's id.
        model: The model key.
        attempts: How often it was tried, this time included.
        last: Whether it is set aside now; else it is tried again.
        error: Why.
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
    """A worker cannot open a model, and gets no more segments; `error` says why and where it is."""

    worker: str
    host: str
    error: WsaError


Event = Started | ModelReady | Planned | SegmentDone | AttemptFailed | WorkerUnfit
Listener = Callable[[Event], None]
