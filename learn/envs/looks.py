"""Changes of what is shown: colour maps of whole frames, and distortions drawn at random.

All of them are applied to the frame as an agent would see it, after the maximum of two screens. What
happens in the game stays as it is.
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
        """(H, W, 3) uint8 RGB to another such frame; draws what it needs from the generator."""
        ...


class ColourMap:
    """Gives each colour another one, wherever it stands.

    Args:
        recolour: (n, 3) uint8 RGB to as many colours.
    """

    def __init__(self, recolour: Callable[[Frame], Frame]) -> None:
        self._recolour = recolour
        # By packed colour. Games show few colours: most of this memory is never touched.
        self._known = np.zeros(1 << 24, np.bool_)
        self._table = np.zeros((1 << 24, 3), np.uint8)

    def __call__(self, frame: Frame, generator: np.random.Generator) -> Frame:
        """Look every pixel up."""
        red, green, blue = (frame[..., channel].astype(np.int32) for channel in range(3))
        packed = red << 16 | green << 8 | blue
        known = self._known[packed]
        if not known.all():
            new = np.unique(packed[~known])
            colours = np.stack([new >> 16, new >> 8 & 255, new & 255], axis=1).astype(np.uint8)
            self._table[new], self._known[new] = self._recolour(colours), True
        shown: Frame = self._table[packed]
        return shown


def invert() -> Look:
    """Each channel's 255 - x."""
    return ColourMap(lambda colours: 255 - colours)


def grey() -> Look:
    """Luma in all three channels, as OpenCV computes it."""

    def luma(colours: Frame) -> Frame:
        found: Frame = np.asarray(cv2.cvtColor(colours[None], cv2.COLOR_RGB2GRAY), np.uint8)
        return found[0, :, None].repeat(3, 1)

    return ColourMap(luma)


def hue(degrees: float) -> Look:
    """Hues turned by an angle; saturation and value of HSV stay."""

    def turn(colours: Frame) -> Frame:
        hsv = cv2.cvtColor(colours[None].astype(np.float32) / 255, cv2.COLOR_RGB2HSV)
        hsv[..., 0] = (hsv[..., 0] + degrees) % 360
        turned: Frame = (cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0] * 255).round().astype(np.uint8)
        return turned

    return ColourMap(turn)


def palette(seed: int) -> Look:
    """Each channel's 256 levels in another order: different colours stay different."""
    generator = np.random.default_rng(seed)
    orders = np.stack([generator.permutation(256).astype(np.uint8) for _ in range(3)])
    return ColourMap(lambda colours: orders[np.arange(3), colours])


def dim(factor: float) -> Look:
    """Each channel times a factor from 0 to 1."""
    return ColourMap(lambda colours: (colours * factor).round().astype(np.uint8))


def noise(deviation: float) -> Look:
    """Gaussian noise on each channel of each pixel.

    Args:
        deviation: Its standard deviation, as a share of the range from 0 to 255.
    """

    def disturb(frame: Frame, generator: np.random.Generator) -> Frame:
        noise = generator.standard_normal(frame.shape, np.float32) * np.float32(255 * deviation)
        return (frame + noise).round().clip(0, 255).astype(np.uint8)

    return disturb


def occlude(side: int) -> Look:
    """A black square somewhere on the screen, elsewhere in each frame."""

    def cover(frame: Frame, generator: np.random.Generator) -> Frame:
        covered = frame.copy()
        top, left = (int(generator.integers(max(1, n - side + 1))) for n in frame.shape[:2])
        covered[top : top + side, left : left + side] = 0
        return covered

    return cover


def flicker(share: float) -> Look:
    """A black frame instead, with a probability (Hausknecht & Stone 2015, arXiv 1507.06527)."""
    return lambda frame, generator: np.zeros_like(frame) if generator.random() < share else frame
