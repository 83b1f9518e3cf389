"""The verbs that play, train, judge and look: from options to a printed result and an exit code."""

from __future__ import annotations

from pathlib import Path

from wsa.encode.configs import weights_files
from wsa.learn.configs.checks import check_seed
from wsa.learn.configs.learn import LearnOptions
from wsa.learn.envs import atari
from wsa.store.common import terminal
from wsa.store.common.errors import UsageError
from wsa.store.objects.root import open_snapshot


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
