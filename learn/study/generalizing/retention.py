"""Share of its score that a run keeps in a changed game, if it plays better than random.

    kept = (return in the variant - random policy in the variant) / (return - random policy)

1 means as far above chance as before, 0 no better than chance. The seeds are the same with and
without the change, so games are paired, and the bootstrap draws pairs together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from wsa.learn.evaluation.scores import RESAMPLES, Interval, percentile_interval
from wsa.learn.study.games import PlayedGames, difference

Pair = tuple[PlayedGames, PlayedGames]  # Games of a run and of a random policy.
FEW = 5  # Below this number of games, an interval says nothing.


class Retention:
    """Compares a run's games in variants with its games without a change.

    Args:
        plain: Games without a change.

    Attributes:
        advantage: Return minus the random policy's without a change, with its 95% interval.
    """

    def __init__(self, plain: Pair) -> None:
        self._plain = plain
        self.advantage = difference(*plain)
        games = len(plain[0].returns)
        drawn = np.random.default_rng(0).integers(games, size=(2, RESAMPLES, games))
        # First all games once, then the resamples.
        self._picks = np.concatenate([np.tile(np.arange(games), (2, 1, 1)), drawn], axis=1)

    @property
    def beats_random(self) -> bool:
        """Whether the run is better than random, so that there is a score to keep.

        False after one game, which has no interval.
        """
        return self.advantage.above_zero

    def change(self, played: PlayedGames) -> Interval:
        """Return in a variant minus the return without a change, with pairs of games."""
        changes = self._means(played, 0) - self._means(self._plain[0], 0)
        return _interval(changes) if len(played.returns) > 1 else Interval(float(changes[0]))

    def share(self, variants: Sequence[Pair]) -> Interval | None:
        """Share of the advantage that is kept, averaged over variants.

        None if the run has no advantage.
        """
        if not self.beats_random:
            return None
        had = self._above(self._plain)
        had = np.where(had > 0, had, np.nan)  # Ignore resamples without an advantage.
        return _interval(np.mean([self._above(pair) / had for pair in variants], axis=0))

    def _above(self, pair: Pair) -> NDArray[np.float64]:
        return self._means(pair[0], 0) - self._means(pair[1], 1)

    def _means(self, played: PlayedGames, who: int) -> NDArray[np.float64]:
        means: NDArray[np.float64] = np.array(played.returns)[self._picks[who]].mean(axis=1)
        return means


def _interval(values: NDArray[np.float64]) -> Interval:
    """First value, with the central 95% interval of the other values."""
    return percentile_interval(values[0], values[1:])
