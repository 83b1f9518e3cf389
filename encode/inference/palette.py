"""The `palette` encoder: positions of each gray level of a game, as row and column marginals.

For every foreground level it counts the pixels in each of 42 soft bins of rows and 40 of columns.
Nothing is trained; background and levels are fitted on frames of one game.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from torch import Tensor

from wsa.encode.inference.levels import (
    MOST_LEVELS,
    Levels,
    ScreenReduction,
    fit_levels,
    gray_screens,
    soft_bins,
)
from wsa.store.common.errors import UsageError

ROW_BIN, COLUMN_BIN = 5, 4  # Pixels: 42 and 40 bins of a screen of 210 x 160.
# A bin's count is capped at 16 pixels, so that a large thing does not outweigh a ball, and scaled
# to the range 0 to 4.
MOST_PIXELS, LARGEST = 16, 4


@dataclasses.dataclass(frozen=True)
class Palette(ScreenReduction):
    """The map from gray screens to marginals."""

    def codes(self, screens: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Encode screens (B, H, W) as (B, L x (H // 5 + W // 4)).

        For each level, a code has its row bins, then its column bins.
        """
        count = len(screens) * len(self.levels.levels)
        level, *places = self.levels.foreground(screens)
        parts = []
        sides = zip(places, screens.shape[1:], (ROW_BIN, COLUMN_BIN), strict=True)
        for place, length, width in sides:
            pixels = np.bincount(level * length + place, minlength=count * length)
            pixels = pixels.reshape(count, length).astype(np.float32)
            # Whole numbers below 2^24 have exact float32 sums, in any order.
            binned = np.minimum(pixels @ soft_bins(length, width), MOST_PIXELS * 2 * width)
            parts.append(binned * np.float32(LARGEST / (MOST_PIXELS * 2 * width)))
        return np.concatenate(parts, axis=1).reshape(len(screens), -1)


def make(levels: Levels, most: int) -> Palette:
    """Create the map of a game.

    Args:
        most: Maximum number of gray levels to use.

    Raises:
        UsageError: If `most` is out of range.
    """
    if not 1 <= most <= MOST_LEVELS:
        raise UsageError(f"palette:{most} is not possible: ask for 1 to {MOST_LEVELS} gray levels.")
    return Palette(levels.first(most))


def fit(features: Tensor, most: int) -> Palette:
    """Fit background and foreground on gray screens (n, H, W, 1) of one game, then call `make`.

    Raises:
        UsageError: If `most` is out of range, or nothing in the screens changes.
    """
    return make(fit_levels(gray_screens(features)), most)


def save(fitted: Palette) -> bytes:
    """Serialize the fit as safetensors bytes."""
    return safetensors.numpy.save(fitted.levels.arrays)


def load(data: bytes) -> Palette:
    """Restore a fit from the bytes of `save`."""
    return Palette(Levels.of(safetensors.numpy.load(data)))
