"""The network that a run trains and an evaluation loads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from wsa.learn.configs.algorithms import OnlineConfig
from wsa.learn.networks.heads import ActorCritic, QNetwork, Torso
from wsa.learn.networks.nature import NatureTorso, scale_for
from wsa.learn.networks.parameters import Parameters, count_parameters
from wsa.learn.networks.recurrent import RecurrentActorCritic
from wsa.learn.runs.config import OfflineRun, OnlineRun
from wsa.store.objects.flat_map import FlatMap, shapes_of
from wsa.store.objects.snapshot import Snapshot


def make_network(
    config: OfflineRun | OnlineRun, windows: Sequence[int], shapes: Sequence[tuple[int, ...]]
) -> Any:
    """Make a run's network, with weights drawn from torch's generator.

    Raises:
        UsageError: If the fusion cannot take these shapes.
    """
    learner, network = config.hyperparameters, config.network
    actions, depth = len(config.protocol.actions), network.frame_stack
    inputs = config.inputs_of(windows, shapes)
    critic = isinstance(learner, OnlineConfig) and learner.CRITIC
    torso = None
    if isinstance(config, OnlineRun) and config.end_to_end:
        torso = NatureTorso(depth, scale_for(config.parameters, depth, actions + critic))
    if not critic:
        return QNetwork(inputs, actions, network, torso)
    if getattr(learner, "recurrent", False):
        return RecurrentActorCritic(torso or Torso(inputs, network), actions)
    return ActorCritic(inputs, actions, network, torso)


def windows_and_shapes(
    config: OfflineRun | OnlineRun, data: Snapshot | FlatMap | None
) -> tuple[Sequence[int], Sequence[tuple[int, ...]]]:
    """Number of frames that each of a run's inputs sees, and the shape of its embedding.

    Only an offline run needs data: its store, or the flat map.

    Raises:
        MissingError: If the store does not have the run's embeddings.
    """
    if isinstance(config, OnlineRun):
        return config.model_windows, config.shapes
    if isinstance(data, FlatMap):
        return data.windows, data.shapes
    assert data is not None, "an offline run has data"
    return shapes_of(data, config.game, config.inputs)[:2]


def parameters_of(
    config: OfflineRun | OnlineRun, windows: Sequence[int], shapes: Sequence[tuple[int, ...]]
) -> Parameters:
    """Count a run's trainable parameters without allocating them; arguments: see `make_network`."""
    with torch.device("meta"):
        return count_parameters(make_network(config, windows, shapes))
