"""Say so where a run's fusion is dead from the start, before hours go into it.

A ReLU on scores, which both of the authors' presets have, lets an initialization be such that every
score is cut off in every state. Nothing that weighs the models then gets a gradient, and never will.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

DEAD_ROWS = "wsa/dead_rows"
"""Share of a batch's states in which all scores are cut off at 0 (`Fusion.dead_rows`)."""

_log = logging.getLogger(__name__)


class DeadFusion:
    """Looks at the first line of metrics that tells, of this process's part of a run."""

    def __init__(self) -> None:
        self._seen = False

    def see(self, line: Mapping[str, float]) -> None:
        """Warn if the line is the first one, and no state's scores get a gradient."""
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
