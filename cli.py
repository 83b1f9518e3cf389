"""The `wsa` command: parse options, call one function of a room, print, choose the exit code.

`wsa --help` is answered from the table below without importing anything heavy; each verb imports
its room when it runs. Results go to standard output, progress and remarks to standard error.

Exit codes: 0 done, 2 usage, 3 not found, 4 conflict, 5 damage found, 6 storage unavailable,
130 interrupted.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsa import __version__
from wsa.store.errors import MissingError, UsageError, WsaError

if TYPE_CHECKING:
    from wsa.encode.models import Request
    from wsa.encode.options import EncodeOptions, ModelsOptions, VerifyOptions
    from wsa.encode.run import EncodeReport
    from wsa.learn.options import (
        CollectOptions,
        DemoOptions,
        DoctorOptions,
        EvalOptions,
        LearnOptions,
        ListOptions,
        ShowOptions,
    )
    from wsa.learn.run import Evaluation
    from wsa.store.backends import Backend
    from wsa.store.reader import Snapshot

INTERRUPTED = 130
DEMO_MODELS = ("lite0", "lite1", "lite2")

# Verb: what it does, and an example. The function of the same name below does it.
VERBS: dict[str, tuple[str, str]] = {
    "collect": (
        "play a game and keep what was seen",
        "wsa collect --game Seaquest --steps 100000 --num-envs 8 --policy random --seed 1",
    ),
    "encode": (
        "run each frozen model once over every frame not yet encoded",
        "wsa encode --models vit,resnet,clip --game Seaquest",
    ),
    "learn": (
        "train the fusion and a DQN head on cached embeddings",
        "wsa learn --game Seaquest --models lite0,lite1,lite2 --fusion wsa --algo dqn",
    ),
    "eval": (
        "play full games with a trained run and live embeddings",
        "wsa eval runs/Seaquest__wsa__1__1700000000 --episodes 10 --video",
    ),
    "verify": ("read and check every committed byte of a store", "wsa verify --store /lab/wsa"),
    "list": ("what a store holds, a line for each game", "wsa list --store /lab/wsa"),
    "show": ("everything recorded of one game", "wsa show Seaquest"),
    "models": ("the models there are, and those in a store", "wsa models --store /lab/wsa"),
    "doctor": ("is this machine ready: libraries, device, weights, store", "wsa doctor"),
    "demo": ("all of it on one game, in a few minutes", "wsa demo"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return 0 if arguments else UsageError.exit_code
    if arguments[0] in ("-V", "--version"):
        print(f"wsa {__version__}")
        return 0
    verb, rest = arguments[0], arguments[1:]
    try:
        if verb not in VERBS:
            raise UsageError("bad-option", _unknown_verb(verb))
        return _RUN[verb](_parse(verb, rest))
    except WsaError as error:
        print(f"wsa {verb}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(
            f"wsa {verb}: interrupted. Nothing committed is lost; the same command continues.",
            file=sys.stderr,
        )
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _overview() -> str:
    lines = "\n".join(f"  {verb:<9} {what}" for verb, (what, _) in VERBS.items())
    return (
        "usage: wsa VERB [OPTIONS]\n\n"
        "Run each frozen vision model once per distinct frame, share the embeddings, and train\n"
        f"Weight Sharing Attention on them.\n\nverbs:\n{lines}\n\n"
        "The store is --store PATH, or WSA_STORE, or a folder of the user's data.\n"
        "wsa VERB --help shows a verb's options.\n\n"
        "example:\n  wsa demo"
    )


def _unknown_verb(verb: str) -> str:
    import difflib

    close = difflib.get_close_matches(verb, VERBS, n=1)
    hint = f"Did you mean '{close[0]}'? " if close else ""
    return f"there is no such verb. {hint}'wsa --help' lists them."


def _parse(verb: str, arguments: list[str]) -> Any:
    """Options of a verb, or `SystemExit` after help (0) or a usage error (2)."""
    import tyro

    what, example = VERBS[verb]
    try:
        return tyro.cli(
            _options()[verb],
            prog=f"wsa {verb}",
            description=what[0].upper() + what[1:] + ".",
            args=arguments,
        )
    except SystemExit as stop:
        if not stop.code:
            print(f"\nexample:\n  {example}")
        raise


def _options() -> dict[str, Any]:
    from wsa.encode import options as encoding
    from wsa.learn import options as learning

    return {
        "collect": learning.CollectOptions,
        "encode": encoding.EncodeOptions,
        "learn": learning.LearnOptions,
        "eval": learning.EvalOptions,
        "verify": encoding.VerifyOptions,
        "list": learning.ListOptions,
        "show": learning.ShowOptions,
        "models": encoding.ModelsOptions,
        "doctor": learning.DoctorOptions,
        "demo": learning.DemoOptions,
    }


def _collect(o: CollectOptions) -> int:
    from wsa.learn import console, env
    from wsa.learn.collect import collect, estimate, plan_collection

    protocol = env.protocol(o.game, o.protocol, o.sticky, o.max_episode_steps)
    backend, snapshot = _open(o.store, create=not o.dry_run, or_empty=o.dry_run)
    plan = plan_collection(
        snapshot,
        o.game,
        protocol,
        steps=o.steps,
        num_envs=o.num_envs,
        policy=o.policy,
        seed=o.seed,
        segment_steps=o.segment_steps,
    )
    console.say(
        f"{o.game}, {env.describe(protocol)}, into {backend.url}: {plan.missing:,} of "
        f"{plan.steps:,} steps to play ({plan.missing * protocol.frame_skip:,} emulator frames)"
    )
    if o.dry_run:
        return _result(o.json, estimate(plan))
    started = time.perf_counter()
    with console.Progress("collect", "steps", plan.missing, shown=not o.json) as progress:
        written = collect(plan, backend, progress.update)
    steps, frames = sum(m.steps for m in written), sum(m.frames for m in written)
    return _result(
        o.json,
        {
            "segments": len(written),
            "steps": steps,
            "distinct_frames": frames,
            "episodes": sum(len(m.episodes) for m in written),
            "steps_per_s": steps / (time.perf_counter() - started),
        },
    )


def _encode(o: EncodeOptions) -> int:
    from wsa.learn import console

    for game in o.game:
        _check_game(game)
    requests = _requests(o)
    backend, snapshot = _open(o.store)
    for request in requests:
        console.say(
            f"{request.alias}: {request.timm_name}, {request.output}, weights from "
            f"{request.source}, licence {request.licence}"
        )
    if o.dry_run:
        return _dry_encode(o, snapshot, requests)
    report = _encode_with_progress(
        backend,
        requests,
        o.game,
        shown=not o.json,
        scheduler=o.scheduler,
        workers=o.workers,
        device=o.device,
        max_step_error=o.max_step_error,
    )
    if o.json:
        return _result(True, _encode_json(report))
    rows = []
    for one in report.models:
        mine = [d for d in report.done if d.model == one.spec.key]
        rows.append(
            [
                one.spec.key,
                one.spec.title,
                len(mine),
                sum(d.passes for d in mine),
                sum(d.copied for d in mine),
                one.fitted,
            ]
        )
    columns = ["model", "weights of", "objects", "passes made", "passes saved", "strip passes"]
    console.table("", columns, rows)
    print(f"{report.present} objects were there already; {console.duration(report.seconds)}")
    return 0


def _encode_with_progress(
    backend: Backend,
    requests: Sequence[Request],
    games: Sequence[str],
    shown: bool = True,
    **options: Any,
) -> EncodeReport:
    from wsa.encode import events
    from wsa.encode.run import encode
    from wsa.learn import console

    done = total = 0
    with console.Progress("encode", "frames", shown=shown) as progress:

        def listen(event: events.Event) -> None:
            nonlocal total, done
            if isinstance(event, events.ModelReady) and event.fitted:
                console.say(f"{event.spec.key}: basis fitted on {event.fitted} strip frames")
            elif isinstance(event, events.Planned):
                total = event.passes + event.copies
            elif isinstance(event, events.SegmentDone):
                done += event.passes + event.copied
            progress.update(done, total)

        return encode(backend, requests, games, listen=listen, **options)


def _encode_json(report: EncodeReport) -> dict[str, Any]:
    return {
        "models": {r.spec.key: {"random": r.spec.identity.random} for r in report.models},
        "objects": len(report.done),
        "present": report.present,
        "passes": report.passes,
        "copied": report.copied,
        "strip_passes": sum(r.fitted for r in report.models),
        "seconds": report.seconds,
    }


def _dry_encode(o: EncodeOptions, snapshot: Snapshot, requests: list[Request]) -> int:
    from wsa.encode.estimate import estimate
    from wsa.encode.run import wanted_games
    from wsa.learn import console

    games = wanted_games(snapshot, o.game)
    lines = [estimate(snapshot, request, games, o.workers, o.device) for request in requests]
    if o.json:
        return _result(True, {line.alias: dataclasses.asdict(line) for line in lines})
    console.table(
        f"To do in {snapshot.backend.url} for {', '.join(games)}; nothing was changed:",
        ["model", "objects", "passes", "copies", "strip passes", "at most", "minutes"],
        [
            [e.alias, e.objects, e.passes, e.copies, e.strip, console.size(e.bytes), e.minutes]
            for e in lines
        ],
    )
    return 0


def _learn(o: LearnOptions) -> int:
    from wsa.learn import console, run
    from wsa.learn.dqn import DQNConfig

    if o.resume:
        folder = Path(o.resume)
        config = run.read_config(folder)
    else:
        _check_game(o.game)
        hyperparameters = DQNConfig(
            **{f.name: getattr(o, f.name) for f in dataclasses.fields(DQNConfig)}
        )
        _, snapshot = _open(o.store)
        config = run.make_config(
            snapshot, o.game, o.models, o.context, o.seed, hyperparameters, o.protocol
        )
        folder = Path(o.run_dir) if o.run_dir else run.new_folder(Path("runs"), config, o.exp_name)
    console.say(
        f"{config.game}, {len(config.segments)} segments; models {', '.join(config.models)}; "
        f"context {config.context}; run {folder}"
    )
    if o.dry_run:
        return 0
    run.begin(folder, config)
    total = config.hyperparameters.updates
    with console.Progress("learn", "updates", total, shown=not o.json) as progress:
        trained = run.learn(
            folder, config, _device(o.device), lambda step, _: progress.update(step)
        )
    return _result(
        o.json,
        {
            "run": str(folder),
            "updates": trained.updates,
            "updates_per_s": trained.updates_per_s,
            "backbone_passes": 0,
        },
    )


def _eval(o: EvalOptions) -> int:
    from wsa.learn import console, run

    with console.Progress("eval", "steps", shown=not o.json) as progress:
        evaluation = run.evaluate(
            Path(o.run),
            o.episodes,
            epsilon=o.epsilon,
            seed=o.seed,
            weights=_weights(o.weights),
            video=o.video,
            device=_device(o.device),
            num_envs=o.num_envs,
            on_step=lambda steps, episodes: progress.update(steps),
        )
    return _result(o.json, _evaluation(evaluation))


def _evaluation(evaluation: Evaluation) -> dict[str, Any]:
    from wsa.learn.run import mean_return

    mean, spread = mean_return(evaluation.episodes)
    random_mean, random_spread = mean_return(evaluation.random)
    live = evaluation.live
    return {
        "updates": evaluation.updates,
        "episodes": len(evaluation.episodes),
        "return_mean": mean,
        "return_std": spread,
        "random_return_mean": random_mean,
        "random_return_std": random_spread,
        "frames": live.frames,
        "found_in_store": live.found,
        "seen_before_live": live.remembered,
        "hit_rate": round(live.hit_rate, 4),
        "backbone_passes": live.passes,
        "seconds": evaluation.seconds,
    }


def _verify(o: VerifyOptions) -> int:
    from wsa.learn import console
    from wsa.store.errors import DamagedError
    from wsa.store.root import open_store
    from wsa.store.verify import verify

    backend = open_store(o.store)
    with console.Progress("verify", "objects", shown=not o.json) as progress:
        report = verify(backend, progress.update)
    _result(o.json, dataclasses.asdict(report) if o.json else _counts(report, "damage"))
    for damage in report.damage if not o.json else ():
        print(f"damaged: {damage.concerns}\n  {damage.why}")
    return DamagedError.exit_code if report.damage else 0


def _list(o: ListOptions) -> int:
    from wsa.learn import console, env
    from wsa.learn.report import summarise

    if o.games:
        print("\n".join(env.games()))
        return 0
    backend, snapshot = _open(o.store)
    found = [summarise(snapshot, game) for game in snapshot.games]
    if o.json:
        return _result(True, {s.game: dataclasses.asdict(s) for s in found})
    columns = ["game", "segments", "steps", "emulator frames", "distinct", "episodes"]
    console.table(
        f"{backend.url}",
        [*columns, "mean return", "frames in", "embeddings in", "models"],
        [
            [
                s.game,
                s.segments,
                s.steps,
                s.emulator_frames,
                s.frames,
                s.episodes,
                s.mean_return,
                console.size(s.bytes),
                console.size(s.embedded),
                ", ".join(f"{key} {share:.0%}" for key, share in s.models.items()) or "none",
            ]
            for s in found
        ],
    )
    return 0


def _show(o: ShowOptions) -> int:
    from wsa.learn.report import card

    _check_game(o.game)
    _, snapshot = _open(o.store)
    return _result(o.json, card(snapshot, o.game))


def _models(o: ModelsOptions) -> int:
    from wsa.encode import models
    from wsa.learn import console
    from wsa.learn.report import model_row

    _, snapshot = _open(o.store, or_empty=True)
    stored = [model_row(snapshot, key) for key in snapshot.models]
    known = [models.parse_request(alias, {}) for alias in models.ALIASES]
    if o.json:
        aliases = {r.alias: dataclasses.asdict(r) | {"licence": r.licence} for r in known}
        return _result(True, {"aliases": aliases, "stored": stored})
    console.table(
        "Aliases; any other model of timm is timm:NAME",
        ["alias", "timm", "licence", "weights here"],
        [[r.alias, r.timm_name, r.licence, models.local_weights(r)] for r in known],
    )
    shown = ["key", "model", "output", "precision", "licence", "frames", "passes"]
    print()
    console.table(f"In {o.store}", shown, [[row[column] for column in shown] for row in stored])
    return 0


def _doctor(o: DoctorOptions) -> int:
    from wsa.learn import console
    from wsa.learn.doctor import examine

    findings = list(examine(o.store))
    if o.json:
        return _result(True, {f.what: {"ok": f.ok, "found": f.found} for f in findings})
    marks = {True: "ok", False: "BAD", None: "-"}
    console.table("", ["what", "", "found"], [[f.what, marks[f.ok], f.found] for f in findings])
    return MissingError.exit_code if any(f.ok is False for f in findings) else 0


def _demo(o: DemoOptions) -> int:
    from wsa.encode.models import parse_request
    from wsa.learn import console, env, run
    from wsa.learn.collect import collect, plan_collection
    from wsa.learn.dqn import DQNConfig
    from wsa.learn.report import summarise, total_bytes

    started = time.perf_counter()
    folder = Path(o.folder).absolute()
    os.environ.setdefault("WSA_CACHE", str(folder / "cache"))
    backend, snapshot = _open(str(folder / "store"), create=True)
    protocol = env.protocol(o.game, "classic")
    requests = [parse_request(name, {}) for name in DEMO_MODELS]

    console.say(f"1/4 collect {o.steps:,} steps of {o.game} by a random policy")
    plan = plan_collection(
        snapshot, o.game, protocol, steps=o.steps, num_envs=4, policy="random", seed=1,
        segment_steps=128,
    )  # fmt: skip
    with console.Progress("collect", "steps", plan.missing) as progress:
        collect(plan, backend, progress.update)

    console.say(f"2/4 encode with {', '.join(r.timm_name for r in requests)}, pretrained")
    report = _encode_with_progress(backend, requests, games=[o.game])

    console.say(f"3/4 train WSA and double DQN offline, {o.updates:,} updates from the cache")
    hyperparameters = DQNConfig(updates=o.updates, target_network_frequency=250)
    _, snapshot = _open(str(folder / "store"))
    keys = [one.spec.key for one in report.models]
    config = run.make_config(snapshot, o.game, keys, run.MEAN_CONTEXT, 1, hyperparameters)
    run_folder = run.new_folder(folder / "runs", config, "demo")
    run.begin(run_folder, config)
    with console.Progress("learn", "updates", o.updates) as progress:
        trained = run.learn(run_folder, config, "cpu", lambda step, _: progress.update(step))

    console.say(f"4/4 play {o.episodes} full games with live embeddings")
    with console.Progress("eval", "steps") as progress:
        seen = run.evaluate(run_folder, o.episodes, on_step=lambda steps, _: progress.update(steps))
    game = summarise(snapshot, o.game)
    objects = snapshot.embeddings(o.game)
    naive = 2 * hyperparameters.batch_size * trained.updates * len(keys)
    result = _evaluation(seen)
    console.table(
        f"\n{o.game}, {env.describe(protocol)}",
        ["", "", ""],
        [
            ["steps collected", f"{game.steps:,}", f"{game.emulator_frames:,} emulator frames"],
            ["distinct frames", f"{game.frames:,}", f"in {game.segments} segments"],
            ["models", str(len(keys)), ", ".join(keys)],
            [
                "backbone passes to encode",
                f"{sum(e.passes for e in objects):,}",
                f"{sum(e.copied for e in objects):,} saved: the frame had been seen",
            ],
            [
                "... to fit the bases, once ever",
                f"{sum(r.fitted for r in report.models):,}",
                "strip frames of 104 games; 0 if the store had the models",
            ],
            ["... to train", "0", f"{naive:,} saved: 2 states x batch x updates x models"],
            [
                "... to play",
                f"{seen.live.passes:,}",
                f"{(seen.live.found + seen.live.remembered) * len(keys):,} saved: "
                f"{seen.live.hit_rate:.1%} of {seen.live.frames:,} frames were hits",
            ],
            [
                "bytes in the store",
                console.size(total_bytes(snapshot)),
                f"frames {console.size(game.bytes)}, embeddings {console.size(game.embedded)}",
            ],
            ["updates per second", f"{trained.updates_per_s:,.0f}", "WSA, batch 32, this CPU"],
            [
                "return of WSA + DQN, raw",
                f"{result['return_mean']:,.0f}",
                f"sd {result['return_std']:,.0f} over {o.episodes} games, epsilon 0.001",
            ],
            [
                "return of a random policy",
                f"{result['random_return_mean']:,.0f}",
                f"sd {result['random_return_std']:,.0f} over as many; this is a demonstration of "
                "the way, not a trained agent",
            ],
        ],
    )
    print(f"\nrun {run_folder}\nall of it took {console.duration(time.perf_counter() - started)}")
    return 0


def _open(store: str, *, create: bool = False, or_empty: bool = False) -> tuple[Backend, Snapshot]:
    """A store and a snapshot of it; an empty one if there is none and that will do."""
    from wsa.store.backends import open_backend
    from wsa.store.reader import Snapshot, take_snapshot
    from wsa.store.root import open_store

    try:
        backend = open_store(store, create=create)
    except MissingError:
        if not or_empty:
            raise
        backend = open_backend(store)
        return backend, Snapshot(backend, {})
    return backend, take_snapshot(backend)


def _requests(o: EncodeOptions) -> list[Request]:
    from wsa.encode.models import parse_request
    from wsa.encode.spec import parse_output

    parse_output(o.output)
    if not o.models:
        raise UsageError("bad-option", "--models names no model; write --models vit,resnet,clip.")
    weights = _weights(o.weights)
    return [parse_request(name, weights, o.output, o.precision) for name in o.models]


def _weights(pairs: Sequence[str]) -> dict[str, str]:
    for pair in pairs:
        if "=" not in pair:
            raise UsageError(
                "bad-option", f"--weights {pair}: write ALIAS=FILE, as vit=path.safetensors."
            )
    return dict(pair.split("=", 1) for pair in pairs)


def _check_game(game: str) -> None:
    from wsa.learn.env import check_game

    check_game(game)


def _device(device: str) -> str:
    from wsa.encode.forward import choose_device

    return choose_device(device)


def _counts(report: Any, *without: str) -> dict[str, Any]:
    return {k: v for k, v in dataclasses.asdict(report).items() if k not in without}


def _result(as_json: bool, values: dict[str, Any]) -> int:
    """Print a verb's result: JSON, or a line for each value."""
    if as_json:
        print(json.dumps(values, indent=2, default=str))
    else:
        _print_values(values, "")
    return 0


def _print_values(values: dict[str, Any], indent: str) -> None:
    width = max(map(len, values), default=0)
    for name, value in values.items():
        label = f"{indent}{name.replace('_', ' '):<{width}}  "
        if isinstance(value, dict):
            print(label.rstrip())
            _print_values(value, indent + "  ")
        elif isinstance(value, (list, tuple)) and value and isinstance(value[0], dict):
            print(label.rstrip())
            for one in value:
                _print_values(one, indent + "  ")
        else:
            print(label + _value(value))


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, float):
        return f"{value:,.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


_RUN: dict[str, Callable[[Any], int]] = {
    "collect": _collect,
    "encode": _encode,
    "learn": _learn,
    "eval": _eval,
    "verify": _verify,
    "list": _list,
    "show": _show,
    "models": _models,
    "doctor": _doctor,
    "demo": _demo,
}
