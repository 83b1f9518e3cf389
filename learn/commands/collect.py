"""`wsa collect`: play a game into a store."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from wsa.encode.configs import require_used, weights_files
from wsa.learn.configs.data import CollectOptions
from wsa.learn.configs.evaluation import EvaluationRequest
from wsa.learn.envs import atari
from wsa.learn.envs.policies import Policy, load_policy
from wsa.store.common import terminal, user_code
from wsa.store.common.errors import UsageError
from wsa.store.format.records import Protocol
from wsa.store.objects.root import open_snapshot

_log = logging.getLogger(__name__)


def collect(o: CollectOptions) -> int:
    """`wsa collect`."""
    return terminal.result(o.json, perform(o, progress=not o.json))


def perform(o: CollectOptions, *, progress: bool = False) -> dict[str, Any]:
    """Run `wsa collect`, and return its results as `--json` prints them."""
    from wsa.learn.collect.collect import collect as play
    from wsa.learn.collect.collect import estimate, plan_collection
    from wsa.learn.collect.rewards import rewarded_steps, warning
    from wsa.store.objects.snapshot import take_snapshot

    protocol = atari.protocol(o.game, o.rules.protocol, o.rules.sticky, o.rules.max_episode_steps)
    name, policy = _policy(o, protocol)
    backend, snapshot = open_snapshot(o.store, create=not o.dry_run, or_empty=o.dry_run)
    plan = plan_collection(
        snapshot,
        o.game,
        protocol,
        steps=o.steps,
        num_envs=o.num_envs,
        policy=name,
        seed=o.seed,
        segment_steps=o.rules.segment_steps,
    )
    _log.info(
        f"{o.game}, {atari.describe(protocol)}: {plan.missing:,} of "
        f"{plan.steps:,} steps to play ({plan.missing * protocol.frame_skip:,} emulator frames)"
    )
    if o.dry_run:
        return estimate(plan)
    started = time.perf_counter()
    with terminal.Progress("collect", "steps", plan.missing, shown=progress) as shown:
        written = play(plan, backend, shown.update, policy)
    steps = sum(m.steps for m in written)
    seconds = time.perf_counter() - started
    rewarded = rewarded_steps(take_snapshot(backend), written)
    if steps and not rewarded:
        _log.warning(warning(o.game, steps))
    return {
        "segments": len(written),
        "steps": steps,
        "distinct_frames": sum(m.frames for m in written),
        "episodes": sum(len(m.episodes) for m in written),
        "rewarded_steps": rewarded,
        "steps_per_s": steps / seconds,
    }


def _policy(o: CollectOptions, protocol: Protocol) -> tuple[str, Policy | None]:
    """The policy, with its name for the record: `random`, a user's policy, or a run's network.

    A network's name contains the checkpoint's digest: data of another network is another
    collection.
    """
    if not 0 <= o.run_policy.eps <= 1:
        raise UsageError(f"--eps must be from 0 to 1, not {o.run_policy.eps}.")
    if o.policy == "random":
        _reject_run_options(o)
        return "random", None
    if user_code.is_name(o.policy) and not Path(o.policy).exists():
        _reject_run_options(o)
        return o.policy, load_policy(o.policy, protocol.actions, o.seed)
    user_code.type_in(o.run_policy.trust)
    from wsa.encode.inference.encoder import choose_device
    from wsa.learn.runs.config import read_config
    from wsa.learn.runs.player import open_player

    request = EvaluationRequest(device=choose_device(o.run_policy.device))
    weights = weights_files(o.run_policy.weights)
    require_used(weights, read_config(Path(o.policy)).inputs)
    player = open_player(Path(o.policy), request, otherwise=o.store, weights=weights)
    if (player.config.game, player.config.protocol.actions) != (o.game, protocol.actions):
        raise UsageError(
            f"--policy {o.policy}: that run plays {player.config.game} with "
            f"{len(player.config.protocol.actions)} actions, not {o.game} with "
            f"{len(protocol.actions)}. Give its --game and --protocol."
        )
    name = f"{player.config.hyperparameters.NAME} {player.digest} eps {o.run_policy.eps:g}"
    return name, player.policy(o.num_envs, o.run_policy.eps, o.seed)


def _reject_run_options(o: CollectOptions) -> None:
    """Reject options that a policy without a run would ignore."""
    given, default = o.run_policy, type(o.run_policy)()
    for name in ("eps", "weights", "device", "trust"):
        if getattr(given, name) != getattr(default, name):
            raise UsageError(f"--{name} is for a run's network. Leave it out.")
