"""Overlay keypoints and masks on their frames."""

from __future__ import annotations

import colorsys

import torch
from torch import Tensor, nn


def gray(frames: Tensor) -> Tensor:
    """Convert gray frames (B, h, w) in [0, 1] to pictures (B, 3, h, w)."""
    return frames.unsqueeze(1).expand(-1, 3, -1, -1).clamp(0, 1)


def overlay(frames: Tensor, maps: Tensor) -> Tensor:
    """Draw maps in different colors over darkened frames.

    Args:
        frames: Gray frames (B, h, w) in [0, 1].
        maps: Maps (B, K, h', w'). A map's minimum is subtracted, since a constant points to
            nothing; the color is full where the sum of a frame's maps is largest.

    Returns:
        Pictures (B, 3, h, w) in [0, 1].
    """
    count = maps.shape[1]
    colors = torch.tensor(
        [colorsys.hsv_to_rgb(i / count, 1.0, 1.0) for i in range(count)], device=maps.device
    )
    above = maps - maps.amin(dim=(2, 3), keepdim=True)
    strength = above / above.sum(dim=1).amax(dim=(1, 2)).clamp_min(1e-6)[:, None, None, None]
    strength = nn.functional.interpolate(strength, frames.shape[-2:], mode="bilinear")
    return (0.6 * gray(frames) + torch.einsum("bkhw,kc->bchw", strength, colors)).clamp(0, 1)
