"""Figures of reports, drawn by matplotlib as SVG that takes its colors from the page.

All are as wide as a phone's screen and scale up where there is room, so that their text is readable
on both. A page places several side by side. `wsa.learn.training.charts` draws files that stand alone.
"""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wsa.store.common.terminal import numbers

WIDTH = 5.0  # Inches, of 72 units each.
# Placeholder colors that matplotlib writes; the page's colors replace them.
INK, FAINT, RULE = "#010203", "#040506", "#070809"
SERIES = tuple(f"#0a0b{i:02x}" for i in range(7))
_THEME = {INK: "var(--ink)", FAINT: "var(--faint)", RULE: "var(--rule)"} | {
    color: f"var(--s{i})" for i, color in enumerate(SERIES)
}
_DASHES = ("-", "--", ":", "-.")
_LOOK: dict[Any, Any] = {
    "svg.fonttype": "none",  # Keep text as text: small, selectable, in the page's font.
    "svg.hashsalt": "wsa",  # The same figure gives the same bytes.
    "text.parse_math": False,  # Names may contain any character.
    "font.size": 10,
    "font.family": "sans-serif",
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


def draw(height: float, paint: Callable[[Any], None]) -> str:
    """Draw on one pair of axes.

    Returns:
        An SVG element.
    """
    # matplotlib is slow to import. A separate figure needs no global state and no screen.
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, ScalarFormatter

    file = io.StringIO()
    with mpl.rc_context(_LOOK):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        axes = figure.add_subplot()
        paint(axes)
        large = max(map(abs, axes.get_xlim())) >= 1000
        if large and isinstance(axes.xaxis.get_major_formatter(), ScalarFormatter):
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 200k, not 200000.
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return _inline(file.getvalue())


def _inline(svg: str) -> str:
    """Reduce an SVG file to an element for the page, in the page's colors and font."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(
        r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r' height="[^"]*pt"', "", svg, count=1)
    )
    svg = re.sub(r' xmlns:xlink="[^"]*"| version="1.1"', "", svg)
    svg = svg.replace("xlink:href", "href")
    # Every figure numbers its parts in the same way, but an id must be unique on a page.
    svg = re.sub(r'<g id="[\w.]+_\d+">', "<g>", svg)
    # The page's style sheet sets these for all figures.
    svg = re.sub(
        r"<defs>\s*<style.*?</style>\s*</defs>|font-family: [^;\"]*; ", "", svg, flags=re.DOTALL
    )
    for color, variable in _THEME.items():
        svg = svg.replace(color, variable)
    return re.sub(r"\n\s*", "\n", svg).strip()


@dataclasses.dataclass(frozen=True)
class Bar:
    """A value with its interval, if it has one; `style` is the index of its color."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    style: int = 0


def intervals(bars: Sequence[Bar], x_label: str, *, line: float | None = None) -> str:
    """Draw each value as a point with its interval, one below the other.

    `line` is a value to compare with, drawn as a dashed line.
    """

    def paint(axes: Any) -> None:
        for at, bar in enumerate(bars):
            color = SERIES[bar.style % len(SERIES)]
            if bar.low is not None and bar.high is not None:
                axes.plot([bar.low, bar.high], [at, at], color=color, linewidth=5, alpha=0.4)
            axes.plot([bar.value], [at], "o", color=color, markersize=6)
        if line is not None:
            axes.axvline(line, color=FAINT, linewidth=1, linestyle="--")
        axes.set_yticks(range(len(bars)), [bar.label for bar in bars])
        axes.set_ylim(len(bars) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(x_label)

    return draw(0.9 + 0.28 * len(bars), paint)


@dataclasses.dataclass(frozen=True)
class Line:
    """A curve, with a band if it has one. All arrays have shape (n,)."""

    label: str
    x: ArrayLike
    y: ArrayLike
    low: ArrayLike | None = None
    high: ArrayLike | None = None


def curves(
    lines: Sequence[Line],
    x_label: str,
    y_label: str,
    *,
    at: float | None = None,
) -> str:
    """Draw curves in one chart; `at` marks a position on the horizontal axis."""

    def paint(axes: Any) -> None:
        for i, line in enumerate(lines):
            color = SERIES[i % len(SERIES)]
            if line.low is not None and line.high is not None:
                axes.fill_between(line.x, line.low, line.high, color=color, alpha=0.2, linewidth=0)
            axes.plot(
                line.x, line.y, label=line.label, color=color, linewidth=1.8,
                linestyle=_DASHES[i // len(SERIES) % len(_DASHES)],
                marker="o" if len(np.atleast_1d(line.x)) == 1 else "",  # No line has one point.
            )  # fmt: skip
        if at is not None:
            axes.axvline(at, color=FAINT, linewidth=1, linestyle="--")
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        _legend(axes, len(lines))

    return draw(3.2 + 0.2 * -(-len(lines) // 2), paint)


def stacked(labels: Sequence[str], x: ArrayLike, shares: NDArray[Any], x_label: str) -> str:
    """Draw shares of a whole over time, stacked: (m, n) for m parts at n ascending positions."""
    single, at = np.size(x) == 1, x
    if single:  # One position has no width.
        at, shares = np.add(x, (-0.5, 0.5)), np.repeat(shares, 2, axis=1)

    def paint(axes: Any) -> None:
        colors = [SERIES[i % len(SERIES)] for i in range(len(labels))]
        axes.stackplot(at, shares, labels=labels, colors=colors, alpha=0.75, linewidth=0)
        axes.set_xlabel(x_label)
        axes.set_ylabel("weight")
        axes.margins(0)
        if single:
            axes.set_xticks(x)
        _legend(axes, len(labels))

    return draw(2.6 + 0.2 * -(-len(labels) // 2), paint)


def points(x: Sequence[float], bars: Sequence[Bar], x_label: str, y_label: str) -> str:
    """Draw each value as a point with its interval, labeled with its name."""

    def paint(axes: Any) -> None:
        from matplotlib.ticker import EngFormatter, NullFormatter

        beside = _label_heights(np.log10(x), np.array([bar.value for bar in bars]))
        for place, bar, high in zip(x, bars, beside.tolist(), strict=True):
            color = SERIES[bar.style % len(SERIES)]
            if bar.low is not None and bar.high is not None:
                axes.plot([place, place], [bar.low, bar.high], color=color, linewidth=3, alpha=0.3)
            axes.plot([place], [bar.value], "o", color=color, markersize=5)
            axes.annotate(
                bar.label, (place, high), (6, 0), textcoords="offset points", fontsize=8,
                va="center",
            )  # fmt: skip
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.margins(x=0.15)

    return draw(3.6, paint)


def _label_heights(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Heights, shape (n,), for names beside points, so that they do not overlap."""
    line, reach = 0.06 * max(np.ptp(y), 1e-9), 0.25 * max(np.ptp(x), 1e-9)
    placed: list[int] = []
    heights = y.copy()
    for i in np.argsort(y, kind="stable").tolist():
        for j in placed:  # From the lowest up, so that one pass suffices.
            if abs(x[i] - x[j]) < reach and heights[i] < heights[j] + line:
                heights[i] = heights[j] + line
        placed.append(i)
    return heights


def lattice(values: Mapping[tuple[bool, ...], float], labels: Sequence[str], what: str) -> str:
    """Draw the value of each subset of a few items, from the empty set up to the whole.

    Args:
        values: Value of each of the 2^m subsets; a key tells whether each item is in it.
        labels: A letter for each of the m items.
        what: Name of the value.
    """
    low, high = min(values.values()), max(values.values())
    written = dict(zip(values, numbers(*values.values()), strict=True))
    levels = [[k for k in values if sum(k) == n] for n in range(len(labels) + 1)]
    place = {
        key: ((i + 0.5) / len(level), n)
        for n, level in enumerate(levels)
        for i, key in enumerate(level)
    }

    def paint(axes: Any) -> None:
        for key, (x, y) in place.items():
            for other in ((*key[:i], True, *key[i + 1 :]) for i, on in enumerate(key) if not on):
                axes.plot([x, place[other][0]], [y, place[other][1]], color=RULE, linewidth=0.8)
        for key, (x, y) in place.items():
            share = (values[key] - low) / (high - low) if high > low else 1.0
            size = 60 + 340 * share
            axes.scatter([x], [y], s=size, color=SERIES[0], alpha=0.9, linewidths=0, zorder=3)
            name = "".join(label for label, on in zip(labels, key, strict=True) if on) or "none"
            axes.annotate(
                f"{name} {written[key]}", (x, y), (0, 12), textcoords="offset points",
                ha="center", fontsize=8,
            )  # fmt: skip
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.4, len(labels) + 0.6)
        axes.set_yticks(range(len(labels) + 1))
        axes.set_ylabel("models")
        axes.set_xticks([])
        axes.grid(visible=False)
        axes.spines["bottom"].set_visible(False)
        axes.set_xlabel(what)

    return draw(0.9 + 0.85 * (len(labels) + 1), paint)


def heat_map(
    values: NDArray[np.float64],
    rows: Sequence[str],
    columns: Sequence[str],
    what: str,
    *,
    y_label: str = "",
    strongest: float | None = None,
) -> str:
    """Draw a table of values; those further from 0 have a stronger color, negative ones another.

    Args:
        values: Shape (rows, columns); NaN stays blank.
        rows: Names, from the top.
        columns: Names.
        what: Name of the value or of the columns.
        y_label: Name of the rows.
        strongest: Value with the strongest color; by default the largest absolute value.
    """
    strongest_value = strongest or float(np.nanmax(np.abs(values), initial=0.0)) or 1.0
    written = np.full(values.shape, "-", object)
    written[~np.isnan(values)] = numbers(*values[~np.isnan(values)].tolist())

    def paint(axes: Any) -> None:
        for (i, j), value in np.ndenumerate(values):
            if not np.isnan(value):
                color, share = SERIES[int(value < 0)], min(1.0, abs(value) / strongest_value)
                axes.bar(j, 1, 1, i - 0.5, color=color, alpha=0.05 + 0.6 * share, linewidth=0)
            axes.annotate(written[i, j], (j, i), ha="center", va="center", fontsize=8)
        axes.set_yticks(range(len(rows)), rows)
        axes.set_xticks(range(len(columns)), columns)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.grid(visible=False)
        axes.set_xlabel(what)
        axes.set_ylabel(y_label)

    return draw(0.9 + 0.26 * len(rows), paint)


def _legend(axes: Any, entries: int) -> None:
    axes.figure.legend(
        loc="outside lower left", ncols=2 if entries > 1 else 1, frameon=False, fontsize=9
    )
