"""Draw line charts as PNG files, such as pretraining losses and bench returns.

A file stands alone: it has a title, colors of its own, and a format that every viewer shows. Figures
of a page are SVG in the colors of the page instead (`wsa.learn.report.figures`). The two share little
more than a loop over lines, and `wsa.learn.pretrain` may not import from `wsa.learn.report`.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

# Okabe and Ito's palette for color-blind readers, without its yellow.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES = ("-", "--", ":", "-.")  # For more lines than there are colors.


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        label: Entry in the legend; "" for none.
        x: (n,) ascending.
        y: (n,); NaN leaves a gap.
        style: Lines of one style share a color.
        pale: Whether to draw it thin and pale, behind the others.
    """

    label: str
    x: ArrayLike
    y: ArrayLike
    style: int
    pale: bool = False


def draw(
    title: str, x_label: str, y_label: str, lines: Sequence[Line], *, logarithmic: bool = False
) -> bytes:
    """Draw a chart, and return the bytes of a PNG file. There may be no lines.

    On a logarithmic vertical axis, all values must be above 0.
    """
    # matplotlib is slow to import. A separate Figure uses no global state and needs no display.
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    named = sum(bool(line.label) for line in lines)
    columns = 2 if named > 2 else max(named, 1)
    figure = Figure(figsize=(9, 4.8 + 0.2 * -(-named // columns)), dpi=120, layout="constrained")
    axes: Any = figure.add_subplot()
    axes.set_title(title, loc="left")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.01)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    if logarithmic:
        axes.set_yscale("log")
    for line in lines:
        axes.plot(
            line.x,
            line.y,
            label=line.label or None,
            color=COLORS[line.style % len(COLORS)],
            linestyle=_DASHES[line.style // len(COLORS) % len(_DASHES)],
            linewidth=0.8 if line.pale else 2,
            alpha=0.35 if line.pale else 1,
            marker="o" if np.size(line.x) == 1 else "",  # No line has one point.
            zorder=2 if line.pale else 3,
        )
    if named:
        figure.legend(loc="outside lower left", ncols=columns, frameon=False, fontsize="small")
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()
