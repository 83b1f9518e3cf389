"""The paper's context: the code of a convolutional autoencoder of single frames.

The encoder is DQN's convolutions with a smaller second one (Mnih et al., 2015), the decoder their
mirror. With x a grey frame in [0, 1]:

    code    c = ReLU(conv3(ReLU(conv2(ReLU(conv1(x))))))       (64, 16, 16)
    loss    mean over pixels of (sigmoid(decoder(c)) - x)^2

The paper keeps the encoder as the context that WSA's scorer is conditioned on. In its authors' PPO
runs the reinforcement learner overwrote it with random numbers. Here it is a frozen model like any
other, whose weights are in its key.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from wsa.encode.models.custom import Input
from wsa.encode.models.paper import visualize
from wsa.encode.models.paper.base import Frozen, Recipe, Trainee, TrainingInput, grey


class ContextEncoder(Frozen):
    """One frame to a code, frozen under the alias `ae`; 0.058 M parameters, 16 M products."""

    sees: ClassVar[Input] = grey(84, 84)

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 32, 8, 4), nn.ReLU(),
            nn.Conv2d(32, 64, 3, 1), nn.ReLU(),
            nn.Conv2d(64, 64, 3, 1), nn.ReLU(),
        )  # fmt: skip

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 1, 84, 84) in [0, 1] to (B, 64, 16, 16)."""
        code: Tensor = self.layers(pixels)
        return code


class Autoencoder(Trainee):
    """The encoder with the decoder that it is trained with."""

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
        """(B, 1, 84, 84) to its reconstruction, of the same shape, in [0, 1]."""
        image: Tensor = self.decoder(self.encoder(pixels))
        return image

    def loss(self, looks: Tensor, done: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared error of the reconstruction; looks (B, 1, 84, 84)."""
        return nn.functional.mse_loss(self(looks), looks), {}

    def frozen(self) -> dict[str, Frozen]:
        """The encoder."""
        return {"ae": self.encoder}

    def show(self, looks: Tensor) -> list[Tensor]:
        """The frame, its reconstruction, and how far they are apart."""
        image = self(looks)
        return [visualize.grey(part[:, 0]) for part in (looks, image, (image - looks).abs())]
