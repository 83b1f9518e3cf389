"""The folder of a run.

runs/{game}__{exp_name}__{seed}__{time}/
    config.json      everything the run depends on, the data's segments included
    command.txt      the command line
    metrics.jsonl    scalars, one line each; TensorBoard events beside them
    checkpoints/     {updates}.safetensors, the two newest; best.safetensors with --save-best
    table/           online: what each distinct frame's embedding is, or window's, once
    replay.bin       online DQN: steps, which point into the table
    eval.csv         episodes played by `wsa eval`
    eval_weights.npz the fusion's weights at every step of the newest `wsa eval`
    report.html      all of it to look at, in one page; `wsa learn` and `wsa eval` write it again
    lock             held while a process trains the run
    videos/          with --video
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import msgspec

from wsa.learn.runs.config import FILE, OfflineRun, OnlineRun, RunConfig, read_config
from wsa.store.common import atomic_files, hashing, terminal
from wsa.store.common.errors import ConflictError, DamagedError
from wsa.store.objects.writer import author, command_line


def new_folder(runs: Path, config: RunConfig, exp_name: str) -> Path:
    """`runs/{game}__{exp_name}__{seed}__{time}`."""
    return runs / f"{config.game}__{exp_name}__{config.seed}__{int(time.time())}"


def begin(folder: Path, config: OfflineRun | OnlineRun) -> None:
    """Start a run in `folder`, or make sure that the run there is this one.

    The same run with its store elsewhere, or with more updates or steps, is this one: its
    configuration is written again.

    Raises:
        ConflictError: Another run is there.
    """
    path = folder / FILE
    if path.exists():
        try:
            found = read_config(folder)
        except DamagedError:
            found = None
        if found == config:
            return
        if found is None or not _goes_on(found, config):
            raise ConflictError(
                "run-exists",
                f"{folder} holds another run. Give another --run-dir, or continue that "
                f"run as it was started: wsa learn --resume {folder}",
            )
        if found.total == config.total:
            atomic_files.replace(path, msgspec.json.format(hashing.canonical(config)))
            return
        terminal.say(_extended(found, config))
    atomic_files.replace(path, msgspec.json.format(hashing.canonical(config)))
    atomic_files.replace(folder / "command.txt", (command_line() + "\n").encode())


def _goes_on(found: OfflineRun | OnlineRun, config: OfflineRun | OnlineRun) -> bool:
    """Whether a run is another one with its store elsewhere, or made longer."""
    if type(found) is not type(config) or config.total < found.total:
        return False
    length = {"updates" if isinstance(config, OfflineRun) else "total_timesteps": config.total}
    longer: Any = msgspec.structs.replace(found.hyperparameters, **length)
    changes: dict[str, Any] = {"store": config.store, "hyperparameters": longer}
    return msgspec.structs.replace(found, **changes) == config


def _extended(found: OfflineRun | OnlineRun, config: OfflineRun | OnlineRun) -> str:
    said = f"The run is extended from {found.total:,} to {config.total:,} {config.unit}"
    if not config.hyperparameters.scheduled:
        return f"{said}, as if it had started with as many."
    return (
        f"{said}. Its schedules (learning rate, exploration, share of stored data) now end at "
        f"{config.total:,}, so the result differs from that of a run of this length."
    )


def settled(config: OfflineRun | OnlineRun, folder: Path, record: bool) -> OfflineRun | OnlineRun:
    """An online run as the one that is in `folder` already, whatever the store has received since.

    Args:
        config: The run as its options and the store say.
        folder: Its folder.
        record: Whether it keeps what it plays: under a name of its own among all runs of the same
            options, which it keeps whatever options a later wsa has.
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


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run's folder.

    Raises:
        ConflictError: Another process is training it.
    """
    lock = filelock.FileLock(folder / "lock", timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise ConflictError(
            "run-exists",
            f"Another process is training {folder}. Wait for it, or give another --run-dir.",
        ) from None
    try:
        yield
    finally:
        lock.release()
