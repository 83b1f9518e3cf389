"""Scores and statistics over runs and games, compared with rliable's results and values by hand."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsa.learn.envs import atari
from wsa.learn.evaluation.scores import (
    RANDOM_HUMAN,
    human_normalized,
    improvement,
    improvement_interval,
    interquartile_mean,
    mean_score,
    profile,
    profile_band,
    stratified_interval,
)

# Five runs of four games, and the results of rliable 1.2.0: aggregate_iqm, aggregate_mean, and
# get_interval_estimates(reps=50000). Its pins are too old to install it here.
TABLE = np.array(
    [
        [0.501231, 0.848167, 0.260227, -0.089587],
        [0.134657, -0.129035, 0.561989, 3.319866],
        [0.111276, 0.037689, 1.132058, 0.928874],
        [0.611171, -0.105631, 0.471172, 1.504317],
        [-0.239256, 0.132791, -0.350614, -0.224602],
    ]
)
IQM, IQM_LOW, IQM_HIGH = 0.2732616, 0.03370932, 0.5647248
MEAN, MEAN_LOW, MEAN_HIGH = 0.470838, 0.17254819, 0.80533639


def test_means_and_intervals_are_those_of_rliable():
    assert interquartile_mean(TABLE) == pytest.approx(IQM, abs=1e-6)
    interval = stratified_interval(TABLE, resamples=20_000)
    assert interval == pytest.approx((IQM, IQM_LOW, IQM_HIGH), abs=0.015)
    interval = stratified_interval(TABLE, mean_score, resamples=20_000)
    assert interval == pytest.approx((MEAN, MEAN_LOW, MEAN_HIGH), abs=0.015)


def test_runs_are_resampled_within_their_game():
    # If runs were resampled across the games, the interval would contain both.
    table = np.array([[0.0, 100.0], [1.0, 101.0], [2.0, 102.0]])
    interval: Any = stratified_interval(table, mean_score)
    assert 50 <= interval.low <= interval.value == 51 <= interval.high <= 52


def test_one_run_has_no_interval_and_equal_runs_have_one_without_width():
    alone = stratified_interval(np.array([[3.0]]))
    assert alone == (3, None, None) and str(alone) == "3" and not alone.above_zero
    equal = stratified_interval(np.array([[3.0], [3.0]]))
    assert equal == (3, 3, 3) and str(equal) == "3 [3, 3]" and equal.above_zero


@given(st.lists(st.floats(-1e3, 1e3), min_size=4, max_size=40), st.randoms())
def test_outliers_and_order_do_not_change_the_interquartile_mean(values, random):
    table = np.array(values)[:, None]
    before = interquartile_mean(table)
    table[table.argmax()] = 1e9
    assert interquartile_mean(table[::-1]) == pytest.approx(before, abs=1e-6)


def test_human_normalized_scores_of_ten_games():
    assert human_normalized("Pong", -20.7) == 0
    assert human_normalized("Seaquest", 42054.7) == 1
    # SB3-zoo's PPO on the ten games, whose interquartile mean is published as 0.74.
    raw = {
        "Pong": 21.0, "Breakout": 398, "BeamRider": 3397, "Seaquest": 1784, "SpaceInvaders": 960,
        "Qbert": 15627, "MsPacman": 1754, "RoadRunner": 40681, "Asteroids": 2156, "Enduro": 996,
    }  # fmt: skip
    scores = np.array([[human_normalized(game, value) for game, value in raw.items()]], float)
    assert interquartile_mean(scores) == pytest.approx(0.74, abs=0.005)
    assert human_normalized("Adventure", 1.0) is None


def test_every_game_with_a_score_is_an_ale_game():
    assert set(RANDOM_HUMAN) <= set(atari.games())
    assert all(human > random for random, human in RANDOM_HUMAN.values())
    without_points = {game for game, (random, _) in RANDOM_HUMAN.items() if random == 0}
    assert without_points == {"Enduro", "Freeway", "MontezumaRevenge", "Venture"}
    assert RANDOM_HUMAN["VideoPinball"] == (16256.9, 17667.9)  # Wang et al., 2016.


# Two games: of 6 pairs, X wins 5 in the first; it wins 2 and draws 3 in the second.
X = np.array([[3.0, 1.0], [5.0, 1.0], [1.0, 0.0]])
Y = np.array([[2.0, 1.0], [0.0, 0.0]])
BY_HAND = (5 / 6 + (2 + 3 * 0.5) / 6) / 2


def test_the_probability_of_improvement():
    # First game, 3 > 2, 3 > 0, 5 > 2, 5 > 0, 1 > 0; second, 1 = 1, 1 > 0 twice, 0 = 0.
    assert improvement(X, Y) == pytest.approx(BY_HAND)
    assert improvement(Y, X) == pytest.approx(1 - BY_HAND)
    assert improvement(X, X) == 0.5
    assert improvement(X + 10, Y) == 1 and improvement(X - 10, Y) == 0
    np.testing.assert_allclose(improvement(np.stack([X, X + 10]), np.stack([Y, Y])), [BY_HAND, 1])


def test_the_interval_of_the_probability_of_improvement():
    interval: Any = improvement_interval(X, Y)
    assert interval.value == pytest.approx(BY_HAND)
    assert 0 <= interval.low < interval.value < interval.high <= 1
    assert improvement_interval(X + 10, Y) == (1, 1, 1)
    # One run each has no interval.
    assert improvement_interval(X[:1], Y[:1]) == (0.75, None, None)
    # The bootstrap draws (0, 2), (0, 0), or (2, 2) to compare with 1.
    assert improvement_interval(np.array([[0.0], [2.0]]), np.array([[1.0]])) == (0.5, 0, 1)


def test_the_performance_profile():
    thresholds = np.array([-1.0, 0.0, 1.0, 2.9, 5.0])
    np.testing.assert_allclose(profile(X, thresholds), [1, 5 / 6, 2 / 6, 2 / 6, 0])
    shares, low, high = profile_band(X, thresholds)
    np.testing.assert_allclose(shares, profile(X, thresholds))
    assert (low <= shares).all() and (shares <= high).all() and (high - low)[1:4].min() > 0
    assert (low[0], high[-1]) == (1, 0)
