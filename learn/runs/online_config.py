"""What an online run is: its options settled, its folder's `config.json`, and its network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch

from wsa.learn.envs import atari as games
from wsa.learn.fusion.losses import check_weight_losses
from wsa.learn.networks.heads import ActorCritic, NetworkConfig, QNetwork, Torso
from wsa.learn.networks.nature import NatureTorso, scale_for
from wsa.learn.networks.recurrent import RecurrentActorCritic
from wsa.learn.online.dqn import OnlineDQNConfig
from wsa.learn.online.ppo import PPOConfig
from wsa.learn.runs.config import inputs_of
from wsa.learn.runs.origin import Origin, config_bytes, decode, read_origin
from wsa.learn.runs.warm_start import transfer
from wsa.store.common import hashing
from wsa.store.common.errors import UsageError
from wsa.store.format import records
from wsa.store.format.records import Protocol
from wsa.store.objects.flat_map import side_by_side
from wsa.store.objects.model_spec import read_spec
from wsa.store.objects.snapshot import Snapshot
from wsa.store.objects.writer import author

NATURE = "nature"


class OnlineConfig(Origin, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="online"):
    """What an online run is.

    Attributes:
        models, context, network, protocol: As `Origin`.
        store: The store's URL.
        game: ALE game id.
        shapes: Shape of an embedding by each of `inputs`.
        seed: Of initialisation, environments and draws.
        segments: Segments of the game that all models had encoded when the run was begun.
        parameters: Of the end-to-end network, about; 0 for CleanRL's. Of other networks, 0.
        hyperparameters: As the learner takes them; which they are is the algorithm.
        init: Checkpoint of another run whose network this one begins from, or "".
        record: 12 hex digits that name what it plays in the store; "" if that is not kept.
        windows: Frames that each of `inputs` looks at; not written where each looks at one.
    """

    store: str
    game: str
    shapes: tuple[tuple[int, ...], ...]
    seed: int
    segments: tuple[str, ...]
    parameters: int
    hyperparameters: PPOConfig | OnlineDQNConfig
    init: str = ""
    record: str = ""
    windows: tuple[int, ...] | msgspec.UnsetType = msgspec.UNSET

    @property
    def looks(self) -> tuple[int, ...]:
        """Frames that each of `inputs` looks at."""
        return self.windows or (1,) * len(self.shapes)

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
        return side_by_side(self.shapes)


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
    if config.offline:
        metas = _stored_data(snapshot, config, metas)
    specs = [read_spec(snapshot, key) for key in config.inputs]
    windows = tuple(spec.identity.window for spec in specs)
    config = msgspec.structs.replace(
        config,
        shapes=tuple(spec.shape for spec in specs),
        windows=windows if max(windows, default=1) > 1 else msgspec.UNSET,
        segments=tuple(meta.segment for meta in metas),
    )
    with torch.device("meta"):  # Shapes alone: whether the fusion takes them, and they fit.
        network_made = make_network(config)
        if init:
            begin_from(config, network_made)
    return config


def _stored_data(
    snapshot: Snapshot, config: OnlineConfig, encoded: Sequence[records.SegmentMeta]
) -> list[records.SegmentMeta]:
    """Of the segments that all models have encoded those whose data may be mixed in.

    Raises:
        UsageError: There is none: data of another protocol must not be.
    """
    ours = [meta for meta in encoded if meta.protocol == config.protocol]
    if ours:
        return ours
    game, played = config.game, {m.protocol for m in snapshot.segments(config.game)}
    if config.protocol in played:
        remedy = f"Encode what it has: wsa encode --game {game} --models ..."
    elif played:
        others = "; ".join(sorted(map(games.describe, played)))
        remedy = (
            f"What it has was played by another: {others}. Choose that with --protocol, or collect "
            "what this run needs"
        )
    else:
        remedy = f"Collect and encode some: wsa collect --game {game}"
    raise UsageError(
        "bad-option",
        f"--offline-fraction: the store has no data of {game} by {games.describe(config.protocol)} "
        f"that all models have encoded. {remedy}; or leave it out.",
    )


def _encoded_by(snapshot: Snapshot, game: str, models: Sequence[str]) -> list[records.SegmentMeta]:
    """Segments of a game that all the models have encoded."""
    if game not in snapshot.games:
        return []
    done = [{e.segment for e in snapshot.embeddings(game, key)} for key in models]
    return [m for m in snapshot.segments(game) if all(m.segment in each for each in done)]


def make_network(config: OnlineConfig) -> Any:
    """The network that a run trains and an evaluation loads."""
    k, actions = config.network.frame_stack, len(config.protocol.actions)
    learner, network = config.hyperparameters, config.network
    torso = None
    inputs = inputs_of(config, config.looks, config.shapes)
    if config.end_to_end:
        head = actions + isinstance(learner, PPOConfig)
        torso = NatureTorso(k, scale_for(config.parameters, k, head))
        network = msgspec.structs.replace(network, hidden=())
    if isinstance(learner, OnlineDQNConfig):
        return QNetwork(inputs, actions, network, torso)
    if learner.recurrent:
        return RecurrentActorCritic(torso or Torso(inputs, network), actions)
    return ActorCritic(inputs, actions, network, torso)


def begin_from(config: OnlineConfig, network: Any) -> None:
    """Let a network begin as `config.init` says: wholly, or with what it has in common.

    Raises:
        UsageError: The two networks do not fit.
        DamagedError: The checkpoint is damaged.
    """
    path = Path(config.init)
    folder = path.parent.parent
    before = read_origin(folder).inputs
    if bool(config.inputs) != bool(before):
        raise UsageError(
            "bad-option",
            f"--init {folder}: one of the two networks sees pixels, the other embeddings. Begin "
            "from another run, or from nothing.",
        )
    transfer(network, network.torso, config.inputs, path, before)


def is_online(folder: Path) -> bool:
    """Whether the run in `folder` is an online one.

    Raises:
        MissingError: There is no run.
    """
    return b'"kind": "online"' in config_bytes(folder)


def read_config(folder: Path) -> OnlineConfig:
    """What the online run in `folder` is.

    Raises:
        MissingError: There is no run.
        DamagedError: It is none, cannot be read, or was begun by a newer wsa.
    """
    return decode(folder, OnlineConfig)


def continued(config: OnlineConfig, folder: Path) -> OnlineConfig:
    """The same run as the one in `folder`, if there is one, whatever the store has got since."""
    if not (folder / "config.json").exists() or not is_online(folder):
        return config
    return msgspec.structs.replace(config, segments=read_config(folder).segments)


def recorded(config: OnlineConfig, folder: Path) -> OnlineConfig:
    """A run that keeps what it plays, under a name of its own among all of the same options.

    A run that goes on keeps its name, whatever options a later wsa has.
    """
    if (folder / "config.json").exists() and is_online(folder):
        before = read_config(folder).record
        if before:
            return msgspec.structs.replace(config, record=before)
    name = hashing.identity([config, str(folder.resolve()), author()])[:12]
    return msgspec.structs.replace(config, record=name)
