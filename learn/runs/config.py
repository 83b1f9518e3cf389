"""What a training run is: the data, the models, the network and how it is trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from wsa.encode.registration.select import _ambiguous, choose_models
from wsa.learn.envs import atari as games
from wsa.learn.fusion.base import Inputs
from wsa.learn.fusion.losses import check_weight_losses
from wsa.learn.networks.heads import NetworkConfig, Torso
from wsa.learn.offline.bc import BCConfig
from wsa.learn.offline.dqn import DQNConfig
from wsa.learn.runs.origin import MEAN_CONTEXT, Origin
from wsa.store.common import names
from wsa.store.common.errors import UsageError
from wsa.store.objects.flat_map import shapes_of
from wsa.store.objects.snapshot import Snapshot


class RunConfig(Origin, frozen=True, forbid_unknown_fields=True):
    """What a run is.

    Attributes:
        models, context, network: As `Origin`.
        protocol: How the data was played, and evaluation is.
        store: The store's URL.
        game: ALE game id.
        seed: Of initialisation and draws.
        segments: Segments of the data, so that a continued run sees what it began with.
        hyperparameters: As the learner takes them; which they are is the algorithm.
        init: Checkpoint of another run whose network this one begins from, or "".
    """

    store: str
    game: str
    seed: int
    segments: tuple[str, ...]
    hyperparameters: DQNConfig | BCConfig
    init: str = ""


def inputs_of(config: Any, windows: Sequence[int], shapes: Sequence[tuple[int, ...]]) -> Inputs:
    """What a run's network reads of a state.

    Args:
        config: The run, offline or online.
        windows: Frames that each of `config.inputs` looks at; one that looks at several gives one
            embedding for a state. Of one that gives the context alone the newest frame is read.
        shapes: Of each one's embedding.
    """
    fused = len(config.models)
    stacked = tuple(
        (
            config.network.frame_stack if window == 1 and i < fused else 1,
            *(shape if len(shape) == 3 else (math.prod(shape),)),
        )
        for i, (window, shape) in enumerate(zip(windows, shapes, strict=True))
    )
    context = None if config.context == MEAN_CONTEXT else config.inputs.index(config.context)
    return Inputs(stacked, context, fused)


def make_config(
    snapshot: Snapshot,
    game: str,
    models: Sequence[str],
    context: str,
    seed: int,
    hyperparameters: DQNConfig | BCConfig,
    protocol: str = "",
    network: NetworkConfig | None = None,
    init: str = "",
) -> RunConfig:
    """Settle what a run is.

    Raises:
        MissingError: No frames, or a model has not encoded them.
        UsageError: The fusion cannot take the models, an alias fits several of them, or the game
            was played under several protocols and none of them is named: their scores must not be
            mixed.
    """
    games.check_game(game)
    chosen = choose_models(snapshot, game, models)
    if context != MEAN_CONTEXT:
        fitting = [key for key in chosen if context in (key, names.key_alias(key))]
        if not fitting:  # A model that gives the context alone.
            fitting = choose_models(snapshot, game, [context])
        if len(fitting) > 1:
            raise _ambiguous(f"--context {context}", fitting)
        context = fitting[0]
    segments = [m for m in snapshot.segments(game) if protocol in ("", m.protocol.name)]
    protocols = {meta.protocol for meta in segments}
    if len(protocols) != 1:
        played = ", ".join(sorted({m.protocol.name for m in snapshot.segments(game)}))
        if len({p.name for p in protocols}) == 1:
            raise UsageError(
                "bad-option",
                f"{game} was played in {len(protocols)} ways that are all called "
                f"{protocols.pop().name}; 'wsa show {game}' shows how they differ. Data and "
                "scores of two must not be mixed: collect each into a store of its own.",
            )
        raise UsageError(
            "bad-option",
            f"{game} was played under these protocols: {played}. Data and scores of two must not "
            "be mixed; choose one with --protocol.",
        )
    config = RunConfig(
        store=snapshot.backend.url,
        game=game,
        models=tuple(chosen),
        context=context,
        seed=seed,
        segments=tuple(meta.segment for meta in segments),
        protocol=protocols.pop(),
        network=network or NetworkConfig(),
        hyperparameters=hyperparameters,
        init=init,
    )
    check_weight_losses(hyperparameters, config.network.fusion.name)
    windows, shapes, _ = shapes_of(snapshot, game, config.inputs)
    with torch.device("meta"):  # Shapes alone: whether the fusion takes them.
        Torso(inputs_of(config, windows, shapes), config.network)
    return config
