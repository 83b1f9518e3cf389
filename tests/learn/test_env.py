from __future__ import annotations

import functools
from typing import Any

import ale_py
import gymnasium
import msgspec
import numpy as np
import pytest
from ale_py import roms
from ale_py.vector_env import AtariVectorEnv
from numpy.typing import NDArray

from wsa.learn.envs import atari as games
from wsa.store.common.errors import UsageError
from wsa.store.format.records import Protocol


@functools.cache
def bare(game: str, max_steps: int = games.MAX_STEPS, **changes: Any) -> Protocol:
    """No chance and nothing pressed at a reset."""
    stated = games.protocol(game, "classic", max_steps=max_steps)
    return msgspec.structs.replace(stated, **{"noop_max": 0, "fire_reset": False, **changes})


class Trace:
    """What each environment of a vector showed while random actions were taken."""

    def __init__(self, game: str, stated: Protocol, num_envs: int, steps: int, seed: int) -> None:
        env = games.make_env(game, stated, num_envs)
        generators = [np.random.default_rng([seed, i]) for i in range(num_envs)]
        observations, info = env.reset(seed=seed)
        self.first = games.pictures(observations).copy()
        self.lives = [info["lives"]]
        self.actions, self.seen, self.final = [], [], []
        self.rewards, self.terminated, self.truncated = [], [], []
        for _ in range(steps):
            actions = np.array([g.integers(len(stated.actions)) for g in generators])
            observations, rewards, terminated, truncated, info = env.step(actions)
            self.actions.append(actions)
            self.seen.append(games.pictures(observations).copy())
            final = info.get("final_obs", observations)
            self.final.append(games.pictures(final).copy())
            self.rewards.append(rewards)
            self.terminated.append(terminated)
            self.truncated.append(truncated)
            self.lives.append(info["lives"])
        env.close()

    def of(self, i: int) -> list[NDArray[Any]]:
        """Everything about environment i, each with time as first axis."""
        names = ("actions", "seen", "rewards", "terminated", "truncated", "lives")
        line = {name: np.array([row[i] for row in getattr(self, name)]) for name in names}
        # Where no episode ended, the final observation of a neighbour's end means nothing.
        ends = np.flatnonzero(line["terminated"] | line["truncated"])
        return [self.first[i], np.array([self.final[t][i] for t in ends]), *line.values()]


def test_there_are_104_games() -> None:
    assert len(games.games()) == 104
    assert games.games()["MsPacman"] == "ms_pacman"


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("seaquest", "Seaquest"),
        ("ALE/Seaquest", "Seaquest"),
        ("Seaqest", "Seaquest"),
        ("Space Invaders", "SpaceInvaders"),
        ("ms_pacman", "MsPacman"),
    ],
)
def test_a_wrong_game_answers_with_the_nearest_names(wrong: str, right: str) -> None:
    with pytest.raises(UsageError, match=rf"Did you mean .*{right}") as caught:
        games.check_game(wrong)
    assert caught.value.kind == "unknown-game"


@pytest.mark.parametrize("wrong", ["", "Qwertyuiop", "../../etc", "ALE/Seaquest-v5 "])
def test_no_game_is_made_up(wrong: str) -> None:
    with pytest.raises(UsageError):
        games.check_game(wrong)


@pytest.mark.parametrize(
    "options",
    [
        {"name": "v4"},
        {"name": "classic", "sticky": -0.1},
        {"name": "classic", "sticky": 1.0},
        {"name": "classic", "sticky": float("nan")},
        {"name": "v5", "max_steps": 0},
        {"name": "v5", "max_steps": 2**31},
    ],
)
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        games.protocol("Pong", **options)


def test_protocols_say_what_they_are() -> None:
    classic = games.protocol("Pong", "classic")
    assert classic.actions == ("NOOP", "FIRE", "RIGHT", "LEFT", "RIGHTFIRE", "LEFTFIRE")
    assert (classic.name, classic.sticky, classic.noop_max) == ("classic", 0.0, 30)
    v5 = games.protocol("Pong", "v5")
    assert len(v5.actions) == 18
    assert (v5.name, v5.sticky, v5.noop_max, v5.fire_reset) == ("v5", 0.25, 0, False)
    assert games.protocol("Pong", "v5", sticky=0.25) == v5
    assert games.protocol("Pong", "v5", sticky=0.1).name == "custom"


@pytest.mark.parametrize("name", games.PROTOCOLS)
def test_actions_are_those_of_the_environment(name: str) -> None:
    stated = games.protocol("Breakout", name)
    env = games.make_env("Breakout", stated, 1)
    assert tuple(action.name for action in env.ale.get_action_set()) == stated.actions
    env.close()


def test_the_environment_resets_in_the_same_step() -> None:
    env = games.make_env("Pong", bare("Pong"), 2)
    assert env.metadata["autoreset_mode"] is gymnasium.vector.AutoresetMode.SAME_STEP
    assert env.single_observation_space.shape == (1, 210, 160, 3)
    env.close()


class Emulator:
    """The emulator itself, without skipping, pooling or limit."""

    def __init__(self, game: str, seed: int) -> None:
        games.quiet_emulator()
        self.ale = ale_py.ALEInterface()
        self.ale.setFloat("repeat_action_probability", 0.0)
        self.ale.setInt("random_seed", seed)
        self.ale.loadROM(str(roms.get_rom_path(games.games()[game])))
        self.actions = self.ale.getMinimalActionSet()

    def step(self, action: int) -> tuple[int, list[NDArray[np.uint8]]]:
        """How many emulator frames a step had, fewer than four if the game ends; its third and fourth screen."""
        played, screens = 0, []
        while played < games.FRAME_SKIP and not self.ale.game_over():
            self.ale.act(self.actions[action])
            played += 1
            if played > 2:  # To make a picture takes longer than to play.
                screens.append(self.ale.getScreenRGB())
        return played, screens


def test_frames_are_the_emulators_and_the_last_one_is_what_the_docstring_says() -> None:
    """Every step of seven games of Breakout against the emulator, whichever frame they end in."""
    envs, steps = 4, 450
    trace = Trace("Breakout", bare("Breakout"), envs, steps, seed=1)
    ended_in = set()
    for i in range(envs):
        emulator = Emulator("Breakout", 1 + i)
        before = emulator.ale.getScreenRGB()
        np.testing.assert_array_equal(trace.first[i], before)
        for t in range(steps):
            played, screens = emulator.step(int(trace.actions[t][i]))
            assert trace.terminated[t][i] == emulator.ale.game_over()
            assert not trace.truncated[t][i]
            if not trace.terminated[t][i]:
                before = np.maximum(*screens)
                np.testing.assert_array_equal(trace.seen[t][i], before)
                continue
            ended_in.add(played)
            last = before if played < 4 else np.maximum(before, screens[0])
            np.testing.assert_array_equal(trace.final[t][i], last)
            emulator.ale.reset_game()
            before = emulator.ale.getScreenRGB()
            np.testing.assert_array_equal(trace.seen[t][i], before)
    assert ended_in >= {1, 2, 4}


def test_fire_is_pressed_once_at_a_reset() -> None:
    env = games.make_env("Breakout", bare("Breakout", fire_reset=True), 1)
    observations, _ = env.reset(seed=3)
    emulator = Emulator("Breakout", 3)
    emulator.ale.act(ale_py.Action.FIRE)
    np.testing.assert_array_equal(games.pictures(observations)[0], emulator.ale.getScreenRGB())
    env.close()


@pytest.mark.variants
@pytest.mark.parametrize("name", ["classic", "v5"])
def test_a_truncated_episode_ends_with_its_true_last_frame(name: str) -> None:
    """The same play with and without a limit: no-ops at the reset do not count as steps."""
    limit = 23
    cut = Trace("Seaquest", games.protocol("Seaquest", name, max_steps=limit), 3, limit + 2, 5)
    uncut = Trace("Seaquest", games.protocol("Seaquest", name), 3, limit, 5)
    np.testing.assert_array_equal(cut.first, uncut.first)
    for t in range(limit - 1):
        np.testing.assert_array_equal(cut.seen[t], uncut.seen[t])
    assert not np.any(cut.terminated)
    assert [bool(row.all()) for row in cut.truncated] == [t == limit - 1 for t in range(limit + 2)]
    np.testing.assert_array_equal(cut.final[limit - 1], uncut.seen[limit - 1])
    assert (cut.seen[limit - 1] != cut.final[limit - 1]).any()


@pytest.mark.variants
@pytest.mark.parametrize("name", games.PROTOCOLS)
def test_a_used_emulator_plays_as_a_new_one(name: str, emulators: dict[Any, list[Any]]) -> None:
    """So that tests may be given emulators that others have played with."""
    stated = games.protocol("Breakout", name, max_steps=40)
    emulators.clear()
    new = Trace("Breakout", stated, 2, 60, seed=3)
    ((env,),) = emulators.values()
    Trace("Breakout", stated, 2, 25, seed=4)
    used = Trace("Breakout", stated, 2, 60, seed=3)
    assert emulators.popitem()[1] == [env], "one emulator played all three"
    for i in range(2):
        for ours, theirs in zip(used.of(i), new.of(i), strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.usefixtures("new_emulators")
def test_play_depends_on_the_seed_alone() -> None:
    """Not on the neighbours, their ends, or the number of threads."""
    stated = games.protocol("Breakout", "v5", max_steps=150)
    four = Trace("Breakout", stated, 4, 320, seed=0)
    assert np.sum(four.truncated) > 0 and np.sum(four.terminated) > 0
    for threads in (1, 4):
        with pytest.MonkeyPatch.context() as patch:
            made = functools.partialmethod(AtariVectorEnv.__init__, num_threads=threads)
            patch.setattr(AtariVectorEnv, "__init__", made)
            two = Trace("Breakout", stated, 2, 320, seed=0)
        for i in range(2):
            for ours, theirs in zip(two.of(i), four.of(i), strict=True):
                np.testing.assert_array_equal(ours, theirs)
    other = Trace(
        "Breakout", stated, 1, 320, seed=1
    )  # environment 0 of seed 1 is number 1 of seed 0
    np.testing.assert_array_equal(other.first[0], four.first[1])
    assert (np.array(other.seen)[:, 0] != np.array(four.seen)[:, 0]).any()


def test_rewards_are_raw_and_lives_are_told() -> None:
    trace = Trace("SpaceInvaders", games.protocol("SpaceInvaders", "v5"), 2, 300, seed=2)
    assert np.max(trace.rewards) > 1
    lives = np.array(trace.lives)
    assert lives.max() == 3 and lives.min() < 3
