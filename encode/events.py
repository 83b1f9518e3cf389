"""What happens while encoding, as plain data; progress bars, logs and JSON lines listen."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from wsa.encode.spec import ModelSpec


@dataclasses.dataclass(frozen=True)
class ModelReady:
    """A model is in the store; `fitted` strip frames went through it to fit its basis."""

    spec: ModelSpec
    fitted: int


@dataclasses.dataclass(frozen=True)
class Planned:
    """What is to be done: objects to write, frames to run, frames to copy."""

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
        passes: Frames that went through the model.
        copied: Frames whose embedding was copied.
        seconds: From start to commit, on the worker.
    """

    game: str
    segment: str
    model: str
    passes: int
    copied: int
    seconds: float


Event = ModelReady | Planned | SegmentDone
Listener = Callable[[Event], None]
