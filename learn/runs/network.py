"""The network that a run trains and an evaluation loads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from wsa.learn.configs.algorithms import PPOConfig
from wsa.learn.networks.heads import ActorCritic, QNetwork, Torso
from wsa.learn.networks.nature import NatureTorso, scale_for
from wsa.learn.networks.parameters import Parameters, count_parameters
from wsa.learn.networks.recurrent import RecurrentActorCritic
from wsa.learn.runs.config import OfflineRun, OnlineRun
from wsa.store.objects.flat_map import shapes_of
from wsa.store.objects.snapshot import Snapshot


def make_network(
    config: OfflineRun | OnlineRun, windows: Sequence[int], shapes: Sequence[tuple[int, ...]]
) -> Any:
    """Make a run's network, its weights drawn from torch's generator.

    Args:
        config: The run.
        windows: Frames that each of its models looks at.
        shapes: Of an embedding by each.

    Raises:
        UsageError: The fusion cannot take these shapes.
    """
    learner, network = config.hyperparameters, config.network
    actions, depth = len(config.protocol.actions), network.frame_stack
    inputs = config.inputs_of(windows, shapes)
    torso = None
    if isinstance(config, OnlineRun) and config.end_to_end:
        outputs = actions + isinstance(learner, PPOConfig)
        torso = NatureTorso(depth, scale_for(config.parameters, depth, outputs))
    if not isinstance(learner, PPOConfig):
        return QNetwork(inputs, actions, network, torso)
    if learner.recurrent:
        return RecurrentActorCritic(torso or Torso(inputs, network), actions)
    return ActorCritic(inputs, actions, network, torso)


def looks_of(
    config: OfflineRun | OnlineRun, snapshot: Snapshot
) -> tuple[Sequence[int], Sequence[tuple[int, ...]]]:
    """Frames that each of a run's inputs looks at, and the shape of its embedding.

    Args:
        config: The run.
        snapshot: Its store, which knows them of an offline run.

    Raises:
        MissingError: The store does not have the run's embeddings.
    """
    if isinstance(config, OnlineRun):
        return config.looks, config.shapes
    return shapes_of(snapshot, config.game, config.inputs)[:2]


def parameters_of(
    config: OfflineRun | OnlineRun, windows: Sequence[int], shapes: Sequence[tuple[int, ...]]
) -> Parameters:
    """How many numbers a run's network learns; nothing is allocated. Arguments as of `make_network`."""
    with torch.device("meta"):
        return count_parameters(make_network(config, windows, shapes))
