"""Collecting play: episodes, segments and their context, resuming, and screens of every kind."""

from __future__ import annotations

import functools
import re
from typing import Any

import msgspec
import numpy as np
import pytest

from wsa.learn.collect.collect import collect, plan_collection
from wsa.learn.collect.recorder import NO_ACTION
from wsa.learn.envs import atari as games
from wsa.store.common import hashing
from wsa.store.common.errors import UsageError
from wsa.store.format.arrays import ROW_FIELDS
from wsa.store.format.stacks import MAX_STACK_FRAMES as STACK
from wsa.store.maintenance.verify import verify
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import take_snapshot
from wsa.store.testing.faults import FaultyBackend


@functools.cache
def stated(game, name="classic", max_steps=27_000, **changes):
    return msgspec.structs.replace(games.protocol(game, name, max_steps=max_steps), **changes)


def plan_for(backend, protocol, game, **options):
    details: dict[str, Any] = {"steps": 120, "num_envs": 2, "seed": 7, "segment_steps": 12}
    return plan_collection(
        take_snapshot(backend), game, protocol, policy="random", **{**details, **options}
    )


def play(folder, protocol, game, **options):
    """Collect into the store at `folder` and open it."""
    backend = open_store(str(folder), create=True)
    collect(plan_for(backend, protocol, game, **options), backend)
    return take_snapshot(backend)


def contents(folder):
    """Every file of the store's objects, by object and name: attempts differ from run to run."""
    paths = [path for path in (folder / "games").rglob("*") if path.is_file()]
    files = {}
    for path in paths:
        name = re.sub("/[0-9a-f]{16}/", "/", path.relative_to(folder).as_posix(), count=1)
        files[name] = path.read_bytes()
    assert len(files) == len(paths), "every attempt is named by a record"
    return files


def committed(snapshot):
    """What the records say, but for who wrote them and when."""
    return {path: (commit.meta, commit.files) for path, commit in snapshot.commits.items()}


class Line:
    """The steps that one environment of a store has played, joined over its segments."""

    def __init__(self, snapshot, game, env):
        self.steps: list[dict[str, Any]] = []
        self.shown = []  # digest of each step's frame
        self.next = []  # and of the one that followed
        for meta in snapshot.segments(game):
            if meta.env != env:
                continue
            assert meta.start == len(self.steps)
            rows = snapshot.read_rows(meta)
            digest = [d.tobytes() for d in snapshot.read_digests(meta)]
            for i in np.flatnonzero(rows["action"] != NO_ACTION):
                self.steps.append({k: rows[k][i].item() for k in ROW_FIELDS if k != "frame"})
                self.shown.append(digest[rows["frame"][i]])
                self.next.append(digest[rows["frame"][i + 1]])


@pytest.fixture(scope="module")
def breakout(tmp_path_factory):
    """Three environments with games that end and games that are cut, in small segments."""
    folder = tmp_path_factory.mktemp("breakout")
    return play(
        folder,
        stated("Breakout", max_steps=150),
        "Breakout",
        steps=598,
        num_envs=3,
        segment_steps=37,
    )


def test_steps_are_as_many_as_requested_and_episodes_are_whole(breakout):
    metas = breakout.segments("Breakout")
    assert sum(meta.steps for meta in metas) == 600  # As many in each of three environments.
    ends = {"terminated": 0, "truncated": 0}
    for env in range(3):
        line = Line(breakout, "Breakout", env)
        assert len(line.steps) == 200
        lengths = []
        returns = []
        length, total = 0, 0.0
        for at, step in enumerate(line.steps):
            assert step["is_first"] == (length == 0) and step["episode"] == len(lengths)
            assert not step["context"]
            length, total = length + 1, total + step["reward"]
            over = step["terminated"] or step["truncated"]
            assert not (step["terminated"] and step["truncated"])
            assert step["truncated"] == (length == 150 and not step["terminated"])
            if not over and at + 1 < len(line.steps):
                assert line.next[at] == line.shown[at + 1]
            if over:
                lengths.append(length)
                returns.append(total)
                ends["terminated"] += step["terminated"]
                ends["truncated"] += step["truncated"]
                length, total = 0, 0.0
        recorded = [e for meta in metas if meta.env == env for e in meta.episodes]
        assert recorded == list(zip(lengths, returns, strict=True))
        assert sum(lengths) + length == len(line.steps)
    assert ends["terminated"] >= 1 and ends["truncated"] >= 1


def test_rows_without_an_action_are_context_ends_and_the_last_of_a_segment(breakout):
    for meta in breakout.segments("Breakout"):
        rows = breakout.read_rows(meta)
        over = rows["terminated"] | rows["truncated"]
        idle = rows["action"] == NO_ACTION
        assert not (rows["context"] & ~idle).any() and not over[idle].any()
        assert (rows["reward"][idle] == 0).all()
        after_end = np.concatenate([[False], over[:-1]])
        last = np.arange(meta.rows) == meta.rows - 1
        np.testing.assert_array_equal(idle, rows["context"] | after_end | last)
        assert idle[-1] and not rows["is_first"][after_end].any()
        assert (rows["lives"][after_end] == 0).all()
        assert meta.rows == meta.steps + idle.sum()
        assert len(set(map(bytes, breakout.read_digests(meta)))) == meta.frames


def test_a_segment_that_begins_inside_an_episode_repeats_its_last_steps_as_context(breakout):
    bridged = set()
    for env in range(3):
        metas = [meta for meta in breakout.segments("Breakout") if meta.env == env]
        line = Line(breakout, "Breakout", env)
        for meta in metas:
            rows = breakout.read_rows(meta)
            digest = breakout.read_digests(meta)[rows["frame"]]
            count = int(rows["context"].sum())
            assert rows["context"][:count].all()
            since = meta.start  # steps of this episode before the cut
            while since and not (
                line.steps[since - 1]["terminated"] or line.steps[since - 1]["truncated"]
            ):
                since -= 1
            assert count == min(STACK - 1, meta.start - since)
            bridged.add(count)
            shown = line.shown[meta.start - count : meta.start]
            assert [d.tobytes() for d in digest[:count]] == shown
            assert rows["is_first"][0] == (meta.start - count == since)
            if count:
                # The segment before it ends with the frame that this one goes on from.
                assert line.next[meta.start - 1] == digest[count].tobytes()
    assert 3 in bridged and 0 in bridged


@pytest.mark.slow
def test_a_segment_may_begin_less_than_three_steps_into_an_episode(tmp_path):
    snapshot = play(
        tmp_path, stated("Pong", max_steps=7), "Pong", steps=60, num_envs=1, segment_steps=5
    )
    counts = [int(snapshot.read_array(m, "context").sum()) for m in snapshot.segments("Pong")]
    # Segments begin at steps 0, 5, 10, ...; episodes at 0, 7, 14, ...
    assert counts == [min(3, start % 7) for start in range(0, 60, 5)]


@pytest.mark.parametrize("name", ["classic", pytest.param("v5", marks=pytest.mark.slow)])
def test_play_does_not_depend_on_environments_and_segments(name, tmp_path):
    protocol = stated("SpaceInvaders", name, max_steps=70)
    game = "SpaceInvaders"
    one = play(tmp_path / "1", protocol, game, steps=150, num_envs=1, segment_steps=150)
    three = play(tmp_path / "3", protocol, game, steps=450, num_envs=3, segment_steps=41)
    alone, beside = Line(one, game, 0), Line(three, game, 0)
    assert alone.steps == beside.steps
    assert alone.shown == beside.shown and alone.next == beside.next
    assert Line(three, game, 1).shown != beside.shown
    played = [step for env in range(3) for step in Line(three, game, env).steps]
    assert max(step["reward"] for step in played) > 1  # Raw.


class Interrupted(Exception):
    pass


def interrupt_after(calls):
    left = iter(range(calls))

    def on_steps(done, total):
        assert 0 <= done <= total
        if next(left, None) is None:
            raise Interrupted

    return on_steps


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A store collected in one go: its files and records."""
    folder = tmp_path_factory.mktemp("whole")
    snapshot = play(folder, stated("Pong", "v5"), "Pong")
    return contents(folder), committed(snapshot)


@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=pytest.mark.slow) for s in (1, 2))])
def test_an_interrupted_collection_resumes_with_the_same_frames(seed, tmp_path, whole):
    generator = np.random.default_rng(seed)
    backend = open_store(str(tmp_path), create=True)
    for calls in [*generator.integers(0, 9, size=3), 99]:
        plan = plan_for(backend, stated("Pong", "v5"), "Pong")
        if calls == 99 or plan.missing == 0:
            collect(plan, backend)
        else:
            with pytest.raises(Interrupted):
                # The fewer segments are missing, the fewer times it is called.
                collect(plan, backend, interrupt_after(min(calls, plan.missing // 12)))
    assert plan_for(backend, stated("Pong", "v5"), "Pong").missing == 0
    assert (contents(tmp_path), committed(take_snapshot(backend))) == whole


def full_after(backend, files):
    """A store that is full after so many files."""
    return FaultyBackend(
        backend, lambda call: "full" if call.verb == "put_new" and call.nth >= files else None
    )


def test_repeating_a_collection_writes_nothing_and_more_steps_extend_it(tmp_path):
    protocol = stated("Breakout", max_steps=40)
    first = play(tmp_path / "a", protocol, "Breakout", steps=80, segment_steps=25)
    before = contents(tmp_path / "a")
    full = full_after(first.backend, 0)
    assert collect(plan_for(full, protocol, "Breakout", steps=80, segment_steps=25), full) == []
    assert collect(plan_for(full, protocol, "Breakout", steps=59, segment_steps=8), full) == []
    longer = plan_for(full, protocol, "Breakout", steps=160, segment_steps=30)
    assert longer.pieces == (((40, 30), (70, 10)),) * 2
    more = play(tmp_path / "a", protocol, "Breakout", steps=160, segment_steps=30)
    assert before.items() <= contents(tmp_path / "a").items()
    assert committed(first).items() <= committed(more).items()
    once = play(tmp_path / "b", protocol, "Breakout", steps=160, segment_steps=160)
    for env in range(2):
        extended, whole = Line(more, "Breakout", env), Line(once, "Breakout", env)
        assert vars(extended) == vars(whole)
    assert verify(more.backend).damage == ()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("steps", 0),
        ("num_envs", 0),
        ("num_envs", 1000),
        ("segment_steps", 0),
        ("segment_steps", 65537),
        ("seed", -1),
    ],
)
def test_bad_options_are_refused_before_anything_is_played(option, value, tmp_path):
    backend = open_store(str(tmp_path), create=True)
    options: dict[str, Any] = {"steps": 9, "num_envs": 1, "segment_steps": 9, "seed": 0}
    options = {"policy": "random", **options, option: value}
    with pytest.raises(UsageError, match=option.replace("_", "-")):
        plan_collection(take_snapshot(backend), "Pong", stated("Pong"), **options)


def check_screens(folder, game, steps):
    """Collect a game and compare every stored frame with its digest."""
    snapshot = play(
        folder, games.protocol(game, "classic"), game, steps=steps, num_envs=1, segment_steps=999
    )
    (meta,) = snapshot.segments(game)
    (of,) = snapshot.frames(game)
    assert (of.height, of.width) == games.screen(game) and of.frames == meta.frames
    digests = [hashing.frame_digest(frame) for frame in snapshot.read_frames(meta)]
    assert digests == [d.tobytes() for d in snapshot.read_digests(meta)]
    return of


def test_a_game_of_250_rows(tmp_path):
    assert check_screens(tmp_path, "Adventure", 40).height == 250


def test_a_game_of_more_than_256_colors_is_kept_as_rgb(tmp_path):
    assert not check_screens(tmp_path, "JourneyEscape", 200).indexed


@pytest.mark.slow
@pytest.mark.parametrize("game", list(games.games()))
def test_every_game(game, tmp_path):
    check_screens(tmp_path, game, 40)
