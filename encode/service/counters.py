"""Count the work of a service from the events of its encoding."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from wsa.encode.jobs.events import AttemptFailed, Event, SegmentDone
from wsa.encode.service.heartbeat import Heartbeat, ModelCounters, State
from wsa.store.common.errors import redact
from wsa.store.common.version import __version__
from wsa.store.objects.writer import author

# Period of the recent rate.
RECENT_S = 60.0
SHOWN = 16


class Counters:
    """The content of the next heartbeat, which the encoding updates and other threads read.

    Args:
        every: Seconds between two heartbeats.
        games: Games; all if empty.
    """

    def __init__(
        self, service: str, every: float, asked: Sequence[str], games: Sequence[str]
    ) -> None:
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self._recent: deque[tuple[float, int]] = deque()
        self._frames = 0
        self._now = Heartbeat(
            version=1,
            service=service,
            author=author(),
            pid=os.getpid(),
            wsa=__version__,
            since=time.time(),
            every=every,
            state="starting",
            trouble="",
            errors=0,
            asked=tuple(asked),
            games=tuple(games),
            models={},
            frames_per_second=0.0,
            frames_per_second_overall=0.0,
            last_commit=0.0,
            set_aside=(),
        )

    def set_state(self, state: State, trouble: str = "") -> None:
        """Set the state, and count an error if there is `trouble` that the service waits out."""
        with self._lock:
            errors = self._now.errors + bool(trouble)
            self._set(state=state, trouble=redact(trouble)[:1000], errors=errors)

    def set_workers(self, count: int) -> None:
        """Say how many workers encode."""
        with self._lock:
            self._set(workers=count)

    def set_backlog(self, todo: Mapping[str, tuple[int, int]]) -> None:
        """Set the numbers of segments and of their frames that each model has yet to encode."""
        with self._lock:
            for model, (segments, frames) in todo.items():
                self._set_model(model, todo=segments, todo_frames=frames)

    def set_skipped(self, found: Mapping[str, Sequence[str]]) -> None:
        """Replace the list of what each model could not encode, with reasons."""
        with self._lock:
            for model in {*self._now.models, *found}:
                self._set_model(model, set_aside=len(found.get(model, ())))
            reasons = [redact(why)[:1000] for model in sorted(found) for why in found[model]]
            self._set(set_aside=tuple(reasons[:SHOWN]))

    def listen(self, event: Event) -> None:
        """Count an event."""
        if isinstance(event, SegmentDone):
            with self._lock:
                before = self._of(event.model)
                frames = event.passes + event.copied
                self._set_model(
                    event.model,
                    done=before.done + 1,
                    passes=before.passes + event.passes,
                    saved=before.saved + event.copied,
                    todo=max(0, before.todo - 1),
                    todo_frames=max(0, before.todo_frames - frames),
                )
                self._frames += frames
                self._recent.append((time.monotonic(), frames))
                self._set(last_commit=time.time())
        elif isinstance(event, AttemptFailed):
            with self._lock:
                self._set(errors=self._now.errors + 1)
                if event.last:
                    self._set_model(event.model, failed=self._of(event.model).failed + 1)

    def heartbeat(self) -> Heartbeat:
        """Return the current heartbeat, with updated rates."""
        with self._lock:
            now = time.monotonic()
            while self._recent and now - self._recent[0][0] > RECENT_S:
                self._recent.popleft()
            ran = max(now - self._began, 1e-3)
            recent_rate = sum(frames for _, frames in self._recent) / min(ran, RECENT_S)
            self._set(
                frames_per_second=round(recent_rate, 3),
                frames_per_second_overall=round(self._frames / ran, 3),
            )
            return self._now

    def _of(self, model: str) -> ModelCounters:
        return self._now.models.get(model, ModelCounters())

    def _set_model(self, model: str, **values: int) -> None:
        counted = msgspec.structs.replace(self._of(model), **values)
        self._set(models={**self._now.models, model: counted})

    def _set(self, **values: Any) -> None:
        self._now = msgspec.structs.replace(self._now, **values)
