"""Encode a store: register the models, make a plan, execute it, and report.

Committed objects stay, so the same command continues after any interruption. Objects that fail
every attempt are skipped and reported, and the rest is encoded.
"""

from __future__ import annotations

import dataclasses
import difflib
import time
from collections.abc import Callable, Collection, Iterable, Sequence

from distributed import CancelledError, KilledWorker

from wsa.encode.jobs import cluster, tasks
from wsa.encode.jobs.encoding import TRIES, Encoding
from wsa.encode.jobs.events import Listener, ModelReady, Planned
from wsa.encode.jobs.plan import Name, Plan, make_plan
from wsa.encode.jobs.report import EncodeReport
from wsa.encode.jobs.scheduler import Driver, scheduler_lost, worker_died
from wsa.encode.jobs.slurm import SlurmOptions
from wsa.encode.jobs.tasks import Failed, TaskSettings
from wsa.encode.jobs.workers import Workers
from wsa.encode.models.registry import Request, for_games, libraries
from wsa.encode.registration.identity import find_model, unregistered_key
from wsa.encode.registration.register import Registered
from wsa.store.backends.base import Backend
from wsa.store.common import names, terminal
from wsa.store.common.errors import MissingError
from wsa.store.objects.model_spec import parse_output, read_spec
from wsa.store.objects.root import require_writable
from wsa.store.objects.snapshot import Snapshot, take_snapshot
from wsa.store.objects.writer import committed


def encode(
    backend: Backend,
    encoding: Encoding,
    *,
    scheduler: str = "local",
    workers: int = 0,
    jobs: SlurmOptions | None = None,
    listen: Listener = lambda event: None,
    on_stop: Callable[[EncodeReport], None] = lambda report: None,
) -> EncodeReport:
    """Run each model once over every frame that it has not seen.

    Args:
        scheduler, workers, jobs: Arguments of `wsa.encode.jobs.cluster.connect`.
        on_stop: Called with the report so far if the encoding ends early.

    Raises:
        MissingError: If there are no frames, rows without frames, or no weights.
        ConflictError: If the weights are wrong, a model has drifted, or the error of the precision
            is too large.
        StorageError: If the store refuses every write.
    """
    started = time.perf_counter()
    snapshot = take_snapshot(backend)
    encoding = encoding.of(wanted_games(snapshot, encoding.games))
    requests = encoding.requests
    registered = [
        Registered(spec, 0, request)
        for request in requests
        if (spec := find_model(snapshot, request)) is not None
    ]
    require_frames(snapshot, encoding)
    plan = _plan(snapshot, registered, encoding.games)
    if len(registered) == len(requests) and not plan.items:
        listen(Planned(0, 0, 0))
        return EncodeReport(tuple(registered), (), (), plan.present, time.perf_counter() - started)
    require_writable(backend)
    connected = cluster.connect(
        scheduler, workers, encoding.device, jobs, imports=libraries(requests)
    )
    with connected as (client, threads):
        crew = Workers(client, encoding.device, listen, threads)
        report = encode_on(crew, snapshot, encoding, on_stop)
    return dataclasses.replace(report, seconds=time.perf_counter() - started)


def encode_on(
    workers: Workers,
    snapshot: Snapshot,
    encoding: Encoding,
    on_stop: Callable[[EncodeReport], None] = lambda report: None,
) -> EncodeReport:
    """Do the same as `encode` on existing workers, whose listener gets every event.

    The snapshot is taken again once the models are registered.
    """
    started = time.perf_counter()
    backend = snapshot.backend
    registered = register_all(workers, backend.url, encoding)
    snapshot = take_snapshot(backend, snapshot)
    plan = _plan(snapshot, registered, encoding.games)
    _require_frames(snapshot, plan)
    workers.listen(Planned(len(plan.items), plan.passes, plan.copies))
    driver = Driver(workers, task_settings(workers, backend.url, registered), encoding.tries)

    def report(stopped: str = "") -> EncodeReport:
        return EncodeReport(
            models=tuple(registered),
            done=tuple(driver.done),
            failures=tuple(driver.failures),
            present=plan.present,
            seconds=time.perf_counter() - started,
            workers=workers.at_start.workers,
            threads=workers.at_start.threads,
            device=workers.device,
            unfit=tuple(workers.unfit.values()),
            stopped=stopped,
        )

    again = plan
    try:
        while driver.run(again.by_segment()):
            # Objects were left out because they copy from one that was skipped. A new plan runs
            # those frames through the model.
            snapshot = take_snapshot(backend, snapshot)
            again = _plan(snapshot, registered, encoding.games, driver.skipped)
    except BaseException as error:
        on_stop(report(str(error) or type(error).__name__))
        raise
    return report()


def task_settings(workers: Workers, store: str, registered: Iterable[Registered]) -> TaskSettings:
    """Return the settings of all tasks that run these models on these workers."""
    models = list(registered)
    sources = {one.spec.key: one.request.source for one in models}
    engines = {one.spec.key: one.choice.engine for one in models if one.choice}
    return TaskSettings(store, sources, engines, workers.device, workers.threads)


def register_all(workers: Workers, store: str, encoding: Encoding) -> list[Registered]:
    """Register each model on a worker that can build it, several in parallel, and announce each.

    Several requests for the same model, such as by name and by key, give one registered model.

    Raises:
        WsaError: If a model cannot be registered, or the workers are gone.
    """
    requests = encoding.requests
    registered: dict[Request, Registered] = {}
    deaths = 0
    while missing := [request for request in requests if request not in registered]:
        futures = [
            workers.client.submit(
                tasks.register_model,
                store,
                request,
                dataclasses.replace(encoding, device=workers.device),
                workers.threads,
                pure=False,
                **workers.options(),
            )
            for request in missing
        ]
        for request, future in zip(missing, futures, strict=True):
            try:
                outcome = future.result()
            except CancelledError:
                raise scheduler_lost() from None
            except ImportError:
                if not workers.exclude_without_wsa():
                    raise
                continue
            except KilledWorker as error:
                deaths += 1
                if deaths >= TRIES:
                    raise worker_died(f"{request.alias} as it was registered", error) from None
                continue
            if isinstance(outcome, Failed):
                workers.exclude(outcome)
            else:
                registered[request] = outcome
    models = {registered[request].spec.key: registered[request] for request in requests}
    for one in models.values():
        workers.listen(ModelReady(one.spec, one.fitted, one.choice))
    return list(models.values())


def wanted_games(snapshot: Snapshot, games: Sequence[str]) -> list[str]:
    """Return the games asked for, or all games of the store.

    Raises:
        MissingError: If the store has no frames of one of them.
    """
    for game in games:
        if game not in snapshot.games:
            close = difflib.get_close_matches(game, snapshot.games, n=1)
            hint = f"Did you mean {close[0]}? " if close else ""
            raise MissingError(
                "no-frames",
                f"The store {snapshot.backend.url} has no frames of {game}. "
                f"{hint}Collect some: wsa collect --game {game}",
            )
    if not snapshot.games:
        raise MissingError(
            "no-frames",
            f"The store {snapshot.backend.url} is empty. Collect some frames first: "
            "wsa collect --game Seaquest",
        )
    return list(games) or snapshot.games


def _plan(
    snapshot: Snapshot,
    registered: Sequence[Registered],
    games: Sequence[str],
    without: Collection[Name] = (),
) -> Plan:
    windows = {r.spec.key: r.spec.identity.window for r in registered}
    only = {r.spec.key: r.spec.game for r in registered if r.spec.game}
    return make_plan(snapshot, [*windows], games, without, windows, only=only)


def require_frames(snapshot: Snapshot, encoding: Encoding) -> None:
    """Check, before building any model, that the store has all frames that need a pass.

    Raises:
        MissingError: If rows were pulled without frames that need a pass.
    """
    if {(m.game, m.segment) for m in snapshot.segments()} <= _with_frames(snapshot):
        return  # The usual case, which needs no plan.
    specs = [read_spec(snapshot, key) for key in snapshot.models]
    alike = {(spec.alias, spec.identity.output, spec.identity.precision) for spec in specs}
    models: dict[str, int] = {}
    only: dict[str, str] = {}
    for request in for_games(encoding.requests, encoding.games):
        if spec := find_model(snapshot, request):
            key = spec.key
            models[key] = spec.identity.window
        elif (request.alias, request.output, request.precision) not in alike:
            key = unregistered_key(request)
            models[key] = 1
        else:
            continue  # Only the built model's weights tell whether it is one of these.
        if game := parse_output(request.output).only_game:
            only[key] = game
    plan = make_plan(snapshot, [*models], encoding.games, windows=models, only=only)
    _require_frames(snapshot, plan)


def _require_frames(snapshot: Snapshot, plan: Plan) -> None:
    needed = {(i.meta.game, i.meta.segment): i.model for i in plan.items if len(i.own)}
    # Check by name too, since a slow listing may have missed commits made meanwhile.
    lacking = [
        of
        for of in sorted(needed.keys() - _with_frames(snapshot))
        if not committed(snapshot.backend, names.frames_path(*of))
    ]
    if lacking:
        game = lacking[0][0]
        alias = names.key_alias(needed[lacking[0]])
        count = terminal.plural(sum(of == game for of, _ in lacking), "segment")
        raise MissingError(
            "no-frames",
            f"{snapshot.backend.url} has the rows of {count} of {game} without their frames, which "
            f"{alias} has not seen. Fetch them from where the rows came from: wsa pull URL --game "
            f"{game}",
        )


def _with_frames(snapshot: Snapshot) -> set[tuple[str, str]]:
    return {(meta.game, meta.segment) for meta in snapshot.frames()}
