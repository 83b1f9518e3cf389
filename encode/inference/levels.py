"""Separate a game's foreground from its background, for the encoders `palette` and `objects`.

An Atari game draws few colors, and most things have a color of their own, so no training is needed:
the background of a pixel is its most frequent gray level, and anything else is foreground. Both are
fitted on unlabeled frames of one game. Fits for the games of ALE come with wsa
(`wsa.encode.registration.fit_reduction`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsa.store.common.errors import UsageError

MOST_LEVELS = 12


@dataclasses.dataclass(frozen=True)
class Levels:
    """The background of a game and the gray levels of its foreground.

    Attributes:
        background: Most frequent gray level of each pixel, (H, W) uint8.
        levels: Gray levels of the foreground, (L,) uint8, most frequent first.
    """

    background: NDArray[np.uint8]
    levels: NDArray[np.uint8]

    def foreground(
        self, screens: NDArray[np.uint8]
    ) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
        """Find the pixels of screens (B, H, W) that have one of the levels and are not background.

        Returns:
            For each pixel, three arrays (n,): screen x L + level, row, and column.
        """
        pixels = np.flatnonzero(screens != self.background)
        level = self._places[screens.ravel()[pixels]]
        known = level < len(self.levels)
        screen, pixel = np.divmod(pixels[known], self.background.size)
        row, column = np.divmod(pixel, self.background.shape[1])
        return screen * len(self.levels) + level[known], row, column

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[Any]]) -> Levels:
        """Restore levels from `arrays`.

        Raises:
            KeyError: If an array is missing.
            ValueError: If an array has another type or shape.
        """
        background, levels = arrays["background"], arrays["levels"]
        if not (background.dtype == levels.dtype == np.uint8):
            raise ValueError(f"levels are {background.dtype} and {levels.dtype}, not uint8")
        if background.ndim != 2 or not (levels.ndim == 1 and 1 <= len(levels) <= MOST_LEVELS):
            raise ValueError(f"levels have shapes {background.shape} and {levels.shape}")
        return cls(background, levels)

    @property
    def arrays(self) -> dict[str, NDArray[np.uint8]]:
        """Arrays to store, by name."""
        return {"background": self.background, "levels": self.levels}

    def first(self, most: int) -> Levels:
        """Return a copy with at most the `most` most frequent levels."""
        return Levels(self.background, self.levels[:most])

    @functools.cached_property
    def _places(self) -> NDArray[np.intp]:
        """Index in `levels` of each of 256 gray levels; L for a gray level that is not there."""
        places = np.full(256, len(self.levels), np.intp)
        places[self.levels] = np.arange(len(self.levels))
        return places


def fit_levels(screens: NDArray[np.uint8]) -> Levels:
    """Fit the background and at most `MOST_LEVELS` foreground levels.

    Args:
        screens: Gray frames (n, H, W) of one game, spread over its episodes.

    Raises:
        UsageError: If all frames are alike.
    """
    background = np.zeros(screens.shape[1:], np.uint8)
    frames_with = np.zeros(screens.shape[1:], np.int64)
    for level in np.unique(screens):
        frames = np.count_nonzero(screens == level, axis=0)
        background[frames > frames_with] = level
        frames_with = np.maximum(frames, frames_with)
    pixels = np.bincount(screens[screens != background], minlength=256)
    # The stable sort orders equally frequent levels by value, which makes a fit repeatable.
    levels = np.argsort(-pixels, kind="stable")[: min(MOST_LEVELS, np.count_nonzero(pixels))]
    if not len(levels):
        raise UsageError(
            f"All {len(screens)} frames of the game are alike, so nothing in them is foreground. "
            "Collect more frames."
        )
    return Levels(background, levels.astype(np.uint8))


def gray_screens(features: Tensor) -> NDArray[np.uint8]:
    """Convert the features of the network `screen` back to gray screens (B, H, W) uint8.

    Args:
        features: Features (B, H, W, 1) float32 from 0 to 255.

    Raises:
        UsageError: If the features are from another network.
    """
    if features.ndim != 4 or features.shape[-1] != 1:
        raise UsageError(
            "palette and objects read grayscale screens, not a network's features. Ask for them as "
            "models: --models palette,objects."
        )
    # Rounds, because normalization left an error in the last bits.
    screens: NDArray[np.uint8] = features[..., 0].add(0.5).byte().cpu().numpy()
    return screens


@dataclasses.dataclass(frozen=True)
class ScreenReduction:
    """A reduction that reads a gray screen instead of features.

    Attributes:
        levels: Background and foreground of the game.
        device: Device of the result; the computation is on the CPU.
    """

    levels: Levels
    device: torch.device | str = dataclasses.field(default="cpu", kw_only=True)

    def __call__(self, features: Tensor) -> Tensor:
        """Reduce features (B, H, W, 1) of the network `screen` to (B, K) float32."""
        return self.of_screens(gray_screens(features))

    def to(self, device: torch.device) -> Self:
        """Return the same map with its result on a device."""
        return dataclasses.replace(self, device=device)

    def of_screens(self, screens: NDArray[np.uint8]) -> Tensor:
        """Reduce gray screens (B, H, W) to (B, K) float32."""
        return torch.from_numpy(self.codes(screens)).to(self.device)

    def codes(self, screens: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Encode gray screens (B, H, W) as (B, K).

        Each row depends on its own screen alone, to the last bit.
        """
        raise NotImplementedError


@functools.cache
def soft_bins(length: int, width: int) -> NDArray[np.float32]:
    """Return triangular bins over pixels: the weight of each pixel in each bin.

    Args:
        width: Pixels from the center of one bin to the next.

    Returns:
        Weights (length, length // width) float32, in units of 1 / (2 width) of a pixel. They are
        whole numbers, so their sums are exact in any order. Each row sums to 2 width: a thing that
        moves by one pixel moves weight from one bin to its neighbor.
    """
    centers = 2 * width * np.arange(length // width) + width - 1
    pixels = np.clip(2 * np.arange(length), centers[0], centers[-1])
    bins: NDArray[np.int64] = np.maximum(2 * width - np.abs(pixels[:, None] - centers), 0)
    return bins.astype(np.float32)
