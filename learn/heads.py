"""From stacks of embeddings to action values: normalise, fuse, value."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from wsa.learn.fusion import WeightSharingAttention


class QNetwork(nn.Module):
    """Action values of a stack of embeddings.

    Args:
        widths: Numbers in one frame's embedding by each model; they stand side by side.
        depth: k, frames in a stack.
        actions: Number of actions.
        context: Index of the model that gives WSA's context, or None.
        size: Length of the fused state vector.
        hidden: Units of the head; the paper's code uses 256.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        widths: Sequence[int],
        depth: int,
        actions: int,
        context: int | None = None,
        size: int = 256,
        hidden: int = 256,
    ) -> None:
        super().__init__()
        self._widths = list(widths)
        self.register_buffer("mean", torch.zeros(sum(widths)))
        self.register_buffer("deviation", torch.ones(sum(widths)))
        self.fusion = WeightSharingAttention([depth * w for w in widths], context, size)
        self.head = nn.Sequential(nn.Linear(size, hidden), nn.ReLU(), nn.Linear(hidden, actions))

    def set_moments(self, mean: Tensor, deviation: Tensor) -> None:
        """Fix what embeddings are normalised with, (width,) each; saved with the weights."""
        self.mean.copy_(mean)
        self.deviation.copy_(deviation)

    def forward(self, stacks: Tensor) -> tuple[Tensor, Tensor]:
        """Value actions.

        Args:
            stacks: (B, k, width) float16 or float32, oldest frame first.

        Returns:
            Action values (B, actions) and fusion weights (B, models).
        """
        normal = (stacks.float() - self.mean) / self.deviation
        embeddings = [part.flatten(1) for part in normal.split(self._widths, dim=2)]
        fused, weights = self.fusion(embeddings)
        return self.head(fused), weights
