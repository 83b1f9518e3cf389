"""Overlays of keypoints and masks on the frames they belong to."""

from __future__ import annotations

import colorsys

import torch
from torch import Tensor, nn


def grey(frames: Tensor) -> Tensor:
    """(B, h, w) in [0, 1] as pictures (B, 3, h, w)."""
    return frames.unsqueeze(1).expand(-1, 3, -1, -1).clamp(0, 1)


def overlay(frames: Tensor, maps: Tensor) -> Tensor:
    """Maps in colours over darkened frames.

    Args:
        frames: (B, h, w) in [0, 1].
        maps: (B, K, h', w'). What a map has everywhere is left away, since it points to nothing;
            where all together are largest, a look has full colour.

    Returns:
        (B, 3, h, w) in [0, 1].
    """
    count = maps.shape[1]
    colours = torch.tensor(
        [colorsys.hsv_to_rgb(i / count, 1.0, 1.0) for i in range(count)], device=maps.device
    )
    above = maps - maps.amin(dim=(2, 3), keepdim=True)
    strength = above / above.sum(dim=1).amax(dim=(1, 2)).clamp_min(1e-6)[:, None, None, None]
    strength = nn.functional.interpolate(strength, frames.shape[-2:], mode="bilinear")
    return (0.6 * grey(frames) + torch.einsum("bkhw,kc->bchw", strength, colours)).clamp(0, 1)
