"""What a network that trains one of the paper's encoders states about itself.

An encoder of the paper is part of a larger network, the *trainee*, which learns from frames alone.
A trainee states its training input (`TrainingInput`; one sample is a *look*), its `loss`, its
authors' hyperparameters (`Recipe`), and its parts that are kept and frozen, by alias (`frozen`).
`wsa.learn.pretrain.trainer` trains any of them.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from torch import Tensor, nn

from wsa.encode.models.custom import Input
from wsa.encode.models.paper.base import Frozen


@dataclasses.dataclass(frozen=True)
class TrainingInput:
    """Description of a look, one training sample: gray frames of one episode, scaled to [0, 1].

    Attributes:
        sees: Preprocessing of a frame, the same in training and in use.
        depth: Number of consecutive frames in a look, oldest first. At the start of an episode the
            first frame is repeated, as in use.
        apart: If not 0, a look is two frames (`depth` is 1) that are 1 to `apart` steps apart, in
            either order.
        one_game: Whether all looks of a batch come from one game. A network that learns to tell
            the looks of a batch apart needs this, or the game alone would give them away.
    """

    sees: Input
    depth: int = 1
    apart: int = 0
    one_game: bool = False

    @property
    def height(self) -> int:
        """Height of a frame in pixels."""
        return self.sees.height

    @property
    def width(self) -> int:
        """Width of a frame in pixels."""
        return self.sees.width

    @property
    def frames(self) -> int:
        """Number of frames in a look."""
        return 2 if self.apart else self.depth


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Default hyperparameters for training a trainee.

    Attributes:
        steps: Number of gradient steps.
        batch_size: Number of looks in a batch.
        learning_rate: Initial learning rate of Adam.
        adam_eps: Epsilon of Adam.
        clip: Norm to which the gradient is clipped; 0 for no clipping.
    """

    steps: int
    batch_size: int
    learning_rate: float
    adam_eps: float = 1e-8
    clip: float = 0.0


class Trainee(nn.Module):
    """A network that learns from frames alone and whose encoder is kept.

    Attributes:
        training_input: Description of a training sample.
        recipe: Hyperparameters of its authors.
        settled: Fraction of the gradient steps after which the loss function stays the same. Only
            then are validation losses compared, to keep the best weights and to stop early.
        scheduled: Whether the loss or the learning rate depends on the total number of gradient
            steps. If so, training cannot be extended later.
    """

    training_input: ClassVar[TrainingInput]
    recipe: ClassVar[Recipe]
    settled: ClassVar[float] = 0.0
    scheduled: ClassVar[bool] = False

    def loss(self, looks: Tensor, done: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of a batch.

        Args:
            looks: Batch (B, frames, height, width), float32 in [0, 1].
            done: Fraction of the gradient steps made before this one, in [0, 1].

        Returns:
            The loss, and its parts by name for the training curves; all scalars.
        """
        raise NotImplementedError

    def learning_rate(self, initial: float, step: int, steps: int) -> float:
        """Return Adam's learning rate after `step` of `steps` gradient steps."""
        return initial

    def frozen(self) -> dict[str, Frozen]:
        """Return the kept parts by alias; each maps its declared input to an embedding."""
        raise NotImplementedError

    def show(self, looks: Tensor) -> list[Tensor]:
        """Draw what the network makes of some looks, as pictures to show side by side.

        Args:
            looks: Batch (B, frames, height, width), float32 in [0, 1].

        Returns:
            Pictures (B, 3, height, width), float32 in [0, 1].
        """
        raise NotImplementedError
