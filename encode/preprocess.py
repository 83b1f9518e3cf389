"""From screens to a model's input, whole batches at a time, on the model's device.

timm's own evaluation transform resizes the shorter side and crops the middle, which cuts a quarter
of a 210 x 160 screen away: the score, the ship, the paddle. Here the whole screen is stretched to
the model's input (`squash`), with the model's interpolation and antialiasing, on uint8 as Pillow
does it, and normalised with the model's mean and standard deviation.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from wsa.encode.spec import Preprocessing


def preprocess(frames: Tensor, how: Preprocessing) -> Tensor:
    """Stretch and normalise.

    Args:
        frames: (B, H, W, 3) uint8 RGB, or (B, w, H, W, 3) for a model that looks at w frames.
        how: The model's preprocessing.

    Returns:
        (B, 3, height, width) float32, channels last in memory; of windows (B, 3 w, height, width),
        the channels of the oldest frame first.
    """
    if frames.ndim == 5:
        single = preprocess(frames.flatten(0, 1), how)
        folded = single.reshape(len(frames), -1, how.height, how.width)
        return folded.contiguous(memory_format=torch.channels_last)
    pixels = transforms.resize(
        frames.permute(0, 3, 1, 2),
        [how.height, how.width],
        interpolation=InterpolationMode(how.interpolation),
        antialias=True,
    )
    mean = torch.tensor(how.mean, device=frames.device).view(3, 1, 1)
    std = torch.tensor(how.std, device=frames.device).view(3, 1, 1)
    scaled = pixels.to(torch.float32).mul_(1 / (255 * std)).sub_(mean / std)
    result: Tensor = scaled.contiguous(memory_format=torch.channels_last)
    return result
