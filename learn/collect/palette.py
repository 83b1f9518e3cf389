"""Represent screens as color indices: a third of the memory, and the basis of segment palettes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from wsa.learn.envs.atari import rgb_frames
from wsa.store.common import hashing
from wsa.store.format import arrays


class Screen(NamedTuple):
    """A frame's digest, and its pixels as color indices, (H, W) uint8 or uint16."""

    digest: bytes
    pixels: NDArray[Any]


UNSEEN = Screen(b"", np.zeros((0, 0), np.uint8))


class IndexedScreens:
    """Converts RGB screens to indices of the colors seen so far.

    An Atari has 128 colors, so the maximum of two screens has fewer than 2^15 possible ones.
    """

    def __init__(self) -> None:
        self._number = np.full(1 << 24, -1, np.int16)
        self._packed = np.zeros(0, np.int32)

    def screens(
        self, observations: NDArray[np.uint8], wanted: Sequence[bool] | NDArray[np.bool_]
    ) -> list[Screen]:
        """Convert observations (n, 1, H, W, 3) uint8 to n screens, and number new colors.

        Skipping those that are not `wanted` makes it cheap to replay steps that are stored.
        """
        frames = rgb_frames(observations)
        if not all(wanted):
            some = iter(self.screens(observations[np.asarray(wanted)], [True] * sum(wanted)))
            return [next(some) if want else UNSEEN for want in wanted]
        if not len(frames):
            return []
        packed = _pack(frames)
        numbers = self._number.take(packed)
        if numbers.min() < 0:
            new = np.unique(packed[numbers < 0])
            self._number[new] = len(self._packed) + np.arange(len(new))
            self._packed = np.concatenate([self._packed, new])
            numbers = self._number.take(packed)
        compact = np.uint8 if len(self._packed) <= 256 else np.uint16
        return [
            Screen(hashing.frame_digest(frame), pixels)
            for frame, pixels in zip(frames, numbers.astype(compact), strict=True)
        ]

    def picture(self, screen: Screen) -> NDArray[np.uint8]:
        """Convert a screen back to RGB, (H, W, 3) uint8."""
        packed = self._packed.take(screen.pixels)
        padded = packed.view(np.uint8).reshape(*screen.pixels.shape, 4)
        picture: Any = cv2.cvtColor(padded, cv2.COLOR_BGRA2RGB)
        return picture  # type: ignore[no-any-return]

    def frames(self, screens: list[Screen]) -> arrays.Arrays:
        """Return `frames` as palette indices with a `palette`, or as RGB if 256 colors are too few.

        The palette is sorted by color, so the same screens give the same bytes, whatever was seen
        before.
        """
        all_packed = self._packed  # another thread may extend it
        shown = np.zeros(len(all_packed), np.bool_)
        for screen in screens:
            shown |= _histogram(screen.pixels, len(shown)) > 0
        # Frame by frame, because temporaries of a whole segment would take several hundred MB.
        shape = (len(screens), *screens[0].pixels.shape)
        if shown.sum() > 256:
            frames = np.empty((*shape, 3), np.uint8)
            for i, screen in enumerate(screens):
                frames[i] = self.picture(screen)
            return {"frames": frames}
        packed = np.sort(all_packed[shown])
        index = np.searchsorted(packed, all_packed).astype(np.uint8)
        frames = np.empty(shape, np.uint8)
        for i, screen in enumerate(screens):
            index.take(screen.pixels, out=frames[i], mode="clip")
        return {"frames": frames, "palette": _palette(packed)}


class RGBScreens:
    """Keeps screens as RGB, for data with any number of colors, such as decoded JPEGs.

    Has the interface of `IndexedScreens`, and gives the same bytes for the same screens.
    """

    def screens(
        self, observations: NDArray[np.uint8], wanted: Sequence[bool] | NDArray[np.bool_]
    ) -> list[Screen]:
        """Convert the `wanted` observations (n, 1, H, W, 3) uint8 to screens of RGB pixels."""
        return [
            Screen(hashing.frame_digest(frame), frame) if want else UNSEEN
            for frame, want in zip(rgb_frames(observations), wanted, strict=True)
        ]

    def frames(self, screens: list[Screen]) -> arrays.Arrays:
        """Return `frames` as palette indices with a `palette`, or as RGB; see `IndexedScreens`."""
        shown = np.zeros(1 << 24, np.bool_)
        count = 0
        for screen in screens:
            packed = _pack(screen.pixels[None])
            new = np.unique(packed[~shown[packed]])
            shown[new] = True
            count += len(new)
            if count > 256:
                return {"frames": np.stack([screen.pixels for screen in screens])}
        palette = np.flatnonzero(shown)
        index = np.zeros(1 << 24, np.uint8)
        index[palette] = np.arange(len(palette))
        frames = np.stack([index[_pack(screen.pixels[None])[0]] for screen in screens])
        return {"frames": frames, "palette": _palette(palette)}


def _pack(frames: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Pack RGB (n, H, W, 3) into integers below 2^24, (n, H, W)."""
    count, height, width, _ = frames.shape
    # OpenCV pads pixels to four bytes ten times faster than numpy. The fourth byte is 255.
    padded = cv2.cvtColor(frames.reshape(-1, width, 3), cv2.COLOR_RGB2BGRA)
    packed: NDArray[np.int32] = padded.view(np.int32).reshape(count, height, width) & 0xFFFFFF
    return packed


def _palette(packed: NDArray[Any]) -> NDArray[np.uint8]:
    """Unpack up to 256 colors into a palette, (256, 3) RGB."""
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(packed)] = np.stack([packed >> 16, packed >> 8 & 255, packed & 255], axis=1)
    return palette


def _histogram(pixels: NDArray[Any], colors: int) -> NDArray[Any]:
    """Count how often each color index occurs, (colors,) float32."""
    counts: NDArray[Any] = cv2.calcHist([pixels], [0], None, [colors], [0, colors])
    return counts.reshape(-1)
