"""The replay buffer of online DQN: its transitions, its draws, and its share of stored data."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from learn_kit import DQN, Walk, WalkEncoder, WalkRun

from wsa.learn.online import dqn
from wsa.learn.online.embedding_table import Table
from wsa.learn.online.env_runner import EnvRunner
from wsa.learn.online.replay_buffer import Replay
from wsa.store.common.errors import DamagedError


def play(folder, steps, *, life_loss=False, **details):
    """Random play in a replay, and as lists: state, action, reward, dead, ended, next, first."""
    table = Table(folder / "table", WalkEncoder())
    env = Walk(2)
    runner = EnvRunner([env], table, 3, seed=1)
    runner.begin()
    replay = Replay(folder, table, 2, steps, 3, 10_000, **details)
    played: list[Any] = []
    generator = np.random.default_rng(0)
    for _ in range(steps):
        before, first, state = runner.stacks, runner.first, env.state.copy()
        actions = generator.integers(3, size=2)
        step = runner.step(actions)
        replay.add(before, first, actions, step, life_loss)
        dead = step.terminated | ((actions == 2) & ~step.ended & life_loss)
        moved = state + np.array([-1, 1, 0])[actions]
        played.append((state, actions, step.rewards, dead, step.ended, moved, first))
    return replay, played


@pytest.mark.parametrize("life_loss", [False, True])
@pytest.mark.parametrize("n_step", [1, 3])
def test_transitions_are_those_that_were_played(tmp_path, n_step, life_loss):
    steps = 80
    replay, played = play(tmp_path, steps, life_loss=life_loss, n_step=n_step, gamma=0.9, clip=True)
    times, envs = np.divmod(np.arange(2 * steps), 2)
    batch = replay.of(times, envs)
    state, action, reward, dead, ended, moved, first = map(np.array, zip(*played, strict=True))
    assert dead.any() and (ended & ~dead).any()

    def stack(t, env, depth):
        begin = max(s for s in range(t + 1) if first[s, env])
        return [int(state[max(s, begin), env]) for s in range(t - depth + 1, t + 1)]

    for row, (t, env) in enumerate(zip(times, envs, strict=True)):
        assert batch.states[row].argmax(dim=1).tolist() == stack(t, env, 3)
        assert batch.actions[row] == action[t, env]
        returned, discount, last = 0.0, 1.0, t
        for last in range(t, min(t + n_step, steps)):
            returned += discount * np.sign(reward[last, env])
            discount *= 0.9
            if dead[last, env] or ended[last, env]:
                break
        if dead[last, env]:
            discount = 0.0
        assert batch.rewards[row].item() == pytest.approx(returned)
        assert batch.discounts[row].item() == pytest.approx(discount)
        if not dead[last, env]:  # After a truncation too it is never the next episode's first.
            following = [*stack(last, env, 2), int(moved[last, env])]
            assert batch.following[row].argmax(dim=1).tolist() == following


def test_draws_see_the_newest_steps_only(tmp_path, monkeypatch):
    replay, _ = play(tmp_path, 50)
    drawn = set()
    of = replay.of
    monkeypatch.setattr(replay, "_window", 10)
    monkeypatch.setattr(replay, "of", lambda t, env: (drawn.update(t.tolist()), of(t, env))[1])
    replay.draw(500, np.random.default_rng(0))
    assert drawn == set(range(40, 50))


def test_the_share_of_stored_data_is_exact(tmp_path, monkeypatch):
    config = msgspec.structs.replace(
        DQN, total_timesteps=600, offline_fraction=0.5, offline_fraction_end=0.0,
        terminal_on_life_loss=True,
    )  # fmt: skip
    assert [config.stored_of(step) for step in (0, 150, 300, 600)] == [4, 3, 2, 0]
    replay, _ = play(tmp_path / "replay", 60)

    class StoredBatches:
        def __init__(self, *_, **how):
            assert how["life_loss_ends"]  # As for the steps that the run plays.

        def draw(self, size):
            batch = replay.of(np.zeros(size, np.int64), np.zeros(size, np.int64))
            batch.actions[:] = 77
            return batch

    class Stored:
        steps = np.arange(5)

    monkeypatch.setattr(dqn, "OfflineBatches", StoredBatches)
    session: Any = WalkRun(tmp_path / "run", config).session
    session.stored = Stored()
    draws = dqn.Draws(config, session, tmp_path / "new")
    draws.replay = replay
    for step in (0, 150, 300, 600):
        batch = draws.draw(step)
        assert len(batch.states) == config.batch_size == len(batch.discounts)
        assert (batch.actions == 77).sum() == config.stored_of(step)


def test_a_lost_replay_buffer_is_found(tmp_path):
    replay, _ = play(tmp_path, 20)
    replay.flush()

    def resume():
        resumed = Replay(tmp_path, replay._table, 2, 20, 3, 100)
        resumed.restore(replay.state())
        return resumed

    rows = np.arange(9), np.zeros(9, np.int64)
    assert torch.equal(resume().of(*rows).states, replay.of(*rows).states)
    (tmp_path / "replay.bin").unlink()
    with pytest.raises(DamagedError, match="does not hold the steps"):
        resume()
