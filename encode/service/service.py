"""Keep a shared store encoded: look for what is new, claim it, have it encoded, and look again.

A service ends when it is told to, or when it finds at its start that it cannot work as it was asked
to. Whatever goes wrong later is waited for: the place, the workers, a damaged record. What fails
every attempt is set aside, named, and tried again after an hour.
"""

from __future__ import annotations

import contextlib
import logging
import random
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from typing import NoReturn

from distributed import Client

from wsa.encode.jobs.events import AttemptFailed, Event, Listener, ModelReady
from wsa.encode.jobs.plan import Digests, Item, Name, Plan, make_plan
from wsa.encode.jobs.run import register_all, setting_of
from wsa.encode.jobs.scheduler import TRIES, Driver
from wsa.encode.jobs.workers import Workers
from wsa.encode.models.registry import Request
from wsa.encode.registration.register import Registered
from wsa.encode.service import heartbeat, prometheus
from wsa.encode.service.claims import Claims, Lane
from wsa.encode.service.counters import Tally
from wsa.encode.service.heartbeat import Heart, State
from wsa.store.backends.base import Backend
from wsa.store.backends.open import open_backend
from wsa.store.common import terminal
from wsa.store.common.errors import ConflictError, DamagedError, StorageError, WsaError
from wsa.store.objects.probe import MAX_STEP_ERROR
from wsa.store.objects.root import is_free, open_store
from wsa.store.objects.snapshot import Snapshot, take_snapshot

# For about so long a batch keeps its claims, and nobody looks for what is new.
BATCH_S = 120.0
RETRY_SET_ASIDE_S = 3600.0
LONGEST_PAUSE_S = 60.0


Connect = Callable[[], AbstractContextManager[tuple[Client, int]]]


class Service:
    """Encodes what comes into a store until it is told to end, by Ctrl-C or SIGTERM.

    Args:
        backend: The store, which need not be there yet.
        snapshot: The store, as it is.
        requests: Models.
        games: Games; all that the store will have where empty.
        asked: The models as the user named them, for `wsa status`.
        connect: Connects to workers, as `wsa.encode.jobs.cluster.connect` does.
        device: Where models run: `cpu`, `cuda` or `auto`.
        engine: What runs models; `auto` is the fastest that is right.
        max_step_error: Largest step-relative error of a reduced precision.
        tries: How often a segment is tried before it is set aside.
        poll_s: Seconds between two looks at the store while there is nothing to do.
        heartbeat_s: Seconds between two heartbeats.
        metrics: Address and port to serve Prometheus on.
        listen: Called with every event.
    """

    def __init__(
        self,
        backend: Backend,
        snapshot: Snapshot,
        requests: Sequence[Request],
        games: Sequence[str] = (),
        *,
        asked: Sequence[str],
        connect: Connect,
        device: str = "auto",
        engine: str = "auto",
        max_step_error: float = MAX_STEP_ERROR,
        tries: int = TRIES,
        poll_s: float = 30.0,
        heartbeat_s: float = 15.0,
        metrics: tuple[str, int] | None = None,
        listen: Listener = lambda event: None,
    ) -> None:
        self._backend, self._snapshot = backend, snapshot
        self._requests, self._games = requests, tuple(games)
        self._connect, self._device = connect, device
        self._engine, self._max_step_error, self._tries = engine, max_step_error, tries
        self._poll_s, self._metrics, self._listener = poll_s, metrics, listen
        name = heartbeat.new_service()
        self.tally = Tally(name, heartbeat_s, asked, self._games)
        self.claims = Claims(backend, name, heartbeat.LOST_AFTER * heartbeat_s)
        self._registered: dict[str, Registered] = {}
        self._digests: Digests = {}
        self._aside: dict[Name, tuple[float, AttemptFailed]] = {}
        self._measured: set[str] = set()
        self._refused: dict[str, ConflictError] = {}
        self._pause = 1.0
        self._said = ""

    def run(self) -> NoReturn:
        """Serve, with heartbeats from the time that the store is there.

        Raises:
            WsaError: At the start: no weights, a drifted model, no workers, a port that is taken.
            KeyboardInterrupt: It was told to end.
        """
        with contextlib.ExitStack() as stack:
            if self._metrics is not None:
                served = prometheus.serve(*self._metrics, self.tally.beat)
                terminal.say(f"metrics at {stack.enter_context(served)}")
            self._await_store()
            heart = Heart(open_backend(self._backend.url), self.tally.beat, self.claims.release)
            stack.enter_context(heart)
            self._work()

    def _await_store(self) -> None:
        """Wait until somebody starts the store. Nothing is written before: the place must be empty."""
        while True:
            try:
                if is_free(self._backend):
                    why = f"there is no store at {self._backend.url} yet"
                    self._say(f"waiting: {why}", always=False)
                    time.sleep(self._poll_s)
                else:
                    open_store(self._backend.url)
                    return
            except StorageError as error:
                self._suffer("storage-down", error)

    def _work(self) -> NoReturn:
        """Connect to workers, and again whenever they are lost, and serve."""
        # Where a connection was lost, tasks of Dask speak of it long after.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        while True:
            try:
                with self._connect() as (client, threads):
                    self._serve(Workers(client, self._device, self._listen, threads))
            except Exception as error:  # Dask's own too: of many kinds, and none lasts.
                if not self._registered:
                    raise
                # The workers are looked at anew: those that could not open a model may be mended.
                own = isinstance(error, WsaError) and not isinstance(error, StorageError)
                self._suffer("trouble" if own else "no-workers", error)

    def _serve(self, workers: Workers) -> NoReturn:
        while True:
            try:
                worked = self._round(workers)
            except (StorageError, DamagedError) as error:
                if not self._registered or workers.client.status != "running":
                    raise
                down = error.kind in ("unavailable", "no-space")
                self._suffer("storage-down" if down else "trouble", error)
                continue
            self._pause = 1.0
            if not worked:
                time.sleep(self._poll_s)

    def _round(self, workers: Workers) -> bool:
        """Look at the store and encode a batch of what it lacks; whether there was any."""
        self._snapshot = take_snapshot(self._backend, self._snapshot)
        if not self._registered or not self._registered.keys() <= set(self._snapshot.models):
            self._register(workers)
        self._measure(workers)
        todo = self._todo()
        if not todo:
            aside = [f"{len(self._aside)} objects"] * bool(self._aside) + sorted(self._refused)
            but = f" but {', '.join(aside)}, set aside" if aside else ""
            self._set("waiting", f"everything is encoded{but}")
            return False
        lanes = self.claims.take(list(todo))
        if not lanes:
            self._set("waiting", "other services encode what is left")
            return False
        try:
            self._encode(lanes, workers)
        except Exception:
            with contextlib.suppress(WsaError):
                self.claims.release()
            raise
        self.claims.release()
        return True

    def _register(self, workers: Workers) -> None:
        games = self._there() - self._refused.keys()
        found = self._ask(workers, self._requests, games)
        self._registered = {one.spec.key: one for one in found}
        self._measured |= games
        self._snapshot = take_snapshot(self._backend, self._snapshot)

    def _measure(self, workers: Workers) -> None:
        """Measure reduced precisions on games that came later; those they err on are left out."""
        reduced = [request for request in self._requests if request.precision != "fp32"]
        for game in sorted(self._there() - self._measured):
            try:
                if reduced:
                    self._ask(workers, reduced, [game])
            except ConflictError as error:
                if error.kind != "step-error":
                    raise
                self._refused[game] = error
                self._say(f"set aside: {game}, until the service is started anew: {error}")
            self._measured.add(game)

    def _there(self) -> set[str]:
        """The games asked for that have come."""
        return set(self._games or self._snapshot.games) & set(self._snapshot.games)

    def _ask(
        self, workers: Workers, requests: Sequence[Request], games: Collection[str]
    ) -> list[Registered]:
        return register_all(
            workers,
            self._backend.url,
            requests,
            sorted(games),
            self._engine,
            self._max_step_error,
        )

    def _todo(self) -> dict[Lane, int]:
        """Lanes with something to encode, and how many segments; says what each model lacks."""
        here = {(m.game, m.segment) for m in self._snapshot.frames()}
        wanted = [
            m
            for m in self._snapshot.segments()
            if (m.game, m.segment) in here
            and (not self._games or m.game in self._games)
            and m.game not in self._refused
        ]
        without = self._without()
        todo: dict[Lane, int] = {}
        backlog: dict[str, tuple[int, int]] = dict.fromkeys(self._registered, (0, 0))
        for key in self._registered:
            done = {(e.game, e.segment) for e in self._snapshot.embeddings(model=key)}
            window = self._window(key)
            for m in wanted:
                if (m.game, m.segment) not in done and (key, m.game, m.segment) not in without:
                    todo[m.game, key] = todo.get((m.game, key), 0) + 1
                    segments, frames = backlog[key]
                    backlog[key] = segments + 1, frames + m.inputs(window)
        self.tally.backlog(backlog)
        return dict(sorted(todo.items()))

    def _without(self) -> set[Name]:
        """Objects that are set aside for now, and those whose frames are elsewhere."""
        now = time.monotonic()
        self._aside = {name: it for name, it in self._aside.items() if it[0] > now}
        aside = defaultdict(list)
        for (model, *segment), (_, failed) in self._aside.items():
            aside[model].append(f"{' '.join(segment)}: {failed.error}")
        for game, error in self._refused.items():
            for model in self._registered:
                aside[model].append(f"{game}: {error}")
        self.tally.aside(aside)
        here = {(m.game, m.segment) for m in self._snapshot.frames()}
        away = {(m.game, m.segment) for m in self._snapshot.segments()} - here
        return self._aside.keys() | {(key, *of) for key in self._registered for of in away}

    def _encode(self, lanes: Sequence[Lane], workers: Workers) -> None:
        # Once more: what another has committed until it gave a claim back is seen only now.
        self._snapshot = take_snapshot(self._backend, self._snapshot)
        plan = self._plan(lanes, least=workers.room())
        if not plan.items:
            return
        about = ", ".join(plan.games)
        self._set("encoding", f"{len(plan.items)} objects of {about}", always=True)
        setting = setting_of(workers, self._backend.url, self._registered.values())
        driver = Driver(workers, setting, self._tries)
        try:
            # What would have copied from what was set aside is left for the next round.
            driver.drive(plan.by_segment())
        finally:  # Where one after the other fails, the next round shall go on behind them.
            retry = time.monotonic() + RETRY_SET_ASIDE_S
            aside = [failed for failed in driver.failures if failed.last]
            for failed in aside:
                self._aside[failed.model, failed.game, failed.segment] = retry, failed
        made, saved = sum(d.passes for d in driver.done), sum(d.copied for d in driver.done)
        self._say(
            f"encoded {len(driver.done)} objects of {about}: {made} passes made, {saved} saved"
            + (f", {len(aside)} objects set aside" if aside else "")
        )

    def _plan(self, lanes: Sequence[Lane], least: int) -> Plan:
        """What to do of the lanes in about `BATCH_S`, but at least `least` segments of each model."""
        without = self._without()
        told = self.tally.beat()
        rate = max(told.frames_per_second, told.frames_per_second_overall)
        models = sorted({key for _, key in lanes})
        items: list[Item] = []
        for model in models:
            games = [game for game, key in lanes if key == model]
            windows = {model: self._window(model)}
            whole = make_plan(self._snapshot, [model], games, without, windows, self._digests).items
            frames = BATCH_S * rate / len(models)
            for number, item in enumerate(whole):  # Copies only look back, so any cut will do.
                if number >= least and frames <= 0:
                    break
                frames -= item.inputs
                items.append(item)
        return Plan(tuple(items), 0, tuple(sorted({game for game, _ in lanes})))

    def _window(self, model: str) -> int:
        return self._registered[model].spec.identity.window

    def _listen(self, event: Event) -> None:
        self.tally.listen(event)
        self._listener(event)
        if isinstance(event, ModelReady):
            self._say(f"{event.spec.key} is ready, run by {event.choice}")
        elif isinstance(event, AttemptFailed):
            if event.error.kind == "unavailable":
                open_store(self._backend.url)  # Raises, if not one file but the place is away.
            if event.last:
                where = f"{event.game} {event.segment} by {event.model}"
                self._say(f"set aside: {where}, after {event.attempts} attempts: {event.error}")

    def _suffer(self, state: State, error: Exception) -> None:
        """Say what is wrong, and wait: each time longer, and never as long as others do."""
        why = str(error) if isinstance(error, WsaError) else f"{type(error).__name__}: {error}"
        pause = random.uniform(0.5, 1) * self._pause
        self._pause = min(2 * self._pause, LONGEST_PAUSE_S)
        self.tally.state(state, why)
        self._say(f"{state}: {why} Trying again in {pause:.0f} s.")
        time.sleep(pause)

    def _set(self, state: State, why: str, always: bool = False) -> None:
        self.tally.state(state)
        self._say(f"{state}: {why}", always)

    def _say(self, text: str, always: bool = True) -> None:
        """A line for the log, but not the same again and again."""
        if always or text != self._said:
            terminal.say(text)
        self._said = text
