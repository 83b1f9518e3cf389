"""Learning curves as a picture: what a method's runs returned, over the steps that they played.

A thin line for each run, a thick one for their mean; episodes are averaged in even stretches of
steps, since single ones jump. Drawn with OpenCV, which is here anyway.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
Points = NDArray[np.float64]

STRETCHES = 60
HEIGHT, WIDTH = 480, 900
LEFT, RIGHT, TOP, BOTTOM = 80, 30, 50, 50
LEGEND = 22
FONT = cv2.FONT_HERSHEY_SIMPLEX
INK, GRID = (40, 40, 40), (225, 225, 225)
COLOURS = (
    (31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189),
    (140, 86, 75), (227, 119, 194), (127, 127, 127), (188, 189, 34), (23, 190, 207),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Curve:
    """What one run returned.

    Attributes:
        method: Curves of one method share a colour.
        steps: (n,) steps at which episodes ended.
        returns: (n,) raw returns of these.
    """

    method: str
    steps: Points
    returns: Points


def png(title: str, curves: Sequence[Curve]) -> bytes:
    """A picture of curves, as a PNG file.

    Args:
        title: What they are of.
        curves: At least one, each with an episode.
    """
    kept, data = cv2.imencode(".png", draw(title, curves)[..., ::-1])
    assert kept, "OpenCV encodes PNG"
    return bytes(data)


def draw(title: str, curves: Sequence[Curve]) -> Picture:
    """The picture: (H, W, 3) uint8 RGB."""
    methods = list(dict.fromkeys(curve.method for curve in curves))
    end = max(float(curve.steps.max()) for curve in curves)
    lines = [averages(curve, end) for curve in curves]
    known = np.concatenate([line[np.isfinite(line)] for line in lines])
    low, high = float(known.min()), float(known.max())
    high = high if high > low else low + 1
    whole = np.full((HEIGHT + LEGEND * len(methods), WIDTH, 3), 255, np.uint8)
    _axes(whole, title, end, low, high)
    for number, method in enumerate(methods):
        colour = COLOURS[number % len(COLOURS)]
        mine = [line for line, curve in zip(lines, curves, strict=True) if curve.method == method]
        pale = tuple((2 * 255 + c) // 3 for c in colour)
        for line in mine:
            _line(whole, line, low, high, pale, 1)
        table = np.array(mine)
        # Where every run has an episode: else a mean would be of other runs here than there.
        _line(whole, table.mean(axis=0), low, high, colour, 2)
        under = HEIGHT + LEGEND * number
        cv2.line(whole, (LEFT, under), (LEFT + 30, under), colour, 2, cv2.LINE_AA)
        _text(whole, f"{method} ({len(mine)})", LEFT + 40, under + 5)
    return whole


def averages(curve: Curve, end: float) -> Points:
    """Mean return in each even stretch of the steps up to `end`, (STRETCHES,); NaN where none ended."""
    which = np.minimum((curve.steps / end * STRETCHES).astype(np.int64), STRETCHES - 1)
    count = np.bincount(which, minlength=STRETCHES)
    total = np.bincount(which, curve.returns, STRETCHES)
    found: Points = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return found


def ticks(low: float, high: float) -> Points:
    """Two to six round numbers from `low` to `high`: multiples of 1, 2 or 5 times a power of ten."""
    least = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(least))
    step = next(step for m in (1, 2, 5, 10) if (step := m * power) >= least * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return np.arange(first, last + 1, dtype=np.float64) * step


def _axes(whole: Picture, title: str, end: float, low: float, high: float) -> None:
    _text(whole, title, LEFT, TOP - 20)
    for value in ticks(low, high):
        _, y = _place(0.0, (value - low) / (high - low))
        cv2.line(whole, (LEFT, y), (WIDTH - RIGHT, y), GRID, 1)
        _text(whole, f"{value:,.4g}", 8, y + 5)
    for value in ticks(0.0, end):
        x, _ = _place(value / end, 0.0)
        _text(whole, f"{value:,.0f}", min(x - 20, WIDTH - 90), HEIGHT - BOTTOM + 22)


def _line(
    whole: Picture, line: Points, low: float, high: float, colour: Sequence[int], thick: int
) -> None:
    shares = (np.arange(STRETCHES) + 0.5) / STRETCHES
    points = [
        _place(float(at), (float(value) - low) / (high - low))
        for at, value in zip(shares, line, strict=True)
        if np.isfinite(value)
    ]
    if points:
        path = np.array(points, np.int32)
        cv2.polylines(whole, [path], False, tuple(colour), thick, cv2.LINE_AA)


def _place(across: float, up: float) -> tuple[int, int]:
    return (
        round(LEFT + across * (WIDTH - LEFT - RIGHT)),
        round(HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)),
    )


def _text(whole: Picture, text: str, x: int, y: int) -> None:
    cv2.putText(whole, text, (x, y), FONT, 0.45, INK, 1, cv2.LINE_AA)
