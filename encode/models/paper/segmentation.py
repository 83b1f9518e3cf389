"""The paper's moving objects: masks learned from motion alone (MOREL; Goel et al., 2018).

From two consecutive frames the network makes K = 20 masks, a shift for each and a camera motion
common to all; moving the second frame by them must give the first. With frames x1, x2, masks
M_k in [0, 1] (84, 84), shifts t_k and camera c in R^2:

    flow    u[p] = 0.01 * size * (sum_k M_k[p] t_k + c)            pixels, size = 84
    warped  y[p] = x2[p + u[p]]                                     bilinear, edges repeated
    loss    (1 - SSIM(y, x1)) / 2  +  lambda * mean over k, p of |M_k[p] t_k|

with lambda growing from 0 to 1 over the first fifth of the training, which is by 1e-5 a step in the
authors' 500,000. Losses at different lambda cannot be compared, so the best weights are looked for
once it stands still (`settled`).

The masks, 20 x 84 x 84, are a function of 512 numbers, the *code*; that is what the frozen model
gives and what a store keeps. `ObjectMasks.masks` decodes it, with 54 of the network's 62 M
products, to exactly the masks that a pass over the frames gives, since both begin from the code.

The paper's authors trained on consecutive frames in [0, 1] and ran the network on means of frames,
or on one frame twice, in [0, 1/255]. Here both frames and their scale are the model's declared
input.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from wsa.encode.models.custom import Input
from wsa.encode.models.paper import visualize
from wsa.encode.models.paper.base import Frozen, Recipe, Trainee, TrainingInput, grey

OBJECTS = 20
CODE = 512
_SIDE = 84
_FLOW_SCALE = 0.01 * _SIDE


class Residual(nn.Module):
    """x + ReLU(conv(x)), 24 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(24, 24, 3, 1, 1)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, 24, h, w) to the same shape."""
        return maps + nn.functional.relu(self.conv(maps))


class ObjectMasks(Frozen):
    """Two frames to a code, and a code to masks; frozen under the alias `vos`."""

    sees: ClassVar[Input] = grey(_SIDE, _SIDE)
    window: ClassVar[int] = 2

    def __init__(self) -> None:
        super().__init__()
        self.code = nn.Sequential(
            nn.Conv2d(2, 32, 8, 4), nn.ReLU(),
            nn.Conv2d(32, 64, 4, 2), nn.ReLU(),
            nn.Conv2d(64, 64, 3, 1), nn.ReLU(),
            nn.Flatten(), nn.Linear(64 * 7 * 7, CODE), nn.ReLU(),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Linear(CODE, 24 * 21 * 21), nn.Unflatten(1, (24, 21, 21)),
            nn.UpsamplingBilinear2d(scale_factor=2), Residual(),
            nn.UpsamplingBilinear2d(scale_factor=2), Residual(),
            nn.Conv2d(24, OBJECTS, 1), nn.Sigmoid(),
        )  # fmt: skip

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 2, 84, 84) in [0, 1], older frame first, to the code (B, 512)."""
        code: Tensor = self.code(pixels)
        return code

    def masks(self, code: Tensor) -> Tensor:
        """(B, 512) to masks (B, 20, 84, 84) in [0, 1]."""
        masks: Tensor = self.decoder(code)
        return masks


class MovingObjects(Trainee):
    """The masks with the motions that they are trained with; 7.14 M parameters."""

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
        """Linearly to 0."""
        return initial * (1 - step / steps)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, 2, 84, 84) to masks (B, 20, 84, 84), shifts (B, 20, 2), camera (B, 2), as y and x."""
        code = self.objects(pixels)
        return (
            self.objects.masks(code),
            self.shifts(code).view(-1, OBJECTS, 2),
            self.camera(code),
        )

    def loss(self, looks: Tensor, done: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Dissimilarity of the warped frame, and the size of the motions; looks (B, 2, 84, 84)."""
        masks, shifts, camera = (part.float() for part in self(looks))
        with torch.autocast(looks.device.type, enabled=False):  # Variances are small differences.
            warped = warp(looks[:, 1:], flow(masks, shifts, camera))
            unlike = (1 - ssim(warped, looks[:, :1])) / 2
            # The mean of |M_k t_k| over places, objects and both directions, without the products.
            motion = (masks.mean(dim=(2, 3))[..., None] * shifts.abs()).mean()
        weight = min(1.0, done / self.settled)
        return unlike + weight * motion, {"dssim": unlike, "motion": motion}

    def frozen(self) -> dict[str, Frozen]:
        """The code and its decoder."""
        return {"vos": self.objects}

    def show(self, looks: Tensor) -> list[Tensor]:
        """Both frames, the second moved to the first, and the masks by how far they move."""
        masks, shifts, camera = self(looks)
        warped = warp(looks[:, 1:], flow(masks, shifts, camera))
        moving = masks * shifts.norm(dim=2)[..., None, None]
        frames = [visualize.grey(part) for part in (looks[:, 0], looks[:, 1], warped[:, 0])]
        return [*frames, visualize.overlay(looks[:, 0], moving)]


def flow(masks: Tensor, shifts: Tensor, camera: Tensor) -> Tensor:
    """Motion of each pixel.

    Args:
        masks: (B, K, h, w).
        shifts: (B, K, 2), y and x.
        camera: (B, 2).

    Returns:
        (B, 2, h, w) in pixels.
    """
    moved = torch.einsum("bkhw,bkd->bdhw", masks, shifts)
    return _FLOW_SCALE * (moved + camera[:, :, None, None])


def warp(frames: Tensor, motion: Tensor) -> Tensor:
    """Look up each pixel where its motion leads, bilinearly, with edges repeated.

    Args:
        frames: (B, C, h, w).
        motion: (B, 2, h, w) in pixels, y and x.

    Returns:
        (B, C, h, w).
    """
    height, width = frames.shape[-2:]
    down = torch.arange(height, device=frames.device)[:, None] + motion[:, 0]
    across = torch.arange(width, device=frames.device) + motion[:, 1]
    places = torch.stack([2 * across / (width - 1) - 1, 2 * down / (height - 1) - 1], dim=-1)
    found: Tensor = nn.functional.grid_sample(
        frames, places, mode="bilinear", padding_mode="border", align_corners=True
    )
    return found


def ssim(a: Tensor, b: Tensor, side: int = 11, spread: float = 1.5) -> Tensor:
    """Mean structural similarity of images in [0, 1] (Wang et al., 2004), Gaussian windows.

    Args:
        a, b: (B, 1, h, w).
        side: Of a window; windows lie wholly inside the image.
        spread: Standard deviation of a window, in pixels.
    """
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
    like = (2 * mean_a * mean_b + light) * (2 * covariance + contrast)
    unlike = (mean_a.square() + mean_b.square() + light) * (variances + contrast)
    return (like / unlike).mean()
