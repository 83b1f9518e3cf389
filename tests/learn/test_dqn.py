"""Offline DQN, CQL, and cloning: the loss by hand, and what they learn on the walk."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from wsa.learn.configs.algorithms import BCConfig, CQLConfig
from wsa.learn.configs.fusions import FusionConfig
from wsa.learn.configs.network import NetworkConfig
from wsa.learn.data.transitions import Batch
from wsa.learn.fusion.base import Fusion, Inputs
from wsa.learn.offline import trainer
from wsa.learn.offline.dqn import update_loss

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = CQLConfig(
    updates=60, batch_size=8, learning_rate=1e-3, target_network_frequency=7,
    validation_fraction=0, log_frequency=4, save_frequency=1000,
)  # fmt: skip
GAMMA = 0.9


def fit(config, flat, folder, frames=2, actions=3):
    """Train on the walk."""
    inputs = Inputs(tuple((frames, *shape) for shape in flat.shapes))
    network = NetworkConfig(FusionConfig(size=16), frame_stack=frames)
    return trainer.train_offline(config, network, flat, inputs, actions, 1, folder)


class Table(nn.Module):
    """Action values by state, the state being a frame's only number."""

    def __init__(self, values):
        super().__init__()
        self.values = nn.Parameter(torch.tensor(values))
        self.device = "cpu"
        self.torso = SimpleNamespace(fusion=Fusion())

    def forward(self, stacks):
        states = stacks[:, -1, 0].long()
        return self.values[states], torch.full((len(states), 2), 0.5)


ONLINE = [[1.0, 2.0, 0.0], [3.0, 0.5, 4.0], [0.0, -1.0, -2.0]]
TARGET = [[5.0, 6.0, 7.0], [0.1, 0.2, 0.3], [-4.0, 8.0, 9.0]]


def loss_by_hand(config, steps):
    """The loss of (state, action, reward, terminated, next state), in plain arithmetic."""
    total = 0.0
    for state, action, reward, terminated, following in steps:
        by = ONLINE if config.double_q else TARGET
        best = by[following].index(max(by[following]))
        target = reward + (0 if terminated else config.gamma * TARGET[following][best])
        error = abs(target - ONLINE[state][action])
        total += 0.5 * error**2 if error < 1 else error - 0.5
        high = math.log(sum(math.exp(q) for q in ONLINE[state]))
        total += config.cql_alpha * (high - ONLINE[state][action])
    return total / len(steps)


STEPS = [(0, 1, 5.0, 0.0, 1), (1, 0, -0.5, 1.0, 2), (2, 2, 0.0, 0.0, 0), (2, 0, 0.25, 0.0, 2)]


def batch_of(config, steps):
    state, action, reward, terminated, following = zip(*steps, strict=True)
    return Batch(
        states=torch.tensor([state, state], dtype=torch.float32).T[:, :, None],
        following=torch.tensor([state, following], dtype=torch.float32).T[:, :, None],
        actions=torch.tensor(action),
        rewards=torch.tensor(reward),
        discounts=config.gamma * (1 - torch.tensor(terminated)),
    )


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("alpha", [0.0, 1.0, 0.3])
@pytest.mark.parametrize("gamma", [0.0, 0.9])
def test_the_loss_equals_the_one_by_hand(alpha, gamma, double):
    config = msgspec.structs.replace(SMALL, cql_alpha=alpha, gamma=gamma, double_q=double)
    online: Any = Table(ONLINE)
    target: Any = Table(TARGET)
    loss, scalars = update_loss(config, online, target, batch_of(config, STEPS), alpha)
    assert loss.item() == pytest.approx(loss_by_hand(config, STEPS), rel=1e-5)
    assert scalars["losses/max_q"].item() == pytest.approx((2 + 4 + 0 + 0) / 4)
    assert scalars["losses/q_values"].item() == pytest.approx((2 + 3 - 2 + 0) / 4)
    assert scalars["wsa/weight_entropy"].item() == pytest.approx(math.log(2))
    both = scalars["losses/td_loss"] + alpha * scalars["losses/cql"]
    assert loss.item() == pytest.approx(both.item())
    loss.backward()
    assert target.values.grad is None and online.values.grad.abs().sum() > 0


@pytest.mark.parametrize("n", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_dqn_learns_the_known_optimum(walk_flat, tmp_path, n):
    updates, rate, every = (250, 1e-2, 20) if n == 1 else (700, 3e-3, 40)
    config = msgspec.structs.replace(
        SMALL, updates=updates, batch_size=32, learning_rate=rate, gamma=GAMMA, cql_alpha=0.0,
        target_network_frequency=every, log_frequency=100, n_step=n,
    )  # fmt: skip
    network = fit(config, walk_flat, tmp_path, frames=1).network
    with torch.inference_mode():
        stacks = torch.from_numpy(np.array(walk_flat.embeddings))[:, None]
        values = network(stacks)[0].numpy()
    best = {1: GAMMA**2, 2: GAMMA, 3: 1.0}  # Rewards count by their sign.
    for state in (1, 2, 3):
        assert values[state].argmax() == 1
        left = 0 if state == 1 else GAMMA * best[state - 1]
        expected = [left, best[state], GAMMA * best[state]]
        if n == 1:  # Longer returns are those of the random play.
            np.testing.assert_allclose(values[state], expected, atol=0.08)
        else:
            assert (values[state] < np.add(expected, 0.05)).all()


def test_cql_values_actions_of_the_data_above_others(walk_flat, tmp_path):
    gaps = []
    stacks = torch.from_numpy(np.array(walk_flat.embeddings))[1:4, None].expand(-1, 2, -1)
    for alpha in (0.0, 5.0):
        config = msgspec.structs.replace(SMALL, cql_alpha=alpha, learning_rate=3e-3, updates=50)
        # Actions 3 to 5 are not in the data.
        network = fit(config, walk_flat, tmp_path / str(alpha), actions=6).network
        with torch.inference_mode():
            values = network(stacks)[0]
        gaps.append((values[:, :3].amin() - values[:, 3:].amax()).item())
    assert gaps[0] < 0.5
    assert gaps[1] > 1


def test_cloning_learns_the_policy_of_the_data(walk_flat, tmp_path):
    # It drew actions 0 to 2 uniformly, and never 3 to 5.
    config = BCConfig(
        updates=600, batch_size=64, learning_rate=3e-3, validation_fraction=0.2,
        log_frequency=100, save_frequency=1000,
    )  # fmt: skip
    network = fit(config, walk_flat, tmp_path, actions=6).network
    stacks = torch.from_numpy(np.array(walk_flat.embeddings))[1:4, None].expand(-1, 2, -1)
    with torch.inference_mode():
        chances = network(stacks)[0].softmax(dim=1)
    assert chances[:, 3:].max() < 0.01
    assert (chances[:, :3] - 1 / 3).abs().max() < 0.2
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["validation/loss"] == pytest.approx(math.log(3), abs=0.05)
    assert 0.2 < last["validation/accuracy"] < 0.5


@pytest.mark.parametrize("most", [0.0, 1e-3])
def test_gradients_are_clipped_on_request(walk_flat, tmp_path, monkeypatch, most):
    norms = []
    step = torch.optim.Adam.step

    def spy(self, *rest):
        grads = [p.grad for group in self.param_groups for p in group["params"]]
        norms.append(torch.stack([g.norm() for g in grads if g is not None]).norm().item())
        return step(self, *rest)

    monkeypatch.setattr(torch.optim.Adam, "step", spy)
    fit(msgspec.structs.replace(SMALL, updates=4, max_grad_norm=most), walk_flat, tmp_path)
    assert len(norms) == 4
    assert all(n <= 1.001 * most for n in norms) if most else max(norms) > 1e-2
