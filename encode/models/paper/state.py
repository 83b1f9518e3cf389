"""The paper's state representation, which ST-DIM trains (Anand et al., 2019).

The network takes the whole screen, 210 high and 160 wide. The paper's authors ran it on frames of
160 by 210 stretched from 84 by 84, which permutes the meaning of its last layer; here training
(`wsa.learn.pretrain.stdim`) and use have the same input.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from wsa.encode.models.custom import Input
from wsa.encode.models.paper.base import Frozen, gray, initialize

STACK = 4


class StateEncoder(Frozen):
    """Encoder of four frames, alias `sr`; 2.02 M parameters, 48 M multiplications."""

    sees: ClassVar[Input] = gray(210, 160)
    window: ClassVar[int] = STACK

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Sequential(
            nn.Conv2d(STACK, 32, 8, 4), nn.ReLU(),
            nn.Conv2d(32, 64, 4, 2), nn.ReLU(),
            nn.Conv2d(64, 128, 4, 2), nn.ReLU(),
        )  # fmt: skip
        self.code = nn.Sequential(
            nn.Conv2d(128, 64, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64 * 9 * 6, 512)
        )
        initialize(self)

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode frames (B, 4, 210, 160) in [0, 1], oldest first, as codes (B, 512)."""
        code: Tensor = self.code(self.patches(pixels))
        return code
