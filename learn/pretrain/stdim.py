"""ST-DIM, spatiotemporal deep infomax, trains the paper's state encoder (Anand et al., 2019).

Given a code of the present, the network must identify which patch features of previous steps belong
to its own previous step. For a batch of B moments of one game, let x_i be the four frames up to
moment i, x'_i the four frames up to the step before it, g the network's output (512), and f_p the
features (128) of its third convolution at position p of 11 x 8:

    logits_p[i, j] = <W g(x_i),   f_p(x'_j)>      global to local, W: 512 -> 128
    logits'_p[i, j] = <V f_p(x_i), f_p(x'_j)>     local to local,  V: 128 -> 128
    loss = mean over p and i of  -log softmax_j(logits_p[i])_i  -  log softmax_j(logits'_p[i])_i

The other moments of the batch are the negatives (InfoNCE; Oord et al., 2018).
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from wsa.encode.models.paper.base import Frozen
from wsa.encode.models.paper.state import STACK, StateEncoder
from wsa.learn.pretrain import visualize
from wsa.learn.pretrain.trainee import Recipe, Trainee, TrainingInput


class InfoMax(Trainee):
    """The state encoder and the two linear scorers that train it.

    Attributes:
        network: Class of the encoder, with the modules `patches`, which gives a map of local
            features, and `code`, which gives the code.
        channels: Number of channels of the local features.
        places: Rows and columns of the map of local features.
    """

    network: ClassVar[type[Frozen]] = StateEncoder
    channels: ClassVar[int] = 128
    places: ClassVar[tuple[int, int]] = (11, 8)
    # The four frames of a moment and the four of the step before it share three: five in all.
    training_input: ClassVar[TrainingInput] = TrainingInput(
        StateEncoder.sees, depth=STACK + 1, one_game=True
    )
    recipe: ClassVar[Recipe] = Recipe(
        steps=100_000, batch_size=64, learning_rate=3e-4, adam_eps=1e-5
    )

    def __init__(self) -> None:
        super().__init__()
        self.encoder: Any = self.network()
        self.globally = nn.Linear(512, self.channels)
        self.locally = nn.Linear(self.channels, self.channels)

    def scores(self, looks: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the logits of each moment i against the step before each moment j.

        Args:
            looks: Frames (B, window + 1, height, width).

        Returns:
            Global-to-local and local-to-local logits, each (places, B, B).
        """
        patches = self.encoder.patches(looks[:, 1:])
        before = self.encoder.patches(looks[:, :-1]).flatten(2).permute(2, 1, 0)  # (p, c, B)
        whole = self.globally(self.encoder.code(patches))
        local = self.locally(patches.flatten(2).permute(2, 0, 1))  # (p, B, c)
        return torch.matmul(whole, before), torch.bmm(local, before)

    def loss(self, looks: Tensor, done: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Return InfoNCE, global to local plus local to local.

        Args:
            looks: Frames (B, window + 1, height, width).
            done: Unused.
        """
        # Moments of a game differ by less than bf16 resolves; with it the loss stayed at chance.
        with torch.autocast(looks.device.type, enabled=False):
            parts = [info_nce(scores) for scores in self.scores(looks)]
        return parts[0] + parts[1], {"global_local": parts[0], "local_local": parts[1]}

    def frozen(self) -> dict[str, Frozen]:
        """Return the encoder."""
        encoder: Frozen = self.encoder
        return {"sr": encoder}

    def show(self, looks: Tensor) -> list[Tensor]:
        """Show the newest frame, plain and with the positions whose past the code identifies."""
        sure = self.scores(looks)[0].softmax(dim=-1).diagonal(dim1=1, dim2=2)  # (p, B)
        places = sure.T.reshape(len(looks), 1, *self.places)
        return [visualize.gray(looks[:, -1]), visualize.overlay(looks[:, -1], places)]


def info_nce(scores: Tensor) -> Tensor:
    """Return the mean cross-entropy of logits (places, B, B) whose diagonal is correct."""
    places, count, _ = scores.shape
    right = torch.arange(count, device=scores.device).repeat(places)
    return nn.functional.cross_entropy(scores.flatten(0, 1), right)
