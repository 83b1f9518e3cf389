"""Visual changes of frames: color maps, and random distortions.

They are applied to the frame that the agent sees, after the maximum of two screens. The game itself
does not change.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

Frame = NDArray[np.uint8]


class Look(Protocol):
    """Changes a frame."""

    def __call__(self, frame: Frame, generator: np.random.Generator) -> Frame:
        """Map a frame (H, W, 3) uint8 RGB to another; all randomness comes from `generator`."""
        ...


class ColorMap:
    """Maps each color to another, regardless of position.

    `recolor` maps colors (n, 3) uint8 RGB to n other colors.
    """

    def __init__(self, recolor: Callable[[Frame], Frame]) -> None:
        self._recolor = recolor
        # Indexed by packed color. Games show few colors, so most of this memory is never touched.
        self._known = np.zeros(1 << 24, np.bool_)
        self._table = np.zeros((1 << 24, 3), np.uint8)

    def __call__(self, frame: Frame, generator: np.random.Generator) -> Frame:
        """Look up every pixel's new color."""
        red, green, blue = (frame[..., channel].astype(np.int32) for channel in range(3))
        packed = red << 16 | green << 8 | blue
        known = self._known[packed]
        if not known.all():
            new = np.unique(packed[~known])
            colors = np.stack([new >> 16, new >> 8 & 255, new & 255], axis=1).astype(np.uint8)
            self._table[new], self._known[new] = self._recolor(colors), True
        shown: Frame = self._table[packed]
        return shown


def invert() -> Look:
    """Map each channel value x to 255 - x."""
    return ColorMap(lambda colors: 255 - colors)


def gray() -> Look:
    """Show the luma in all three channels, as OpenCV computes it."""

    def luma(colors: Frame) -> Frame:
        gray: Frame = np.asarray(cv2.cvtColor(colors[None], cv2.COLOR_RGB2GRAY), np.uint8)
        return gray[0, :, None].repeat(3, 1)

    return ColorMap(luma)


def hue(degrees: float) -> Look:
    """Rotate all hues by an angle; saturation and value in HSV stay the same."""

    def turn(colors: Frame) -> Frame:
        hsv = cv2.cvtColor(colors[None].astype(np.float32) / 255, cv2.COLOR_RGB2HSV)
        hsv[..., 0] = (hsv[..., 0] + degrees) % 360
        turned: Frame = (cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0] * 255).round().astype(np.uint8)
        return turned

    return ColorMap(turn)


def palette(seed: int) -> Look:
    """Permute each channel's 256 levels; different colors stay different."""
    generator = np.random.default_rng(seed)
    orders = np.stack([generator.permutation(256).astype(np.uint8) for _ in range(3)])
    return ColorMap(lambda colors: orders[np.arange(3), colors])


def dim(factor: float) -> Look:
    """Multiply each channel by a factor from 0 to 1."""
    return ColorMap(lambda colors: (colors * factor).round().astype(np.uint8))


def noise(deviation: float) -> Look:
    """Add Gaussian noise to each channel of each pixel.

    Args:
        deviation: Standard deviation of the noise, as a fraction of the range from 0 to 255.
    """

    def disturb(frame: Frame, generator: np.random.Generator) -> Frame:
        noise = generator.standard_normal(frame.shape, np.float32) * np.float32(255 * deviation)
        return (frame + noise).round().clip(0, 255).astype(np.uint8)

    return disturb


def occlude(side: int) -> Look:
    """Cover each frame with a black square at a random position."""

    def cover(frame: Frame, generator: np.random.Generator) -> Frame:
        covered = frame.copy()
        top, left = (int(generator.integers(max(1, n - side + 1))) for n in frame.shape[:2])
        covered[top : top + side, left : left + side] = 0
        return covered

    return cover


def flicker(share: float) -> Look:
    """Show a black frame with probability `share` (Hausknecht & Stone 2015, arXiv 1507.06527)."""
    return lambda frame, generator: np.zeros_like(frame) if generator.random() < share else frame
