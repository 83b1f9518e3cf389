"""Models that see several consecutive frames: planned, encoded, looked up, and run live."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wsa.encode.inference.encoder import Encoder, stored
from wsa.encode.inference.preprocess import preprocess
from wsa.encode.jobs.dry_run import Estimate
from wsa.encode.jobs.plan import make_plan
from wsa.encode.jobs.run import EncodeReport
from wsa.encode.live.live_encoder import LiveEncoder
from wsa.encode.registration import identity, probe_frames, register
from wsa.encode.registration.register import open_model
from wsa.learn.collect.collect import collect, plan_collection
from wsa.learn.envs import atari
from wsa.store.common import hashing, names
from wsa.store.common.errors import ConflictError, UsageError
from wsa.store.format.records import Commit, EmbeddingMeta, SegmentMeta
from wsa.store.maintenance.verify import verify
from wsa.store.objects import flat_map
from wsa.store.objects.model_spec import Preprocessing
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import Snapshot, take_snapshot

pytestmark = pytest.mark.usefixtures("fresh_workers")


def play(backend, steps, game="Breakout", seed=1):
    """Play a little, in segments of 12 steps that are cut inside episodes."""
    protocol = atari.protocol(game, "classic", max_steps=20)
    plan = plan_collection(
        take_snapshot(backend), game, protocol,
        steps=steps, num_envs=2, policy="random", seed=seed, segment_steps=12,
    )  # fmt: skip
    collect(plan, backend)


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A read-only store of Breakout, encoded by a model that sees four frames."""

    folder: Path
    estimate: Estimate
    report: EncodeReport
    repeated: Estimate

    @property
    def store(self):
        return open_store(str(self.folder))


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A store of 72 steps of Breakout."""
    store = open_store(str(tmp_path_factory.mktemp("template") / "store"), create=True)
    play(store, 72)
    assert any(snap.read_array(m, "context").any() for snap, m in segments(store))
    return Path(store.url)


@pytest.fixture
def played(template, tmp_path):
    """A copy of that store."""
    shutil.copytree(template, tmp_path / "played", copy_function=os.link)
    return open_store(str(tmp_path / "played"))


@pytest.fixture(scope="module")
def encoded(template, tmp_path_factory, small, encode_all, estimate_job):
    folder = tmp_path_factory.mktemp("encoded") / "store"
    shutil.copytree(template, folder, copy_function=os.link)
    store = open_store(str(folder))
    request = small(window=4)
    estimate = estimate_job(take_snapshot(store), request, ["Breakout"])
    report = encode_all(store, request)
    repeated = estimate_job(take_snapshot(store), request, ["Breakout"])
    return Encoded(folder, estimate, report, repeated)


def segments(backend, game=None):
    snapshot = take_snapshot(backend)
    return [(snapshot, meta) for meta in snapshot.segments(game)]


def windows_of(snapshot, meta, kit, window):
    """The window of every row, (rows, window, H, W, 3), built row by row."""
    rows = snapshot.read_rows(meta)
    frames = snapshot.read_frames(meta)[rows["frame"]]
    windows = frames[np.array(kit.window_of(rows, window))]
    return windows


def test_preprocessing_folds_a_window_into_channels(frames):
    how = Preprocessing("squash", 64, 48, "bilinear", (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    window = torch.from_numpy(frames[:8].reshape(2, 4, *frames.shape[1:]))
    result = preprocess(window, how)
    assert result.shape == (2, 12, 64, 48)
    assert result.is_contiguous(memory_format=torch.channels_last)
    for one, frame_window in zip(result, window, strict=True):
        assert torch.equal(one, preprocess(frame_window, how).flatten(0, 1))


@pytest.mark.usefixtures("all_probe_frames")
@pytest.mark.parametrize("window", [2, 4])
def test_probe_windows_are_pairs_of_consecutive_steps(window, frames):
    windows = probe_frames.probe_inputs(window)
    assert windows.shape == (16, window, *frames.shape[1:])
    for pair, (a, b) in enumerate(frames.reshape(8, 2, *frames.shape[1:])):
        assert (windows[2 * pair] == a).all() and (windows[2 * pair + 1, :-1] == a).all()
        assert (windows[2 * pair + 1, -1] == b).all() and (a != b).any()


@pytest.mark.variants
@pytest.mark.parametrize("window", [2, 3, 4])
def test_each_distinct_window_goes_through_the_model_once(window, played, small, encode_all, kit):
    request = small(window=window)
    seen = set()
    key = ""
    for steps in (0, 24):
        if steps:
            play(played, steps, seed=5)
            play(played, steps, "Pong")
        before = len(seen)
        for snapshot, meta in segments(played):
            digests = snapshot.read_digests(meta)[snapshot.read_rows(meta)["frame"]]
            windows = kit.window_of(snapshot.read_rows(meta), window)
            seen |= {hashing.window_digest(digests[rows].tobytes()) for rows in windows}
        report = encode_all(played, request)
        assert report.passes == len(seen) - before
        (key,) = (model.spec.key for model in report.models)
        written = {(done.game, done.segment) for done in report.done}
        rows = sum(m.rows for _, m in segments(played) if (m.game, m.segment) in written)
        assert report.copied == rows - report.passes > 0
    assert not verify(played).damage
    encoder = open_model(take_snapshot(played), key)
    for snapshot, meta in segments(played):
        embedding = snapshot.read_embedding(meta.game, key, meta.segment)
        record = snapshot.commit(names.embedding_path(meta.game, key, meta.segment)).meta
        assert isinstance(record, EmbeddingMeta) and record.window == window
        assert record.passes + record.copied == len(embedding) == meta.rows
        expected = stored(encoder(windows_of(snapshot, meta, kit, window)))
        np.testing.assert_array_equal(embedding, expected)


def test_a_dry_run_estimates_what_is_then_done(encoded):
    estimate, report, repeated = encoded.estimate, encoded.report, encoded.repeated
    assert (estimate.objects, estimate.passes) == (len(report.done), report.passes)
    assert estimate.copies == report.copied
    shape = report.models[0].spec.shape
    assert estimate.bytes == 2 * np.prod(shape) * sum(m.rows for _, m in segments(encoded.store))
    assert (repeated.objects, repeated.passes, repeated.bytes) == (0, 0, 0)


def test_a_reduced_output_is_fitted_on_windows(store, small, monkeypatch):
    some = probe_frames.load_frames()[:6]
    monkeypatch.setattr(probe_frames, "load_frames", lambda: some)
    request = small(output="grid:2+pca:16", window=4)
    registered = register.register(take_snapshot(store), request, 0.1)
    spec = registered.spec
    assert (registered.fitted, spec.shape, spec.identity.window) == (48, (16,), 4)
    again = register.register(take_snapshot(store), request, 0.1)
    assert again.fitted == 0 and again.spec == spec
    encoder = open_model(take_snapshot(store), spec.key)
    windows = probe_frames.probe_inputs(4)
    assert encoder(windows).shape == (len(windows), 16)


def test_a_model_that_lost_its_record_returns_only_if_its_windows_match(
    encoded, tmp_path, small, encode_all, monkeypatch
):
    shutil.copytree(encoded.folder, tmp_path / "lost", copy_function=os.link)
    store = open_store(str(tmp_path / "lost"))
    (key,) = take_snapshot(store).models
    record = names.commit_path(hashing.object_id(names.model_path(key)))
    store.delete(record)
    real = Encoder.__call__

    def reverse(self, windows):
        return real(self, windows)[..., ::-1].copy()

    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "__call__", reverse)
        with pytest.raises(ConflictError, match="has lost its record"):
            encode_all(store, small(window=4))
    assert store.stat(record) is None
    assert encode_all(store, small(window=4)).passes == 0


@pytest.mark.parametrize("window", [0, 5, "4", None])
def test_a_window_that_segments_cannot_provide_is_refused(window, small):
    network: Any = torch.nn.Module()
    network.window = window
    with pytest.raises(UsageError, match="from 1 to 4"):
        identity._window(network, small())


# Live.


def frames_by_environment(snapshot):
    """By environment, in order: each frame, whether it begins an episode, and its row in the map."""
    lines = {}
    offset = 0
    for meta in snapshot.segments("Breakout"):
        rows, frames = snapshot.read_rows(meta), snapshot.read_frames(meta)
        line = lines.setdefault(meta.env, [])
        if rows["context"].any():
            line.pop()  # Both segments have the frame after the cut.
        for row in np.flatnonzero(~rows["context"]):
            first = bool(rows["is_first"][row])
            line.append((frames[rows["frame"][row]], first, offset + int(row)))
        offset += meta.rows
    return list(lines.values())


def test_cached_windows_equal_live_ones_to_the_bit(played, small, encode_all, tmp_path, emptied):
    """Play a game's environments again, side by side: all rows are found, or all run once."""
    report = encode_all(played, small(window=4), small("b"), small(window=2))
    snapshot = take_snapshot(played)
    chosen = [model.spec.key for model in report.models]
    known = flat_map.materialize(snapshot, "Breakout", chosen, tmp_path)
    encoders = [[open_model(snapshot, key) for key in chosen] for _ in range(2)]
    blank = emptied(known)
    cached, live = LiveEncoder(known, encoders[0]), LiveEncoder(blank, encoders[1])
    assert cached.width == known.window_width + known.width and known.width > 0
    lines = frames_by_environment(snapshot)
    requested = 0
    for step in range(max(map(len, lines))):
        envs = np.array([env for env, line in enumerate(lines) if step < len(line)])
        now = [lines[env][step] for env in envs]
        frames, first, rows = (np.stack(part) for part in zip(*now, strict=True))
        embeddings = cached(frames, first, envs)
        for window, place, columns in zip(known.windows, known.places, known.columns, strict=True):
            table, at = known.embeddings, known.rows["frame"][rows]
            if window > 1:
                table, at = known.windowed, rows
            np.testing.assert_array_equal(embeddings[:, place], table[at, columns])
        np.testing.assert_array_equal(live(frames, first, envs), embeddings)
        requested += 3 * len(envs)
    assert requested > 3 * 72
    assert (cached.frames, cached.found, cached.passes, cached.hit_rate) == (
        requested,
        requested,
        0,
        1,
    )
    frame = lines[0][0][0]
    live(frame[None], np.array([True]), np.array([0]))  # A window that was shown before.
    requested += 3
    assert (live.frames, live.found) == (requested, 0)
    assert live.passes == live.frames - live.remembered
    assert 0 < live.remembered < requested
    # Live play runs everything that the store has, except the windows of context rows.
    context = sum(snapshot.read_array(m, "context").sum() for m in snapshot.segments())
    assert report.passes - 2 * context <= live.passes <= report.passes


def test_a_live_encoder_of_windows_needs_no_single_frames(encoded, tmp_path):
    snapshot = take_snapshot(encoded.store)
    (key,) = snapshot.models
    known = flat_map.materialize(snapshot, "Breakout", [key], tmp_path)
    live = LiveEncoder(known, [])
    frame, begins, row = frames_by_environment(snapshot)[0][0]
    with pytest.raises(UsageError, match="several frames"):
        live(frame[None])
    assert begins and live.frames == 0
    embedding = live(frame[None], np.array([True]), np.array([7]))
    np.testing.assert_array_equal(embedding, known.windowed[row][None])
    no_envs = np.zeros(0, np.int64)
    assert live(frame[None][:0], no_envs.astype(bool), no_envs).shape == (0, live.width)
    assert (live.frames, live.found, live.passes) == (1, 1, 0)


# Planned.


@dataclasses.dataclass(frozen=True)
class InMemory(Snapshot):
    """A snapshot of segments with one row per frame; frames are numbers."""

    contents: dict[str, tuple[list[int], list[bool]]] = dataclasses.field(default_factory=dict)

    def read_digests(self, meta):
        numbers, _ = self.contents[meta.segment]
        return np.repeat(np.array(numbers, np.uint8)[:, None], 16, axis=1)

    def read_array(self, meta, name):
        numbers, first = self.contents[meta.segment]
        return np.array(first) if name == "is_first" else np.arange(len(numbers), dtype=np.int32)


@given(
    st.lists(
        st.tuples(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1), st.booleans()),
        min_size=1,
        max_size=5,
    ),
    st.integers(2, 4),
)
def test_a_plan_runs_every_window_once_and_copies_the_rest(kit, drawn, window):
    """Also beside a model of single frames. Executed, the plan gives every row its own window."""
    model, other = kit.key("moving"), kit.key("lite0")
    commits = {}
    contents = {}
    rows: dict[str, list[Any]] = {}
    expected = {}

    def add(meta):
        commit = Commit(1, meta, "0" * 16, files=(), author="", time="", command="")
        commits[commit.path] = commit

    for at, (pairs, done) in enumerate(drawn):
        meta, _ = kit.fake_segment(at, steps=2)
        count = len(pairs)
        fields = {name: getattr(meta, name) for name in meta.__struct_fields__}
        meta = SegmentMeta(**{**fields, "frames": count, "rows": count})
        add(meta)
        numbers, first = (list(part) for part in zip(*pairs, strict=True))
        contents[meta.segment] = numbers, first
        of = kit.window_of({"is_first": np.array(first)}, window)
        expected[meta.segment] = [tuple(numbers[i] for i in one) for one in of]
        if done:
            shape = (count, 1)
            add(EmbeddingMeta("Pong", meta.segment, model, shape, "float16", count, 0, 0, window))
            rows[meta.segment] = list(expected[meta.segment])
    seen = {one for windows in rows.values() for one in windows}
    snapshot = InMemory(None, commits, contents=contents)  # type: ignore[arg-type]  # No file is read.
    plan = make_plan(snapshot, [model], ["Pong"], windows={model: window})
    missing = [one for name in expected.keys() - rows.keys() for one in expected[name]]
    assert plan.passes == len(set(missing) - seen)
    assert plan.copies == len(missing) - plan.passes
    both = make_plan(snapshot, [other, model], ["Pong"], windows={model: window})
    assert both.passes == plan.passes + len(
        {n for numbers, _ in contents.values() for n in numbers}
    )
    for item in plan.items:
        assert item.window == window and item.inputs == item.meta.rows
        result: list[Any] = [None] * item.inputs
        for at in item.own:
            result[at] = expected[item.meta.segment][at]
        for copy in item.copies:
            source = result if copy.segment == item.meta.segment else rows[copy.segment]
            for at, target in zip(copy.source, copy.target, strict=True):
                assert result[target] is None
                result[target] = source[at]
        assert result == expected[item.meta.segment]
        rows[item.meta.segment] = result
