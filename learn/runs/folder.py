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

import logging
import time
from pathlib import Path
from typing import Any

import msgspec

from wsa.learn.runs.config import FILE, OfflineRun, OnlineRun, RunConfig, read_config
from wsa.store.common import atomic_files, hashing
from wsa.store.common.errors import ConflictError, DamagedError
from wsa.store.objects.writer import author, command_line

_log = logging.getLogger(__name__)


def new_folder(runs: Path, config: RunConfig, exp_name: str) -> Path:
    """`runs/{game}__{exp_name}__{seed}__{time}`; an empty name becomes that of the fusion."""
    exp_name = exp_name or config.network.fusion.name.rpartition(":")[2]
    return runs / f"{config.game}__{exp_name}__{config.seed}__{int(time.time())}"


def begin(folder: Path, config: OfflineRun | OnlineRun) -> None:
    """Start a run in `folder`, or check that the run there is the same.

    A run counts as the same if only its store has moved, or it trains for more updates or steps.
    Then its configuration is rewritten.

    Raises:
        ConflictError: If another run is there.
    """
    path = folder / FILE
    if path.exists():
        try:
            existing = read_config(folder)
        except DamagedError:
            existing = None
        if existing == config:
            return
        if existing is None or not _continues(existing, config):
            raise ConflictError(
                "run-exists",
                f"{folder} holds another run. Give another --run-dir, or continue that "
                f"run as it was started: wsa learn --resume {folder}",
            )
        if existing.total == config.total:
            atomic_files.replace(path, msgspec.json.format(hashing.canonical(config)))
            return
        _log.info(_extended(existing, config))
    atomic_files.replace(path, msgspec.json.format(hashing.canonical(config)))
    atomic_files.replace(folder / "command.txt", (command_line() + "\n").encode())


def _continues(existing: OfflineRun | OnlineRun, config: OfflineRun | OnlineRun) -> bool:
    """Whether `config` is the run `existing`, with its store moved or its training extended."""
    if type(existing) is not type(config) or config.total < existing.total:
        return False
    length = {"updates" if isinstance(config, OfflineRun) else "total_timesteps": config.total}
    longer: Any = msgspec.structs.replace(existing.hyperparameters, **length)
    changes: dict[str, Any] = {"store": config.store, "hyperparameters": longer}
    return msgspec.structs.replace(existing, **changes) == config


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
        folder: The run's folder.
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
