"""The Transporter, which trains the paper's keypoints (Kulkarni et al., 2019).

The network clears a frame's features at the keypoints and puts those of another frame there; the
result must decode to that other frame, so the keypoints learn to sit on what moves. Source x and
target y are from one episode, fewer than 20 steps apart; F are features (128, 21, 21), and K
keypoint maps (4, 21, 21), whose softmax over positions has the means m_k in [-1, 1]^2:

    H_k(x)[p] = exp(-|p - m_k(x)|^2 / 0.1^2)                        a Gaussian map for each k
    T = F(x);  for each k:  T <- (1 - H_k(x)) (1 - H_k(y)) T + H_k(y) F(y)
    loss = mean over pixels of (refine(T) - y)^2

F(x) and H(x) get no gradient. F is kept as `oke`, and the raw K, before the softmax, as `okk`.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from wsa.encode.models.paper.base import Frozen
from wsa.encode.models.paper.keypoints import Block, FeatureEncoder, KeypointEncoder
from wsa.learn.pretrain import visualize
from wsa.learn.pretrain.trainee import Recipe, Trainee, TrainingInput

_SPREAD = 0.1


class Transporter(Trainee):
    """Both encoders and the decoder that trains them; 0.87 M parameters."""

    training_input: ClassVar[TrainingInput] = TrainingInput(FeatureEncoder.sees, apart=19)
    recipe: ClassVar[Recipe] = Recipe(steps=1_000_000, batch_size=64, learning_rate=1e-3)

    def __init__(self) -> None:
        super().__init__()
        self.features = FeatureEncoder()
        self.keypoints = KeypointEncoder()
        self.refine = nn.Sequential(
            Block(128, 128), Block(128, 64),
            nn.UpsamplingBilinear2d(scale_factor=2),
            Block(64, 64), Block(64, 32),
            nn.UpsamplingBilinear2d(scale_factor=2),
            Block(32, 32), Block(32, 1, 7),
        )  # fmt: skip

    def learning_rate(self, initial: float, step: int, steps: int) -> float:
        """Multiply the learning rate by 0.95 every 100,000 steps."""
        rate: float = initial * 0.95 ** (step // 100_000)
        return rate

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Predict the target (B, 1, 84, 84) by transporting its features into the source's."""
        with torch.no_grad():  # The source gets no gradient, which also saves its backward pass.
            at_source, of_source = gaussians(self.keypoints(source)), self.features(source)
        at_target, of_target = gaussians(self.keypoints(target)), self.features(target)
        moved = transport(at_source, at_target, of_source, of_target)
        image: Tensor = self.refine(moved)
        return image

    def loss(self, looks: Tensor, done: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean squared error of the target; looks: (B, 2, 84, 84), source and target."""
        target = looks[:, 1:]
        return nn.functional.mse_loss(self(looks[:, :1], target), target), {}

    def frozen(self) -> dict[str, Frozen]:
        """Return both encoders."""
        return {"oke": self.features, "okk": self.keypoints}

    def show(self, looks: Tensor) -> list[Tensor]:
        """Show the source, the target, the prediction, and the target with its keypoints."""
        source, target = looks[:, :1], looks[:, 1:]
        keypoints = gaussians(self.keypoints(target))
        image = self(source, target)
        frames = [visualize.gray(part[:, 0]) for part in (source, target, image)]
        return [*frames, visualize.overlay(target[:, 0], keypoints)]


def means(maps: Tensor) -> Tensor:
    """Return the positions of keypoints, (B, K, 2), y and x in [-1, 1].

    Args:
        maps: Keypoint maps before the softmax, (B, K, h, w).
    """
    height, width = maps.shape[-2:]
    share = maps.float().flatten(2).softmax(dim=-1).view_as(maps)
    down = torch.linspace(-1, 1, height, device=maps.device)
    across = torch.linspace(-1, 1, width, device=maps.device)
    with torch.autocast(maps.device.type, enabled=False):  # Half precision is too coarse.
        return torch.stack([share.sum(3) @ down, share.sum(2) @ across], dim=-1)


def gaussians(maps: Tensor) -> Tensor:
    """Turn maps before the softmax into Gaussian maps around their means, both (B, K, h, w)."""
    height, width = maps.shape[-2:]
    y, x = means(maps)[..., None].unbind(dim=2)  # (B, K, 1) each
    down = torch.linspace(-1, 1, height, device=maps.device) - y
    across = torch.linspace(-1, 1, width, device=maps.device) - x
    apart = down.square()[..., :, None] + across.square()[..., None, :]
    return torch.exp(-apart / _SPREAD**2)


def transport(at_source: Tensor, at_target: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """Clear the source's features at both frames' keypoints and insert the target's.

    Args:
        at_source, at_target: Gaussian maps of the keypoints, (B, K, h, w).
        source, target: Features, (B, C, h, w).

    Returns:
        The transported features, (B, C, h, w).
    """
    moved = source
    for k in range(at_source.shape[1]):
        source_mask, target_mask = at_source[:, k : k + 1], at_target[:, k : k + 1]
        moved = (1 - source_mask) * (1 - target_mask) * moved + target_mask * target
    return moved
