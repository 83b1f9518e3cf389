"""Batches, moments, and live stacks against a walk over the store step by step."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from wsa.learn.data.nstep import walk
from wsa.learn.data.transitions import OfflineBatches, moments
from wsa.learn.evaluation.greedy_policy import LiveStacks
from wsa.store.common.errors import UsageError
from wsa.store.format.stacks import MAX_STACK_FRAMES
from wsa.store.objects.flat_map import materialize
from wsa.store.objects.snapshot import take_snapshot
from wsa.store.objects.writer import commit_segment

ALIASES = {"lite0": (3,), "vit": (2, 2)}


def add(kit, store, number, change=lambda meta, arrays: None, **options):
    """Commit a fake segment, changed, and its embeddings by both models."""
    meta, arrays = kit.remember(number, **options)
    change(meta, arrays)
    commit_segment(store, meta, arrays)
    for alias, shape in ALIASES.items():
        kit.add_embedding(store, meta, kit.key(alias), shape=shape)
    return meta  # type: ignore[no-any-return]


def truncate(meta, arrays):
    """Turn every other end into a truncation."""
    ends = np.flatnonzero(arrays["terminated"])[::2]
    arrays["terminated"][ends] = False
    arrays["truncated"][ends] = True
    arrays["reward"] *= 7  # Clipping would change them.


@pytest.fixture
def data(kit, store, tmp_path):
    """Episodes that end either way, some at once, and cuts inside others."""
    add(kit, store, 0, truncate, steps=11, ends=(0, 1, 5), frames=8)
    add(kit, store, 1, truncate, steps=11, ends=(2, 6, 10), frames=8, cut=True)
    add(kit, store, 2, truncate, steps=11, ends=(), frames=8, cut=False)
    add(kit, store, 0, truncate, env=1, steps=11, ends=(3,), frames=8)
    snapshot = take_snapshot(store)
    return snapshot, materialize(snapshot, kit.GAME, [kit.key(a) for a in ALIASES], tmp_path / "c")


def steps_of(kit, snapshot, depth):
    """Every step, by a walk over each segment that keeps the last frames in a list."""
    found = []
    for meta in snapshot.segments(kit.GAME):
        rows = snapshot.read_rows(meta)
        parts = [
            snapshot.read_embedding(kit.GAME, kit.key(alias), meta.segment).reshape(meta.frames, -1)
            for alias in ALIASES
        ]
        fused = np.concatenate(parts, axis=1)
        stack = []
        pending: tuple[list[bytes], int] | None = None
        for i in range(meta.rows):
            now = fused[rows["frame"][i]].tobytes()
            stack = [now] * depth if rows["is_first"][i] or not stack else [*stack[1:], now]
            if pending is not None:
                state, at = pending
                values = (rows["action"][at], rows["reward"][at], rows["terminated"][at])
                found.append((state, [*state[1:], now], *(v.item() for v in values)))
                pending = None
            if rows["action"][i] >= 0:
                pending = (stack, i)
        assert pending is None
    return found


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_batches_are_drawn_from_the_steps_of_the_store(kit, data, depth):
    snapshot, flat = data
    expected = {
        (*state, *following, action, reward, end)
        for state, following, action, reward, end in steps_of(kit, snapshot, depth)
    }
    batches = OfflineBatches(flat, depth, 64, seed=3)
    seen = set()
    for _ in range(20):
        batch = batches.draw()
        assert batch.states.shape == batch.following.shape == (64, depth, 7)
        assert batch.states.dtype == batch.following.dtype == torch.float16
        assert batch.actions.dtype == torch.int64
        assert batch.rewards.dtype == batch.discounts.dtype == torch.float32
        for i in range(64):
            pair = (*batch.states[i], *batch.following[i])
            frames = [frame.numpy().tobytes() for frame in pair]
            assert batch.discounts[i].item() in (0, np.float32(0.99))
            end = bool(batch.discounts[i] == 0)
            values = (batch.actions[i].item(), batch.rewards[i].item(), end)
            seen.add((*frames, *values))
    assert seen == expected
    rewards = {key[-2] for key in seen}
    assert rewards == {-7.0, 0.0, 7.0}


def test_only_a_terminated_step_ends_the_return(kit, data):
    _, flat = data
    steps = flat.rows[flat.steps]
    assert steps["truncated"].sum() == 5 and steps["terminated"].sum() == 2
    batches = OfflineBatches(flat, 1, 4000, seed=0)
    share = (batches.draw().discounts == 0).float().mean().item()
    assert share == pytest.approx(2 / len(steps), abs=0.02)


def test_draws_are_uniform(kit, data):
    _, flat = data
    drawn = np.zeros(len(flat.rows))

    class Recorder:
        def __getattr__(self, name):
            return getattr(flat, name)

        def stack(self, rows, depth):
            np.add.at(drawn, rows, 1)
            return flat.stack(rows, depth)

    recorder: Any = Recorder()
    OfflineBatches(recorder, 4, 44_000, seed=1).draw()
    assert set(np.flatnonzero(drawn)) == set(flat.steps)
    assert len(flat.steps) == 44
    assert drawn[flat.steps].min() > 850 and drawn[flat.steps].max() < 1150


def test_a_stack_longer_than_the_context_of_segments_is_refused(data):
    for depth in (0, MAX_STACK_FRAMES + 1):
        with pytest.raises(UsageError, match="Choose one of these"):
            OfflineBatches(data[1], depth, 8, seed=0).draw()


def content(batches):
    batch = batches.draw()
    return [
        tensor.numpy().tobytes()
        for tensor in (batch.states, batch.actions, batch.rewards, batch.discounts)
    ]


def test_draws_resume_from_every_saved_state(data):
    batches = OfflineBatches(data[1], 4, 3, seed=5)
    states, drawn = [], []
    for _ in range(50):
        states.append(json.dumps(batches.state()))
        drawn.append(content(batches))
    assert len({line[0] for line in drawn}) > 45
    other = OfflineBatches(data[1], 4, 3, seed=99)
    for at, state in enumerate(states):
        other.restore(json.loads(state))
        assert [content(other) for _ in range(min(3, 50 - at))] == drawn[at : at + 3]


def test_moments_do_not_depend_on_other_segments_in_the_cache(kit, store, data, tmp_path):
    snapshot, flat = data
    before = moments(flat)
    add(kit, store, 7, steps=30, env=3)
    models = [kit.key(a) for a in ALIASES]
    cache = tmp_path / "c"
    later = moments(materialize(take_snapshot(store), kit.GAME, models, cache))
    again = moments(materialize(snapshot, kit.GAME, models, cache))
    fresh = moments(materialize(snapshot, kit.GAME, models, tmp_path / "other"))
    for i in range(2):
        assert torch.equal(before[i], again[i]) and torch.equal(before[i], fresh[i])
        assert not torch.equal(before[i], later[i])


def flat_of(embeddings, columns) -> Any:
    """What `moments` needs of a flat map, with one step for each frame."""
    rows = np.zeros(len(embeddings), [("frame", "<i8")])
    rows["frame"] = np.arange(len(embeddings))
    return SimpleNamespace(
        embeddings=embeddings,
        windows=[1] * len(columns),
        columns=columns,
        rows=rows,
        steps=np.arange(len(embeddings)),
        width=embeddings.shape[1],
    )


def test_moments_keep_small_differences_and_do_not_amplify_constants():
    generator = np.random.default_rng(0)
    embeddings = np.zeros((20_000, 5), np.float32)
    embeddings[:, 0] = 1000 + 0.01 * generator.standard_normal(20_000)
    embeddings[:, 1] = 3.0
    embeddings[:, 2] = 5 * generator.standard_normal(20_000)
    embeddings[:, 3:] = 7.0
    mean, deviation = moments(flat_of(embeddings, [slice(0, 3), slice(3, 5)]))
    exact = embeddings.astype(np.float64)
    np.testing.assert_allclose(mean.numpy(), exact.mean(axis=0), rtol=1e-7)
    floor = 0.01 * exact.std(axis=0)[:3].mean() + 1e-6
    np.testing.assert_allclose(
        deviation.numpy(), [floor, floor, exact[:, 2].std(), 1e-6, 1e-6], rtol=1e-5
    )
    alone = moments(flat_of(embeddings[:, :1], [slice(0, 1)]))[1].item()
    assert alone == pytest.approx(exact[:, 0].std(), rel=1e-5)


class FakeEncoder:
    """Embeds a frame as its first numbers."""

    width = 3
    dtype = np.dtype(np.float16)

    def __call__(self, frames, *_):
        return frames.reshape(len(frames), -1)[:, :3].astype(np.float16)


class Script(gymnasium.Env[NDArray[np.uint8], int]):
    """An environment that shows noise, in episodes of random lengths."""

    observation_space = gymnasium.spaces.Box(0, 255, (2, 2, 3), np.uint8)
    action_space: Any = gymnasium.spaces.Discrete(2)

    def __init__(self, number):
        self._generator = np.random.default_rng(number)
        self._left = 0

    def _show(self):
        return self._generator.integers(0, 256, (2, 2, 3), np.uint8)

    def reset(self, **_):
        self._left = int(self._generator.integers(1, 7))
        return self._show(), {}

    def step(self, action):
        self._left -= 1
        return self._show(), 0.0, self._left == 0, False, {}


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_live_stacks_equal_those_of_gymnasium(depth):
    count = 3
    envs = [
        gymnasium.wrappers.FrameStackObservation(Script(i), depth, padding_type="reset")
        for i in range(count)
    ]
    encoder: Any = FakeEncoder()
    stacks = LiveStacks(encoder, count, depth)
    generator = np.random.default_rng(0)
    shown = [env.reset()[0] for env in envs]
    first = np.ones(count, np.bool_)
    episodes = 0
    for _ in range(80):
        # An environment that does not play keeps its stack.
        playing = np.flatnonzero(generator.random(count) < 0.6)
        if not playing.size:
            continue
        newest = np.stack([shown[i][-1] for i in playing])
        found = stacks.see(newest, first[playing], playing)
        assert found.shape == (len(playing), depth, 3) and found.dtype == torch.float16
        for place, i in enumerate(playing):
            np.testing.assert_array_equal(found[place].numpy(), encoder(shown[i]))
            shown[i], _, ended, _, _ = envs[i].step(0)
            first[i] = ended
            if ended:
                shown[i] = envs[i].reset()[0]
                episodes += 1
    assert episodes > 20


def test_a_live_stack_is_a_copy():
    encoder: Any = FakeEncoder()
    stacks = LiveStacks(encoder, 1, 2)
    frames = np.arange(24, dtype=np.uint8).reshape(2, 1, 2, 2, 3)
    one = np.zeros(1, np.int64)
    before = stacks.see(frames[0], np.ones(1, np.bool_), one)
    kept = before.clone()
    stacks.see(frames[1], np.zeros(1, np.bool_), one)
    assert torch.equal(before, kept)


@pytest.mark.parametrize("n", [2, 5])
def test_the_next_state_is_the_last_one_within_n_steps(data, n):
    flat = data[1]
    far = OfflineBatches(flat, 3, 8, seed=0, n_step=n, gamma=0.9, clip=True)
    batch = far.of(flat.steps)
    reached = walk(flat, flat.steps, n, 0.9, True)
    wanted = np.asarray(flat.embeddings)[flat.stack(reached.last, 3)]
    assert np.array_equal(batch.following.numpy(), wanted)
    assert np.array_equal(batch.states.numpy(), flat.embeddings[flat.stack(flat.steps, 3)])
    assert np.array_equal(batch.rewards.numpy(), reached.returns)
    assert np.array_equal(batch.discounts.numpy(), reached.discounts)
