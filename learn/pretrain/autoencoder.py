"""The convolutional autoencoder of single frames that trains the paper's context encoder.

The decoder mirrors the encoder. With x a gray frame in [0, 1]:

    code    c = ReLU(conv3(ReLU(conv2(ReLU(conv1(x))))))       (64, 16, 16)
    loss    mean over pixels of (sigmoid(decoder(c)) - x)^2
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from wsa.encode.models.paper.base import Frozen
from wsa.encode.models.paper.context import ContextEncoder
from wsa.learn.pretrain import visualize
from wsa.learn.pretrain.trainee import Recipe, Trainee, TrainingInput


class Autoencoder(Trainee):
    """The context encoder and the decoder that trains it."""

    training_input: ClassVar[TrainingInput] = TrainingInput(ContextEncoder.sees)
    recipe: ClassVar[Recipe] = Recipe(steps=100_000, batch_size=32, learning_rate=1e-3)

    def __init__(self) -> None:
        super().__init__()
        self.encoder = ContextEncoder()
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(64, 64, 3, 1), nn.ReLU(),
            nn.ConvTranspose2d(64, 32, 3, 1), nn.ReLU(),
            nn.ConvTranspose2d(32, 1, 8, 4), nn.Sigmoid(),
        )  # fmt: skip

    def forward(self, pixels: Tensor) -> Tensor:
        """Reconstruct frames (B, 1, 84, 84); the output has the same shape and lies in [0, 1]."""
        image: Tensor = self.decoder(self.encoder(pixels))
        return image

    def loss(self, looks: Tensor, done: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean squared error of the reconstruction; looks: (B, 1, 84, 84)."""
        return nn.functional.mse_loss(self(looks), looks), {}

    def frozen(self) -> dict[str, Frozen]:
        """Return the encoder."""
        return {"ae": self.encoder}

    def show(self, looks: Tensor) -> list[Tensor]:
        """Show the frame, its reconstruction, and their absolute difference."""
        image = self(looks)
        return [visualize.gray(part[:, 0]) for part in (looks, image, (image - looks).abs())]
