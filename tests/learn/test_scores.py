"""Human-normalized scores, the interquartile mean and its intervals, held to rliable's figures."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsa.learn.envs import atari
from wsa.learn.evaluation.scores import (
    RANDOM_HUMAN,
    Scores,
    human_normalised,
    interquartile_mean,
    mean_score,
    stratified_interval,
)

# Five runs of four games, and what rliable 1.2.0 says of them: aggregate_iqm, aggregate_mean and
# get_interval_estimates(reps=50000). It is not installed with wsa: its pins are old.
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


def test_the_interquartile_mean_is_rliables() -> None:
    assert interquartile_mean(TABLE) == pytest.approx(IQM, abs=1e-6)


def test_intervals_are_rliables() -> None:
    found = stratified_interval(TABLE, resamples=20_000)
    assert found == pytest.approx((IQM, IQM_LOW, IQM_HIGH), abs=0.015)
    found = stratified_interval(TABLE, mean_score, resamples=20_000)
    assert found == pytest.approx((MEAN, MEAN_LOW, MEAN_HIGH), abs=0.015)


def test_runs_are_drawn_within_their_game() -> None:
    # Two games far apart: were runs mixed over games, the interval would span both.
    table = np.array([[0.0, 100.0], [1.0, 101.0], [2.0, 102.0]])
    found = stratified_interval(table, mean_score)
    assert 50 <= found.low <= found.value == 51 <= found.high <= 52


@pytest.mark.parametrize("statistic", [interquartile_mean, mean_score])
@pytest.mark.parametrize("shape", [(1, 1), (5, 4), (13, 3), (100, 1), (3, 57)])
def test_resamples_are_those_of_one_draw_after_the_other(
    shape: tuple[int, int], statistic: Callable[[Scores], Scores]
) -> None:
    """All are drawn at once; drawn one by one they are the same to the last bit."""
    scores = np.random.default_rng(1).normal(size=shape)
    generator = np.random.default_rng(7)
    runs, games = shape
    drawn = [
        statistic(scores[generator.integers(runs, size=shape), np.arange(games)])
        for _ in range(500)
    ]
    tail = (1 - 0.95) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    found = stratified_interval(scores, statistic, resamples=500, seed=7)
    assert found == (float(statistic(scores)), low, high)


def test_one_run_has_no_spread() -> None:
    found = stratified_interval(np.array([[3.0]]))
    assert found == (3, 3, 3) and str(found) == "3.00 [3.00, 3.00]"


@given(st.lists(st.floats(-1e3, 1e3), min_size=4, max_size=40), st.randoms())
def test_outliers_and_order_do_not_move_it(values: list[float], random: object) -> None:
    table = np.array(values)[:, None]
    before = interquartile_mean(table)
    table[table.argmax()] = 1e9
    assert interquartile_mean(table[::-1]) == pytest.approx(before, abs=1e-6)


def test_scores_are_those_of_the_ten_games_of_the_paper() -> None:
    assert human_normalised("Pong", -20.7) == 0
    assert human_normalised("Seaquest", 42054.7) == 1
    # SB3-zoo's PPO on the ten games, whose interquartile mean is published as 0.74.
    raw = {
        "Pong": 21.0,
        "Breakout": 398,
        "BeamRider": 3397,
        "Seaquest": 1784,
        "SpaceInvaders": 960,
        "Qbert": 15627,
        "MsPacman": 1754,
        "RoadRunner": 40681,
        "Asteroids": 2156,
        "Enduro": 996,
    }
    scores = np.array([[human_normalised(game, value) for game, value in raw.items()]], float)
    assert interquartile_mean(scores) == pytest.approx(0.74, abs=0.005)
    assert human_normalised("Adventure", 1.0) is None


def test_every_game_with_a_score_is_an_ale_game() -> None:
    assert set(RANDOM_HUMAN) <= set(atari.games())
    assert all(human > random for random, human in RANDOM_HUMAN.values())
