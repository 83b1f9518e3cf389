"""Probability of improvement and performance profiles, held to values computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from wsa.learn.evaluation.comparisons import (
    improvement,
    improvement_interval,
    profile,
    profile_band,
)

# Two games. In the first 5 of X's 6 pairs with Y are won; in the second 2 are won, 2 are drawn.
X = np.array([[3.0, 1.0], [5.0, 1.0], [1.0, 0.0]])
Y = np.array([[2.0, 1.0], [0.0, 0.0]])
BY_HAND = (5 / 6 + (2 + 3 * 0.5) / 6) / 2


def test_the_probability_of_improvement() -> None:
    # First game, 3 > 2, 3 > 0, 5 > 2, 5 > 0, 1 > 0; second, 1 = 1, 1 > 0 twice, 0 = 0.
    assert improvement(X, Y) == pytest.approx(BY_HAND)
    assert improvement(Y, X) == pytest.approx(1 - BY_HAND)
    assert improvement(X, X) == 0.5
    assert improvement(X + 10, Y) == 1 and improvement(X - 10, Y) == 0
    np.testing.assert_allclose(improvement(np.stack([X, X + 10]), np.stack([Y, Y])), [BY_HAND, 1])


def test_its_interval() -> None:
    found = improvement_interval(X, Y)
    assert found.value == pytest.approx(BY_HAND)
    assert 0 <= found.low < found.value < found.high <= 1
    assert improvement_interval(X + 10, Y) == (1, 1, 1)
    # Of one run each nothing is known of the spread.
    assert improvement_interval(X[:1], Y[:1]) == (0.75, 0.75, 0.75)
    # By the bootstrap, of one game of two runs each: drawn are (0, 2) or twice one of them, against 1.
    few = improvement_interval(np.array([[0.0], [2.0]]), np.array([[1.0]]), confidence=0.4)
    assert few == (0.5, 0.5, 0.5)
    assert improvement_interval(np.array([[0.0], [2.0]]), np.array([[1.0]])) == (0.5, 0, 1)


def test_the_performance_profile() -> None:
    thresholds = np.array([-1.0, 0.0, 1.0, 2.9, 5.0])
    np.testing.assert_allclose(profile(X, thresholds), [1, 5 / 6, 2 / 6, 2 / 6, 0])
    shares, low, high = profile_band(X, thresholds)
    np.testing.assert_allclose(shares, profile(X, thresholds))
    assert (low <= shares).all() and (shares <= high).all() and (high - low)[1:4].min() > 0
    assert (low[0], high[-1]) == (1, 0)
