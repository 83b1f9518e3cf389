"""How online training plays: its states, its groups of environments, and how it resumes a game."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from learn_kit import STATES, Walk, WalkEncoder

from wsa.learn.envs import atari
from wsa.learn.networks.nature import Ready
from wsa.learn.online.embedding_table import Table
from wsa.learn.online.env_runner import EnvRunner
from wsa.store.common import hashing
from wsa.store.common.errors import ConflictError


def test_groups_of_environments_play_what_they_would_together(tmp_path):
    apart, together = (
        EnvRunner(envs, Table(tmp_path / str(len(envs)), WalkEncoder()), 3, seed=1)
        for envs in ([Walk(2), Walk(1)], [Walk(3)])
    )
    assert apart.groups == [slice(0, 2), slice(2, 3)] and apart.num_envs == 3
    apart.begin()
    together.begin()
    generator = np.random.default_rng(0)
    for _ in range(60):
        actions = generator.integers(3, size=3)
        whole = together.step(actions)
        parts = [apart.step(actions[group], i) for i, group in enumerate(apart.groups)]
        for name in ("rewards", "terminated", "truncated", "life_lost"):
            joined = np.concatenate([getattr(part, name) for part in parts])
            np.testing.assert_array_equal(joined, getattr(whole, name))
        assert sorted(e for part in parts for e in part.episodes) == sorted(whole.episodes)
        final = apart.table.gather(np.concatenate([part.final for part in parts]))
        assert torch.equal(final, together.table.gather(whole.final))
        assert torch.equal(apart.table.gather(apart.stacks), together.table.gather(together.stacks))
        np.testing.assert_array_equal(apart.first, together.first)
    assert apart.steps == together.steps == 180
    # A frame is embedded once for all groups.
    assert apart.table.passes == together.table.passes == STATES


def state_of(history, depth, windows):
    """The state (depth, width) of an episode that has shown `history`."""
    padded = [history[0]] * 4 + history
    parts = []
    for window in windows:
        part = np.zeros((depth, STATES if window == 1 else window))
        if window == 1:
            part[np.arange(depth), padded[-depth:]] = 1
        else:
            part[-1] = padded[-window:]
        parts.append(part)
    return np.concatenate(parts, axis=1)


@pytest.mark.parametrize("windows", [(4, 1, 2), (2,), (1, 3)])
def test_no_state_reaches_over_the_border_of_an_episode(tmp_path, monkeypatch, windows):
    monkeypatch.setattr("wsa.learn.online.digest_table.GROWTH", 16)
    monkeypatch.setattr("wsa.learn.online.digest_table.RECENT", 3)
    encoder, env = WalkEncoder(windows), Walk(3)
    table = Table(tmp_path, encoder)
    runner = EnvRunner([env], table, 3, seed=1)
    runner.begin()
    history = [[int(state)] for state in env.state]
    seen = {window: set() for window in windows}
    generator = np.random.default_rng(0)
    ends = 0

    def check(rows, states):
        np.testing.assert_array_equal(table.gather(rows), state_of(states, 3, windows))
        for window in windows:
            seen[window].add(tuple(([states[0]] * 4 + states)[-window:]))

    for _ in range(150):
        for i in range(3):
            check(runner.stacks[i], history[i])
        actions = generator.integers(3, size=3)
        moved = env.state + np.array([-1, 1, 0])[actions]
        step = runner.step(actions)
        np.testing.assert_array_equal(runner.first, step.ended)
        for i in range(3):
            history[i].append(int(moved[i]))
            check(step.final[i], history[i])
            if step.ended[i]:
                history[i] = [int(env.state[i])]
                ends += 1
    for i in range(3):
        check(runner.stacks[i], history[i])
    assert ends > 20
    for window, distinct in seen.items():
        assert len(table.parts[window]) == encoder.lookups[window].passes == len(distinct)
    assert table.passes == encoder.passes == table.asked - table.known


class DigestModel:
    """Embeds a frame, or a window, as the first bytes of its digest, which it checks."""

    width, dtype, found, passes = 3, np.dtype(np.uint8), 0, 0

    def __init__(self, begin):
        self.places = (slice(begin, begin + 3),)

    def begin(self, digests, inputs):
        for digest, shown in zip(digests, inputs(list(range(len(digests)))), strict=True):
            frames = shown if shown.ndim == 4 else shown[None]
            each = b"".join(hashing.frame_digest(frame) for frame in frames)
            assert digest == (hashing.window_digest(each) if shown.ndim == 4 else each)
        return Ready(np.array([list(digest[:3]) for digest in digests], np.uint8))


class DigestEncoder:
    width, dtype = 6, np.dtype(np.uint8)

    def __init__(self):
        self.lookups = {1: DigestModel(0), 4: DigestModel(3)}


@pytest.mark.parametrize("stopped_at", [57, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize("rules", ["classic", pytest.param("v5", marks=pytest.mark.slow)])
def test_an_emulator_is_replayed_to_where_it_stopped(tmp_path, monkeypatch, rules, stopped_at):
    monkeypatch.setattr("wsa.learn.online.env_runner.STRETCH", 25)
    protocol = atari.protocol("Breakout", rules, max_steps=32)
    encoder: Any = DigestEncoder()

    def make(name):
        env = atari.make_env("Breakout", protocol, 2)
        env.close()  # The next runner takes it over.
        return EnvRunner([env], Table(tmp_path / name, encoder), 2, seed=4)

    def play(runner, generator, steps):
        played = []
        for _ in range(steps):
            step = runner.step(generator.integers(4, size=2))
            rows = runner.table.gather(np.concatenate([runner.stacks, step.final])).tolist()
            facts = step.rewards, step.ended, step.life_lost
            played.append((rows, [fact.tolist() for fact in facts], step.episodes))
        return played

    runner = make("whole")
    runner.begin()
    generator = np.random.default_rng(0)
    played = play(runner, generator, stopped_at)
    runner.table.flush()
    state = {name: array.copy() for name, array in runner.state().items()}
    rows, draws = runner.table.state(), generator.bit_generator.state
    later = play(runner, generator, 20)
    episodes = [episode for step in played + later for episode in step[2]]
    assert len(episodes) >= (4 if stopped_at == 57 else 2)
    lives_lost = any(any(step[1][2]) for step in played + later)
    assert lives_lost or rules == "v5"

    resumed = make("whole")
    resumed.table.restore(rows)
    resumed.restore(state)
    generator.bit_generator.state = draws
    assert play(resumed, generator, 20) == later
    state["lives"] = state["lives"] + 1
    with pytest.raises(ConflictError, match="does not play here as it did"):
        make("other").restore(state)
