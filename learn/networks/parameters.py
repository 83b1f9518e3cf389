"""How many numbers a network learns, counted in one way for every table."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn


class Parameters(NamedTuple):
    """Trainable numbers of a network: those that torch gives a gradient (`requires_grad`).

    So counted are also the spatial adapters of `res`, which the paper counts and nothing trains. The
    frozen models, which are no part of the network, and buffers (`res`'s matrices, what `standard`
    normalizes with) are not; nor is DQN's target network, which is a copy.

    Attributes:
        fusion: Of what gives the state vector: adapters and fusion, or the network on pixels.
        head: Of all above it: heads, and the memory of a recurrent policy.
    """

    fusion: int
    head: int

    @property
    def total(self) -> int:
        """Of the whole network."""
        return self.fusion + self.head

    def named(self) -> dict[str, int]:
        """As JSON values."""
        return {
            "parameters": self.total,
            "parameters_fusion": self.fusion,
            "parameters_head": self.head,
        }


def count_parameters(network: Any) -> Parameters:
    """Count a network's, which may be on the meta device.

    Args:
        network: As of `wsa.learn.runs.network.make_network`: a `torso`, and more above it.
    """
    fusion = _trainable(network.torso)
    return Parameters(fusion, _trainable(network) - fusion)


def _trainable(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
