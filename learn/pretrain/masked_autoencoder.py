"""The masked autoencoder that trains the encoder of marginals (He et al., 2022, arXiv 2111.06377).

Half of the 7 x 7 pixel patches of a frame are hidden, and a decoder predicts them from the code of
the rest:

    loss    mean over hidden pixels of (decoder(c) - x)^2 / sigma,

where sigma is the pixel's standard deviation over the batch, which is from one game, and at least
0.03; 1 / sigma is multiplied by the mean of sigma. A ball that sometimes crosses a pixel thus
counts as much there as a wall of bricks that comes and goes.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from wsa.encode.models.paper.base import Frozen
from wsa.encode.models.paper.marginals import MarginalEncoder
from wsa.learn.pretrain import visualize
from wsa.learn.pretrain.trainee import Recipe, Trainee, TrainingInput

PATCH, HIDDEN = 7, 0.5  # Side of a patch in pixels; fraction of the patches that is hidden.
LEAST_DEVIATION = 0.03


class MaskedAutoencoder(Trainee):
    """The marginal encoder and the decoder that trains it."""

    # A pixel's standard deviation must be that of one game.
    training_input: ClassVar[TrainingInput] = TrainingInput(MarginalEncoder.sees, one_game=True)
    # Few steps: after 9,000, positions are read out worse than with random weights.
    recipe: ClassVar[Recipe] = Recipe(steps=700, batch_size=64, learning_rate=1e-3, adam_eps=1e-5)

    def __init__(self) -> None:
        super().__init__()
        self.encoder = MarginalEncoder()
        self.decoder = decoder(608)

    def loss(self, looks: Tensor, done: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted squared error of hidden pixels; looks: (B, 1, 84, 84), one game."""
        hidden = hidden_pixels(looks)
        sigma = looks.std(dim=0, correction=0).clamp(min=LEAST_DEVIATION)
        weight = hidden * sigma.mean() / sigma
        missed = self.decoder(self.encoder(looks * (1 - hidden))) - looks
        return (missed.square() * weight).mean() / HIDDEN, {}

    def frozen(self) -> dict[str, Frozen]:
        """Return the encoder."""
        return {"sr": self.encoder}

    def show(self, looks: Tensor) -> list[Tensor]:
        """Show the frame, its visible patches, and the prediction from them."""
        left = looks * (1 - hidden_pixels(looks))
        parts = looks, left, self.decoder(self.encoder(left))
        return [visualize.gray(part[:, 0]) for part in parts]


def decoder(width: int) -> nn.Sequential:
    """Create a decoder from codes (B, width) to frames (B, 1, 84, 84)."""
    return nn.Sequential(
        nn.Linear(width, 32 * 7 * 7), nn.ReLU(), nn.Unflatten(1, (32, 7, 7)),
        nn.ConvTranspose2d(32, 32, 3, 1), nn.ReLU(),
        nn.ConvTranspose2d(32, 16, 4, 2), nn.ReLU(),
        nn.ConvTranspose2d(16, 1, 8, 4),
    )  # fmt: skip


def hidden_pixels(looks: Tensor) -> Tensor:
    """Draw a mask of each look, (B, 1, 84, 84): 1 in about half of the patches, 0 elsewhere.

    The looks seed the generator, so that the loss depends on them alone: validation is repeatable,
    and interrupted training resumes exactly.
    """
    generator = torch.Generator().manual_seed(int(looks.double().sum().item() * 255))
    side = looks.shape[-1] // PATCH
    hidden = torch.rand(len(looks), 1, side, side, generator=generator) < HIDDEN
    return functional.interpolate(hidden.float(), scale_factor=PATCH).to(looks.device)
