"""ST-DIM on one small frame: a state representation that `sr` may stand for, too.

The network is half as wide as DQN's (Mnih et al., 2015) and looks at one 84 x 84 frame instead of
four of 210 x 160, at a twentieth of the products; and the moments of a batch are of all games, so
that the easy negatives come with the hard ones.

The loss is that of `wsa.encode.models.paper.stdim`, without ties: most places of a screen show the
same in many moments, no code can tell these apart, and the loss could not fall below the logarithm of
their number. So at each place a moment is compared only with moments that showed something else
there. docs/howto/pretrain.md has what this is worth beside other objectives.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from wsa.encode.models.custom import Input
from wsa.encode.models.paper.base import Frozen, Recipe, TrainingInput, grey
from wsa.encode.models.paper.stdim import InfoMax, info_nce, initialise

# What one of the 9 x 9 places sees: the receptive field and stride of two convolutions, in pixels.
_SEEN, _APART = 20, 8


class SmallStateEncoder(Frozen):
    """A frame to a code, frozen under the alias `sr`; 0.83 M parameters, 2.3 M products."""

    sees: ClassVar[Input] = grey(84, 84)
    window: ClassVar[int] = 1

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Sequential(
            nn.Conv2d(1, 16, 8, 4), nn.ReLU(),
            nn.Conv2d(16, 32, 4, 2), nn.ReLU(),
        )  # fmt: skip
        self.code = nn.Sequential(
            nn.Conv2d(32, 32, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 7 * 7, 512)
        )
        initialise(self)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 1, 84, 84) in [0, 1] to (B, 512)."""
        code: Tensor = self.code(self.patches(pixels))
        return code


class SmallInfoMax(InfoMax):
    """The encoder with its two linear scorers. A look is a frame and the one before it."""

    network: ClassVar[type[Frozen]] = SmallStateEncoder
    channels: ClassVar[int] = 32
    places: ClassVar[tuple[int, int]] = (9, 9)
    training_input: ClassVar[TrainingInput] = TrainingInput(SmallStateEncoder.sees, depth=2)
    recipe: ClassVar[Recipe] = Recipe(
        steps=100_000, batch_size=64, learning_rate=3e-4, adam_eps=1e-5
    )

    def loss(self, looks: Tensor, done: float) -> tuple[Tensor, dict[str, Tensor]]:
        """InfoNCE without ties, global to local and local to local; looks (B, 2, 84, 84)."""
        with torch.autocast(looks.device.type, enabled=False):
            ties = same_places(looks[:, :1])
            parts = [info_nce(s.masked_fill(ties, -torch.inf)) for s in self.scores(looks)]
        return parts[0] + parts[1], {"global_local": parts[0], "local_local": parts[1]}


def same_places(frames: Tensor) -> Tensor:
    """Which frames show the same at each place, (81, B, B); a frame is not counted as its own tie.

    Args:
        frames: (B, 1, 84, 84) in [0, 1].
    """
    shown = functional.unfold(frames, _SEEN, stride=_APART).double()  # (B, 400, 81)
    # A sum with weights that have nothing in common: equal for equal pixels, else all but never.
    weights = torch.sin(torch.arange(1, shown.shape[1] + 1, dtype=torch.float64)).to(frames.device)
    key = torch.einsum("bkp,k->pb", shown, weights)
    same = (key[:, :, None] - key[:, None, :]).abs() < 1e-9
    return same & ~torch.eye(len(frames), dtype=torch.bool, device=frames.device)
