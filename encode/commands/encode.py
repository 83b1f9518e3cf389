"""The command `wsa encode`: turn options into a printed result and an exit code."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import logging
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from wsa.encode.configs import (
    OF_KEY,
    EncodeOptions,
    ServiceOptions,
    pairs,
    refuse,
    require_used,
    weights_files,
)
from wsa.encode.jobs import events, slurm
from wsa.encode.jobs.encoding import Encoding
from wsa.encode.jobs.report import EncodeReport, make_folder, write_report
from wsa.encode.jobs.run import encode as run
from wsa.encode.jobs.run import require_frames, wanted_games
from wsa.encode.models import custom, screen
from wsa.encode.models.registry import libraries, parse_request
from wsa.encode.registration.identity import request_of
from wsa.store.api.keywords import fill
from wsa.store.backends.base import Backend
from wsa.store.common import names, terminal
from wsa.store.common.cache_folder import cache_folder
from wsa.store.common.errors import StorageError, UsageError
from wsa.store.common.games import GAMES, unknown_game
from wsa.store.common.ranges import check_ranges
from wsa.store.objects.model_spec import parse_output, read_spec
from wsa.store.objects.root import open_snapshot
from wsa.store.objects.snapshot import Snapshot

if TYPE_CHECKING:
    from wsa.encode.jobs.dry_run import Estimate

_log = logging.getLogger(__name__)

# Options of the service, which `wsa.encode(...)` does not offer: it is a process, not a function.
_SERVICE = ("watch", "poll", "beat", "metrics_port", "metrics_host")


def encode(o: EncodeOptions) -> int:
    """Run `wsa encode`."""
    _check(o)
    snapshot, encoding = _resolve(o)
    if o.watch:
        _watch(o, snapshot, encoding)
    if o.dry_run:
        return _show(o, encoding, *_estimate(o, snapshot, encoding))
    report = run_with_progress(snapshot.backend, encoding, o)
    _write_report(o, report)
    if o.json:
        terminal.result(True, report.summary())
    else:
        _print(report)
    if report.failed:
        terminal.say(
            f"wsa encode: {terminal.were(len(report.failed), 'object')} skipped after "
            f"{terminal.plural(o.worker.tries, 'attempt')} each; the rest is done. "
            f"{report.failed[0].error}"
        )
    return report.exit_code


def encode_store(**options: Any) -> dict[str, Any]:
    """Run each frozen model once over every frame of a store that it has not encoded yet.

    Args:
        options: The options of `wsa encode`, with `_` for `-`: `models=["vit", "lite0"]`,
            `game="Pong"`, `store="/lab/wsa"`, `output="pooled"`, `scheduler="inproc"`,
            `dry_run=True`, ... (`docs/reference/commands.md`).

    Returns:
        What `wsa encode --json` prints; `set_aside` lists objects that failed every attempt.

    Raises:
        UsageError: The option, the model, or the game does not exist.
        MissingError: There is no store, or there are no frames or weights.
        ConflictError: The weights differ from the store's, or the error of a precision is too large.
    """
    o = fill(EncodeOptions(), options, "wsa.encode", hidden=("json", *_SERVICE))
    _check(o)
    snapshot, encoding = _resolve(o)
    if o.dry_run:
        return _estimate(o, snapshot, encoding)[1]
    report = _run(snapshot.backend, encoding, o, lambda event: None)
    _write_report(o, report)
    return report.summary()


def _resolve(o: EncodeOptions) -> tuple[Snapshot, Encoding]:
    """Find the store, and the models and games that the options name."""
    weights = weights_files(o.embedding.weights)
    # A key names a model of the store with its output and precision; other names are parsed.
    keys = {name for name in o.models if names.is_model_key(name)}
    if keys == {*o.models}:
        refuse(o.embedding, OF_KEY, f"a key such as {o.models[0]} has its own")
    licenses = pairs("--license", o.embedding.license)
    asked = {
        name: parse_request(
            name, weights, o.embedding.output, o.embedding.precision, o.embedding.geometry, licenses
        )
        for name in o.models
        if name not in keys
    }
    for name in licenses.keys() - {request.alias for request in asked.values()}:
        raise UsageError(f"--license {name}: none of --models has that name. Leave it out.")
    filed = {name: r.alias for name, r in asked.items() if r.recorded.startswith("file:")}
    for name in weights.keys() & screen.OUTPUTS.keys():
        raise UsageError(f"--weights {name}={weights[name]}: {name} has no weights.")
    require_used(weights, [*filed, *filed.values(), *keys])
    _, snapshot = open_snapshot(o.store, or_empty=o.watch)
    asked |= {key: request_of(read_spec(snapshot, key), weights) for key in keys}
    requests = list(dict.fromkeys(asked[name] for name in o.models))
    own = [r.source.removeprefix("user:") for r in requests if r.source.startswith("user:")]
    custom.find_before_workers(own, o.worker.scheduler)
    games = list(o.game) if o.watch else wanted_games(snapshot, o.game)
    for game in games:
        if game not in GAMES and game not in snapshot.games:
            raise unknown_game(game)  # A service would wait for it forever.
    for request in requests:
        if request.source == screen.SOURCE:
            _log.info(f"{request.alias}: output {request.output}, no weights, fitted on each game")
            continue
        weights_from = "untrained" if request.source == "random" else f"from {request.source}"
        _log.info(
            f"{request.alias}: {request.timm_name}, output {request.output}, weights "
            f"{weights_from}, license {request.license}"
        )
    return snapshot, Encoding(
        requests,
        games,
        o.worker.device,
        o.embedding.engine,
        o.embedding.max_step_error,
        o.worker.tries,
    )


def _watch(o: EncodeOptions, snapshot: Snapshot, encoding: Encoding) -> NoReturn:
    from wsa.encode.jobs import cluster
    from wsa.encode.service.service import Service

    port = o.service.metrics_port
    Service(
        snapshot,
        encoding,
        asked=o.models,
        connect=partial(
            cluster.connect,
            o.worker.scheduler,
            o.workers,
            o.worker.device,
            o.slurm,
            imports=libraries(encoding.requests),
        ),
        poll_s=o.service.poll,
        heartbeat_s=o.service.beat,
        metrics=None if port is None else (o.service.metrics_host, port),
        listen=terminal.say_event if o.json else lambda event: None,
    ).run()


def _write_report(o: EncodeOptions, report: EncodeReport) -> None:
    """Write the report if anything was done, and log its folder."""
    if not (report.done or report.failures):
        return
    name = f"{datetime.datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}"
    try:
        folder = Path(o.worker.report or cache_folder() / "encode-reports" / name)
        _log.info(f"report {write_report(folder, report)}")
    except (UsageError, StorageError) as error:
        if o.worker.report:
            raise
        _log.info(f"no report: {error}")  # None was asked for, and the work is done.


def _print(report: EncodeReport) -> None:
    rows = [
        [of.model, one.spec.title, of.objects, of.passes, of.copied, of.fit_passes]
        for one, of in zip(report.models, report.totals, strict=True)
    ]
    columns = ["key", "model", "objects", "passes made", "passes saved", "basis passes"]
    terminal.table("", columns, rows)
    if report.failed:
        skipped = [[f.model, f.game, f.segment, f.attempts, f.error.kind] for f in report.failed]
        terminal.table("\nSkipped", ["model", "game", "segment", "attempts", "why"], skipped)
    rate = report.passes / report.seconds if report.seconds else 0.0
    print(
        f"{terminal.were(report.present, 'object')} there already; {terminal.duration(report.seconds)}, "
        f"{rate:,.1f} passes/s"
    )


def _check(o: EncodeOptions) -> None:
    """Refuse impossible options before opening anything."""
    check_ranges(o)
    if o.embedding.output:
        parse_output(o.embedding.output)
    if not o.models:
        raise UsageError(
            "--models names no model; leave it out, or write --models vit,resnet,clip."
        )
    if o.watch and o.dry_run:
        raise UsageError("--watch never ends, so there is nothing to plan; leave out --dry-run.")
    if o.watch and o.worker.report:
        raise UsageError(
            "--watch never ends, so it writes no report; leave out --report, and use 'wsa status'.",
        )
    for name in ("poll", "beat", "metrics_port", "metrics_host"):
        if not o.watch and getattr(o.service, name) != getattr(ServiceOptions, name):
            flag = name.replace("_", "-")
            raise UsageError(f"--{flag} is for a service; add --watch.")
    if o.service.metrics_host != ServiceOptions.metrics_host and o.service.metrics_port is None:
        raise UsageError("--metrics-host has no effect alone; add --metrics-port.")
    slurm.check_scheduler(o.slurm, o.worker.scheduler, o.workers)


def run_with_progress(backend: Backend, encoding: Encoding, o: EncodeOptions) -> EncodeReport:
    """Encode, and show the progress."""
    if o.json:
        return _run(backend, encoding, o, terminal.say_event)
    done = total = 0
    said_before: dict[str, str] = {}
    with terminal.Progress("encode", "frames") as progress:

        def listen(event: events.Event) -> None:
            nonlocal total, done
            if said := describe_event(event, said_before):
                terminal.say(said)
            if isinstance(event, events.Planned):
                total = event.passes + event.copies
            elif isinstance(event, events.SegmentDone):
                done += event.inputs
            progress.update(done, total)

        return _run(backend, encoding, o, listen)


def _run(
    backend: Backend, encoding: Encoding, o: EncodeOptions, listen: events.Listener
) -> EncodeReport:
    def stopped(report: EncodeReport) -> None:
        with contextlib.suppress(StorageError):  # Report the error that ended the encoding instead.
            _write_report(o, report)

    if o.worker.report:
        make_folder(Path(o.worker.report))  # Fail now rather than hours later.
    return run(
        backend,
        encoding,
        scheduler=o.worker.scheduler,
        workers=o.workers,
        jobs=o.slurm,
        listen=listen,
        on_stop=stopped,
    )


def describe_event(event: events.Event, said_before: dict[str, str]) -> str:
    """Describe an event for a person; empty for events that a person does not need to see.

    Args:
        said_before: The first worker for each reason why workers got no segments, so that a reason
            is printed only once; updated.
    """
    if isinstance(event, events.Started):
        pages = f"; Dask's pages are at {event.dashboard}" if event.dashboard else ""
        workers, threads = (
            terminal.plural(event.workers, "worker"),
            terminal.plural(event.threads, "thread"),
        )
        return f"{workers}, {threads}, device {event.device}{pages}"
    if isinstance(event, events.ModelReady):
        fitted = f", basis fitted on {event.fitted} frames" if event.fitted else ""
        run_by = event.choice.run_by if event.choice else "nothing to run"
        return f"{event.spec.key}: {run_by}{fitted}"
    if isinstance(event, events.AttemptFailed):
        then = "it is skipped" if event.last else "this run tries it again"
        return (
            f"{event.model} on {event.game} {event.segment}: {event.error} "
            f"(Attempt {event.attempts}; {then}.)"
        )
    if isinstance(event, events.WorkerUnfit):
        why = str(event.error)
        first = said_before.setdefault(why.replace(event.worker, ""), event.worker)
        reason = why if first == event.worker else f"As {first}."
        return f"worker {event.worker} on {event.host} gets no segments. {reason}"
    return ""


def _estimate(
    o: EncodeOptions, snapshot: Snapshot, encoding: Encoding
) -> tuple[list[Estimate], dict[str, Any]]:
    """Estimate an encoding, with measurements on a worker.

    Returns:
        The estimate of each model; and all estimates as JSON values.
    """
    from wsa.encode.jobs import cluster, dry_run

    require_frames(snapshot, encoding)
    encoding = encoding.of(encoding.games)
    named = dry_run.by_name(snapshot, encoding.requests)
    encoding = dataclasses.replace(encoding, requests=list(named.values()))
    measure_on = "inproc" if o.worker.scheduler == "inproc" else "local"
    measurement = dry_run.measure_on_worker(snapshot, encoding, measure_on)
    workers = cluster.models_at_once(o.worker.scheduler, o.workers, o.worker.device, o.slurm)
    models = [
        dataclasses.replace(
            dry_run.estimate(snapshot, request, encoding.games, measured, workers), name=name
        )
        for (name, request), measured in zip(named.items(), measurement.models, strict=True)
    ]
    fitted = [of.fit for of in models]
    values: dict[str, Any] = {
        "models": {of.name: dataclasses.asdict(of) for of in models},
        "workers": workers,
        "worker_bytes": dry_run.worker_bytes(snapshot, encoding, measurement, fitted),
        "driver_bytes": dry_run.peak_bytes(),
    }
    if o.worker.scheduler == "slurm":
        values["job_script"] = cluster.job_script(o.slurm)
    return models, values


def _show(
    o: EncodeOptions, encoding: Encoding, models: Sequence[Estimate], values: dict[str, Any]
) -> int:
    if o.json:
        return terminal.result(True, values)
    columns = "model", "objects", "passes", "copies", "basis passes", "at most", "engine", "minutes"
    terminal.table(
        f"To do for {', '.join(encoding.games)}; nothing was changed:",
        columns,
        [
            (
                e.name,
                e.objects,
                e.passes,
                e.copies,
                e.fit,
                terminal.size(e.bytes),
                e.engine,
                e.minutes,
            )
            for e in models
        ],
    )
    unasked = (
        f" (how many {o.worker.scheduler} has was not asked)" if "://" in o.worker.scheduler else ""
    )
    print(
        f"\nminutes with {terminal.plural(values['workers'], 'worker')} as fast as this machine's{unasked}, "
        f"without the time to start; memory at most {terminal.size(values['worker_bytes'])} for each, "
        f"{terminal.size(values['driver_bytes'])} for this process"
    )
    if "job_script" in values:
        print(f"\n{values['job_script']}")
    return 0
