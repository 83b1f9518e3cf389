"""The emulator as an environment: names, protocols, frames, resets, truncation, and seeds."""

import functools

import ale_py
import gymnasium
import msgspec
import numpy as np
import pytest
from ale_py import roms
from ale_py.vector_env import AtariVectorEnv

from wsa.learn.envs import atari
from wsa.store.common.errors import UsageError


@functools.cache
def bare_protocol(game, **changes):
    """Without chance, and without actions at a reset."""
    protocol = atari.protocol(game, "classic")
    return msgspec.structs.replace(protocol, **{"noop_max": 0, "fire_reset": False, **changes})


class Trace:
    """What each environment of a vector showed during random play."""

    def __init__(self, game, protocol, num_envs, steps, seed):
        env = atari.make_env(game, protocol, num_envs)
        generators = [np.random.default_rng([seed, i]) for i in range(num_envs)]
        observations, info = env.reset(seed=seed)
        self.first = atari.rgb_frames(observations).copy()
        self.lives = [info["lives"]]
        self.actions, self.seen, self.final = [], [], []
        self.rewards, self.terminated, self.truncated = [], [], []
        for _ in range(steps):
            actions = np.array([g.integers(len(protocol.actions)) for g in generators])
            observations, rewards, terminated, truncated, info = env.step(actions)
            self.actions.append(actions)
            self.seen.append(atari.rgb_frames(observations).copy())
            self.final.append(atari.rgb_frames(info.get("final_obs", observations)).copy())
            self.rewards.append(rewards)
            self.terminated.append(terminated)
            self.truncated.append(truncated)
            self.lives.append(info["lives"])
        env.close()

    def of(self, i):
        """Everything about environment i, each with time as first axis."""
        names = ("actions", "seen", "rewards", "terminated", "truncated", "lives")
        facts = {name: np.array([row[i] for row in getattr(self, name)]) for name in names}
        # Where no episode ended, the final observation means nothing.
        ends = np.flatnonzero(facts["terminated"] | facts["truncated"])
        return [self.first[i], np.array([self.final[t][i] for t in ends]), *facts.values()]


def assert_same_play(one, other, num_envs):
    for i in range(num_envs):
        for array, expected in zip(one.of(i), other.of(i), strict=True):
            np.testing.assert_array_equal(array, expected)


def test_there_are_104_games():
    assert len(atari.games()) == 104
    assert atari.games()["MsPacman"] == "ms_pacman"


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
def test_an_unknown_game_is_refused_with_the_nearest_names(wrong, right):
    with pytest.raises(UsageError, match=rf"Did you mean .*{right}") as error:
        atari.check_game(wrong)
    assert error.value.kind == "unknown-game"


@pytest.mark.parametrize("wrong", ["", "Qwertyuiop", "../../etc", "ALE/Seaquest-v5 "])
def test_a_name_that_resembles_no_game_is_refused(wrong):
    with pytest.raises(UsageError):
        atari.check_game(wrong)


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
def test_a_protocol_out_of_range_is_refused(options):
    with pytest.raises(UsageError):
        atari.protocol("Pong", **options)


def test_named_protocols_have_their_settings():
    classic = atari.protocol("Pong", "classic")
    assert classic.actions == ("NOOP", "FIRE", "RIGHT", "LEFT", "RIGHTFIRE", "LEFTFIRE")
    assert (classic.name, classic.sticky, classic.noop_max) == ("classic", 0.0, 30)
    v5 = atari.protocol("Pong", "v5")
    assert len(v5.actions) == 18
    assert (v5.name, v5.sticky, v5.noop_max, v5.fire_reset) == ("v5", 0.25, 0, False)
    assert atari.protocol("Pong", "v5", sticky=0.25) == v5
    assert atari.protocol("Pong", "v5", sticky=0.1).name == "custom"


@pytest.mark.parametrize("name", atari.PROTOCOLS)
def test_an_environment_has_the_actions_of_its_protocol_and_resets_in_the_same_step(name):
    protocol = atari.protocol("Breakout", name)
    env = atari.make_env("Breakout", protocol, 1)
    assert tuple(action.name for action in env.ale.get_action_set()) == protocol.actions
    assert env.metadata["autoreset_mode"] is gymnasium.vector.AutoresetMode.SAME_STEP
    assert env.single_observation_space.shape == (1, 210, 160, 3)
    env.close()


class Emulator:
    """The emulator itself, without frame skip, pooling, or limit."""

    def __init__(self, game, seed):
        atari.quiet_emulator()
        self.ale = ale_py.ALEInterface()
        self.ale.setFloat("repeat_action_probability", 0.0)
        self.ale.setInt("random_seed", seed)
        self.ale.loadROM(str(roms.get_rom_path(atari.games()[game])))
        self.actions = self.ale.getMinimalActionSet()

    def step(self, action):
        """The number of frames played, below four if the game ended, and the third and fourth."""
        played, screens = 0, []
        while played < atari.FRAME_SKIP and not self.ale.game_over():
            self.ale.act(self.actions[action])
            played += 1
            if played > 2:  # Reading a screen takes longer than playing.
                screens.append(self.ale.getScreenRGB())
        return played, screens


def test_frames_are_those_of_the_emulator_in_whichever_frame_a_game_ends():
    # With this seed the games end in the fourth, second, and first frame of a step.
    envs, steps, seed = 3, 190, 1
    trace = Trace("Breakout", bare_protocol("Breakout"), envs, steps, seed)
    ended_in = set()
    for i in range(envs):
        emulator = Emulator("Breakout", seed + i)
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
    assert ended_in == {1, 2, 4}


def test_fire_is_pressed_once_at_a_reset():
    env = atari.make_env("Breakout", bare_protocol("Breakout", fire_reset=True), 1)
    observations, _ = env.reset(seed=3)
    emulator = Emulator("Breakout", 3)
    emulator.ale.act(ale_py.Action.FIRE)
    np.testing.assert_array_equal(atari.rgb_frames(observations)[0], emulator.ale.getScreenRGB())
    env.close()


@pytest.mark.variants
@pytest.mark.parametrize("name", ["classic", "v5"])
def test_a_truncated_episode_ends_with_its_true_last_frame(name):
    """The same play with and without a limit: no-ops at the reset do not count as steps."""
    limit = 23
    cut = Trace("Seaquest", atari.protocol("Seaquest", name, max_steps=limit), 2, limit + 2, 5)
    uncut = Trace("Seaquest", atari.protocol("Seaquest", name), 2, limit, 5)
    np.testing.assert_array_equal(cut.first, uncut.first)
    for t in range(limit - 1):
        np.testing.assert_array_equal(cut.seen[t], uncut.seen[t])
    assert not np.any(cut.terminated)
    assert [bool(row.all()) for row in cut.truncated] == [t == limit - 1 for t in range(limit + 2)]
    np.testing.assert_array_equal(cut.final[limit - 1], uncut.seen[limit - 1])
    assert (cut.seen[limit - 1] != cut.final[limit - 1]).any()


@pytest.mark.variants
@pytest.mark.parametrize("name", atari.PROTOCOLS)
def test_a_used_emulator_plays_like_a_new_one(name, emulators):
    """The fixture `emulators` relies on it."""
    protocol = atari.protocol("Breakout", name, max_steps=25)
    emulators.clear()
    new = Trace("Breakout", protocol, 2, 40, seed=3)
    ((env,),) = emulators.values()
    Trace("Breakout", protocol, 2, 15, seed=4)
    used = Trace("Breakout", protocol, 2, 40, seed=3)
    assert emulators.popitem()[1] == [env], "one emulator played all three"
    assert_same_play(used, new, 2)


@pytest.mark.usefixtures("new_emulators")
def test_play_depends_on_the_seed_alone():
    """Not on the number of environments, the ends of others, or the number of threads."""
    protocol = atari.protocol("Breakout", "classic", sticky=0.25, max_steps=135)
    three = Trace("Breakout", protocol, 3, 140, seed=0)
    # Environment 0 is truncated in this time, and the game of environment 1 ends.
    assert np.any(three.truncated, axis=0)[0] and np.any(three.terminated, axis=0)[1]
    for threads in (1, 4):
        with pytest.MonkeyPatch.context() as patch:
            with_threads = functools.partialmethod(AtariVectorEnv.__init__, num_threads=threads)
            patch.setattr(AtariVectorEnv, "__init__", with_threads)
            two = Trace("Breakout", protocol, 2, 140, seed=0)
        assert_same_play(two, three, 2)
    # Environment 0 of seed 1 begins as environment 1 of seed 0, and then takes other actions.
    other = Trace("Breakout", protocol, 1, 20, seed=1)
    np.testing.assert_array_equal(other.first[0], three.first[1])
    assert (np.array(other.seen)[:, 0] != np.array(three.seen)[:20, 0]).any()
