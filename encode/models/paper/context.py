"""The paper's context encoder: DQN's convolutions (Mnih et al., 2015), the second kernel smaller.

The code is the context on which WSA's scorer is conditioned. In the authors' PPO runs the learner
overwrote the encoder with random numbers. Here it is a frozen model like any other, whose key
covers its weights. `wsa.learn.pretrain.autoencoder` trains it.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from wsa.encode.models.custom import Input
from wsa.encode.models.paper.base import Frozen, gray


class ContextEncoder(Frozen):
    """Encoder of one frame, alias `ae`; 0.058 M parameters, 16 M multiplications."""

    sees: ClassVar[Input] = gray(84, 84)

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 32, 8, 4), nn.ReLU(),
            nn.Conv2d(32, 64, 3, 1), nn.ReLU(),
            nn.Conv2d(64, 64, 3, 1), nn.ReLU(),
        )  # fmt: skip

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode frames (B, 1, 84, 84) in [0, 1] as codes (B, 64, 16, 16)."""
        code: Tensor = self.layers(pixels)
        return code
