"""Train a run, offline or online, from the start or from its newest checkpoint."""

from __future__ import annotations

import contextlib
import logging
import pkgutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from wsa.learn.collect import rewards
from wsa.learn.collect.collect import CollectPlan
from wsa.learn.data.transitions import moments
from wsa.learn.envs import atari
from wsa.learn.envs.atari import group_sizes
from wsa.learn.evaluation.periodic import REMEMBERED, PeriodicEvaluation
from wsa.learn.offline.trainer import Trained, train_offline
from wsa.learn.online.embedding_table import Table
from wsa.learn.online.env_runner import EnvRunner, online_policy
from wsa.learn.online.record_segments import Embedded, Recording
from wsa.learn.online.session import Played, Session, engines_of
from wsa.learn.runs.config import OfflineRun, OnlineRun
from wsa.learn.runs.data import make_embedder, open_data
from wsa.learn.runs.folder import begin
from wsa.learn.runs.machine import Machine
from wsa.learn.runs.network import make_network, windows_and_shapes
from wsa.learn.runs.setup.warm_start import warm_start
from wsa.learn.runs.track import write_hparams
from wsa.learn.training import checkpoint
from wsa.learn.training.lock import locked
from wsa.learn.training.loop import OnLine
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import take_snapshot

_log = logging.getLogger(__name__)


def launch(
    folder: Path,
    config: OfflineRun | OnlineRun,
    machine: Machine,
    on_line: OnLine = lambda step, line: None,
    *,
    encoder: str = "",
) -> Trained | Played:
    """Start a run if it has not started, and train it.

    A finished run is only loaded: no model is opened.

    Args:
        folder, config, machine, on_line: See `train_stored`.
        encoder: Address of a Dask scheduler whose workers run the models of an online run. If it
            cannot be reached, no run is started.

    Raises:
        ConflictError: If another run is in the folder.
        WsaError: See `train_stored`.
    """
    if _is_finished(folder, config):
        begin(folder, config)
        return _finished(folder, config, machine.device)
    if isinstance(config, OfflineRun):
        begin(folder, config)
        return train_stored(folder, config, machine, on_line)
    with contextlib.ExitStack() as stack:
        encoders: Sequence[Any] = ()
        if encoder and config.inputs:
            from wsa.encode.live.remote import remote_encoders  # Imported here: it imports Dask.

            encoders = stack.enter_context(
                remote_encoders(encoder, config.store, config.inputs, machine.engine)
            )
        begin(folder, config)
        return train_playing(folder, config, machine, on_line, encoders=encoders)


def _is_finished(folder: Path, config: OfflineRun | OnlineRun) -> bool:
    """Whether a run has made its last step, and played the games that follow it."""
    done = checkpoint.newest_step(folder / "checkpoints")
    return done >= config.last_step and not PeriodicEvaluation(config).skipped(
        folder, done, last=True
    )


def _finished(folder: Path, config: OfflineRun | OnlineRun, device: str) -> Trained | Played:
    """The result of training a finished run again: its network, and no steps.

    Raises:
        MissingError: If the store does not have the run's embeddings.
        DamagedError: If the newest checkpoint is damaged.
    """
    data = take_snapshot(open_store(config.store)) if isinstance(config, OfflineRun) else None
    network = make_network(config, *windows_and_shapes(config, data))
    newest = checkpoint.latest(folder / "checkpoints")
    _, extra = checkpoint.load(newest, {"online": network})
    network.to(device)
    if isinstance(config, OfflineRun):
        return Trained(network, 0, 0.0, 0)
    table = extra["table"]
    return Played(network, 0, 0.0, 0, table["known"] / max(1, table["asked"]))


def train_stored(
    folder: Path,
    config: OfflineRun,
    machine: Machine = Machine(),
    on_line: OnLine = lambda step, line: None,
) -> Trained:
    """Train an offline run.

    Args:
        folder: The run's folder, started by `wsa.learn.runs.folder.begin`.
        machine: Where and how it trains, and its models play evaluation games.

    Raises:
        ConflictError: If another process is training it, or a model's embeddings differ here.
        MissingError: If data of the run, or a model for the evaluation games, is missing.
        DamagedError: If the newest checkpoint or the data is damaged.
    """
    snapshot, flat = open_data(config)
    assert flat is not None, "an offline run has data"
    learns_values = config.hyperparameters.OUTPUT == "values"  # Cloning ignores rewards.
    if learns_values and not flat.rows["reward"][flat.steps].any():
        _log.warning(rewards.warning(config.game, len(flat.steps)))

    def embedder() -> Any:
        models = machine.open_models(snapshot, config.inputs)
        return make_embedder(config, flat, models, remember=REMEMBERED, threads=machine.threads)

    with locked(folder):
        write_hparams(folder, config)
        return train_offline(
            config.hyperparameters,
            config.network,
            flat,
            config.inputs_of(flat.windows, flat.shapes),
            len(config.protocol.actions),
            config.seed,
            folder,
            machine.device,
            warm_start=lambda network: warm_start(config, network) if config.init else None,
            compiled=machine.compiled,
            evaluation=PeriodicEvaluation(config, embedder, compiled=machine.compiled),
            on_line=on_line,
        )


def train_playing(
    folder: Path,
    config: OnlineRun,
    machine: Machine = Machine(),
    on_line: OnLine = lambda step, line: None,
    *,
    encoders: Sequence[Any] = (),
) -> Played:
    """Train an online run.

    Args:
        folder, config, machine, on_line: See `train_stored`.
        encoders: One for each of `config.inputs`, if the models do not run in this process.

    Raises:
        WsaError: See `train_stored`.
    """
    snapshot, flat = open_data(config)
    encoders = encoders or machine.open_models(snapshot, config.inputs, engines_of(folder))
    learner = config.hyperparameters
    # `Table` keeps every embedding, so the embedder remembers none.
    embedder = make_embedder(config, flat, encoders, remember=0, threads=machine.threads)
    # Seed only now: opening a model draws random numbers, and remote models are not opened here.
    torch.manual_seed(config.seed)
    network = make_network(config, config.model_windows, config.shapes)
    unsettled = list(range(len(config.inputs)))  # Models without a mean and standard deviation.
    # A checkpoint holds the network and what is unsettled, and the run of --init may be gone.
    resuming = bool(checkpoint.all_of(folder / "checkpoints"))
    if config.init and not resuming:
        unsettled = warm_start(config, network)
    if config.mixes_stored and flat is not None and not resuming:
        # Otherwise moments come from play: a run must not depend on what others left in the store.
        network.torso.set_moments(*moments(flat), unsettled)
    if config.end_to_end or config.network.normalize != "standard" or config.mixes_stored:
        unsettled = []
    with contextlib.ExitStack() as stack:
        groups = [
            stack.enter_context(contextlib.closing(atari.make_env(config.game, config.protocol, n)))
            for n in group_sizes(learner.num_envs, config.env_groups)
        ]
        stack.enter_context(locked(folder))
        write_hparams(folder, config)
        table = Table(folder / "table", embedder)
        recording = None
        if config.record:
            recording = stack.enter_context(contextlib.closing(_record(config, table, embedder)))
        runner = EnvRunner(groups, table, config.network.frame_stack, config.seed, recording)
        session = Session(
            runner,
            config.models,
            config.columns,
            unsettled,
            seed=config.seed,
            stored=flat,
            recording=recording,
            engines=embedder.engines,
            compiled=machine.compiled,
            evaluation=PeriodicEvaluation(
                config,
                lambda: make_embedder(
                    config,
                    flat,
                    encoders,
                    remember=REMEMBERED,
                    elsewhere=table.parts,
                    threads=machine.threads,
                ),
                compiled=machine.compiled,
            ),
        )
        if (first := learner.first_update(session.settled)) > config.last_step:
            _log.warning(
                f"this run of {config.last_step:,} steps makes no update: the first would follow "
                f"step {first:,}. Give more --total-timesteps, or see --learning-starts (dqn)."
            )
        train = pkgutil.resolve_name(learner.LEARNER)
        played: Played = train(learner, session, network, folder, machine.device, on_line)
        return played


def _record(config: OnlineRun, table: Table, embedder: Any) -> Recording:
    """Make the recording that keeps a run's steps in the store."""
    learner = config.hyperparameters
    envs = learner.num_envs
    plan = CollectPlan(
        config.game,
        config.protocol,
        policy=online_policy(learner.NAME),
        seed=config.seed,
        run=config.record,
        num_envs=envs,
        steps=learner.total_timesteps // envs * envs,
    )
    models = zip(config.inputs, config.model_windows, config.shapes, embedder.engines, strict=True)
    return Recording(open_store(config.store), plan, table, [Embedded(*model) for model in models])
