"""Keep a shared store encoded: poll it, claim new work, encode it, and start over.

A service ends when it is stopped, or if it cannot start as asked. Later it waits out any trouble
with the store, the workers or a damaged record. A segment that fails every attempt is skipped,
reported, and tried again after an hour.
"""

from __future__ import annotations

import contextlib
import logging
import random
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import NoReturn

from distributed import Client

from wsa.encode.jobs.encoding import Encoding
from wsa.encode.jobs.events import AttemptFailed, Event, Listener, ModelReady
from wsa.encode.jobs.plan import Digests, Item, Name, Plan, make_plan
from wsa.encode.jobs.run import register_all, task_settings
from wsa.encode.jobs.scheduler import Driver
from wsa.encode.jobs.workers import Workers
from wsa.encode.models.registry import for_games
from wsa.encode.registration.register import Registered
from wsa.encode.service import heartbeat, http_server, prometheus
from wsa.encode.service.claims import Claims, Pair
from wsa.encode.service.counters import Counters
from wsa.encode.service.heartbeat import HeartbeatThread, State
from wsa.encode.service.status import StatusReader
from wsa.store.backends.open import open_backend
from wsa.store.common import terminal
from wsa.store.common.errors import ConflictError, DamagedError, StorageError, WsaError
from wsa.store.objects.root import is_free, open_store, require_present
from wsa.store.objects.snapshot import Snapshot, take_snapshot

# Target duration of a batch, during which it keeps its claims and does not look for new work.
BATCH_S = 120.0
RETRY_SKIPPED_S = 3600.0
LONGEST_PAUSE_S = 60.0


Connect = Callable[[], AbstractContextManager[tuple[Client, int]]]


class Service:
    """Encodes new segments of a store until Ctrl-C or SIGTERM stops it.

    Args:
        snapshot: Current snapshot of the store, which need not exist yet.
        encoding: What to encode; without games, all that the store has or will have.
        asked: Models, as the user named them, for `wsa status`.
        connect: Connects to workers, as `wsa.encode.jobs.cluster.connect` does.
        poll_s: Seconds between checks of the store while there is nothing to do.
        heartbeat_s: Seconds between two heartbeats.
        metrics: Address and port to serve the status page and Prometheus metrics on; None for neither.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        encoding: Encoding,
        *,
        asked: Sequence[str],
        connect: Connect,
        poll_s: float = 30.0,
        heartbeat_s: float = 15.0,
        metrics: tuple[str, int] | None = None,
        listen: Listener = lambda event: None,
    ) -> None:
        self._backend, self._snapshot = snapshot.backend, snapshot
        self._encoding, self._connect = encoding, connect
        self._poll_s, self._metrics, self._listener = poll_s, metrics, listen
        name = heartbeat.new_service()
        self.counters = Counters(name, heartbeat_s, asked, encoding.games)
        self.claims = Claims(self._backend, name, heartbeat.MISSED_HEARTBEATS * heartbeat_s)
        self._started = False  # Whether models were registered, perhaps none, without an error.
        self._registered: dict[str, Registered] = {}
        self._digests: Digests = {}
        self._skipped: dict[Name, tuple[float, AttemptFailed]] = {}
        self._checked_games: set[str] = set()
        self._registered_games: set[str] = set()
        self._rejected_games: dict[str, ConflictError] = {}
        self._retry_s = 1.0
        self._last_log = ""

    def run(self) -> NoReturn:
        """Run the service; heartbeats start once the store exists.

        Raises:
            WsaError: If it cannot start: the weights are missing, a model has drifted, there are no
                workers, or the port is in use.
            KeyboardInterrupt: If it is stopped.
        """
        with contextlib.ExitStack() as stack:
            if self._metrics is not None:
                url = stack.enter_context(self._serve_pages(*self._metrics))
                terminal.say(f"metrics at {url}/metrics, status at {url}/")
            self._await_store()
            heartbeats = HeartbeatThread(
                open_backend(self._backend.url), self.counters.heartbeat, self.claims.release
            )
            stack.enter_context(heartbeats)
            self._work()

    def _serve_pages(self, host: str, port: int) -> AbstractContextManager[str]:
        """Serve the store's status, and the service's counters for Prometheus."""
        apps = http_server.status_apps(StatusReader(self._backend.url))
        apps["/metrics"] = prometheus.metrics_app(self.counters.heartbeat)
        return http_server.serve(host, port, apps, "--metrics-port")

    def _await_store(self) -> None:
        """Wait until a store exists. Nothing is written before, since a new store must be empty."""
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
        """Connect to workers and encode; connect again whenever they are lost."""
        # Dask's tasks log a lost connection long after it happened.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        while True:
            try:
                with self._connect() as (client, threads):
                    self._serve(Workers(client, self._encoding.device, self._listen, threads))
            except Exception as error:  # Dask raises many kinds, all of them temporary.
                if not self._started:
                    raise
                # Connect again, since workers that could not open a model may be fixed by now.
                known = isinstance(error, WsaError) and not isinstance(error, StorageError)
                self.counters.set_workers(0)  # The connection is over, so none encodes.
                self._back_off("trouble" if known else "no-workers", error)

    def _serve(self, workers: Workers) -> NoReturn:
        while True:
            try:
                worked = self._round(workers)
            except (StorageError, DamagedError) as error:
                if not self._started or workers.client.status != "running":
                    raise
                down = error.kind in ("unavailable", "no-space", "no-permission")
                self._back_off("storage-down" if down else "trouble", error)
                continue
            self._retry_s = 1.0
            if not worked:
                time.sleep(self._poll_s)

    def _round(self, workers: Workers) -> bool:
        """Take a snapshot and encode a batch of what is missing; return whether there was any."""
        self.counters.set_workers(workers.count())
        require_present(self._backend)  # A missing folder would read as an empty store.
        self._snapshot = take_snapshot(self._backend, self._snapshot)
        lost = not self._registered.keys() <= set(self._snapshot.models)
        if not self._started or lost or self._lacks_fitted_models():
            self._register(workers)
        self._check_precision(workers)
        todo = self._pending_pairs()
        if not todo:
            self._set_state("waiting", self._why_idle())
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

    def _why_idle(self) -> str:
        """Describe why there is nothing to encode."""
        present = self._present_games()
        absent = sorted(set(self._encoding.games) - present)
        awaited = f"no frames of {', '.join(absent)} yet" if absent else ""
        if not present:
            return awaited or "no frames of any game yet"
        skipped = sorted(self._rejected_games)
        if self._skipped:
            skipped.insert(0, terminal.plural(len(self._skipped), "object"))
        but = f" but {', '.join(skipped)}, skipped" if skipped else ""
        return f"everything is encoded{but}" + (f"; {awaited}" if awaited else "")

    def _lacks_fitted_models(self) -> bool:
        """Return whether a new game needs a model that is fitted on it."""
        games = self._present_games() - self._rejected_games.keys() - self._registered_games
        requests = self._encoding.requests
        return any(for_games(requests, [game]) != list(requests) for game in games)

    def _register(self, workers: Workers) -> None:
        games = self._present_games() - self._rejected_games.keys()
        encoding = self._encoding.of(sorted(games))
        registered = register_all(workers, self._backend.url, encoding)
        self._registered = {one.spec.key: one for one in registered}
        self._started = True
        self._checked_games |= games
        self._registered_games |= games
        self._snapshot = take_snapshot(self._backend, self._snapshot)

    def _check_precision(self, workers: Workers) -> None:
        """Measure reduced precisions on new games; exclude games with too large an error."""
        reduced = [r for r in self._encoding.requests if r.precision != "fp32"]
        for game in sorted(self._present_games() - self._checked_games):
            try:
                if reduced:
                    register_all(workers, self._backend.url, self._encoding.of([game], reduced))
            except ConflictError as error:
                if error.kind != "step-error":
                    raise
                self._rejected_games[game] = error
                self._log(f"skipped: {game}, until the service is restarted: {error}")
            self._checked_games.add(game)

    def _present_games(self) -> set[str]:
        """Return the games asked for that the store has."""
        present = set(self._snapshot.games)
        return present.intersection(self._encoding.games) if self._encoding.games else present

    def _pending_pairs(self) -> list[Pair]:
        """Return (game, model) pairs with segments to encode, and update each model's backlog."""
        games = self._present_games() - self._rejected_games.keys()
        wanted = [m for m in self._snapshot.segments_with_frames() if m.game in games]
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
        """Return the objects that are skipped for now, and those whose frames are not here."""
        now = time.monotonic()
        self._skipped = {name: it for name, it in self._skipped.items() if it[0] > now}
        skipped = defaultdict(list)
        for (model, *segment), (_, failed) in self._skipped.items():
            skipped[model].append(f"{' '.join(segment)}: {failed.error}")
        for game, error in self._rejected_games.items():
            for model in self._registered:
                skipped[model].append(f"{game}: {error}")
        self.counters.set_skipped(skipped)
        here = {(m.game, m.segment) for m in self._snapshot.segments_with_frames()}
        away = {(m.game, m.segment) for m in self._snapshot.segments()} - here
        return self._skipped.keys() | {(key, *of) for key in self._registered for of in away}

    def _encode(self, pairs: Sequence[Pair], workers: Workers) -> None:
        # Take a new snapshot, to see what another service committed before it released its claim.
        self._snapshot = take_snapshot(self._backend, self._snapshot)
        plan = self._plan(pairs, least=workers.task_slots())
        if not plan.items:
            return
        about = ", ".join(plan.games)
        count = terminal.plural(len(plan.items), "object")
        self._set_state("encoding", f"{count} of {about}", always=True)
        settings = task_settings(workers, self._backend.url, self._registered.values())
        driver = Driver(workers, settings, self._encoding.tries)
        try:
            # Objects that copy from one that was skipped are left for the next round.
            driver.run(plan.by_segment())
        finally:  # After many failures in a row, the next round should skip these segments.
            retry = time.monotonic() + RETRY_SKIPPED_S
            skipped = [failed for failed in driver.failures if failed.last]
            for failed in skipped:
                self._skipped[failed.model, failed.game, failed.segment] = retry, failed
        made, saved = sum(d.passes for d in driver.done), sum(d.copied for d in driver.done)
        self._log(
            f"encoded {terminal.plural(len(driver.done), 'object')} of {about}: "
            f"{terminal.plural(made, 'pass')} made, {saved:,} saved"
            + (f", {terminal.plural(len(skipped), 'object')} skipped" if skipped else "")
        )

    def _plan(self, pairs: Sequence[Pair], least: int) -> Plan:
        """Plan about `BATCH_S` of work on the pairs, but at least `least` segments per model."""
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
            for number, item in enumerate(whole):  # Copies point backward, so any cut works.
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
            run_by = event.choice.run_by if event.choice else "nothing to run"
            self._log(f"{event.spec.key} is ready, {run_by}")
        elif isinstance(event, AttemptFailed):
            require_present(self._backend)  # Otherwise the segment is not to blame.
            if event.last:
                where = f"{event.game} {event.segment} by {event.model}"
                tries = terminal.plural(event.attempts, "attempt")
                self._log(f"skipped: {where}, after {tries}: {event.error}")

    def _back_off(self, state: State, error: Exception) -> None:
        """Report trouble and wait, longer each time, with jitter against retries in lockstep."""
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
        """Log a line; without `always`, only if it differs from the previous one."""
        if always or text != self._last_log:
            terminal.say(text)
        self._last_log = text
