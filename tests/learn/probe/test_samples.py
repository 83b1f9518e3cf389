"""Steps that probes use: which segments and steps are drawn, their labels, and their splits."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from wsa.learn.probe.samples import choose, draw, is_better, max_drawn
from wsa.learn.probe.targets import action_target, horizons_of, reward_target
from wsa.store.common.errors import MissingError, UsageError
from wsa.store.objects.snapshot import take_snapshot
from wsa.store.objects.writer import commit_segment
from wsa.store.testing.faults import MemoryBackend

TRAINED_RUN = "0123456789ac"


@pytest.fixture
def store(in_memory):
    return in_memory


def add_trained_play(kit, store, number, **options):
    meta, arrays = kit.fake_segment(number, run=TRAINED_RUN, **options)
    commit_segment(store, msgspec.structs.replace(meta, policy="ppo 0123 eps 0.2"), arrays)


@pytest.fixture(scope="module")
def both_kinds(kit):
    """Four segments of random play, and three of better play, in episodes of five steps."""
    store = MemoryBackend()
    store.put_new("wsa.json", b'{"format":1}')
    options: dict[str, Any] = {"steps": 60, "ends": tuple(range(4, 60, 5))}
    for number in range(4):
        kit.add_segment(store, number, **options)
    for number in range(3):
        add_trained_play(kit, store, number, **options)
    return take_snapshot(store)


def draw_actions(snapshot, samples=300, seed=1):
    return draw(snapshot, snapshot.segments(), action_target, samples, 5, seed)


def test_an_episode_is_in_one_part_of_a_split(both_kinds):
    segments = [meta for meta in both_kinds.segments() if not is_better(meta)]
    sampled = draw(both_kinds, segments, action_target, 200, 5, 1)
    episodes = np.concatenate(
        [
            1000 * number + both_kinds.read_rows(meta)["episode"][rows]
            for number, (meta, rows) in enumerate(zip(sampled.segments, sampled.rows, strict=True))
        ]
    )
    assert sampled.groups.unit == "episodes"
    assert (len(sampled), len(sampled.splits)) == (200, 5)
    for split in sampled.splits:
        fit, check, test = (set(episodes[part]) for part in (split.fit, split.check, split.test))
        assert fit and check and test and not fit & check and not test & (fit | check)
        assert len(split.test) == pytest.approx(40, abs=10)
        assert len(split.check) == pytest.approx(40, abs=10)
    times_tested = np.bincount(np.concatenate([split.test for split in sampled.splits]))
    assert times_tested.max() == 1


def test_random_and_better_play_have_equal_shares_in_every_split(both_kinds):
    sampled = draw_actions(both_kinds, 200)
    assert sampled.better.sum() == 100 and len(sampled) == 200
    expected = np.repeat([is_better(m) for m in sampled.segments], list(map(len, sampled.rows)))
    assert (expected == sampled.better).all()
    assert (sampled.groups.better[sampled.groups.of] == sampled.better).all()
    for split in sampled.splits:
        for part in (split.fit, split.check, split.test):
            assert 0.3 < sampled.better[part].mean() < 0.7
        across = split.across(sampled.better)
        assert not sampled.better[across.train].any() and sampled.better[across.test].all()
        assert set(across.test) < set(split.test) and set(across.fit) < set(split.fit)
    every_step = draw_actions(both_kinds, 10_000)
    assert max_drawn(both_kinds.segments(), 10_000) == 7 * 60 == len(every_step)
    assert max_drawn(both_kinds.segments(), 200) == 200


def test_segments_of_random_and_of_better_play_are_chosen(kit, both_kinds):
    chosen = choose(both_kinds, kit.GAME, [], (), 240)
    assert [is_better(meta) for meta in chosen] == [False, False, True, True]
    assert len(choose(both_kinds, kit.GAME, [], ("random",), 240)) == 4


def test_segments_that_every_model_has_encoded_are_chosen(kit, store):
    metas = []
    for number in range(3):
        meta, _ = kit.add_segment(store, number, steps=10)
        metas.append(meta)
        for alias in ("lite0", "vit")[: 1 + (number < 2)]:
            kit.add_embedding(store, meta, kit.key(alias))
    snapshot = take_snapshot(store)
    both = [kit.key("lite0"), kit.key("vit")]
    assert choose(snapshot, kit.GAME, both, (), 1000) == metas[:2]
    assert choose(snapshot, kit.GAME, both[:1], (), 1000) == metas
    assert choose(snapshot, kit.GAME, both, (), 5) == metas[:1]
    with pytest.raises(MissingError, match="played by expert"):
        choose(snapshot, kit.GAME, both, ("expert",), 1000)


def test_a_policy_that_only_explores_plays_at_random(kit):
    meta, _ = kit.fake_segment()
    policies = ("random", "ppo 01ab eps 1", "ppo 01ab eps 0.1", "online ppo", "expert")
    better = [is_better(msgspec.structs.replace(meta, policy=policy)) for policy in policies]
    assert better == [False, False, True, True, True]


def test_no_frame_of_training_is_tested(kit, store):
    for number in range(4):
        kit.add_segment(store, number, steps=40, ends=tuple(range(3, 40, 4)), frames=20)
    snapshot = take_snapshot(store)
    sampled = draw_actions(snapshot, 120)
    digests = [
        digest.tobytes()
        for meta, frames in zip(sampled.segments, sampled.frames, strict=True)
        for digest in snapshot.read_digests(meta)[frames]
    ]
    for split in sampled.splits:
        trained = {digests[i] for i in split.train}
        assert len(split.test) and not trained & {digests[i] for i in split.test}
    again, other = draw_actions(snapshot, 120), draw_actions(snapshot, 120, seed=2)
    assert [r.tolist() for r in again.rows] == [r.tolist() for r in sampled.rows]
    assert [r.tolist() for r in other.rows] != [r.tolist() for r in sampled.rows]


def test_few_episodes_are_split_by_segment(kit, store):
    for number in range(2):
        kit.add_segment(store, number, steps=40, cut=number > 0)
    with pytest.raises(MissingError, match=r"2 segments of random play in .* 3 episodes"):
        draw_actions(take_snapshot(store))
    for number in range(2, 4):
        kit.add_segment(store, number, steps=40, cut=True)
    sampled = draw_actions(take_snapshot(store))
    assert (sampled.groups.unit, len(sampled.groups)) == ("segments", 4)
    assert len(sampled.splits) == 4  # Not five.
    for number in range(3):
        add_trained_play(kit, store, number, steps=40, ends=(9, 19, 29))
    sampled = draw_actions(take_snapshot(store))
    assert sampled.groups.unit == "episodes and segments"


def test_labels_are_the_signs_of_the_rewards_ahead():
    #                   first episode, ends | second, continues in another segment
    rows = {
        "action": np.array([0, 1, 0, -1, 2, 0, 0, -1]),
        "reward": np.array([0, 5, -1, 9, 0, 0, -2, 9], np.float32),
        "terminated": np.array([0, 0, 1, 0, 0, 0, 0, 0], np.bool_),
        "truncated": np.zeros(8, np.bool_),
    }
    meta: Any = None
    labeled, target, shown = reward_target((1, 2))(meta, rows)
    steps = rows["action"] >= 0
    assert labeled[steps].tolist() == [True, True, True, True, True, False]
    assert target["next step"][steps].tolist() == [0, 1, -1, 0, 0, -1]
    assert target["next 2 steps"][steps][:5].tolist() == [1, 1, -1, 0, -1]
    assert all(of.all() for of in shown.values())


@pytest.mark.parametrize("words", [(), ("x",), ("0",), ("1001",), ("-1",)])
def test_horizons_are_numbers(words):
    with pytest.raises(UsageError, match="give numbers of steps from 1 to 1000"):
        horizons_of(words)
    assert horizons_of(("10", "1", "10")) == (10, 1)
