"""n-step returns against a walk over episodes step by step, and episodes held out for validation."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsa.learn.data.nstep import hold_out, horizon, walk
from wsa.store.objects.flat_map import ROW, materialize
from wsa.store.objects.snapshot import take_snapshot
from wsa.store.objects.writer import commit_segment

# How an episode's rows stop; open: where a segment ends.
END, CUT, OPEN = "terminated", "truncated", "open"


@st.composite
def rows_of_episodes(draw):
    """Rows of some episodes one after another, each followed by its last observation."""
    found = []
    for number in range(draw(st.integers(1, 5))):
        rewards = draw(st.lists(st.sampled_from([-2.0, 0.0, 0.5, 3.0]), min_size=1, max_size=6))
        how = draw(st.sampled_from([END, CUT, OPEN]))
        for at, reward in enumerate(rewards):
            last = at == len(rewards) - 1
            lives = draw(st.integers(0, 2))
            found.append((0, reward, last and how == END, last and how == CUT, number, lives))
        found.append((-1, 0.0, False, False, number, 0))
    rows = np.zeros(len(found), ROW)
    for name, column in zip(
        ("action", "reward", "terminated", "truncated", "episode", "lives"),
        zip(*found, strict=True),
        strict=True,
    ):
        rows[name] = column
    return rows


@given(
    rows=rows_of_episodes(),
    n=st.integers(1, 8),
    gamma=st.sampled_from([0.0, 0.5, 0.99, 1.0]),
    clip=st.booleans(),
    life_loss_ends=st.booleans(),
)
def test_returns_equal_those_added_up_step_by_step(rows, n, gamma, clip, life_loss_ends):
    steps = np.flatnonzero(rows["action"] >= 0)
    flat: Any = SimpleNamespace(rows=rows)
    found = walk(flat, steps, n, gamma, clip, life_loss_ends=life_loss_ends)
    for i, row in enumerate(steps.tolist()):
        total, factor, at, whole = 0.0, 1.0, row, False
        for _ in range(n):
            if rows[at]["action"] < 0:
                break  # The segment ends here, and this is its last state.
            reward = float(rows[at]["reward"])
            total += factor * (float(np.sign(reward)) if clip else reward)
            factor *= gamma
            at += 1
            if rows[at - 1]["terminated"]:
                factor, whole = 0.0, True
                break
            if rows[at - 1]["truncated"]:
                break  # The game could have gone on from this state.
            if life_loss_ends and rows[at]["lives"] < rows[at - 1]["lives"]:
                factor, whole = 0.0, True
                break
        else:
            whole = True
        assert found.last[i] == at
        assert found.returns[i] == pytest.approx(total, abs=1e-5)
        assert found.discounts[i] == pytest.approx(factor, abs=1e-6)
        assert found.whole[i] == whole
        assert rows[at]["episode"] == rows[row]["episode"]


def test_the_horizon_is_where_a_reward_counts_one_percent():
    assert horizon(0.0) == 1 and horizon(1.0) == float("inf")
    for gamma in (0.5, 0.9, 0.99):
        assert gamma ** horizon(gamma) <= 0.01 < gamma ** (horizon(gamma) - 1)


@pytest.fixture
def flat(kit, store, tmp_path):
    """Three segments of one environment and one of another; episodes go on across segments."""

    def add(number, env, first, **options):
        meta, arrays = kit.remember(number, env=env, steps=20, frames=8, **options)
        arrays["episode"] += first - arrays["episode"][0]
        commit_segment(store, meta, arrays)
        kit.add_embedding(store, meta, kit.key("lite0"))

    add(0, 0, 0, ends=(4, 9, 14))
    add(1, 0, 3, ends=(2, 12), cut=True)
    add(2, 0, 5, ends=(7,), cut=True)
    add(0, 1, 0, ends=(3, 6, 13))
    return materialize(take_snapshot(store), kit.GAME, [kit.key("lite0")], tmp_path / "c")


def episodes(flat, rows):
    found = set()
    for row in rows.tolist():
        part = next(p for p in flat.parts if p.row <= row < p.row + p.rows)
        found.add((part.segment[:17], int(flat.rows["episode"][row])))
    return found


@pytest.mark.parametrize("fraction", [0.05, 0.3, 0.5])
def test_whole_episodes_are_held_out(flat, fraction):
    training, held = hold_out(flat, fraction)
    assert sorted([*training, *held]) == sorted(flat.steps)
    assert not episodes(flat, training) & episodes(flat, held)
    total = len(episodes(flat, flat.steps))
    assert len(episodes(flat, held)) == max(1, round(fraction * total)) < total
    again = hold_out(flat, fraction)
    assert np.array_equal(again[1], held)
    more = episodes(flat, hold_out(flat, fraction + 0.2)[1])
    assert episodes(flat, held) < more  # Episodes are chosen by a hash, and stay held out.


def test_an_episode_in_two_segments_is_one(flat):
    across = [
        e for e in episodes(flat, flat.steps)
        if sum(e in episodes(flat, flat.steps[(flat.steps >= p.row) & (flat.steps < p.row + p.rows)])
               for p in flat.parts) > 1
    ]  # fmt: skip
    assert len(across) == 2


def test_an_episode_is_left_to_train_on(flat):
    training, held = hold_out(flat, 0.99)
    assert len(episodes(flat, training)) == 1 and len(held)


def test_a_fraction_of_zero_holds_out_nothing(flat):
    training, held = hold_out(flat, 0.0)
    assert np.array_equal(training, flat.steps) and not len(held)
