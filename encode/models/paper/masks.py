"""The encoder of the paper's moving objects: 20 masks from two frames (MOREL; Goel et al., 2018).

The masks, 20 x 84 x 84, are a function of 512 numbers, the *code*, which the frozen model returns
and a store keeps. `ObjectMasks.masks` decodes it, with 54 M of the network's 62 M multiplications,
to exactly the masks of a full forward pass, which computes the same code first.

The paper's authors trained on consecutive frames in [0, 1] but ran the network on means of frames,
or on one frame twice, in [0, 1/255]. Here the two frames and their scale are the model's declared
input. `wsa.learn.pretrain.segmentation` trains it.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from wsa.encode.models.custom import Input
from wsa.encode.models.paper.base import Frozen, gray

OBJECTS = 20
CODE = 512
_SIDE = 84
MASKS = (_SIDE, _SIDE, OBJECTS)  # Shape of the masks as a map of features.


class Residual(nn.Module):
    """Residual block x + ReLU(conv(x)) with 24 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(24, 24, 3, 1, 1)

    def forward(self, maps: Tensor) -> Tensor:
        """Apply the block to maps (B, 24, h, w); the shape stays the same."""
        return maps + nn.functional.relu(self.conv(maps))


class ObjectMasks(Frozen):
    """Encoder of two frames to a code, and decoder of a code to masks; alias `vos`."""

    sees: ClassVar[Input] = gray(_SIDE, _SIDE)
    window: ClassVar[int] = 2

    def __init__(self) -> None:
        super().__init__()
        self.code = nn.Sequential(
            nn.Conv2d(2, 32, 8, 4), nn.ReLU(),
            nn.Conv2d(32, 64, 4, 2), nn.ReLU(),
            nn.Conv2d(64, 64, 3, 1), nn.ReLU(),
            nn.Flatten(), nn.Linear(64 * 7 * 7, CODE), nn.ReLU(),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Linear(CODE, 24 * 21 * 21), nn.Unflatten(1, (24, 21, 21)),
            nn.UpsamplingBilinear2d(scale_factor=2), Residual(),
            nn.UpsamplingBilinear2d(scale_factor=2), Residual(),
            nn.Conv2d(24, OBJECTS, 1), nn.Sigmoid(),
        )  # fmt: skip

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode frames (B, 2, 84, 84) in [0, 1], older first, as codes (B, 512)."""
        code: Tensor = self.code(pixels)
        return code

    def masks(self, code: Tensor) -> Tensor:
        """Decode codes (B, 512) into masks (B, 20, 84, 84) in [0, 1]."""
        masks: Tensor = self.decoder(code)
        return masks
