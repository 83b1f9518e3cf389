"""`palette` and `objects`: what they compute, that each game has its own, and that cached is live."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import scipy.ndimage  # type: ignore[import-untyped]
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from wsa.encode.inference import levels, objects, palette
from wsa.encode.inference.encoder import stored
from wsa.encode.inference.levels import Levels
from wsa.encode.jobs.run import encode
from wsa.encode.models import screen
from wsa.encode.models.registry import for_games, parse_request
from wsa.encode.registration import fit_reduction, game_levels
from wsa.encode.registration.register import open_model, register
from wsa.encode.service.status import Backlog, read_status
from wsa.learn.envs import atari
from wsa.store.backends.base import Backend
from wsa.store.common.errors import DamagedError, UsageError
from wsa.store.objects.model_spec import parse_output, read_spec
from wsa.store.objects.snapshot import take_snapshot

Screens = NDArray[np.uint8]
HEIGHT, WIDTH = 20, 16
label: Any = scipy.ndimage.label  # It has no types.

# Small screens with few levels, so that things touch, and repeat the background.
small = st.integers(0, 2**32 - 1).map(
    lambda seed: (
        np.random.default_rng(seed)
        .choice(np.array([0, 90, 200], np.uint8), (3, HEIGHT, WIDTH), p=[0.6, 0.2, 0.2])
        .astype(np.uint8)
    )
)


def features(screens: Screens) -> Tensor:
    """As the network `screen` gives them: (n, H, W, 1) float32 from 0 to 255."""
    return torch.from_numpy(screens.astype(np.float32))[..., None]


def drawn(*things: tuple[int, int, int, int, int]) -> Screens:
    """A black screen with boxes: level, top, left, height, width."""
    screen = np.zeros((210, 160), np.uint8)
    for level, top, left, height, width in things:
        screen[top : top + height, left : left + width] = level
    return screen


BLACK = Levels(np.zeros((210, 160), np.uint8), np.array([90, 200], np.uint8))


# Background and levels.


@given(small)
def test_background_is_each_pixels_most_frequent_level(screens: Screens) -> None:
    fitted = levels.fit_levels(screens)
    for row, column in np.ndindex(HEIGHT, WIDTH):
        counts = np.bincount(screens[:, row, column], minlength=256)
        assert counts[fitted.background[row, column]] == counts.max()
    foreground = np.bincount(screens[screens != fitted.background], minlength=256)
    assert foreground[fitted.levels].tolist() == sorted(foreground[foreground > 0])[::-1]


def test_frames_in_which_nothing_changes_are_refused() -> None:
    with pytest.raises(UsageError, match="alike"):
        levels.fit_levels(np.zeros((4, HEIGHT, WIDTH), np.uint8))


@pytest.mark.parametrize(("length", "width"), [(210, 5), (160, 4), (13, 4)])
def test_bins_share_out_every_pixel(length: int, width: int) -> None:
    bins = levels.soft_bins(length, width)
    assert bins.shape == (length, length // width)
    assert (bins.sum(axis=1) == 2 * width).all() and (bins == bins.round()).all()
    assert (np.count_nonzero(bins, axis=1) <= 2).all()


# What the codes say.


@given(small)
def test_palette_counts_the_pixels_of_each_level(screens: Screens) -> None:
    fitted = palette.fit(features(screens), 2)
    code = fitted(features(screens)).numpy()
    wanted = []
    for shown in screens:
        for level in fitted.levels.levels:
            mask = (shown == level) & (shown != fitted.levels.background)
            for axis, width in ((1, palette.ROW_BIN), (0, palette.COLUMN_BIN)):
                weights = levels.soft_bins(mask.shape[1 - axis], width) / (2 * width)
                wanted.append(np.minimum(mask.sum(axis=axis) @ weights, 16) / 4)
    np.testing.assert_allclose(code.ravel(), np.concatenate(wanted), rtol=1e-6)


@given(small)
def test_objects_are_connected_components_of_a_level(screens: Screens) -> None:
    fitted = levels.fit_levels(screens)
    for shown in screens:
        wanted = []
        for number, level in enumerate(fitted.levels):
            mask = (shown == level) & (shown != fitted.background)
            labels, count = label(mask, np.ones((3, 3)))
            for thing in range(1, count + 1):
                rows, columns = np.nonzero(labels == thing)
                size = int(np.searchsorted(objects.SIZES, len(rows), side="right"))
                wanted.append((3 * number + size, rows.mean(), columns.mean()))
        of, centres = objects.components(shown[None], fitted)
        found = [(int(c), *centre) for c, centre in zip(of, centres, strict=True)]
        np.testing.assert_allclose(sorted(found), sorted(wanted), atol=1e-9)


def test_a_ball_and_a_paddle_of_one_colour_stay_apart() -> None:
    """In `palette` they add up; this is what `objects` is for."""
    classes = np.array([0, 1], np.uint8)  # Of the first level, small things and middling ones.
    fitted = objects.make(BLACK, classes, 9)
    paddle = (90, 100, 20, 16, 4)
    codes = fitted(features(np.stack([drawn(paddle, (90, r, 60, 4, 2)) for r in (50, 52)]))).numpy()
    ball, bat = codes.reshape(2, 2, 83).transpose(1, 0, 2)
    assert ball[:, 0].tolist() == bat[:, 0].tolist() == [1, 1]
    assert (bat[0] == bat[1]).all() and (ball[0] != ball[1]).any()
    # Its centre can be read off the bins: rows 51.5 and 53.5, columns 60.5.
    rows = ball[:, 1:43] @ (np.arange(42) * 5 + 2)
    columns = ball[:, 43:] @ (np.arange(40) * 4 + 1.5)
    np.testing.assert_allclose(rows, [51.5, 53.5], atol=5 / 4096)
    np.testing.assert_allclose(columns, [60.5, 60.5], atol=4 / 4096)


@pytest.mark.parametrize("kind", [palette, objects])
@given(screens=small)
def test_a_screens_code_depends_on_that_screen_alone(kind: Any, screens: Screens) -> None:
    fitted = kind.fit(features(screens), 3)
    together = fitted(features(screens))
    assert torch.equal(together, torch.cat([fitted(features(s[None])) for s in screens]))
    again = kind.load(kind.save(fitted))
    assert kind.save(again) == kind.save(fitted) and torch.equal(again(features(screens)), together)


def test_features_of_a_network_are_refused() -> None:
    for kind in (palette, objects):
        with pytest.raises(UsageError, match="--models palette,objects"):
            kind.fit(torch.zeros(3, 7, 7, 320), 3)


@pytest.mark.parametrize("output", ["map+palette:0", "map+palette:13", "map+objects:19"])
def test_numbers_out_of_range_are_refused(output: str, store: Backend) -> None:
    if output.endswith(":0"):
        with pytest.raises(UsageError, match="is not an output"):
            parse_output(output)
        return
    alias = output[4:].partition(":")[0]
    request = for_games([parse_request(alias, {}, output)], ["Pong"])[0]
    with pytest.raises(UsageError, match="sk for 1 to"):
        register(take_snapshot(store), request, 0.1)


# What comes with wsa.


def test_every_game_of_ale_is_shipped() -> None:
    for game in atari.games():
        known = game_levels.load(game)
        assert known is not None, game
        assert known[0].background.shape == (screen.SEES.height, screen.SEES.width)
        assert len(known[0].levels) >= 1 and len(known[1]) >= 1
    assert game_levels.load("NoGameOfThisName") is None


@pytest.mark.variants
@pytest.mark.parametrize("alias", ["objects", "palette"])
def test_the_ball_of_pong_can_be_read_off_the_code(alias: str) -> None:
    """On real play, by a linear map: what the shipped networks cannot do (docs/howto/probe.md)."""
    output = parse_output(screen.OUTPUTS[alias] + "@Pong")
    fitted = fit_reduction.shipped(output)
    assert fitted is not None
    env = atari.make_env("Pong", atari.protocol("Pong", "classic"), 4)
    env.reset(seed=3)
    rng = np.random.default_rng(3)
    shown = []
    for _ in range(250):
        observations, *_ = env.step(rng.integers(6, size=4))
        shown += list(atari.pictures(observations).copy())
    env.close()
    ball = np.array([236, 236, 236], np.uint8)
    frames, places = [], []
    for frame in shown:
        rows, columns = np.nonzero((frame[34:194] == ball).all(axis=-1))
        if 0 < len(rows) <= 16:
            frames.append(frame)
            places.append((rows.mean(), columns.mean()))
    assert len(frames) > 400
    grey = screens_of(np.stack(frames))
    code = fitted(features(grey)).double().numpy()
    train = np.arange(len(code)) % 4 != 0
    mean = code[train].mean(axis=0)
    x, y = code - mean, np.array(places)
    weights = np.linalg.solve(
        x[train].T @ x[train] + 0.1 * np.eye(x.shape[1]), x[train].T @ (y - y[train].mean(0))[train]
    )
    error = x[~train] @ weights + y[train].mean(axis=0) - y[~train]
    explained = 1 - (error**2).mean(axis=0) / y[~train].var(axis=0)
    assert (explained > 0.95).all(), explained


def screens_of(frames: NDArray[np.uint8]) -> Screens:
    """Frames (n, H, W, 3) as the network `screen` sees them."""
    from wsa.encode.inference.preprocess import shrink

    small: Screens = shrink(torch.from_numpy(frames), screen.SEES.preprocessing())[:, 0].numpy()
    return small


# As models of a store.


@pytest.fixture
def two_games(store: Backend, fill: Callable[..., Any]) -> Backend:
    """A store with a few frames of noise in two games, one of them in both."""
    fill(store, [[0, 1, 2], [2, 3, 4]])
    fill(store, [[5, 6, 0]], game="Breakout")
    return store


REQUESTS = [parse_request(alias, {}) for alias in screen.OUTPUTS]


def test_each_game_has_its_own_and_is_encoded_by_it_alone(two_games: Backend) -> None:
    report = encode(two_games, REQUESTS, scheduler="inproc")
    snapshot = take_snapshot(two_games)
    assert len(snapshot.models) == 4 and report.failed == ()
    for key in snapshot.models:
        game = read_spec(snapshot, key).game
        assert {meta.game for meta in snapshot.embeddings(model=key)} == {game}
        assert key in snapshot.models_of(game)
    # Equal frames of two games have different codes, so none is copied from one to the other.
    assert sum(e.passes for e in snapshot.embeddings(game="Breakout")) == 2 * 3
    assert sum(e.passes for e in snapshot.embeddings(game="Pong")) == 2 * 5
    backlog = read_status(snapshot.backend, snapshot).backlog
    assert backlog and set(backlog.values()) == {Backlog()}
    again = encode(two_games, REQUESTS, scheduler="inproc")
    assert again.passes == 0 and again.present == report.present + len(report.done)
    assert again.models and {m.spec.key for m in again.models} == set(snapshot.models)


def test_cached_is_live_to_the_bit(two_games: Backend) -> None:
    encode(two_games, REQUESTS, ["Pong"], scheduler="inproc")
    snapshot = take_snapshot(two_games)
    for key in snapshot.models:
        encoder = open_model(snapshot, key)
        for meta in snapshot.segments("Pong"):
            shown = snapshot.read_frames(meta)
            live = np.concatenate([stored(encoder(frame[None])) for frame in shown])
            there = snapshot.read_embedding("Pong", key, meta.segment)
            np.testing.assert_array_equal(live, there)
            assert live.dtype == there.dtype


def test_two_labs_that_have_not_met_have_the_same_keys(two_games: Backend, tmp_path: Path) -> None:
    from wsa.store.objects.root import open_store

    other = open_store(str(tmp_path / "other"), create=True)
    keys = []
    for backend in (two_games, other):  # The other has no frames at all.
        for request in for_games(REQUESTS, ["Seaquest", "Pong"]):
            keys.append(register(take_snapshot(backend), request, 0.1).spec.key)
    assert keys[:4] == keys[4:] and len(set(keys)) == 4


def test_a_game_that_is_not_shipped_is_fitted_on_its_frames(
    store: Backend, fill: Callable[..., Any]
) -> None:
    fill(store, [[0, 1, 2, 3]], game="Homebrew")
    request = for_games(REQUESTS[:1], ["Homebrew"])[0]
    found = register(take_snapshot(store), request, 0.1)
    assert found.fitted == 4
    # More frames come: the fit stays what it was.
    fill(store, [[7, 8, 9]], game="Homebrew")
    assert register(take_snapshot(store), request, 0.1).spec.key == found.spec.key


def test_another_fit_in_its_place_is_damage(
    two_games: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = for_games(REQUESTS[:1], ["Pong"])[0]
    key = register(take_snapshot(two_games), request, 0.1).spec.key
    other = fit_reduction.shipped(parse_output("map+palette:5@Breakout"))
    monkeypatch.setattr(palette, "load", lambda data: other)
    with pytest.raises(DamagedError, match="another model"):
        open_model(take_snapshot(two_games), key)


@pytest.mark.parametrize("spoil", [{"levels": (3, 3)}, {"levels": (0,)}, {"background": (9,)}])
@pytest.mark.parametrize("kind", [palette, objects])
def test_bytes_of_something_else_are_no_fit(kind: Any, spoil: dict[str, Any]) -> None:
    shapes = {"background": (9, 9), "levels": (2,), "classes": (1,)} | spoil
    arrays = {name: np.full(shape, 7, np.uint8) for name, shape in shapes.items()}
    with pytest.raises(ValueError, match="shapes"):
        kind.load(safetensors.numpy.save(arrays))


def test_classes_of_no_level_are_no_fit() -> None:
    arrays = {**BLACK.arrays, "classes": np.array([6], np.uint8)}
    with pytest.raises(ValueError, match="not of 6"):
        objects.load(safetensors.numpy.save(arrays))


@pytest.mark.parametrize(
    ("name", "options", "what"),
    [
        ("palette:random", {}, "has no weights"),
        ("palette", {"precision": "bf16"}, "no network"),
    ],
)
def test_what_they_do_not_have_is_refused(name: str, options: Any, what: str) -> None:
    with pytest.raises(UsageError, match=what):
        parse_request(name, {}, **options)


@pytest.mark.parametrize(
    ("output", "wanted"),
    [("grid:7", "map+palette:5"), ("map+objects:9", "map+palette:5"), ("map+palette:3",) * 2],
)
def test_an_output_of_networks_is_not_theirs(output: str, wanted: str) -> None:
    """So one command can encode networks with an output of the user's beside them."""
    assert parse_request("palette", {}, output).output == wanted
