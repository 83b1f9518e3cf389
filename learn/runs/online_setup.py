"""From the options of `wsa learn --online` to a run, and its training."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from wsa.encode.configs import weights_files
from wsa.encode.inference.encoder import choose_device
from wsa.encode.live.remote import remote_encoders
from wsa.encode.models.paper import load
from wsa.encode.models.registry import parse_request
from wsa.encode.registration.identity import find
from wsa.encode.registration.register import register
from wsa.encode.registration.select import stored_name
from wsa.learn.configs.learn import LearnOptions
from wsa.learn.configs.unused_options import check_given
from wsa.learn.envs import atari as games
from wsa.learn.fusion.base import FusionConfig
from wsa.learn.networks.heads import NetworkConfig
from wsa.learn.online.dqn import OnlineDQNConfig
from wsa.learn.online.ppo import PPOConfig
from wsa.learn.online.replay_buffer import RECORD
from wsa.learn.online.session import Played
from wsa.learn.runs import offline_run, online_config, online_run
from wsa.learn.runs.online_config import NATURE, OnlineConfig
from wsa.learn.runs.origin import MEAN_CONTEXT, read_origin
from wsa.learn.runs.setup import begin_from, by_default, check_changes, network_of
from wsa.learn.training import checkpoint
from wsa.store.common import names, terminal
from wsa.store.common.errors import UsageError
from wsa.store.objects.probe import MAX_STEP_ERROR
from wsa.store.objects.root import open_snapshot
from wsa.store.objects.snapshot import Snapshot, take_snapshot


def learn(o: LearnOptions) -> int:
    """`wsa learn --online`, and `--resume` of an online run."""
    device = choose_device(o.device)
    if o.resume:
        folder = Path(o.resume)
        config = online_config.read_config(folder)
        open_snapshot(config.store)
    else:
        config, folder = configure(o, device)
    seen = ", ".join(config.inputs) or "none, grey pixels"
    terminal.say(
        f"{config.game}, {games.describe(config.protocol)}; models {seen}; {len(config.segments)} "
        f"segments to look frames up in; run {folder}"
    )
    total = config.hyperparameters.total_timesteps
    if o.dry_run:
        return terminal.result(o.json, estimate(config))
    with terminal.Progress("learn", "steps", total, shown=not o.json) as progress:
        played = train(o, config, folder, device, lambda step, _: progress.update(step))
    return terminal.result(
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
    """Begin a run, unless it has begun, and train it as `online.learn` does.

    The models run where the options say; if that place cannot be reached, no run is begun.
    """
    with contextlib.ExitStack() as stack:
        encoders: Sequence[Any] = ()
        if o.encoder and config.inputs:
            encoders = stack.enter_context(
                remote_encoders(o.encoder, config.store, config.inputs, o.engine)
            )
        offline_run.begin(folder, config)
        return online_run.learn(
            folder,
            config,
            device,
            on_update,
            weights=weights_files(o.weights),
            engine=o.engine,
            encoders=encoders,
            compiled=o.compile,
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
    check_given(o)
    check_changes(o)
    hyperparameters = hyperparameters_of(o)
    network = _network(o)
    backend, _ = open_snapshot(o.store, create=not o.dry_run, or_empty=o.dry_run)

    def keys_of(some: Sequence[str]) -> list[str]:
        # Anew for each: one that has just been registered may be named twice.
        keys = [_key(o, take_snapshot(backend), name, device) for name in some]
        return list(dict.fromkeys(keys))

    context, init = o.context, ""
    if context not in ("", MEAN_CONTEXT):
        context = keys_of([context])[0]
    if o.init:
        init = str(checkpoint.latest(Path(o.init).absolute() / "checkpoints"))
    before = read_origin(Path(o.init)) if o.init else None
    if before and before.models and o.fusion != NATURE:
        network, models, context = begin_from(o, before, network, context, keys_of)
    elif o.models or o.init or o.fusion == NATURE:
        models, context = keys_of(o.models), context or MEAN_CONTEXT
    else:
        shipped = [_shipped(o, take_snapshot(backend), name, device) for name in load.DEFAULT]
        models, context = by_default(shipped, o.fusion, context)
    config = online_config.make_config(
        take_snapshot(backend),
        o.game,
        models,
        context,
        network,
        before.protocol
        if before and not o.protocol
        else games.protocol(o.game, o.protocol or "classic", max_steps=o.max_episode_steps),
        o.seed,
        hyperparameters,
        parameters=o.parameters,
        init=init,
    )
    folder = (
        Path(o.run_dir) if o.run_dir else offline_run.new_folder(Path("runs"), config, o.exp_name)
    )
    config = online_config.continued(config, folder)
    if o.record:
        config = online_config.recorded(config, folder)
    return config, folder


def hyperparameters_of(o: LearnOptions) -> PPOConfig | OnlineDQNConfig:
    """What the learner takes: what is given, or the algorithm's own.

    Raises:
        UsageError: A number is out of range.
    """
    kind = PPOConfig if o.algo == "ppo" else OnlineDQNConfig
    given = {name: getattr(o, name) for name in kind.__struct_fields__}
    values = {name: value for name, value in given.items() if value is not None}
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
    return fitting[0] if fitting else _registered(o, snapshot, name, device)


def _shipped(o: LearnOptions, snapshot: Snapshot, name: str, device: str) -> str:
    """The key of a model that comes with wsa, whatever else the store has by its alias."""
    found = find(snapshot, parse_request(name, weights_files(o.weights), o.output))
    return found.key if found else _registered(o, snapshot, name, device)


def _registered(o: LearnOptions, snapshot: Snapshot, name: str, device: str) -> str:
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
    row = 84 * 84 if config.end_to_end else 2 * sum(map(math.prod, config.shapes))
    windows = max(1, len(set(config.looks)))  # A row of each knows those of the others.
    bytes_ = {"table_bytes": total * (row + 16 * windows + 4 * (windows - 1))}
    if isinstance(config.hyperparameters, OnlineDQNConfig):
        bytes_["replay_bytes"] = total * RECORD.itemsize
    return {"steps": total, "frames": total, **bytes_}
