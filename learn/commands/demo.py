"""`wsa demo`: all steps of wsa on one game in a few minutes, with a summary table."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from wsa.encode.commands.encode import run_with_progress
from wsa.encode.configs import EncodeOptions
from wsa.encode.jobs.encoding import Encoding
from wsa.encode.models.registry import DEFAULT, parse_request
from wsa.learn.collect.collect import collect, plan_collection
from wsa.learn.configs.algorithms import CQLConfig
from wsa.learn.configs.data import DemoOptions
from wsa.learn.configs.evaluation import EvaluationRequest
from wsa.learn.envs import atari
from wsa.learn.offline.trainer import Trained
from wsa.learn.runs.config import OfflineRun
from wsa.learn.runs.evaluate import Evaluation, evaluate_run, mean_return
from wsa.learn.runs.folder import new_folder
from wsa.learn.runs.machine import Machine
from wsa.learn.runs.setup.make_run import make_offline
from wsa.learn.runs.setup.models import by_default
from wsa.learn.runs.train import launch
from wsa.store.common import terminal
from wsa.store.common.ranges import check_ranges
from wsa.store.maintenance.summary import summarize, total_bytes
from wsa.store.objects.root import open_snapshot
from wsa.store.objects.snapshot import Snapshot, take_snapshot

# They ship with wsa, so no model hub is needed.
MODELS = DEFAULT


def demo(o: DemoOptions) -> int:
    """`wsa demo`."""
    check_ranges(o)
    started = time.perf_counter()
    folder = Path(o.folder).absolute()
    os.environ.setdefault("WSA_CACHE", str(folder / "cache"))
    backend, snapshot = open_snapshot(str(folder / "store"), create=True)
    requests = [parse_request(name, {}) for name in MODELS]

    terminal.say(f"1/4 collect {o.steps:,} steps of {o.game} by a random policy")
    plan = plan_collection(
        snapshot,
        o.game,
        atari.protocol(o.game, "classic"),
        steps=o.steps,
        num_envs=4,
        policy="random",
        seed=1,
        segment_steps=128,
    )
    with terminal.Progress("collect", "steps", plan.missing) as progress:
        collect(plan, backend, progress.update)

    terminal.say(f"2/4 encode with {', '.join(MODELS)}, the encoders that ship with wsa")
    encoded = run_with_progress(backend, Encoding(requests, [o.game]), EncodeOptions())
    models = [model.spec.key for model in encoded.models]

    terminal.say(f"3/4 train WSA with CQL offline, {o.updates:,} updates from the cache")
    snapshot = take_snapshot(backend, snapshot)
    config = make_offline(
        snapshot,
        o.game,
        *by_default(models, "wsa", ""),
        1,
        CQLConfig(updates=o.updates, target_network_frequency=250),
    )
    run_folder = new_folder(folder / "runs", config, "demo")
    with terminal.Progress("learn", "updates", o.updates) as progress:
        trained: Any = launch(run_folder, config, Machine(), lambda step, _: progress.update(step))

    terminal.say(f"4/4 play {terminal.plural(o.episodes, 'full game')} with live embeddings")
    with terminal.Progress("eval", "steps") as progress:
        evaluation = evaluate_run(
            run_folder,
            EvaluationRequest(episodes=o.episodes),
            on_step=lambda player, steps, games: progress.update(steps),
        )
    _summary(o, snapshot, config, trained, evaluation)
    print(f"\nrun {run_folder}")
    print(f"total time: {terminal.duration(time.perf_counter() - started)}")
    return 0


def _summary(
    o: DemoOptions,
    snapshot: Snapshot,
    config: OfflineRun,
    trained: Trained,
    evaluation: Evaluation,
) -> None:
    game = summarize(snapshot, o.game)
    objects = [e for e in snapshot.embeddings(o.game) if e.model in config.inputs]
    count = len(config.inputs)
    per_update = 2 * config.hyperparameters.batch_size
    saved = sum(
        (lookup.found + lookup.remembered) * len(lookup.places)
        for lookup in evaluation.live.lookups.values()
    )
    mean, spread = mean_return(evaluation.episodes)
    random_mean, random_spread = mean_return(evaluation.random)
    games, played = (terminal.plural(n, "game") for n in (o.episodes, game.episodes))
    segments = terminal.plural(game.segments, "segment")
    rows = [
        ("steps", game.steps, f"{game.emulator_frames:,} emulator frames, {played}"),
        ("frames", game.frames, f"stored, each once per segment; {segments}"),
        ("models", count, ", ".join(config.inputs)),
        (
            "passes to encode",
            sum(e.passes for e in objects),
            f"{sum(e.copied for e in objects):,} saved: the same frame or window was already encoded",
        ),
        (
            "passes to train",
            trained.passes,
            f"{trained.updates * per_update * count:,} saved: updates x states x models",
        ),
        (
            "passes to play",
            evaluation.live.passes,
            f"{saved:,} saved: {evaluation.live.hit_rate:.1%} of frames and windows were in the cache",
        ),
        (
            "store",
            terminal.size(total_bytes(snapshot)),
            f"{terminal.size(game.bytes)} frames, {terminal.size(game.embedded)} embeddings",
        ),
        ("updates per second", round(trained.updates_per_s), "WSA + CQL, batch 32, CPU"),
        ("return, trained", mean, f"raw, +- {terminal.number(spread)} over {games}"),
        ("return, random", random_mean, f"raw, +- {terminal.number(random_spread)} over {games}"),
    ]
    title = f"\n{o.game}, {atari.describe(config.protocol)}"
    terminal.table(title, ["what", "", "remarks"], rows)
