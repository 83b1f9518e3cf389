"""A training run and its folder: what it was asked for, on which data, and what came of it.

runs/{game}__{exp_name}__{seed}__{time}/
    config.json      everything the run depends on, the data's segments included
    command.txt      the command line
    metrics.jsonl    scalars, one line each; TensorBoard events beside them
    checkpoints/     {updates}.safetensors, the two newest; best.safetensors with --save-best
    eval.csv         episodes played by `wsa eval`
    eval_weights.npz the fusion's weights at every step of the newest `wsa eval`
    lock             held while a process trains the run
    videos/          with --video
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import filelock
import msgspec

from wsa.encode.live.live_encoder import LiveEncoder
from wsa.learn.evaluation.periodic import REMEMBERED, PeriodicEvaluation
from wsa.learn.networks.heads import QNetwork
from wsa.learn.offline.trainer import Trained, train
from wsa.learn.runs.config import RunConfig, inputs_of
from wsa.learn.runs.origin import decode, read_origin
from wsa.learn.runs.warm_start import transfer
from wsa.store.common import atomic_files, hashing, names
from wsa.store.common.errors import ConflictError, DamagedError, MissingError
from wsa.store.objects.flat_map import FlatMap, materialise
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import Snapshot, take_snapshot
from wsa.store.objects.writer import command_line


def new_folder(runs: Path, config: Any, exp_name: str) -> Path:
    """`runs/{game}__{exp_name}__{seed}__{time}`."""
    return runs / f"{config.game}__{exp_name}__{config.seed}__{int(time.time())}"


def begin(folder: Path, config: Any) -> None:
    """Start a run in `folder`, or make sure that the run there is this one.

    Raises:
        ConflictError: Another run is there.
    """
    path = folder / "config.json"
    data = msgspec.json.format(hashing.canonical(config))
    if path.exists():
        if not _alike(folder, config):
            raise ConflictError(
                "run-exists",
                f"{folder} holds another run. Give another --run-dir, or continue that run as it "
                f"was begun: wsa learn --resume {folder}",
            )
        return
    atomic_files.replace(path, data)
    atomic_files.replace(folder / "command.txt", (command_line() + "\n").encode())


def _alike(folder: Path, config: Any) -> bool:
    """Whether the run there is this one; what an older wsa did not know is as by default."""
    try:
        return bool(decode(folder, type(config)) == config)
    except DamagedError:
        return False


def read_config(folder: Path) -> RunConfig:
    """What the run in `folder` is.

    Raises:
        MissingError: There is no run.
    """
    return decode(folder, RunConfig)


def open_data(config: RunConfig) -> tuple[Snapshot, FlatMap]:
    """The run's data: its segments only, materialised.

    Raises:
        MissingError: The store has lost some of them.
        DamagedError: Stored bytes are not what was committed.
    """
    whole = take_snapshot(open_store(config.store))
    snapshot = only(whole, config.game, config.segments)
    return snapshot, materialise(snapshot, config.game, config.inputs)


def only(whole: Snapshot, game: str, segments: Sequence[str]) -> Snapshot:
    """What a snapshot has of a run's segments, and of other games.

    Args:
        whole: The store.
        game: The run's game.
        segments: Those of the game that it was begun with.

    Raises:
        MissingError: The store has lost some of them.
    """
    present = {m.segment: names.segment_path(m.game, m.segment) for m in whole.segments(game)}
    lost = len(set(segments) - present.keys())
    if lost:
        raise MissingError(
            "no-frames",
            f"The store {whole.backend.url} lacks {lost} of the {len(segments)} segments of "
            f"{game} that this run was begun with. Bring them back (the same 'wsa collect' "
            "and 'wsa encode' make the same ones; 'wsa list' shows what is there), or begin "
            "another run.",
        )
    others = {present[segment] for segment in present.keys() - set(segments)}
    return Snapshot(
        whole.backend, {path: c for path, c in whole.commits.items() if path not in others}
    )


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


def learn(
    folder: Path,
    config: RunConfig,
    device: str,
    on_update: Callable[[int, dict[str, float]], None] = lambda step, scalars: None,
    *,
    weights: dict[str, str] | None = None,
    engine: str = "auto",
    compiled: bool = False,
) -> Trained:
    """Train a run, from its beginning or its newest checkpoint.

    Args:
        folder: The run's folder.
        config: The run.
        device: Where to train, and to run the models where games are played on the way.
        on_update: Called with every line of metrics.
        weights: Weights files of models by alias, where this machine keeps them elsewhere.
        engine: What runs them; `auto` is what filled the store.
        compiled: Whether networks go through torch.compile.

    Raises:
        ConflictError: Another process is training it; a model gives other embeddings here.
        MissingError: Data of the run is gone, or a model that is to play.
        DamagedError: The newest checkpoint or the data is damaged.
    """
    snapshot, flat = open_data(config)

    def embedder() -> LiveEncoder:
        from wsa.encode.registration.register import (
            open_models,  # Here: training alone needs no timm.
        )

        models = open_models(snapshot, config.inputs, weights=weights, device=device, engine=engine)
        return LiveEncoder(flat, models, REMEMBERED)

    with locked(folder):
        return train(
            config.hyperparameters,
            config.network,
            flat,
            inputs_of(config, flat.windows, flat.shapes),
            len(config.protocol.actions),
            config.seed,
            folder,
            device,
            warm=functools.partial(_warm, config),
            compiled=compiled,
            evaluation=PeriodicEvaluation(config, embedder, compiled=compiled),
            on_update=on_update,
        )


def _warm(config: RunConfig, network: QNetwork) -> None:
    """Let a network begin as `config.init` says."""
    if config.init:
        path = Path(config.init)
        before = read_origin(path.parent.parent).inputs
        transfer(network, network.torso, config.inputs, path, before)
