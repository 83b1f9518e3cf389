"""Compare methods: probability of improvement and performance profiles, with intervals.

Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice" (2021, arXiv
2108.13264): the probability of improvement (section 4.3) and the performance profile (4.2). The
formulas are those of the authors' library, rliable.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wsa.learn.evaluation.scores import Interval, Scores

RESAMPLES = 2000


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


def improvement_interval(
    x: Scores, y: Scores, *, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Return `improvement` with its percentile interval, resampling runs within each game."""
    generator = np.random.default_rng(seed)
    resampled = improvement(_draw(generator, x, resamples), _draw(generator, y, resamples))
    tail = (1 - confidence) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return Interval(float(improvement(x, y)), float(low), float(high))


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


def profile_band(
    scores: Scores,
    thresholds: NDArray[np.float64],
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Scores:
    """Return `profile` and the low and high ends of its pointwise percentile band, (3, T)."""
    resampled = profile(_draw(np.random.default_rng(seed), scores, resamples), thresholds)
    tail = (1 - confidence) / 2
    band = np.quantile(resampled, [tail, 1 - tail], axis=0)
    return np.stack([profile(scores, thresholds), *band])


def _draw(generator: np.random.Generator, scores: Scores, resamples: int) -> Scores:
    """Resample runs within each game: (resamples, runs, games)."""
    runs, games = scores.shape
    return scores[generator.integers(runs, size=(resamples, runs, games)), np.arange(games)]
