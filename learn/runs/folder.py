"""The folder of a run.

runs/{game}__{exp_name}__{seed}__{time}/
    config.json      everything the run depends on, the data's segments included
    command.txt      the command line
    metrics.jsonl    scalars, one line each; TensorBoard events beside them
    checkpoints/     {updates}.safetensors, the two newest; best.safetensors with --save-best
    table/           online: the embedding of each distinct frame or window, once
    replay.bin       online DQN: steps, which point into the table
    eval.csv         episodes played by `wsa eval`
    evaluations/     the result of each `wsa eval`, found again by what was asked
    eval_weights.npz the fusion's weights at every step of the newest `wsa eval`
    report.html      everything on one page; `wsa learn` and `wsa eval` rewrite it
    lock             held while a process trains the run
    videos/          with --video
"""

from __future__ import annotations

import itertools
import logging
import time
from pathlib import Path
from typing import Any

import msgspec

from wsa.learn.configs.flags import differing
from wsa.learn.configs.learn import network_options
from wsa.learn.runs.config import FILE, OfflineRun, OnlineRun, RunConfig, read_config
from wsa.store.common import atomic_files, hashing
from wsa.store.common.errors import ConflictError
from wsa.store.objects.writer import author, command_line

_log = logging.getLogger(__name__)


def new_folder(runs: Path, config: RunConfig, exp_name: str) -> Path:
    """`runs/{game}__{exp_name}__{seed}__{time}`; an empty name becomes that of the fusion.

    If a run began in the same second, the folder has the next one's.
    """
    exp_name = exp_name or config.network.fusion.name.rpartition(":")[2]
    times = itertools.count(int(time.time()))
    folders = (runs / f"{config.game}__{exp_name}__{config.seed}__{t}" for t in times)
    return next(folder for folder in folders if not folder.exists())


def begin(folder: Path, config: OfflineRun | OnlineRun) -> None:
    """Start a run in `folder`, or check that the run there is the same; see `find_run`.

    If it is the same with other options, its configuration is rewritten.

    Raises:
        ConflictError: If another run is there.
        DamagedError: If the configuration there cannot be read.
    """
    existing = find_run(folder, config)
    if existing == config:
        return
    if existing and existing.total < config.total:
        _log.info(_extended(existing, config))
    atomic_files.replace(folder / FILE, msgspec.json.format(hashing.canonical(config)))
    if existing is None or msgspec.structs.replace(existing, store=config.store) != config:
        atomic_files.replace(folder / "command.txt", (command_line() + "\n").encode())


def find_run(folder: Path, config: OfflineRun | OnlineRun) -> OfflineRun | OnlineRun | None:
    """Return the run in `folder`, if any, after checking that it is the same as `config`.

    A run counts as the same if only its store has moved, it trains for more updates or steps, or it
    logs, saves, or evaluates at another frequency, which does not change what it learns.

    Raises:
        ConflictError: If another run is there.
        DamagedError: If the configuration there cannot be read.
    """
    if not (folder / FILE).exists():
        return None
    existing = read_config(folder)
    continued = _continued(existing, config)
    if continued != config:
        there, here = _options(continued), _options(config)
        # Another algorithm has other options, and other defaults of the same ones.
        other = [n for n in ("online", "algo") if there[n] != here[n]]
        other = other or [n for n in there if n in here and there[n] != here[n]]
        named = "; ".join(differing(name, there[name], here[name]) for name in other)
        raise ConflictError(
            "run-exists",
            f"{folder} holds another run{named and f', started with {named}'}. Give another "
            f"--run-dir, or continue that run as it was started: wsa learn --resume {folder}",
        )
    return existing


def _continued(
    existing: OfflineRun | OnlineRun, config: OfflineRun | OnlineRun
) -> OfflineRun | OnlineRun:
    """The run `existing` with those values of `config` that may change while a run is trained."""
    old, new = existing.hyperparameters, config.hyperparameters
    if type(old) is not type(new):
        return existing
    may_change = ["log_frequency"]
    if not (isinstance(config, OnlineRun) and config.record):  # Segments end where a run saves.
        may_change.append("save_frequency")
    if config.total > existing.total:
        may_change.append("updates" if isinstance(config, OfflineRun) else "total_timesteps")
    changes = {name: getattr(new, name) for name in may_change if hasattr(new, name)}
    frequency = config.evaluation.eval_frequency
    return msgspec.structs.replace(
        existing,
        store=config.store,
        hyperparameters=msgspec.structs.replace(old, **changes),
        evaluation=msgspec.structs.replace(existing.evaluation, eval_frequency=frequency),
    )


def _options(run: OfflineRun | OnlineRun) -> dict[str, Any]:
    """The options that a run was started with, by flag; those that follow from others are left out."""
    online = isinstance(run, OnlineRun)
    algorithm = msgspec.to_builtins(run.hyperparameters)
    options: dict[str, Any] = {
        "game": run.game,
        "online": online,
        "algo": algorithm.pop("algo" if online else "type"),
        "models": run.models or "none",
        "context": run.context,
        "decode": tuple(run.decoders) or "none",
        "seed": run.seed,
        "init": run.init or "none",
        "protocol": run.protocol.name,
        "max_episode_steps": run.protocol.max_steps,
        **network_options(run.network),
        **algorithm,
        **msgspec.to_builtins(run.evaluation),
    }
    if isinstance(run, OnlineRun):
        options |= {"record": bool(run.record), "parameters": run.parameters}
    return options


def _extended(existing: OfflineRun | OnlineRun, config: OfflineRun | OnlineRun) -> str:
    text = f"The run is extended from {existing.total:,} to {config.total:,} {config.unit}"
    if not config.hyperparameters.scheduled:
        return f"{text}, as if it had started with as many."
    return (
        f"{text}. Its schedules (learning rate, exploration, share of stored data) now end at "
        f"{config.total:,}, so the result differs from that of a run of this length."
    )


def match_existing(
    config: OfflineRun | OnlineRun, folder: Path, record: bool
) -> OfflineRun | OnlineRun:
    """Make an online run match the one already in `folder`, whatever the store received since.

    Args:
        config: The run, from its options and the store.
        record: Whether to record the run's steps in the store. They get a name that is unique among
            runs with the same options, and that the run keeps even if a later wsa adds options.
    """
    if isinstance(config, OfflineRun):
        return config
    before = read_config(folder) if (folder / FILE).exists() else None
    if isinstance(before, OnlineRun):
        config = msgspec.structs.replace(
            config, segments=before.segments, env_groups=before.env_groups
        )
        if record and before.record:
            return msgspec.structs.replace(config, record=before.record)
    if record:
        name = hashing.identity([config, str(folder.resolve()), author()])[:12]
        config = msgspec.structs.replace(config, record=name)
    return config
