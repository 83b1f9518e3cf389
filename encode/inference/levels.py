"""What a game draws on its background: the base of the encoders `palette` and `objects`.

An Atari game draws few colours, and most things have one of their own. So a screen is read without
any training: a pixel's background is the grey level it has most often, and what differs from it is
foreground. Both are fitted on unlabelled frames of one game; fits for the games of ALE come with
wsa (`wsa.encode.registration.game_levels`).
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
    """The background of a game, and the grey levels of its foreground.

    Attributes:
        background: (H, W) uint8, each pixel's most frequent grey level.
        levels: (L,) uint8, the foreground's levels, the most frequent first.
    """

    background: NDArray[np.uint8]
    levels: NDArray[np.uint8]

    def foreground(
        self, screens: NDArray[np.uint8]
    ) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
        """The pixels of screens (B, H, W) that have one of the levels and are not background.

        Returns:
            Three arrays (n,): of which level of which screen each pixel is, counted as screen x L +
            level; its row, and its column.
        """
        pixels = np.flatnonzero(screens != self.background)
        level = self._places[screens.ravel()[pixels]]
        known = level < len(self.levels)
        screen, pixel = np.divmod(pixels[known], self.background.size)
        row, column = np.divmod(pixel, self.background.shape[1])
        return screen * len(self.levels) + level[known], row, column

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[Any]]) -> Levels:
        """What `arrays` gave.

        Raises:
            KeyError, ValueError: These are other arrays.
        """
        background, levels = arrays["background"], arrays["levels"]
        if not (background.dtype == levels.dtype == np.uint8):
            raise ValueError(f"levels are {background.dtype} and {levels.dtype}, not uint8")
        if background.ndim != 2 or not (levels.ndim == 1 and 1 <= len(levels) <= MOST_LEVELS):
            raise ValueError(f"levels have shapes {background.shape} and {levels.shape}")
        return cls(background, levels)

    @property
    def arrays(self) -> dict[str, NDArray[np.uint8]]:
        """What is stored of it, by name."""
        return {"background": self.background, "levels": self.levels}

    def first(self, most: int) -> Levels:
        """The same with the most frequent levels alone."""
        return Levels(self.background, self.levels[:most])

    @functools.cached_property
    def _places(self) -> NDArray[np.intp]:
        """Where each of 256 grey levels stands in `levels`; behind its end if it is none of them."""
        places = np.full(256, len(self.levels), np.intp)
        places[self.levels] = np.arange(len(self.levels))
        return places


def fit_levels(screens: NDArray[np.uint8]) -> Levels:
    """Find background and foreground levels, at most `MOST_LEVELS`.

    Args:
        screens: (n, H, W) grey, frames of one game, spread over its episodes.

    Raises:
        UsageError: Nothing in the frames ever changes.
    """
    background = np.zeros(screens.shape[1:], np.uint8)
    frames_with = np.zeros(screens.shape[1:], np.int64)
    for level in np.unique(screens):
        frames = np.count_nonzero(screens == level, axis=0)
        background[frames > frames_with] = level
        frames_with = np.maximum(frames, frames_with)
    pixels = np.bincount(screens[screens != background], minlength=256)
    # Equally frequent levels in ascending order, so that a fit is repeatable.
    levels = np.argsort(-pixels, kind="stable")[: min(MOST_LEVELS, np.count_nonzero(pixels))]
    if not len(levels):
        raise UsageError(
            "bad-option",
            f"All {len(screens)} frames of the game are alike, so nothing in them is foreground. "
            "Collect more frames.",
        )
    return Levels(background, levels.astype(np.uint8))


def grey_screens(features: Tensor) -> NDArray[np.uint8]:
    """Grey screens (B, H, W) uint8 of what the network `screen` gives, (B, H, W, 1) float32 from 0 to
    255.

    Raises:
        UsageError: They are features of another network.
    """
    if features.ndim != 4 or features.shape[-1] != 1:
        raise UsageError(
            "bad-option",
            "palette and objects read grayscale screens, not a network's features. Ask for them as "
            "models: --models palette,objects.",
        )
    # Whole numbers but for the last bits of a division and a product.
    screens: NDArray[np.uint8] = features[..., 0].add(0.5).byte().cpu().numpy()
    return screens


@dataclasses.dataclass(frozen=True)
class ScreenReduction:
    """A reduction that reads a grey screen, not features.

    Attributes:
        levels: Background and foreground of the game.
        device: Where its results are wanted; it computes on the CPU.
    """

    levels: Levels
    device: torch.device | str = dataclasses.field(default="cpu", kw_only=True)

    def __call__(self, features: Tensor) -> Tensor:
        """What the network `screen` gives, (B, H, W, 1), to (B, K) float32."""
        return self.of_screens(grey_screens(features))

    def to(self, device: torch.device) -> Self:
        """The same map on a device."""
        return dataclasses.replace(self, device=device)

    def of_screens(self, screens: NDArray[np.uint8]) -> Tensor:
        """Grey screens (B, H, W) to (B, K) float32."""
        return torch.from_numpy(self.codes(screens)).to(self.device)

    def codes(self, screens: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Grey screens (B, H, W) to (B, K): each depends on its own screen alone, to the last bit."""
        raise NotImplementedError


@functools.cache
def soft_bins(length: int, width: int) -> NDArray[np.float32]:
    """Triangular bins over pixels: how much of each pixel falls into each bin.

    Args:
        length: Pixels.
        width: Pixels from one bin's centre to the next.

    Returns:
        (length, length // width) float32, in units of 1 / (2 width) of a pixel. These are whole
        numbers, so sums of them are exact, in whatever order they are added. Each row sums to
        2 width: a thing that moves by one pixel moves weight from a bin to its neighbour.
    """
    centres = 2 * width * np.arange(length // width) + width - 1
    pixels = np.clip(2 * np.arange(length), centres[0], centres[-1])
    bins: NDArray[np.int64] = np.maximum(2 * width - np.abs(pixels[:, None] - centres), 0)
    return bins.astype(np.float32)
