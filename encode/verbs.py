"""The verbs `encode` and `models`: from options to a printed result and an exit code."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from wsa.encode import console, events
from wsa.encode.lookup import describe, read_spec, request_of
from wsa.encode.models import ALIASES, Request, local_weights, parse_request
from wsa.encode.options import EncodeOptions, ModelsOptions, open_snapshot, weights_files
from wsa.encode.run import EncodeReport, require_frames, wanted_games
from wsa.encode.run import encode as run
from wsa.encode.spec import parse_output
from wsa.store import names
from wsa.store.backends import Backend
from wsa.store.errors import ConflictError, UsageError
from wsa.store.reader import Snapshot


def encode(o: EncodeOptions) -> int:
    """`wsa encode`."""
    _check(o)
    weights = weights_files(o.weights)
    # A key names a model of the store, output and precision included; all else is spelled out.
    keys = {name for name in o.models if names.is_model_key(name)}
    asked = {
        name: parse_request(name, weights, o.output, o.precision, o.geometry)
        for name in o.models
        if name not in keys
    }
    backend, snapshot = open_snapshot(o.store, or_empty=o.watch)
    asked |= {key: request_of(read_spec(snapshot, key), weights) for key in keys}
    requests = list(dict.fromkeys(asked[name] for name in o.models))
    games = list(o.game) if o.watch else wanted_games(snapshot, o.game)
    for request in requests:
        weights_from = "untrained" if request.source == "random" else f"from {request.source}"
        console.say(
            f"{request.alias}: {request.timm_name}, output {request.output}, weights "
            f"{weights_from}, licence {request.licence}"
        )
    if o.watch:
        from wsa.encode.watch import watch

        watch(backend, snapshot, requests, games, o)
    if o.dry_run:
        require_frames(snapshot, requests, games)
        return _dry(o, snapshot, requests, games)
    report = run_with_progress(backend, requests, games, o)
    if o.json:
        console.result(True, report.summary())
        return report.exit_code
    rows = []
    for one in report.models:
        mine = [d for d in report.done if d.model == one.spec.key]
        made, saved = sum(d.passes for d in mine), sum(d.copied for d in mine)
        rows.append([one.spec.key, one.spec.title, len(mine), made, saved, one.fitted])
    columns = ["model", "weights of", "objects", "passes made", "passes saved", "basis passes"]
    console.table("", columns, rows)
    print(f"{report.present} objects were there already; {console.duration(report.seconds)}")
    if report.failed:
        first = report.failed[0].error
        console.say(f"wsa encode: {len(report.failed)} objects were set aside. The first: {first}")
    return report.exit_code


def _check(o: EncodeOptions) -> None:
    """Refuse what cannot be, before anything is opened.

    Raises:
        UsageError: A value is out of range.
    """
    parse_output(o.output)
    if not o.models:
        raise UsageError("bad-option", "--models names no model; write --models vit,resnet,clip.")
    if o.workers < 0:
        raise UsageError(
            "bad-option", f"--workers must be 0, for one a core, or more, not {o.workers}."
        )
    if not o.max_step_error >= 0:
        raise UsageError(
            "bad-option", f"--max-step-error must be 0 or more, not {o.max_step_error:g}."
        )
    if o.watch and o.dry_run:
        raise UsageError("bad-option", "--watch has no end to plan for; leave --dry-run out.")
    if not 0.1 <= o.poll <= 86400:
        raise UsageError("bad-option", f"--poll must be 0.1 to 86400 seconds, not {o.poll:g}.")
    if not 0.1 <= o.beat <= 600:
        raise UsageError("bad-option", f"--beat must be 0.1 to 600 seconds, not {o.beat:g}.")
    if o.scheduler not in ("local", "inproc") and "://" not in o.scheduler:
        raise UsageError(
            "bad-option",
            f"--scheduler {o.scheduler!r} is not one; write local, inproc, or tcp://HOST:PORT.",
        )


def run_with_progress(
    backend: Backend, requests: Sequence[Request], games: Sequence[str], o: EncodeOptions
) -> EncodeReport:
    """Encode, and say how far it is."""
    done = total = 0
    with console.Progress("encode", "frames", shown=not o.json) as progress:

        def listen(event: events.Event) -> None:
            nonlocal total, done
            if isinstance(event, events.ModelReady):
                if event.fitted:
                    console.say(f"{event.spec.key}: basis fitted on {event.fitted} frames")
                console.say(f"{event.spec.key}: run by {event.choice}")
            elif isinstance(event, events.Planned):
                total = event.passes + event.copies
            elif isinstance(event, events.SegmentDone):
                done += event.passes + event.copied
            elif isinstance(event, events.AttemptFailed):
                what = "set aside" if event.last else "again"
                console.say(
                    f"{event.game} {event.segment}, {event.model}, attempt {event.attempts} failed "
                    f"({what}): {event.error}"
                )
            elif isinstance(event, events.WorkerUnfit):
                console.say(f"worker {event.worker} on {event.host} gets no work: {event.error}")
            progress.update(done, total)

        return run(
            backend,
            requests,
            games,
            scheduler=o.scheduler,
            workers=o.workers,
            device=o.device,
            max_step_error=o.max_step_error,
            engine=o.engine,
            listen=listen,
        )


def _dry(o: EncodeOptions, snapshot: Snapshot, requests: list[Request], games: list[str]) -> int:
    from wsa.encode.estimate import estimate

    lines = [
        estimate(snapshot, request, games, o.workers, o.device, o.engine, o.max_step_error)
        for request in requests
    ]
    if o.json:
        return console.result(True, {line.alias: dataclasses.asdict(line) for line in lines})
    console.table(
        f"To do for {', '.join(games)}; nothing was changed:",
        ["model", "objects", "passes", "copies", "strip passes", "at most", "engine", "minutes"],
        [
            [
                e.alias,
                e.objects,
                e.passes,
                e.copies,
                e.strip,
                console.size(e.bytes),
                e.engine,
                e.minutes,
            ]
            for e in lines
        ],
    )
    return 0


def _check_model(o: ModelsOptions) -> int:
    """Print each point as it is known; 4 if any failed."""
    from wsa.encode.check import check
    from wsa.encode.forward import choose_device

    if not o.name:
        raise UsageError("bad-option", "Say which model: wsa models check NAME.")
    weights = weights_files(o.weights)
    if names.is_model_key(o.name):
        request = request_of(read_spec(open_snapshot(o.store)[1], o.name), weights)
    else:
        request = parse_request(o.name, weights, o.output, o.precision, o.geometry)
    points = []
    for point in check(request, choose_device(o.device)):
        points.append(point)
        if not o.json:
            print(
                f"{'ok' if point.ok else 'FAILED':<6}  {point.what}: {console.plain(point.found)}"
            )
    ok = all(point.ok for point in points)
    if o.json:
        console.result(True, {"ok": ok, "points": [dataclasses.asdict(point) for point in points]})
    return 0 if ok else ConflictError.exit_code


def models(o: ModelsOptions) -> int:
    """`wsa models`, and `wsa models check NAME`."""
    if o.action == "check":
        return _check_model(o)
    _, snapshot = open_snapshot(o.store, or_empty=True)
    stored = [describe(snapshot, key) for key in snapshot.models]
    known = [parse_request(alias, {}) for alias in ALIASES]
    if o.json:
        aliases = {r.alias: dataclasses.asdict(r) | {"licence": r.licence} for r in known}
        return console.result(True, {"aliases": aliases, "stored": stored})
    console.table(
        "Aliases; any other model of timm is timm:NAME",
        ["alias", "timm", "licence", "weights here"],
        [[r.alias, r.timm_name, r.licence, local_weights(r)] for r in known],
    )
    shown = ["key", "model", "output", "precision", "licence", "embeddings", "passes"]
    if stored:
        rows = [[row[column] for column in shown] for row in stored]
        console.table("\nIn the store", shown, rows)
    else:
        print("\nThe store has no models yet; 'wsa encode --models lite0' would bring the first.")
    return 0
