"""The models `palette` and `objects`: their codes, their levels by game, and cached = live."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import scipy.ndimage  # type: ignore[import-untyped]
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from wsa.encode.commands.encode import describe_event
from wsa.encode.inference import levels, objects, palette
from wsa.encode.inference.encoder import stored
from wsa.encode.inference.levels import Levels
from wsa.encode.inference.preprocess import shrink
from wsa.encode.jobs.dry_run import measure_model
from wsa.encode.jobs.encoding import Encoding
from wsa.encode.jobs.events import ModelReady
from wsa.encode.jobs.report import run_values, summary
from wsa.encode.jobs.run import encode
from wsa.encode.models import screen
from wsa.encode.models.registry import for_games, parse_request
from wsa.encode.registration import fit_reduction
from wsa.encode.registration.register import open_model, register
from wsa.encode.service.status import Backlog, read_status
from wsa.learn.envs import atari
from wsa.store.common.errors import DamagedError, UsageError
from wsa.store.objects.model_spec import parse_output, read_spec
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import take_snapshot

Screens = NDArray[np.uint8]
HEIGHT, WIDTH = 20, 16
label: Any = scipy.ndimage.label  # It has no types.

# Small screens with few levels, so that objects touch and repeat the background.
small = st.integers(0, 2**32 - 1).map(
    lambda seed: (
        np.random.default_rng(seed)
        .choice(np.array([0, 90, 200], np.uint8), (3, HEIGHT, WIDTH), p=[0.6, 0.2, 0.2])
        .astype(np.uint8)
    )
)


def features(screens):
    """Screens as the output of the network `screen`, (n, H, W, 1) float32 from 0 to 255."""
    return torch.from_numpy(screens.astype(np.float32))[..., None]


def draw(*boxes):
    """A black screen with boxes: level, top, left, height, width."""
    screen = np.zeros((210, 160), np.uint8)
    for level, top, left, height, width in boxes:
        screen[top : top + height, left : left + width] = level
    return screen


BLACK = Levels(np.zeros((210, 160), np.uint8), np.array([90, 200], np.uint8))


# Background and levels.


@given(small)
def test_the_background_is_the_most_frequent_level_of_each_pixel(screens):
    fitted = levels.fit_levels(screens)
    for row, column in np.ndindex(HEIGHT, WIDTH):
        counts = np.bincount(screens[:, row, column], minlength=256)
        assert counts[fitted.background[row, column]] == counts.max()
    foreground = np.bincount(screens[screens != fitted.background], minlength=256)
    assert foreground[fitted.levels].tolist() == sorted(foreground[foreground > 0])[::-1]


def test_frames_without_any_change_are_refused():
    with pytest.raises(UsageError, match="alike"):
        levels.fit_levels(np.zeros((4, HEIGHT, WIDTH), np.uint8))


@pytest.mark.parametrize(("length", "width"), [(210, 5), (160, 4), (13, 4)])
def test_soft_bins_distribute_every_pixel_completely(length, width):
    bins = levels.soft_bins(length, width)
    assert bins.shape == (length, length // width)
    assert (bins.sum(axis=1) == 2 * width).all() and (bins == bins.round()).all()
    assert (np.count_nonzero(bins, axis=1) <= 2).all()


# The codes.


@given(small)
def test_palette_counts_the_pixels_of_each_level(screens):
    fitted = palette.fit(features(screens), 2)
    code = fitted(features(screens)).numpy()
    expected = []
    for pixels in screens:
        for level in fitted.levels.levels:
            mask = (pixels == level) & (pixels != fitted.levels.background)
            for axis, width in ((1, palette.ROW_BIN), (0, palette.COLUMN_BIN)):
                weights = levels.soft_bins(mask.shape[1 - axis], width) / (2 * width)
                expected.append(np.minimum(mask.sum(axis=axis) @ weights, 16) / 4)
    np.testing.assert_allclose(code.ravel(), np.concatenate(expected), rtol=1e-6)


@given(small)
def test_objects_are_the_connected_components_of_each_level(screens):
    fitted = levels.fit_levels(screens)
    for pixels in screens:
        expected = []
        for number, level in enumerate(fitted.levels):
            mask = (pixels == level) & (pixels != fitted.background)
            labels, count = label(mask, np.ones((3, 3)))
            for component in range(1, count + 1):
                rows, columns = np.nonzero(labels == component)
                size = int(np.searchsorted(objects.SIZES, len(rows), side="right"))
                expected.append((3 * number + size, rows.mean(), columns.mean()))
        classes, centers = objects.components(pixels[None], fitted)
        components = [(int(c), *center) for c, center in zip(classes, centers, strict=True)]
        np.testing.assert_allclose(sorted(components), sorted(expected), atol=1e-9)


def test_a_ball_and_a_paddle_of_one_color_are_separate_objects():
    """In `palette` they add up; `objects` separates them by size."""
    classes = np.array([0, 1], np.uint8)  # Small and medium objects of the first level.
    fitted = objects.make(BLACK, classes, 9)
    paddle = (90, 100, 20, 16, 4)
    codes = fitted(features(np.stack([draw(paddle, (90, r, 60, 4, 2)) for r in (50, 52)]))).numpy()
    ball, bat = codes.reshape(2, 2, 83).transpose(1, 0, 2)
    assert ball[:, 0].tolist() == bat[:, 0].tolist() == [1, 1]
    assert (bat[0] == bat[1]).all() and (ball[0] != ball[1]).any()
    # The bins give the center: rows 51.5 and 53.5, columns 60.5.
    rows = ball[:, 1:43] @ (np.arange(42) * 5 + 2)
    columns = ball[:, 43:] @ (np.arange(40) * 4 + 1.5)
    np.testing.assert_allclose(rows, [51.5, 53.5], atol=5 / 4096)
    np.testing.assert_allclose(columns, [60.5, 60.5], atol=4 / 4096)


@pytest.mark.parametrize("kind", [palette, objects])
@given(screens=small)
def test_the_code_of_a_screen_does_not_depend_on_other_screens(kind, screens):
    fitted = kind.fit(features(screens), 3)
    together = fitted(features(screens))
    assert torch.equal(together, torch.cat([fitted(features(s[None])) for s in screens]))
    again = kind.load(kind.save(fitted))
    assert kind.save(again) == kind.save(fitted) and torch.equal(again(features(screens)), together)


def test_features_of_another_network_are_refused():
    for kind in (palette, objects):
        with pytest.raises(UsageError, match="--models palette,objects"):
            kind.fit(torch.zeros(3, 7, 7, 320), 3)


@pytest.mark.parametrize(("alias", "number"), [("palette", 13), ("objects", 19)])
def test_a_number_of_levels_out_of_range_is_refused(alias, number, store):
    (request,) = for_games([parse_request(alias, {}, f"map+{alias}:{number}")], ["Pong"])
    with pytest.raises(UsageError, match="sk for 1 to"):
        register(take_snapshot(store), request, 0.1)


# The levels that wsa ships.


def test_levels_of_every_ale_game_are_shipped():
    for game in atari.games():
        known = fit_reduction.game_levels(game)
        assert known is not None, game
        assert known[0].background.shape == (screen.SEES.height, screen.SEES.width)
        assert len(known[0].levels) >= 1 and len(known[1]) >= 1
    assert fit_reduction.game_levels("NoGameOfThisName") is None


@pytest.mark.variants
@pytest.mark.parametrize("alias", ["objects", "palette"])
def test_a_linear_map_finds_the_ball_of_pong_in_the_code(alias):
    """On real play, where the shipped networks fail (docs/howto/probe.md)."""
    output = parse_output(screen.OUTPUTS[alias] + "@Pong")
    fitted = fit_reduction.shipped(output)
    assert fitted is not None
    env = atari.make_env("Pong", atari.protocol("Pong", "classic"), 4)
    env.reset(seed=3)
    rng = np.random.default_rng(3)
    played = []
    for _ in range(120):
        observations, *_ = env.step(rng.integers(6, size=4))
        played += list(atari.rgb_frames(observations).copy())
    env.close()
    ball = np.array([236, 236, 236], np.uint8)
    frames, places = [], []
    for frame in played:
        rows, columns = np.nonzero((frame[34:194] == ball).all(axis=-1))
        if 0 < len(rows) <= 16:
            frames.append(frame)
            places.append((rows.mean(), columns.mean()))
    assert len(frames) > 150
    gray = screens_of(np.stack(frames))
    code = fitted(features(gray)).double().numpy()
    train = np.arange(len(code)) % 4 != 0
    mean = code[train].mean(axis=0)
    x, y = code - mean, np.array(places)
    weights = np.linalg.solve(
        x[train].T @ x[train] + 0.1 * np.eye(x.shape[1]), x[train].T @ (y - y[train].mean(0))[train]
    )
    error = x[~train] @ weights + y[train].mean(axis=0) - y[~train]
    explained = 1 - (error**2).mean(axis=0) / y[~train].var(axis=0)
    assert (explained > 0.95).all(), explained


def screens_of(frames):
    """Frames (n, H, W, 3) as the network `screen` sees them."""
    small = shrink(torch.from_numpy(frames), screen.SEES.preprocessing())[:, 0].numpy()
    return small


# In a store.


@pytest.fixture
def two_games(store, fill):
    """A store with frames of noise in two games, which share one frame."""
    fill(store, [[0, 1, 2], [2, 3, 4]])
    fill(store, [[5, 6, 0]], game="Breakout")
    return store


REQUESTS = [parse_request(alias, {}) for alias in screen.OUTPUTS]


def test_each_game_is_encoded_by_its_own_models_only(two_games):
    report = encode(two_games, Encoding(REQUESTS), scheduler="inproc")
    snapshot = take_snapshot(two_games)
    assert len(snapshot.models) == 4 and report.failed == ()
    for key in snapshot.models:
        game = read_spec(snapshot, key).game
        assert {meta.game for meta in snapshot.embeddings(model=key)} == {game}
        assert key in snapshot.models_of(game)
    # Equal frames of two games have different codes, so none is copied between games.
    assert sum(e.passes for e in snapshot.embeddings(game="Breakout")) == 2 * 3
    assert sum(e.passes for e in snapshot.embeddings(game="Pong")) == 2 * 5
    backlog = read_status(snapshot.backend, snapshot).backlog
    assert backlog and set(backlog.values()) == {Backlog()}
    again = encode(two_games, Encoding(REQUESTS), scheduler="inproc")
    assert again.passes == 0 and again.present == report.present + len(report.done)
    assert again.models and {m.spec.key for m in again.models} == set(snapshot.models)


def test_a_model_of_another_game_has_nothing_to_do(two_games, run_wsa):
    encode(two_games, Encoding(REQUESTS[:1], ["Pong"]), scheduler="inproc")
    (key,) = take_snapshot(two_games).models
    command = ("encode", "--store", two_games.url, "--models", key, "--game", "Breakout", "--json")
    for options in ((), ("--dry-run",)):
        code, out, err = run_wsa(*command, "--scheduler", "inproc", *options)
        assert code == 0 and json.loads(out)["models"] == {}, err


def test_cached_codes_equal_live_ones_to_the_last_bit(two_games):
    encode(two_games, Encoding(REQUESTS, ["Pong"]), scheduler="inproc")
    snapshot = take_snapshot(two_games)
    for key in snapshot.models:
        encoder = open_model(snapshot, key)
        for meta in snapshot.segments("Pong"):
            frames = snapshot.read_frames(meta)
            live = np.concatenate([stored(encoder(frame[None])) for frame in frames])
            cached = snapshot.read_embedding("Pong", key, meta.segment)
            np.testing.assert_array_equal(live, cached)
            assert live.dtype == cached.dtype


@pytest.mark.parametrize("engine", ["auto", "openvino"])
def test_no_engine_is_named_for_a_model_without_a_network(two_games, engine, every_engine, caplog):
    events: list[Any] = []
    encoding = Encoding(REQUESTS[:1], ["Pong"], engine=engine)
    report = encode(two_games, encoding, scheduler="inproc", listen=events.append)
    (ready,) = (event for event in events if isinstance(event, ModelReady))
    key = ready.spec.key
    assert describe_event(ready, {}).startswith(f"{key}: no network, ")
    assert [model["engine"] for model in report.summary()["models"].values()] == ["none"]
    assert "| no network |" in summary(run_values(report))
    snapshot = take_snapshot(two_games)
    assert {meta.engine for meta in snapshot.embeddings(model=key)} == {"torch"}
    measured, _ = measure_model(snapshot, REQUESTS[0], encoding)
    assert measured.engine == "none"
    # Nor is one opened, also in a store where nothing is encoded yet.
    register(snapshot, for_games(REQUESTS, ["Breakout"])[0], 0.1, engine=engine)
    caplog.set_level("INFO", "wsa")
    for model in take_snapshot(two_games).models:
        caplog.clear()
        assert open_model(take_snapshot(two_games), model, engine=engine).engine.name == "torch"
        said = f"{model}: has no network, so --engine {engine} changes nothing"
        assert caplog.messages == ([] if engine == "auto" else [said])


def test_two_stores_have_the_same_keys_without_any_exchange(two_games, tmp_path):
    other = open_store(str(tmp_path / "other"), create=True)
    keys = []
    for backend in (two_games, other):  # The other one has no frames.
        for request in for_games(REQUESTS, ["Seaquest", "Pong"]):
            keys.append(register(take_snapshot(backend), request, 0.1).spec.key)
    assert keys[:4] == keys[4:] and len(set(keys)) == 4


def test_levels_of_an_unknown_game_are_fitted_once_on_its_frames(store, fill):
    fill(store, [[0, 1, 2, 3]], game="Homebrew")
    request = for_games(REQUESTS[:1], ["Homebrew"])[0]
    registered = register(take_snapshot(store), request, 0.1)
    assert registered.fitted == 4
    # The levels stay the same when frames are added later.
    fill(store, [[7, 8, 9]], game="Homebrew")
    assert register(take_snapshot(store), request, 0.1).spec.key == registered.spec.key


def test_swapped_levels_are_damage(two_games, monkeypatch):
    request = for_games(REQUESTS[:1], ["Pong"])[0]
    key = register(take_snapshot(two_games), request, 0.1).spec.key
    other = fit_reduction.shipped(parse_output("map+palette:5@Breakout"))
    monkeypatch.setattr(palette, "load", lambda data: other)
    with pytest.raises(DamagedError, match="another model"):
        open_model(take_snapshot(two_games), key)


@pytest.mark.parametrize("spoil", [{"levels": (3, 3)}, {"levels": (0,)}, {"background": (9,)}])
@pytest.mark.parametrize("kind", [palette, objects])
def test_arrays_of_other_shapes_are_refused(kind, spoil):
    shapes = {"background": (9, 9), "levels": (2,), "classes": (1,)} | spoil
    arrays = {name: np.full(shape, 7, np.uint8) for name, shape in shapes.items()}
    with pytest.raises(ValueError, match="shapes"):
        kind.load(safetensors.numpy.save(arrays))


def test_a_class_of_an_unknown_level_is_refused():
    arrays = {**BLACK.arrays, "classes": np.array([6], np.uint8)}
    with pytest.raises(ValueError, match="not of 6"):
        objects.load(safetensors.numpy.save(arrays))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [("palette:random", {}, "has no weights"), ("palette", {"precision": "bf16"}, "no network")],
)
def test_random_weights_and_reduced_precisions_are_refused(name, options, message):
    with pytest.raises(UsageError, match=message):
        parse_request(name, {}, **options)


@pytest.mark.parametrize(
    ("output", "expected"),
    [("grid:7", "map+palette:5"), ("map+objects:9", "map+palette:5"), ("map+palette:3",) * 2],
)
def test_an_output_for_networks_does_not_apply(output, expected):
    """So one command can encode them beside networks whose output the user chooses."""
    assert parse_request("palette", {}, output).output == expected
