"""Collected play equals that of gymnasium's own environments and wrappers."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from gymnasium import Env, make
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation, TimeLimit
from learn_kit import collect_play

from wsa.learn.envs import atari as games
from wsa.store.common import hashing
from wsa.store.format.records import EmbeddingMeta
from wsa.store.format.stacks import MAX_STACK_FRAMES as STACK
from wsa.store.objects import flat_map
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import take_snapshot
from wsa.store.objects.writer import commit_embedding

REFEREE_GAMES = [
    ("Breakout", 27_000, 190),  # games end
    ("Pong", 33, 110),  # episodes are cut
    ("SpaceInvaders", 90, 200),  # both
    *(
        pytest.param(*game, marks=pytest.mark.slow)
        for game in (
            ("Seaquest", 27_000, 170),
            ("MsPacman", 27_000, 60),
            ("AirRaid", 27_000, 60),  # 250 rows
            ("JourneyEscape", 27_000, 200),  # more colors than a palette holds
            ("Carnival", 27_000, 150),  # 214 rows, games end
        )
    ),
]


def referee(game, max_steps):
    """The environment with gymnasium's wrappers."""
    height, width = games.screen(game)
    env: Env[Any, Any] = make(
        f"ALE/{game}-v5", frameskip=1, repeat_action_probability=0.0, full_action_space=False
    )
    env = AtariPreprocessing(
        env, noop_max=0, frame_skip=4, screen_size=(width, height), grayscale_obs=False
    )
    return FrameStackObservation(TimeLimit(env, max_steps), STACK, padding_type="reset")


@pytest.mark.variants
@pytest.mark.parametrize(("game", "max_steps", "each"), REFEREE_GAMES)
def test_equal_to_gymnasium_step_by_step(game, max_steps, each, tmp_path):
    """Frames, stacks of four, rewards and ends, last frames and segment borders included."""
    protocol = msgspec.structs.replace(
        games.protocol(game, "classic", max_steps=max_steps), noop_max=0, fire_reset=False
    )
    backend = open_store(str(tmp_path), create=True)
    snapshot = collect_play(backend, protocol, game, steps=2 * each, seed=7, segment_steps=37)
    model = "digest-000000000000"
    for meta in snapshot.segments(game):
        # The embedding of a frame is its digest.
        vectors = snapshot.read_digests(meta).astype(np.float16)
        shape = vectors.shape
        record = EmbeddingMeta(game, meta.segment, model, shape, "float16", meta.frames, 0, 1.0)
        commit_embedding(snapshot.backend, record, vectors)
    snapshot = take_snapshot(snapshot.backend)
    table = flat_map.materialize(snapshot, game, [model], cache=tmp_path / "cache")
    stacks = table.digests[table.stack(table.steps, STACK)]
    following = table.digests[table.stack(table.steps + 1, STACK)]
    rows = table.rows[table.steps]
    assert len(rows) == 2 * each
    assert rows["terminated"].any() or game != "Breakout"
    env = referee(game, max_steps)
    assert tuple(env.unwrapped.get_action_meanings()) == protocol.actions  # type: ignore[attr-defined]
    for i in range(2):
        observation, info = env.reset(seed=7 + i)
        for t in range(i * each, (i + 1) * each):
            assert_shows(observation, stacks[t], f"step {t}")
            assert rows["lives"][t] == info["lives"]
            observation, reward, terminated, truncated, info = env.step(int(rows["action"][t]))
            assert_shows(observation, following[t], f"after step {t}")
            assert reward == rows["reward"][t]
            assert terminated == rows["terminated"][t]
            # TimeLimit calls a game that ends in its last step truncated too; wsa does not.
            assert (truncated and not terminated) == rows["truncated"][t]
            if terminated or truncated:
                observation, info = env.reset()
    env.close()


def assert_shows(stack, digests, where):
    shown = [hashing.frame_digest(frame) for frame in stack]
    assert shown == [digest.tobytes() for digest in digests], where
