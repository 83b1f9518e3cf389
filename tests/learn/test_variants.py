"""Variants of games: an unchanged console plays like the native environment, and each change does what it says."""

from __future__ import annotations

from typing import Any

import ale_py
import numpy as np
import pytest

from wsa.learn.envs import atari
from wsa.learn.envs.memory_changes import CHANGES
from wsa.learn.envs.variants import Variant, parse_variant
from wsa.store.common.errors import UsageError


class Play:
    """What environments return while random actions are taken.

    Attributes:
        frames: (steps + 1, envs, H, W, 3).
        rewards, terminated, truncated: (steps, envs).
        memory: (steps, 128), memory of a console's first environment before each step.
    """

    def __init__(self, make_env, game, protocol, steps, seed=1, envs=1, hold=6):
        # It holds each direction for some steps, so that the player gets somewhere.
        env = make_env(game, protocol, envs)
        generator = np.random.default_rng(seed)
        frames, memory, results = [env.reset(seed=seed)[0][:, 0].copy()], [], []
        actions = np.zeros(envs, np.int64)
        for step in range(steps):
            if hasattr(env, "_consoles"):
                memory.append(env._consoles[0].memory())
            if step % hold == 0:
                actions = generator.integers(len(protocol.actions), size=envs)
            observations, *result, _ = env.step(actions)
            frames.append(observations[:, 0].copy())
            results.append(result)
        env.close()
        self.frames, self.memory = np.array(frames), np.array(memory)
        self.rewards, self.terminated, self.truncated = map(np.array, zip(*results, strict=True))


def differences(one, other):
    """Names of the arrays that differ."""
    names = ("frames", "rewards", "terminated", "truncated")
    return [n for n in names if not np.array_equal(getattr(one, n), getattr(other, n))]


def play_native(game, protocol, steps, **options):
    return Play(atari.make_env, game, protocol, steps, **options)


def play_variant(spec, game, protocol, steps, **options):
    variant = parse_variant(spec, game) if spec else Variant("")
    return Play(variant.make_env, game, protocol, steps, **options)


def check_native(game, name, steps, seed, max_steps):
    protocol = atari.protocol(game, name, max_steps=max_steps)
    console = play_variant("", game, protocol, steps, seed=seed, envs=2)
    assert differences(console, play_native(game, protocol, steps, seed=seed, envs=2)) == []
    return console


# Resetting DoubleDunk presses buttons for a random number of frames.
@pytest.mark.parametrize(
    ("game", "name", "seed"), [("DoubleDunk", "classic", 7), ("Pong", "v5", 0)]
)
def test_an_unchanged_console_plays_like_the_native_environment(game, name, seed):
    console = check_native(game, name, steps=25, seed=seed, max_steps=10)
    assert console.truncated.sum() == 2 * 2


@pytest.mark.slow
@pytest.mark.parametrize("name", atari.PROTOCOLS)
@pytest.mark.parametrize("game", atari.games())
def test_an_unchanged_console_plays_every_game_like_the_native_environment(game, name):
    for seed in (1, 7, 10_000):
        check_native(game, name, 400, seed, max_steps=300)


WHOLE_GAMES: dict[str, Any] = {"steps": 140, "seed": 40, "hold": 1}


@pytest.fixture(scope="module")
def sticky_breakout():
    return atari.protocol("Breakout", "classic", sticky=0.25)


@pytest.fixture(scope="module")
def native_breakout(sticky_breakout):
    """More than one game of sticky Breakout."""
    return play_native("Breakout", sticky_breakout, **WHOLE_GAMES)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("", []),  # The next game begins with other no-ops and other sticky actions.
        ("ram:breakout-p0-b3", ["frames"]),
        *(
            pytest.param(f"ram:{name}", ["frames"], marks=pytest.mark.slow)
            for name in CHANGES
            if name.startswith("breakout-p1")
        ),
    ],
)
def test_whole_games_of_breakout_differ_in_looks(spec, expected, sticky_breakout, native_breakout):
    variant = play_variant(spec, "Breakout", sticky_breakout, **WHOLE_GAMES)
    assert differences(variant, native_breakout) == expected
    assert variant.terminated[:130].any()
    changed = (variant.frames[:60] != native_breakout.frames[:60]).any((1, 2, 3, 4))
    assert changed.all() == bool(expected)


def test_a_variant_that_names_the_defaults_changes_nothing():
    protocol = atari.protocol("Pong", "v5")
    defaults = "mode=0+difficulty=0+sticky=0.25+look:dim=1+look:hue=0+noise=0"
    variant = play_variant(defaults, "Pong", protocol, 20)
    assert differences(variant, play_native("Pong", protocol, 20)) == []


@pytest.mark.parametrize(
    ("game", "spec"), [("Breakout", "mode=12"), ("Pong", "difficulty=1"), ("Pong", "sticky=0.9")]
)
def test_switches_change_the_game_in_the_same_way_each_time(game, spec):
    protocol = atari.protocol(game, "classic")
    variant = play_variant(spec, game, protocol, 25)
    assert "frames" in differences(variant, play_native(game, protocol, 25))
    assert differences(variant, play_variant(spec, game, protocol, 25)) == []


def test_a_sticky_variant_equals_a_sticky_protocol(native_breakout):
    protocol = atari.protocol("Breakout", "classic")
    variant = play_variant("sticky=0.25", "Breakout", protocol, **WHOLE_GAMES)
    assert differences(variant, native_breakout) == []


def test_black_cars_of_freeway_change_frames_alone():
    protocol = atari.protocol("Freeway", "classic", sticky=0.25)
    variant = play_variant("ram:freeway-black", "Freeway", protocol, 25, hold=1)
    native = play_native("Freeway", protocol, 25, hold=1)
    assert differences(variant, native) == ["frames"]
    assert (variant.frames != native.frames).any((1, 2, 3, 4)).all()


def test_breakout_has_25_looks():
    emulator = ale_py.ALEInterface()
    emulator.loadROM(str(atari.rom("Breakout")))
    emulator.reset_game()
    looks = set()
    for name in [name for name in CHANGES if name.startswith("breakout")]:
        write = CHANGES[name].begin()
        for _ in range(2):
            write(emulator)
            emulator.act(ale_py.Action.NOOP)
        screen = emulator.getScreenRGB()
        player, block = tuple(screen[191, 70:140].max(0)), tuple(screen[70, 80])
        assert (player == block) == (name[10] == name[-1]), name
        looks.add((player, block))
    assert len(looks) == 25


def test_the_lazy_enemy_waits_while_the_ball_flies_away():
    protocol = atari.protocol("Pong", "classic")
    farthest = {}
    for spec in ("ram:pong-lazy", ""):
        memory = play_variant(spec, "Pong", protocol, 250).memory.astype(int)
        # Three steps of one flight; a serve moves the ball further than a step.
        flown = np.lib.stride_tricks.sliding_window_view(np.diff(memory[:, 49]), 3)
        moved = np.ptp(np.lib.stride_tricks.sliding_window_view(memory[:, 50], 4), axis=1)
        away, toward = ((flown > 0) & (flown < 9)).all(1), ((flown < 0) & (flown > -9)).all(1)
        farthest[spec] = moved[away].max(), moved[toward].max()
    (lazy, returning), (plain, _) = farthest.values()
    # The game itself moves the enemy by up to 4 in a frame from where it is put.
    assert lazy <= 4 and plain > 15 and returning > 15


def test_the_cars_of_freeway_stop():
    def moving_columns(spec):
        """Columns of the road, except for the chicken's, in which anything moves."""
        protocol = atari.protocol("Freeway", "classic")
        road = play_variant(spec, "Freeway", protocol, 60).frames[6:, 0, 22:185]
        moving = np.flatnonzero((road != road[0]).any((0, 1, 3)))
        return set(moving.tolist()) - set(range(40, 54))

    assert moving_columns("ram:freeway-stopped") <= set(range(155, 160))
    assert len(moving_columns("")) > 100


def test_the_oxygen_of_seaquest_lasts():
    protocol = atari.protocol("Seaquest", "classic")

    def oxygen(spec):
        return set(play_variant(spec, "Seaquest", protocol, 90).memory[1:, 102].tolist())

    assert oxygen("ram:seaquest-air") <= {63, 64}
    assert len(oxygen("")) > 9


def test_space_invaders_without_shields():
    protocol = atari.protocol("SpaceInvaders", "classic")
    native = play_native("SpaceInvaders", protocol, 150)
    variant = play_variant("ram:spaceinvaders-unshielded", "SpaceInvaders", protocol, 150)
    has_shields = [
        (play.frames[5:, 0, 157:175] == (181, 83, 40)).all(-1).any() for play in (native, variant)
    ]
    assert has_shields == [True, False]
    assert "rewards" in differences(variant, native)


def show(spec, frame, seed=3, step=0):
    return parse_variant(spec, "Pong")._show(frame, seed, step)


@pytest.fixture(scope="module")
def frame():
    """Pixels of 40 colors."""
    colors = np.random.default_rng(0).integers(0, 256, (40, 3)).astype(np.uint8)
    return colors[np.random.default_rng(1).integers(40, size=(210, 160))]


def test_looks_map_colors_in_their_order(frame):
    np.testing.assert_array_equal(show("look:invert", frame), 255 - frame)
    np.testing.assert_array_equal(show("look:dim=0.5", frame), (frame * 0.5).round())
    gray = show("look:gray", frame)
    assert (gray == gray[..., :1]).all()
    np.testing.assert_allclose(gray[..., 0], frame @ [0.299, 0.587, 0.114], atol=0.51)
    red = np.full((210, 160, 3), (200, 0, 0), np.uint8)
    np.testing.assert_array_equal(show("look:hue=120", red)[0, 0], (0, 200, 0))
    np.testing.assert_array_equal(show("look:hue=-120", red)[0, 0], (0, 0, 200))
    inverted_then_dim = show("look:invert+look:dim=0.5", frame)
    assert (inverted_then_dim != show("look:dim=0.5+look:invert", frame)).any()


def test_a_palette_keeps_colors_distinct(frame):
    mapped = show("look:palette=7", frame)
    pairs = np.concatenate([frame, mapped], axis=-1).reshape(-1, 6)
    count = len(np.unique(frame.reshape(-1, 3), axis=0))
    assert len(np.unique(pairs, axis=0)) == len(np.unique(pairs[:, 3:], axis=0)) == count
    np.testing.assert_array_equal(mapped, show("look:palette=7", frame, seed=4, step=9))
    assert (mapped != show("look:palette=8", frame)).any()


def test_distortions_are_as_strong_as_asked(frame):
    gray = np.full_like(frame, 128)
    noise = show("noise=0.1", gray).astype(float) - 128
    assert abs(noise.mean()) < 0.5 and noise.std() == pytest.approx(25.5, rel=0.02)
    hidden = show("occlude=16", gray)
    rows, columns = np.nonzero((hidden == 0).all(-1))
    assert len(rows) == 256 and np.ptp(rows) == np.ptp(columns) == 15
    assert (show("occlude=1000", gray) == 0).all()
    black = [not show("flicker=0.25", gray, step=step).any() for step in range(400)]
    assert np.mean(black) == pytest.approx(0.25, abs=0.07)


@pytest.mark.parametrize("spec", ["noise=0.1", "occlude=16", "flicker=0.5"])
def test_distortions_follow_from_seed_and_step(spec, frame):
    def distort(seed):
        return [show(spec, frame, seed, step).tobytes() for step in range(12)]

    assert distort(3) == distort(3) != distort(4)
    assert len(set(distort(3))) > 1


def test_noise_does_not_depend_on_the_number_of_environments():
    protocol = atari.protocol("Pong", "v5")
    two, one = (play_variant("noise=0.1", "Pong", protocol, 9, seed=5, envs=n) for n in (2, 1))
    np.testing.assert_array_equal(two.frames[0, 0], one.frames[0, 0])
    assert (two.frames[0, 0] != two.frames[0, 1]).any()
    assert differences(two, play_native("Pong", protocol, 9, seed=5, envs=2)) == ["frames"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "is unknown"),
        ("moed=1", "Did you mean mode"),
        ("invert", "Did you mean look:invert"),
        ("look:inverted", "Did you mean look:invert"),
        ("lazy", "Did you mean ram:pong-lazy"),
        ("ram:pong-lasy", "Did you mean ram:pong-lazy"),
        ("xyzzy", "There are mode, difficulty"),
        ("mode", "mode=NUMBER"),
        ("look:hue", "look:hue=NUMBER"),
        ("look:gray=1", "takes no number"),
        ("mode=7", "Pong has mode 0, 1"),
        ("difficulty=9", "Pong has difficulty 0, 1, 2, 3"),
        ("mode=1.5", "a whole number"),
        ("sticky=1", "from 0 to 0.999"),
        ("noise=nan", "from 0 to 1"),
        ("occlude=0", "from 1 to 1000"),
        ("look:palette=-1", "whole number from 0, not '-1'"),
        ("noise=0.1+noise=0.2", "give noise once"),
        ("noise=0.1+", "is unknown"),
        ("ram:breakout-p0-b0", "Pong has ram:pong-lazy"),
    ],
)
def test_unknown_parts_and_numbers_out_of_range_are_refused(spec, message):
    with pytest.raises(UsageError) as error:
        parse_variant(spec, "Pong")
    assert message in str(error.value)


def test_changes_of_the_same_memory_are_refused():
    with pytest.raises(UsageError, match="the same memory"):
        parse_variant("ram:breakout-p0-b1+ram:breakout-p2-b1", "Breakout")
    both = parse_variant("ram:freeway-black+ram:freeway-stopped", "Freeway")
    assert len(both.memory) == 2
    with pytest.raises(UsageError, match="MsPacman has none"):
        parse_variant("ram:pong-lazy", "MsPacman")
