"""Offline runs on models of several frames, beside others of one: batches, moments, live states."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from learn_kit import collect_play
from numpy.typing import NDArray

from wsa.encode.jobs.encoding import Encoding
from wsa.encode.jobs.run import encode
from wsa.encode.live.live_encoder import LiveEncoder
from wsa.encode.models.registry import parse_request
from wsa.learn.collect.recorder import Recorder
from wsa.learn.configs.algorithms import CQLConfig
from wsa.learn.configs.evaluation import EvaluationRequest
from wsa.learn.configs.network import NetworkConfig
from wsa.learn.data.transitions import OfflineBatches, StateRows, moments
from wsa.learn.envs import atari
from wsa.learn.evaluation.greedy_policy import LiveStacks
from wsa.learn.runs import dry_run
from wsa.learn.runs.evaluate import evaluate_run
from wsa.learn.runs.folder import begin
from wsa.learn.runs.setup.make_run import make_offline
from wsa.learn.runs.train import train_stored
from wsa.store.format.windows import episode_starts, window_rows
from wsa.store.objects.flat_map import ROW, materialize
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import take_snapshot

DEPTH = 3
STEPS = 72
ALIASES = ("stacked4", "test_vit_r160_in1k", "stacked2")


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory, stacked):
    """A little Breakout, cut inside of episodes, by models of four, of one, and of two frames."""
    backend = open_store(str(tmp_path_factory.mktemp("windows") / "store"), create=True)
    protocol = atari.protocol("Breakout", "classic", max_steps=20)
    collect_play(backend, protocol, steps=STEPS, segment_steps=13)
    single = parse_request("timm:test_vit.r160_in1k:random", {}, "pooled")
    requests = [stacked(4), single, stacked(2)]
    encode(backend, Encoding(requests, device="cpu"), scheduler="inproc")
    return take_snapshot(backend)


@pytest.fixture(scope="module")
def flat(snapshot, tmp_path_factory):
    """The models in an order in which windows and single frames alternate."""
    keys = [key for a in ALIASES for key in snapshot.models if key.startswith(f"{a}-")]
    flat = materialize(snapshot, "Breakout", keys, tmp_path_factory.mktemp("cache"))
    assert flat.windows == (4, 1, 2)
    return flat


def stored_states(snapshot, flat):
    """Each model's embeddings of the state at a row of the flat map, read from the store itself."""
    states: dict[int, list[NDArray[Any]]] = {}
    begin = 0
    for meta in snapshot.segments("Breakout"):
        rows = snapshot.read_rows(meta)
        starts = episode_starts(rows["is_first"])
        for row in np.flatnonzero(~rows["context"]):
            stack = window_rows(np.array([row]), starts[[row]], DEPTH)[0]
            each = []
            for key, window in zip(flat.models, flat.windows, strict=True):
                stored = snapshot.read_embedding("Breakout", key, meta.segment)
                each.append(stored[[row]] if window > 1 else stored[rows["frame"][stack]])
            states[begin + int(row)] = [part.reshape(len(part), -1) for part in each]
        begin += meta.rows
    return states


def split(flat, state):
    """What a network reads of a state (k, width), model by model."""
    return [
        state[:, place].numpy()[-1 if window > 1 else 0 :]
        for window, place in zip(flat.windows, flat.places, strict=True)
    ]


def assert_same_bits(state, expected):
    assert [part.tobytes() for part in state] == [part.tobytes() for part in expected]


@pytest.mark.parametrize("n_step", [1, 3])
def test_batches_hold_what_each_model_gave_for_the_state(n_step, snapshot, flat):
    states = stored_states(snapshot, flat)
    batches = OfflineBatches(flat, DEPTH, 8, seed=0, n_step=n_step, gamma=0.9)
    for rows in np.array_split(flat.steps, 9):
        batch = batches.of(rows)
        lengths = np.round(np.log(np.maximum(batch.discounts.numpy(), 1e-9)) / np.log(0.9))
        for at, row in enumerate(rows):
            assert_same_bits(split(flat, batch.states[at]), states[int(row)])
            if batch.discounts[at] > 0:
                following = split(flat, batch.following[at])
                assert_same_bits(following, states[int(row + lengths[at])])


def test_a_stack_holds_a_window_only_where_a_state_ends(flat):
    rows = StateRows(flat)
    for length, end in ((4, 3), (2, 0), (4, 1)):
        frames = flat.stack(flat.steps[:5], length)
        stacks = rows.gather(frames, {end: flat.steps[:5]})
        assert stacks.shape == (5, length, rows.width)
        for window, place in zip(flat.windows, flat.places, strict=True):
            filled = stacks[:, :, place].any(axis=(0, 2))
            assert filled.tolist() == [window == 1 or at == end for at in range(length)]


def test_moments_are_those_of_the_steps(snapshot, flat):
    states = stored_states(snapshot, flat)
    embeddings = np.stack(
        [np.concatenate([part[-1] for part in states[int(row)]]) for row in flat.steps]
    ).astype(np.float64)
    mean, deviation = moments(flat)
    assert mean.dtype == deviation.dtype == torch.float32
    np.testing.assert_allclose(mean.numpy(), embeddings.mean(axis=0), rtol=1e-5, atol=1e-6)
    for place in flat.places:
        spread = embeddings[:, place].std(axis=0)
        floor = 0.01 * spread.mean() + 1e-6
        np.testing.assert_allclose(
            deviation[place].numpy(), np.maximum(spread, floor), rtol=1e-4, atol=1e-7
        )


def test_live_states_equal_cached_ones(snapshot, flat):
    states = stored_states(snapshot, flat)
    live = LiveEncoder(flat, [])
    stacks = LiveStacks(live, 2, DEPTH)
    begin = checked = 0
    for meta in snapshot.segments("Breakout"):
        rows, frames = snapshot.read_rows(meta), snapshot.read_frames(meta)
        env = np.array([meta.env])
        for row in np.flatnonzero(~rows["context"]):
            if row == meta.rows - 1 and not rows["terminated"][row - 1]:
                continue  # The next segment goes on from this row, or none does.
            shown = frames[rows["frame"][row]][None]
            state = stacks.see(shown, rows["is_first"][row : row + 1], env)[0]
            assert_same_bits(split(flat, state), states[begin + int(row)])
            checked += 1
        begin += meta.rows
    assert checked >= STEPS and live.passes == 0 and live.hit_rate == 1


@pytest.mark.variants
@pytest.mark.parametrize("context", ["mean", "stacked2"])
def test_a_run_learns_from_windows_and_plays_with_them(context, snapshot, tmp_path):
    small = CQLConfig(updates=30, batch_size=8, log_frequency=10, save_frequency=20)
    chosen = ALIASES if context == "mean" else ALIASES[:2]  # The context may be none of them.
    config = make_offline(
        snapshot, "Breakout", chosen, context, 1, small, network=NetworkConfig(frame_stack=DEPTH)
    )
    estimate = dry_run.estimate(snapshot, config, "cpu")
    segments = snapshot.segments("Breakout")
    embedded = {e.model: e for e in snapshot.embeddings("Breakout")}
    numbers = sum(
        int(np.prod(embedded[key].shape[1:]))
        * sum(m.inputs(embedded[key].window) for m in segments)
        for key in config.inputs
    )
    rows = sum(m.rows for m in segments)
    assert estimate["cache_bytes"] == 2 * numbers + ROW.itemsize * rows
    begin(tmp_path, config)
    trained = train_stored(tmp_path, config)
    assert trained.updates == 30 and trained.passes == 0
    assert [shape[0] for shape in trained.network.torso.inputs.shapes] == [1, DEPTH, 1]
    evaluation = evaluate_run(tmp_path, EvaluationRequest(episodes=1, num_envs=1))
    live = evaluation.live
    assert len(evaluation.episodes) == 1 and live.frames > 3
    assert live.passes == live.frames - live.found - live.remembered


def test_windows_of_recorded_segments_are_those_of_the_uncut_game(kit):
    lengths = [1, 2, 3, 5]
    frames = [f"{e}:{i}" for e, n in enumerate(lengths) for i in range(n + 1)]
    total = sum(lengths)
    for window, cut in itertools.product((2, 3, 4), range(1, total)):
        recorder = Recorder([(0, cut), (cut, total - cut)])
        segments = []
        for episode, length in enumerate(lengths):
            recorder.begin(f"{episode}:0", 3)  # type: ignore[arg-type]
            for step in range(length):
                screen: Any = f"{episode}:{step + 1}"
                recorder.step(0, 0.0, step == length - 1, False, screen, 3)
                if recorder.full:
                    segments.append(recorder.take())
        assert len(segments) == 2
        windows = {}
        for segment in segments:
            is_first = np.array([row.is_first for row in segment.rows])
            expected = kit.window_of({"is_first": is_first}, window)
            found = window_rows(np.arange(len(expected)), episode_starts(is_first), window)
            assert found.tolist() == expected
            for row, members in zip(segment.rows, expected, strict=True):
                if not row.context:
                    windows[str(row.screen)] = [segment.rows[i].screen for i in members]
        assert sorted(windows) == sorted(frames)
        for frame, members in windows.items():
            episode, step = map(int, frame.split(":"))
            assert members == [f"{episode}:{max(0, step - b)}" for b in reversed(range(window))]
