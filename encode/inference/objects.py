"""The `objects` encoder: things on a screen by color and size, with their positions.

A thing is a connected component of one foreground level (8 neighbors). Things of the same level and
of the same of three sizes form a class. For each class the code has the number of things and their
centers in 42 soft bins of rows and 40 of columns. A ball and a paddle of the same color, which
`palette` adds up, thus stay separate. Nothing is trained; background, levels and classes are fitted
on frames of one game.
"""

from __future__ import annotations

import dataclasses
import functools

import cv2
import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from torch import Tensor

from wsa.encode.inference.levels import Levels, ScreenReduction, fit_levels, gray_screens
from wsa.encode.inference.palette import COLUMN_BIN, ROW_BIN
from wsa.store.common.errors import UsageError

LEVELS = 6
# Limits in pixels: a ball has 8, a paddle 64; anything larger is a wall or a crowd.
SIZES = np.array([17, 129])
MOST_CLASSES = LEVELS * (len(SIZES) + 1)
STEPS = 4096  # From the center of one bin to the next.
MOST_THINGS = 4  # Cap of a bin's count, so that a crowd does not outweigh one thing.


@dataclasses.dataclass(frozen=True)
class Objects(ScreenReduction):
    """The map from gray screens to counts and centers.

    Attributes:
        classes: Classes to keep, (K,) uint8, each as level x 3 + size.
    """

    classes: NDArray[np.uint8]

    def codes(self, screens: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Encode screens (B, H, W) as (B, K x (1 + H // 5 + W // 4)).

        For each class, a code has its count, then its row bins, then its column bins.
        """
        kept, possible = len(self.classes), len(self._places)
        label, centers = components(screens, self.levels)
        screen, possible_class = np.divmod(label, possible)
        place = self._places[possible_class]
        known = place < kept
        label, centers = (screen * kept + place)[known], centers[known]
        count = len(screens) * kept
        parts = [np.bincount(label, minlength=count)[:, None]]
        for axis, width in enumerate((ROW_BIN, COLUMN_BIN)):
            bins = screens.shape[1 + axis] // width
            # Split each thing between the two nearest bins. Shares are whole steps, so sums are
            # exact in whatever order things are found.
            at = np.clip((centers[:, axis] - (width - 1) / 2) / width, 0, bins - 1)
            before = np.minimum(at.astype(np.intp), bins - 2)
            share = np.rint((at - before) * STEPS) / STEPS
            first = label * bins + before
            binned = np.bincount(first, 1 - share, count * bins)
            binned += np.bincount(first + 1, share, count * bins)
            parts.append(binned.reshape(count, bins))
        codes = np.minimum(np.concatenate(parts, axis=1), MOST_THINGS).astype(np.float32)
        return codes.reshape(len(screens), -1)

    @functools.cached_property
    def _places(self) -> NDArray[np.intp]:
        """Index in `classes` of each possible class; K for a class that is not kept."""
        places = np.full(len(self.levels.levels) * (len(SIZES) + 1), len(self.classes), np.intp)
        places[self.classes] = np.arange(len(self.classes))
        return places


def components(
    screens: NDArray[np.uint8], levels: Levels
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Find the things on screens.

    Args:
        screens: Gray screens (B, H, W).

    Returns:
        For each thing, (screen x L + level) x 3 + size, (n,), and row and column of its center,
        (n, 2).
    """
    _, height, width = screens.shape
    level, row, column = levels.foreground(screens)
    # One sheet holds the lines of all levels of all screens, one below the other. Each gap between
    # used lines shrinks to one empty line, so one call finds all things and skips empty space.
    line = level * (height + 1) + row
    taken = np.zeros(len(screens) * len(levels.levels) * (height + 1), np.bool_)
    taken[line] = True
    lines = np.flatnonzero(taken)
    at = np.arange(len(lines)) + np.cumsum(np.diff(lines, prepend=-1) > 1)
    place = np.empty(len(taken), np.intp)
    place[lines] = at
    sheet = np.zeros((at[-1] + 1 if len(at) else 1, width), np.uint8)
    sheet[place[line], column] = 1
    _, _, boxes, centers = cv2.connectedComponentsWithStats(sheet, connectivity=8)
    # The first component is the background.
    boxes, centers = np.asarray(boxes[1:], np.intp), np.asarray(centers[1:], np.float64)
    area, top = boxes[:, cv2.CC_STAT_AREA], boxes[:, cv2.CC_STAT_TOP]
    begins = np.empty(len(sheet), np.intp)
    begins[at] = lines
    layer, first = np.divmod(begins[top], height + 1)
    # Compute the row from the sum of a thing's rows, a whole number. Subtracting the position on
    # the sheet from the center would round differently for each position.
    rows = (np.rint(centers[:, 1] * area) - (top - first) * area) / area
    size = np.searchsorted(SIZES, area, side="right")
    return layer * (len(SIZES) + 1) + size, np.stack([rows, centers[:, 0]], 1)


def make(levels: Levels, classes: NDArray[np.uint8], most: int) -> Objects:
    """Create the map of a game.

    Args:
        classes: Classes of the game, from `fit_classes`.
        most: Maximum number of classes to keep.

    Raises:
        UsageError: If `most` is out of range.
    """
    if not 1 <= most <= MOST_CLASSES:
        raise UsageError(
            f"objects:{most} is not possible: objects have one of {LEVELS} gray levels and one of "
            f"{len(SIZES) + 1} sizes. Ask for 1 to {MOST_CLASSES} classes."
        )
    return Objects(levels.first(LEVELS), classes[:most])


def fit_classes(screens: NDArray[np.uint8], levels: Levels) -> NDArray[np.uint8]:
    """Return the classes of things on gray screens (n, H, W), those in the most frames first."""
    levels = levels.first(LEVELS)
    frames_with = np.zeros(MOST_CLASSES, np.int64)
    for screen in screens:
        frames_with[np.unique(components(screen[None], levels)[0])] += 1
    order = np.argsort(-frames_with, kind="stable")
    return order[: np.count_nonzero(frames_with)].astype(np.uint8)


def fit(features: Tensor, most: int) -> Objects:
    """Fit levels and classes on gray screens (n, H, W, 1) of one game, then call `make`.

    Raises:
        UsageError: If `most` is out of range, or nothing in the screens changes.
    """
    screens = gray_screens(features)
    levels = fit_levels(screens)
    return make(levels, fit_classes(screens, levels), most)


def save(fitted: Objects) -> bytes:
    """Serialize the fit as safetensors bytes."""
    return safetensors.numpy.save({**fitted.levels.arrays, "classes": fitted.classes})


def load(data: bytes) -> Objects:
    """Restore a fit from the bytes of `save`."""
    arrays = safetensors.numpy.load(data)
    levels, classes = Levels.of(arrays), arrays["classes"]
    possible = len(levels.levels) * (len(SIZES) + 1)
    if classes.dtype != np.uint8 or classes.ndim != 1 or (classes >= possible).any():
        raise ValueError(f"classes {classes.tolist()} are not of {possible}")
    return Objects(levels, classes)
