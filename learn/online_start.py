"""From the options of `wsa learn --online` to a run, and its training."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from wsa.encode import checkpoint, console
from wsa.encode.forward import choose_device
from wsa.encode.live_remote import remote_encoders
from wsa.encode.models import parse_request
from wsa.encode.options import open_snapshot, weights_files
from wsa.encode.register import register
from wsa.learn import env as games
from wsa.learn import online, run
from wsa.learn.adapters import FusionConfig
from wsa.learn.config import MEAN_CONTEXT
from wsa.learn.dqn_online import OnlineDQNConfig
from wsa.learn.heads import NetworkConfig
from wsa.learn.online import NATURE, OnlineConfig
from wsa.learn.options import LearnOptions
from wsa.learn.ppo import PPOConfig
from wsa.learn.session import Played
from wsa.learn.start import network_of, stored_name
from wsa.store import names
from wsa.store.errors import UsageError
from wsa.store.reader import Snapshot, take_snapshot

MAX_STEP_ERROR = 0.1


def learn(o: LearnOptions) -> int:
    """`wsa learn --online`, and `--resume` of an online run."""
    device = choose_device(o.device)
    if o.resume:
        folder = Path(o.resume)
        config = online.read_config(folder)
        open_snapshot(config.store)
    else:
        config, folder = configure(o, device)
    seen = ", ".join(config.inputs) or "none, grey pixels"
    console.say(
        f"{config.game}, {games.describe(config.protocol)}; models {seen}; {len(config.segments)} "
        f"segments to look frames up in; run {folder}"
    )
    total = config.hyperparameters.total_timesteps
    if o.dry_run:
        return console.result(o.json, estimate(config))
    run.begin(folder, config)
    with console.Progress("learn", "steps", total, shown=not o.json) as progress:
        played = train(o, config, folder, device, lambda step, _: progress.update(step))
    return console.result(
        o.json,
        {
            "run": str(folder),
            "steps": played.steps,
            "steps_per_s": played.steps_per_s,
            "hit_rate": round(played.hit_rate, 4),
            "backbone_passes": played.passes,
        },
    )


def train(
    o: LearnOptions,
    config: OnlineConfig,
    folder: Path,
    device: str,
    on_update: Callable[[int, dict[str, float]], None],
) -> Played:
    """Train a run as `online.learn` does, with the models where the options say."""
    with contextlib.ExitStack() as stack:
        encoders: Sequence[Any] = ()
        if o.encoder and config.inputs:
            encoders = stack.enter_context(
                remote_encoders(o.encoder, config.store, config.inputs, o.engine)
            )
        return online.learn(
            folder,
            config,
            device,
            on_update,
            weights=weights_files(o.weights),
            engine=o.engine,
            encoders=encoders,
        )


def configure(o: LearnOptions, device: str) -> tuple[OnlineConfig, Path]:
    """Settle what a run is and where, registering the models that the store does not have.

    Raises:
        UsageError: Options contradict each other or are out of range.
        MissingError: No weights, or no run to begin from.
    """
    games.check_game(o.game)
    if o.algo not in ("ppo", "dqn"):
        raise UsageError("bad-option", f"--online --algo {o.algo}: choose from ppo, dqn.")
    if o.add or o.drop:
        raise UsageError("bad-option", "--add and --drop are for runs without --online.")
    hyperparameters = hyperparameters_of(o)
    network = _network(o)
    backend, snapshot = open_snapshot(o.store, create=not o.dry_run, or_empty=o.dry_run)
    keys = [_key(o, snapshot, name, device) for name in o.models]
    context = o.context
    if context != MEAN_CONTEXT:
        context = _key(o, take_snapshot(backend), context, device)
    init = str(checkpoint.latest(Path(o.init) / "checkpoints")) if o.init else ""
    config = online.make_config(
        take_snapshot(backend),
        o.game,
        list(dict.fromkeys(keys)),
        context,
        network,
        games.protocol(o.game, o.protocol or "classic", max_steps=o.max_episode_steps),
        o.seed,
        hyperparameters,
        parameters=o.parameters,
        init=init,
    )
    folder = Path(o.run_dir) if o.run_dir else run.new_folder(Path("runs"), config, o.exp_name)
    if o.record:
        config = online.recorded(config, folder)
    return config, folder


def hyperparameters_of(o: LearnOptions) -> PPOConfig | OnlineDQNConfig:
    """What the learner takes: what is given, or the algorithm's own.

    Raises:
        UsageError: A number is out of range.
    """
    kind = PPOConfig if o.algo == "ppo" else OnlineDQNConfig
    offline = LearnOptions()
    values = {}
    for name in kind.__struct_fields__:
        value = getattr(o, name)
        shared = name in ("learning_rate", "save_frequency", "log_frequency")
        # Options that offline learning has too begin as offline learning wants them.
        if value is not None and not (shared and value == getattr(offline, name)):
            values[name] = value
    if o.algo == "dqn" and o.offline_fraction_end is None:
        values["offline_fraction_end"] = o.offline_fraction
    return kind(**values)


def _network(o: LearnOptions) -> NetworkConfig:
    if o.fusion != NATURE:
        return network_of(o)
    return NetworkConfig(FusionConfig(NATURE), o.frame_stack, "none", ())


def _key(o: LearnOptions, snapshot: Snapshot, name: str, device: str) -> str:
    """The key of a model by its alias or key; one that the store lacks is registered.

    Raises:
        UsageError: The alias fits several.
    """
    alias = stored_name(snapshot, name)
    fitting = [key for key in snapshot.models if alias in (key, names.key_alias(key))]
    if len(fitting) > 1:
        raise UsageError(
            "bad-option",
            f"{name} may be any of {', '.join(fitting)}; give the whole key. 'wsa models' shows "
            "how they differ.",
        )
    if fitting:
        return fitting[0]
    if o.dry_run:
        raise UsageError(
            "bad-option",
            f"--dry-run: the store has no model {name} yet. Leave out --dry-run, or run "
            f"'wsa encode --models {name}' first.",
        )
    request = parse_request(name, weights_files(o.weights), o.output)
    return register(snapshot, request, MAX_STEP_ERROR, device).spec.key


def estimate(config: OnlineConfig) -> dict[str, float]:
    """What a run would take at most: steps, and bytes of its folder if no frame came twice."""
    total = config.hyperparameters.total_timesteps
    width = sum(column.stop - column.start for column in config.columns)
    row = 84 * 84 if config.end_to_end else 2 * width
    return {"steps": total, "frames": total, "table_bytes": total * (row + 16)}
