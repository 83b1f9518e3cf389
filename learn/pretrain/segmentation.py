"""MOREL trains the paper's masks of moving objects by motion alone (Goel et al., 2018).

From two consecutive frames the network predicts K = 20 masks, a shift for each, and one camera
motion; warping the second frame by them must give the first. With frames x1, x2, masks M_k in
[0, 1] (84, 84), shifts t_k and camera motion c in R^2:

    flow    u[p] = 0.01 * size * (sum_k M_k[p] t_k + c)            pixels, size = 84
    warped  y[p] = x2[p + u[p]]                                     bilinear, edges repeated
    loss    (1 - SSIM(y, x1)) / 2  +  lambda * mean over k, p of |M_k[p] t_k|

where lambda grows from 0 to 1 over the first fifth of training, by 1e-5 a step in the authors'
500,000 steps. Losses at different lambda cannot be compared, so the search for the best weights
starts once lambda is constant (`settled`).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from wsa.encode.models.paper.base import Frozen
from wsa.encode.models.paper.masks import CODE, OBJECTS, ObjectMasks
from wsa.learn.pretrain import visualize
from wsa.learn.pretrain.trainee import Recipe, Trainee, TrainingInput

_FLOW_SCALE = 0.01 * ObjectMasks.sees.height


class MovingObjects(Trainee):
    """The mask network and the motions that train it; 7.14 M parameters."""

    training_input: ClassVar[TrainingInput] = TrainingInput(ObjectMasks.sees, depth=2)
    recipe: ClassVar[Recipe] = Recipe(steps=500_000, batch_size=32, learning_rate=1e-4, clip=5.0)
    settled: ClassVar[float] = 0.2
    scheduled: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        self.objects = ObjectMasks()
        self.shifts = nn.Linear(CODE, 2 * OBJECTS)
        self.camera = nn.Linear(CODE, 2)

    def learning_rate(self, initial: float, step: int, steps: int) -> float:
        """Decay the learning rate linearly to 0."""
        return initial * (1 - step / steps)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Predict masks and motions from frames (B, 2, 84, 84).

        Returns:
            Masks (B, 20, 84, 84), shifts (B, 20, 2) and camera motion (B, 2), in y and x.
        """
        code = self.objects(pixels)
        return (
            self.objects.masks(code),
            self.shifts(code).view(-1, OBJECTS, 2),
            self.camera(code),
        )

    def loss(self, looks: Tensor, done: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the dissimilarity of the warped frame plus the weighted size of the motions.

        Args:
            looks: Frames (B, 2, 84, 84), older first.
            done: Fraction of the gradient steps made, which sets the weight of the motions.
        """
        masks, shifts, camera = (part.float() for part in self(looks))
        # SSIM's variances are small differences, too small for half precision.
        with torch.autocast(looks.device.type, enabled=False):
            warped = warp(looks[:, 1:], flow(masks, shifts, camera))
            dissimilarity = (1 - ssim(warped, looks[:, :1])) / 2
            # Since M_k >= 0, this is the mean of |M_k t_k| without the products at every pixel.
            motion = (masks.mean(dim=(2, 3))[..., None] * shifts.abs()).mean()
        weight = min(1.0, done / self.settled)
        return dissimilarity + weight * motion, {"dssim": dissimilarity, "motion": motion}

    def frozen(self) -> dict[str, Frozen]:
        """Return the encoder together with its mask decoder."""
        return {"vos": self.objects}

    def show(self, looks: Tensor) -> list[Tensor]:
        """Show both frames, the warped second one, and the first with masks weighted by motion."""
        masks, shifts, camera = self(looks)
        warped = warp(looks[:, 1:], flow(masks, shifts, camera))
        moving = masks * shifts.norm(dim=2)[..., None, None]
        frames = [visualize.gray(part) for part in (looks[:, 0], looks[:, 1], warped[:, 0])]
        return [*frames, visualize.overlay(looks[:, 0], moving)]


def flow(masks: Tensor, shifts: Tensor, camera: Tensor) -> Tensor:
    """Compute the motion of each pixel.

    Args:
        masks: Masks (B, K, h, w) in [0, 1].
        shifts: Shift of each mask (B, K, 2), y and x.
        camera: Camera motion (B, 2), y and x.

    Returns:
        Motion (B, 2, h, w) in pixels, y and x.
    """
    moved = torch.einsum("bkhw,bkd->bdhw", masks, shifts)
    return _FLOW_SCALE * (moved + camera[:, :, None, None])


def warp(frames: Tensor, motion: Tensor) -> Tensor:
    """Sample each pixel from where its motion points, bilinearly, with edges repeated.

    Args:
        frames: Frames (B, C, h, w).
        motion: Motion (B, 2, h, w) in pixels, y and x.

    Returns:
        The warped frames, (B, C, h, w).
    """
    height, width = frames.shape[-2:]
    down = torch.arange(height, device=frames.device)[:, None] + motion[:, 0]
    across = torch.arange(width, device=frames.device) + motion[:, 1]
    places = torch.stack([2 * across / (width - 1) - 1, 2 * down / (height - 1) - 1], dim=-1)
    sampled: Tensor = nn.functional.grid_sample(
        frames, places, mode="bilinear", padding_mode="border", align_corners=True
    )
    return sampled


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Return the mean structural similarity of images (B, 1, h, w) in [0, 1] (Wang et al., 2004).

    Gaussian windows of 11 pixels, with a standard deviation of 1.5, lie wholly inside the image.
    """
    side, spread = 11, 1.5
    at = torch.arange(side, device=a.device) - side // 2
    window = torch.exp(-at.square() / (2 * spread**2))
    window = window / window.sum()

    def mean(images: Tensor) -> Tensor:
        rows = nn.functional.conv2d(images, window.view(1, 1, side, 1))
        return nn.functional.conv2d(rows, window.view(1, 1, 1, side))

    mean_a, mean_b = mean(a), mean(b)
    variances = mean(a * a) + mean(b * b) - mean_a.square() - mean_b.square()
    covariance = mean(a * b) - mean_a * mean_b
    light, contrast = 0.01**2, 0.03**2
    numerator = (2 * mean_a * mean_b + light) * (2 * covariance + contrast)
    denominator = (mean_a.square() + mean_b.square() + light) * (variances + contrast)
    return (numerator / denominator).mean()
