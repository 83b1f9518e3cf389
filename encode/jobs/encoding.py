"""What an encoding does: its models, its games, and how the models run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from wsa.encode.models.registry import Request, for_games
from wsa.store.objects.probe import MAX_STEP_ERROR

TRIES = 3


@dataclasses.dataclass(frozen=True)
class Encoding:
    """What to encode, and how.

    Attributes:
        requests: Models to run.
        games: Games to encode; all games of the store if empty.
        device: `cpu`, `cuda`, or `auto`, which is the GPU if a worker offers one.
        engine: Inference engine; `auto` is the fastest accurate one.
        max_step_error: Largest step-relative error of a reduced precision.
        tries: Number of attempts before a segment is skipped.
    """

    requests: Sequence[Request]
    games: Sequence[str] = ()
    device: str = "auto"
    engine: str = "auto"
    max_step_error: float = MAX_STEP_ERROR
    tries: int = TRIES

    def of(self, games: Sequence[str], requests: Sequence[Request] | None = None) -> Encoding:
        """Return the same for these games, with a request per game for models fitted on one."""
        requests = for_games(self.requests if requests is None else requests, games)
        return dataclasses.replace(self, requests=requests, games=games)
