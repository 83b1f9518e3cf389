"""Count a network's trainable parameters, in the same way for every table."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn


class Parameters(NamedTuple):
    """Number of trainable parameters of a network: those with `requires_grad`.

    The count includes the spatial adapters of `res`, which are never trained, because the paper
    counts them. It excludes the frozen models, which are not part of the network, the buffers (the
    matrices of `res`, the moments of `standard` normalization), and DQN's target network, a copy.

    Attributes:
        fusion: Parameters up to the state vector: adapters and fusion, or the pixel network.
        head: Parameters above it: the heads, and a recurrent policy's LSTM.
    """

    fusion: int
    head: int

    @property
    def total(self) -> int:
        """Parameters of the whole network."""
        return self.fusion + self.head

    def named(self) -> dict[str, int]:
        """Return the counts under their JSON names."""
        return {
            "parameters": self.total,
            "parameters_fusion": self.fusion,
            "parameters_head": self.head,
        }


def count_parameters(network: Any) -> Parameters:
    """Count a network's parameters. The network may be on the meta device.

    Args:
        network: A network with a `torso`, such as `wsa.learn.runs.network.make_network` builds.
    """
    fusion = _trainable(network.torso)
    return Parameters(fusion, _trainable(network) - fusion)


def _trainable(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
