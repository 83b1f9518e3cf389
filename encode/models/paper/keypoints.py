"""The two encoders of the paper's keypoints, which the Transporter trains (Kulkarni et al., 2019).

`oke` are features of a frame, `okk` the maps whose softmax over positions has the keypoints as its
means. Two trunks of the same architecture, with separate weights, compute them, so they share
nothing, and each model holds only its own half; the paper's authors loaded the whole network twice,
with the decoder. `wsa.learn.pretrain.transporter` has that network.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from wsa.encode.models.custom import Input
from wsa.encode.models.paper.base import Frozen, gray

KEYPOINTS = 4


class Block(nn.Sequential):
    """Convolution that preserves the size, or halves it with stride 2; batch norm; ReLU."""

    def __init__(self, inputs: int, outputs: int, side: int = 3, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, side, stride, side // 2), nn.BatchNorm2d(outputs), nn.ReLU()
        )


class FeatureEncoder(Frozen):
    """Feature encoder of one frame, alias `oke`; 271 M multiplications."""

    sees: ClassVar[Input] = gray(84, 84)

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            Block(1, 32, 7), Block(32, 32),
            Block(32, 64, stride=2), Block(64, 64),
            Block(64, 128, stride=2), Block(128, 128),
        )  # fmt: skip

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode frames (B, 1, 84, 84) in [0, 1] as features (B, 128, 21, 21)."""
        features: Tensor = self.layers(pixels)
        return features


class KeypointEncoder(Frozen):
    """Keypoint encoder of one frame, before the softmax, alias `okk`; 271 M multiplications."""

    sees: ClassVar[Input] = FeatureEncoder.sees

    def __init__(self) -> None:
        super().__init__()
        self.trunk = FeatureEncoder()
        self.head = nn.Conv2d(128, KEYPOINTS, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode frames (B, 1, 84, 84) in [0, 1] as keypoint maps (B, 4, 21, 21)."""
        maps: Tensor = self.head(self.trunk(pixels))
        return maps
