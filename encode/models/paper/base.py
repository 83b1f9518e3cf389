"""What the paper's own encoders share: a base class, an input, and an initialization.

They are parts of larger networks, which learn from frames alone: `wsa.learn.pretrain` has those.
"""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from wsa.encode.models.custom import Input


def gray(height: int, width: int) -> Input:
    """Return the input of gray screens in [0, 1], resized like OpenCV's INTER_AREA as is usual."""
    return Input(height, width, "gray", interpolation="area")


class Frozen(nn.Module):
    """A frozen encoder.

    Attributes:
        sees: Expected input.
        window: Number of consecutive frames per input.
    """

    sees: ClassVar[Input]
    window: ClassVar[int] = 1


def initialize(network: nn.Module) -> None:
    """Draw orthogonal weights, as Anand et al. do; otherwise the loss stays at chance longer."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            assert layer.bias is not None
            nn.init.orthogonal_(layer.weight, 2**0.5)
            nn.init.zeros_(layer.bias)
