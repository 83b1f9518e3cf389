"""Games played on a console that can be changed: unchanged it is the native one, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ale_py
import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from wsa.learn.envs import atari as games
from wsa.learn.envs.memory_changes import CHANGES
from wsa.learn.envs.variants import Variant, parse_variant
from wsa.store.common.errors import UsageError
from wsa.store.format.records import Protocol

Made = Callable[[str, Protocol, int], Any]


class Play:
    """What environments showed and gave while random actions were taken.

    Attributes:
        frames: (steps + 1, envs, H, W, 3).
        rewards, terminated, truncated: (steps, envs).
        memory: (steps + 1, 128), of the first environment of a console.
    """

    def __init__(
        self,
        make: Made,
        game: str,
        stated: Protocol,
        steps: int,
        seed: int = 1,
        envs: int = 1,
        hold: int = 6,  # Steps in one direction, to get somewhere.
    ) -> None:
        env = make(game, stated, envs)
        generator = np.random.default_rng(seed)
        frames, memory, given = [env.reset(seed=seed)[0][:, 0].copy()], [], []
        actions = np.zeros(envs, np.int64)
        for step in range(steps):
            if hasattr(env, "_consoles"):
                memory.append(env._consoles[0].memory())
            if step % hold == 0:
                actions = generator.integers(len(stated.actions), size=envs)
            observations, *rest, _ = env.step(actions)
            frames.append(observations[:, 0].copy())
            given.append(rest)
        env.close()
        self.frames, self.memory = np.array(frames), np.array(memory)
        self.rewards, self.terminated, self.truncated = map(np.array, zip(*given, strict=True))


def unlike(ours: Play, theirs: Play) -> list[str]:
    """Which of what was shown and given differs."""
    names = ("frames", "rewards", "terminated", "truncated")
    pairs = {name: (getattr(ours, name), getattr(theirs, name)) for name in names}
    return [name for name, (one, other) in pairs.items() if not np.array_equal(one, other)]


def changed(spec: str, game: str) -> Made:
    return parse_variant(spec, game).make_env


def check_native(game: str, name: str, steps: int, seed: int, **details: Any) -> Play:
    stated = games.protocol(game, name, **details)
    ours = Play(Variant("").make_env, game, stated, steps, seed, envs=2)
    assert unlike(ours, Play(games.make_env, game, stated, steps, seed, envs=2)) == []
    return ours


@pytest.mark.parametrize("name", games.PROTOCOLS)
@pytest.mark.parametrize("game", ["Pong", "DoubleDunk"])
def test_unchanged_it_is_the_native_environment(game: str, name: str) -> None:
    """Also where a reset presses buttons, for a while that chance decides."""
    ours = check_native(game, name, 60, seed=0 if game == "Pong" else 7, max_steps=25)
    assert ours.truncated.sum() == 2 * 2


def test_so_are_the_ends_of_games() -> None:
    """The next one begins with other no-ops, and with other sticky actions."""
    stated = games.protocol("Breakout", "classic", sticky=0.25)
    how: Any = {"steps": 140, "seed": 40, "hold": 1}
    ours = Play(Variant("").make_env, "Breakout", stated, **how)
    assert unlike(ours, Play(games.make_env, "Breakout", stated, **how)) == []
    assert ours.terminated[:130].any()


@pytest.mark.slow
@pytest.mark.parametrize("name", games.PROTOCOLS)
@pytest.mark.parametrize("game", games.games())
def test_unchanged_every_game_is_the_native_one(game: str, name: str) -> None:
    for seed in (1, 7, 10_000):
        check_native(game, name, 400, seed, max_steps=300)


def test_what_is_chosen_as_it_is_changes_nothing() -> None:
    stated = games.protocol("Pong", "v5")
    plain = Play(games.make_env, "Pong", stated, 40)
    same = changed("mode=0+difficulty=0+sticky=0.25+look:dim=1+look:hue=0+noise=0", "Pong")
    assert unlike(Play(same, "Pong", stated, 40), plain) == []


@pytest.mark.parametrize(
    ("game", "spec"), [("Breakout", "mode=12"), ("Pong", "difficulty=1"), ("Pong", "sticky=0.9")]
)
def test_switches_change_the_game(game: str, spec: str) -> None:
    stated = games.protocol(game, "classic")
    ours = Play(changed(spec, game), game, stated, 60)
    assert "frames" in unlike(ours, Play(games.make_env, game, stated, 60))
    assert unlike(ours, Play(changed(spec, game), game, stated, 60)) == []


def test_sticky_is_the_protocols_own() -> None:
    stated = games.protocol("Breakout", "classic")
    sticky = msgspec.structs.replace(stated, sticky=0.25)
    ours = Play(changed("sticky=0.25", "Breakout"), "Breakout", stated, 60)
    assert unlike(ours, Play(games.make_env, "Breakout", sticky, 60)) == []


LOOKS = [name for name, change in CHANGES.items() if not change.rules]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name.startswith("breakout-p1") else [])
        for name in LOOKS
        if name in ("breakout-p0-b3", "freeway-black") or name.startswith("breakout-p1")
    ],
)
def test_other_looks_change_frames_alone(name: str) -> None:
    game = CHANGES[name].game
    stated = games.protocol(game, "classic", sticky=0.25)
    how: Any = {"steps": 140, "seed": 40, "hold": 1}
    ours = Play(changed(f"ram:{name}", game), game, stated, **how)
    plain = Play(games.make_env, game, stated, **how)
    assert unlike(ours, plain) == ["frames"]
    assert plain.terminated.any() == (game == "Breakout")
    assert (ours.frames[:60] != plain.frames[:60]).any((1, 2, 3, 4)).all()


def test_breakout_has_25_looks() -> None:
    emulator = ale_py.ALEInterface()
    emulator.loadROM(str(games.rom("Breakout")))
    emulator.reset_game()
    seen = set()
    for name in [name for name in CHANGES if name.startswith("breakout")]:
        write = CHANGES[name].begin()
        for _ in range(2):
            write(emulator)
            emulator.act(ale_py.Action.NOOP)
        screen = emulator.getScreenRGB()
        # The player and the blocks have a colour each, also where these are the same.
        player, block = tuple(screen[191, 70:140].max(0)), tuple(screen[70, 80])
        assert (player == block) == (name[10] == name[-1]), name
        seen.add((player, block))
    assert len(seen) == 25


def test_the_lazy_enemy_waits_while_the_ball_flies_away() -> None:
    stated = games.protocol("Pong", "classic")
    farthest = {}
    for make in (changed("ram:pong-lazy", "Pong"), Variant("").make_env):
        memory = Play(make, "Pong", stated, 250).memory.astype(int)
        # Three steps of one flight; a serve takes the ball further than a step.
        flown = np.lib.stride_tricks.sliding_window_view(np.diff(memory[:, 49]), 3)
        moved = np.ptp(np.lib.stride_tricks.sliding_window_view(memory[:, 50], 4), axis=1)
        away, towards = ((flown > 0) & (flown < 9)).all(1), ((flown < 0) & (flown > -9)).all(1)
        farthest[make] = moved[away].max(), moved[towards].max()
    (lazy, returning), (plain, _) = farthest.values()
    # The game itself moves the enemy by up to 4 in a frame, from where it is put.
    assert lazy <= 4 and plain > 15 and returning > 15


def test_freeways_cars_stop() -> None:
    stated = games.protocol("Freeway", "classic")

    def columns(make: Made) -> set[int]:
        """In which columns of the road, but for the chicken's, anything moves."""
        road = Play(make, "Freeway", stated, 60).frames[6:, 0, 22:185]
        moving = np.flatnonzero((road != road[0]).any((0, 1, 3)))
        return set(moving.tolist()) - set(range(40, 54))

    assert columns(changed("ram:freeway-stopped", "Freeway")) <= set(range(155, 160))
    assert len(columns(games.make_env)) > 100


def test_the_oxygen_of_seaquest_lasts() -> None:
    stated = games.protocol("Seaquest", "classic")
    lasting = Play(changed("ram:seaquest-air", "Seaquest"), "Seaquest", stated, 90).memory[1:, 102]
    assert set(lasting.tolist()) <= {63, 64}
    assert len(set(Play(Variant("").make_env, "Seaquest", stated, 90).memory[1:, 102].tolist())) > 9


def test_space_invaders_without_shields() -> None:
    game = "SpaceInvaders"
    stated = games.protocol(game, "classic")
    shields = slice(157, 175)
    plain = Play(games.make_env, game, stated, 250)
    ours = Play(changed("ram:spaceinvaders-unshielded", game), game, stated, 250)
    shield = (181, 83, 40)
    assert (plain.frames[5, 0, shields] == shield).all(-1).any()
    assert not (ours.frames[5:, 0, shields] == shield).all(-1).any()
    assert "rewards" in unlike(ours, plain)


def shown(spec: str, frame: NDArray[np.uint8], seed: int = 3, step: int = 0) -> NDArray[np.uint8]:
    return parse_variant(spec, "Pong")._show(frame, seed, step)


@pytest.fixture(scope="module")
def frame() -> NDArray[np.uint8]:
    colours = np.random.default_rng(0).integers(0, 256, (40, 3)).astype(np.uint8)
    return colours[np.random.default_rng(1).integers(40, size=(210, 160))]


def test_colours_are_mapped(frame: NDArray[np.uint8]) -> None:
    np.testing.assert_array_equal(shown("look:invert", frame), 255 - frame)
    np.testing.assert_array_equal(shown("look:dim=0.5", frame), (frame * 0.5).round())
    grey = shown("look:grey", frame)
    assert (grey == grey[..., :1]).all()
    np.testing.assert_allclose(grey[..., 0], frame @ [0.299, 0.587, 0.114], atol=0.51)
    red = np.full((210, 160, 3), (200, 0, 0), np.uint8)
    np.testing.assert_array_equal(shown("look:hue=120", red)[0, 0], (0, 200, 0))
    np.testing.assert_array_equal(shown("look:hue=-120", red)[0, 0], (0, 0, 200))
    inverted_then_dim = shown("look:invert+look:dim=0.5", frame)
    assert (inverted_then_dim != shown("look:dim=0.5+look:invert", frame)).any()


def test_a_palette_keeps_colours_apart(frame: NDArray[np.uint8]) -> None:
    other = shown("look:palette=7", frame)
    pairs = np.concatenate([frame, other], axis=-1).reshape(-1, 6)
    count = len(np.unique(frame.reshape(-1, 3), axis=0))
    assert len(np.unique(pairs, axis=0)) == len(np.unique(pairs[:, 3:], axis=0)) == count
    np.testing.assert_array_equal(other, shown("look:palette=7", frame, seed=4, step=9))
    assert (other != shown("look:palette=8", frame)).any()


def test_distortions_do_what_they_say(frame: NDArray[np.uint8]) -> None:
    half = np.full_like(frame, 128)
    noisy = shown("noise=0.1", half).astype(float) - 128
    assert abs(noisy.mean()) < 0.5 and noisy.std() == pytest.approx(25.5, rel=0.02)
    hidden = shown("occlude=16", half)
    rows, columns = np.nonzero((hidden == 0).all(-1))
    assert len(rows) == 256 and np.ptp(rows) == np.ptp(columns) == 15
    assert (shown("occlude=1000", half) == 0).all()
    black = [not shown("flicker=0.25", half, step=step).any() for step in range(400)]
    assert np.mean(black) == pytest.approx(0.25, abs=0.07)


@pytest.mark.parametrize("spec", ["noise=0.1", "occlude=16", "flicker=0.5"])
def test_distortions_follow_from_seed_and_step(spec: str, frame: NDArray[np.uint8]) -> None:
    def many(seed: int) -> bytes:
        return b"".join(shown(spec, frame, seed, step).tobytes() for step in range(12))

    assert many(3) == many(3) != many(4)
    assert len({shown(spec, frame, 3, step).tobytes() for step in range(12)}) > 1


def test_environments_are_disturbed_each_on_its_own() -> None:
    """As everything in a game, noise does not depend on the number of its neighbours."""
    stated = games.protocol("Pong", "v5")
    make = changed("noise=0.1", "Pong")
    two, one = Play(make, "Pong", stated, 9, 5, envs=2), Play(make, "Pong", stated, 9, 5, envs=1)
    np.testing.assert_array_equal(two.frames[0, 0], one.frames[0, 0])
    assert (two.frames[0, 0] != two.frames[0, 1]).any()
    plain = Play(games.make_env, "Pong", stated, 9, 5, envs=2)
    assert unlike(two, plain) == ["frames"]


@pytest.mark.parametrize(
    ("spec", "said"),
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
        ("look:grey=1", "takes no number"),
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
def test_what_cannot_be_is_refused(spec: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_variant(spec, "Pong")
    assert said in str(caught.value)


def test_changes_of_the_same_memory_are_refused() -> None:
    with pytest.raises(UsageError, match="the same memory"):
        parse_variant("ram:breakout-p0-b1+ram:breakout-p2-b1", "Breakout")
    both = parse_variant("ram:freeway-black+ram:freeway-stopped", "Freeway")
    assert len(both.memory) == 2
    with pytest.raises(UsageError, match="MsPacman has none"):
        parse_variant("ram:pong-lazy", "MsPacman")
