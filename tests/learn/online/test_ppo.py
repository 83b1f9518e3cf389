"""PPO's parts: advantages, the loss, minibatches, the clipping range, and options."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from learn_kit import PPO, WalkRun

from wsa.learn.online import ppo
from wsa.store.common.errors import UsageError

pytestmark = pytest.mark.usefixtures("one_thread", "checked_shapes")


class StateValue(torch.nn.Module):
    """Values a frame at the number of its state; takes any action."""

    def forward(self, stacks):
        values = stacks[:, -1].float() @ torch.arange(float(stacks.shape[2]))
        return torch.zeros(len(stacks), 3), values, None


@pytest.mark.parametrize("life_loss", [False, True])
def test_advantages_bootstrap_from_the_true_next_state(tmp_path, life_loss):
    """After a truncation from the last frame, not from the reset one; after an end from nothing."""
    config = msgspec.structs.replace(PPO, num_steps=60, terminal_on_life_loss=life_loss)
    run = WalkRun(tmp_path, config)
    (env,) = run.envs
    played: list[Any] = []
    real_step = env.step

    def step(actions):
        lives = env.lives.copy()
        moved = env.state + np.array([-1, 1, 0])[actions]
        _, rewards, terminated, truncated, _ = result = real_step(actions)
        lost = (actions == 2) & ~(terminated | truncated)
        assert (lives[lost] - 1 == env.lives[lost]).all()
        played.append((moved, rewards, terminated, truncated, lost))
        return result

    env.step = step  # type: ignore[method-assign]
    run.runner.begin()
    rollout, _ = run.roll_out(network=StateValue())
    moved, rewards, terminated, truncated, lost = map(np.array, zip(*played, strict=True))
    assert truncated.any() and terminated.any() and lost.any()
    dead = terminated | (lost & life_loss)
    np.testing.assert_array_equal(rollout.terminated, dead)
    np.testing.assert_array_equal(rollout.ended, dead | truncated)
    alive = ~dead
    np.testing.assert_array_equal(rollout.following[torch.from_numpy(alive)], moved[alive])
    np.testing.assert_array_equal(rollout.rewards, np.sign(rewards))
    assert len(played) == config.num_steps  # No step is a reset.
    # Generalized advantage estimation, step by step from the end.
    found = ppo.advantages(config, rollout)
    for env_number in range(config.num_envs):
        later = 0.0
        for t in reversed(range(config.num_steps)):
            at = t, env_number
            following = 0.0 if dead[at] else config.gamma * moved[at]
            delta = np.sign(rewards[at]) + following - float(rollout.values[at])
            goes_on = not (dead[at] or truncated[at])
            later = delta + config.gamma * config.gae_lambda * goes_on * later
            assert found[at].item() == pytest.approx(later, abs=1e-4)


@pytest.mark.parametrize("recurrent", [False, True])
def test_the_first_update_sees_the_policy_that_played(tmp_path, recurrent):
    """The ratio of probabilities begins at 1, with the same dropout and the same memory."""
    config = msgspec.structs.replace(PPO, recurrent=recurrent)
    run = WalkRun(tmp_path, config)
    run.runner.begin()
    memory = run.network.initial_state(config.num_envs) if recurrent else None
    for _ in range(2):
        _, memory = run.roll_out(memory)
    rollout, _ = run.roll_out(memory)
    assert rollout.ended.any()
    estimates = ppo.advantages(config, rollout)
    returns = estimates + rollout.values
    for at in ppo.minibatches(config):
        _, scalars = ppo.loss_of(
            config, run.session, run.network, rollout, estimates, returns, at, "cpu"
        )
        assert abs(float(scalars["losses/approx_kl"])) < 1e-6 and float(scalars["clipfrac"]) == 0


@pytest.mark.parametrize(
    ("clip", "reach"), [({"clip_vloss": False}, None), ({}, 0.1), ({"vf_clip_coef": 0.02}, 0.02)]
)
def test_the_value_loss_is_half_the_squared_error(tmp_path, clip, reach):
    """Clipped by default; vf_coef 1 is what Stable-Baselines3 calls 0.5."""
    config = msgspec.structs.replace(PPO, vf_coef=1.0, ent_coef=0.0, norm_adv=False, **clip)
    run = WalkRun(tmp_path, config)
    run.runner.begin()
    rollout, _ = run.roll_out()
    at = next(ppo.minibatches(config))
    advantages = torch.zeros_like(rollout.values)
    returns = rollout.values + torch.linspace(-1, 1, 64).view_as(rollout.values)
    with torch.no_grad():
        run.network.critic[-1].bias += 0.05  # An update since the rollout.
        loss, scalars = ppo.loss_of(
            config, run.session, run.network, rollout, advantages, returns, at, "cpu"
        )
    errors = (rollout.values + 0.05 - returns)[at] ** 2
    if reach:
        clipped = rollout.values + min(reach, 0.05)
        errors = torch.max(errors, (clipped - returns)[at] ** 2)
    value_loss = scalars["losses/value_loss"].item()
    assert value_loss == pytest.approx(0.5 * errors.mean().item(), rel=1e-4)
    assert loss.item() == pytest.approx(value_loss, rel=1e-4)


def test_a_rollout_of_one_step_explains_no_variance():
    values, returns = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 4.0]])
    assert ppo.explained_variance(values, returns) == pytest.approx(1 - 2 / 4.5)
    assert math.isnan(ppo.explained_variance(values[:, :1], returns[:, :1]))
    assert math.isnan(ppo.explained_variance(values, torch.ones(1, 2)))


def test_anneal_clip_lowers_the_clipping_range_to_nothing(tmp_path, monkeypatch):
    ranges = []
    update = ppo.update_policy

    def spy(config, *rest):
        ranges.append(config.clip_coef)
        return update(config, *rest)

    monkeypatch.setattr(ppo, "update_policy", spy)
    for anneal in (False, True):
        config = msgspec.structs.replace(PPO, update_epochs=1, anneal_clip=anneal)
        WalkRun(tmp_path / str(anneal), config).train()
    # The first of four rollouts settles the moments that embeddings are normalized with.
    assert ranges == pytest.approx([0.1, 0.1, 0.1, 0.075, 0.05, 0.025])


def test_a_run_ends_with_its_last_whole_rollout():
    assert PPO.last_step == 256
    assert msgspec.structs.replace(PPO, total_timesteps=255).last_step == 192


def test_a_recurrent_minibatch_holds_whole_sequences():
    config = msgspec.structs.replace(PPO, recurrent=True)
    torch.manual_seed(0)
    used = []
    for times, envs in ppo.minibatches(config):
        of_sequence = envs[: len(envs) // config.num_steps]
        assert times.view(config.num_steps, -1).unique(dim=1).shape == (config.num_steps, 1)
        assert (envs.view(config.num_steps, -1) == of_sequence).all()
        used += of_sequence.tolist()
    assert sorted(used) == list(range(config.num_envs))


@pytest.mark.parametrize(
    "change",
    [
        {"num_envs": 0}, {"gamma": 1.5}, {"learning_rate": 0.0}, {"num_minibatches": 3},
        {"recurrent": True, "num_minibatches": 8},
        {"num_envs": 1, "num_steps": 2, "num_minibatches": 2}, {"total_timesteps": 10},
    ],
)  # fmt: skip
def test_options_out_of_range_are_refused(change):
    with pytest.raises(UsageError, match="--"):
        msgspec.structs.replace(PPO, **change)
