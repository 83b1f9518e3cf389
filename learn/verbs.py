"""The verbs that play, train, judge and look: from options to a printed result and an exit code."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsa.encode.configs import weights_files
from wsa.learn.configs.checks import check_seed
from wsa.learn.configs.data import CollectOptions, DoctorOptions, ListOptions, ShowOptions
from wsa.learn.configs.learn import EvalOptions, LearnOptions
from wsa.learn.envs import atari
from wsa.store.common import names, terminal
from wsa.store.common.errors import MissingError, UsageError
from wsa.store.format.records import Protocol
from wsa.store.objects.root import open_snapshot
from wsa.store.objects.snapshot import Snapshot

if TYPE_CHECKING:
    from wsa.learn.envs.policies import Policy


def collect(o: CollectOptions) -> int:
    """`wsa collect`."""
    from wsa.learn.collect.collect import collect as play
    from wsa.learn.collect.collect import estimate, plan_collection

    protocol = atari.protocol(o.game, o.protocol, o.sticky, o.max_episode_steps)
    backend, snapshot = open_snapshot(o.store, create=not o.dry_run, or_empty=o.dry_run)
    name, policy = _policy(o, protocol)
    plan = plan_collection(
        snapshot,
        o.game,
        protocol,
        steps=o.steps,
        num_envs=o.num_envs,
        policy=name,
        seed=o.seed,
        segment_steps=o.segment_steps,
    )
    terminal.say(
        f"{o.game}, {atari.describe(protocol)}: {plan.missing:,} of "
        f"{plan.steps:,} steps to play ({plan.missing * protocol.frame_skip:,} emulator frames)"
    )
    if o.dry_run:
        return terminal.result(o.json, estimate(plan))
    started = time.perf_counter()
    with terminal.Progress("collect", "steps", plan.missing, shown=not o.json) as progress:
        written = play(plan, backend, progress.update, policy)
    steps = sum(m.steps for m in written)
    return terminal.result(
        o.json,
        {
            "segments": len(written),
            "steps": steps,
            "distinct_frames": sum(m.frames for m in written),
            "episodes": sum(len(m.episodes) for m in written),
            "steps_per_s": steps / (time.perf_counter() - started),
        },
    )


def _policy(o: CollectOptions, protocol: Protocol) -> tuple[str, Policy | None]:
    """Who plays: a name for the record, and a run's network unless it is `random`.

    The name holds the checkpoint's digest: what another network plays is another collection.
    """
    if not 0 <= o.eps <= 1:
        raise UsageError("bad-option", f"--eps must be from 0 to 1, not {o.eps}.")
    if o.policy == "random":
        return "random", None
    from wsa.encode.inference.encoder import choose_device
    from wsa.learn.runs.player import open_player

    player = open_player(
        Path(o.policy), weights=weights_files(o.weights), device=choose_device(o.device)
    )
    if (player.config.game, player.config.protocol.actions) != (o.game, protocol.actions):
        raise UsageError(
            "bad-option",
            f"--policy {o.policy}: that run plays {player.config.game} with "
            f"{len(player.config.protocol.actions)} actions, not {o.game} with "
            f"{len(protocol.actions)}. Give its --game and --protocol.",
        )
    name = f"{player.algo} {player.digest} eps {o.eps:g}"
    return name, player.policy(o.num_envs, o.eps, o.seed)


def learn(o: LearnOptions) -> int:
    """`wsa learn`."""
    from wsa.encode.inference.encoder import choose_device
    from wsa.learn.runs import offline_run
    from wsa.learn.runs.online_config import is_online
    from wsa.learn.runs.setup import configure

    check_seed(o.seed)
    if o.online or (o.resume and is_online(Path(o.resume))):
        from wsa.learn.runs.online_setup import learn as learn_online  # Here: it brings timm.

        return learn_online(o)
    if o.algo == "ppo" or o.fusion == "nature":
        raise UsageError("bad-option", "--algo ppo and --fusion nature need --online.")
    if o.resume:
        folder = Path(o.resume)
        config = offline_run.read_config(folder)
        _, snapshot = open_snapshot(config.store)
    else:
        atari.check_game(o.game)
        _, snapshot = open_snapshot(o.store)
        config = configure(o, snapshot)
        folder = (
            Path(o.run_dir)
            if o.run_dir
            else offline_run.new_folder(Path("runs"), config, o.exp_name)
        )
    terminal.say(
        f"{config.game}, {len(config.segments)} segments; models {', '.join(config.models)}; "
        f"context {config.context}; run {folder}"
    )
    device = choose_device(o.device)
    if o.dry_run:
        from wsa.learn.runs.dry_run import estimate as estimate_run

        return terminal.result(o.json, estimate_run(snapshot, config, device))
    offline_run.begin(folder, config)
    total = config.hyperparameters.updates
    with terminal.Progress("learn", "updates", total, shown=not o.json) as progress:
        trained = offline_run.learn(
            folder,
            config,
            device,
            lambda step, _: progress.update(step),
            weights=weights_files(o.weights),
            engine=o.engine,
            compiled=o.compile,
        )
    return terminal.result(
        o.json,
        {
            "run": str(folder),
            "updates": trained.updates,
            "updates_per_s": trained.updates_per_s,
            "backbone_passes": trained.passes,
        },
    )


def evaluate(o: EvalOptions) -> int:
    """`wsa eval`."""
    from wsa.encode.inference.encoder import choose_device
    from wsa.learn.runs import evaluate as judge
    from wsa.learn.runs.player import read_config

    check_seed(o.seed)
    terminal.say(f"store {read_config(Path(o.run)).store}")
    # The run's games, then as many of a random policy to compare with.
    with terminal.Progress("eval", "games", 2 * o.episodes, shown=not o.json) as progress:
        before = now = 0

        def on_step(steps: int, episodes: int) -> None:
            nonlocal before, now
            if episodes < now:
                before = o.episodes
            now = min(episodes, o.episodes)
            progress.update(before + now)

        evaluation = judge.evaluate(
            Path(o.run),
            o.episodes,
            epsilon=o.epsilon,
            seed=o.seed,
            weights=weights_files(o.weights),
            video=o.video,
            device=choose_device(o.device),
            engine=o.engine,
            num_envs=o.num_envs,
            which=o.checkpoint,
            on_step=on_step,
        )
    return terminal.result(o.json, evaluation.summary())


def list_games(o: ListOptions) -> int:
    """`wsa list`."""
    from wsa.store.maintenance.summary import summaries

    if o.games:
        print(json.dumps(list(atari.games()), indent=2) if o.json else "\n".join(atari.games()))
        return 0
    _, snapshot = open_snapshot(o.store)
    found = summaries(snapshot)
    if o.json:
        return terminal.result(True, {s.game: dataclasses.asdict(s) for s in found})
    if not found:
        terminal.say("It is empty. Collect some frames: wsa collect --game Seaquest")
        return 0
    terminal.table(
        "",
        ["game", "segments", "steps", "distinct frames", "episodes", "mean return", "size"],
        [
            [
                s.game,
                s.segments,
                s.steps,
                s.frames,
                s.episodes,
                s.mean_return,
                terminal.size(s.bytes),
            ]
            for s in found
        ],
    )
    covered = [
        [s.game, what, f"{count:,} of {s.segments:,}", f"{math.floor(100 * count / s.segments)}%"]
        for s in found
        for what, count in [("(frames)", s.pictured), *s.encoded.items()]
    ]
    terminal.table("\nwhat there is of each segment", ["game", "model", "segments", ""], covered)
    return 0


def show(o: ShowOptions) -> int:
    """`wsa show`."""
    from wsa.store.maintenance.summary import card, model_card, segment_card

    of: Callable[[Snapshot, str], dict[str, Any]]
    if _fits(names.segment, o.what):
        of = segment_card
    elif _fits(names.model_key, o.what):
        of = model_card
    else:
        of, _ = card, atari.check_game(o.what)
    _, snapshot = open_snapshot(o.store)
    return terminal.result(o.json, of(snapshot, o.what))


def _fits(grammar: Callable[[str], str], name: str) -> bool:
    try:
        grammar(name)
    except UsageError:
        return False
    return True


def doctor(o: DoctorOptions) -> int:
    """`wsa doctor`."""
    from wsa.learn.doctor import examine

    findings = list(examine(o.store))
    if o.json:
        terminal.result(True, {f.what: {"ok": f.ok, "found": f.found} for f in findings})
    else:
        marks = {True: "ok", False: "BAD", None: "-"}
        rows = [[f.what, marks[f.ok], f.found] for f in findings]
        terminal.table("", ["what", "", "found"], rows)
    return MissingError.exit_code if any(f.ok is False for f in findings) else 0
