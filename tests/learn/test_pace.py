"""The estimated number of steps of an evaluation, from which the time left follows."""

import numpy as np
import pytest

from wsa.learn.evaluation.pace import Pace


def play(lengths, num_envs):
    """Yield (steps, finished games) after every step; environments share games as in `play`."""
    left = [list(lengths[i::num_envs]) for i in range(num_envs)]
    steps = finished = 0
    while any(left):
        for games in filter(None, left):
            steps += 1
            games[0] -= 1
            if not games[0]:
                finished += 1
                del games[0]
        yield steps, finished


def estimates(lengths, num_envs):
    """Steps, finished games, and the estimate after every step."""
    pace = Pace(len(lengths), num_envs)
    return [(*now, pace.seen(*now)) for now in play(lengths, num_envs)]


@pytest.mark.parametrize(("games", "num_envs"), [(20, 4), (3, 8), (7, 3), (5, 1)])
def test_games_of_one_length_are_estimated_exactly(games, num_envs):
    for _, finished, total in estimates([50] * games, num_envs):
        assert total == (games * 50 if finished else 0)


@pytest.mark.parametrize("num_envs", [4, 16])
def test_an_estimate_is_never_below_what_was_played_and_exact_at_the_end(num_envs):
    lengths = (1 + np.random.default_rng(5).exponential(60, 64)).astype(int).tolist()
    seen = estimates(lengths, num_envs)
    assert all(total >= steps for steps, finished, total in seen if finished)
    assert seen[-1] == (sum(lengths), 64, sum(lengths))
    half = [total for _, finished, total in seen if finished >= 32]
    assert half == pytest.approx([sum(lengths)] * len(half), rel=0.3)
