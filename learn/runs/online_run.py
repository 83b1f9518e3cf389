"""An online run's training, from any beginning.

Its folder is a run's (`wsa.learn.runs.offline_run`), with the run's table beside the checkpoints:

    table/        what each distinct frame's embedding is, or window's, once
    replay.bin    DQN's steps, which point into it
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wsa.encode.live import live_encoder
from wsa.encode.live.live_encoder import Elsewhere, LiveEncoder
from wsa.encode.registration.register import open_models
from wsa.learn.data.transitions import moments
from wsa.learn.envs import atari as games
from wsa.learn.evaluation.periodic import REMEMBERED, PeriodicEvaluation
from wsa.learn.networks.nature import GreyPixels
from wsa.learn.online import dqn, ppo
from wsa.learn.online.embedding_table import Table
from wsa.learn.online.env_runner import Stage, online_policy
from wsa.learn.online.ppo import PPOConfig
from wsa.learn.online.record_segments import Embedded, Recording
from wsa.learn.online.session import Played, Session
from wsa.learn.runs import offline_run
from wsa.learn.runs.online_config import OnlineConfig, begin_from, make_network
from wsa.learn.training import checkpoint
from wsa.store.objects.flat_map import FlatMap, in_files, materialise
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import Snapshot, take_snapshot


class _Nothing:
    """A flat map of a store that holds nothing of the game."""

    def __init__(self, config: OnlineConfig) -> None:
        self.models, self.shapes = config.inputs, config.shapes
        self.windows, self.places = config.looks, config.columns
        self.columns = in_files(self.windows, self.shapes)
        widths = list(zip(self.windows, map(math.prod, self.shapes), strict=True))
        self.width = sum(width for window, width in widths if window == 1)
        self.window_width = sum(width for window, width in widths if window > 1)
        self.embeddings = np.empty((0, self.width), np.float16)
        self.windowed = np.empty((0, self.window_width), np.float16)
        self.digests = np.empty((0, 16), np.uint8)

    def window_digests(self, window: int) -> NDArray[np.uint8]:
        """As of `FlatMap`."""
        return self.digests


def open_flat(config: OnlineConfig) -> tuple[Snapshot, FlatMap | None]:
    """The store, and what it had of the game when the run was begun.

    Raises:
        MissingError: The store has lost some of it.
        DamagedError: Stored bytes are not what was committed.
    """
    whole = take_snapshot(open_store(config.store))
    if not config.segments:
        return whole, None
    snapshot = offline_run.only(whole, config.game, config.segments)
    return snapshot, materialise(snapshot, config.game, config.inputs)


def make_embedder(
    config: OnlineConfig,
    flat: FlatMap | None,
    encoders: Sequence[Any],
    *,
    remember: int = live_encoder.REMEMBERED,
    elsewhere: Mapping[int, Elsewhere] | None = None,
) -> Any:
    """What turns the frames that a run sees into rows: grey pixels, or models.

    Args:
        config: The run.
        flat: What the store has of the game.
        encoders: One for each of `config.inputs`.
        remember: How many frames, and how many windows, seen live it keeps.
        elsewhere: As of `LiveEncoder`.
    """
    if config.end_to_end:
        return GreyPixels()
    known: Any = _Nothing(config) if flat is None else flat
    return LiveEncoder(known, encoders, remember, elsewhere)


def learn(
    folder: Path,
    config: OnlineConfig,
    device: str,
    on_update: Callable[[int, dict[str, float]], None] = lambda step, scalars: None,
    *,
    weights: dict[str, str] | None = None,
    engine: str = "auto",
    encoders: Sequence[Any] = (),
    compiled: bool = False,
) -> Played:
    """Train a run, from its beginning or its newest checkpoint.

    Args:
        folder: The run's folder.
        config: The run.
        device: Where to train and to run the models.
        on_update: Called with every line of metrics.
        weights: Weights files by alias, where this machine keeps them elsewhere.
        engine: What runs them; `auto` is what filled the store.
        encoders: For each of `config.inputs`, where they are not models in this process.
        compiled: Whether networks go through torch.compile.

    Raises:
        ConflictError: Another process is training it; a model gives other embeddings here.
        MissingError: Data or weights are gone.
        DamagedError: The newest checkpoint or the data is damaged.
    """
    snapshot, flat = open_flat(config)
    learner = config.hyperparameters
    encoders = encoders or open_models(
        snapshot, config.inputs, weights=weights, device=device, engine=engine
    )
    embedder = make_embedder(config, flat, encoders, remember=0)  # The table does.
    # Now: opening a model draws random numbers, and it may be open somewhere else.
    torch.manual_seed(config.seed)
    network = make_network(config)
    if checkpoint.all_of(folder / "checkpoints"):
        pass  # It holds the network, and what --init named may be gone.
    elif config.init:
        begin_from(config, network)
    elif config.offline and flat is not None:
        # Else over what is played: a run must not depend on what others have left in the store.
        network.torso.set_moments(*moments(flat))
    env = games.make_env(config.game, config.protocol, learner.num_envs)
    recording = None
    try:
        with offline_run.locked(folder):
            table = Table(folder / "table", embedder)
            if config.record:
                models = zip(
                    config.inputs, config.looks, config.shapes, embedder.engines, strict=True
                )
                recording = Recording(
                    open_store(config.store),
                    table,
                    [Embedded(*model) for model in models],
                    game=config.game,
                    protocol=config.protocol,
                    policy=online_policy(str(type(learner).__struct_config__.tag)),
                    seed=config.seed,
                    run=config.record,
                    num_envs=learner.num_envs,
                    steps=learner.total_timesteps // learner.num_envs,
                )
            stage = Stage(env, table, config.network.frame_stack, config.seed, recording)
            standard = not config.end_to_end and config.network.normalize == "standard"
            settled = config.offline or bool(config.init) or not standard
            evaluation = PeriodicEvaluation(
                config,
                lambda: make_embedder(
                    config, flat, encoders, remember=REMEMBERED, elsewhere=table.parts
                ),
                compiled=compiled,
            )
            session = Session(
                stage, config.models, config.columns, settled, recording,
                compiled=compiled, evaluation=evaluation,
            )  # fmt: skip
            if isinstance(learner, PPOConfig):
                return ppo.train(learner, session, network, folder, device, on_update)
            return dqn.train(
                learner, session, network, flat, config.seed, folder, device, on_update
            )
    finally:
        if recording:
            recording.close()
        env.close()
