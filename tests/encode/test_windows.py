"""Models that look at several frames: encoded, looked up and run live, on a real game."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from wsa.encode.inference.encoder import Encoder, stored
from wsa.encode.inference.preprocess import preprocess
from wsa.encode.jobs import tasks
from wsa.encode.jobs.plan import make_plan
from wsa.encode.jobs.run import encode
from wsa.encode.live.live_encoder import LiveEncoder
from wsa.encode.models.registry import Request
from wsa.encode.registration import identity, probe_frames, register
from wsa.encode.registration.register import open_model
from wsa.learn.collect.collect import collect, plan_collection
from wsa.learn.envs import atari as games
from wsa.store.backends.base import Backend
from wsa.store.common import hashing, names
from wsa.store.common.errors import ConflictError, UsageError
from wsa.store.format.records import Commit, EmbeddingMeta, Meta, SegmentMeta
from wsa.store.maintenance.verify import verify
from wsa.store.objects import flat_map
from wsa.store.objects.model_spec import Preprocessing
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import Snapshot, take_snapshot

Ask = Callable[..., Request]
Frames = NDArray[np.uint8]
Stacked = Callable[..., Request]


@pytest.fixture(autouse=True)
def _fresh_workers() -> None:
    tasks._models.clear()


def play(backend: Backend, steps: int, game: str = "Breakout", seed: int = 1) -> None:
    """Play a little, in segments of 24 steps that are cut inside episodes."""
    protocol = games.protocol(game, "classic", max_steps=40)
    plan = plan_collection(
        take_snapshot(backend), game, protocol,
        steps=steps, num_envs=2, policy="random", seed=seed, segment_steps=24,
    )  # fmt: skip
    collect(plan, backend)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that has been played into."""
    store = open_store(str(tmp_path_factory.mktemp("template") / "store"), create=True)
    play(store, 144)
    assert any(snap.read_array(m, "context").any() for snap, m in segments(store))
    return Path(store.url)


@pytest.fixture
def played(template: Path, tmp_path: Path) -> Backend:
    """A store like it."""
    shutil.copytree(template, tmp_path / "played", copy_function=os.link)
    return open_store(str(tmp_path / "played"))


def segments(backend: Backend, game: str | None = None) -> list[tuple[Snapshot, SegmentMeta]]:
    snapshot = take_snapshot(backend)
    return [(snapshot, meta) for meta in snapshot.segments(game)]


def windows_of(snapshot: Snapshot, meta: SegmentMeta, kit: ModuleType, window: int) -> Frames:
    """Every row's window, (rows, window, H, W, 3), built the plain way."""
    rows = snapshot.read_rows(meta)
    shown = snapshot.read_frames(meta)[rows["frame"]]
    whole: Frames = shown[np.array(kit.window_of(rows, window))]
    return whole


def run(backend: Backend, *requests: Request, **more: Any) -> Any:
    return encode(backend, requests, (), scheduler="inproc", device="cpu", **more)


def test_preprocessing_folds_a_window_into_channels(frames: Frames) -> None:
    how = Preprocessing("squash", 64, 48, "bilinear", (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    window = torch.from_numpy(frames[:8].reshape(2, 4, *frames.shape[1:]))
    found = preprocess(window, how)
    assert found.shape == (2, 12, 64, 48)
    assert found.is_contiguous(memory_format=torch.channels_last)
    for one, of in zip(found, window, strict=True):
        assert torch.equal(one, preprocess(of, how).flatten(0, 1))


@pytest.mark.usefixtures("whole_strip")
@pytest.mark.parametrize("window", [2, 4])
def test_probe_windows_are_pairs_of_consecutive_steps(window: int, frames: Frames) -> None:
    shown = probe_frames.probe_inputs(window)
    assert shown.shape == (16, window, *frames.shape[1:])
    for pair, (a, b) in enumerate(frames.reshape(8, 2, *frames.shape[1:])):
        assert (shown[2 * pair] == a).all() and (shown[2 * pair + 1, :-1] == a).all()
        assert (shown[2 * pair + 1, -1] == b).all() and (a != b).any()


@pytest.mark.parametrize("window", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 4))])
def test_each_distinct_window_goes_through_the_model_once(
    window: int, played: Backend, stacked: Stacked, kit: ModuleType
) -> None:
    request = stacked(window)
    seen: set[bytes] = set()
    key = ""
    for turn in range(2):
        before = len(seen)
        for snapshot, meta in segments(played)[:: -1 if turn else 1]:
            digests = snapshot.read_digests(meta)[snapshot.read_rows(meta)["frame"]]
            of = kit.window_of(snapshot.read_rows(meta), window)
            seen |= {hashing.window_digest(digests[rows].tobytes()) for rows in of}
        report = run(played, request)
        assert report.passes == len(seen) - before
        (key,) = (model.spec.key for model in report.models)
        written = {(e.game, e.segment) for e in report.done}
        rows = sum(m.rows for _, m in segments(played) if (m.game, m.segment) in written)
        assert report.copied == rows - report.passes > 0
        play(played, 48, seed=5)
        play(played, 48, "Pong")
    assert not verify(played).damage
    encoder = open_model(take_snapshot(played), key)
    for snapshot, meta in segments(played):
        path = names.embedding_path(meta.game, key, meta.segment)
        if path not in snapshot.commits:
            continue  # Played after the last encoding.
        found = snapshot.read_embedding(meta.game, key, meta.segment)
        about = snapshot.commit(path).meta
        assert isinstance(about, EmbeddingMeta) and about.window == window
        assert about.passes + about.copied == len(found) == meta.rows
        wanted = stored(encoder(windows_of(snapshot, meta, kit, window)))
        np.testing.assert_array_equal(found, wanted)


def test_a_dry_run_plans_what_is_then_done(
    played: Backend, stacked: Stacked, estimated: Any
) -> None:
    said = estimated(take_snapshot(played), stacked(4), ["Breakout"])
    report = run(played, stacked(4))
    assert (said.objects, said.passes, said.copies) == (
        len(report.done), report.passes, report.copied,
    )  # fmt: skip
    shape = report.models[0].spec.shape
    assert said.bytes == 2 * np.prod(shape) * sum(m.rows for _, m in segments(played))
    again = estimated(take_snapshot(played), stacked(4), ["Breakout"])
    assert (again.objects, again.passes, again.bytes) == (0, 0, 0)


def test_a_reduced_output_is_fitted_on_windows(
    store: Backend, stacked: Stacked, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = probe_frames.load_frames()[:6]
    monkeypatch.setattr(probe_frames, "load_frames", lambda: some)
    made = register.register(take_snapshot(store), stacked(4, "grid:2+pca:16"), 0.1)
    assert made.fitted == 48 and made.spec.shape == (16,) and made.spec.identity.window == 4
    again = register.register(take_snapshot(store), stacked(4, "grid:2+pca:16"), 0.1)
    assert again.fitted == 0 and again.spec == made.spec
    encoder = open_model(take_snapshot(store), made.spec.key)
    shown = probe_frames.probe_inputs(4)
    assert encoder(shown).shape == (len(shown), 16)


def test_a_lost_model_comes_back_only_if_its_windows_fit(
    played: Backend, stacked: Stacked, monkeypatch: pytest.MonkeyPatch
) -> None:
    (key,) = (m.spec.key for m in run(played, stacked(4)).models)
    record = names.commit_path(hashing.object_id(names.model_path(key)))
    played.delete(record)
    real = Encoder.__call__

    def other(self: Encoder, shown: Frames) -> NDArray[np.float32]:
        return real(self, shown)[..., ::-1].copy()

    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "__call__", other)
        with pytest.raises(ConflictError, match="has lost its record"):
            run(played, stacked(4))
    assert played.stat(record) is None
    assert run(played, stacked(4)).passes == 0


@pytest.mark.parametrize("window", [0, 5, "4", None])
def test_a_window_that_segments_cannot_serve_is_refused(window: Any, stacked: Stacked) -> None:
    network: Any = torch.nn.Module()
    network.window = window
    with pytest.raises(UsageError, match="from 1 to 4"):
        identity._window(network, stacked(4))


# Live.


class Table:
    """A flat map of some models, as if the store had none of their embeddings."""

    def __init__(self, known: flat_map.FlatMap) -> None:
        self.models, self.windows = known.models, known.windows
        self.columns, self.places = known.columns, known.places
        self.width, self.window_width = known.width, known.window_width
        self.embeddings, self.windowed = known.embeddings[:0], known.windowed[:0]
        self.digests = np.zeros((0, 16), np.uint8)

    def window_digests(self, window: int) -> NDArray[np.uint8]:
        return self.digests


def lines(snapshot: Snapshot) -> list[list[tuple[Frames, bool, int]]]:
    """What each environment showed, in order: frames, whether each begins an episode, and its row."""
    shown: dict[int, list[tuple[Frames, bool, int]]] = {}
    at = 0
    for meta in snapshot.segments("Breakout"):
        rows, frames = snapshot.read_rows(meta), snapshot.read_frames(meta)
        line = shown.setdefault(meta.env, [])
        if rows["context"].any():
            line.pop()  # The frame after the cut stands in both segments.
        for row in np.flatnonzero(~rows["context"]):
            line.append((frames[rows["frame"][row]], bool(rows["is_first"][row]), at + int(row)))
        at += meta.rows
    return list(shown.values())


@pytest.mark.slow
def test_cached_is_live_to_the_last_bit(
    played: Backend, stacked: Stacked, tiny: Ask, tmp_path: Path
) -> None:
    """A game's environments shown again, side by side: all of it found, or all of it run once."""
    report = run(played, stacked(4), tiny("vit"), stacked(2))
    snapshot = take_snapshot(played)
    chosen = [model.spec.key for model in report.models]
    known = flat_map.materialise(snapshot, "Breakout", chosen, tmp_path)
    encoders = [[open_model(snapshot, key) for key in chosen] for _ in range(2)]
    blank: Any = Table(known)
    cached, live = LiveEncoder(known, encoders[0]), LiveEncoder(blank, encoders[1])
    assert cached.width == known.window_width + known.width and known.width > 0
    shown = lines(snapshot)
    asked = 0
    for step in range(max(map(len, shown))):
        envs = np.array([env for env, line in enumerate(shown) if step < len(line)])
        now = [shown[env][step] for env in envs]
        frames, first, rows = (np.stack(part) for part in zip(*now, strict=True))
        found = cached(frames, first, envs)
        for window, place, columns in zip(known.windows, known.places, known.columns, strict=True):
            table, at = known.embeddings, known.rows["frame"][rows]
            if window > 1:
                table, at = known.windowed, rows
            np.testing.assert_array_equal(found[:, place], table[at, columns])
        np.testing.assert_array_equal(live(frames, first, envs), found)
        asked += 3 * len(envs)
    assert asked > 3 * 144
    assert (cached.frames, cached.found, cached.passes, cached.hit_rate) == (asked, asked, 0, 1)
    assert (live.frames, live.found) == (asked, 0)
    assert live.passes == live.frames - live.remembered
    assert 0 < live.remembered < asked
    # What was run live was all of what the store has but the windows of context rows.
    context = sum(snapshot.read_array(m, "context").sum() for m in snapshot.segments())
    assert report.passes - 2 * context <= live.passes <= report.passes


@pytest.mark.slow
def test_windows_alone_need_no_single_frames(
    played: Backend, stacked: Stacked, tmp_path: Path, ran: list[int]
) -> None:
    (key,) = (model.spec.key for model in run(played, stacked(4)).models)
    snapshot = take_snapshot(played)
    known = flat_map.materialise(snapshot, "Breakout", [key], tmp_path)
    live = LiveEncoder(known, [])
    frame, begins, row = lines(snapshot)[0][0]
    with pytest.raises(UsageError, match="several frames"):
        live(frame[None])
    assert begins and live.frames == 0
    found = live(frame[None], np.array([True]), np.array([7]))
    np.testing.assert_array_equal(found, known.windowed[row][None])
    nobody = np.zeros(0, np.int64)
    assert live(frame[None][:0], nobody.astype(bool), nobody).shape == (0, live.width)
    assert (live.frames, live.found, live.passes) == (1, 1, 0)


# Planned.


@dataclasses.dataclass(frozen=True)
class InMemory(Snapshot):
    """A snapshot of segments of one row a frame, whose frames a test says by number."""

    shown: dict[str, tuple[list[int], list[bool]]] = dataclasses.field(default_factory=dict)

    def read_digests(self, meta: SegmentMeta) -> NDArray[np.uint8]:
        numbers, _ = self.shown[meta.segment]
        return np.repeat(np.array(numbers, np.uint8)[:, None], 16, axis=1)

    def read_array(self, meta: SegmentMeta, name: str) -> NDArray[Any]:
        numbers, first = self.shown[meta.segment]
        return np.array(first) if name == "is_first" else np.arange(len(numbers), dtype=np.int32)


@given(
    st.lists(
        st.tuples(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1), st.booleans()),
        min_size=1,
        max_size=5,
    ),
    st.integers(2, 4),
)
def test_every_window_goes_through_a_model_once(
    kit: ModuleType, drawn: list[tuple[list[tuple[int, bool]], bool]], window: int
) -> None:
    """Alone it is planned as beside a model of single frames, and carried out gives every row its own."""
    model, other = kit.key("moving"), kit.key("lite0")
    commits: dict[str, Commit] = {}
    shown: dict[str, tuple[list[int], list[bool]]] = {}
    rows: dict[str, list[Any]] = {}
    expected: dict[str, list[tuple[int, ...]]] = {}

    def add(meta: Meta) -> None:
        commit = Commit(1, meta, "0" * 16, files=(), author="", time="", command="")
        commits[commit.path] = commit

    for at, (pairs, done) in enumerate(drawn):
        meta, _ = kit.fake_segment(at, steps=2)
        count = len(pairs)
        fields = {name: getattr(meta, name) for name in meta.__struct_fields__}
        meta = SegmentMeta(**{**fields, "frames": count, "rows": count})
        add(meta)
        numbers, first = (list(part) for part in zip(*pairs, strict=True))
        shown[meta.segment] = numbers, first
        of = kit.window_of({"is_first": np.array(first)}, window)
        expected[meta.segment] = [tuple(numbers[i] for i in one) for one in of]
        if done:
            shape = (count, 1)
            add(EmbeddingMeta("Pong", meta.segment, model, shape, "float16", count, 0, 0, window))
            rows[meta.segment] = list(expected[meta.segment])
    seen = {one for found in rows.values() for one in found}
    snapshot = InMemory(None, commits, shown=shown)  # type: ignore[arg-type]  # No file is read.
    plan = make_plan(snapshot, [model], ["Pong"], windows={model: window})
    missing = [one for name in expected.keys() - rows.keys() for one in expected[name]]
    assert plan.passes == len(set(missing) - seen)
    assert plan.copies == len(missing) - plan.passes
    both = make_plan(snapshot, [other, model], ["Pong"], windows={model: window})
    assert both.passes == plan.passes + len({n for numbers, _ in shown.values() for n in numbers})
    for item in plan.items:
        assert item.window == window and item.inputs == item.meta.rows
        made: list[Any] = [None] * item.inputs
        for at in item.own:
            made[at] = expected[item.meta.segment][at]
        for copy in item.copies:
            source = made if copy.segment == item.meta.segment else rows[copy.segment]
            for theirs, ours in zip(copy.source, copy.target, strict=True):
                assert made[ours] is None
                made[ours] = source[theirs]
        assert made == expected[item.meta.segment]
        rows[item.meta.segment] = made
