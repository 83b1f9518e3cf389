"""Count a network's parameters, in the same way for every table."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn

from wsa.learn.networks.decoder import Decoder


class Parameters(NamedTuple):
    """Number of trainable parameters of a network: those with `requires_grad`.

    The count includes the spatial adapters of `res`, which are never trained, because the paper
    counts them. It excludes the frozen models, which are not part of the network, the buffers (the
    matrices of `res`, the moments of `standard` normalization), and DQN's target network, a copy.
    The decoders of `--decode` are counted apart.

    Attributes:
        fusion: Parameters up to the state vector: adapters and fusion, or the pixel network.
        head: Parameters above it: the heads, and a recurrent policy's LSTM.
        frozen: Parameters of decoders, which are part of the network but never trained.
    """

    fusion: int
    head: int
    frozen: int = 0

    @property
    def total(self) -> int:
        """Trainable parameters of the whole network."""
        return self.fusion + self.head

    def named(self) -> dict[str, int]:
        """Return the counts under their JSON names; that of frozen ones only if there are any."""
        counts = {
            "parameters": self.total,
            "parameters_fusion": self.fusion,
            "parameters_head": self.head,
        }
        return counts | ({"parameters_frozen": self.frozen} if self.frozen else {})


def count_parameters(network: Any) -> Parameters:
    """Count a network's parameters. The network may be on the meta device."""
    fusion = _trainable(network.torso)
    decoders = (part for part in network.modules() if isinstance(part, Decoder))
    frozen = sum(tensor.numel() for decoder in decoders for tensor in decoder.buffers())
    return Parameters(fusion, _trainable(network) - fusion, frozen)


def _trainable(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
