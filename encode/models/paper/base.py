"""What the paper's own encoders have in common: how they look at a game, and how they are trained.

An encoder of the paper is a part of a larger network, the *trainee*, that learns from frames alone.
A trainee says what it looks at (`TrainingInput`), what it minimises (`loss`), with which numbers its
authors trained it (`Recipe`), and which parts of it are kept, frozen, under which alias (`frozen`).
`wsa.learn.pretrain.trainer` trains any of them.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from torch import Tensor, nn

from wsa.encode.models.custom import Input


def grey(height: int, width: int) -> Input:
    """Grey screens in [0, 1], shrunk as the field shrinks them (OpenCV's INTER_AREA)."""
    return Input(height, width, "grey", interpolation="area")


class Frozen(nn.Module):
    """A part that is kept.

    Attributes:
        sees: What it wants to see.
        window: Consecutive frames of it.
    """

    sees: ClassVar[Input]
    window: ClassVar[int] = 1


@dataclasses.dataclass(frozen=True)
class TrainingInput:
    """What one look at a game is, in training: grey frames of one episode, scaled to [0, 1].

    Attributes:
        sees: A frame as the network sees it, in training and in use.
        depth: Consecutive frames of a look, oldest first. Before an episode's first frame that
            frame is repeated, as it is in use.
        apart: If not 0, a look is two frames (`depth` is 1) that are 1 to `apart` steps apart, in
            either order.
        one_game: Whether a batch must be of one game: where a network tells the looks of a batch
            apart, the game alone must not give them away.
    """

    sees: Input
    depth: int = 1
    apart: int = 0
    one_game: bool = False

    @property
    def height(self) -> int:
        """Of a frame, in pixels."""
        return self.sees.height

    @property
    def width(self) -> int:
        """Of a frame, in pixels."""
        return self.sees.width

    @property
    def frames(self) -> int:
        """Frames in a look."""
        return 2 if self.apart else self.depth


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a trainee is trained unless the user says otherwise.

    Attributes:
        steps: Gradient steps.
        batch_size: Looks in a batch.
        learning_rate: Of Adam, at the beginning.
        adam_eps: Of Adam.
        clip: Largest norm of the gradient; 0 for any.
    """

    steps: int
    batch_size: int
    learning_rate: float
    adam_eps: float = 1e-8
    clip: float = 0.0


class Trainee(nn.Module):
    """A network that learns from frames alone, of which a part is kept.

    Attributes:
        training_input: What it looks at.
        recipe: How its authors trained it.
        settled: Share of the gradient steps after which its loss no longer changes its meaning. Only
            from then on are validation losses compared, the best kept, and training stopped early.
        scheduled: Whether the loss or the learning rate depends on how many gradient steps there are
            in all. Such a training cannot be made longer later.
    """

    training_input: ClassVar[TrainingInput]
    recipe: ClassVar[Recipe]
    settled: ClassVar[float] = 0.0
    scheduled: ClassVar[bool] = False

    def loss(self, looks: Tensor, done: float) -> tuple[Tensor, dict[str, Tensor]]:
        """What is minimised.

        Args:
            looks: (B, frames, height, width) float32 in [0, 1].
            done: Share of the gradient steps that were made before this one, in [0, 1].

        Returns:
            The loss, and its parts by name, for the curves; scalars.
        """
        raise NotImplementedError

    def learning_rate(self, initial: float, step: int, steps: int) -> float:
        """Adam's learning rate after `step` of `steps` gradient steps."""
        return initial

    def frozen(self) -> dict[str, Frozen]:
        """The parts that are kept, by alias: each maps its declared input to an embedding."""
        raise NotImplementedError

    def show(self, looks: Tensor) -> list[Tensor]:
        """Pictures of what it makes of some looks, side by side.

        Args:
            looks: (B, frames, height, width) float32 in [0, 1].

        Returns:
            Pictures (B, 3, height, width) float32 in [0, 1].
        """
        raise NotImplementedError
