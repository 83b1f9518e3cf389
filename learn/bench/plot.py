"""Learning curves as a picture: what a method's runs returned, over the steps that they played.

A thin line for each run, a thick one for their mean; episodes are averaged in even stretches of
steps, since single ones jump.
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
    """What one run returned.

    Attributes:
        method: Curves of one method share a color.
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
    return charts.draw(title, "steps", "raw return", lines(curves))


def lines(curves: Sequence[Curve]) -> list[charts.Line]:
    """A pale line for each curve, and a strong one for each method's mean."""
    end = max(float(curve.steps.max()) for curve in curves)
    middles = (np.arange(STRETCHES) + 0.5) / STRETCHES * end
    found = []
    for style, method in enumerate(dict.fromkeys(curve.method for curve in curves)):
        table = np.array([averages(curve, end) for curve in curves if curve.method == method])
        for own in table if len(table) > 1 else ():
            found.append(_line("", middles, own, style, pale=True))
        # Where every run has an episode: else a mean would be of other runs here than there.
        label = f"{method} ({len(table)})"
        found.append(_line(label, middles, table.mean(axis=0), style, pale=False))
    return found


def _line(label: str, x: Points, y: Points, style: int, *, pale: bool) -> charts.Line:
    """Through the stretches in which episodes ended, without gaps between them."""
    known = np.isfinite(y)
    return charts.Line(label, x[known], y[known], style, pale)


def averages(curve: Curve, end: float) -> Points:
    """Mean return in each even stretch of the steps up to `end`, (STRETCHES,); NaN where none ended."""
    which = np.minimum((curve.steps / end * STRETCHES).astype(np.int64), STRETCHES - 1)
    count = np.bincount(which, minlength=STRETCHES)
    total = np.bincount(which, curve.returns, STRETCHES)
    found: Points = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return found
