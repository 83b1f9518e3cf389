"""The network that a run trains and an evaluation loads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from wsa.learn.configs.algorithms import PPOConfig
from wsa.learn.networks.heads import ActorCritic, QNetwork, Torso
from wsa.learn.networks.nature import NatureTorso, scale_for
from wsa.learn.networks.recurrent import RecurrentActorCritic
from wsa.learn.runs.config import OfflineRun, OnlineRun


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
