"""A state representation that keeps places: marginals of small feature maps, trained on hidden patches.

Where something is, is what an agent wants to know of a screen, and a linear map should be able to read it
out. So the code is no fully connected layer's: of each feature map it is the mean of each row and of
each column. docs/howto/pretrain.md has what that and training are worth.

The encoder is trained as a masked autoencoder (He et al., 2022, arXiv 2111.06377). Half of a frame's 7 x 7
patches are hidden, and a decoder draws what is behind them from the code of the rest,

    loss    mean over hidden pixels of (decoder(c) - x)^2 / sigma,

with sigma the deviation of the pixel over the batch, which is of one game, at least 0.03, and
1 / sigma scaled to mean 1. So a ball that crosses a pixel now and then counts for as much there as a wall
of bricks that comes and goes.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from wsa.encode.models.custom import Input
from wsa.encode.models.paper import visualize
from wsa.encode.models.paper.base import Frozen, Recipe, Trainee, TrainingInput, grey
from wsa.encode.models.paper.stdim import initialise

PATCH, HIDDEN = 7, 0.5  # Pixels of a patch's side; share of the patches that is hidden.
LEAST_DEVIATION = 0.03


class MarginalEncoder(Frozen):
    """A frame to row and column means of 16 maps, frozen under the alias `sr`; 2,736 parameters, 1.5 M
    products."""

    sees: ClassVar[Input] = grey(84, 84)

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Sequential(
            nn.Conv2d(1, 16, 5, 2), nn.ReLU(),
            nn.Conv2d(16, 16, 3, 2), nn.ReLU(),
        )  # fmt: skip
        initialise(self)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 1, 84, 84) in [0, 1] to (B, 608): of each map its 19 columns, then its 19 rows."""
        maps = self.maps(pixels)
        return torch.cat([maps.mean(dim=2), maps.mean(dim=3)], dim=2).flatten(1)


class MaskedAutoencoder(Trainee):
    """The encoder with the decoder that it is trained with."""

    # Of one game, so that a pixel's deviation is that of its game.
    training_input: ClassVar[TrainingInput] = TrainingInput(MarginalEncoder.sees, one_game=True)
    # Few steps: after 9,000 of them places are read out worse than from random weights.
    recipe: ClassVar[Recipe] = Recipe(steps=700, batch_size=64, learning_rate=1e-3, adam_eps=1e-5)

    def __init__(self) -> None:
        super().__init__()
        self.encoder = MarginalEncoder()
        self.decoder = decoder(608)

    def loss(self, looks: Tensor, done: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted squared error of hidden pixels; looks (B, 1, 84, 84) of one game."""
        hidden = hidden_pixels(looks)
        sigma = looks.std(dim=0, correction=0).clamp(min=LEAST_DEVIATION)
        weight = hidden * sigma.mean() / sigma
        missed = self.decoder(self.encoder(looks * (1 - hidden))) - looks
        return (missed.square() * weight).mean() / HIDDEN, {}

    def frozen(self) -> dict[str, Frozen]:
        """The encoder."""
        return {"sr": self.encoder}

    def show(self, looks: Tensor) -> list[Tensor]:
        """The frame, what is left of it, and what is drawn from that."""
        left = looks * (1 - hidden_pixels(looks))
        parts = looks, left, self.decoder(self.encoder(left))
        return [visualize.grey(part[:, 0]) for part in parts]


def decoder(width: int) -> nn.Sequential:
    """What draws a frame from a code, (B, width) to (B, 1, 84, 84)."""
    return nn.Sequential(
        nn.Linear(width, 32 * 7 * 7), nn.ReLU(), nn.Unflatten(1, (32, 7, 7)),
        nn.ConvTranspose2d(32, 32, 3, 1), nn.ReLU(),
        nn.ConvTranspose2d(32, 16, 4, 2), nn.ReLU(),
        nn.ConvTranspose2d(16, 1, 8, 4),
    )  # fmt: skip


def hidden_pixels(looks: Tensor) -> Tensor:
    """What is hidden of each look, (B, 1, 84, 84): 1 in half of the patches, 0 elsewhere.

    Drawn by a generator that the looks themselves seed, so that a loss depends on them alone: a
    validation is repeatable, and an interrupted training goes on exactly.
    """
    generator = torch.Generator().manual_seed(int(looks.double().sum().item() * 255))
    side = looks.shape[-1] // PATCH
    hidden = torch.rand(len(looks), 1, side, side, generator=generator) < HIDDEN
    return functional.interpolate(hidden.float(), scale_factor=PATCH).to(looks.device)
