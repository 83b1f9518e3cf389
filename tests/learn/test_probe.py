"""Moments, splits and answers of probes, and that they rank what knows above what does not."""

from __future__ import annotations

import dataclasses
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from wsa.learn.probe import samples as probe_data
from wsa.learn.probe.probe import FLOOR, Judged, Score, probe, varying
from wsa.learn.probe.samples import (
    Moments,
    action_target,
    choose,
    draw,
    embeddings,
    horizons_of,
    reward_target,
)
from wsa.store.backends.base import Backend
from wsa.store.common.errors import MissingError, UsageError
from wsa.store.format.records import EmbeddingMeta
from wsa.store.objects.snapshot import Snapshot, take_snapshot
from wsa.store.objects.writer import commit_embedding


@pytest.fixture
def told(kit: ModuleType, store: Backend) -> Snapshot:
    """Episodes of five steps; `lite0` tells what the step earns, and `vit` nothing."""
    for number in range(4):
        meta, arrays = kit.add_segment(store, number, steps=60, ends=tuple(range(4, 60, 5)))
        assert (arrays["frame"] == np.arange(meta.rows)).all()
        known = np.eye(3, dtype=np.float16)[arrays["reward"].astype(int) + 1]
        about = EmbeddingMeta(
            meta.game, meta.segment, kit.key("lite0"), known.shape, "float16", len(known), 0, 1.0
        )
        commit_embedding(store, about, known)
        kit.add_embedding(store, meta, kit.key("vit"), shape=(2, 2))
    return take_snapshot(store)


def drawn(snapshot: Snapshot, game: str, target: Any, samples: int = 300, seed: int = 1) -> Moments:
    return draw(snapshot, snapshot.segments(game), target, samples, seed)


def test_what_knows_is_ranked_above_noise(kit: ModuleType, told: Snapshot) -> None:
    moments = drawn(told, kit.GAME, reward_target((1, 2)))
    target, left_out = varying(moments, 0)
    assert not left_out and list(target) == ["next step", "next 2 steps"]
    models = {kit.key("vit"): "noise", kit.key("lite0"): "known"}
    done: list[tuple[int, int]] = []
    lines = probe(
        told,
        kit.GAME,
        models,
        moments,
        target,
        ordered=True,
        pixels=False,
        on_row=lambda *how: done.append(how),
    )
    assert done == [(1, 2), (2, 2)]
    floor, known, noise = lines
    assert (floor.name, known.name, noise.name) == (FLOOR, "known", "noise")
    assert (known.numbers, noise.numbers) == (3, 4)
    assert dataclasses.astuple(known.scores["next step"]) == pytest.approx((1, 1, 1), abs=1e-3)
    assert 0.2 < (known.scores["next 2 steps"].r2 or 0) < 0.9
    for line in (floor, noise):
        score = line.scores["next step"]
        assert score.f1 < 0.6 and (score.r2 or 0) < 0.1


def test_actions_have_no_order(kit: ModuleType, told: Snapshot) -> None:
    moments = drawn(told, kit.GAME, action_target)
    (_, known) = probe(
        told, kit.GAME, {kit.key("lite0"): "known"}, moments, moments.target,
        ordered=False, pixels=False,
    )  # fmt: skip
    assert known.scores["action"].r2 is None and known.mean("r2") is None
    assert known.scores["action"].f1 < 0.6  # It was played at random.


def test_an_episode_is_learned_from_or_judged(kit: ModuleType, told: Snapshot) -> None:
    moments = drawn(told, kit.GAME, action_target, 200)
    whose = np.concatenate(
        [
            1000 * number + told.read_rows(meta)["episode"][rows]
            for number, (meta, rows) in enumerate(zip(moments.segments, moments.rows, strict=True))
        ]
    )
    split = moments.split
    parts = [set(whose[part].tolist()) for part in (split.fit, split.check, split.test)]
    assert all(parts) and not parts[0] & parts[1] and not parts[2] & (parts[0] | parts[1])
    assert moments.groups[0] == "episodes" and len(moments) == 200
    assert len(split.test) == pytest.approx(40, abs=10)
    assert len(split.check) == pytest.approx(20, abs=10)


def test_what_was_seen_in_training_is_not_judged(kit: ModuleType, store: Backend) -> None:
    ends = tuple(range(3, 60, 4))
    for number in range(4):
        kit.add_segment(store, number, steps=60, ends=ends, frames=30)
    snapshot = take_snapshot(store)
    moments = drawn(snapshot, kit.GAME, action_target, 200)
    digests = np.concatenate(
        [
            snapshot.read_digests(meta)[frames]
            for meta, frames in zip(moments.segments, moments.frames, strict=True)
        ]
    )
    shown = [digest.tobytes() for digest in digests]
    learned = {shown[i] for i in moments.split.train}
    assert len(moments.split.test) and not learned & {shown[i] for i in moments.split.test}
    again = drawn(snapshot, kit.GAME, action_target, 200)
    other = drawn(snapshot, kit.GAME, action_target, 200, seed=2)
    assert [r.tolist() for r in again.rows] == [r.tolist() for r in moments.rows]
    assert [r.tolist() for r in other.rows] != [r.tolist() for r in moments.rows]


def test_few_episodes_are_split_by_segment(kit: ModuleType, store: Backend) -> None:
    for number in range(2):
        kit.add_segment(store, number, steps=40, cut=number > 0)
    with pytest.raises(MissingError, match=r"2 segments of .* three episodes or segments"):
        drawn(take_snapshot(store), kit.GAME, action_target)
    for number in range(2, 4):
        kit.add_segment(store, number, steps=40, cut=True)
    moments = drawn(take_snapshot(store), kit.GAME, action_target)
    assert moments.groups == ("segments", 4)


def test_the_sign_of_what_is_earned_next() -> None:
    #                   first episode, ends | second, goes on in another segment
    rows = {
        "action": np.array([0, 1, 0, -1, 2, 0, 0, -1]),
        "reward": np.array([0, 5, -1, 9, 0, 0, -2, 9], np.float32),
        "terminated": np.array([0, 0, 1, 0, 0, 0, 0, 0], np.bool_),
        "truncated": np.zeros(8, np.bool_),
    }
    meta: Any = None
    answered, target = reward_target((1, 2))(meta, rows)
    steps = rows["action"] >= 0
    assert answered[steps].tolist() == [True, True, True, True, True, False]
    assert target["next step"][steps].tolist() == [0, 1, -1, 0, 0, -1]
    assert target["next 2 steps"][steps][:5].tolist() == [1, 1, -1, 0, -1]


@pytest.mark.parametrize("words", [(), ("x",), ("0",), ("1001",), ("-1",)])
def test_horizons_are_numbers(words: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="give numbers of steps from 1 to 1000"):
        horizons_of(words)
    assert horizons_of(("10", "1", "10")) == (10, 1)


def test_the_embedding_is_that_of_the_step(kit: ModuleType, store: Backend) -> None:
    """A frame's for models of one frame, a row's for those of several."""
    stored = {}
    for number in range(3):
        meta, _ = kit.add_segment(store, number, steps=30, ends=(4, 9, 20), frames=12)
        for alias, window in (("lite0", 1), ("stacked", 4)):
            stored[meta.segment, alias] = kit.add_embedding(
                store, meta, kit.key(alias), shape=(2, 3), window=window
            )
    snapshot = take_snapshot(store)
    moments = drawn(snapshot, kit.GAME, action_target, 50)
    for alias in ("lite0", "stacked"):
        found = embeddings(snapshot, kit.GAME, kit.key(alias), moments)
        expected = [
            stored[meta.segment, alias][snapshot.read_rows(meta)["frame"][row] if alias == "lite0" else row]
            for meta, rows in zip(moments.segments, moments.rows, strict=True)
            for row in rows
        ]  # fmt: skip
        assert (found == np.stack(expected).reshape(50, 6)).all()


def test_only_what_all_models_have_encoded(kit: ModuleType, store: Backend) -> None:
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


def test_pixels_are_grey_and_no_more_than_asked_for(kit: ModuleType, store: Backend) -> None:
    for number in range(3):
        kit.add_segment(store, number, steps=20, ends=(5, 11))
    snapshot = take_snapshot(store)
    moments = drawn(snapshot, kit.GAME, action_target, 40)
    shown = probe_data.pixels(snapshot, moments, 20)
    assert shown.shape == (40, 20) and shown.dtype == np.uint8 and shown.std() > 0


def test_variables_that_hardly_vary_are_left_out(kit: ModuleType, told: Snapshot) -> None:
    moments = drawn(told, kit.GAME, action_target)
    moments.target["still"] = np.zeros(len(moments), np.int64)
    target, left_out = varying(moments, 0.6)
    assert list(target) == ["action"] and left_out == {"still": 0.0}
    assert not varying(moments, 5.0)[0]


def test_a_mean_counts_nothing_below_nothing() -> None:
    scores = {"a": Score(0.5, 0.25, -3.0), "b": Score(1.0, 0.75, 0.5), "c": Score(0.0, 0.5, None)}
    line = Judged("vit", "", 8, 1.0, scores)
    assert (line.mean("f1"), line.mean("f1_macro"), line.mean("r2")) == (0.5, 0.5, 0.25)
    assert line.summary()["mean_r2"] == 0.25
