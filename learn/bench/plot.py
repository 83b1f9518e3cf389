"""Learning curves as a picture: returns of a method's runs over steps.

Each run has a thin line, and their mean a thick one. Returns are averaged over equal stretches of
steps, because those of single episodes are noisy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from wsa.learn.training import charts

Points = NDArray[np.float64]

STRETCHES = 60


@dataclasses.dataclass(frozen=True)
class Curve:
    """Returns of one run.

    Attributes:
        method: Name of the method; curves of one method share a color.
        steps: Steps at which episodes ended, shape (n,).
        returns: Raw returns of these episodes, shape (n,).
    """

    method: str
    steps: Points
    returns: Points


def png(title: str, curves: Sequence[Curve]) -> bytes:
    """Draw one or more curves, each with at least one episode, as a PNG file."""
    return charts.draw(title, "steps", "raw return", lines(curves))


def lines(curves: Sequence[Curve]) -> list[charts.Line]:
    """A pale line for each curve, and a strong one for each method's mean."""
    middles, by_method = stretched(curves)
    drawn = []
    for style, (method, table) in enumerate(by_method.items()):
        for returns in table if len(table) > 1 else ():
            drawn.append(_line("", middles, returns, style, pale=True))
        # Only stretches in which every run has an episode, so that each mean is over the same runs.
        label = f"{method} ({len(table)})"
        drawn.append(_line(label, middles, table.mean(axis=0), style, pale=False))
    return drawn


def stretched(curves: Sequence[Curve]) -> tuple[Points, dict[str, Points]]:
    """Average curves over equal stretches of steps.

    Returns:
        The middles of the stretches, and by method the `averages` of its curves, shape (curves,
        STRETCHES).
    """
    end = max(float(curve.steps.max()) for curve in curves)
    by_method = {
        method: np.array([averages(curve, end) for curve in curves if curve.method == method])
        for method in dict.fromkeys(curve.method for curve in curves)
    }
    return (np.arange(STRETCHES) + 0.5) / STRETCHES * end, by_method


def _line(label: str, x: Points, y: Points, style: int, *, pale: bool) -> charts.Line:
    """A line through the stretches in which episodes ended, without gaps between them."""
    finite = np.isfinite(y)
    return charts.Line(label, x[finite], y[finite], style, pale)


def averages(curve: Curve, end: float) -> Points:
    """Mean return in each equal stretch of the steps up to `end`, shape (STRETCHES,).

    NaN for a stretch in which no episode ended.
    """
    stretch = np.minimum((curve.steps / end * STRETCHES).astype(np.int64), STRETCHES - 1)
    count = np.bincount(stretch, minlength=STRETCHES)
    total = np.bincount(stretch, curve.returns, STRETCHES)
    means: Points = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return means
