"""Where embeddings by several models stand in the rows that hold them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence


def side_by_side(shapes: Sequence[Sequence[int]]) -> list[slice]:
    """Where embeddings of these shapes stand, one after the other, in a row."""
    edges = itertools.accumulate(map(math.prod, shapes), initial=0)
    return [slice(begin, end) for begin, end in itertools.pairwise(edges)]


def in_files(windows: Sequence[int], shapes: Sequence[Sequence[int]]) -> list[slice]:
    """Where each model's embedding stands among those of its file: frames have one, windows another."""
    columns, edges = [], {False: 0, True: 0}
    for window, shape in zip(windows, shapes, strict=True):
        begin = edges[window > 1]
        edges[window > 1] += math.prod(shape)
        columns.append(slice(begin, edges[window > 1]))
    return columns
