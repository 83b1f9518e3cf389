"""Evaluation: games and their returns, greedy play, the table of results, videos, and weights."""

from __future__ import annotations

import csv
import functools
from collections import Counter
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from learn_kit import read_video
from numpy.typing import NDArray

from wsa.learn.configs.evaluation import EvaluationSettings
from wsa.learn.envs import atari
from wsa.learn.envs.policies import RandomPolicy
from wsa.learn.envs.variants import parse_variant
from wsa.learn.evaluation import attention_log, random_games
from wsa.learn.evaluation.episodes import Episode, play, write_csv
from wsa.learn.evaluation.greedy_policy import GreedyPolicy
from wsa.learn.evaluation.random_games import RandomGames
from wsa.learn.evaluation.video import (
    COLORS,
    LINE,
    MARGIN,
    PANEL,
    TALLEST_ROW,
    Films,
    panel,
)
from wsa.store.common import names
from wsa.store.common.errors import ConflictError, StorageError, UsageError


@functools.cache
def stated(game, max_steps):
    return atari.protocol(game, "classic", max_steps=max_steps)


class Spy:
    """A policy that keeps what it was shown and did."""

    def __init__(self, policy):
        self.policy = policy
        self.calls: list[tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]] = []

    def __call__(self, frames, first, envs):
        actions = self.policy(frames, first, envs)
        self.calls.append((frames.copy(), first.copy(), envs.copy(), actions))
        return actions

    def of(self, env):
        """Frames, starts and actions of one environment."""
        own = [(f[e == env][0], s[e == env][0], a[e == env][0]) for f, s, e, a in self.calls
               if env in e]  # fmt: skip
        frames, first, actions = zip(*own, strict=True)
        return list(frames), [bool(f) for f in first], [int(a) for a in actions]


def games_of(episodes, seed, num_envs=4):
    return EvaluationSettings(episodes, seed=seed, num_envs=num_envs)


@pytest.mark.parametrize("episodes, num_envs", [(1, 4), (5, 3), (6, 3), (4, 1)])
def test_each_environment_plays_its_share(episodes, num_envs):
    progress = []
    protocol = stated("Pong", 9)
    played = play(
        "Pong", protocol, RandomPolicy(6, 0), games_of(episodes, 3, num_envs),
        on_step=lambda steps, done: progress.append((steps, done)),
    )  # fmt: skip
    count = min(episodes, num_envs)
    shares = Counter(e.env for e in played)
    assert len(played) == episodes and sorted(shares) == list(range(count))
    assert max(shares.values()) - min(shares.values()) <= 1
    assert [e.env for e in played] == sorted(e.env for e in played)
    assert all(e.seed == 3 + e.env for e in played)
    assert all(e.truncated and e.steps == 9 for e in played)
    assert progress[-1] == (9 * episodes, episodes)


class Recorder:
    """A watcher that keeps every moment."""

    def __init__(self):
        self.moments = []

    def see(self, moment):
        self.moments.append(moment)


def test_whole_games_have_the_emulators_returns_and_watchers_see_each_step():
    protocol = stated("Breakout", 27_000)
    spy, recorder = Spy(RandomPolicy(4, 2)), Recorder()
    played = play("Breakout", protocol, spy, games_of(3, 11, 2), watchers=[recorder])
    # Each environment plays its share, so that short games are not counted more often.
    assert [e.env for e in played] == [0, 0, 1]
    assert len({e.steps for e in played}) == 3 and not any(e.truncated for e in played)
    assert any(e.returned > 0 for e in played)
    for number in range(2):
        episodes = [e for e in played if e.env == number]
        frames, first, actions = spy.of(number)
        moments = [(m, int(np.flatnonzero(m.envs == number)[0]))
                   for m in recorder.moments if number in m.envs]  # fmt: skip
        env = atari.make_env("Breakout", protocol, 1)
        observations, info = env.reset(seed=11 + number)
        at = 0
        for count, episode in enumerate(episodes):
            total, lives, start = 0.0, [int(info["lives"][0])], at
            terminated = truncated = np.zeros(1, np.bool_)
            while not (terminated[0] or truncated[0]):
                np.testing.assert_array_equal(atari.rgb_frames(observations)[0], frames[at])
                assert first[at] == (at == start)
                action = np.array([actions[at]])
                observations, rewards, terminated, truncated, info = env.step(action)
                moment, i = moments[at]
                assert (moment.steps[i], moment.episodes[i]) == (at - start, count)
                assert moment.rewards[i] == rewards[0] and moment.ended[i] == terminated[0]
                total, at = total + float(rewards[0]), at + 1
                if not terminated[0]:
                    lives.append(int(info["lives"][0]))
            assert (episode.returned, episode.steps) == (total, at - start)
            assert episode.truncated == bool(truncated[0]) is False
            # A lost life is not an end.
            assert lives[0] == 5 and min(lives) == 1
        assert at == len(actions) == len(moments)
        env.close()


def test_rewards_are_raw():
    # Space Invaders gives 5 points or more at a time.
    game = "SpaceInvaders"
    played = play(game, stated(game, 200), RandomPolicy(6, 0), games_of(2, 1, 2))
    assert max(e.returned for e in played) >= 5
    assert all(e.returned % 5 == 0 for e in played)


def test_the_same_seed_plays_the_same_games():
    def run(seed):
        return play("Breakout", stated("Breakout", 15), RandomPolicy(4, seed), games_of(2, seed))

    assert run(1) == run(1) != run(2)


def test_games_of_a_seed_do_not_depend_on_other_environments():
    # The policy must not depend on them either, so it takes one action.
    class Right:
        def __call__(self, frames, first, envs):
            return np.full(len(envs), 2)

    protocol = stated("Breakout", 40)
    alone = play("Breakout", protocol, Right(), games_of(1, 21))
    beside = play("Breakout", protocol, Right(), games_of(3, 21, 3))
    assert alone[0] == beside[0]


def test_a_video_shows_the_frames_of_an_episode(tmp_path):
    spy = Spy(RandomPolicy(6, 0))
    with Films(tmp_path / "videos") as films:
        play("Pong", stated("Pong", 12), spy, games_of(3, 1, 2), watchers=[films])
    videos = sorted((tmp_path / "videos").iterdir())
    assert [path.name for path in videos] == ["episode_0.mp4", "episode_1.mp4"]
    shown = np.array(spy.of(0)[0]).astype(int)
    for path, expected in zip(videos, (shown[:12], shown[12:]), strict=True):
        frames = np.array(read_video(path))[:, ::2, : 2 * 160 : 2]
        assert len(frames) == 12
        assert np.abs(frames - expected).mean() < 6  # The video is lossy.


def test_a_video_that_cannot_be_written_is_an_error(tmp_path):
    folder = tmp_path / "films"
    (folder / "episode_0.mp4").mkdir(parents=True)
    with pytest.raises(StorageError, match="--video"), Films(folder) as films:
        play("Pong", stated("Pong", 9), RandomPolicy(6, 0), games_of(1, 1), watchers=[films])


def test_the_video_of_an_interrupted_game_is_not_kept(tmp_path):
    class Stop:
        def see(self, moment):
            if moment.steps[0] == 5:
                raise KeyboardInterrupt

    folder = tmp_path / "films"
    with pytest.raises(KeyboardInterrupt), Films(folder) as films:
        play(
            "Pong", stated("Pong", 9), RandomPolicy(6, 0), games_of(1, 1), watchers=[films, Stop()]
        )
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("episodes, num_envs", [(0, 1), (1, 0)])
def test_zero_episodes_or_environments_are_refused(episodes, num_envs):
    with pytest.raises(UsageError, match="at least 1"):
        play("Pong", stated("Pong", 9), RandomPolicy(6, 0), games_of(episodes, 0, num_envs))


class FakeStacks:
    """The number in a frame's corner, as a stack."""

    def see(self, frames, first, envs):
        return torch.from_numpy(frames[:, :1, 0, :1].astype(np.float32))


class FakeNetwork(torch.nn.Module):
    """Prefers the action that the frame names."""

    device, recurrent = "cpu", False

    def forward(self, stacks, mask):
        return -(torch.arange(4.0) - stacks[:, 0]).abs(), torch.ones(len(stacks), 1)


def make_policy(epsilon, seed=3):
    network: Any = FakeNetwork()
    stacks: Any = FakeStacks()
    return GreedyPolicy(network, stacks, 4, epsilon, seed)


def act(policy, wanted):
    envs = np.arange(len(wanted))
    frames = np.broadcast_to(wanted[:, None, None, None], (len(wanted), 2, 2, 3))
    return np.array(policy(frames, np.zeros(len(wanted), np.bool_), envs))


def test_epsilon_is_the_share_of_random_actions():
    wanted = np.random.default_rng(0).integers(0, 4, 2000).astype(np.uint8)
    some, random = act(make_policy(0.2), wanted), act(make_policy(1.0), wanted)
    shares = [(actions != wanted).mean() for actions in (some, random)]
    assert shares == pytest.approx([0.2 * 3 / 4, 3 / 4], abs=0.03)
    assert np.bincount(random).min() > 430
    wanted = wanted[:400]
    np.testing.assert_array_equal(act(make_policy(0.0), wanted), wanted)
    half = act(make_policy(0.5), wanted)
    np.testing.assert_array_equal(half, act(make_policy(0.5), wanted))
    # An environment's actions do not depend on the number of others.
    np.testing.assert_array_equal(half[:7], act(make_policy(0.5), wanted[:7]))
    assert (act(make_policy(0.5, seed=4), wanted) != half).any()


def test_a_network_that_has_diverged_does_not_play(monkeypatch):
    policy = make_policy(0.0)
    monkeypatch.setattr(
        FakeNetwork, "forward", lambda self, stacks, mask: (stacks[:, 0] + torch.nan, None)
    )
    with pytest.raises(ConflictError, match="not finite numbers, so the training has diverged"):
        act(policy, np.zeros(1, np.uint8))


def test_a_repeated_evaluation_is_in_the_table_once(tmp_path):
    def games(count):
        return [Episode(0, 5, 1.0, 9, False)] * count  # Games may be equal.

    path = tmp_path / "eval.csv"
    for count, expected in ((2, 2), (2, 2), (3, 3), (1, 3)):
        write_csv(path, 10, "aaa", 0.001, {"run": games(count)})
        assert len(path.read_text().splitlines()) == 1 + expected
    write_csv(path, 10, "aaa", 0.001, {"run": games(1)}, variant="noise=0.1")
    assert len(path.read_text().splitlines()) == 5


def test_the_table_keeps_earlier_evaluations(tmp_path):
    path = tmp_path / "eval.csv"
    one = Episode(0, 5, -20.0, 900, False)
    write_csv(path, 10, "aaa", 0.001, {"run": [one]})
    other = Episode(1, 6, 3.0, 27000, True)
    write_csv(path, 20, "bbb", 0.05, {"best": [one], "random": [other]}, variant="noise=0.1")
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert [row["trained"] for row in rows] == ["10", "20", "20"]
    assert [row["checkpoint"] for row in rows] == ["aaa", "bbb", "bbb"]
    assert [row["variant"] for row in rows] == ["", "noise=0.1", "noise=0.1"]
    assert rows[2] == {
        "trained": "20", "policy": "random", "checkpoint": "bbb", "epsilon": "0.05", "env": "1",
        "seed": "6", "return": "3.0", "steps": "27000", "truncated": "True", "present": "",
        "variant": "noise=0.1",
    }  # fmt: skip


def test_a_table_of_an_older_wsa_goes_on(tmp_path):
    path, new = tmp_path / "eval.csv", tmp_path / "new.csv"
    for table in (path, new):
        write_csv(table, 10, "aaa", 0.001, {"run": [Episode(0, 5, -20.0, 900, False)]})
    path.write_bytes(path.read_bytes().replace(b"trained", b"updates", 1))
    for table in (path, new):
        write_csv(table, 20, "bbb", 0.001, {"run": [Episode(0, 5, 3.0, 900, False)]})
    assert path.read_bytes() == new.read_bytes()
    assert not path.with_name("eval-1.csv").exists()


def test_a_table_with_other_columns_is_renamed_and_kept(tmp_path):
    path, one = tmp_path / "eval.csv", Episode(0, 5, -20.0, 900, False)
    for old in ("updates,return\n7,3.0\n", "return\n4.0\n"):
        path.write_text(old)
        write_csv(path, 10, "aaa", 0.001, {"run": [one]})
        write_csv(path, 20, "bbb", 0.001, {"run": [one]})
        rows = list(csv.DictReader(path.read_text().splitlines()))
        assert [row["trained"] for row in rows] == ["10", "20"]
    kept = [(tmp_path / f"eval-{n}.csv").read_text() for n in (1, 2)]
    assert kept == ["updates,return\n7,3.0\n", "return\n4.0\n"]


MODELS = ("lite0-0123456789ab", "vit-0123456789ab", "vit-ba9876543210")


def watch(folder, kind, models=MODELS):
    """Play games of two environments; return their moments and the weights of each step."""
    generator, shown = np.random.default_rng(0), []

    class Weighing(RandomPolicy):
        def __call__(self, frames, first, envs):
            weights = generator.random((len(envs), len(models)), np.float32)
            shown.append(weights)
            return super().__call__(frames, first, envs)

    recorder = Recorder()
    with kind(folder, models, lambda: shown[-1]) as watcher:
        play(
            "Pong", stated("Pong", 8), Weighing(6, 0), games_of(3, 1, 2),
            watchers=[watcher, recorder],
        )  # fmt: skip
    return recorder.moments, shown


def test_the_weights_of_every_step_are_saved(tmp_path):
    (tmp_path / attention_log.FILE).write_bytes(b"an older evaluation's")
    moments, shown = watch(tmp_path, attention_log.WeightLog)
    with np.load(tmp_path / attention_log.FILE) as found:
        assert tuple(found["models"]) == MODELS
        np.testing.assert_array_equal(found["weights"], np.concatenate(shown))
        for name, of in (("step", "steps"), ("env", "envs"), ("episode", "episodes"),
                         ("action", "actions"), ("reward", "rewards")):  # fmt: skip
            whole = np.concatenate([getattr(moment, of) for moment in moments])
            np.testing.assert_array_equal(found[name], whole)
        assert len(found["step"]) == 3 * 8
    assert [path.name for path in tmp_path.iterdir()] == [attention_log.FILE]


def test_an_interrupted_evaluation_keeps_the_weights_of_the_one_before(tmp_path):
    (tmp_path / attention_log.FILE).write_bytes(b"an older evaluation's")
    with pytest.raises(KeyboardInterrupt), attention_log.WeightLog(tmp_path, MODELS, lambda: None):
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == [attention_log.FILE]
    assert (tmp_path / attention_log.FILE).read_bytes() == b"an older evaluation's"


def test_a_video_shows_the_weights_beside_the_game(tmp_path):
    moments, shown = watch(tmp_path / "films", Films)
    frames = read_video(tmp_path / "films" / "episode_0.mp4")
    for picture, moment, weights in zip(frames, moments[:8], shown[:8], strict=True):
        assert picture.shape == (420, 320 + PANEL, 3)
        assert np.abs(picture[::2, :320:2] - moment.frames[0]).mean() < 6
        for i, weight in enumerate(weights[0]):
            bar = 2 * LINE + MARGIN + TALLEST_ROW * i + 36
            middle = picture[bar, 320 + MARGIN : 320 + PANEL - MARGIN]
            filled = (middle.max(axis=1) > 120).mean()
            assert filled == pytest.approx(weight, abs=0.05)


def test_labels_are_the_shortest_names_that_differ():
    assert names.labels(MODELS) == ["lite0", *MODELS[1:]]
    many = [f"a_model_with_a_long_name_number_{i}-0123456789ab" for i in range(30)]
    drawn = panel(names.labels(many), [np.linspace(0, 1, 30, dtype=np.float32)], [], 420)
    row = (420 - MARGIN) // 30
    lengths = [
        (drawn[MARGIN + row * i + row // 2 + 2] == COLORS[i % len(COLORS)]).all(axis=1).sum()
        for i in range(30)
    ]
    assert lengths == [round(i / 29 * (PANEL - 2 * MARGIN)) for i in range(30)]


def test_a_panel_charts_the_weights_over_time():
    history = [np.array([i / 99, 1 - i / 99], np.float32) for i in range(100)]
    drawn = panel(["a", "b"], history, ["step 99, return 3"], 420)
    chart = drawn[LINE + MARGIN + 2 * TALLEST_ROW + MARGIN : 420 - MARGIN, MARGIN : PANEL - MARGIN]
    for color, (oldest, newest) in zip(COLORS, ((0.0, 1.0), (1.0, 0.0)), strict=False):
        at = np.argwhere((np.abs(chart.astype(int) - color) < 40).all(axis=2))
        first, last = at[at[:, 1].argmin()], at[at[:, 1].argmax()]
        assert last[1] - first[1] == pytest.approx(99, abs=2)
        assert 1 - first[0] / len(chart) == pytest.approx(oldest, abs=0.05)
        assert 1 - last[0] / len(chart) == pytest.approx(newest, abs=0.05)


def test_a_machine_plays_the_games_of_the_random_policy_once(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("WSA_CACHE", str(tmp_path))
    games = RandomGames("Breakout", stated("Breakout", 30), games_of(3, 5, 2))
    assert games.find() is None
    steps = []
    episodes = games.play(lambda played, _: steps.append(played))
    assert [e.env for e in episodes] == [0, 0, 1] and steps[-1] == sum(e.steps for e in episodes)
    with monkeypatch.context() as patch:
        patch.setattr(random_games, "play", pytest.fail)
        assert games.play() == games.find() == episodes
    games.path.write_bytes(b"[{}]")
    assert games.play() == episodes
    # Each fact of the games has its own file; frames are not one.
    for name, value in (("episodes", 4), ("seed", 6), ("num_envs", 1)):
        settings = msgspec.structs.replace(games.settings, **{name: value})
        assert msgspec.structs.replace(games, settings=settings).path != games.path
    assert msgspec.structs.replace(games, game="Pong").path != games.path
    look, rules = (parse_variant(spec, "Breakout") for spec in ("look:invert", "mode=4"))
    assert msgspec.structs.replace(games, variant=look).path == games.path
    assert msgspec.structs.replace(games, variant=rules).path != games.path
    # A cache that cannot be written costs a warning.
    monkeypatch.setenv("WSA_CACHE", str(tmp_path / "file"))
    (tmp_path / "file").touch()
    assert games.play() == episodes
    assert "The games of the random policy were not kept." in caplog.text


def test_random_games_are_played_without_a_folder_for_a_cache(monkeypatch):
    def none():
        raise UsageError("You have no home folder here.")

    monkeypatch.setattr(random_games, "cache_folder", none)
    games = RandomGames("Breakout", stated("Breakout", 30), games_of(1, 5, 1))
    assert [episode.seed for episode in games.play()] == [5]
