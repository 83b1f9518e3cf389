"""What a service has done and is doing, counted from the events of its encoding."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence

import msgspec

from wsa import __version__
from wsa.encode.jobs.events import AttemptFailed, Event, SegmentDone
from wsa.encode.service.heartbeat import Beat, State, Work
from wsa.store.common.errors import redact
from wsa.store.objects.writer import author

# What "lately" means.
RECENT_S = 60.0
SHOWN = 16


class Tally:
    """Counters that the encoding fills, and that the heart and the metrics read from their threads.

    Args:
        service: The service's name.
        every: Seconds between two beats.
        asked: The models, as asked for.
        games: The games; none means all.
    """

    def __init__(
        self, service: str, every: float, asked: Sequence[str], games: Sequence[str]
    ) -> None:
        self._lock = threading.Lock()
        self._since, self._began = time.time(), time.monotonic()
        self._models: dict[str, Work] = {}
        self._recent: deque[tuple[float, int]] = deque()
        self._frames = self._errors = 0
        self._state: State = "starting"
        self._trouble, self._last_commit = "", 0.0
        self._aside: tuple[str, ...] = ()
        self._fixed = (service, author(), os.getpid(), __version__, self._since, every)
        self._asked, self._games = tuple(asked), tuple(games)

    def state(self, state: State, trouble: str = "") -> None:
        """Say what the service does now; with `trouble`, what it waits for to pass, as an error."""
        with self._lock:
            self._state, self._trouble = state, redact(trouble)[:1000]
            self._errors += bool(trouble)

    def backlog(self, todo: Mapping[str, tuple[int, int]]) -> None:
        """Say how many segments, and frames of them, each model has still to encode."""
        with self._lock:
            for model, (segments, frames) in todo.items():
                self._change(model, todo=segments, todo_frames=frames)

    def aside(self, found: Mapping[str, Sequence[str]]) -> None:
        """Say what each model could not encode, each with its reason; it replaces what was said."""
        with self._lock:
            for model in {*self._models, *found}:
                self._change(model, set_aside=len(found.get(model, ())))
            every = [redact(why)[:1000] for model in sorted(found) for why in found[model]]
            self._aside = tuple(every[:SHOWN])

    def listen(self, event: Event) -> None:
        """Count what an encoding tells."""
        if isinstance(event, SegmentDone):
            with self._lock:
                before = self._models.get(event.model, Work())
                frames = event.passes + event.copied
                self._change(
                    event.model,
                    done=before.done + 1,
                    passes=before.passes + event.passes,
                    saved=before.saved + event.copied,
                    todo=max(0, before.todo - 1),
                    todo_frames=max(0, before.todo_frames - frames),
                )
                self._frames += frames
                self._recent.append((time.monotonic(), frames))
                self._last_commit = time.time()
        elif isinstance(event, AttemptFailed):
            with self._lock:
                self._errors += 1
                if event.last:
                    failed = self._models.get(event.model, Work()).failed
                    self._change(event.model, failed=failed + 1)

    def beat(self) -> Beat:
        """All of it."""
        with self._lock:
            now = time.monotonic()
            while self._recent and now - self._recent[0][0] > RECENT_S:
                self._recent.popleft()
            ran = max(now - self._began, 1e-3)
            lately = sum(frames for _, frames in self._recent) / min(ran, RECENT_S)
            service, who, pid, version, since, every = self._fixed
            return Beat(
                version=1,
                service=service,
                author=who,
                pid=pid,
                wsa=version,
                since=since,
                every=every,
                state=self._state,
                trouble=self._trouble,
                errors=self._errors,
                asked=self._asked,
                games=self._games,
                models=dict(self._models),
                frames_per_second=round(lately, 3),
                frames_per_second_overall=round(self._frames / ran, 3),
                last_commit=self._last_commit,
                set_aside=self._aside,
            )

    def _change(self, model: str, **values: int) -> None:
        self._models[model] = msgspec.structs.replace(self._models.get(model, Work()), **values)
