"""Warn if a run's fusion is dead from the start, before hours of training are wasted.

With a ReLU on scores, which both of the authors' presets have, an initialization can set every
score to 0 in every state. The scorer then gets no gradient, and never will.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

DEAD_ROWS = "wsa/dead_rows"
"""Metric: fraction of a batch's states in which a ReLU zeroes all scores (`Fusion.dead_rows`)."""

_log = logging.getLogger(__name__)


class DeadFusion:
    """Checks the first line of metrics in this process that has `DEAD_ROWS`."""

    def __init__(self) -> None:
        self._seen = False

    def see(self, line: Mapping[str, float]) -> None:
        """Warn if this is the first such line, and no state's scores get a gradient."""
        if self._seen or DEAD_ROWS not in line:
            return
        self._seen = True
        if line[DEAD_ROWS] == 1:
            _log.warning(
                "the fusion is dead: in every state of the last batch a ReLU cuts off all scores, so "
                "no gradient reaches what weighs the models, and none will. That depends on the "
                "initialization: start again with another --seed, or with --score-activation none "
                "and --normaliser softmax."
            )
