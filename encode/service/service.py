"""Keep a shared store encoded: look for what is new, claim it, have it encoded, and look again.

A service ends when you stop it, or when it finds at its start that it cannot work as asked. It
waits for whatever goes wrong later: the store, the workers, a damaged record. A segment that fails
every attempt is skipped, reported, and tried again after an hour.
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
from wsa.encode.jobs.run import register_all, task_settings
from wsa.encode.jobs.scheduler import TRIES, Driver
from wsa.encode.jobs.workers import Workers
from wsa.encode.models.registry import Request, for_games
from wsa.encode.registration.register import Registered
from wsa.encode.service import heartbeat, prometheus
from wsa.encode.service.claims import Claims, Pair
from wsa.encode.service.counters import Counters
from wsa.encode.service.heartbeat import HeartbeatThread, State
from wsa.store.backends.base import Backend
from wsa.store.backends.open import open_backend
from wsa.store.common import terminal
from wsa.store.common.errors import ConflictError, DamagedError, StorageError, WsaError
from wsa.store.objects.probe import MAX_STEP_ERROR
from wsa.store.objects.root import is_free, open_store
from wsa.store.objects.snapshot import Snapshot, take_snapshot

# For about so long a batch keeps its claims, and does not look for new work.
BATCH_S = 120.0
RETRY_SKIPPED_S = 3600.0
LONGEST_PAUSE_S = 60.0


Connect = Callable[[], AbstractContextManager[tuple[Client, int]]]


class Service:
    """Encodes what comes into a store until Ctrl-C or SIGTERM stops it.

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
        self.counters = Counters(name, heartbeat_s, asked, self._games)
        self.claims = Claims(backend, name, heartbeat.MISSED_HEARTBEATS * heartbeat_s)
        self._registered: dict[str, Registered] = {}
        self._digests: Digests = {}
        self._skipped: dict[Name, tuple[float, AttemptFailed]] = {}
        self._checked_games: set[str] = set()
        self._registered_games: set[str] = set()
        self._rejected_games: dict[str, ConflictError] = {}
        self._retry_s = 1.0
        self._last_log = ""

    def run(self) -> NoReturn:
        """Serve, with heartbeats from the time that the store is there.

        Raises:
            WsaError: At the start: no weights, a drifted model, no workers, a port that is taken.
            KeyboardInterrupt: It was told to end.
        """
        with contextlib.ExitStack() as stack:
            if self._metrics is not None:
                served = prometheus.serve(*self._metrics, self.counters.heartbeat)
                terminal.say(f"metrics at {stack.enter_context(served)}")
            self._await_store()
            heartbeats = HeartbeatThread(
                open_backend(self._backend.url), self.counters.heartbeat, self.claims.release
            )
            stack.enter_context(heartbeats)
            self._work()

    def _await_store(self) -> None:
        """Wait until somebody starts the store. Nothing is written before: the place must be empty."""
        while True:
            try:
                if is_free(self._backend):
                    why = f"there is no store at {self._backend.url} yet"
                    self._log(f"waiting: {why}", always=False)
                    time.sleep(self._poll_s)
                else:
                    open_store(self._backend.url)
                    return
            except StorageError as error:
                self._back_off("storage-down", error)

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
                # Look at the workers again: those that could not open a model may be fixed.
                own = isinstance(error, WsaError) and not isinstance(error, StorageError)
                self._back_off("trouble" if own else "no-workers", error)

    def _serve(self, workers: Workers) -> NoReturn:
        while True:
            try:
                worked = self._round(workers)
            except (StorageError, DamagedError) as error:
                if not self._registered or workers.client.status != "running":
                    raise
                down = error.kind in ("unavailable", "no-space", "no-permission")
                self._back_off("storage-down" if down else "trouble", error)
                continue
            self._retry_s = 1.0
            if not worked:
                time.sleep(self._poll_s)

    def _round(self, workers: Workers) -> bool:
        """Look at the store and encode a batch of what it lacks; whether there was any."""
        self._snapshot = take_snapshot(self._backend, self._snapshot)
        lost = not self._registered.keys() <= set(self._snapshot.models)
        if not self._registered or lost or self._lacks_fitted_models():
            self._register(workers)
        self._check_precision(workers)
        todo = self._pending_pairs()
        if not todo:
            skipped = sorted(self._rejected_games)
            if self._skipped:
                skipped.insert(0, f"{len(self._skipped)} objects")
            but = f" but {', '.join(skipped)}, set aside" if skipped else ""
            self._set_state("waiting", f"everything is encoded{but}")
            return False
        pairs = self.claims.take(todo)
        if not pairs:
            self._set_state("waiting", "other services encode what is left")
            return False
        try:
            self._encode(pairs, workers)
        except Exception:
            with contextlib.suppress(WsaError):
                self.claims.release()
            raise
        self.claims.release()
        return True

    def _lacks_fitted_models(self) -> bool:
        """Whether a game has come for which a model that is of one game has to be registered."""
        games = self._present_games() - self._rejected_games.keys() - self._registered_games
        return any(for_games(self._requests, [game]) != self._requests for game in games)

    def _register(self, workers: Workers) -> None:
        games = self._present_games() - self._rejected_games.keys()
        found = self._register_models(workers, self._requests, games)
        self._registered = {one.spec.key: one for one in found}
        self._checked_games |= games
        self._registered_games |= games
        self._snapshot = take_snapshot(self._backend, self._snapshot)

    def _check_precision(self, workers: Workers) -> None:
        """Measure reduced precisions on games that came later; those they err on are left out."""
        reduced = [request for request in self._requests if request.precision != "fp32"]
        for game in sorted(self._present_games() - self._checked_games):
            try:
                if reduced:
                    self._register_models(workers, reduced, [game])
            except ConflictError as error:
                if error.kind != "step-error":
                    raise
                self._rejected_games[game] = error
                self._log(f"set aside: {game}, until the service is restarted: {error}")
            self._checked_games.add(game)

    def _present_games(self) -> set[str]:
        """The games asked for that have come."""
        return set(self._games or self._snapshot.games) & set(self._snapshot.games)

    def _register_models(
        self, workers: Workers, requests: Sequence[Request], games: Collection[str]
    ) -> list[Registered]:
        return register_all(
            workers,
            self._backend.url,
            for_games(requests, sorted(games)),
            sorted(games),
            self._engine,
            self._max_step_error,
        )

    def _pending_pairs(self) -> list[Pair]:
        """Pairs of a game and a model with something to encode; counts what each model lacks."""
        here = {(m.game, m.segment) for m in self._snapshot.frames()}
        wanted = [
            m
            for m in self._snapshot.segments()
            if (m.game, m.segment) in here
            and (not self._games or m.game in self._games)
            and m.game not in self._rejected_games
        ]
        without = self._excluded()
        todo: set[Pair] = set()
        backlog: dict[str, tuple[int, int]] = dict.fromkeys(self._registered, (0, 0))
        for key in self._registered:
            done = {(e.game, e.segment) for e in self._snapshot.embeddings(model=key)}
            window = self._window(key)
            only = self._registered[key].spec.game
            for m in wanted:
                if only not in ("", m.game):
                    continue
                if (m.game, m.segment) not in done and (key, m.game, m.segment) not in without:
                    todo.add((m.game, key))
                    segments, frames = backlog[key]
                    backlog[key] = segments + 1, frames + m.inputs(window)
        self.counters.set_backlog(backlog)
        return sorted(todo)

    def _excluded(self) -> set[Name]:
        """Objects that are set aside for now, and those whose frames are elsewhere."""
        now = time.monotonic()
        self._skipped = {name: it for name, it in self._skipped.items() if it[0] > now}
        skipped = defaultdict(list)
        for (model, *segment), (_, failed) in self._skipped.items():
            skipped[model].append(f"{' '.join(segment)}: {failed.error}")
        for game, error in self._rejected_games.items():
            for model in self._registered:
                skipped[model].append(f"{game}: {error}")
        self.counters.set_skipped(skipped)
        here = {(m.game, m.segment) for m in self._snapshot.frames()}
        away = {(m.game, m.segment) for m in self._snapshot.segments()} - here
        return self._skipped.keys() | {(key, *of) for key in self._registered for of in away}

    def _encode(self, pairs: Sequence[Pair], workers: Workers) -> None:
        # Once more: what another has committed until it gave a claim back is seen only now.
        self._snapshot = take_snapshot(self._backend, self._snapshot)
        plan = self._plan(pairs, least=workers.task_slots())
        if not plan.items:
            return
        about = ", ".join(plan.games)
        self._set_state("encoding", f"{len(plan.items)} objects of {about}", always=True)
        settings = task_settings(workers, self._backend.url, self._registered.values())
        driver = Driver(workers, settings, self._tries)
        try:
            # What would have copied from what was set aside is left for the next round.
            driver.run(plan.by_segment())
        finally:  # Where one after the other fails, the next round should go on behind them.
            retry = time.monotonic() + RETRY_SKIPPED_S
            skipped = [failed for failed in driver.failures if failed.last]
            for failed in skipped:
                self._skipped[failed.model, failed.game, failed.segment] = retry, failed
        made, saved = sum(d.passes for d in driver.done), sum(d.copied for d in driver.done)
        self._log(
            f"encoded {len(driver.done)} objects of {about}: {made} passes made, {saved} saved"
            + (f", {len(skipped)} objects set aside" if skipped else "")
        )

    def _plan(self, pairs: Sequence[Pair], least: int) -> Plan:
        """What to do of the pairs in about `BATCH_S`, but at least `least` segments of each model."""
        without = self._excluded()
        now = self.counters.heartbeat()
        rate = max(now.frames_per_second, now.frames_per_second_overall)
        models = sorted({key for _, key in pairs})
        items: list[Item] = []
        for model in models:
            games = [game for game, key in pairs if key == model]
            windows = {model: self._window(model)}
            whole = make_plan(self._snapshot, [model], games, without, windows, self._digests).items
            frames = BATCH_S * rate / len(models)
            for number, item in enumerate(whole):  # Copies only look back, so any cut will do.
                if number >= least and frames <= 0:
                    break
                frames -= item.inputs
                items.append(item)
        return Plan(tuple(items), 0, tuple(sorted({game for game, _ in pairs})))

    def _window(self, model: str) -> int:
        return self._registered[model].spec.identity.window

    def _listen(self, event: Event) -> None:
        self.counters.listen(event)
        self._listener(event)
        if isinstance(event, ModelReady):
            engine = event.choice.explained if event.choice else None
            self._log(f"{event.spec.key} is ready, run by {engine}")
        elif isinstance(event, AttemptFailed):
            if event.error.kind == "unavailable":
                open_store(self._backend.url)  # Raises, if not one file but the place is away.
            if event.last:
                where = f"{event.game} {event.segment} by {event.model}"
                self._log(f"set aside: {where}, after {event.attempts} attempts: {event.error}")

    def _back_off(self, state: State, error: Exception) -> None:
        """Say what is wrong, and wait: each time longer, and never as long as others do."""
        why = str(error) if isinstance(error, WsaError) else f"{type(error).__name__}: {error}"
        pause = random.uniform(0.5, 1) * self._retry_s
        self._retry_s = min(2 * self._retry_s, LONGEST_PAUSE_S)
        self.counters.set_state(state, why)
        self._log(f"{state}: {why} Trying again in {pause:.0f} s.")
        time.sleep(pause)

    def _set_state(self, state: State, why: str, always: bool = False) -> None:
        self.counters.set_state(state)
        self._log(f"{state}: {why}", always)

    def _log(self, text: str, always: bool = True) -> None:
        """A line for the log, but not the same again and again."""
        if always or text != self._last_log:
            terminal.say(text)
        self._last_log = text
