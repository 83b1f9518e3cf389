"""Learning from models that look at several frames, beside others that look at one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from wsa.encode.jobs.run import encode
from wsa.encode.live.live_encoder import LiveEncoder
from wsa.encode.models.registry import parse_request
from wsa.learn.collect.collect import collect, plan_collection
from wsa.learn.collect.recorder import Recorder
from wsa.learn.configs.algorithms import CQLConfig
from wsa.learn.configs.network import NetworkConfig
from wsa.learn.data.transitions import OfflineBatches, StateRows, moments
from wsa.learn.envs import atari as games
from wsa.learn.evaluation.greedy_policy import LiveStacks
from wsa.learn.runs import dry_run
from wsa.learn.runs.evaluate import evaluate_run
from wsa.learn.runs.folder import begin
from wsa.learn.runs.setup.offline import make_offline
from wsa.learn.runs.train import train_stored
from wsa.store.backends.base import Backend
from wsa.store.format.windows import episode_starts, window_rows
from wsa.store.objects.flat_map import ROW, FlatMap, materialise
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import Snapshot, take_snapshot

DEPTH = 3
STEPS = 160


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory, stacked: Callable[..., Any]) -> Backend:
    """A little Breakout, cut inside episodes, by models of four, of one, and of two frames."""
    made = open_store(str(tmp_path_factory.mktemp("windows") / "store"), create=True)
    plan = plan_collection(
        take_snapshot(made), "Breakout", games.protocol("Breakout", "classic", max_steps=50),
        steps=STEPS, num_envs=2, policy="random", seed=1, segment_steps=24,
    )  # fmt: skip
    collect(plan, made)
    single = parse_request("timm:test_vit.r160_in1k:random", {}, "pooled")
    encode(made, [stacked(4), single, stacked(2)], scheduler="inproc", device="cpu")
    return made


@pytest.fixture(scope="module")
def snapshot(backend: Backend) -> Snapshot:
    return take_snapshot(backend)


ALIASES = ("stacked4", "test_vit_r160_in1k", "stacked2")


@pytest.fixture(scope="module")
def flat(snapshot: Snapshot, tmp_path_factory: pytest.TempPathFactory) -> FlatMap:
    """The models in an order in which windows and single frames alternate."""
    keys = [key for a in ALIASES for key in snapshot.models if key.startswith(f"{a}-")]
    found = materialise(snapshot, "Breakout", keys, tmp_path_factory.mktemp("cache"))
    assert found.windows == (4, 1, 2)
    return found


def states(snapshot: Snapshot, flat: FlatMap) -> dict[int, list[NDArray[Any]]]:
    """By row of the flat map, each model's embedding of the state there, from the store itself."""
    found: dict[int, list[NDArray[Any]]] = {}
    at = 0
    for meta in snapshot.segments("Breakout"):
        rows = snapshot.read_rows(meta)
        starts = episode_starts(rows["is_first"])
        for row in np.flatnonzero(~rows["context"]):
            stack = window_rows(np.array([row]), starts[[row]], DEPTH)[0]
            each = []
            for key, window in zip(flat.models, flat.windows, strict=True):
                stored = snapshot.read_embedding("Breakout", key, meta.segment)
                each.append(stored[[row]] if window > 1 else stored[rows["frame"][stack]])
            found[at + int(row)] = [part.reshape(len(part), -1) for part in each]
        at += meta.rows
    return found


def parts(flat: FlatMap, state: torch.Tensor) -> list[NDArray[Any]]:
    """What a network reads of a state (k, width), model by model."""
    return [
        state[:, place].numpy()[-1 if window > 1 else 0 :]
        for window, place in zip(flat.windows, flat.places, strict=True)
    ]


@pytest.mark.parametrize("n_step", [1, 3])
def test_batches_hold_what_each_model_gave_for_the_state(
    n_step: int, snapshot: Snapshot, flat: FlatMap
) -> None:
    wanted = states(snapshot, flat)
    batches = OfflineBatches(flat, DEPTH, 8, seed=0, n_step=n_step, gamma=0.9)
    for rows in np.array_split(flat.steps, 9):
        batch = batches.of(rows)
        lengths = np.round(np.log(np.maximum(batch.discounts.numpy(), 1e-9)) / np.log(0.9))
        for at, row in enumerate(rows):
            here = zip(parts(flat, batch.states[at]), wanted[int(row)], strict=True)
            assert all(found.tobytes() == stored.tobytes() for found, stored in here)
            if batch.discounts[at] > 0:
                last = int(row + lengths[at])
                there = zip(parts(flat, batch.following[at]), wanted[last], strict=True)
                assert all(found.tobytes() == stored.tobytes() for found, stored in there)


def test_where_no_state_ends_there_is_nothing_of_a_window(flat: FlatMap) -> None:
    rows = StateRows(flat)
    for length, end in ((4, 3), (2, 0), (4, 1)):
        frames = flat.stack(flat.steps[:5], length)
        found = rows.gather(frames, {end: flat.steps[:5]})
        assert found.shape == (5, length, rows.width)
        for window, place in zip(flat.windows, flat.places, strict=True):
            filled = found[:, :, place].any(axis=(0, 2))
            assert filled.tolist() == [window == 1 or at == end for at in range(length)]


def test_moments_are_of_the_steps(snapshot: Snapshot, flat: FlatMap) -> None:
    wanted = states(snapshot, flat)
    now = np.stack(
        [np.concatenate([part[-1] for part in wanted[int(row)]]) for row in flat.steps]
    ).astype(np.float64)
    mean, deviation = moments(flat)
    assert mean.dtype == deviation.dtype == torch.float32
    np.testing.assert_allclose(mean.numpy(), now.mean(axis=0), rtol=1e-5, atol=1e-6)
    for place in flat.places:
        spread = now[:, place].std(axis=0)
        floor = 0.01 * spread.mean() + 1e-6
        np.testing.assert_allclose(
            deviation[place].numpy(), np.maximum(spread, floor), rtol=1e-4, atol=1e-7
        )


def test_live_states_equal_cached_ones(snapshot: Snapshot, flat: FlatMap) -> None:
    wanted = states(snapshot, flat)
    live = LiveEncoder(flat, [])
    stacks = LiveStacks(live, 2, DEPTH)
    at = checked = 0
    for meta in snapshot.segments("Breakout"):
        rows, frames = snapshot.read_rows(meta), snapshot.read_frames(meta)
        env = np.array([meta.env])
        for row in np.flatnonzero(~rows["context"]):
            if row == meta.rows - 1 and not rows["terminated"][row - 1]:
                continue  # The next segment, or nobody, goes on from it.
            shown = frames[rows["frame"][row]][None]
            state = stacks.see(shown, rows["is_first"][row : row + 1], env)[0]
            pairs = zip(parts(flat, state), wanted[at + int(row)], strict=True)
            assert all(found.tobytes() == stored.tobytes() for found, stored in pairs)
            checked += 1
        at += meta.rows
    assert checked >= STEPS and live.passes == 0 and live.hit_rate == 1


@pytest.mark.variants
@pytest.mark.parametrize("context", ["mean", "stacked2"])
def test_a_run_learns_from_windows_and_plays_with_them(
    context: str, snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WSA_CACHE", str(tmp_path / "cache"))
    small = CQLConfig(updates=30, batch_size=8, log_frequency=10, save_frequency=20)
    chosen = ALIASES if context == "mean" else ALIASES[:2]  # The context may be none of them.
    config = make_offline(
        snapshot, "Breakout", chosen, context, 1, small, network=NetworkConfig(frame_stack=DEPTH)
    )
    said = dry_run.estimate(snapshot, config, "cpu")
    metas = snapshot.segments("Breakout")
    of = {e.model: e for e in snapshot.embeddings("Breakout")}
    numbers = sum(
        int(np.prod(of[key].shape[1:])) * sum(m.inputs(of[key].window) for m in metas)
        for key in config.inputs
    )
    assert said["cache_bytes"] == 2 * numbers + ROW.itemsize * sum(m.rows for m in metas)
    folder = tmp_path / "run"
    begin(folder, config)
    trained = train_stored(folder, config, "cpu")
    assert trained.updates == 30 and trained.passes == 0
    assert [shape[0] for shape in trained.network.torso.inputs.shapes] == [1, DEPTH, 1]
    played = evaluate_run(folder, 1, num_envs=1)
    assert len(played.episodes) == 1 and played.live.frames > 3
    assert played.live.passes == played.live.frames - played.live.found - played.live.remembered


def test_windows_of_recorded_segments_are_those_of_the_game(kit: ModuleType) -> None:
    """Cut by the recorder itself, at every place: each step has the window of the uncut game."""
    lengths = [1, 2, 3, 5, 9]
    shown: Any = [f"{e}:{i}" for e, n in enumerate(lengths) for i in range(n + 1)]
    total = sum(lengths)
    for window in (2, 3, 4):
        for cut in range(1, total):
            recorder = Recorder([(0, cut), (cut, total - cut)])
            cuts = []
            for episode, length in enumerate(lengths):
                recorder.begin(f"{episode}:0", 3)  # type: ignore[arg-type]
                for step in range(length):
                    last = step == length - 1
                    screen: Any = f"{episode}:{step + 1}"
                    recorder.step(0, 0.0, last, False, screen, 3)
                    if recorder.full:
                        cuts.append(recorder.take())
            assert len(cuts) == 2
            seen = {}
            for made in cuts:
                rows = {"is_first": np.array([row.is_first for row in made.rows])}
                of = kit.window_of(rows, window)
                starts = episode_starts(rows["is_first"])
                found = window_rows(np.arange(len(of)), starts, window)
                assert found.tolist() == of
                for row, at in zip(made.rows, of, strict=True):
                    if not row.context:
                        seen[row.screen] = [made.rows[i].screen for i in at]
            assert sorted(map(str, seen)) == sorted(shown)
            for name, of in seen.items():
                episode, step = map(int, str(name).split(":"))
                assert of == [f"{episode}:{max(0, step - b)}" for b in range(window - 1, -1, -1)]
