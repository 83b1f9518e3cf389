"""Studies of fusion weights: logs, statistics of the weights, and interventions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from wsa.learn.configs.fusions import FusionConfig
from wsa.learn.evaluation.attention_log import FILE
from wsa.learn.fusion.attention import Attention
from wsa.learn.fusion.base import Inputs
from wsa.learn.fusion.build import make_fusion
from wsa.learn.study.interventions import intervened
from wsa.learn.study.weight_statistics import (
    Log,
    around_rewards,
    by_action,
    effective_number,
    read_log,
    switches_per_second,
)
from wsa.store.common.errors import DamagedError, MissingError, UsageError


def write_log(folder, **changes):
    """Write a log of two environments' games, interleaved; the second has one step."""
    columns: dict[str, Any] = {
        "models": np.array(["a-0123456789ab", "b-0123456789ab"]),
        "step": np.array([0, 0, 1, 2]),
        "env": np.array([0, 1, 0, 0]),
        "episode": np.zeros(4, int),
        "action": np.array([1, 0, 1, 0]),
        "reward": np.array([0, 5, 0, 1], np.float32),
        "weights": np.array([[0.75, 0.25], [1, 1], [0.25, 0.75], [0.2, 0.8]], np.float32),
    }
    np.savez(folder / FILE, **{**columns, **changes})


def test_a_log_is_read_game_by_game(tmp_path):
    write_log(tmp_path)
    log = read_log(tmp_path)
    assert log.game.tolist() == [0, 0, 0, 1] and log.step.tolist() == [0, 1, 2, 0]
    assert log.action.tolist() == [1, 1, 0, 0] and log.reward.tolist() == [0, 0, 1, 5]
    np.testing.assert_allclose(log.shares[-1], [0.5, 0.5])
    np.testing.assert_allclose(log.weights[-1], [1, 1])
    # One switch in two transitions, at 15 steps per second.
    assert switches_per_second(log, 15) == 7.5
    count, means = by_action(log, 3)
    assert count.tolist() == [2, 2, 0]
    np.testing.assert_allclose(means, [[0.35, 0.65], [0.5, 0.5], [0, 0]], rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (None, MissingError, "wsa eval"),
        ({"weights": np.array([[1.0, 0.0]] * 4)}, UsageError, "only some of the run's models"),
        (
            {"models": np.array(["a-0123456789ab"]), "weights": np.ones((4, 1))},
            UsageError,
            "only some of the run's models",
        ),
        ({"step": np.zeros((2, 2))}, DamagedError, "cannot be read"),
    ],
)
def test_unusable_logs_are_refused(tmp_path, changes, error, message):
    if changes is not None:
        write_log(tmp_path, **changes)
    with pytest.raises(error, match=message):
        read_log(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "flipped name", "flipped data"])
def test_a_damaged_log_is_reported(tmp_path, damage):
    write_log(tmp_path, note=np.arange(500))
    data = bytearray((tmp_path / FILE).read_bytes())
    if damage == "cut":
        del data[len(data) // 2 :]
    else:
        data[30 if damage == "flipped name" else len(data) // 2] ^= 255
    (tmp_path / FILE).write_bytes(data)
    with pytest.raises(DamagedError, match=r"cannot be read .* Make it again: wsa eval"):
        read_log(tmp_path)


def test_the_effective_number_of_models():
    shares = np.array([[1, 0, 0], [0.5, 0.5, 0], [1 / 3, 1 / 3, 1 / 3]])
    np.testing.assert_allclose(effective_number(shares), [1, 2, 3], rtol=1e-6)


def test_weights_around_rewards():
    # Three games of 10 steps. The first model has the weight until the reward in the middle.
    step = np.tile(np.arange(10), 3)
    first = np.where(step <= 5, 0.9, 0.1)
    reward = np.where(step == 5, 2.0, 0.0)
    shares = np.stack([first, 1 - first], axis=1)
    log = Log(("a", "b"), np.repeat([0, 1, 2], 10), step, 0 * step, reward, shares, shares)
    around = around_rewards(log, 1, reach=4)
    assert around is not None
    count, bands = around
    assert count == 3 and bands.shape == (2, 3, 9)
    for band in bands[0]:
        np.testing.assert_allclose(band, [0.9] * 5 + [0.1] * 4)
    assert around_rewards(log, -1) is None
    # Steps beyond the ends of a game are not counted.
    _, wide = around_rewards(log, 1, reach=7) or (0, bands)
    np.testing.assert_allclose(wide[0, 0], [0] * 2 + [0.9] * 6 + [0.1] * 4 + [0] * 3)


@pytest.fixture
def fusion():
    torch.manual_seed(0)
    fusion = make_fusion(FusionConfig("wsa", size=8), Inputs(((1, 3), (1, 3))))
    assert isinstance(fusion, Attention)
    return fusion.eval()


def test_interventions_replace_the_weights_and_are_undone(fusion):
    states = [[torch.randn(1, 1, 3), torch.randn(1, 1, 3)] for _ in range(6)]

    def weights():
        with torch.no_grad():
            return torch.cat([fusion(state)[1] for state in states]).numpy()

    trained = weights()
    assert trained.std(axis=0).min() > 1e-3
    with intervened(fusion, "frozen", [0.3, 0.7], 1):
        np.testing.assert_allclose(weights(), [[0.3, 0.7]] * 6, rtol=1e-6)
    with intervened(fusion, "uniform", [0.3, 0.7], 1):
        np.testing.assert_allclose(weights(), [[0.5, 0.5]] * 6, rtol=1e-6)
    with intervened(fusion, "shuffled", [0.3, 0.7], 1):
        shuffled = weights()
    np.testing.assert_array_equal(shuffled[0], trained[0])  # There is no earlier state yet.
    assert (shuffled != trained).any(axis=1).sum() >= 2
    with intervened(fusion, "none", [0.3, 0.7], 1):
        np.testing.assert_array_equal(weights(), trained)
    with pytest.raises(KeyError), intervened(fusion, "frozen", [0.3, 0.7], 1):
        raise KeyError
    np.testing.assert_array_equal(weights(), trained)
