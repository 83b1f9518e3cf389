"""Human-normalized scores, robust aggregates, comparisons of methods, and intervals.

Raw returns cannot be compared across games, one outlier game can dominate a mean over games, and
three seeds are few. So use human-normalized scores (Mnih et al., 2015), and what Agarwal et al. (2021,
"Deep Reinforcement Learning at the Edge of the Statistical Precipice", arXiv 2108.13264) recommend:
the interquartile mean over runs and games, intervals by the stratified bootstrap, the probability of
improvement (section 4.3), and the performance profile (4.2). The formulas are those of their library
rliable; a test compares them with its results.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsa.store.common.terminal import number, numbers

Scores = NDArray[np.float64]

RESAMPLES = 2000  # rliable's default of 50,000 moves an end of an interval by about 1%.
TAILS = (0.025, 0.975)  # Quantiles at the ends of a 95% interval.

# Mean raw returns of a random policy and of a human tester (Mnih et al., 2015; Wang et al., 2016).
RANDOM_HUMAN: dict[str, tuple[float, float]] = {
    "Alien": (227.8, 7127.7),
    "Amidar": (5.8, 1719.5),
    "Assault": (222.4, 742.0),
    "Asterix": (210.0, 8503.3),
    "Asteroids": (719.1, 47388.7),
    "Atlantis": (12850.0, 29028.1),
    "BankHeist": (14.2, 753.1),
    "BattleZone": (2360.0, 37187.5),
    "BeamRider": (363.9, 16926.5),
    "Berzerk": (123.7, 2630.4),
    "Bowling": (23.1, 160.7),
    "Boxing": (0.1, 12.1),
    "Breakout": (1.7, 30.5),
    "Centipede": (2090.9, 12017.0),
    "ChopperCommand": (811.0, 7387.8),
    "CrazyClimber": (10780.5, 35829.4),
    "Defender": (2874.5, 18688.9),
    "DemonAttack": (152.1, 1971.0),
    "DoubleDunk": (-18.6, -16.4),
    "Enduro": (0.0, 860.5),
    "FishingDerby": (-91.7, -38.7),
    "Freeway": (0.0, 29.6),
    "Frostbite": (65.2, 4334.7),
    "Gopher": (257.6, 2412.5),
    "Gravitar": (173.0, 3351.4),
    "Hero": (1027.0, 30826.4),
    "IceHockey": (-11.2, 0.9),
    "Jamesbond": (29.0, 302.8),
    "Kangaroo": (52.0, 3035.0),
    "Krull": (1598.0, 2665.5),
    "KungFuMaster": (258.5, 22736.3),
    "MontezumaRevenge": (0.0, 4753.3),
    "MsPacman": (307.3, 6951.6),
    "NameThisGame": (2292.3, 8049.0),
    "Phoenix": (761.4, 7242.6),
    "Pitfall": (-229.4, 6463.7),
    "Pong": (-20.7, 14.6),
    "PrivateEye": (24.9, 69571.3),
    "Qbert": (163.9, 13455.0),
    "Riverraid": (1338.5, 17118.0),
    "RoadRunner": (11.5, 7845.0),
    "Robotank": (2.2, 11.9),
    "Seaquest": (68.4, 42054.7),
    "Skiing": (-17098.1, -4336.9),
    "Solaris": (1236.3, 12326.7),
    "SpaceInvaders": (148.0, 1668.7),
    "StarGunner": (664.0, 10250.0),
    "Surround": (-10.0, 6.5),
    "Tennis": (-23.8, -8.3),
    "TimePilot": (3568.0, 5229.2),
    "Tutankham": (11.4, 167.6),
    "UpNDown": (533.4, 11693.2),
    "Venture": (0.0, 1187.5),
    "VideoPinball": (16256.9, 17667.9),
    "WizardOfWor": (563.5, 4756.5),
    "YarsRevenge": (3092.9, 54576.9),
    "Zaxxon": (32.5, 9173.3),
}


class Interval(NamedTuple):
    """An estimate and the ends of its confidence interval, None for a single run or game."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def above_zero(self) -> bool:
        """Whether the whole interval is above 0; False if there is none."""
        return self.low is not None and self.low > 0

    def __str__(self) -> str:
        """Format for tables, such as 0.27 [0.03, 0.56]; one number if there is no interval."""
        if self.low is None or self.high is None:
            return number(self.value)
        value, low, high = numbers(self.value, self.low, self.high)
        return f"{value} [{low}, {high}]"


def human_normalized(game: str, raw: float) -> float | None:
    """Return (raw - random) / (human - random): 0 for random play, 1 for the human tester.

    Returns:
        The score, or None for a game without a published human score.
    """
    if game not in RANDOM_HUMAN:
        return None
    random, human = RANDOM_HUMAN[game]
    return (raw - random) / (human - random)


def interquartile_mean(scores: Scores) -> Scores:
    """Return the mean of the middle half of the scores of all runs and games.

    A quarter of the scores, rounded down, is dropped at each end.

    Args:
        scores: (..., runs, games).

    Returns:
        Means, (...).
    """
    ordered = np.sort(_together(scores), axis=-1)
    count = ordered.shape[-1]
    return np.asarray(ordered[..., count // 4 : count - count // 4].mean(axis=-1))


def mean_score(scores: Scores) -> Scores:
    """Return the mean over all runs and games: (..., runs, games) to (...)."""
    return np.asarray(_together(scores).mean(axis=-1))


def _together(scores: Scores) -> Scores:
    return scores.reshape(*scores.shape[:-2], -1)


def resample(generator: np.random.Generator, scores: Scores, resamples: int = RESAMPLES) -> Scores:
    """Resample runs within each game: (runs, games) to (resamples, runs, games)."""
    runs, games = scores.shape
    return scores[generator.integers(runs, size=(resamples, runs, games)), np.arange(games)]


def percentile_interval(value: float | Scores, resampled: Scores) -> Interval:
    """Return an estimate with the central 95% of its resampled values, of which NaN are ignored."""
    low, high = np.nanquantile(resampled, TAILS)
    return Interval(float(value), float(low), float(high))


def stratified_interval(
    scores: Scores,
    statistic: Callable[[Scores], Scores] = interquartile_mean,
    *,
    resamples: int = RESAMPLES,
) -> Interval:
    """Return a statistic with its 95% interval, resampling runs within each game.

    A single run has no interval.

    Args:
        scores: (runs, games), with the same number of runs for every game.
        statistic: Maps resampled scores (resamples, runs, games) to values (resamples,).
        resamples: Number of resamples.
    """
    if len(scores) == 1:
        return Interval(float(statistic(scores)))
    resampled = statistic(resample(np.random.default_rng(0), scores, resamples))
    return percentile_interval(statistic(scores), resampled)


def improvement(x: Scores, y: Scores) -> Scores:
    """Estimate the probability that a run of X scores more than one of Y on a random game.

    P(X > Y) = 1/M sum_m 1/(N K) sum_i sum_j S(x_im, y_jm), where S is 1 if x is larger, 1/2 if they
    are equal, and 0 otherwise: the Mann-Whitney statistic of each game.

    Args:
        x: Scores of X, (..., N runs, M games).
        y: Scores of Y on the same games, (..., K runs, M games).

    Returns:
        Probabilities, (...); 1/2 if neither is better.
    """
    pairs = x[..., :, None, :], y[..., None, :, :]
    better = np.greater(*pairs) + 0.5 * np.equal(*pairs)
    return np.asarray(better.mean(axis=(-3, -2)).mean(axis=-1))


def improvement_interval(x: Scores, y: Scores) -> Interval:
    """Return `improvement` with its 95% interval, resampling runs within each game.

    Two single runs have no interval.
    """
    if len(x) == len(y) == 1:
        return Interval(float(improvement(x, y)))
    generator = np.random.default_rng(0)
    resampled = improvement(resample(generator, x), resample(generator, y))
    return percentile_interval(improvement(x, y), resampled)


def profile(scores: Scores, thresholds: NDArray[np.float64]) -> Scores:
    """Return the fraction of runs and games that score more than each threshold.

    F(t) = 1/M sum_m 1/N sum_n [x_nm > t].

    Args:
        scores: (..., runs, games).
        thresholds: (T,).

    Returns:
        Fractions, (..., T).
    """
    above = scores[..., None] > thresholds
    return np.asarray(above.mean(axis=(-3, -2)))


def profile_band(scores: Scores, thresholds: NDArray[np.float64]) -> Scores:
    """Return `profile` and the low and high ends of its pointwise 95% band, (3, T)."""
    resampled = profile(resample(np.random.default_rng(0), scores), thresholds)
    return np.stack([profile(scores, thresholds), *np.quantile(resampled, TAILS, axis=0)])
