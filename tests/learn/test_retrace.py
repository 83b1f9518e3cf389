"""Replaying stored play to read the emulator's memory, and what cannot be replayed."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from learn_kit import collect_play

from wsa.learn.collect.collect import CollectPlan
from wsa.learn.envs import atari as games
from wsa.learn.online import env_runner
from wsa.learn.online.env_runner import EnvRunner, is_online, online_policy, stretch_seed
from wsa.learn.online.record_segments import Recording
from wsa.learn.probe import ram_labels
from wsa.learn.probe.ram_replay import describe_failures, memories
from wsa.store.common import names
from wsa.store.common.errors import UsageError
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import Snapshot, take_snapshot


@pytest.fixture(scope="module")
def breakout(tmp_path_factory):
    """Episodes that are truncated, with no-ops and FIRE at a reset, in several segments."""
    backend = open_store(str(tmp_path_factory.mktemp("breakout")), create=True)
    protocol = games.protocol("Breakout", "classic", max_steps=100)
    return collect_play(backend, protocol, steps=340, seed=3, segment_steps=40)


def read(snapshot, found, game, name):
    """A variable at every step, and the rows, joined over the segments."""
    values, rows = [], []
    for meta in snapshot.segments(game):
        own = snapshot.read_rows(meta)
        steps = own["action"] >= 0
        values.append(ram_labels.read(game, found[meta.segment])[name][steps])
        rows.append({field: column[steps] for field, column in own.items() if field != "digest"})
    joined = {field: np.concatenate([one[field] for one in rows]) for field in rows[0]}
    return np.concatenate(values).astype(int), joined


def test_memory_is_that_of_each_frame(breakout):
    steps = []
    found, failed = memories(breakout, breakout.segments("Breakout"), steps.append)
    assert not failed and describe_failures(failed) == ""
    assert steps == np.cumsum([m.steps for m in breakout.segments("Breakout")]).tolist()
    lives, rows = read(breakout, found, "Breakout", "lives")
    assert len(set(lives)) > 1 and rows["truncated"].any()
    assert (lives == rows["lives"]).all()


def test_sticky_actions_repeat_as_they_did(tmp_path):
    backend = open_store(str(tmp_path / "store"), create=True)
    protocol = games.protocol("Pong", "v5")
    snapshot = collect_play(backend, protocol, "Pong", steps=200, seed=3)
    found, failed = memories(snapshot, snapshot.segments("Pong"))
    assert not failed
    enemy, rows = read(snapshot, found, "Pong", "enemy score")
    player, _ = read(snapshot, found, "Pong", "player score")
    # The score follows the reward after a few frames.
    earned = rows["reward"].astype(int)
    assert earned.any()
    per_env = 100
    for env in range(2):
        at = slice(env * per_env, (env + 1) * per_env - 5)
        balance = (player - enemy)[env * per_env + 5 : (env + 1) * per_env]
        assert set((balance - np.cumsum(earned[at])).tolist()) <= {-1, 0, 1}


def change_actions(snapshot, monkeypatch, segment):
    """Change what a segment says its actions were."""
    honest = Snapshot.read_rows

    def read_rows(self, meta):
        rows = honest(self, meta)
        if meta.segment == segment:
            rows["action"] = np.where(rows["action"] >= 0, 3 - rows["action"], -1)
        return rows

    monkeypatch.setattr(Snapshot, "read_rows", read_rows)


def test_a_segment_that_replays_differently_is_reported(breakout, monkeypatch):
    segments = breakout.segments("Breakout")
    own = [m for m in segments if m.env == 0]
    change_actions(breakout, monkeypatch, own[1].segment)
    found, failed = memories(breakout, segments)
    assert set(found) == {m.segment for m in segments if m.env == 1} | {own[0].segment}
    assert set(failed) == {m.segment for m in own[1:]}
    (said,) = set(failed.values())
    assert f"of {own[1].segment}" in said and "plays differently" in said
    assert describe_failures(failed).startswith(f"left out because {said}: {own[1].segment}, ")


def test_a_segment_whose_beginning_is_missing_is_reported(breakout):
    first, *others = [m for m in breakout.segments("Breakout") if m.env == 0]
    path = names.segment_path("Breakout", first.segment)
    rest = Snapshot(breakout.backend, {p: c for p, c in breakout.commits.items() if p != path})
    found, failed = memories(rest, others)
    assert not found
    assert set(failed.values()) == {"the store lacks the 40 steps before it"}


def test_play_of_another_emulator_is_reported(breakout):
    commits = {
        path: msgspec.structs.replace(
            commit, meta=msgspec.structs.replace(commit.meta, emulator=("unknown", "unknown"))
        )
        if hasattr(commit.meta, "emulator")
        else commit
        for path, commit in breakout.commits.items()
    }
    other = Snapshot(breakout.backend, commits)
    _, failed = memories(other, other.segments("Breakout")[:1])
    assert list(failed.values()) == ["another emulator played it (unknown unknown)"]


class NoTable:
    """A table of embeddings that keeps nothing."""

    longest = 1

    def __len__(self):
        return 0

    def see(self, seen):
        return np.zeros(len(seen), np.int64)


def test_an_online_run_is_replayed_stretch_by_stretch(tmp_path, monkeypatch):
    for module in ("online.env_runner", "probe.ram_replay"):
        monkeypatch.setattr(f"wsa.learn.{module}.STRETCH", 25)
    assert env_runner.STRETCH == 25
    backend = open_store(str(tmp_path / "store"), create=True)
    stated = games.protocol("Breakout", "classic", max_steps=20)
    table: Any = NoTable()
    plan = CollectPlan("Breakout", stated, online_policy("ppo"), 5, "ab" * 6, 2, 120)
    recording = Recording(backend, plan, table, [])
    env = games.make_env("Breakout", stated, 2)
    played = EnvRunner([env], table, 4, 5, recording)
    generator = np.random.default_rng(0)
    played.begin()
    for _ in range(60):
        played.step(generator.integers(4, size=2))
    recording.flush()
    recording.close()
    env.close()
    snapshot = take_snapshot(backend)
    found, failed = memories(snapshot, snapshot.segments("Breakout"))
    assert not failed
    lives, rows = read(snapshot, found, "Breakout", "lives")
    assert len(lives) == 120 and (lives == rows["lives"]).all()
    assert is_online("online ppo") and not is_online("random")
    assert stretch_seed(5, 1, 0) == 6 and stretch_seed(5, 1, 1) != stretch_seed(5, 1, 2)


def test_a_ball_is_absent_where_the_screen_does_not_show_it(breakout):
    found, _ = memories(breakout, breakout.segments("Breakout"))
    there, not_there = 0, 0
    for meta in breakout.segments("Breakout"):
        rows = breakout.read_rows(meta)
        steps = np.flatnonzero(rows["action"] >= 0)
        memory = found[meta.segment][steps]
        screens = breakout.read_frames(meta)[rows["frame"][steps]]
        # Below the bricks, above the paddle, between the walls.
        red = (screens[:, 93:188, 8:152] == [200, 72, 72]).all(axis=-1).any(axis=(1, 2))
        shown = ram_labels.on_screen("Breakout", memory)
        assert (shown["ball x"] == shown["ball y"]).all()
        assert shown["player x"].all() and shown["score"].all()
        assert not red[~shown["ball y"]].any()
        height = ram_labels.read("Breakout", memory)["ball y"]
        below = (height > 120) & (height < 180)
        assert red[below].all()
        there, not_there = there + below.sum(), not_there + (~shown["ball y"]).sum()
    assert there > 10 and not_there > 10


def test_only_objects_with_positions_can_be_absent():
    for game, rules in ram_labels.ABSENT.items():
        places = [name for name in ram_labels.variables(game) if ram_labels.is_position(name)]
        assert rules.keys() <= {ram_labels.object_of(name) for name in places}
        for rule in rules.values():
            assert rule.byte in ram_labels.variables(game).values()
            assert rule.values and all(0 <= value < 256 for value in rule.values)
    assert list(ram_labels.ABSENT) == sorted(ram_labels.ABSENT)
    assert not ram_labels.is_position("score") and not ram_labels.is_position("left flipper")


def test_annotated_variables_are_distinct_bytes_of_known_games():
    for game, variables in ram_labels.VARIABLES.items():
        assert games.check_game(game) == game
        assert all(0 <= byte < 128 for byte in variables.values())
        assert len(set(variables.values())) == len(variables)
    assert list(ram_labels.VARIABLES) == sorted(ram_labels.VARIABLES)
    with pytest.raises(UsageError, match=r"did you mean Pong\?.*--target reward"):
        ram_labels.variables("Pooong")
