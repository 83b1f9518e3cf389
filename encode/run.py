"""Drive an encoding: register the models, plan, keep the workers busy, and count.

A segment is two tasks: `embed` runs its own frames, `commit` joins them with copied rows and
commits. Only commits wait for each other, and only where one copies from another, so the models
never wait. A bounded number of segments is in flight; what is committed stays, so the same command
continues after any interruption.
"""

from __future__ import annotations

import dataclasses
import difflib
import time
from collections.abc import Sequence
from typing import Any

from distributed import Client, Future, as_completed

from wsa.encode import cluster, job
from wsa.encode.events import Listener, ModelReady, Planned, SegmentDone
from wsa.encode.models import Request
from wsa.encode.plan import Plan, make_plan
from wsa.encode.register import Registered, find, read_spec
from wsa.store import keys, names
from wsa.store.backends import Backend
from wsa.store.errors import MissingError
from wsa.store.reader import Snapshot, take_snapshot

IN_FLIGHT_PER_WORKER = 3


@dataclasses.dataclass(frozen=True)
class EncodeReport:
    """What an encoding did.

    Attributes:
        models: The models, registered.
        done: One entry a segment and model that was encoded now.
        present: Objects that were there already.
        seconds: Wall time.
    """

    models: tuple[Registered, ...]
    done: tuple[SegmentDone, ...]
    present: int
    seconds: float

    @property
    def passes(self) -> int:
        """Frames that went through a model."""
        return sum(d.passes for d in self.done)

    @property
    def copied(self) -> int:
        """Frames that did not, because the same frame had gone through before."""
        return sum(d.copied for d in self.done)

    def summary(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            "models": {r.spec.key: {"random": r.spec.identity.random} for r in self.models},
            "objects": len(self.done),
            "present": self.present,
            "passes": self.passes,
            "copied": self.copied,
            "strip_passes": sum(r.fitted for r in self.models),
            "seconds": self.seconds,
        }


def encode(
    backend: Backend,
    requests: Sequence[Request],
    games: Sequence[str] = (),
    *,
    scheduler: str = "local",
    workers: int = 0,
    device: str = "auto",
    max_step_error: float = 0.1,
    listen: Listener = lambda event: None,
) -> EncodeReport:
    """Run each model once over every frame that it has not seen.

    Args:
        backend: The store.
        requests: Models.
        games: Games; all that the store has where empty.
        scheduler, workers: As `wsa.encode.cluster.connect` takes them.
        device: `cpu`, `cuda` or `auto`.
        max_step_error: Largest step-relative error of a reduced precision.
        listen: Called with every event.

    Raises:
        MissingError: No frames, or rows without their frames, or no weights.
        ConflictError: Wrong weights, a drifted model, too low a precision, or NaN embeddings.
        StorageError: The store refused.
    """
    started = time.perf_counter()
    snapshot = take_snapshot(backend)
    games = wanted_games(snapshot, games)
    registered = [
        Registered(spec, 0, request)
        for request in requests
        if (spec := find(snapshot, request)) is not None
    ]
    require_frames(snapshot, requests, games)
    plan = make_plan(snapshot, [r.spec.key for r in registered], games)
    if len(registered) == len(requests) and not plan.items:
        listen(Planned(0, 0, 0))
        return EncodeReport(tuple(registered), (), plan.present, time.perf_counter() - started)
    with cluster.connect(scheduler, workers) as (client, threads):
        report = encode_on(
            client, threads, snapshot, requests, games, device, max_step_error, listen
        )
    return dataclasses.replace(report, seconds=time.perf_counter() - started)


def encode_on(
    client: Client,
    threads: int,
    snapshot: Snapshot,
    requests: Sequence[Request],
    games: Sequence[str],
    device: str = "auto",
    max_step_error: float = 0.1,
    listen: Listener = lambda event: None,
) -> EncodeReport:
    """`encode` with workers that are there already, as `wsa.encode.cluster.connect` yields them.

    Args:
        client: The workers.
        threads: Cores that torch may use in a task; 0 as the worker has it.
        snapshot: The store, as last seen; looked at again once the models are registered.
        requests: Models.
        games: Games.
        device: `cpu`, `cuda` or `auto`.
        max_step_error: Largest step-relative error of a reduced precision.
        listen: Called with every event.
    """
    started = time.perf_counter()
    backend = snapshot.backend
    futures = [
        client.submit(
            job.register_model, backend.url, r, max_step_error, device, threads, pure=False
        )
        for r in requests
    ]
    registered = [future.result() for future in futures]
    for one in registered:
        listen(ModelReady(one.spec, one.fitted))
    snapshot = take_snapshot(backend, snapshot)
    plan = make_plan(snapshot, [r.spec.key for r in registered], games)
    _require_frames(snapshot, plan)
    listen(Planned(len(plan.items), plan.passes, plan.copies))
    sources = {r.spec.key: r.request.source for r in registered}
    done = _drive(client, backend.url, plan, sources, device, threads, listen)
    return EncodeReport(tuple(registered), tuple(done), plan.present, time.perf_counter() - started)


def wanted_games(snapshot: Snapshot, games: Sequence[str]) -> list[str]:
    """The games asked for, or all.

    Raises:
        MissingError: The store has no frames of one of them.
    """
    for game in games:
        if game not in snapshot.games:
            raise MissingError(
                "no-frames",
                f"The store {snapshot.backend.url} has no frames of {game}. "
                f"{_near(game, snapshot.games)}Collect some: wsa collect --game {game}",
            )
    if not snapshot.games:
        raise MissingError(
            "no-frames",
            f"The store {snapshot.backend.url} is empty. Collect some frames first: "
            "wsa collect --game Seaquest",
        )
    return list(games) or snapshot.games


def require_frames(snapshot: Snapshot, requests: Sequence[Request], games: Sequence[str]) -> None:
    """Make sure, before any model is built, that the frames are here which have to go through one.

    Raises:
        MissingError: Some were left where their rows were pulled from.
    """
    if {(m.game, m.segment) for m in snapshot.segments()} <= _with_frames(snapshot):
        return  # As nearly always; it needs no plan to tell.
    specs = [read_spec(snapshot, key) for key in snapshot.models]
    alike = {(spec.alias, spec.identity.output, spec.identity.precision) for spec in specs}
    models = []
    for request in requests:
        if spec := find(snapshot, request):
            models.append(spec.key)
        elif (request.alias, request.output, request.precision) not in alike:
            models.append(names.make_model_key(request.alias, "0" * 12))
        # Else only its weights, once it is built, tell whether it is one of these.
    _require_frames(snapshot, make_plan(snapshot, models, games))


def _require_frames(snapshot: Snapshot, plan: Plan) -> None:
    needed = {(i.meta.game, i.meta.segment): i.model for i in plan.items if len(i.own)}
    # By name once more: a listing that took long may have missed what was committed meanwhile.
    lacking = [
        of
        for of in sorted(needed.keys() - _with_frames(snapshot))
        if snapshot.backend.stat(names.commit_path(keys.object_id(names.frames_path(*of)))) is None
    ]
    if lacking:
        game = lacking[0][0]
        alias = names.key_alias(needed[lacking[0]])
        raise MissingError(
            "no-frames",
            f"{snapshot.backend.url} has the rows of {sum(of == game for of, _ in lacking)} segments "
            f"of {game} without their frames, which {alias} has not seen. Fetch them from where the "
            f"rows came from: wsa pull URL --game {game}",
        )


def _with_frames(snapshot: Snapshot) -> set[tuple[str, str]]:
    return {(meta.game, meta.segment) for meta in snapshot.frames()}


def _near(game: str, games: Sequence[str]) -> str:
    close = difflib.get_close_matches(game, games, n=1)
    return f"Did you mean {close[0]}? " if close else ""


def _drive(
    client: Client,
    store: str,
    plan: Plan,
    sources: dict[str, str],
    device: str,
    threads: int,
    listen: Listener,
) -> list[SegmentDone]:
    waiting = iter(plan.items)
    flying: dict[tuple[str, str, str], Future] = {}
    finished: list[SegmentDone] = []
    completed = as_completed()

    def launch() -> None:
        item = next(waiting, None)
        if item is None:
            return
        embedded = client.submit(
            job.embed, store, item, sources[item.model], device, threads, pure=False
        )
        copied_from = [(item.model, c.game, c.segment) for c in item.copies]
        after = [flying[name] for name in copied_from if name in flying]
        future = client.submit(job.commit, store, item, embedded, after, pure=False)
        flying[item.model, item.meta.game, item.meta.segment] = future
        completed.add(future)

    for _ in range(IN_FLIGHT_PER_WORKER * max(1, len(client.scheduler_info()["workers"]))):
        launch()
    for future in completed:
        done: SegmentDone = future.result()
        del flying[done.model, done.game, done.segment]
        finished.append(done)
        listen(done)
        launch()
    return finished
