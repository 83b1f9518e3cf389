"""An online run: what it is asked for, its networks, and its training from any beginning.

Its folder is a run's (`wsa.learn.run`), with the run's table beside the checkpoints:

    table/        what each distinct frame's embedding is, once
    replay.bin    DQN's steps, which point into it
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from wsa.encode import checkpoint
from wsa.encode.live import LiveEncoder
from wsa.encode.lookup import read_spec
from wsa.encode.register import open_model
from wsa.learn import dqn_online, ppo, run
from wsa.learn import env as games
from wsa.learn.config import MEAN_CONTEXT, inputs_of
from wsa.learn.dqn_online import OnlineDQNConfig
from wsa.learn.features import moments
from wsa.learn.heads import ActorCritic, NetworkConfig, QNetwork, Torso
from wsa.learn.nature import GreyPixels, NatureTorso, scale_for
from wsa.learn.offline import check_weight_losses
from wsa.learn.ppo import PPOConfig
from wsa.learn.record import Recording
from wsa.learn.recurrent import RecurrentActorCritic
from wsa.learn.session import Played, Session
from wsa.learn.stage import Stage, online_policy
from wsa.learn.table import Table
from wsa.learn.warm import transfer
from wsa.store import keys, records
from wsa.store.errors import UsageError
from wsa.store.flat import FlatMap, materialise
from wsa.store.reader import Snapshot, take_snapshot
from wsa.store.records import Protocol
from wsa.store.root import open_store
from wsa.store.writer import author

NATURE = "nature"


class OnlineConfig(msgspec.Struct, frozen=True, tag_field="kind", tag="online"):
    """What an online run is.

    Attributes:
        store: The store's URL.
        game: ALE game id.
        models: Keys of the models that are fused; none where the network sees grey pixels.
        context: Key of the model that gives WSA's context, one of them or another; or `mean`.
        shapes: Shape of a frame's embedding by each of `inputs`.
        seed: Of initialisation, environments and draws.
        segments: Segments of the game that all models had encoded when the run was begun.
        protocol: How it is played.
        network: Fusion, frames in a state, heads.
        parameters: Of the end-to-end network, about; 0 for CleanRL's. Of other networks, 0.
        hyperparameters: As the learner takes them; which they are is the algorithm.
        init: Checkpoint of another run whose network this one begins from, or "".
        record: 12 hex digits that name what it plays in the store; "" if that is not kept.
    """

    store: str
    game: str
    models: tuple[str, ...]
    context: str
    shapes: tuple[tuple[int, ...], ...]
    seed: int
    segments: tuple[str, ...]
    protocol: Protocol
    network: NetworkConfig
    parameters: int
    hyperparameters: PPOConfig | OnlineDQNConfig
    init: str = ""
    record: str = ""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Keys of the models that the network reads: those fused, then one for the context alone."""
        alone = self.context != MEAN_CONTEXT and self.context not in self.models
        return (*self.models, self.context) if alone else self.models

    @property
    def end_to_end(self) -> bool:
        """Whether the network sees pixels."""
        return self.network.fusion.name == NATURE

    @property
    def offline(self) -> bool:
        """Whether any batch holds stored data."""
        learner = self.hyperparameters
        return isinstance(learner, OnlineDQNConfig) and learner.offline

    @property
    def columns(self) -> list[slice]:
        """Where each model's numbers stand in a row."""
        edges = itertools.accumulate(map(math.prod, self.shapes), initial=0)
        return [slice(a, b) for a, b in itertools.pairwise(edges)]


def make_config(
    snapshot: Snapshot,
    game: str,
    models: Sequence[str],
    context: str,
    network: NetworkConfig,
    protocol: Protocol,
    seed: int,
    hyperparameters: PPOConfig | OnlineDQNConfig,
    *,
    parameters: int = 0,
    init: str = "",
) -> OnlineConfig:
    """Settle what a run is.

    Args:
        snapshot: A snapshot that has the models.
        game: ALE game id.
        models: Keys of the models that are fused.
        context: Key of the model that gives the context, or `mean`.
        network: Fusion, frames in a state, heads.
        protocol: How to play.
        seed: Of initialisation, environments and draws.
        hyperparameters: Which algorithm, and how.
        parameters: Of the end-to-end network, about.
        init: Checkpoint of a run to begin from.

    Raises:
        UsageError: Options that exclude each other, or a fusion that cannot take the models.
    """
    games.check_game(game)
    config = OnlineConfig(
        store=snapshot.backend.url,
        game=game,
        models=tuple(models),
        context=context,
        shapes=(),
        seed=seed,
        segments=(),
        protocol=protocol,
        network=network,
        parameters=parameters,
        hyperparameters=hyperparameters,
        init=init,
    )
    if config.end_to_end and (config.inputs or config.offline):
        raise UsageError(
            "bad-option",
            "--fusion nature learns from pixels: leave out --models, --context and "
            "--offline-fraction.",
        )
    if parameters and not config.end_to_end:
        raise UsageError("bad-option", "--parameters is for --fusion nature.")
    if not config.end_to_end:
        check_weight_losses(hyperparameters, network.fusion.name)
    if not config.end_to_end and not models:
        raise UsageError("bad-option", "Name at least one model with --models.")
    metas = [] if config.end_to_end else _encoded_by(snapshot, game, config.inputs)
    if config.offline:  # Data of another protocol must not be mixed in.
        metas = [meta for meta in metas if meta.protocol == protocol]
    specs = [read_spec(snapshot, key) for key in config.inputs]
    for spec in specs:
        if spec.identity.window > 1:  # A table's row is a frame's.
            raise UsageError(
                "bad-option",
                f"--online: {spec.alias} looks at {spec.identity.window} frames at once; online "
                "learning takes models of single frames in this version. Leave it out, or collect, "
                "encode and learn without --online.",
            )
    config = msgspec.structs.replace(
        config,
        shapes=tuple(spec.shape for spec in specs),
        segments=tuple(meta.segment for meta in metas),
    )
    with torch.device("meta"):  # Shapes alone: whether the fusion takes them.
        make_network(config)
    return config


def _encoded_by(snapshot: Snapshot, game: str, models: Sequence[str]) -> list[records.SegmentMeta]:
    """Segments of a game that all the models have encoded."""
    if game not in snapshot.games:
        return []
    done = [{e.segment for e in snapshot.embeddings(game, key)} for key in models]
    return [m for m in snapshot.segments(game) if all(m.segment in each for each in done)]


class _Nothing:
    """A flat map of a store that holds nothing of the game."""

    def __init__(self, config: OnlineConfig) -> None:
        self.models, self.shapes = config.inputs, config.shapes
        self.windows = (1,) * len(config.inputs)
        self.columns = self.places = config.columns
        self.width = sum(map(math.prod, config.shapes))
        self.window_width = 0
        self.embeddings = np.empty((0, self.width), np.float16)
        self.digests = np.empty((0, 16), np.uint8)


def open_flat(config: OnlineConfig) -> tuple[Snapshot, FlatMap | None]:
    """The store, and what it had of the game when the run was begun.

    Raises:
        MissingError: The store has lost some of it.
        DamagedError: Stored bytes are not what was committed.
    """
    if not config.segments:
        return take_snapshot(open_store(config.store)), None
    snapshot = run.only(config, take_snapshot(open_store(config.store)))
    return snapshot, materialise(snapshot, config.game, config.inputs)


def make_embedder(
    config: OnlineConfig,
    snapshot: Snapshot,
    flat: FlatMap | None,
    *,
    weights: dict[str, str] | None = None,
    device: str = "cpu",
    engine: str = "auto",
    encoders: Sequence[Any] = (),
) -> Any:
    """What turns the frames that a run sees into rows: grey pixels, or models.

    Args:
        config: The run.
        snapshot: The store.
        flat: What the store has of the game.
        weights: Weights files by alias, where this machine keeps them elsewhere.
        device: Where the models run.
        engine: What runs them; `auto` is what filled the store.
        encoders: For each of `config.inputs`, where they are not models in this process.
    """
    if config.end_to_end:
        return GreyPixels()
    encoders = encoders or [
        open_model(snapshot, key, weights=weights, device=device, engine=engine)
        for key in config.inputs
    ]
    known: Any = _Nothing(config) if flat is None else flat
    return LiveEncoder(known, encoders)


def make_network(config: OnlineConfig) -> Any:
    """The network that a run trains and an evaluation loads."""
    k, actions = config.network.frame_stack, len(config.protocol.actions)
    learner, network = config.hyperparameters, config.network
    torso = None
    inputs = inputs_of(config, [1] * len(config.shapes), config.shapes)
    if config.end_to_end:
        head = actions + isinstance(learner, PPOConfig)
        torso = NatureTorso(k, scale_for(config.parameters, k, head))
        network = msgspec.structs.replace(network, hidden=())
    if isinstance(learner, OnlineDQNConfig):
        return QNetwork(inputs, actions, network, torso)
    if learner.recurrent:
        return RecurrentActorCritic(torso or Torso(inputs, network), actions)
    return ActorCritic(inputs, actions, network, torso)


def learn(
    folder: Path,
    config: OnlineConfig,
    device: str,
    on_update: Callable[[int, dict[str, float]], None] = lambda step, scalars: None,
    *,
    weights: dict[str, str] | None = None,
    engine: str = "auto",
    encoders: Sequence[Any] = (),
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

    Raises:
        ConflictError: Another process is training it; a model gives other embeddings here.
        MissingError: Data or weights are gone.
        DamagedError: The newest checkpoint or the data is damaged.
    """
    torch.manual_seed(config.seed)
    snapshot, flat = open_flat(config)
    learner = config.hyperparameters
    network = make_network(config)
    if config.init:
        begin_from(config, network)
    elif config.offline and flat is not None:
        # Else over what is played: a run must not depend on what others have left in the store.
        network.torso.set_moments(*moments(flat))
    embedder = make_embedder(
        config, snapshot, flat, weights=weights, device=device, engine=engine, encoders=encoders
    )
    env = games.make_env(config.game, config.protocol, learner.num_envs)
    recording = None
    try:
        with run.locked(folder):
            table = Table(folder / "table", embedder)
            if config.record:
                recording = Recording(
                    open_store(config.store),
                    table,
                    list(zip(config.inputs, config.shapes, strict=True)),
                    game=config.game,
                    protocol=config.protocol,
                    policy=online_policy(str(type(learner).__struct_config__.tag)),
                    seed=config.seed,
                    run=config.record,
                    num_envs=learner.num_envs,
                    steps=learner.total_timesteps // learner.num_envs,
                )
            stage = Stage(env, table, config.network.frame_stack, config.seed, recording)
            settled = config.offline or bool(config.init)
            session = Session(stage, config.models, config.columns, settled, recording)
            if isinstance(learner, PPOConfig):
                return ppo.train(learner, session, network, folder, device, on_update)
            return dqn_online.train(
                learner, session, network, flat, config.seed, folder, device, on_update
            )
    finally:
        if recording:
            recording.close()
        env.close()


def begin_from(config: OnlineConfig, network: Any) -> None:
    """Let a network begin as `config.init` says: wholly, or with what it has in common.

    Raises:
        UsageError: The two networks do not fit.
        DamagedError: The checkpoint is damaged.
    """
    path = Path(config.init)
    folder = path.parent.parent
    before = (read_config(folder) if is_online(folder) else run.read_config(folder)).inputs
    if config.inputs and before:
        transfer(network, network.torso, config.inputs, path, before)
    elif config.inputs or before:
        raise UsageError(
            "bad-option",
            f"--init {folder}: one of the two networks sees pixels, the other embeddings.",
        )
    else:
        old = checkpoint.read(path)[0]
        ours = network.state_dict()
        common = {name: old.get(f"online.{name}", tensor) for name, tensor in ours.items()}
        network.load_state_dict(common)


def is_online(folder: Path) -> bool:
    """Whether the run in `folder` is an online one.

    Raises:
        MissingError: There is no run.
    """
    return b'"kind": "online"' in run.config_bytes(folder)


def read_config(folder: Path) -> OnlineConfig:
    """What the online run in `folder` is.

    Raises:
        MissingError: There is no run.
        DamagedError: It is none, or cannot be read.
    """
    return records.read_json(run.config_bytes(folder), OnlineConfig, str(folder / "config.json"))


def recorded(config: OnlineConfig, folder: Path) -> OnlineConfig:
    """A run that keeps what it plays, under a name of its own among all of the same options."""
    name = keys.identity([config, str(folder.resolve()), author()])[:12]
    return msgspec.structs.replace(config, record=name)
