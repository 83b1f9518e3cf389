"""A state representation that preserves positions: marginals of small feature maps.

An agent needs to know where things are, and a linear map should be able to read it out. The code is
therefore not the output of a fully connected layer: it holds the mean of each row and each column
of every feature map. `wsa.learn.pretrain.masked_autoencoder` trains the maps;
docs/howto/pretrain.md has measurements of the code and of its training.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from wsa.encode.models.custom import Input
from wsa.encode.models.paper.base import Frozen, gray, initialize


class MarginalEncoder(Frozen):
    """Row and column means of 16 feature maps of a frame, alias `sr`.

    It has 2,736 parameters and needs 1.5 M multiplications.
    """

    sees: ClassVar[Input] = gray(84, 84)

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Sequential(
            nn.Conv2d(1, 16, 5, 2), nn.ReLU(),
            nn.Conv2d(16, 16, 3, 2), nn.ReLU(),
        )  # fmt: skip
        initialize(self)

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode frames (B, 1, 84, 84) in [0, 1] as codes (B, 608).

        For each map, a code has the means of its 19 columns, then those of its 19 rows.
        """
        maps = self.maps(pixels)
        return torch.cat([maps.mean(dim=2), maps.mean(dim=3)], dim=2).flatten(1)
