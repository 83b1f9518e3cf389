"""The network of `palette` and `objects`: none. It hands a grey screen on as it is.

These encoders are what follows a network, a reduction that is fitted on frames of one game
(`wsa.encode.inference.palette`, `wsa.encode.inference.objects`). So they have everything that a
model has, a key, a probe, a plan, and each game has its own.
"""

from __future__ import annotations

from torch import Tensor, nn

from wsa.encode.models.custom import Input, UserModel, UserNetwork

NAME = "wsa:screen"
SOURCE = "fitted"
LICENCE = "none: no weights"

# By alias, what is kept of a screen: at most 5 grey levels; at most 9 classes of things.
OUTPUTS = {"palette": "map+palette:5", "objects": "map+objects:9"}

SEES = Input(210, 160, "grey", std=(1 / 255,), interpolation="area")


class Screen(nn.Module):
    """The identity, (B, 1, H, W) grey from 0 to 255 to the same."""

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the screens."""
        return pixels


def build() -> UserNetwork:
    """The network with the face of timm's."""
    return UserNetwork(UserModel(Screen(), SEES, licence=LICENCE)).eval()
