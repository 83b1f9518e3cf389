"""Accuracy of predicted positions: R2 and hits over all splits, with intervals over episodes.

Every tested step adds to a few sums of its episode. All results follow from these sums: scores of
a variable, means over variables, and bootstrap intervals, which resample episodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsa.learn.evaluation.scores import Interval
from wsa.learn.probe import linear
from wsa.learn.probe.linear import Axes
from wsa.learn.probe.samples import SampledSteps
from wsa.learn.probe.splits import Split

HIT_WITHIN = 4  # Units of memory; on the screen about as many pixels.
# Fewest steps with the object on the screen to fit a probe, and to choose its penalty.
MIN_FIT, MIN_CHECK = 10, 2
DRAWS = 1000
_SUMS = 5  # Steps, values, their squares, squared errors, hits.

Sums = NDArray[np.float64]  # (groups, V, _SUMS)


class Scores(NamedTuple):
    """Scores of some variables, each of shape (..., V); NaN if untested or constant.

    Attributes:
        r2: Coefficient of determination.
        hit: Share of steps predicted within `HIT_WITHIN`.
    """

    r2: NDArray[np.float64]
    hit: NDArray[np.float64]


def fit_and_test(
    axes: Axes | None, sampled: SampledSteps, names: Sequence[str], splits: Sequence[Split]
) -> Sums:
    """Fit probes of V variables in each split, and test them; without axes, predict the mean.

    A variable is fitted and tested only at steps with its object on the screen.

    Returns:
        Sums of each group of `sampled`.
    """
    total = np.zeros((len(sampled.groups), len(names), _SUMS))
    # Variables that are on the screen at the same steps share a fit.
    together: dict[bytes, list[int]] = {}
    for i, name in enumerate(names):
        together.setdefault(sampled.shown[name].tobytes(), []).append(i)
    for columns in together.values():
        targets = np.stack([sampled.target[names[i]] for i in columns], axis=1).astype(float)
        shown = sampled.shown[names[columns[0]]]
        for split in splits:
            part = split.within(shown)
            if len(part.fit) < MIN_FIT or len(part.check) < MIN_CHECK or not len(part.test):
                continue
            if axes is None:
                predicted = np.tile(targets[part.train].mean(axis=0), (len(part.test), 1))
            else:
                predicted = linear.ridge(axes, targets, part)
            truth = targets[part.test]
            errors = predicted - truth
            statistics = [
                np.ones_like(truth),
                truth,
                truth**2,
                errors**2,
                abs(errors) <= HIT_WITHIN,
            ]
            groups = sampled.groups.of[part.test]
            for i, values in enumerate(statistics):
                for j, column in enumerate(columns):
                    total[:, column, i] += np.bincount(groups, values[:, j], len(total))
    return total


def score(sums: NDArray[np.float64]) -> Scores:
    """Compute scores from sums (..., V, 5) over the tested steps."""
    count, value, square, error, hits = np.moveaxis(sums, -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        varied = square - value**2 / count
        # Sums of whole numbers are exact, their mean is not: a smaller variance is rounding error.
        changes = varied > 1e-9 * np.maximum(square, 1)
        return Scores(
            np.where(changes, 1 - error / varied, np.nan),
            np.where(count > 0, hits / count, np.nan),
        )


def means(scores: Scores) -> NDArray[np.float64]:
    """Means (..., 2) over variables of R2, clipped at 0, and of hits; NaN without variables."""
    stacked = np.stack([np.maximum(scores.r2, 0), scores.hit], axis=-1)
    valid = ~np.isnan(stacked)
    with np.errstate(invalid="ignore"):
        result: NDArray[np.float64] = np.where(valid, stacked, 0).sum(axis=-2) / valid.sum(axis=-2)
    return result


def mean(
    sums: Sums, columns: Sequence[int], better: NDArray[np.bool_], seed: int
) -> tuple[Interval, Interval] | None:
    """Means of R2 and of hits over some variables, with 95% intervals over episodes; None if nothing was tested.

    Args:
        sums: From `fit_and_test`.
        columns: Indices of the variables.
        better: Whether each group is of better play, shape (groups,). The bootstrap draws from each
            kind of play separately.
        seed: Seed for the draws.
    """
    selected = sums[:, list(columns)]
    value = means(score(selected.sum(axis=0)))
    if np.isnan(value).any():
        return None
    generator = np.random.default_rng(seed)
    weights = np.zeros((DRAWS, len(selected)))
    for kind in (False, True):
        rows = np.flatnonzero((better == kind) & selected[..., 0].any(axis=1))
        if len(rows):
            drawn = generator.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), DRAWS)
            weights[:, rows] = drawn
    drawn_means = means(score(np.einsum("dg,gvs->dvs", weights, selected)))
    low, high = np.nanpercentile(drawn_means, [2.5, 97.5], axis=0)
    r2, hit = zip(value.tolist(), low.tolist(), high.tolist(), strict=True)
    return Interval(*r2), Interval(*hit)
