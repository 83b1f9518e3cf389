"""The identity network of `palette` and `objects`, which returns a gray screen unchanged.

The work of these encoders is in their reduction, which is fitted on frames of one game
(`wsa.encode.inference.palette`, `wsa.encode.inference.objects`). With this network they are models
like any other, with a key, a probe and a plan, one model per game.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wsa.encode.models.custom import Input, UserModel

if TYPE_CHECKING:
    from wsa.encode.models.user_network import UserNetwork

NAME = "wsa:screen"
SOURCE = "fitted"
LICENSE = "none: no weights"

# Output by alias: at most 5 gray levels; at most 9 classes of things.
OUTPUTS = {"palette": "map+palette:5", "objects": "map+objects:9"}

SEES = Input(210, 160, "gray", std=(1 / 255,), interpolation="area")


def build() -> UserNetwork:
    """Return the identity on gray screens (B, 1, H, W) behind the interface of a timm model."""
    from torch import nn

    from wsa.encode.models.user_network import UserNetwork

    return UserNetwork(UserModel(nn.Identity(), SEES, license=LICENSE)).eval()
